"""Tensors of an architecture: their names, shapes and parts, from the rows of architectures.py.

    tensors = tensor_table(run.model, "qwen3")   # the tensors of its files, the weights of each

lm/model/hf/export.py and lm/model/hf/load.py read the tensors in opposite directions.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np

from lm.config import schema
from lm.model import parametrization, params, transformer
from lm.model.hf import architectures
from lm.parallel import mesh

PARTS = "parts"  # axis of a tensor along which the weights of a fused tensor are concatenated


@dataclasses.dataclass(frozen=True)
class Part:
    """A weight, or one matrix of a stacked weight, as a part of a tensor.

    path: path of the weight. index: its indices on the stacked axes. order: the order of its other
    axes in the tensor. sizes: the sizes of these axes in that order. n_rows: product of the sizes
    before the axis PARTS; without this axis, of the first axis of the tensor. scale_offset: added
    to the tensor in the weight.
    """

    path: str
    index: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    n_rows: int
    scale_offset: float


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of transformers. Its parts, as matrices [n_rows, ...], are concatenated by column.

    All parts have the same number of rows.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def tensor_table(shape: schema.Model, name: str) -> list[Tensor]:
    """Return every tensor of a model of the architecture `name`, in the order of its row."""
    weights = params.flatten_by_path(jax.eval_shape(lambda: transformer.init_params(shape, 0)))
    leaves = jax.tree_util.tree_leaves_with_path(
        transformer.param_axes(shape), is_leaf=mesh.is_axis_names
    )
    axes = {jax.tree_util.keystr(p, simple=True, separator="/"): names for p, names in leaves}
    architecture = architectures.ARCHITECTURES[name]
    rows: dict[str, list[tuple[str, list[list[str]]]]] = {}
    for template, weight_name, tensor_axes in architecture.tensors:
        path = f"blocks/{weight_name}" if "{" in template else weight_name
        if path in axes:
            groups = [group.split("+") for group in tensor_axes.split()]
            rows.setdefault(template, []).append((path, groups))
    assert sum(len(row) for row in rows.values()) == len(axes), "a weight has no row"
    tensors = []
    for template, row in rows.items():
        sizes = {
            path: dict(zip(axes[path], weights[path].shape, strict=True)) | {PARTS: 1}
            for path, _ in row
        }
        first_path = row[0][0]
        stacked = [axis for axis in axes[first_path] if axis in parametrization.STACKED]
        for index in itertools.product(*(range(sizes[first_path][axis]) for axis in stacked)):
            parts = tuple(
                _make_part(path, index, groups, sizes[path], architecture.scale_offset)
                for path, groups in row
            )
            numbers = dict(zip(stacked, index, strict=True))
            tensors.append(Tensor(template.format(**numbers), _tensor_shape(row, sizes), parts))
    return tensors


def _tensor_shape(row: list[tuple[str, list[list[str]]]], sizes: dict) -> tuple[int, ...]:
    """Return the shape of a tensor. The sizes of its parts are added along the axis of PARTS."""
    shapes = [
        [math.prod(sizes[path][axis] for axis in group) for group in groups] for path, groups in row
    ]
    is_fused = [PARTS in group for group in row[0][1]]
    return tuple(
        sum(column) if fused else column[0]
        for fused, column in zip(is_fused, zip(*shapes, strict=True), strict=True)
    )


def _make_part(
    path: str,
    index: tuple[int, ...],
    groups: list[list[str]],
    sizes: dict[str, int],
    scale_offset: float,
) -> Part:
    """Return a part; groups: its axes per axis of the tensor; sizes: all axes of the weight."""
    named_axes = [axis for group in groups for axis in group]
    n_row_axes = named_axes.index(PARTS) if PARTS in named_axes else len(groups[0])
    n_rows = math.prod(sizes[axis] for axis in named_axes[:n_row_axes])
    tensor_axes = [axis for axis in named_axes if axis != PARTS]
    weight_axes = [axis for axis in sizes if axis not in (*parametrization.STACKED, PARTS)]
    order = tuple(weight_axes.index(axis) for axis in tensor_axes)
    offset = scale_offset if path.endswith("/scale") else 0.0
    return Part(path, index, order, tuple(sizes[axis] for axis in tensor_axes), n_rows, offset)


def tensor_matrices(tensor: Tensor, weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the parts of a tensor as matrices [n_rows, ...], without a copy where possible.

    weights: by path.
    """
    return [
        weights[part.path][part.index].transpose(part.order).reshape(part.n_rows, -1)
        for part in tensor.parts
    ]


def split_tensor(tensor: Tensor, array: np.ndarray) -> list[np.ndarray]:
    """Return the parts of a stored tensor as matrices with the axes of their weights, float32."""
    n_rows = tensor.parts[0].n_rows
    sizes = np.array([math.prod(part.sizes) for part in tensor.parts]) // n_rows
    matrices = np.split(array.reshape(n_rows, -1), np.cumsum(sizes)[:-1], axis=-1)
    return [
        matrix.astype(np.float32).reshape(part.sizes).transpose(np.argsort(part.order))
        + np.float32(part.scale_offset)
        for part, matrix in zip(tensor.parts, matrices, strict=True)
    ]
