"""Ahead-of-time compilation of a train step for hardware that is not present.

    target = hardware.parse_target("tpu:v5p:8x16x16")
    aot_compile.initialize_target_compiler(target)
    compiled = aot_compile.compile_step(run, target)
    compiled.bytes, compiled.collectives, compiled.seconds

The compiler of the target runs without a device and allocates no arrays. TPU needs libtpu (extra:
tpu), GPU needs JAX's CUDA plugin (extra: gpu). `find_collectives` reads the collectives of any
compiled program from its text (HLO).
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
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([^\s(]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([^\s=]+) = (.*?) ([a-z][a-z0-9-]*)\(")
CALLED = re.compile(r"(?:calls|to_apply|called_computation|async_execution_thread)=%?([^\s,}]+)")
LOOP = re.compile(r"condition=%?([^\s,]+), body=%?([^\s,]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
CHANNEL = re.compile(r"channel_id=(\d+)")

# libtpu would otherwise query a metadata server for these values, and hold a lock.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
MODULES = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
# Cores, compute capability, bytes of the L2 cache and clock rate in GHz of each card, from NVIDIA's
# datasheets and tuning guides.
CARDS = {
    "a100": (108, (8, 0), 40 * 2**20, 1.41),
    "h100": (132, (9, 0), 50 * 2**20, 1.98),
    "h200": (132, (9, 0), 50 * 2**20, 1.98),
    "b200": (148, (10, 0), 126 * 2**20, 1.965),
}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass
class Collective:
    """A collective operation of a compiled program."""

    kind: str  # an element of KINDS
    n: int  # executions per step, counting each iteration of the loops around it
    bytes: float  # sent by each device per execution, with a ring algorithm
    group: tuple[int, ...]  # positions in the mesh of the devices of the first group


@dataclasses.dataclass
class Compiled:
    """Memory of one device in bytes, and collectives of a compiled train step."""

    params: float
    optimizer: float
    temporaries: float  # activations, gradients, gathered weights and all other arrays of a step
    over: float  # bytes above hardware.Accelerator.memory_bytes; 0 if the step fits
    collectives: list[Collective]
    network_seconds: float  # per step, all collectives executed one after another
    seconds: float  # duration of the compilation

    @property
    def bytes(self) -> float:
        return self.params + self.optimizer + self.temporaries


def initialize_target_compiler(target: hardware.Target) -> None:
    """Configure this process to compile for a target and to compute on CPU.

    Call this function before the first use of a device.
    """
    for name, value in TPU_ENVIRONMENT.items() if target.platform == "tpu" else ():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    if target.platform == "cpu" and jax.config.values["jax_num_cpu_devices"] < target.n_devices:
        jax.config.update("jax_num_cpu_devices", target.n_devices)


def missing_extra(target: hardware.Target) -> str:
    """Return the name of the extra with the target's compiler, or "" if it is installed."""
    modules = MODULES.get(target.platform, ("jax",))
    is_installed = any(importlib.util.find_spec(module) for module in modules)
    return "" if is_installed else target.platform


def target_devices(target: hardware.Target) -> list:
    """Return descriptions of the target's devices, from which a mesh can be made.

    Raises ValueError if the compiler refuses the shape of the target, or if a CPU target has more
    devices than this process.
    """
    from jax.experimental import topologies

    if target.platform == "cpu":
        cpu_devices = jax.devices("cpu")
        if len(cpu_devices) < target.n_devices:
            raise ValueError(
                f"--target={target.name}: this process has {len(cpu_devices)} CPU devices. Set"
                f" JAX_NUM_CPU_DEVICES={target.n_devices}, or name a smaller target."
            )
        return cpu_devices[: target.n_devices]
    shape = "x".join(map(str, target.shape))
    try:
        if target.platform == "tpu":
            name, slices = f"{target.chip}:{shape}", {"num_slices": target.n_slices}
            return list(topologies.get_topology_desc(name, platform="tpu", **slices).devices)
        topology = f"{target.n_slices}x1x{shape}"  # slices, hosts of a slice, devices of a host
        description = topologies.get_topology_desc(
            topology, platform="cuda", target_config=_gpu_config(target), topology=topology
        )
        return list(description.devices)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f"--target={target.name}: the compiler refuses this hardware: {reason}. Name a shape"
            f" that exists, such as {', '.join(hardware.EXAMPLES[1:])}."
        ) from error


