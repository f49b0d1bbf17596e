"""Weights of a model in blocks: the parts of each weight that the devices of this process hold.

    blocks = WeightBlocks({"embed": (256, 64)}, shardings)
    blocks.write("embed", (), matrix)           # copies the parts that belong to a block
    blocks.arrays()["embed"]                    # a jax.Array on the devices

A tensor of a file is in host memory once, and each device receives only its own blocks.
"""

import functools
from collections.abc import Mapping

import jax
import numpy as np

Bounds = tuple[tuple[int, int], ...]  # start and end on each axis


class WeightBlocks:
    """Blocks of weights by path. Without shardings, each weight is one block.

    shapes: of the weights. shardings: of the weights, or None.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ):
        self.shapes, self.shardings = shapes, shardings
        self.blocks: dict[str, dict[Bounds, np.ndarray]] = {}
        for path, shape in shapes.items():
            bounds = {tuple((0, n) for n in shape)}
            if shardings is not None:
                indices = shardings[path].addressable_devices_indices_map(shape).values()
                bounds = {_bounds(index, shape) for index in indices if index is not None}
            self.blocks[path] = {
                block: np.empty([end - start for start, end in block], np.float32)
                for block in bounds
            }

    def write(self, path: str, index: tuple[int, ...], matrix: np.ndarray) -> None:
        """Copy one matrix of a weight into its blocks; index: of the matrix on the first axes."""
        n = len(index)
        for bounds, block in self.blocks[path].items():
            if all(start <= i < end for i, (start, end) in zip(index, bounds[:n], strict=True)):
                inner = tuple(i - start for i, (start, _) in zip(index, bounds[:n], strict=True))
                block[inner] = matrix[tuple(slice(start, end) for start, end in bounds[n:])]

    def arrays(self) -> dict[str, np.ndarray] | dict[str, jax.Array]:
        """Return the weights by path: arrays of NumPy, or with shardings arrays of JAX."""
        if self.shardings is None:
            return {path: next(iter(blocks.values())) for path, blocks in self.blocks.items()}
        arrays = {}
        for path, shape in self.shapes.items():
            blocks = self.blocks.pop(path)  # freed when the devices have them
            arrays[path] = jax.make_array_from_callback(
                shape,
                self.shardings[path],
                functools.partial(_select_block, blocks, shape),
            )
        return arrays


def _select_block(
    blocks: dict[Bounds, np.ndarray], shape: tuple[int, ...], index: tuple[slice, ...] | None
) -> np.ndarray:
    """Return the block of a weight at the index of a device."""
    return blocks[_bounds(index or (slice(None),) * len(shape), shape)]


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    """Return the start and the end of each slice."""
    return tuple(part.indices(n)[:2] for part, n in zip(index, shape, strict=True))
