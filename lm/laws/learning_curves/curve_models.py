"""Models of a learning curve as a function of the learning rates of all steps.

    log L(t) = a + b u(x) - g R(t),   x = log S(t) - e log T

S(t) is the sum of the learning rates up to step t in units of their peak, times the tokens per
step: tokens at the peak rate. T is the number of tokens of the run. a, b and g belong to a run, the
other constants are shared by all runs. R(t) is the benefit of a lower learning rate. R is zero
while the rate is constant.

baseline     u = S^-alpha, R = 1 - lr(t) / peak: a power law of the stable phase minus the gain of a
             cooldown
multi_power  u = S^-alpha, R = sum over steps k of (lr(k-1) - lr(k)) / peak (1 - (1 + c z)^-beta).
             (lr(k) / peak)^-gamma times the steps at the peak rate since k is z (Luo et al. 2025,
             arXiv:2503.12811)
annealing    u = S^-alpha, R = sum over steps i <= t and k <= i of (lr(k-1) - lr(k)) / peak *
             decay^(i-k), times 1 - decay (Tissue et al. 2024, arXiv:2408.11029)
collapse     u is a piecewise linear function that all runs share, and R is that of multi_power.
             With e = 1, the curves of runs of other lengths collapse onto one function of the
             fraction of the training (Qiu et al. 2025, arXiv:2507.02119). The residuals of
             similar runs correct u, because a change of slope occurs earlier in larger models

The laws of the papers have a floor, L = floor + A S^-alpha - g R, which a and b replace here: the
logarithm makes all errors relative.

Legend: T steps of a run, k points of a curve.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MAX_RATE_CHANGES = 100  # changes of the learning rate in the sum of R; more are grouped
MIN_RATE = 1e-3  # lowest learning rate relative to the peak in z
N_KNOTS = 10  # of the shared function u
REFERENCE_TOKENS = 1e5  # unit of S in S^-alpha, a constant that b absorbs
ALPHAS = (0.25, 0.1, 0.5, 1.0)
EXPONENTS = (0.0, 1.0)  # e
MULTI_POWER = tuple(
    (c, beta, gamma)
    for c in (0.003, 0.01, 0.03)
    for beta in (0.5, 1.0)
    for gamma in (0.5, 1.0, 1.5)
)
MEMORIES = ((5.0,), (20.0,), (60.0,), (200.0,))  # 1 / (1 - decay), in steps

Constants = tuple[float, ...]


class CurveModel(NamedTuple):
    """Benefit R(rates, steps, constants) of a model, and the tested values of its constants.

    shape_constants: alpha of a power law, e of a shared function.
    """

    benefit: Callable[[np.ndarray, np.ndarray, Constants], np.ndarray]
    benefit_constants: tuple[Constants, ...]
    shape_constants: tuple[float, ...] = ALPHAS
    is_shared_curve: bool = False  # True if u is a shared function instead of a power


def sum_rates(rates: np.ndarray) -> np.ndarray:
    """Return the summed learning rate after each step [T], in steps at the peak rate."""
    return np.cumsum(rates) / rates.max()


def rate_drop(rates: np.ndarray, steps: np.ndarray, constants: Constants) -> np.ndarray:
    """Return R = 1 - lr / peak after the warm-up [k]. steps: numbers of completed steps."""
    drop = 1 - rates / rates.max()
    drop[: int(rates.argmax())] = 0
    return drop[steps - 1]


def multi_power_benefit(rates: np.ndarray, steps: np.ndarray, constants: Constants) -> np.ndarray:
    """Return R of the multi-power law [k]. constants: c, beta, gamma."""
    c, beta, gamma = constants
    relative, summed = rates / rates.max(), sum_rates(rates)
    first = int(rates.argmax())
    changes = np.flatnonzero(np.diff(relative[first:])) + first + 1  # steps with a new rate
    if not len(changes):
        return np.zeros(len(steps))
    drops = relative[changes - 1] - relative[changes]
    n_groups = min(len(changes), MAX_RATE_CHANGES)
    edges = np.arange(n_groups + 1) * len(changes) // n_groups
    drops = np.add.reduceat(drops, edges[:-1])
    changes = changes[(edges[:-1] + edges[1:]) // 2]
    since = np.maximum(summed[steps - 1][:, None] - summed[changes - 1], 0)
    z = np.maximum(relative[changes], MIN_RATE) ** -gamma * since
    return (drops * (1 - (1 + c * z) ** -beta)).sum(1)


def annealing_benefit(rates: np.ndarray, steps: np.ndarray, constants: Constants) -> np.ndarray:
    """Return R of the annealing law [k]. constants: 1 / (1 - decay), in steps."""
    memory = constants[0]
    relative = rates / rates.max()
    drops = -np.diff(relative, prepend=relative[0])
    drops[: int(rates.argmax()) + 1] = 0
    decay = 1 - 1 / memory
    # An import of scipy.signal would take longer than this loop over the steps.
    momentum = list(itertools.accumulate(drops.tolist(), lambda total, drop: drop + decay * total))
    return np.cumsum(momentum)[steps - 1] / memory


def hat_functions(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Return the basis [k, knots] of piecewise linear functions at x [k]."""
    return np.stack([np.interp(x, knots, row) for row in np.eye(len(knots))], 1)


MODELS = {
    "baseline": CurveModel(rate_drop, ((),)),
    "multi_power": CurveModel(multi_power_benefit, MULTI_POWER),
    "annealing": CurveModel(annealing_benefit, MEMORIES),
    "collapse": CurveModel(multi_power_benefit, MULTI_POWER, EXPONENTS, is_shared_curve=True),
}
