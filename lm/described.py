"""A train step compiled for devices that are not here, by their own compiler: nothing allocated.

    found = compile_step(run, targets.parse("tpu:v5p:8x16x16"))
    found.bytes, found.collectives, found.seconds

TPU needs libtpu (extra: tpu), GPU JAX's CUDA plugin (extra: gpu); neither needs a device.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time

import jax

from lm import config, hlo, mesh, programs, targets

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
    over: float  # above targets.Chip.memory; 0: it fits
    collectives: list[hlo.Collective]
    network_seconds: float  # of the collectives one after another
    seconds: float  # that compiling took

    @property
    def bytes(self) -> float:
        return self.params + self.optimizer + self.temporaries


def start(target: targets.Target) -> None:
    """Settings that must come before the first use of a device; this process computes on CPU."""
    for name, value in TPU_ENVIRONMENT.items() if target.platform == "tpu" else ():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    if target.platform == "cpu" and jax.config.values["jax_num_cpu_devices"] < target.n_devices:
        jax.config.update("jax_num_cpu_devices", target.n_devices)


def missing(target: targets.Target) -> str:
    """The extra that the target's compiler comes with, where it is not installed; else ""."""
    modules = MODULES.get(target.platform, ("jax",))
    is_there = any(importlib.util.find_spec(module) for module in modules)
    return "" if is_there else target.platform


def devices(target: targets.Target) -> list:
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


def compile_step(run: config.Run, target: targets.Target) -> Compiled:
    """The train step as the target's compiler makes it. Too little memory is an answer: over."""
    device_mesh = mesh.make(run.mesh, devices(target))
    mesh.check(run, device_mesh)
    program = programs.build(run, device_mesh)
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
    found = hlo.collectives(made.as_text(), device_mesh.size)
    over = max(0.0, needed - target.spec.memory)
    network = network_seconds(found, target, device_mesh)
    return Compiled(params, moments, needed - held, over, found, network, took)


def network_seconds(found: list[hlo.Collective], target, device_mesh) -> float:
    """Seconds a step for all collectives, each at the speed of the links that its group spans."""
    flat = list(device_mesh.devices.flat)
    seconds, speeds = 0.0, {}
    for one in found:
        if one.group not in speeds:
            places = [_place(flat[i], target) for i in one.group]
            speeds[one.group] = targets.wire_speed(target, places)
        seconds += one.n * one.bytes / speeds[one.group]
    return seconds


def _place(device, target: targets.Target) -> tuple[int, ...]:
    if target.platform == "tpu":
        return tuple(device.coords[: len(target.shape)])
    return targets.place(target, device.id)


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


def _card(target: targets.Target) -> str:
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
