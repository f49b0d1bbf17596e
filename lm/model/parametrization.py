"""Scaling of initialization, learning rate, weight decay and epsilon with width and depth.

Let m = d_model / base_width and l = n_layers / base_depth. Each value is the standard value times a
power of m and a power of l. All parametrizations agree at the base shape. Under mup and completep,
the best learning rate of the base shape is also the best of larger shapes.

standard   one learning rate for all weights
mup        scales with width, for AdamW (maximal update: Yang et al. 2022, arXiv:2203.03466,
           table 8)
completep  also scales with depth: residual branches are divided by l (Dey et al. 2025,
           arXiv:2505.01618, table 1)
"""

import dataclasses

import numpy as np

from lm.config import schema

# Exponents of (m, l) for each pair (parametrization, role of a weight).
SCALING_RULES = {
    # name         role        init       learning rate   decay     epsilon
    ("mup",       "input"):  ((0.5, 0.0), ( 0.0, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("mup",       "hidden"): ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (-1.0,  0.0)),
    ("mup",       "back"):   ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (-1.0,  0.0)),
    ("mup",       "output"): ((0.5, 0.0), ( 0.0, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("mup",       "norm"):   ((0.0, 0.0), ( 0.0, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("completep", "input"):  ((0.5, 0.0), ( 0.0, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("completep", "hidden"): ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (-1.0, -1.0)),
    ("completep", "back"):   ((0.0, 0.5), (-1.0, 0.0), (1.0, 0.0), (-1.0, -1.0)),
    ("completep", "output"): ((0.5, 0.0), ( 0.0, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("completep", "norm"):   ((0.0, 0.0), ( 0.0, 0.0), (0.0, 0.0), (-1.0, -1.0)),
}  # fmt: skip
# Exponents of (m, l) of two factors in the forward pass: residual branches, and logits.
BRANCH = {"standard": (0.0, 0.0), "mup": (0.0, 0.0), "completep": (0.0, -1.0)}
LOGITS = {"standard": (0.0, 0.0), "mup": (-1.0, 0.0), "completep": (-1.0, 0.0)}


@dataclasses.dataclass(frozen=True)
class Factors:
    """Factors that multiply the standard values of a weight."""

    init: float  # factor of the standard deviation; the scale of a norm always starts at 1
    lr: float | np.ndarray  # an array has one factor per layer: see optim.layer_decay
    decay: float  # 0 disables weight decay
    epsilon: float  # factor of Adam's epsilon


def weight_role(names: tuple) -> str:
    """Return the role of a weight with the logical axes `names`.

    Roles: input, hidden, back (projects into the residual stream), output, norm. All biases are
    vectors and have the role norm.
    """
    if not {"embed", "rank"} & set(names):
        return "norm"
    if "vocab" in names or "positions" in names:
        return "input" if names[-1] == "embed" else "output"
    return "back" if names[-1] == "embed" else "hidden"


def role_factors(model: schema.Model, names: tuple) -> Factors:
    """Return the factors of a weight with the logical axes `names`."""
    role = weight_role(names)
    decays = float(role != "norm")
    if model.parametrization == "standard":
        return Factors(1.0, 1.0, decays, 1.0)
    init, lr, decay, epsilon = (
        _power(model, powers) for powers in SCALING_RULES[model.parametrization, role]
    )
    return Factors(init, lr, decays * decay, epsilon)


def residual_scale(model: schema.Model) -> float:
    """Return the factor of the outputs of attention and MLP before the residual addition."""
    return _power(model, BRANCH[model.parametrization])


def logit_scale(model: schema.Model) -> float:
    """Return the factor of the logits."""
    return _power(model, LOGITS[model.parametrization])


def _power(model: schema.Model, powers: tuple[float, float]) -> float:
    """Return m^powers[0] * l^powers[1]."""
    width, depth = model.d_model / model.base_width, model.n_layers / model.base_depth
    return width ** powers[0] * depth ** powers[1]
