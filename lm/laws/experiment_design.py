"""Experiment design: profile likelihood of a parameter, and the next run to train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm.laws import fit

# `profile` needs the option `fixed`, which only these laws have.
PROFILED_LAWS = ("power", "chinchilla", "overtrained", "data_constrained")
COSTS = {"C": lambda c: c, "N": lambda n: 120 * n**2}  # FLOPs by inputs; the default is 6 N D
N_CANDIDATES = 40  # per input


@dataclass
class Profile:
    """Objective for several values of a parameter, with the other parameters refitted."""

    name: str
    values: np.ndarray
    objective: np.ndarray
    best: float
    # 95% interval by likelihood ratio. A bound outside the grid is replaced by the end of the grid.
    interval: tuple[float, float]
    predictions: np.ndarray | None = None  # of the law at the inputs `at`, for each value
    refits: list[fit.Fit] = field(default_factory=list)

    @property
    def is_flat(self) -> bool:
        """Return True if the interval reaches an end of the grid: the parameter is undetermined."""
        return self.interval[0] <= self.values[0] or self.interval[1] >= self.values[-1]

    def __str__(self) -> str:
        text = (
            f"{self.name} = {self.best:.4g}, 95% by profile [{self.interval[0]:.4g}, "
            f"{self.interval[1]:.4g}]"
        )
        if self.is_flat:
            text += " (open: the objective is flat up to the end of the grid)"
        if self.predictions is not None:
            inside = (self.values >= self.interval[0]) & (self.values <= self.interval[1])
            shown = self.predictions[inside] if inside.any() else self.predictions
            text += f"; over it the prediction changes from {shown.min():.4g} to {shown.max():.4g}"
        return text


def profile(
    law_fit: fit.Fit,
    name: str,
    values: Sequence[float] | None = None,
    at: Sequence[float] | None = None,
) -> Profile:
    """Compute the profile likelihood of a parameter, such as E.

    values: grid of the parameter. The default grid covers the bootstrap interval and its
    surroundings. at: inputs of the law; the profile then has the prediction there for each value of
    the grid.

    S is the objective, n the number of rows, and p the number of free parameters. t is the 97.5%
    quantile of Student's distribution with n - p degrees of freedom. For least squares, the 95%
    region is S / S_min <= 1 + t^2 / (n - p). For Huber and absolute losses (Laplace noise), the
    region is 2 n log(S / S_min) <= 3.84.

    Raises ValueError for a law without the option `fixed`, for an unknown parameter, and for n <=
    p.
    """
    from scipy import special  # its import takes longer than that of all laws

    if law_fit.refit is None or law_fit.law not in PROFILED_LAWS:
        raise ValueError(
            f"{law_fit.law} cannot fix a parameter; profile accepts {', '.join(PROFILED_LAWS)}"
        )
    if name not in law_fit.free:
        raise ValueError(
            f"{law_fit.law} has no free parameter {name!r} to profile; known: "
            f"{', '.join(law_fit.free)}"
        )
    n_spare = law_fit.n - len(law_fit.free)
    if n_spare <= 0:
        raise ValueError(
            f"{law_fit.n} rows for {len(law_fit.free)} parameters have no profile: add runs"
        )
    best = law_fit.params[name]
    grid = np.sort(np.asarray(_default_grid(law_fit, name) if values is None else values, float))
    refits = _refit_along(law_fit, law_fit.refit, name, grid)
    objective = np.array([refit.objective for refit in refits])
    smallest = max(min(law_fit.objective, objective.min()), 1e-300)  # 0 for exact data
    ratio = np.maximum(objective / smallest, 1.0)
    if law_fit.loss in ("squares", "log_squares"):
        is_within = ratio <= 1 + special.stdtrit(n_spare, 0.975) ** 2 / n_spare
    else:
        is_within = 2 * law_fit.n * np.log(ratio) <= special.chdtri(1, 0.05)
    inside = grid[is_within]
    interval = (float(inside.min()), float(inside.max())) if len(inside) else (best, best)
    predictions = None
    if at is not None:
        predictions = np.array([float(refit.predict(*at).value) for refit in refits])
    return Profile(name, grid, objective, best, interval, predictions, refits)


def _default_grid(law_fit: fit.Fit, name: str) -> list[float]:
    """Return 21 values around the bootstrap interval."""
    best = law_fit.params[name]
    lo, hi = law_fit.intervals.get(name, (best / 1.5, best * 1.5))
    low = best / max((best / max(lo, 1e-12)) ** 2, 1.05)
    high = best * max((hi / best) ** 2, 1.05)
    halves = [np.geomspace(low, best, 11), np.geomspace(best, high, 11)]
    return np.unique(np.concatenate(halves)).tolist()


def _refit_along(
    law_fit: fit.Fit, refit: Callable[..., fit.Fit], name: str, grid: np.ndarray
) -> list[fit.Fit]:
    """Return refits with the parameter fixed at each value; each refit starts from its neighbor."""
    middle = int(np.searchsorted(grid, law_fit.params[name]).clip(0, len(grid) - 1))
    refits: dict[int, fit.Fit] = {}
    for path in (range(middle, len(grid)), range(middle - 1, -1, -1)):
        start = law_fit.params
        for i in path:
            fixed = {**law_fit.fixed, name: float(grid[i])}
            refits[i] = refit(None, fixed=fixed, bootstrap=0, starts=[start, law_fit.params])
            start = refits[i].params
    return [refits[i] for i in range(len(grid))]


@dataclass
class Advice:
    """Next run to train: its inputs, its cost, and the expected gain in precision."""

    inputs: dict[str, float]
    flops: float
    before: float  # standard deviation of the law at the target
    after: float  # its expectation after this run
    table: list[dict[str, float]]  # the best candidates

    def __str__(self) -> str:
        inputs = ", ".join(f"{k} = {v:.3g}" for k, v in self.inputs.items())
        gain = f" ({1 - self.after / self.before:.0%} less)" if self.before > 0 else ""
        return (
            f"next run: {inputs}, {self.flops:.3g} FLOPs; the standard deviation of the prediction "
            f"changes from {self.before:.3g} to {self.after:.3g}{gain}"
        )


def advise(
    law_fit: fit.Fit,
    budget: float,
    target: Sequence[float],
    candidates: Sequence[Sequence[float]] | None = None,
    cost: Callable[..., Any] | None = None,
) -> Advice:
    """Return the run within the budget (FLOPs) that narrows the prediction at `target` the most.

    target: inputs of the law, in the order of `law_fit.inputs`. candidates: list of such inputs. By
    default, candidates are a grid from the smallest fitted run to 30 times the largest. The grid
    has the tokens per parameter of the fitted runs. cost: function from inputs to FLOPs. The
    default is 6 N D, C for a law of C, and 120 N^2 for a law of N (20 tokens per parameter).

    Over the ensemble, t is the law at the target and u the law at a candidate. A measurement of u
    with noise s leaves the expected variance var(t) - cov(t, u)^2 / (var(u) + s^2).

    Raises ValueError for a fit without bootstrap, and if no candidate is within the budget.
    """
    if not law_fit.ensemble:
        raise ValueError("advise needs an ensemble: fit with bootstrap=1000")
    price = cost or COSTS.get(",".join(law_fit.inputs), lambda *x: 6 * x[0] * x[-1])
    points = (
        _default_candidates(law_fit)
        if candidates is None
        else np.atleast_2d(np.asarray(candidates, float).T)
    )
    flops = np.asarray(price(*points), float)
    is_allowed = flops <= budget * (1 + 1e-9)
    if not is_allowed.any():
        raise ValueError(
            f"budget={budget:g} FLOPs is below the cheapest candidate ({flops.min():g}): raise it"
        )
    points, flops = points[:, is_allowed], flops[is_allowed]
    t = np.log(law_fit.draws(*[np.asarray(v, float) for v in target], noise=False)).ravel()
    u = np.log(law_fit.draws(*points, noise=False))
    sigma = law_fit.sigma / (np.exp(u.mean(0)) if law_fit.additive_noise else 1.0)
    t, u = t - t.mean(), u - u.mean(0)
    gain = (t @ u / len(t)) ** 2 / ((u**2).mean(0) + sigma**2 + 1e-300)
    after = np.sqrt(np.maximum((t**2).mean() - gain, 0))
    order = np.argsort(after)
    scale = float(law_fit.predict(*target).value)
    rows = [
        {
            **{k: float(points[j, i]) for j, k in enumerate(law_fit.inputs)},
            "flops": float(flops[i]),
            "after": float(after[i] * scale),
        }
        for i in order[:5]
    ]
    inputs = {k: rows[0][k] for k in law_fit.inputs}
    return Advice(inputs, rows[0]["flops"], float(t.std() * scale), rows[0]["after"], rows)


def _default_candidates(law_fit: fit.Fit) -> np.ndarray:
    """Return a grid of inputs [inputs, candidates], up to 30 times the largest fitted run."""
    axes = [
        np.geomspace(x.min(), max(x.max(), x.min() * 1.01) * 30, N_CANDIDATES) for x in law_fit.x
    ]
    points = np.stack([values.ravel() for values in np.meshgrid(*axes, indexing="ij")])
    if law_fit.inputs != ["N", "D"]:
        return points
    fitted_ratio, ratio = law_fit.x[1] / law_fit.x[0], points[1] / points[0]
    return points[:, (ratio >= fitted_ratio.min()) & (ratio <= fitted_ratio.max())]
