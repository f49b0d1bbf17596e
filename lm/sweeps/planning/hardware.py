"""Machines by name, and what their makers say of them: for plans of runs on devices not here.

    here                these devices
    cpu:8               eight CPU devices
    tpu:v5e:4x4         a slice of a TPU pod by its shape: 16 chips
    gpu:h200:8x16       devices a node x nodes: 128 cards;  gpu:h100:8 is one node

parse("tpu:v5p:8x16x16").n_devices      2048
"""

import dataclasses
import math

from lm.config import schema

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What one device can do. Peaks are of dense matrix products; bandwidths are one way."""

    bfloat16: float  # FLOP/s
    float32: float  # FLOP/s, in the precision that JAX multiplies float32 with by default
    memory: float  # bytes that a program may use
    memory_speed: float  # bytes/s
    link: float  # bytes/s: TPU: of one of the links of a torus; GPU: to the devices of its node
    far: float  # bytes/s: GPU: to other nodes; TPU: unused
    ring: int  # TPU: a side of the slice is a ring where it is a multiple of this, else a line
    source: str


CLOUD, DATASHEET = "cloud.google.com/tpu/docs, 2026-11", "NVIDIA datasheet, 2026-11"
# Vendors' figures, of which no run reaches all; cost.ASSUMED_MFU says what is assumed of them. TPU
# memory is what libtpu lets a program have. A CPU device is one core, and its row a mere guess.
ACCELERATORS = {
    #             bfloat16 float32    memory bytes    bytes/s    link     far   ring  source
    "cpu":  Accelerator( .05e12,  .05e12,    4.00 * GIB,     10e9,    5e9,    1e9,   1, "assumed"),
    "v4":   Accelerator(  275e12,  275e12,  30.75 * GIB,   1228e9,   50e9,    0e9,   4, CLOUD),
    "v5e":  Accelerator(  197e12,  197e12,  15.75 * GIB,    819e9,   50e9,    0e9,  16, CLOUD),
    "v5p":  Accelerator(  459e12,  459e12,  95.74 * GIB,   2765e9,  100e9,    0e9,   4, CLOUD),
    "v6e":  Accelerator(  918e12,  918e12,  31.25 * GIB,   1638e9,  112e9,    0e9,  16, CLOUD),
    "a100": Accelerator(  312e12,  156e12,  79.15 * GIB,   2039e9,  300e9,   25e9,   1, DATASHEET),
    "h100": Accelerator(  989e12,  494e12,  79.11 * GIB,   3352e9,  450e9,   50e9,   1, DATASHEET),
    "h200": Accelerator(  989e12,  494e12, 141.00 * GIB,   4800e9,  450e9,   50e9,   1, DATASHEET),
    "b200": Accelerator( 2250e12, 1125e12, 178.36 * GIB,   7672e9,  900e9,   50e9,   1, DATASHEET),
}  # fmt: skip
KINDS = {
    # platform  its chips                          sides of a shape
    "cpu": (("cpu",), (1,)),
    "tpu": (("v4", "v5e", "v5p", "v6e"), (2, 3)),
    "gpu": (("a100", "h100", "h200", "b200"), (1, 2)),
}
EXAMPLES = ("here", "cpu:8", "tpu:v5e:4x4", "tpu:v5p:8x16x16", "gpu:h100:8", "gpu:h200:8x16")


@dataclasses.dataclass(frozen=True)
class Target:
    name: str  # as it was asked for
    platform: str  # cpu, tpu, gpu
    chip: str  # row of CHIPS
    shape: tuple[int, ...]  # devices by side of a torus; devices a node, nodes
    spec: Accelerator

    @property
    def n_devices(self) -> int:
        return math.prod(self.shape)

    def peak(self, dtype: str) -> float:
        """FLOP/s of all devices together, as the vendor has it."""
        return self.n_devices * getattr(self.spec, dtype)


def parse_target(name: str) -> Target:
    """The machine of a name such as gpu:h200:8x16; ValueError naming what is nearest."""
    platform, *rest = name.split(":")
    if platform not in KINDS or len(rest) != (1 if platform == "cpu" else 2):
        raise ValueError("--target=" + schema.suggest_names(name, list(EXAMPLES)))
    chips, n_sides = KINDS[platform]
    chip = "cpu" if platform == "cpu" else rest[0]
    if chip not in chips:
        raise ValueError(f"--target={platform}:" + schema.suggest_names(chip, list(chips)))
    sides = rest[-1].split("x")
    if not all(side.isdecimal() and int(side) for side in sides) or len(sides) not in n_sides:
        what = {"cpu": "a number of devices", "tpu": "the sides of a slice"}
        like = next(e for e in reversed(EXAMPLES) if e.startswith(platform))
        rule = what.get(platform, "devices a node x nodes")
        raise ValueError(f"--target={name}: {rest[-1]!r} must be {rule}, as in {like}")
    return Target(name, platform, chip, tuple(int(side) for side in sides), ACCELERATORS[chip])


def link_bandwidth(target: Target, places: list[tuple[int, ...]]) -> float:
    """bytes/s at which each of a group of devices exchanges with all others, at best.

    places: where they stand (see `place`). On a TPU each side that the group spans adds its links,
    two ways round a ring. GPUs that share a node send the group's bytes out of it together.
    """
    spec = target.spec
    if target.platform == "tpu":
        speed = 0.0
        for side, at in zip(target.shape, zip(*places, strict=True), strict=True):
            if len(set(at)) > 1:
                speed += spec.link * (2 if side % spec.ring == 0 else 1)
        return speed or spec.link
    n_nodes = len({place[-1] for place in places})
    if n_nodes == 1:
        return spec.link
    return min(spec.link, spec.far * len(places) / n_nodes)


def place(target: Target, number: int) -> tuple[int, ...]:
    """Where a device stands: along the sides of a torus, or in which place of which node.

    TPUs are counted along their last side first, others node by node.
    """
    if target.platform != "tpu":
        node, at = divmod(number, target.shape[0])
        return at, node
    found = []
    for side in reversed(target.shape):
        number, at = divmod(number, side)
        found.append(at)
    return tuple(reversed(found))
