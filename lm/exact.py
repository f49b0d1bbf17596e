"""Exact mode: the same bits in losses and weights on 1, 2, 4, 8 ... devices (mesh.exact).

A batch is cut into mesh.exact logical shards, whatever devices there are. Each shard's gradient is
computed alone, by the same instructions on the same shapes, and the shards are added up as one
fixed binary tree: a device adds those that it holds, neighbours first, then devices exchange sums
with partners at distance 1, 2, 4 ... (a + b and b + a are the same bits). The gradient's norm is
a tree of additions too, and behind it the update of the weights is elementwise.

Two things would still make one device differ from many on CPU. A matrix product of XLA is split by
the threads there are, which follow the devices: `fix_threads` sets their number. And XLA sees the
program of one device whole, that of many after it was partitioned: its algebraic simplifier then
turns quotients into products, and transposed operands are folded into products, in one and not in
the other. OPTIONS leaves both passes out, and every product, quotient and sum is the same in all.
"""

import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm import config

OPTIONS = {"xla_disable_hlo_passes": "algsimp,transpose-folding"}
SPLIT = ("data", "fsdp")  # mesh axes that may be more than 1
THREADS = "PJRT_NPROC"


def fix_threads(shards: int) -> None:
    """As many threads for matrix products as logical shards; before the first use of a device."""
    if shards:
        os.environ[THREADS] = str(shards)


def check(run: config.Run, mesh: jax.sharding.Mesh) -> None:
    """ValueError if the mesh cannot give the bits of others."""
    shards = run.mesh.exact
    if not shards:
        return
    platform = mesh.devices.flat[0].platform
    if platform != "cpu":
        raise ValueError(f"mesh.exact={shards} is proved on cpu alone, not {platform}: set it to 0")
    for axis, size in mesh.shape.items():
        if axis not in SPLIT and size > 1:
            raise ValueError(
                f"mesh.{axis}={size} splits sums that mesh.exact={shards} holds in one order: take"
                f" mesh.{axis}=1, or mesh.exact=0"
            )
    if mesh.size & (mesh.size - 1) or shards % mesh.size:
        raise ValueError(
            f"mesh.exact={shards} shards on {mesh.size} devices: take a power of two of devices, at"
            " most as many as shards"
        )
    if os.environ.get(THREADS) != str(shards):
        raise ValueError(
            f"mesh.exact={shards} needs {THREADS}={shards} in the environment before the first use"
            " of a device"
        )


def summed(shards: int, mesh: jax.sharding.Mesh, function: Callable) -> Callable:
    """(same, batch) -> the sum over all shards of the tree function(same, shard).

    same: a tree of which every device has a copy, as it has of the sum.
    """
    axes = [axis for axis in SPLIT if mesh.shape[axis] > 1]

    def local(same, batch: dict):
        held = shards // mesh.size
        total = _add_up(lambda shard: function(same, shard), _cut(batch, held), held)
        for axis in reversed(axes):  # the last axis joins neighbours
            total = _exchange(total, axis, mesh.shape[axis])
        return total

    return _manual(local, mesh, PartitionSpec())


def clipped(gradient, limit: float) -> tuple:
    """(the gradient scaled to a global norm of at most `limit`, 0 for any; its norm before).

    As optax.clip_by_global_norm, whose sums XLA orders by what it fuses them with; here they are
    additions of halves, one by one.
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


def rowwise(shards: int, mesh: jax.sharding.Mesh, function: Callable) -> Callable:
    """function(params, batch) -> arrays [B, ...], computed a shard at a time."""

    def local(params: dict, batch: dict):
        cut = _cut(batch, shards // mesh.size)
        found = jax.lax.map(lambda shard: function(params, shard), cut)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

    return _manual(local, mesh, PartitionSpec(SPLIT))


def _manual(local: Callable, mesh: jax.sharding.Mesh, out: PartitionSpec) -> Callable:
    """local(same, rows of this device) on every device."""
    specs = (PartitionSpec(), PartitionSpec(SPLIT))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)


def _cut(batch: dict, n: int) -> dict:
    return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)


def _add_up(function: Callable, cut: dict, n: int):
    """The sum of function(shard) over n shards as a balanced tree, log2(n) + 1 sums held."""
    if n == 1:
        found = function(jax.tree.map(lambda x: x[0], cut))
        # Not fused with what adds it up: a fused multiply-add rounds once in place of twice.
        return jax.lax.optimization_barrier(found)
    halves = jax.tree.map(lambda x: x.reshape(2, n // 2, *x.shape[1:]), cut)

    def add(total, half):
        return jax.tree.map(jnp.add, total, _add_up(function, half, n // 2)), None

    shapes = jax.eval_shape(lambda: function(jax.tree.map(lambda x: x[0], cut)))
    nothing = jax.tree.map(lambda x: jnp.full(x.shape, -0.0, x.dtype), shapes)  # -0 + x is x
    return jax.lax.scan(add, nothing, halves)[0]


def _exchange(total, axis: str, n: int):
    """The sum over n devices of an axis, as the same tree on each."""
    for level in range(int(math.log2(n))):
        pairs = [(place, place ^ (1 << level)) for place in range(n)]
        other = jax.tree.map(lambda x, pairs=pairs: jax.lax.ppermute(x, axis, pairs), total)
        total = jax.tree.map(jnp.add, total, other)
    return total
