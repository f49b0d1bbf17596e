"""What a compiled program sends between devices, read from its text (HLO).

found = collectives(compiled.as_text(), n_devices=16)
found[0].kind, found[0].n, found[0].bytes       "all-gather", times a step, bytes each time
"""

import dataclasses
import importlib.util
import math
import os
import re
import time

import jax

from lm.config import schema
from lm.parallel import mesh
from lm.sweeps.planning import hardware
from lm.training import step

KINDS = (
    *("all-gather", "reduce-scatter", "all-reduce"),
    *("all-to-all", "ragged-all-to-all", "collective-permute"),
)
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16}
BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}
HEAD = re.compile(r"^(?:ENTRY )?%?([^\s(]+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([^\s=]+) = (.*?) ([a-z][a-z0-9-]*)\(")
CALLED = re.compile(r"(?:calls|to_apply|called_computation|async_execution_thread)=%?([^\s,}]+)")
LOOP = re.compile(r"condition=%?([^\s,]+), body=%?([^\s,]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass
class Collective:
    kind: str  # one of KINDS
    n: int  # times a step: once a pass through every loop around it
    bytes: float  # that leave a device each time, in rings: all but its own share
    group: tuple[int, ...]  # places in the mesh of one group of those that take part


def find_collectives(text: str, n_devices: int) -> list[Collective]:
    """Every collective that an optimised program runs, loops unrolled in the count.

    One that is split into a start, steps within other work and an end is counted once. A TPU's
    all-reduce that keeps only a slice counts as the reduce-scatter that it is.
    """
    bodies, entry = _computations(text)
    found: dict[str, Collective] = {}
    _walk(bodies, entry, 1, n_devices, found)
    return list(found.values())


def total_traffic(found: list[Collective]) -> dict[str, dict[str, float]]:
    """Kind -> how many a step and how many bytes they send from each device, most bytes first."""
    rows = {}
    for kind in KINDS:
        mine = [one for one in found if one.kind == kind]
        if mine:
            sent = sum(one.n * one.bytes for one in mine)
            rows[kind] = {"n": sum(one.n for one in mine), "bytes": sent}
    return dict(sorted(rows.items(), key=lambda row: -row[1]["bytes"]))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the first to run."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = HEAD.match(line)
        if head and not line.startswith("HloModule"):
            bodies[head[1]] = lines = []
            entry = head[1] if line.startswith("ENTRY") else entry
        elif line.startswith(" "):
            lines.append(line)
    return bodies, entry


def _walk(bodies, name: str, times: int, n_devices: int, found: dict[str, Collective]) -> None:
    for line in bodies.get(name, []):
        parsed = LINE.match(line)
        if not parsed:
            continue
        _, shape, operation = parsed.groups()
        kind = operation.removesuffix("-start")
        if operation == "while":
            loop = LOOP.search(line)
            assert loop, line
            _walk(bodies, loop[2], times * _trips(bodies, line, loop[1]), n_devices, found)
        elif kind in KINDS:
            channel = CHANNEL.search(line)
            key = channel[1] if channel else f"{name}/{parsed[1]}"
            if key not in found:
                group = _group(line, n_devices)
                sliced = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                sent = _sent(kind, shape, len(group), operation.endswith("-start"))
                kind, sent = ("reduce-scatter", sent / 2) if sliced else (kind, sent)
                found[key] = Collective(kind, times, sent, group)
        elif operation == "conditional":
            branches = BRANCHES.search(line)
            for branch in branches[1].split(",") if branches else []:
                _walk(bodies, branch.strip().lstrip("%"), times, n_devices, found)
        elif operation in ("fusion", "call", "async-start"):
            for called in CALLED.findall(line):
                _walk(bodies, called, times, n_devices, found)


def _trips(bodies: dict[str, list[str]], line: str, condition: str) -> int:
    """How often a loop runs: as the compiler says, or the number its counter is held against."""
    known = TRIPS.search(line)
    if known:
        return int(known[1])
    numbers = re.findall(r"[su]32\[\]\S* constant\((\d+)\)", "\n".join(bodies.get(condition, [])))
    return max((int(number) for number in numbers), default=1)


def _sent(kind: str, shape: str, size: int, started: bool) -> float:
    """Bytes that a ring sends from each device for a result of this shape (of a start: in, out)."""
    parts = [
        math.prod(int(n) for n in sides.split(",") if n) * BITS.get(dtype, 8) / 8
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    ]
    total, others = sum(parts), (size - 1) / size
    if kind == "collective-permute":
        return max(parts)
    if kind == "all-gather":
        return others * (total * size / (size + 1) if started else total)
    if kind == "reduce-scatter":  # its result is a share of what each brings
        return (size - 1) * (total / (size + 1) if started else total)
    return others * total * (2 if kind == "all-reduce" else 1)


def _group(line: str, n_devices: int) -> tuple[int, ...]:
    """The first group of replica_groups, which is written in four ways, or of a permutation."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    if pairs:
        return int(pairs[1]), int(pairs[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return tuple(int(n) for n in listed[1].split(","))
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if counted:
        size = int(counted[1].split(",")[-1])
        sides = [int(n) for n in counted[2].split(",")]
        order = [int(n) for n in counted[3].split(",")] if counted[3] else range(len(sides))
        return tuple(_transposed(sides, list(order), i) for i in range(size))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sides = [(a, int(n)) for a, n in re.findall(r"'([^']+)'=(\d+)", named[1])]
        places = [0]
        stride = math.prod(size for _, size in sides)
        for axis, size in sides:
            stride //= size
            if f"'{axis}'" in named[2]:
                places = [place + i * stride for place in places for i in range(size)]
        return tuple(places)
    return tuple(range(n_devices))


def _transposed(sides: list[int], order: list[int], place: int) -> int:
    """The number at `place` of 0, 1, 2 ... laid out by `sides`, its axes then put in `order`."""
    number = 0
    for axis in reversed(order):
        place, at = divmod(place, sides[axis])
        number += at * math.prod(sides[axis + 1 :])
    return number


# MERGED DOCSTRING of lm.described:
# """A train step compiled for devices that are not here, by their own compiler: nothing allocated.
#
#     found = compile_step(run, hardware.parse_target("tpu:v5p:8x16x16"))
#     found.bytes, found.collectives, found.seconds
#
# TPU needs libtpu (extra: tpu), GPU JAX's CUDA plugin (extra: gpu); neither needs a device.
# """

# What libtpu would otherwise ask a metadata server for, or hold a lock over.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
MODULES = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
# Of a card: cores, compute capability, L2 bytes, GHz (NVIDIA's datasheets and tuning guides).
CARDS = {
    "a100": (108, (8, 0), 40 * 2**20, 1.41),
    "h100": (132, (9, 0), 50 * 2**20, 1.98),
    "h200": (132, (9, 0), 50 * 2**20, 1.98),
    "b200": (148, (10, 0), 126 * 2**20, 1.965),
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass
class Compiled:
    """Of one device, in bytes: what is held, what comes on top, and how much too much that is."""

    params: float
    optimizer: float
    temporaries: float  # activations, gradients, gathered weights, all else of a step
    over: float  # above hardware.Accelerator.memory; 0: it fits
    collectives: list[Collective]
    network_seconds: float  # of the collectives one after another
    seconds: float  # that compiling took

    @property
    def bytes(self) -> float:
        return self.params + self.optimizer + self.temporaries


def initialize_target_compiler(target: hardware.Target) -> None:
    """Settings that must come before the first use of a device; this process computes on CPU."""
    for name, value in TPU_ENVIRONMENT.items() if target.platform == "tpu" else ():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    if target.platform == "cpu" and jax.config.values["jax_num_cpu_devices"] < target.n_devices:
        jax.config.update("jax_num_cpu_devices", target.n_devices)


def missing_extra(target: hardware.Target) -> str:
    """The extra that the target's compiler comes with, where it is not installed; else ""."""
    modules = MODULES.get(target.platform, ("jax",))
    is_there = any(importlib.util.find_spec(module) for module in modules)
    return "" if is_there else target.platform


def target_devices(target: hardware.Target) -> list:
    """Descriptions of the target's devices; ValueError for a slice that does not exist."""
    from jax.experimental import topologies

    if target.platform == "cpu":
        here = jax.devices("cpu")
        if len(here) < target.n_devices:
            raise ValueError(f"--target={target.name}: this process has {len(here)} CPU devices")
        return here[: target.n_devices]
    shape = "x".join(map(str, target.shape))
    try:
        if target.platform == "tpu":
            name = f"{target.chip}:{shape}"
            return list(topologies.get_topology_desc(name, platform="tpu").devices)
        each, nodes = (*target.shape, 1)[:2]
        described = topologies.get_topology_desc(
            f"1x{nodes}x{each}", platform="cuda", target_config=_card(target),
            topology=f"1x{nodes}x{each}",
        )  # fmt: skip
        return list(described.devices)
    except (RuntimeError, ValueError) as error:
        what = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"--target={target.name} is no machine to its compiler: {what}") from error


def compile_step(run: schema.Run, target: hardware.Target) -> Compiled:
    """The train step as the target's compiler makes it. Too little memory is an answer: over."""
    device_mesh = mesh.make_mesh(run.mesh, target_devices(target))
    mesh.check_mesh_devices(run, device_mesh)
    program = step.build_train_functions(run, device_mesh)
    params, moments = (_bytes_a_device(program.abstract[part]) for part in ("params", "opt"))
    held = params + moments
    began = time.perf_counter()
    with jax.set_mesh(device_mesh):
        lowered = program.step.lower(program.abstract, program.batch, program.inputs)
        try:
            made = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = _needed(str(error), held, target.spec.memory)
            if not needed:
                raise
            took = time.perf_counter() - began
            over = needed - target.spec.memory
            return Compiled(params, moments, needed - held, over, [], float("nan"), took)
    took = time.perf_counter() - began
    memory = made.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = find_collectives(made.as_text(), device_mesh.size)
    over = max(0.0, needed - target.spec.memory)
    network = network_seconds(found, target, device_mesh)
    return Compiled(params, moments, needed - held, over, found, network, took)


def network_seconds(found: list[Collective], target, device_mesh) -> float:
    """Seconds a step for all collectives, each at the speed of the links that its group spans."""
    flat = list(device_mesh.devices.flat)
    seconds, speeds = 0.0, {}
    for one in found:
        if one.group not in speeds:
            places = [_place(flat[i], target) for i in one.group]
            speeds[one.group] = hardware.link_bandwidth(target, places)
        seconds += one.n * one.bytes / speeds[one.group]
    return seconds


def _place(device, target: hardware.Target) -> tuple[int, ...]:
    if target.platform == "tpu":
        return tuple(device.coords[: len(target.shape)])
    return hardware.place(target, device.id)


def _bytes_a_device(tree) -> float:
    leaves = jax.tree.leaves(tree)
    shapes = [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    return float(sum(n * leaf.dtype.itemsize for n, leaf in zip(sizes, leaves, strict=True)))


def _needed(message: str, held: float, memory: float) -> float:
    """Bytes a device needs where a compiler says that memory is too small; 0: it says else."""
    said = re.search(r"xceeded \w+ capacity by ([\d.]+)([KMGT]?)", message)
    if said:
        return memory + float(said[1]) * UNITS[said[2]]
    said = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds", message)
    return held + float(said[1]) * UNITS[said[2]] if said else 0.0


def _card(target: hardware.Target) -> str:
    """The text by which XLA knows a card without having one."""
    cores, (major, minor), cache, clock = CARDS[target.chip]
    feature = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    shared = 232_448 if major >= 9 else 166_912
    return f"""
gpu_device_info {{
  core_count: {cores} fpus_per_core: {128 if major >= 9 else 64} clock_rate_ghz: {clock}
  l2_cache_size: {cache} memory_bandwidth: {round(target.spec.memory_speed)}
  device_memory_size: {round(target.spec.memory)} device_address_bits: 64
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared}
  shared_memory_per_core: {shared + 1024}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
  device_vendor: "NVIDIA Corporation" driver_version: "13.0.0" runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{target.chip}"
"""
