"""Gradient sums with the same bits on 1, 2, 4, 8 ... devices (mesh.deterministic_shards).

A batch is split into mesh.deterministic_shards logical shards on any number of devices. The
gradient of each shard is computed separately, by the same instructions on the same shapes. The sum
over the shards is one fixed binary tree. A device first adds its own shards, neighbors first. Then
devices exchange sums with partners at distance 1, 2, 4 ... (a + b and b + a have the same bits).
The norm of the gradient is a tree of additions as well, and the update of the weights after it is
elementwise.

On CPU, one device would differ from several devices for two more reasons. XLA splits a matrix
product by the number of threads, which depends on the devices: `fix_threads` sets it. XLA also
optimizes the program of one device before partitioning, and the program of several devices after
it. Only one of the two then has quotients replaced by products and transposes folded into
products. OPTIONS disables both passes.

`sum_over_shards` and `clip_by_global_norm` replace their counterparts in lm/training/step.py. The
optimizer is the same.
"""

import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.config import schema

# XLA passes whose result differs between one and several devices.
OPTIONS = {"xla_disable_hlo_passes": "algsimp,transpose-folding"}
SPLIT = ("data", "fsdp")  # mesh axes that may be more than 1
THREADS = "PJRT_NPROC"  # environment variable of XLA: threads of a matrix product


def fix_threads(shards: int) -> None:
    """Set the number of threads of matrix products to `shards`, if it is not 0.

    Call before the first use of a device.
    """
    if shards:
        os.environ[THREADS] = str(shards)


def validate_deterministic(run: schema.Run, mesh: jax.sharding.Mesh) -> None:
    """Raise ValueError if mesh.deterministic_shards of a run cannot work on the mesh.

    The platform must be cpu, and only the mesh axes in SPLIT may be larger than 1. The number of
    devices must be a power of two that divides mesh.deterministic_shards. The environment variable
    THREADS must be set, see `fix_threads`. Without mesh.deterministic_shards, nothing is checked.
    """
    shards = run.mesh.deterministic_shards
    if not shards:
        return
    platform = mesh.devices.flat[0].platform
    if platform != "cpu":
        raise ValueError(
            f"mesh.deterministic_shards={shards} works on cpu only, not on {platform}: set it to 0"
        )
    for axis, size in mesh.shape.items():
        if axis not in SPLIT and size > 1:
            raise ValueError(
                f"mesh.{axis}={size} splits sums whose order mesh.deterministic_shards={shards}"
                f" fixes: set mesh.{axis}=1 or mesh.deterministic_shards=0"
            )
    if mesh.size & (mesh.size - 1) or shards % mesh.size:
        raise ValueError(
            f"mesh.deterministic_shards={shards} shards on {mesh.size} devices: the number of"
            " devices must be a power of two that divides the number of shards"
        )
    if os.environ.get(THREADS) != str(shards):
        raise ValueError(
            f"mesh.deterministic_shards={shards} requires {THREADS}={shards} in the environment"
            " before the first use of a device"
        )


def sum_over_shards(shards: int, mesh: jax.sharding.Mesh, function: Callable) -> Callable:
    """Return sum(replicated, batch), the sum over all shards of function(replicated, shard).

    replicated: a tree with a copy on every device. function: returns a tree of arrays. The sum has
    a copy on every device too.
    """
    axes = [axis for axis in SPLIT if mesh.shape[axis] > 1]

    def local(replicated, batch: dict):
        n = shards // mesh.size
        total = _sum_tree(lambda shard: function(replicated, shard), _split_rows(batch, n), n)
        for axis in reversed(axes):  # devices along the last axis have neighboring shards
            total = _sum_over_axis(total, axis, mesh.shape[axis])
        return total

    return _map_over_devices(local, mesh, PartitionSpec())


def clip_by_global_norm(gradient, limit: float) -> tuple:
    """Return the gradient scaled to a global norm of at most `limit` (0: any), and its norm.

    In optimizer.clip_by_global_norm, XLA orders the sums by the operations that it fuses with them.
    This function adds one half of the vector to the other half until one number is left.
    """
    squares = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)]) ** 2
    length = 1 << (squares.size - 1).bit_length()
    sums = jax.lax.optimization_barrier(jnp.pad(squares, (0, length - squares.size)))
    while length > 1:
        length //= 2
        sums = sums[:length] + sums[length:]
    norm = jnp.sqrt(sums[0])
    if not limit:
        return gradient, norm
    return jax.tree.map(lambda x: jnp.where(norm < limit, x, x / norm * limit), gradient), norm


def map_over_shards(shards: int, mesh: jax.sharding.Mesh, function: Callable) -> Callable:
    """Return a function of (params, batch) that computes function(params, shard) shard by shard.

    The arrays of the result are [B, ...], in the order of the rows of the batch.
    """

    def local(params: dict, batch: dict):
        local_shards = _split_rows(batch, shards // mesh.size)
        rows = jax.lax.map(lambda shard: function(params, shard), local_shards)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    return _map_over_devices(local, mesh, PartitionSpec(SPLIT))


def _map_over_devices(
    local: Callable, mesh: jax.sharding.Mesh, out_specs: PartitionSpec
) -> Callable:
    """Return a function that calls local(replicated, rows of the device) on every device."""
    in_specs = (PartitionSpec(), PartitionSpec(SPLIT))
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _split_rows(batch: dict, n: int) -> dict:
    """Return the arrays of a batch as n shards, [n, rows, ...]."""
    return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)


def _sum_tree(function: Callable, shards: dict, n: int):
    """Return the sum of function(shard) over n shards by a balanced binary tree.

    At most log2(n) + 1 partial sums are in memory.
    """
    if n == 1:
        value = function(jax.tree.map(lambda x: x[0], shards))
        # The barrier prevents a fused multiply-add, which rounds once instead of twice.
        return jax.lax.optimization_barrier(value)
    halves = jax.tree.map(lambda x: x.reshape(2, n // 2, *x.shape[1:]), shards)

    def add(total, half):
        return jax.tree.map(jnp.add, total, _sum_tree(function, half, n // 2)), None

    shapes = jax.eval_shape(lambda: function(jax.tree.map(lambda x: x[0], shards)))
    # -0 + x has the bits of x for every x, 0 + x does not.
    zeros = jax.tree.map(lambda x: jnp.full(x.shape, -0.0, x.dtype), shapes)
    return jax.lax.scan(add, zeros, halves)[0]


def _sum_over_axis(total, axis: str, n: int):
    """Return the sum over the n devices of an axis, by the same tree on each device."""
    for level in range(int(math.log2(n))):
        pairs = [(i, i ^ (1 << level)) for i in range(n)]
        other = jax.tree.map(lambda x, pairs=pairs: jax.lax.ppermute(x, axis, pairs), total)
        total = jax.tree.map(jnp.add, total, other)
    return total
