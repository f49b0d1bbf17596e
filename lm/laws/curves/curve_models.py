"""Models of a learning curve as a function of the learning rates of all steps.

Each model is L(t) = floor + amplitude * S(t)^-alpha - gain * R(t). S(t) is the sum of the learning
rates up to step t, in units of their peak, so it counts steps at the peak rate. R(t) is the benefit
of a lower learning rate, zero while the rate is constant:

    baseline     R = 1 - lr(t) / peak
    multi_power  R = sum_k (lr(k-1) - lr(k)) / peak * (1 - (1 + c x)^-beta), with
                 x = (lr(k) / peak)^-gamma * (S(t) - S(k-1))     (Luo et al. 2025, arXiv:2503.12811)
    annealing    R = sum over steps i <= t and k <= i of (lr(k-1) - lr(k)) / peak * decay^(i-k),
                 divided by 1 / (1 - decay)                     (Tissue et al. 2024, arXiv:2408.11029)

floor, amplitude and gain belong to a run. alpha and the constants of R are shared by all runs.

Legend: T steps of a run, k evaluated steps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

N_BREAKS = 200  # most learning-rate changes of the multi-power law; more are grouped


class LearningCurve(NamedTuple):
    """Losses of a run or of one of its branches, and the learning rates of all steps.

    The rates include those of future steps. A branch begins with the steps of its trunk run.
    is_training: the losses are of training batches instead of held-out text.
    """

    steps: np.ndarray  # [k] numbers of completed steps, ascending
    losses: np.ndarray  # [k]
    rates: np.ndarray  # [T] learning rate of each step
    is_training: bool = False

    def until(self, step: float) -> "LearningCurve":
        """Return the curve with the losses up to a step."""
        is_before = self.steps <= step
        return self._replace(steps=self.steps[is_before], losses=self.losses[is_before])


class CurveModel(NamedTuple):
    """Form of R(t), with the starting values and bounds of its shared constants."""

    benefit: Callable[[LearningCurve, np.ndarray, Sequence[float]], np.ndarray]
    start: dict[str, float]
    bounds: dict[str, tuple[float, float]]


def summed_rate(rates: np.ndarray) -> np.ndarray:
    """Return S after each step [T], in steps at the peak rate."""
    return np.cumsum(rates) / rates.max()


def _baseline(curve: LearningCurve, steps: np.ndarray, constants: Sequence[float]) -> np.ndarray:
    """Return R(t) = 1 - lr / peak after the warm-up [k]."""
    decayed = 1 - curve.rates / curve.rates.max()
    decayed[: int(curve.rates.argmax())] = 0
    return decayed[steps - 1]


def _multi_power(curve: LearningCurve, steps: np.ndarray, constants: Sequence[float]) -> np.ndarray:
    """Return R(t) of the multi-power law [k]."""
    c, beta, gamma = constants
    relative, summed = curve.rates / curve.rates.max(), summed_rate(curve.rates)
    first = int(curve.rates.argmax())
    changes = np.flatnonzero(np.diff(relative[first:])) + first + 1  # steps with a new rate
    drops = relative[changes - 1] - relative[changes]
    if len(changes) > N_BREAKS:
        groups = np.array_split(np.arange(len(changes)), N_BREAKS)
        drops = np.array([drops[g].sum() for g in groups])
        changes = np.array([changes[g[len(g) // 2]] for g in groups])
    since = summed[steps - 1][:, None] - summed[changes - 1]
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.maximum(relative[changes], 1e-3) ** -gamma * np.maximum(since, 0)
        return (drops * (1 - (1 + c * x) ** -beta)).sum(1)


def _annealing(curve: LearningCurve, steps: np.ndarray, constants: Sequence[float]) -> np.ndarray:
    """Return R(t) of the annealing law [k], by the recursion of its two sums."""
    decay = 1 - 1 / constants[0]  # memory in steps
    relative = curve.rates / curve.rates.max()
    first = int(relative.argmax())
    drops = -np.diff(relative, prepend=relative[0])
    drops[: first + 1] = 0
    momentum, area, areas = 0.0, 0.0, np.empty(len(relative))
    for i, drop in enumerate(drops):
        momentum = decay * momentum + drop
        area += momentum
        areas[i] = area
    return areas[steps - 1] / constants[0]


MODELS = {
    "baseline": CurveModel(_baseline, {}, {}),
    "multi_power": CurveModel(
        _multi_power,
        {"c": 0.05, "beta": 0.5, "gamma": 0.5},
        {"c": (1e-4, 10.0), "beta": (0.05, 3.0), "gamma": (0.0, 2.0)},
    ),
    "annealing": CurveModel(_annealing, {"memory": 100.0}, {"memory": (2.0, 1e4)}),
}
