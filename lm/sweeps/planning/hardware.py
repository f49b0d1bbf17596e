"""Data of accelerators, and the names of target hardware that a plan accepts.

here                 the devices of this process
cpu:8                eight CPU devices; cpu is one
tpu:v5e:4x4          a slice of a TPU pod with its shape: 16 chips
tpu:v5p:2x8x16x16    two slices of 8x16x16 chips, which the data center network connects
gpu:h200:16x8        nodes x devices per node: 128 cards; gpu:h100:8 is one node, gpu:h100 one card

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
    link_speed: float  # bytes/s. TPU: one ICI link of the torus; GPU: NVLink, to the same node
    slow_speed: float  # bytes/s. TPU: data center network, to other slices; GPU: InfiniBand
    ring_multiple: int  # TPU: a side of the slice is a ring if its length is a multiple of this
    source: str


CLOUD, DATASHEET = "cloud.google.com/tpu/docs, 2026-11", "NVIDIA datasheet, 2026-11"
# The vendors' peaks are upper bounds: cost.ASSUMED_MFU has the fractions that a run is assumed to
# reach. The memory of a TPU is the part that libtpu gives to a program. The data center network of
# a TPU is that of its system page: v5e 6.4 Tbit/s and v6e 25.6 Tbit/s per pod of 256 chips, v5p 50
# Gbit/s per chip. No value is published for v4, which is assumed to equal v5p. The InfiniBand of a
# GPU is one port per card: HDR, 200 Gbit/s, for a100 and NDR, 400 Gbit/s, for the others (DGX and
# HGX datasheets). The data of a CPU device, which is one core, are rough assumptions.
ACCELERATORS = {
    #             bfloat16 float32    memory bytes    bytes/s   link   slow network  ring  source
    "cpu":  Accelerator( .05e12,  .05e12,    4.00 * GIB,     10e9,    5e9,    1e9,   1, "assumed"),
    "v4":   Accelerator(  275e12,  275e12,  30.75 * GIB,   1228e9,   50e9,  6.25e9,  4, CLOUD),
    "v5e":  Accelerator(  197e12,  197e12,  15.75 * GIB,    819e9,   50e9, 3.125e9, 16, CLOUD),
    "v5p":  Accelerator(  459e12,  459e12,  95.74 * GIB,   2765e9,  100e9,  6.25e9,  4, CLOUD),
    "v6e":  Accelerator(  918e12,  918e12,  31.25 * GIB,   1638e9,  112e9,  12.5e9, 16, CLOUD),
    "a100": Accelerator(  312e12,  156e12,  79.15 * GIB,   2039e9,  300e9,   25e9,   1, DATASHEET),
    "h100": Accelerator(  989e12,  494e12,  79.11 * GIB,   3352e9,  450e9,   50e9,   1, DATASHEET),
    "h200": Accelerator(  989e12,  494e12, 139.80 * GIB,   4800e9,  450e9,   50e9,   1, DATASHEET),
    "b200": Accelerator( 2250e12, 1125e12, 178.36 * GIB,   7672e9,  900e9,   50e9,   1, DATASHEET),
}  # fmt: skip
PLATFORMS = {
    "cpu": ("cpu",),
    "tpu": ("v4", "v5e", "v5p", "v6e"),
    "gpu": ("a100", "h100", "h200", "b200"),
}
COMPUTE_CAPABILITIES = {"a100": "8.0", "h100": "9.0", "h200": "9.0", "b200": "10.0"}
N_SIDES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}  # of the torus of a TPU slice; others have 1
DEVICE_KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
CHIPS_PER_HOST = 4  # of a TPU slice, in absent_devices
MAX_DEVICES_PER_NODE = 8  # GPUs that NVLink connects on an HGX or DGX board
SHAPE_RULES = {
    "cpu": "a number of devices",
    "tpu": "[SLICES x] the {n} sides of a slice",
    "gpu": "[NODES x] devices per node, at most 8",
}
MAX_DEVICES = 2**17  # more than any machine has; a plan examines each of them
EXAMPLES = (
    *("here", "cpu:8", "tpu:v5e:4x4", "tpu:v5p:8x16x16", "tpu:v5p:2x8x16x16"),
    *("gpu:h100:8", "gpu:h200:16x8"),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of equal devices with their shape. They need not be present.

    The devices are equal slices (TPU) or nodes (GPU). A fast network connects the devices within a
    slice or node, and a slow network connects the slices or nodes.
    """

    name: str  # as given by the user
    platform: str  # cpu, tpu or gpu
    chip: str  # key of ACCELERATORS
    n_slices: int  # TPU slices or GPU nodes
    shape: tuple[int, ...]  # TPU: sides of the torus of a slice; others: devices per node
    spec: Accelerator

    @property
    def devices_per_slice(self) -> int:
        return math.prod(self.shape)

    @property
    def n_devices(self) -> int:
        return self.n_slices * self.devices_per_slice

    @property
    def compute_capability(self) -> str:
        """Return the compute capability of a GPU target, "" of another target."""
        return COMPUTE_CAPABILITIES.get(self.chip, "")

    def peak(self, dtype: str) -> float:
        """Return the vendor's peak of all devices together, in FLOP/s."""
        return self.n_devices * getattr(self.spec, dtype)


@dataclasses.dataclass(frozen=True)
class AbsentDevice:
    """Stand-in for a device of a target, with the attributes from which JAX builds a mesh."""

    id: int
    platform: str
    device_kind: str
    process_index: int
    slice_index: int
    coords: tuple[int, ...]
    core_on_chip: int = 0


