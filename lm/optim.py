"""Learning-rate schedules and the optimizer of a run."""

import jax
import jax.numpy as jnp
import optax

from lm import config


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


def make(optim: config.Optim, steps: int, axes: dict) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), clipped by global norm.

    axes: the tree of axis names of the weights; what only scales a norm does not decay.
    """
    decays = jax.tree.map(lambda names: "norm" not in names, axes, is_leaf=is_names)
    return optax.chain(
        optax.clip_by_global_norm(optim.clip) if optim.clip else optax.identity(),
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
        optax.add_decayed_weights(optim.weight_decay, decays),
        optax.scale_by_learning_rate(schedule(optim, steps)),
    )


def is_names(node) -> bool:
    """Whether a node of a tree is the axis names of one array."""
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)
