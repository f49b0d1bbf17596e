"""Which weights learn: all, all but those named, or low-rank additions to frozen ones (LoRA).

    keep = tree(run.optim, run.model, axes)      # True for each weight that learns
    mine, frozen = part(params, keep), part(params, keep, False)
    joined(mine, frozen)                         # params again
    merged(run.model, params)                    # additions added, as the decoder reads them

LoRA (Hu et al. 2021, arXiv:2106.09685) replaces W by W + (alpha / rank) A B, with A of `rank`
columns, and learns A and B alone. They lie in params["lora"] under the paths of their W.
"""

import hashlib
import math

import jax
import jax.numpy as jnp

from lm import config

STACKED = ("layers", "experts")  # axes that number matrices, not sides of one


def tree(optim: config.Optim, model: config.Model, axes: dict) -> dict:
    """Whether each weight learns. ValueError for a name in optim.freeze that no weight has.

    A name is a part of a weight's path ("embed", "mlp", "query") or, if it is of none, one of its
    axes ("heads", "vocab"). With model.lora_rank the additions alone learn.
    """
    names = [name for name in optim.freeze.split(",") if name]
    known = {part for path, _ in _leaves(axes) for part in path}
    by_axis = {axis for _, its in _leaves(axes) for axis in its} - known
    for name in names:
        if name not in known | by_axis:
            raise ValueError("optim.freeze: " + config.unknown(name, sorted(known | by_axis)))

    def learns(path: tuple[str, ...], its: tuple) -> bool:
        is_named = any(name in path or (name in by_axis and name in its) for name in names)
        return not is_named and (not model.lora_rank or path[0] == "lora")

    keep = _mapped(axes, learns)
    if not any(flag for _, flag in _leaves(keep)):
        raise ValueError(f"optim.freeze={optim.freeze!r} leaves no weight to learn: name fewer")
    return keep


def part(weights: dict, keep: dict, wanted: bool = True) -> dict:
    """The weights that learn, or (wanted=False) those that do not, without empty branches."""
    found = {}
    for name, value in weights.items():
        if isinstance(value, dict):
            inner = part(value, keep[name], wanted)
            found |= {name: inner} if inner else {}
        elif keep[name] == wanted:
            found[name] = value
    return found


def joined(a: dict, b: dict) -> dict:
    """The tree of which these are two parts."""
    both = {name: joined(a[name], b[name]) for name in a.keys() & b.keys()}
    return a | b | both


def additions(model: config.Model, axes: dict, params: dict, seed) -> dict:
    """Fresh A (normal) and B (zero) of each weight that has an axis of model.lora_on."""
    found: dict = {}
    for path, names in _leaves(axes):
        if _has_addition(model, names):
            shape = _at(params, path).shape
            inner, outer, stacked = _sides(names)
            sizes = [tuple(shape[i] for i in places) for places in (stacked, inner, outer)]
            number = int.from_bytes(hashlib.sha256("/".join(path).encode()).digest()[:4], "big")
            key = jax.random.fold_in(jax.random.key(seed), number)
            a = jax.random.normal(key, (*sizes[0], *sizes[1], model.lora_rank), jnp.float32)
            b = jnp.zeros((*sizes[0], model.lora_rank, *sizes[2]), jnp.float32)
            _set(found, path, {"a": a * math.prod(sizes[1]) ** -0.5, "b": b})
    return found


def addition_axes(model: config.Model, axes: dict) -> dict:
    """Axis names of `additions`. ValueError where model.lora_on names no axis of a weight."""
    found: dict = {}
    for path, names in _leaves(axes):
        if _has_addition(model, names):
            inner, outer, stacked = (tuple(names[i] for i in side) for side in _sides(names))
            _set(found, path, {"a": (*stacked, *inner, "rank"), "b": (*stacked, "rank", *outer)})
    if not found:
        known = sorted({axis for path, names in _leaves(axes) for axis in names if len(names) > 2})
        raise ValueError(f"model.lora_on={model.lora_on!r} must name one of {', '.join(known)}")
    return found


def merged(model: config.Model, params: dict) -> dict:
    """The weights as the decoder reads them, without "lora"."""
    if "lora" not in params:
        return params
    whole = {name: value for name, value in params.items() if name != "lora"}
    return _added(whole, params["lora"], model.lora_alpha / model.lora_rank)


def _added(weights: dict, lora: dict, scale: float) -> dict:
    found = dict(weights)
    for name, inner in lora.items():
        if set(inner) == {"a", "b"}:
            found[name] = weights[name] + scale * _product(weights[name].shape, **inner)
        else:
            found[name] = _added(weights[name], inner, scale)
    return found


def _product(shape: tuple[int, ...], a: jax.Array, b: jax.Array) -> jax.Array:
    """A B of each matrix, in the shape of W, which begins with the axes that number matrices.

    With n of these a has n + inner + 1 axes, b has n + 1 + outer, and W n + inner + outer.
    """
    rank, stacked = a.shape[-1], shape[: a.ndim + b.ndim - 2 - len(shape)]
    flat = a.reshape(*stacked, -1, rank) @ b.reshape(*stacked, rank, -1)
    return flat.reshape(shape)


def _has_addition(model: config.Model, names: tuple) -> bool:
    on = set(model.lora_on.split(","))
    matrix = [name for name in names if name not in STACKED]
    return len(matrix) > 1 and "embed" in matrix and bool(on & set(names))


def _sides(names: tuple) -> tuple[list[int], list[int], list[int]]:
    """Places of the axes that a matrix is multiplied over, of those that it gives, of the rest."""
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
