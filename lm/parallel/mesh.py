"""Device meshes, and sharding of arrays by the names of their axes.

A weight or activation has one logical name per axis ("embed", "heads", ...). `ShardingRules` maps
each name to the mesh axes that split it.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import os
import time
import typing
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lm.config import axis_rules, schema
from lm.parallel import deterministic, distributed, gpu_memory, peak_flops, program_cache

Either = typing.TypeVar("Either", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axes that split each logical axis.

    changes: rows that replace rows of axis_rules.AXIS_RULES, as pairs (logical axis, mesh axes).
    """

    changes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def from_config(cls, mesh: schema.Mesh) -> "ShardingRules":
        """Return the rules of a run: axis_rules.AXIS_RULES, changed by the field mesh.rules."""
        rows = axis_rules.merged_axis_rules(mesh.rules)
        return cls(tuple((name, rows[name]) for name in sorted(mesh.rules)))

    def mesh_axes(self, name: str) -> tuple[str, ...]:
        """Return the mesh axes that split a logical axis; () if it is not split."""
        changes = dict(self.changes)
        return changes[name] if name in changes else axis_rules.AXIS_RULES[name]

    def spec(self, names: tuple[str | None, ...]) -> PartitionSpec:
        """Return the partition of an array by the names of its axes; None: not split.

        Raises ValueError if one mesh axis would split two axes of the array.
        """
        mesh_axes = [() if name is None else self.mesh_axes(name) for name in names]
        used = [axis for axes in mesh_axes for axis in axes]
        for axis in used:
            if used.count(axis) > 1:
                both = [f"{n!r}" for n, axes in zip(names, mesh_axes, strict=True) if axis in axes]
                raise ValueError(
                    f"mesh.rules: {axis} splits {' and '.join(both)} of one array {names}: assign"
                    " another mesh axis, or [], to one of them"
                )
        return PartitionSpec(*(axes or None for axes in mesh_axes))

    def sharding(self, mesh: jax.sharding.Mesh, *names: str | None) -> NamedSharding:
        """Return the sharding of an array by the names of its axes; no names: replicated."""
        return NamedSharding(mesh, self.spec(names))

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """Return an activation, sharded by the names of its axes.

        Return x unchanged if no mesh is set, and inside shard_map, where a device has only its own
        part of x.
        """
        current_mesh = jax.sharding.get_abstract_mesh()
        if current_mesh.empty or current_mesh.manual_axes:
            return x
        return jax.lax.with_sharding_constraint(x, self.spec(names))

    def shard_count(self, name: str) -> int:
        """Return the number of shards of an axis on the current mesh; 1 if no mesh is set."""
        current_mesh = jax.sharding.get_abstract_mesh()
        shape = {} if current_mesh.manual_axes else current_mesh.shape
        return math.prod(shape.get(axis, 1) for axis in self.mesh_axes(name))


DEFAULT_RULES = ShardingRules()
# XLA stores the GPU kernels that it has selected by measurements in this folder of the cache.
AUTOTUNE_CACHE = "xla_gpu_per_fusion_autotune_cache_dir"


def initialize_devices() -> None:
    """Set JAX options for the devices and the compilation cache of this process.

    On CPU each core becomes a device, up to a power of two so that batches divide. This halves the
    step time of one device with threads. The number of devices does not change after the first use
    of a device. Compiled programs are stored in one folder per user, see program_cache.py,
    unless JAX_COMPILATION_CACHE_DIR names another one. Programs that compile in milliseconds are
    stored too, because most runs of a ladder are small. The part of a GPU's memory is that of
    lm/parallel/gpu_memory.py.
    """
    gpu_memory.reserve_gpu_memory()
    if not jax.config.values["jax_compilation_cache_dir"]:
        if folder := program_cache.open_program_folder():
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_enable_xla_caches", AUTOTUNE_CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    has_number = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    has_number |= "JAX_NUM_CPU_DEVICES" in os.environ
    if not has_number and jax.config.values["jax_num_cpu_devices"] < 1:
        with contextlib.suppress(RuntimeError):  # a device is in use: the number is fixed
            jax.config.update("jax_num_cpu_devices", 1 << (count_cores().bit_length() - 1))


