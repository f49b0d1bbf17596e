"""What to doubt and what to run next: profiles, and the run that would narrow a prediction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm import fit as fits

PROFILED = ("power", "chinchilla", "overtrained", "data_constrained")  # laws that take fixed=


@dataclass
class Profile:
    """The objective with one parameter held at each of several values, the others refitted."""

    name: str
    values: np.ndarray
    objective: np.ndarray
    best: float
    interval: tuple[
        float, float
    ]  # 95% by likelihood ratio; an end of the grid where it is not reached
    predictions: np.ndarray | None = None  # the law at `at`, for each value
    refits: list[fits.Fit] = field(default_factory=list)

    @property
    def flat(self) -> bool:
        """Whether the interval reaches an end of the grid: the runs do not determine it."""
        return self.interval[0] <= self.values[0] or self.interval[1] >= self.values[-1]

    def __str__(self) -> str:
        text = (
            f"{self.name} = {self.best:.4g}, 95% by profile [{self.interval[0]:.4g}, "
            f"{self.interval[1]:.4g}]"
        )
        if self.flat:
            text += " (open: a flat valley, the grid ends first)"
        if self.predictions is not None:
            inside = (self.values >= self.interval[0]) & (self.values <= self.interval[1])
            shown = self.predictions[inside] if inside.any() else self.predictions
            text += f"; over it the prediction moves from {shown.min():.4g} to {shown.max():.4g}"
        return text


def profile(
    fit: fits.Fit,
    name: str,
    values: Sequence[float] | None = None,
    at: Sequence[float] | None = None,
) -> Profile:
    """Profile likelihood of one parameter: E's sensitivity, or the shape of a flat valley.

    With S the objective, the 95% region of a fit by squares of n rows and p free parameters is
    S / S_min <= 1 + t^2 / (n - p), t Student's with n - p degrees of freedom; for Huber and
    absolute losses (Laplace noise) it is 2 n log(S / S_min) <= 3.84. `at` gives inputs at which
    the law's prediction is followed along the profile. Default values: around the bootstrap
    interval, three times as wide.
    """
    from scipy import special  # takes longer to import than all laws together

    if fit.refit is None or fit.law not in PROFILED:
        raise ValueError(f"{fit.law} cannot hold a parameter; profile takes {', '.join(PROFILED)}")
    if name not in fit.free:
        raise ValueError(
            f"{fit.law} has no free parameter {name!r} to profile; known: {', '.join(fit.free)}"
        )
    if fit.n <= len(fit.free):
        raise ValueError(f"{fit.n} rows for {len(fit.free)} parameters have no profile: add runs")
    best = fit.params[name]
    if values is None:
        lo, hi = fit.interval(name) if name in fit.ensemble else (best / 1.5, best * 1.5)
        low, high = (
            best / max((best / max(lo, 1e-12)) ** 2, 1.05),
            best * max((hi / best) ** 2, 1.05),
        )
        values = np.unique(
            np.concatenate([np.geomspace(low, best, 11), np.geomspace(best, high, 11)])
        ).tolist()
    grid = np.sort(np.asarray(values, float))
    middle = int(np.searchsorted(grid, best).clip(0, len(grid) - 1))
    found: dict[int, fits.Fit] = {}
    for path in (range(middle, len(grid)), range(middle - 1, -1, -1)):
        start = fit.params
        for i in path:
            fixed = {**fit.fixed, name: float(grid[i])}
            found[i] = fit.refit(None, fixed=fixed, bootstrap=0, starts=[start, fit.params])
            start = found[i].params
    ordered = [found[i] for i in range(len(grid))]
    objective = np.array([f.objective for f in ordered])
    ratio = objective / min(fit.objective, objective.min())
    if fit.loss in ("squares", "log_squares"):
        spare = fit.n - len(fit.free)
        within = ratio <= 1 + special.stdtrit(spare, 0.975) ** 2 / spare
    else:
        within = 2 * fit.n * np.log(ratio) <= special.chdtri(1, 0.05)
    inside = grid[within]
    interval = (float(inside.min()), float(inside.max())) if len(inside) else (best, best)
    followed = None if at is None else np.array([float(f.predict(*at).value) for f in ordered])
    return Profile(name, grid, objective, best, interval, followed, ordered)


@dataclass
class Advice:
    """The next run to make: its inputs, its cost, how much narrower the prediction gets."""

    inputs: dict[str, float]
    flops: float
    before: float  # standard deviation of the law at the target now
    after: float  # expected after this run
    table: list[dict[str, float]]

    def __str__(self) -> str:
        where = ", ".join(f"{k} = {v:.3g}" for k, v in self.inputs.items())
        return (
            f"next run: {where}, {self.flops:.3g} FLOPs; the prediction's standard deviation goes "
            "from "
            f"{self.before:.3g} to {self.after:.3g} ({1 - self.after / self.before:.0%} less)"
        )


def advise(
    fit: fits.Fit,
    budget: float,
    target: Sequence[float],
    candidates: Sequence[Sequence[float]] | None = None,
    cost: Callable[..., Any] | None = None,
) -> Advice:
    """The run of at most `budget` FLOPs that would most narrow the prediction at `target`.

    Over the bootstrap ensemble let t be the law at the target and u at a candidate; a measurement
    of u with noise s leaves the expected variance var(t) - cov(t, u)^2 / (var(u) + s^2). `cost`
    maps inputs to FLOPs: by default 6 N D, C itself, or 120 N^2 (20 tokens a parameter) where the
    law has only N. `candidates` are points of inputs; by default a grid from the smallest fitted
    run to the budget, with no more or fewer tokens a parameter than the fitted runs had.
    """
    if not fit.ensemble:
        raise ValueError("advise needs an ensemble: fit with bootstrap=1000")
    known = {"C": lambda c: c, "N": lambda n: 120 * n**2}
    price = cost or known.get(",".join(fit.inputs), lambda *x: 6 * x[0] * x[-1])
    if candidates is None:
        axes = [np.geomspace(x.min(), max(x.max(), x.min() * 1.01) * 30, 40) for x in fit.x]
        points = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")])
        if fit.inputs == ["N", "D"]:
            seen, ratio = fit.x[1] / fit.x[0], points[1] / points[0]
            points = points[:, (ratio >= seen.min()) & (ratio <= seen.max())]
    else:
        points = np.atleast_2d(np.asarray(candidates, float).T)
    flops = np.asarray(price(*points), float)
    allowed = flops <= budget * (1 + 1e-9)
    if not allowed.any():
        raise ValueError(
            f"budget={budget:g} FLOPs is below the cheapest candidate ({flops.min():g}): raise it"
        )
    points, flops = points[:, allowed], flops[allowed]
    t = np.log(fit.draws(*[np.asarray(v, float) for v in target], noise=False)).ravel()
    u = np.log(fit.draws(*points, noise=False))
    sigma = fit.sigma / (np.exp(u.mean(0)) if fit.plain else 1.0)
    t, u = t - t.mean(), u - u.mean(0)
    gain = (t @ u / len(t)) ** 2 / ((u**2).mean(0) + sigma**2 + 1e-300)
    after = np.sqrt(np.maximum((t**2).mean() - gain, 0))
    order = np.argsort(after)
    scale = float(fit.predict(*target).value)
    rows = [
        {
            **{k: float(points[j, i]) for j, k in enumerate(fit.inputs)},
            "flops": float(flops[i]),
            "after": float(after[i] * scale),
        }
        for i in order[:5]
    ]
    first = int(order[0])
    inputs = {k: float(points[j, first]) for j, k in enumerate(fit.inputs)}
    return Advice(
        inputs, float(flops[first]), float(t.std() * scale), float(after[first] * scale), rows
    )
