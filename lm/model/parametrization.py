"""Scaling of initialization, learning rate, weight decay and epsilon with width and depth.

Let m = d_model / base_width and l = n_layers / base_depth. Each value is the standard value times a
power of m and a power of l. All parametrizations agree at the base shape. Under mup and completep,
the best learning rate of the base shape is also the best of larger shapes.

standard   one learning rate for all weights
mup        scales with width (maximal update: Yang et al. 2022, arXiv:2203.03466, table 8)
completep  also scales with depth: residual branches are divided by l (Dey et al. 2025,
           arXiv:2505.01618, table 1)

The spectral condition of feature learning is that the spectral norm of an update grows with
sqrt(fan_out / fan_in) (Yang et al. 2023, arXiv:2310.17813; for Muon: Gupta et al. 2026,
arXiv:2602.20937, and Qiu et al. 2025, arXiv:2512.05620). An update of AdamW or Lion has entries of
equal size, so its norm grows with fan_in as well. An update of Muon has singular values in
proportion to sqrt(max(fan_in, fan_out)), see lm/training/optimizer.py. The exponents of the
learning rate therefore depend on the optimizer. Depth scales both optimizers equally, because their
updates do not depend on the size of the gradient.

The widths of heads and the number of experts must not change with d_model: attention scores are
divided by sqrt(d_head) instead of d_head. d_ff and n_heads must be proportional to d_model.
"""

import dataclasses

import numpy as np

from lm.config import schema

# Exponents of (m, l) for each pair (parametrization, role of a weight).
SCALING_RULES = {
    # name         role        init        decay, 1 / lr  epsilon
    ("mup",       "input"):  (( 0.5, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("mup",       "hidden"): (( 0.0, 0.0), (1.0, 0.0), (-1.0,  0.0)),
    ("mup",       "back"):   (( 0.0, 0.0), (1.0, 0.0), (-1.0,  0.0)),
    ("mup",       "router"): ((-0.5, 0.0), (1.0, 0.0), ( 0.0,  0.0)),
    ("mup",       "lora_a"): (( 0.0, 0.0), (1.0, 0.0), ( 0.0,  0.0)),
    ("mup",       "lora_b"): (( 0.0, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("mup",       "output"): (( 0.5, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("mup",       "norm"):   (( 0.0, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("completep", "input"):  (( 0.5, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("completep", "hidden"): (( 0.0, 0.0), (1.0, 0.0), (-1.0, -1.0)),
    ("completep", "back"):   (( 0.0, 0.5), (1.0, 0.0), (-1.0, -1.0)),
    ("completep", "router"): ((-0.5, 0.0), (1.0, 0.0), ( 0.0, -1.0)),
    ("completep", "lora_a"): (( 0.0, 0.0), (1.0, 0.0), ( 0.0, -1.0)),
    ("completep", "lora_b"): (( 0.0, 0.0), (0.0, 0.0), (-1.0, -1.0)),
    ("completep", "output"): (( 0.5, 0.0), (0.0, 0.0), (-1.0,  0.0)),
    ("completep", "norm"):   (( 0.0, 0.0), (0.0, 0.0), (-1.0, -1.0)),
}  # fmt: skip
# Roles of the matrices of the layers -> exponents of m in (fan_in, fan_out).
MATRIX_ROLES = {
    "hidden": (1.0, 1.0),
    "back": (1.0, 1.0),
    "router": (1.0, 0.0),
    "lora_a": (1.0, 0.0),
    "lora_b": (0.0, 1.0),
}
STACKED = ("layers", "experts")  # axes that count matrices; the other axes belong to a matrix
# Exponents of (m, l) of two factors in the forward pass: residual branches, and logits.
BRANCH = {"standard": (0.0, 0.0), "mup": (0.0, 0.0), "completep": (0.0, -1.0)}
LOGITS = {"standard": (0.0, 0.0), "mup": (-1.0, 0.0), "completep": (-1.0, 0.0)}


@dataclasses.dataclass(frozen=True)
class Factors:
    """Factors that multiply the standard values of a weight."""

    init: float  # factor of the standard deviation; the scale of a norm always starts at 1
    lr: float | np.ndarray  # an array has one factor per layer: see optim.layer_decay
    decay: float  # the product with lr is 1
    epsilon: float  # factor of Adam's epsilon


def weight_role(names: tuple) -> str:
    """Return the role of a weight with the logical axes `names`.

    Roles: input (embedding and positions), hidden, back (projects into the residual stream),
    router, lora_a and lora_b (adapters of layers), output (head), norm. All biases are vectors and
    have the role norm. Adapters of embedding and head have the roles input and output.
    """
    if not {"embed", "rank"} & set(names):
        return "norm"
    is_table = {"vocab", "positions"} & set(names) or ("rank" in names and "layers" not in names)
    if is_table:
        is_input = names[-1] == "embed" or names[0] in ("vocab", "positions")
        return "input" if is_input else "output"
    if "rank" in names:
        return "lora_a" if names[-1] == "rank" else "lora_b"
    if "router" in names:
        return "router"
    return "back" if names[-1] == "embed" else "hidden"


def matrix_axes(names: tuple) -> tuple[list[int], list[int], list[int]]:
    """Return the indices of the stacked axes, the input axes and the output axes of a matrix.

    Axes that count layers or experts are stacked. A side of the matrix may have several axes, such
    as heads and d_head.
    """
    stacked = [i for i, name in enumerate(names) if name in STACKED]
    matrix = [i for i, name in enumerate(names) if name not in STACKED]
    n_inputs = len(matrix) - 1 if names[-1] in ("embed", "rank") else 1
    return stacked, matrix[:n_inputs], matrix[n_inputs:]


def role_factors(model: schema.Model, names: tuple, optimizer_name: str = "adamw") -> Factors:
    """Return the factors of a weight with the logical axes `names`.

    optimizer_name: optim.name. The updates of Muon need other learning rates than those of AdamW.
    """
    role = weight_role(names)
    if model.parametrization == "standard":
        return Factors(1.0, 1.0, 1.0, 1.0)
    init, (width_power, depth_power), epsilon = SCALING_RULES[model.parametrization, role]
    if optimizer_name == "muon" and role in MATRIX_ROLES:
        width_power = _muon_decay_power(*MATRIX_ROLES[role])
    lr, decay = (-width_power, -depth_power), (width_power, depth_power)
    return Factors(*(_power(model, powers) for powers in (init, lr, decay, epsilon)))


def _muon_decay_power(fan_in: float, fan_out: float) -> float:
    """Return the exponent of m that divides the learning rate of a matrix of Muon.

    An update has the spectral norm sqrt(max(fan_in, fan_out)) and needs sqrt(fan_out / fan_in).
    fan_in, fan_out: exponents of m in the two sides of the matrix.
    """
    return (max(fan_in, fan_out) - (fan_out - fan_in)) / 2


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
