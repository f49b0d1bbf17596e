"""From a problem to a `Fit`: many starts, a polish, resamples, and doubts said aloud."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm import doubts, fit, solver, table

SAME = 1e-4  # two objectives within this share of each other are one optimum
MANY = 30  # runs from which cases are resampled; below, noise is


@dataclass
class Problem:
    """A law to be fitted: its objective over theta of unit scale, and the way back."""

    law: str
    formula: str
    columns: dict[str, str]
    inputs: list[str]
    objective: Callable[[str, float], solver.Objective]  # (loss, delta) -> objective
    starts: np.ndarray  # S x p
    lower: np.ndarray
    upper: np.ndarray
    natural: Callable[[np.ndarray], dict[str, np.ndarray]]  # theta S x p -> parameters, each S
    values: Callable[..., np.ndarray]  # (parameters, *inputs) -> law
    free: list[str] = field(default_factory=list)
    fixed: dict[str, float] = field(default_factory=dict)
    derive: Callable[[dict[str, Any]], dict[str, Any]] = lambda params: {}
    watch: list[str] = field(default_factory=list)  # exponents to doubt when their interval is wide
    plain: bool = False  # the objective compares y itself, not log y
    bounds: tuple[float, float] = (0.0, float("inf"))
    warnings: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def estimate(
    problem: Problem,
    data: table.Table,
    loss: str,
    delta: float,
    weights: np.ndarray | None = None,
    bootstrap: int = 1000,
    resample: str = "auto",
    seed: int = 0,
    reach: float = 10.0,
) -> fit.Fit:
    """Fit a problem from all its starts, polish the best, and refit to `bootstrap` resamples.

    resample="runs" draws whole runs with replacement. resample="noise" adds new noise to the fitted
    law: Gaussian, with a scale drawn anew each time from what n - p degrees of freedom allow (s^2
    (n-p) / chi^2), so that intervals of few runs are as wide as Student's t makes them; for rows
    that share a run, one random factor a run scales all its residuals. "auto" takes runs from 30
    runs on (and six a parameter), noise below: with six runs and three parameters, most draws of
    runs cannot be fitted at all. Raises ValueError for fewer runs than parameters.
    """
    if loss not in solver.LOSSES:
        raise ValueError(f"loss={loss!r} is unknown; known: {', '.join(solver.LOSSES)}")
    if resample not in ("auto", "runs", "noise"):
        raise ValueError(f"resample={resample!r} is unknown; known: auto, runs, noise")
    n, p = len(data), len(problem.lower)
    y = data.columns[problem.columns[next(k for k in problem.columns if k not in problem.inputs)]]
    if n < p:
        raise ValueError(
            f"{problem.law} has {p} free parameters and only {n} rows: add runs or fix a parameter"
        )
    target = y if problem.plain else np.log(y)
    unit = 1.0 if weights is None else float(weights.mean())
    weights = None if weights is None else weights / unit  # weights of any scale, the same fit
    found, agree, valleys = _search(problem, target, weights, loss, delta)
    params = {name: float(v[0]) for name, v in problem.natural(found.theta).items()}
    result = fit.Fit(
        free=problem.free,
        fixed=problem.fixed,
        derived={k: float(v) for k, v in problem.derive(params).items()},
        law=problem.law,
        formula=problem.formula,
        columns=problem.columns,
        inputs=problem.inputs,
        params=params,
        values=problem.values,
        data=data,
        loss=loss,
        delta=delta,
        objective=float(found.value[0]) * unit,
        gradient=float(found.gradient[0]),
        converged=bool(found.converged[0]),
        starts=len(problem.starts),
        agree=agree,
        plain=problem.plain or loss == "squares",
        bounds=problem.bounds,
        reach=reach,
        extra=problem.extra,
        seed=seed,
        warnings=data.warnings + problem.warnings,
    )
    if len(valleys) > 1:
        result.extra["valleys"] = valleys
        best = valleys[0]["objective"]
        shown = [
            ", ".join(f"{k} {v[k]:.3g}" for k in problem.free)
            + f" (+{v['objective'] / best - 1:.2%})"
            for v in valleys[1:4]
        ]
        result.warnings.append(
            f"other optima within 1% of the objective: {'; '.join(shown)}: report the profile"
        )
    _noise(result, p, weights)
    if bootstrap and n > p:
        _resample(problem, result, found.theta, weights, bootstrap, resample)
    elif bootstrap:
        result.warnings.append(
            f"{n} rows for {p} parameters leave nothing to judge the noise by: no intervals"
        )
    result.warnings += doubts.warnings(problem, found.theta[0], result)
    return result


def _search(problem, target, weights, loss, delta) -> tuple[solver.Minimum, float, list[dict]]:
    """The best minimum over all starts, the share of starts that reach it, others within 1%.

    Least absolute deviations are approached by Huber losses of falling delta; plain squares
    overflow far from the data and start where squares of logs end.
    """
    stages = [(loss, _widths(loss, delta)[0])] * 2
    if stages[0][1] != delta:
        stages[0] = ("huber", 1e-2)
    elif loss == "squares" and not problem.plain:
        stages[0] = ("log_squares", delta)
    theta, owner = problem.starts, np.arange(len(problem.starts))
    found = solver.Minimum(theta, np.zeros(0), np.zeros(0), np.zeros(0, bool))
    for stage, width in stages:
        # Starts that the box or the descent has brought together go on as one.
        theta, place = np.unique(np.round(theta, 6), axis=0, return_inverse=True)
        owner = place.ravel()[owner]
        many = None if weights is None else np.broadcast_to(weights, (len(theta), len(weights)))
        objective = problem.objective(stage, width)
        box = problem.lower, problem.upper
        found = solver.minimise(objective, theta, *box, target, many, 80, 1e-8)
        theta = found.theta
    best = np.nanmin(found.value)
    if not np.isfinite(best):
        raise ValueError(
            f"{problem.law} cannot be evaluated at any of its {len(problem.starts)} starts"
        )
    close = found.value[owner] <= best * (1 + SAME) + 1e-10 * len(target)
    order = np.argsort(found.value)
    apart = [order[0]]
    for i in order[
        : np.searchsorted(found.value[order], best * 1.01 + 1e-10 * len(target), "right")
    ]:
        if (
            found.converged[i]
            and min(np.abs(found.theta[i] - found.theta[j]).max() for j in apart) > 0.2
        ):
            apart.append(i)
    chosen = np.unique([*order[:4], *apart[:8]])
    few = None if weights is None else np.broadcast_to(weights, (len(chosen), len(weights)))
    found = _polish(problem, found.theta[chosen], target, few, loss, delta)
    order = np.argsort(found.value)
    valleys: list[int] = []
    for i in order[found.value[order] <= found.value[order[0]] * 1.01]:
        if all(np.abs(found.theta[i] - found.theta[j]).max() > 0.2 for j in valleys):
            valleys.append(int(i))
    params = problem.natural(found.theta)
    others = [
        {k: float(v[i]) for k, v in params.items()} | {"objective": float(found.value[i])}
        for i in valleys
    ]
    top = order[:1]
    return (
        solver.Minimum(*(column[top] for column in found)),
        float(close.mean()),
        others if best > 1e-9 else [],
    )


def _widths(loss: str, delta: float) -> list[float]:
    """Huber widths on the way to a narrow one: least absolute deviations are the limit."""
    goal = 1e-7 if loss == "absolute" else delta
    if loss not in ("absolute", "huber") or goal >= 1e-4:
        return [goal]
    return [*(w for w in (1e-4, 1e-5, 1e-6) if w > 2 * goal), goal]


def _polish(problem, theta, target, weights, loss, delta) -> solver.Minimum:
    """Minimise to the end from near the minimum."""
    found = solver.Minimum(theta, np.zeros(0), np.zeros(0), np.zeros(0, bool))
    for width in _widths(loss, delta):
        objective = problem.objective(loss, width)
        found = solver.minimise(
            objective, found.theta, problem.lower, problem.upper, target, weights, 200, 1e-13
        )
    return found


def _noise(result: fit.Fit, p: int, weights: np.ndarray | None) -> None:
    """The scale of the noise from the residuals, at least that between repeats (seeds)."""
    difference = doubts.difference(result, result.y)
    squares = difference**2 if weights is None else weights * difference**2
    result.sigma = float(np.sqrt(squares.sum() / max(result.n - p, 1)))
    floor = doubts.seed_noise(result)
    if floor is not None:
        result.extra["seed_noise"] = floor
        result.sigma = max(result.sigma, floor)


def _resample(problem, result, theta, weights, bootstrap, resample) -> None:
    n, p = result.n, theta.shape[1]
    groups, n_groups = result.data.groups, result.n_runs
    rng = np.random.default_rng((result.seed, 0))
    mode = resample
    if mode == "auto":
        mode = "runs" if n_groups >= max(MANY, 6 * p) else "noise"
    target = result.y if problem.plain else np.log(result.y)
    w = None if weights is None else np.broadcast_to(weights, (bootstrap, n))
    if mode == "runs":
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=bootstrap)[
            :, groups
        ]
        w = counts if w is None else counts * w
        target = np.broadcast_to(target, (bootstrap, n))
    else:
        chi = np.sqrt((n - p) / rng.chisquare(n - p, size=bootstrap))
        if n_groups == n:
            scale = (
                result.sigma
                if weights is None
                else result.sigma * np.sqrt(weights.mean() / weights)
            )
            noise = chi[:, None] * scale * rng.standard_normal((bootstrap, n))
        else:
            factor = np.sqrt(n_groups / max(n_groups - p, 1)) * rng.standard_normal(
                (bootstrap, n_groups)
            )
            noise = factor[:, groups] * doubts.difference(result, result.y)
        fitted = result.fitted
        if problem.plain:
            target = fitted + noise
        elif result.plain:
            target = np.log(np.maximum(fitted + noise, 1e-3 * fitted))
        else:
            target = np.log(fitted) + noise
        result.sigmas = result.sigma * chi
    thetas = theta.repeat(bootstrap, 0)
    found = _polish(problem, thetas, target, w, result.loss, result.delta)
    good = np.isfinite(found.value) & np.isfinite(found.theta).all(1)
    if good.mean() < 0.95:
        result.warnings.append(
            f"{1 - good.mean():.0%} of the resamples could not be fitted and are left out"
        )
    draws = problem.natural(found.theta[good])
    draws |= problem.derive(draws)
    moving = {k: v for k, v in draws.items() if k not in problem.fixed}
    result.ensemble = {k: np.broadcast_to(v, good.sum()) for k, v in moving.items()}
    result.sigmas = None if result.sigmas is None else result.sigmas[good]
    result.resampling = f"{bootstrap} resamples of {mode}"
