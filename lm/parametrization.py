"""How init, learning rate, decay and epsilon of each kind of weight change with width and depth.

With m = d_model / base_width and l = n_layers / base_depth each is the standard one times a power
of m and a power of l. At the base shape every rule is the standard one; under the others the best
learning rate of the base shape is that of larger ones too.

standard   one learning rate for all weights
mup        by width, for AdamW (maximal update: Yang et al. 2022, arXiv:2203.03466, table 8)
completep  by depth too: branches are divided by l (Dey et al. 2025, arXiv:2505.01618, table 1)
"""

import dataclasses

import numpy as np

from lm import config

# Exponents of (m, l).
TABLE = {
    # rule         kind        init       learning rate   decay     epsilon
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
# The same of what is multiplied in the forward pass.
BRANCH = {"standard": (0.0, 0.0), "mup": (0.0, 0.0), "completep": (0.0, -1.0)}
LOGITS = {"standard": (0.0, 0.0), "mup": (-1.0, 0.0), "completep": (-1.0, 0.0)}


@dataclasses.dataclass(frozen=True)
class Factors:
    """What the standard values of one weight are multiplied with."""

    init: float  # standard deviation; a norm's scale starts at 1 whatever it is
    lr: "float | np.ndarray"  # one a layer with optim.layer_decay
    decay: float  # 0: never decays
    epsilon: float  # of Adam


def kind(names: tuple) -> str:
    """input, hidden, back (into the residual stream), output or norm, by the axes of a weight.

    Biases, those that balance experts too, are vectors like norms.
    """
    if not {"embed", "rank"} & set(names):
        return "norm"
    if "vocab" in names or "positions" in names:
        return "input" if names[-1] == "embed" else "output"
    return "back" if names[-1] == "embed" else "hidden"


def factors(model: config.Model, names: tuple) -> Factors:
    """Of a weight whose axes are called `names`."""
    what = kind(names)
    decays = float(what != "norm")
    if model.parametrization == "standard":
        return Factors(1.0, 1.0, decays, 1.0)
    init, lr, decay, epsilon = (
        _power(model, powers) for powers in TABLE[model.parametrization, what]
    )
    return Factors(init, lr, decays * decay, epsilon)


def branch(model: config.Model) -> float:
    """What attention and MLP are multiplied with before they join the residual stream."""
    return _power(model, BRANCH[model.parametrization])


def logits(model: config.Model) -> float:
    """What the logits are multiplied with."""
    return _power(model, LOGITS[model.parametrization])


def _power(model: config.Model, powers: tuple[float, float]) -> float:
    width, depth = model.d_model / model.base_width, model.n_layers / model.base_depth
    return width ** powers[0] * depth ** powers[1]