def count_cores() -> int:
    """Return the number of cores that this process may use; 1 if the system does not report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def make_mesh(mesh: schema.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """Return the device mesh of a run over `devices` (default: all).

    Over several TPU slices or GPU nodes, the data axis alone crosses the slow network between them.
    Raises ValueError if the product of its axes is not the number of devices, or if another axis
    would cross the slow network.
    """
    devices = distributed.list_devices() if devices is None else devices
    sizes = axis_rules.resolve_mesh_shape(vars(mesh), len(devices))
    slices = group_slices(devices, distributed.gather_host_names())
    n_inner = len(devices) // sizes["data"]  # devices per index of the data axis
    if len({len(slice_devices) for slice_devices in slices}) == 1:
        axis_rules.validate_slices(sizes, len(slices), devices[0].platform)
    else:
        _check_unequal_slices(slices, n_inner)
    # jax.make_mesh does not allow one side of a TPU torus to serve two mesh axes.
    grids = [
        mesh_utils.create_device_mesh(
            tuple((sizes | {"data": len(slice_devices) // n_inner}).values()),
            slice_devices,
            allow_split_physical_axes=True,
        )
        for slice_devices in slices
    ]
    return jax.sharding.Mesh(
        np.concatenate(grids, axis_rules.MESH_AXES.index("data")),
        axis_rules.MESH_AXES,
        (AxisType.Auto,) * len(axis_rules.MESH_AXES),
    )


def group_slices(devices: list, host_names: Sequence[str]) -> list[list]:
    """Return the devices of each TPU slice or GPU node, which have a fast network of their own.

    JAX numbers TPU slices, and GPU nodes in some versions, in slice_index. Otherwise the GPUs of
    one host are a node. CPU devices have no fast network and are one group. host_names: host of
    each process. For processes outside of this list, such as those of an absent machine, each
    process is a node, unless it has a single device.
    """
    platform, groups = devices[0].platform, collections.defaultdict(list)
    processes = {device.process_index for device in devices}
    hosts = list(host_names)
    if max(processes) >= len(hosts):
        has_single_devices = len(processes) == len(devices)
        hosts = [str(0 if has_single_devices else n) for n in range(max(processes) + 1)]
    has_indices = len({getattr(device, "slice_index", None) for device in devices}) > 1
    for device in devices:
        key = 0
        if platform != "cpu" and has_indices:
            key = device.slice_index
        elif platform == "gpu":
            # The first process of a host represents it.
            key = hosts.index(hosts[device.process_index])
        groups[key].append(device)
    return [groups[key] for key in sorted(groups)]


def _check_unequal_slices(slices: list[list], n_inner: int) -> None:
    """Raise ValueError if slices or nodes of different sizes cannot form a mesh.

    n_inner: product of all mesh axes except data, which must divide the devices of each node. The
    network of a TPU needs equal slices.
    """
    counts, platform = [len(devices) for devices in slices], slices[0][0].platform
    if platform == "gpu" and all(count % n_inner == 0 for count in counts):
        return
    noun = axis_rules.SLICE_NOUNS[platform]
    raise ValueError(
        f"the {noun} have {', '.join(map(str, counts))} devices: start the run on equal {noun}"
    )


def check_mesh_devices(run: schema.Run, mesh: jax.sharding.Mesh) -> None:
    """Raise ValueError if a dimension of the run does not divide over its devices."""
    axis_rules.validate_mesh_shape(schema.flatten(run), dict(mesh.shape))


def make_run_mesh(run: schema.Run) -> jax.sharding.Mesh:
    """Return the mesh of a run over all devices.

    Raises ValueError if the run cannot be divided over them, or cannot be deterministic on them.
    """
    mesh = make_mesh(run.mesh)
    check_mesh_devices(run, mesh)
    deterministic.validate_deterministic(run, mesh)
    return mesh


def device_platform(mesh: jax.sharding.Mesh) -> str:
    """Return the platform of the devices: cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def device_kind(mesh: jax.sharding.Mesh) -> str:
    """Return the kind of the devices: cpu, NVIDIA H100 80GB HBM3, TPU v5 lite."""
    return mesh.devices.flat[0].device_kind


def describe_devices(mesh: jax.sharding.Mesh) -> str:
    """Return the number, kind and mesh axes of the devices: "8 cpu devices (data=8)"."""
    axes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1)
    plural = "s" if mesh.size > 1 else ""
    return f"{mesh.size} {device_kind(mesh)} device{plural}" + (f" ({axes})" if axes else "")


def named_sharding(mesh: jax.sharding.Mesh, *names: str | None) -> NamedSharding:
    """Return the sharding of an array by the default rules; no names: replicated."""
    return DEFAULT_RULES.sharding(mesh, *names)


def shard_count(name: str) -> int:
    """Return the number of shards of an axis by the default rules; 1 if no mesh is set.

    No run can change the rules of "batch" and "length" (axis_rules.FIXED).
    """
    return DEFAULT_RULES.shard_count(name)


