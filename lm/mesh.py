"""Devices as a mesh, and the one table from a weight's axis names to mesh axes.

A weight or activation is described by logical names, one an axis ("embed", "heads", ...). RULES
says over which mesh axes each name is split; everything else follows from it.
"""

import functools
import math
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lm import config

# The last axis joins the nearest devices: what talks most comes last.
AXES = ("data", "fsdp", "expert", "sequence", "tensor")
RULES = {
    # logical axis   mesh axes it is split over
    "batch":         ("data", "fsdp", "expert"),
    "length":        "sequence",
    "layers":        None,
    "embed":         "fsdp",
    "heads":         "tensor",
    "kv_heads":      "tensor",
    "d_head":        None,
    "mlp":           "tensor",
    "vocab":         "tensor",
    "norm":          None,
}  # fmt: skip


def start(cache: str = "runs/.compiled") -> None:
    """Settings that must come before the first use of a device; a second call changes nothing.

    On CPU a core becomes a device (a power of two of them, so that batches divide), which halves
    the step time against one device with threads. Compiled programs are kept in `cache`, those
    that compile in milliseconds too: small rungs are most of a ladder.
    """
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if "JAX_NUM_CPU_DEVICES" not in os.environ and jax.config.values["jax_num_cpu_devices"] < 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        jax.config.update("jax_num_cpu_devices", 1 << (cores.bit_length() - 1))


def make(mesh: config.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """The mesh of config.Mesh over `devices` (default: all); ValueError if they do not multiply."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(mesh, axis) for axis in AXES]
    inner = math.prod(sizes[1:])
    if mesh.data == -1:
        sizes[0] = len(devices) // inner
    if math.prod(sizes) != len(devices):
        shape = " x ".join(f"mesh.{axis}={getattr(mesh, axis)}" for axis in AXES)
        raise ValueError(
            f"{shape} must be the number of devices, {len(devices)}: mesh.data=-1 takes what is"
            " left"
        )
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def check_batch(run: config.Run, mesh: jax.sharding.Mesh) -> None:
    """ValueError if the sequences of a batch do not divide over the devices."""
    split = mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]
    size = run.data.batch_size
    if size % split:
        raise ValueError(
            f"data.batch_size={size} must be a multiple of the {split} devices it is split over:"
            f" try {-(-size // split) * split}"
        )


def platform(mesh: jax.sharding.Mesh) -> str:
    """cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def describe(mesh: jax.sharding.Mesh) -> str:
    """A few words: how many devices of which kind, and how they are laid out."""
    axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1)
    plural = "s" if mesh.size > 1 else ""
    return f"{mesh.size} {mesh.devices.flat[0].device_kind} device{plural}" + (
        f" ({axes})" if axes else ""
    )


def spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """Logical axis names -> how the axes are split."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in names))


def sharding(mesh: jax.sharding.Mesh, *names: str | None) -> NamedSharding:
    """The sharding of one array by its axis names; none at all: a copy on every device."""
    return NamedSharding(mesh, spec(names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Splits an activation by its axis names; leaves it alone where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names))


def place(mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch -> the global batch, split over the mesh."""
    split = sharding(mesh, "batch", None)
    return {k: jax.make_array_from_process_local_data(split, rows) for k, rows in batch.items()}


def rows_here(batch_size: int) -> slice:
    """The rows of a global batch that this process loads."""
    each = batch_size // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


@functools.cache
def peak_flops_per_second(mesh: jax.sharding.Mesh, dtype: str, size: int = 1536) -> float:
    """Best of 5 timed matrix products a device, all devices at once: what 100% means here."""
    n = mesh.size
    names = PartitionSpec(mesh.axis_names)
    product = jax.jit(lambda a: a @ a, in_shardings=NamedSharding(mesh, names))
    a = jax.jit(
        lambda: jnp.ones((n, size, size), dtype), out_shardings=NamedSharding(mesh, names)
    )()
    product(a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * n / min(seconds)


def is_names(node) -> bool:
    """Whether a node of a tree is the axis names of one array."""
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)
