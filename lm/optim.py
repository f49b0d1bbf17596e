"""Learning-rate schedules and the optimizer of a run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from lm import config, mesh, parametrization


def schedule(optim: config.Optim, steps: int) -> optax.Schedule:
    """step (0-based, traced or not) -> learning rate; warm-up is linear and starts above 0.

    cosine    to lr * lr_end over the whole run (Loshchilov and Hutter 2017, arXiv:1608.03983)
    linear    a straight line to lr * lr_end
    wsd       flat, then linear to lr * lr_end over the last `decay` share (arXiv:2404.06395)
    constant  flat
    """
    warmup = round(optim.warmup * steps)
    left = max(steps - 1 - warmup, 1)  # steps from the peak to the last
    decay = max(round(optim.decay * steps), 1)

    def lr(step):
        done = jnp.clip((step - warmup) / left, 0.0, 1.0)
        shape = {
            "cosine": lambda: 0.5 + 0.5 * jnp.cos(jnp.pi * done),
            "linear": lambda: 1 - done,
            "wsd": lambda: jnp.clip((steps - 1 - step) / decay, 0.0, 1.0),
            "constant": lambda: 1.0,
        }[optim.schedule]()
        end = 1.0 if optim.schedule == "constant" else optim.lr_end
        warm = jnp.minimum((step + 1) / (warmup + 1), 1.0)
        return optim.lr * warm * (end + (1 - end) * shape)

    return lr


def make(
    optim: config.Optim, model: config.Model, steps: int, axes: dict
) -> optax.GradientTransformation:
    """The optimizer, clipped by global norm, with decoupled weight decay.

    adamw  Loshchilov and Hutter 2019, arXiv:1711.05101
    lion   Chen et al. 2023, arXiv:2302.06675; takes a learning rate some 5 times smaller
    muon   Jordan 2024 for the matrices between input and output, their updates scaled to the size
           of AdamW's (Liu et al. 2025, arXiv:2502.16982), which takes the rest

    axes: the tree of axis names of the weights; `parametrization` has factors for each.
    """
    factors = jax.tree.map(
        lambda names: _at_depth(optim, model, names), axes, is_leaf=mesh.is_names
    )
    rule = {
        "adamw": lambda: optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
        "lion": lambda: optax.scale_by_lion(optim.b1, optim.b2),
        "muon": lambda: _muon(optim, axes),
    }[optim.name]()
    return optax.chain(
        optax.chain(
            optax.clip_by_global_norm(optim.clip) if optim.clip else optax.identity(),
            # A gradient that is larger by 1/f meets an epsilon that is smaller by f.
            _each(factors, lambda update, _, factor: update / factor.epsilon),
        ),
        rule,
        _each(
            factors,
            lambda update, weight, factor: (
                factor.lr * (update + optim.weight_decay * factor.decay * weight)
            ),
        ),
        optax.scale_by_learning_rate(schedule(optim, steps)),
    )


def _at_depth(optim: config.Optim, model: config.Model, names: tuple) -> parametrization.Factors:
    """Factors of a weight; with optim.layer_decay the learning rate has one for each layer.

    Lower layers learn slower, the embedding slowest (Howard and Ruder 2018, arXiv:1801.06146).
    """
    found = parametrization.factors(model, names)
    if optim.layer_decay == 1.0:
        return found
    below = np.zeros(1)
    if names[0] == "layers":
        below = np.arange(model.n_layers - 1, -1, -1).reshape(-1, *[1] * (len(names) - 1))
    elif parametrization.kind(names) == "input":
        below = np.full(1, model.n_layers)
    rate = (found.lr * optim.layer_decay**below).astype(np.float32)
    return dataclasses.replace(found, lr=rate)


def _each(factors: dict, change) -> optax.GradientTransformation:
    """change(update, weight, factors) of every weight."""
    return optax.stateless(lambda updates, params: jax.tree.map(change, updates, params, factors))


def _muon(optim: config.Optim, axes: dict) -> optax.GradientTransformation:
    """Matrices have an inner and an outer side of one or several axes; layers are many matrices."""

    def is_matrix(names: tuple) -> bool:
        return parametrization.kind(names) in ("hidden", "back")

    def sides(names: tuple, weight):
        if not is_matrix(names):
            return weight  # optax has put a mark there
        places = [i for i, name in enumerate(names) if name not in ("layers", "experts")]
        embed = tuple(i for i in places if names[i] == "embed")
        other = tuple(i for i in places if names[i] != "embed")
        inner, outer = (other, embed) if names[-1] == "embed" else (embed, other)
        return optax.contrib.MuonDimensionNumbers(inner, outer)

    over = functools.partial(jax.tree.map, is_leaf=mesh.is_names)
    muon = optax.contrib.muon(
        learning_rate=-1.0,  # the schedule comes after it, and turns the sign
        muon_weight_dimension_numbers=lambda weights: over(sides, axes, weights),
        consistent_rms=0.2,
    )
    adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
    labels = over(lambda names: "muon" if is_matrix(names) else "adam", axes)
    return optax.partition({"muon": muon, "adam": adam}, labels)