def swap_blocks(x: Either, outer: int, inner: int, axis: int) -> Either:
    """Return x with an axis of outer x inner equal parts reordered as inner x outer."""
    if 1 in (outer, inner):
        return x
    shape = x.shape
    parts = x.reshape(*shape[:axis], outer, inner, -1, *shape[axis + 1 :])
    return parts.swapaxes(axis, axis + 1).reshape(shape)


def split_chunks(x: jax.Array, n: int, name: str, axis: int) -> jax.Array:
    """Split an axis of x into n equal chunks with a new leading axis, [n, ...].

    name: logical axis. axis: its index in x. Each device splits its own part, without
    communication. Chunk i has the i-th of n parts of each device's part, and the sharding of x.
    `merge_chunks` is the inverse.
    """
    x = swap_blocks(x, shard_count(name), n, axis)
    x = x.reshape(*x.shape[:axis], n, -1, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def merge_chunks(chunks: jax.Array, name: str, axis: int) -> jax.Array:
    """Merge the leading axis of chunks into an axis: the inverse of `split_chunks`."""
    n, x = chunks.shape[0], jnp.moveaxis(chunks, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return swap_blocks(x, n, shard_count(name), axis)


def interleave_positions(x: Either, n_blocks: int, axis: int = 1) -> Either:
    """Reorder positions so that each device has a part of every query block.

    Later queries attend to more keys, so the other devices would wait for a device with only the
    last positions. The order does not change if no mesh axis splits the rows. `restore_order` is
    the inverse.
    """
    return swap_blocks(x, n_blocks, shard_count("length"), axis)


def restore_order(x: jax.Array, n_blocks: int, axis: int = 1) -> jax.Array:
    """Restore the original order of positions: the inverse of `interleave_positions`."""
    return swap_blocks(x, shard_count("length"), n_blocks, axis)


def put_batch(mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Return the global sharded batch.

    batch: arrays with the rows of this process, in the order of `local_rows`.
    """
    sharding = named_sharding(mesh, "batch", None)
    n_shards = n_batch_devices(mesh)
    n_local = len(next(iter(batch.values())))
    batch_size = n_local // len(local_rows(mesh, n_shards)) * n_shards
    row_indices = local_rows(mesh, batch_size)

    def put(rows: np.ndarray) -> jax.Array:
        def shard(index) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(row_indices, start)
            return rows[first : first + stop - start][:, *index[1:]]

        return jax.make_array_from_callback((batch_size, *rows.shape[1:]), sharding, shard)

    return {name: put(rows) for name, rows in batch.items()}


def replicate(mesh: jax.sharding.Mesh, tree: typing.Any) -> typing.Any:
    """Return a tree of NumPy arrays as JAX arrays with a copy on every device.

    All processes must pass the same values.
    """

    def copy(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            np.shape(x), named_sharding(mesh), lambda _: np.asarray(x)
        )

    return jax.tree.map(copy, tree)


def n_batch_devices(mesh: jax.sharding.Mesh) -> int:
    """Return the number of shards of a batch. The batch size must be a multiple of it."""
    return math.prod(mesh.shape[axis] for axis in axis_rules.AXIS_RULES["batch"])


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
    """Return the indices of the rows of a global batch on the devices of this process.

    Processes that split only weights have the same rows. A single process has all rows.
    """
    slices = named_sharding(mesh, "batch").addressable_devices_indices_map((batch_size,)).values()
    rows = np.arange(batch_size)
    return np.unique(np.concatenate([rows[index] for index in slices]))


@functools.cache
def peak_flops_per_second(mesh: jax.sharding.Mesh, dtype: str, size: int = 1536) -> float:
    """Return the peak of all devices together in matrix products. MFU is relative to this rate.

    The peak of an accelerator is that of its data sheet. On CPU the peak is the best of 5 timed
    products. size: rows and columns of the matrix of each device.
    """
    peak = peak_flops.find_peak(device_kind(mesh))
    if peak is not None:
        return mesh.size * getattr(peak, dtype)
    n_products = 1
    if device_platform(mesh) != "cpu":  # an unknown accelerator: hide the latency of a call
        n_products, size = 8, 8192
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def multiply(a: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(1, n_products, lambda _, b: a @ b, a @ a)

    product = jax.jit(multiply, in_shardings=sharding)
    a = jax.jit(lambda: jnp.ones((mesh.size, size, size), dtype), out_shardings=sharding)()
    product(a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * n_products * mesh.size / min(seconds)


def is_axis_names(node) -> bool:
    """Return True if a node of a tree is the tuple of axis names of one array."""
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)
