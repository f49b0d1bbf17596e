"""Data of accelerators, and the names of target hardware that a plan accepts.

here                the devices of this process
cpu:8               eight CPU devices; cpu is one
tpu:v5e:4x4         a slice of a TPU pod with its shape: 16 chips
gpu:h200:8x16       devices per node x nodes: 128 cards; gpu:h100:8 is one node, gpu:h100 one card

    hardware.parse_target("tpu:v5p:8x16x16").n_devices      # 2048
"""

import dataclasses
import math
import re

from lm.parallel import gpu_memory

GIB = 2**30  # bytes


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Performance data of one device.

    The peaks apply to dense matrix products. A bandwidth counts one direction.
    """

    bfloat16: float  # FLOP/s
    float32: float  # FLOP/s, in the precision that JAX uses by default for float32 products
    memory_bytes: float  # that a program can use; GPU: all of it, see `usable_accelerator`
    memory_speed: float  # bytes/s
    link_speed: float  # bytes/s. TPU: one link of the torus; GPU: to the devices of the same node
    internode_speed: float  # bytes/s. GPU: to other nodes; TPU: unused
    ring_multiple: int  # TPU: a side of the slice is a ring if its length is a multiple of this
    source: str


CLOUD, DATASHEET = "cloud.google.com/tpu/docs, 2026-11", "NVIDIA datasheet, 2026-11"
# The vendors' peaks are upper bounds: cost.ASSUMED_MFU has the fractions that a run is assumed to
# reach. The memory of a TPU is the part that libtpu gives to a program. The data of a CPU device,
# which is one core, are rough assumptions.
ACCELERATORS = {
    #             bfloat16 float32    memory bytes    bytes/s   link internode ring  source
    "cpu":  Accelerator( .05e12,  .05e12,    4.00 * GIB,     10e9,    5e9,    1e9,   1, "assumed"),
    "v4":   Accelerator(  275e12,  275e12,  30.75 * GIB,   1228e9,   50e9,    0e9,   4, CLOUD),
    "v5e":  Accelerator(  197e12,  197e12,  15.75 * GIB,    819e9,   50e9,    0e9,  16, CLOUD),
    "v5p":  Accelerator(  459e12,  459e12,  95.74 * GIB,   2765e9,  100e9,    0e9,   4, CLOUD),
    "v6e":  Accelerator(  918e12,  918e12,  31.25 * GIB,   1638e9,  112e9,    0e9,  16, CLOUD),
    "a100": Accelerator(  312e12,  156e12,  79.15 * GIB,   2039e9,  300e9,   25e9,   1, DATASHEET),
    "h100": Accelerator(  989e12,  494e12,  79.11 * GIB,   3352e9,  450e9,   50e9,   1, DATASHEET),
    "h200": Accelerator(  989e12,  494e12, 139.80 * GIB,   4800e9,  450e9,   50e9,   1, DATASHEET),
    "b200": Accelerator( 2250e12, 1125e12, 178.36 * GIB,   7672e9,  900e9,   50e9,   1, DATASHEET),
}  # fmt: skip
PLATFORMS = {
    # platform: its chips, the allowed numbers of sides of a shape
    "cpu": (("cpu",), (1,)),
    "tpu": (("v4", "v5e", "v5p", "v6e"), (2, 3)),
    "gpu": (("a100", "h100", "h200", "b200"), (1, 2)),
}
SHAPE_RULES = {
    "cpu": "a number of devices",
    "tpu": "the sides of a slice",
    "gpu": "devices per node x nodes",
}
MAX_DEVICES = 2**17  # more than any machine has; a plan examines each of them
EXAMPLES = ("here", "cpu:8", "tpu:v5e:4x4", "tpu:v5p:8x16x16", "gpu:h100:8", "gpu:h200:8x16")


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of equal devices with their shape. They need not be present."""

    name: str  # as given by the user
    platform: str  # cpu, tpu or gpu
    chip: str  # key of ACCELERATORS
    shape: tuple[int, ...]  # TPU: sides of the torus; GPU: devices per node, nodes
    spec: Accelerator

    @property
    def n_devices(self) -> int:
        return math.prod(self.shape)

    def peak(self, dtype: str) -> float:
        """Return the vendor's peak of all devices together, in FLOP/s."""
        return self.n_devices * getattr(self.spec, dtype)


