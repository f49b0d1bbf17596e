"""Weights that are assembled from the matrices of stored tensors, on a mesh or on a host.

    weights = WeightBlocks({"blocks/mlp/up": (12, 64, 256)}, shardings)
    weights.write("blocks/mlp/up", (3,), matrix)    # the matrix of layer 3
    weights.arrays()["blocks/mlp/up"]               # a jax.Array on the devices

With shardings, the weights are assembled in the memory of the devices. The host has one matrix at a
time, and each device receives only its own part of it.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


class WeightBlocks:
    """Weights by path, float32. Each matrix of a weight is written once.

    shapes: of the weights. shardings: of the weights, or None for arrays of NumPy.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        shardings: Mapping[str, NamedSharding] | None = None,
    ):
        self.shapes, self.shardings = shapes, shardings
        self.weights: dict = {}
        self.inserts: dict[tuple, Callable] = {}

    def write(self, path: str, index: tuple[int, ...], matrix: np.ndarray) -> None:
        """Copy one matrix into a weight; index: of the matrix on the first axes of the weight."""
        if self.shardings is None:
            if path not in self.weights:
                self.weights[path] = np.empty(self.shapes[path], np.float32)
            self.weights[path][index] = matrix
            return
        sharding, n = self.shardings[path], len(index)
        parts = NamedSharding(sharding.mesh, PartitionSpec(*_axes(sharding, self.shapes[path])[n:]))
        array = jax.make_array_from_callback(
            matrix.shape, parts, lambda part: np.ascontiguousarray(matrix[part])
        )
        if index:
            shape = self.shapes[path]
            if path not in self.weights:
                make_zeros = jax.jit(
                    functools.partial(jnp.zeros, shape, np.float32), out_shardings=sharding
                )
                self.weights[path] = make_zeros()
            key = (shape, sharding, n)
            if key not in self.inserts:
                self.inserts[key] = _make_insert(shape, sharding, n)
            array = self.inserts[key](self.weights.pop(path), array, np.array(index, np.int32))
        # Transfers are asynchronous. Without a limit, the host would have many matrices.
        self.weights[path] = array.block_until_ready()

    def arrays(self) -> dict:
        """Return the weights by path: arrays of NumPy, or with shardings arrays of JAX."""
        return self.weights


def _axes(sharding: NamedSharding, shape: tuple[int, ...]) -> list[tuple[str, ...]]:
    """Return the mesh axes that split each axis of an array."""
    axes = [() if part is None else part for part in sharding.spec]
    axes = [(part,) if isinstance(part, str) else tuple(part) for part in axes]
    return axes + [()] * (len(shape) - len(axes))


def _make_insert(shape: tuple[int, ...], sharding: NamedSharding, n: int) -> Callable:
    """Return the compiled function (weight, matrix, index) -> weight with the matrix at the index.

    n: number of axes of the index. Each device writes its own part, without communication, into the
    memory of the old weight.
    """
    stacked_axes = _axes(sharding, shape)[:n]
    parts = PartitionSpec(*_axes(sharding, shape)[n:])

    def insert(weight: jax.Array, matrix: jax.Array, index: jax.Array) -> jax.Array:
        starts, is_local = [], jnp.bool_(True)
        for axis, mesh_axes in enumerate(stacked_axes):
            start = index[axis]
            if mesh_axes:
                start -= jax.lax.axis_index(mesh_axes) * weight.shape[axis]
                is_local &= (start >= 0) & (start < weight.shape[axis])
            starts.append(start)
        starts += [jnp.int32(0)] * matrix.ndim
        block = matrix.reshape((1,) * n + matrix.shape)
        if any(stacked_axes):
            old = jax.lax.dynamic_slice(weight, starts, block.shape)
            block = jnp.where(is_local, block, old)
        return jax.lax.dynamic_update_slice(weight, block, starts)

    mapped = jax.shard_map(
        insert,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, parts, PartitionSpec()),
        out_specs=sharding.spec,
    )
    return jax.jit(mapped, donate_argnums=0)