def compile_step(run: schema.Run, target: hardware.Target) -> Compiled:
    """Compile the train step of a run with the target's compiler.

    A step that exceeds the memory is not an error: `Compiled.over` has the missing bytes.
    """
    device_mesh = mesh.make_mesh(run.mesh, target_devices(target))
    mesh.check_mesh_devices(run, device_mesh)
    program = step.build_train_functions(run, device_mesh)
    params, optimizer = (bytes_per_device(program.abstract[part]) for part in ("params", "opt"))
    state = params + optimizer
    start_time = time.perf_counter()
    with jax.set_mesh(device_mesh):
        lowered = program.step.lower(program.abstract, program.batch, program.inputs)
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = parse_needed_bytes(str(error), state, target.spec.memory_bytes)
            if not needed:
                raise
            seconds = time.perf_counter() - start_time
            over = needed - target.spec.memory_bytes
            return Compiled(params, optimizer, needed - state, over, [], float("nan"), seconds)
    seconds = time.perf_counter() - start_time
    memory = executable.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
    collectives = find_collectives(executable.as_text(), device_mesh.size)
    over = max(0.0, needed - target.spec.memory_bytes)
    network = collective_seconds(collectives, target, device_mesh)
    return Compiled(params, optimizer, needed - state, over, collectives, network, seconds)


def find_collectives(text: str, n_devices: int) -> list[Collective]:
    """Return the collectives of an optimized program, with loop iterations included in the count.

    A collective that the compiler has divided into several instructions counts once. An all-reduce
    of a TPU program whose result is sliced counts as a reduce-scatter, which it is on the device.
    """
    bodies, entry = _parse_computations(text)
    collectives: dict[str, Collective] = {}
    _collect(bodies, entry, 1, n_devices, collectives)
    return list(collectives.values())


def total_traffic(collectives: list[Collective]) -> dict[str, dict[str, float]]:
    """Return, for each kind, the executions per step and the bytes that each device sends.

    The kind with the largest traffic comes first.
    """
    totals = {}
    for kind in KINDS:
        same_kind = [collective for collective in collectives if collective.kind == kind]
        if same_kind:
            n_bytes = sum(collective.n * collective.bytes for collective in same_kind)
            n = sum(collective.n for collective in same_kind)
            totals[kind] = {"n": n, "bytes": n_bytes}
    return dict(sorted(totals.items(), key=lambda item: -item[1]["bytes"]))


def collective_seconds(collectives: list[Collective], target, device_mesh) -> float:
    """Return the seconds per step of all collectives, each at the bandwidth of its group."""
    devices = list(device_mesh.devices.flat)
    seconds = 0.0
    bandwidths: dict[tuple[int, ...], float] = {}
    for collective in collectives:
        group = collective.group
        if group not in bandwidths:
            coordinates = [_coordinates(devices[i], target) for i in group]
            bandwidths[group] = hardware.link_bandwidth(target, coordinates)
        seconds += collective.n * collective.bytes / bandwidths[group]
    return seconds


def _parse_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of each computation by its name, and the name of the entry computation."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        header = COMPUTATION.match(line)
        if header and not line.startswith("HloModule"):
            bodies[header[1]] = lines = []
            entry = header[1] if line.startswith("ENTRY") else entry
        elif line.startswith(" "):
            lines.append(line)
    return bodies, entry


def _collect(
    bodies: dict[str, list[str]],
    name: str,
    n_executions: int,
    n_devices: int,
    collectives: dict[str, Collective],
) -> None:
    """Add the collectives of a computation, and of those that it calls, to `collectives`."""
    for line in bodies.get(name, []):
        instruction = INSTRUCTION.match(line)
        if not instruction:
            continue
        _, shape, operation = instruction.groups()
        kind = operation.removesuffix("-start")
        if operation == "while":
            loop = LOOP.search(line)
            assert loop, line
            n_iterations = _iteration_count(bodies, line, loop[1])
            _collect(bodies, loop[2], n_executions * n_iterations, n_devices, collectives)
        elif kind in KINDS:
            channel = CHANNEL.search(line)
            key = channel[1] if channel else f"{name}/{instruction[1]}"
            if key not in collectives:
                group = _first_group(line, n_devices)
                is_sliced = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                sent = _sent_bytes(kind, shape, len(group), operation.endswith("-start"))
                kind, sent = ("reduce-scatter", sent / 2) if is_sliced else (kind, sent)
                collectives[key] = Collective(kind, n_executions, sent, group)
        elif operation == "conditional":
            branches = BRANCHES.search(line)
            for branch in branches[1].split(",") if branches else []:
                _collect(bodies, branch.strip().lstrip("%"), n_executions, n_devices, collectives)
        elif operation in ("fusion", "call", "async-start"):
            for called in CALLED.findall(line):
                _collect(bodies, called, n_executions, n_devices, collectives)


