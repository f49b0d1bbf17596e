"""Trainable weights: all, all except the frozen ones, or low-rank adapters (LoRA).

    is_trainable = tree(run.optim, run.model, axes)     a boolean for each weight
    weights, frozen = part(params, is_trainable), part(params, is_trainable, False)
    joined(weights, frozen)                             params again
    merged(run.model, params)                           weights with the adapters added

LoRA (Hu et al. 2021, arXiv:2106.09685) replaces W by W + (alpha / rank) A B, with A of `rank`
columns, and trains only A and B. params["lora"] has them under the path of their W.
"""

import hashlib
import math

import jax
import jax.numpy as jnp

from lm.config import schema

STACKED = ("layers", "experts")  # axes that number matrices and are not a side of one


def init_lora(model: schema.Model, axes: dict, params: dict, seed) -> dict:
    """Return initial A (normal) and B (zero) of each weight with an axis of model.lora_on."""
    adapters: dict = {}
    for path, names in _leaves(axes):
        if _has_addition(model, names):
            shape = _at(params, path).shape
            inner, outer, stacked = _sides(names)
            sizes = [tuple(shape[i] for i in side) for side in (stacked, inner, outer)]
            number = int.from_bytes(hashlib.sha256("/".join(path).encode()).digest()[:4], "big")
            key = jax.random.fold_in(jax.random.key(seed), number)
            a = jax.random.normal(key, (*sizes[0], *sizes[1], model.lora_rank), jnp.float32)
            b = jnp.zeros((*sizes[0], model.lora_rank, *sizes[2]), jnp.float32)
            _set(adapters, path, {"a": a * math.prod(sizes[1]) ** -0.5, "b": b})
    return adapters


def lora_axes(model: schema.Model, axes: dict) -> dict:
    """Return the axis names of `additions`.

    Raises ValueError if model.lora_on names no axis of a weight.
    """
    adapters: dict = {}
    for path, names in _leaves(axes):
        if _has_addition(model, names):
            inner, outer, stacked = (tuple(names[i] for i in side) for side in _sides(names))
            sides = {"a": (*stacked, *inner, "rank"), "b": (*stacked, "rank", *outer)}
            _set(adapters, path, sides)
    if not adapters:
        known = sorted({axis for path, names in _leaves(axes) for axis in names if len(names) > 2})
        raise ValueError(f"model.lora_on={model.lora_on!r} must name one of {', '.join(known)}")
    return adapters


def merge_lora(model: schema.Model, params: dict) -> dict:
    """Return the weights with the adapters added to them, without "lora"."""
    if "lora" not in params:
        return params
    weights = {name: value for name, value in params.items() if name != "lora"}
    return _added(weights, params["lora"], model.lora_alpha / model.lora_rank)


def _added(weights: dict, lora: dict, scale: float) -> dict:
    sums = dict(weights)
    for name, inner in lora.items():
        if set(inner) == {"a", "b"}:
            sums[name] = weights[name] + scale * _product(weights[name].shape, **inner)
        else:
            sums[name] = _added(weights[name], inner, scale)
    return sums


def _product(shape: tuple[int, ...], a: jax.Array, b: jax.Array) -> jax.Array:
    """Return A B of each matrix, in the shape of W.

    The first n axes of W number matrices. a has n + inner + 1 axes, b has n + 1 + outer axes, and
    W has n + inner + outer axes.
    """
    rank, stacked = a.shape[-1], shape[: a.ndim + b.ndim - 2 - len(shape)]
    flat = a.reshape(*stacked, -1, rank) @ b.reshape(*stacked, rank, -1)
    return flat.reshape(shape)


def _has_addition(model: schema.Model, names: tuple) -> bool:
    on = set(model.lora_on.split(","))
    matrix = [name for name in names if name not in STACKED]
    return len(matrix) > 1 and "embed" in matrix and bool(on & set(names))


def _sides(names: tuple) -> tuple[list[int], list[int], list[int]]:
    """Return the indices of the input axes, the output axes and the stacked axes of a weight."""
    stacked = [i for i, name in enumerate(names) if name in STACKED]
    embed = [i for i, name in enumerate(names) if name == "embed"]
    other = [i for i in range(len(names)) if i not in stacked + embed]
    return (other, embed, stacked) if names[-1] == "embed" else (embed, other, stacked)


def _leaves(tree: dict, path: tuple[str, ...] = ()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _mapped(tree: dict, change, path: tuple[str, ...] = ()) -> dict:
    return {
        name: _mapped(value, change, (*path, name))
        if isinstance(value, dict)
        else change((*path, name), value)
        for name, value in tree.items()
    }


def _at(tree: dict, path: tuple[str, ...]) -> jax.Array:
    first, *rest = path
    return _at(tree[first], tuple(rest)) if rest else tree[first]


def _set(tree: dict, path: tuple[str, ...], value) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