def parse_target(name: str) -> Target:
    """Parse the name of a target, such as gpu:h200:8x16.

    Without a shape, a CPU or GPU target is one device. Raises ValueError that lists the known
    targets if the target does not exist.
    """
    platform, *fields = name.lower().split(":")
    chip, *shape = ["cpu", *fields] if platform == "cpu" else fields or [""]
    chips, allowed_n_sides = PLATFORMS.get(platform, ((), ()))
    if chip not in chips or len(shape) > 1:
        raise ValueError(f"--target={name} does not exist. The targets are {_known_targets()}.")
    if not shape and 1 in allowed_n_sides:
        shape = ["1"]
    sides = shape[0].split("x") if shape else []
    are_positive = all(re.fullmatch("[1-9][0-9]{0,8}", side) for side in sides)
    if not are_positive or len(sides) not in allowed_n_sides:
        examples = [e for e in reversed(EXAMPLES) if e.startswith(f"{platform}:")]
        example = next((e for e in examples if chip in e), examples[0])
        raise ValueError(
            f"--target={name}: the part after {chip} must be {SHAPE_RULES[platform]}, as in"
            f" {example}"
        )
    target = Target(
        name, platform, chip, tuple(int(side) for side in sides), usable_accelerator(chip)
    )
    if target.n_devices > MAX_DEVICES:
        raise ValueError(
            f"--target={name} has {target.n_devices:,} devices: use at most {MAX_DEVICES:,}"
        )
    return target


def usable_accelerator(chip: str) -> Accelerator:
    """Return the data of a chip, with the memory that JAX gives to a program."""
    spec = ACCELERATORS[chip]
    if spec.source != DATASHEET:  # libtpu and the CPU reserve nothing
        return spec
    fraction = gpu_memory.gpu_memory_fraction()
    return dataclasses.replace(spec, memory_bytes=fraction * spec.memory_bytes)


def _known_targets() -> str:
    """Return the names of all targets as one line."""
    shapes = {"tpu": "SIDES", "gpu": "DEVICES[xNODES]"}
    names = [
        f"{platform}:{'|'.join(chips)}:{shapes[platform]}"
        for platform, (chips, _) in PLATFORMS.items()
        if platform in shapes
    ]
    return f"cpu:DEVICES, {', '.join(names)}, such as {', '.join(EXAMPLES)}"


def link_bandwidth(target: Target, coordinates: list[tuple[int, ...]]) -> float:
    """Return the peak bandwidth of a device in a collective of a group, in bytes/s.

    coordinates: of the devices in the group, see `device_coordinates`. On a TPU, each side of the
    torus that the group spans adds one link, or two if the side is a ring. The GPUs of a node share
    the bandwidth to other nodes, and all of them send at the same time.
    """
    spec = target.spec
    if target.platform == "tpu":
        speed = 0.0
        for length, positions in zip(target.shape, zip(*coordinates, strict=True), strict=True):
            if len(set(positions)) > 1:
                speed += spec.link_speed * (2 if length % spec.ring_multiple == 0 else 1)
        return speed or spec.link_speed
    n_nodes = len({node for *_, node in coordinates})
    if n_nodes == 1:
        return spec.link_speed
    return min(spec.link_speed, spec.internode_speed * len(coordinates) / n_nodes)


def device_coordinates(target: Target, index: int) -> tuple[int, ...]:
    """Return the coordinates of a device in the torus, or its (index in the node, node).

    TPUs are counted along their last side first, other devices node by node.
    """
    if target.platform != "tpu":
        node, index_in_node = divmod(index, target.shape[0])
        return index_in_node, node
    reversed_coordinates = []
    for length in reversed(target.shape):
        index, position = divmod(index, length)
        reversed_coordinates.append(position)
    return tuple(reversed(reversed_coordinates))
