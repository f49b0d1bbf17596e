"""Low-rank adapters, LoRA (Hu et al. 2021, arXiv:2106.09685).

    params["lora"] = init_lora(model, axes, params, seed)
    weights = merge_lora(model, params)                     # each weight plus its adapter

LoRA replaces W by W + (alpha / rank) A B, with A of `rank` columns, and trains only A and B.
params["lora"] contains {"a": A, "b": B} under the path of W. lm/training/optimizer.py decides which
weights are trainable.
"""

import hashlib
import math
import typing

import jax
import jax.numpy as jnp

from lm.config import schema
from lm.model import parametrization


def init_lora(model: schema.Model, axes: dict, params: dict, seed) -> dict:
    """Return initial adapters: A normal, B zero, for each weight with an axis of model.lora_on.

    axes: the tree of axis names. params: arrays or their shapes. The result has the nesting of
    params, with {"a": A, "b": B} in the position of each adapted weight.
    """
    adapters: dict = {}
    for path, names in iterate_leaves(axes):
        if _has_adapter(model, names):
            shape = _get_path(params, path).shape
            stacked, inner, outer = (
                tuple(shape[i] for i in indices) for indices in parametrization.matrix_axes(names)
            )
            path_hash = int.from_bytes(hashlib.sha256("/".join(path).encode()).digest()[:4], "big")
            key = jax.random.fold_in(jax.random.key(seed), path_hash)
            a = jax.random.normal(key, (*stacked, *inner, model.lora_rank), jnp.float32)
            b = jnp.zeros((*stacked, model.lora_rank, *outer), jnp.float32)
            _set_path(adapters, path, {"a": a * math.prod(inner) ** -0.5, "b": b})
    return adapters


def lora_axes(model: schema.Model, axes: dict) -> dict:
    """Return the tree of `init_lora` with the axis names of each A and B.

    Raises ValueError if model.lora_on names no axis of a weight.
    """
    adapters: dict = {}
    for path, names in iterate_leaves(axes):
        if _has_adapter(model, names):
            stacked, inner, outer = (
                tuple(names[i] for i in indices) for indices in parametrization.matrix_axes(names)
            )
            adapter_axes = {"a": (*stacked, *inner, "rank"), "b": (*stacked, "rank", *outer)}
            _set_path(adapters, path, adapter_axes)
    if not adapters:
        known = sorted(
            {axis for path, names in iterate_leaves(axes) for axis in names if len(names) > 2}
        )
        raise ValueError(f"model.lora_on={model.lora_on!r} must name one of {', '.join(known)}")
    return adapters


def merge_lora(model: schema.Model, params: dict) -> dict:
    """Return W + (alpha / rank) A B for each adapted weight, without the key "lora".

    Return params unchanged if it has no adapters.
    """
    if "lora" not in params:
        return params
    weights = {name: value for name, value in params.items() if name != "lora"}
    return _add_adapters(weights, params["lora"], model.lora_alpha / model.lora_rank)


def _add_adapters(weights: dict, adapters: dict, scale: float) -> dict:
    """Return weights + scale A B, recursively over the nested adapters."""
    sums = dict(weights)
    for name, adapter in adapters.items():
        if set(adapter) == {"a", "b"}:
            sums[name] = weights[name] + scale * _low_rank_product(weights[name].shape, **adapter)
        else:
            sums[name] = _add_adapters(weights[name], adapter, scale)
    return sums


def _low_rank_product(shape: tuple[int, ...], a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the product A B of each stacked matrix, in the shape of W.

    The first n axes of W are stacked. A has n + inner + 1 axes, and B has n + 1 + outer axes. W has
    n + inner + outer axes.
    """
    rank, stacked = a.shape[-1], shape[: a.ndim + b.ndim - 2 - len(shape)]
    flat = a.reshape(*stacked, -1, rank) @ b.reshape(*stacked, rank, -1)
    return flat.reshape(shape)


def _has_adapter(model: schema.Model, names: tuple) -> bool:
    """Return True if a weight with these axes is a matrix with an axis of model.lora_on."""
    adapted_axes = set(model.lora_on.split(","))
    matrix_axes = [name for name in names if name not in parametrization.STACKED]
    return len(matrix_axes) > 1 and "embed" in matrix_axes and bool(adapted_axes & set(names))


def iterate_leaves(tree: dict, path: tuple[str, ...] = ()):
    """Yield (path, leaf) of a nested dict; a tuple or an array is a leaf."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from iterate_leaves(value, (*path, name))
        else:
            yield (*path, name), value


def map_leaves(tree: dict, function, path: tuple[str, ...] = ()) -> dict:
    """Return the nested dict with function(path, leaf) in place of each leaf."""
    return {
        name: map_leaves(value, function, (*path, name))
        if isinstance(value, dict)
        else function((*path, name), value)
        for name, value in tree.items()
    }


def _get_path(tree: dict, path: tuple[str, ...]) -> jax.Array:
    """Return the leaf of a nested dict at a path."""
    node: typing.Any = tree
    for name in path:
        node = node[name]
    return node


def _set_path(tree: dict, path: tuple[str, ...], value) -> None:
    """Set the leaf of a nested dict at a path; create missing dicts."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