def _iteration_count(bodies: dict[str, list[str]], line: str, condition: str) -> int:
    """Return the number of iterations of a loop.

    If the compiler does not state the number, the largest constant in the loop's condition is used.
    """
    known = TRIP_COUNT.search(line)
    if known:
        return int(known[1])
    numbers = re.findall(r"[su]32\[\]\S* constant\((\d+)\)", "\n".join(bodies.get(condition, [])))
    return max((int(number) for number in numbers), default=1)


def _sent_bytes(kind: str, shape: str, group_size: int, is_start: bool) -> float:
    """Return the bytes that a device sends in a ring algorithm, for a result of this HLO shape.

    is_start: the shape is that of an asynchronous start, which contains both input and output.
    """
    array_bytes = [
        math.prod(int(n) for n in dimensions.split(",") if n) * BITS.get(dtype, 8) / 8
        for dtype, dimensions in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    ]
    total = sum(array_bytes)
    fraction = (group_size - 1) / group_size
    if kind == "collective-permute":
        return max(array_bytes)
    if kind == "all-gather":
        return fraction * (total * group_size / (group_size + 1) if is_start else total)
    if kind == "reduce-scatter":  # the result is one share of the input of a device
        return (group_size - 1) * (total / (group_size + 1) if is_start else total)
    return fraction * total * (2 if kind == "all-reduce" else 1)


def _first_group(line: str, n_devices: int) -> tuple[int, ...]:
    """Return the first group of replica_groups, or the first pair of a permutation.

    HLO has four notations of replica_groups: a list, an iota with a transposition, mesh axes and an
    empty list, which means all devices.
    """
    pair = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    if pair:
        return int(pair[1]), int(pair[2])
    explicit = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if explicit:
        return tuple(int(n) for n in explicit[1].split(","))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        size = int(iota[1].split(",")[-1])
        shape = [int(n) for n in iota[2].split(",")]
        order = [int(n) for n in iota[3].split(",")] if iota[3] else list(range(len(shape)))
        return tuple(_transposed_index(shape, order, i) for i in range(size))
    mesh_axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if mesh_axes:
        axis_sizes = [(a, int(n)) for a, n in re.findall(r"'([^']+)'=(\d+)", mesh_axes[1])]
        positions = [0]
        stride = math.prod(size for _, size in axis_sizes)
        for axis, size in axis_sizes:
            stride //= size
            if f"'{axis}'" in mesh_axes[2]:
                positions = [first + i * stride for first in positions for i in range(size)]
        return tuple(positions)
    return tuple(range(n_devices))


def _transposed_index(shape: list[int], order: list[int], index: int) -> int:
    """Return element `index` of arange(prod(shape)).reshape(shape).transpose(order).ravel()."""
    element = 0
    for axis in reversed(order):
        index, position = divmod(index, shape[axis])
        element += position * math.prod(shape[axis + 1 :])
    return element


def _coordinates(device, target: hardware.Target) -> tuple[int, ...]:
    """Return the coordinates of a device of a compilation target."""
    if target.platform == "tpu":
        # The devices of a topology with one slice have no slice_index.
        return getattr(device, "slice_index", 0), *device.coords[: len(target.shape)]
    return hardware.device_coordinates(target, device.id)


def bytes_per_device(tree) -> float:
    """Return the bytes of a tree of sharded abstract arrays on one device."""
    leaves = jax.tree.leaves(tree)
    shapes = [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
    sizes = [math.prod(shape) for shape in shapes]
    return float(sum(n * leaf.dtype.itemsize for n, leaf in zip(sizes, leaves, strict=True)))


def parse_needed_bytes(message: str, state: float, memory: float) -> float:
    """Return the bytes that a device needs, from the out-of-memory message of a compiler.

    state: bytes of parameters and optimizer state. Return 0 for any other message.
    """
    excess = re.search(r"xceeded \w+ capacity by ([\d.]+)([KMGT]?)", message)
    if excess:
        return memory + float(excess[1]) * UNITS[excess[2]]
    temporaries = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds", message)
    return state + float(temporaries[1]) * UNITS[temporaries[2]] if temporaries else 0.0


def _gpu_config(target: hardware.Target) -> str:
    """Return the description by which XLA compiles for a card that is not present."""
    cores, (major, minor), cache, clock = CARDS[target.chip]
    feature = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    shared = 232_448 if major >= 9 else 166_912
    return f"""
gpu_device_info {{
  core_count: {cores} fpus_per_core: {128 if major >= 9 else 64} clock_rate_ghz: {clock}
  l2_cache_size: {cache} memory_bandwidth: {round(target.spec.memory_speed)}
  device_memory_size: {round(target.spec.memory_bytes)} device_address_bits: 64
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