def absent_devices(target: Target) -> list[AbsentDevice]:
    """Return a stand-in for each device of a target, in the order of `device_coordinates`."""
    devices = []
    kind = DEVICE_KINDS.get(target.chip, target.chip)
    for i in range(target.n_devices):
        slice_index, *position = device_coordinates(target, i)
        coordinates = (*position, *[0] * (3 - len(position)))
        process = i // target.devices_per_slice if target.platform == "gpu" else i // CHIPS_PER_HOST
        device = AbsentDevice(i, target.platform, kind, process, slice_index, coordinates)
        devices.append(device)
    return devices


def parse_target(name: str, flag: str = "--target") -> Target:
    """Parse the name of a target, such as gpu:h200:16x8.

    flag: the flag with the name, for messages. Without a shape, a CPU or GPU target is one device.
    Raises ValueError that lists the known targets if the target does not exist.
    """
    platform, *fields = name.lower().split(":")
    chip, *shape = ["cpu", *fields] if platform == "cpu" else fields or [""]
    if chip not in PLATFORMS.get(platform, ()) or len(shape) > 1:
        raise ValueError(f"{flag}={name} does not exist. The targets are {_known_targets()}.")
    n_sides = N_SIDES.get(chip, 1)
    if not shape and platform != "tpu":
        shape = ["1"]
    sides = shape[0].split("x") if shape else []
    are_positive = all(re.fullmatch("[1-9][0-9]{0,8}", side) for side in sides)
    n_outer = len(sides) - n_sides  # 1 with a number of slices or nodes
    if not are_positive or n_outer not in ((0,) if platform == "cpu" else (0, 1)):
        raise _shape_error(f"{flag}={name}", platform, chip)
    numbers = [int(side) for side in sides]
    n_slices = math.prod(numbers[:n_outer])
    target = Target(
        *(name, platform, chip, n_slices, tuple(numbers[n_outer:]), usable_accelerator(chip))
    )
    if target.n_devices > MAX_DEVICES:
        raise ValueError(
            f"{flag}={name} has {target.n_devices:,} devices: use at most {MAX_DEVICES:,}"
        )
    if platform == "gpu" and target.devices_per_slice > MAX_DEVICES_PER_NODE:
        raise _shape_error(f"{flag}={name}", platform, chip)
    return target


def usable_accelerator(chip: str) -> Accelerator:
    """Return the data of a chip, with the memory that JAX gives to a program."""
    spec = ACCELERATORS[chip]
    if spec.source != DATASHEET:  # libtpu and the CPU reserve nothing
        return spec
    fraction = gpu_memory.gpu_memory_fraction()
    return dataclasses.replace(spec, memory_bytes=fraction * spec.memory_bytes)


def _shape_error(setting: str, platform: str, chip: str) -> ValueError:
    """Return the error of a target with an invalid shape, which names a valid one.

    setting: the flag and its value.
    """
    examples = [e for e in reversed(EXAMPLES) if e.startswith(f"{platform}:")]
    same_chip = [example for example in examples if chip in example]
    same_sides = [e for e in examples if N_SIDES.get(e.split(":")[1], 1) == N_SIDES.get(chip, 1)]
    rule = SHAPE_RULES[platform].format(n=N_SIDES.get(chip))
    example = (same_chip or same_sides)[0]
    return ValueError(f"{setting}: the part after {chip} must be {rule}, as in {example}")


def _known_targets() -> str:
    """Return the names of all targets as one line."""
    shapes = {"tpu": "[SLICESx]SIDES", "gpu": "[NODESx]DEVICES"}
    names = [
        f"{platform}:{'|'.join(PLATFORMS[platform])}:{shape}" for platform, shape in shapes.items()
    ]
    return f"cpu:DEVICES, {', '.join(names)}, such as {', '.join(EXAMPLES)}"


def link_bandwidth(target: Target, coordinates: list[tuple[int, ...]]) -> float:
    """Return the peak bandwidth of a device in a collective of a group, in bytes/s.

    coordinates: of the devices in the group, see `device_coordinates`. On a TPU, each side of the
    torus that the group spans adds one link, or two if the side is a ring. All devices of a slice
    or node send over the slow network at the same time, and each has its own bandwidth there.
    """
    spec = target.spec
    slices = [index for index, *_ in coordinates]
    fast_speed = _fast_speed(target, [position for _, *position in coordinates])
    if len(set(slices)) == 1:
        return fast_speed
    slow_speed = spec.slow_speed * len(slices) / len(set(slices))
    return min(fast_speed, slow_speed)


def _fast_speed(target: Target, positions: list[list[int]]) -> float:
    """Return the bandwidth of a device in a group within its slice or node, in bytes/s."""
    spec = target.spec
    if target.platform != "tpu":
        return spec.link_speed
    speed = 0.0
    for length, along_side in zip(target.shape, zip(*positions, strict=True), strict=True):
        if len(set(along_side)) > 1:
            speed += spec.link_speed * (2 if length % spec.ring_multiple == 0 else 1)
    return speed or spec.link_speed


def device_coordinates(target: Target, index: int) -> tuple[int, ...]:
    """Return the slice or node of a device and its position there, (slice, *position).

    Devices are counted slice by slice, in a slice along its last side first.
    """
    reversed_coordinates = []
    for length in reversed((target.n_slices, *target.shape)):
        index, position = divmod(index, length)
        reversed_coordinates.append(position)
    return tuple(reversed(reversed_coordinates))
