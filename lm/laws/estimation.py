"""Fit of a law to rows: multi-start optimization, bootstrap and diagnostics.

Legend: S starts, B resamples, n rows, p free parameters. theta is the vector of the free parameters
in unit scale.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from lm.laws import (
    diagnostics,
    fit,
    form_uncertainty,
    random_effects,
    run_table,
    solver,
)
from lm.laws.goodness_of_fit import form_tests

SAME_OBJECTIVE = 1e-4  # two objectives within this fraction of each other are the same optimum
NEARBY_OPTIMUM = 1.01  # optima up to this multiple of the best objective are reported
MIN_DISTANCE = 0.2  # between two optima, in theta
MIN_RESAMPLED_RUNS = 30  # with fewer runs, noise is resampled instead of runs


@dataclass
class FitProblem:
    """Law to be fitted: its objective over theta, and the map from theta to parameters."""

    law: str
    formula: str
    columns: dict[str, str]
    inputs: list[str]
    objective: Callable[[str, float], solver.Objective]  # (loss, delta) -> objective
    starts: np.ndarray  # [S, p]
    lower: np.ndarray
    upper: np.ndarray
    natural: Callable[[np.ndarray], dict[str, np.ndarray]]  # theta [S, p] -> parameters, each [S]
    values: Callable[..., np.ndarray]  # (parameters, *inputs) -> value of the law
    free: list[str] = field(default_factory=list)
    fixed: dict[str, float] = field(default_factory=dict)
    derive: Callable[[dict[str, Any]], dict[str, Any]] = lambda params: {}
    watch: list[str] = field(default_factory=list)  # warn if their interval is wide
    additive_noise: bool = False  # the objective compares y, not log y
    bounds: tuple[float, float] = (0.0, float("inf"))
    warnings: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        """Column of the predicted quantity."""
        return self.columns[next(k for k in self.columns if k not in self.inputs)]

    def target(self, data: run_table.RunTable) -> np.ndarray:
        """Return the values that the objective compares with: y or log y [n]."""
        y = data.columns[self.output]
        return y if self.additive_noise else np.log(y)


def try_fit(law: Callable[..., Any], rows: run_table.Rows, **options: Any) -> tuple[Any, str]:
    """Return (law(rows, **options), ""), or (None, reason) if the rows do not determine the law."""
    if not callable(law):
        raise ValueError(f"law={law!r} must be a law, such as laws.power")
    try:
        return law(rows, **options), ""
    except ValueError as error:
        return None, str(error)


def fit_problem(
    problem: FitProblem,
    data: run_table.RunTable,
    options: fit.FitOptions,
    weights: np.ndarray | None = None,
) -> fit.Fit:
    """Fit a problem from all its starts, refine the best minima, and refit to resamples.

    weights: weight of each row, [n]; their scale does not matter. resample="runs" draws whole runs
    with replacement. resample="noise" adds Gaussian noise to the fitted law. Its variance in each
    resample is s^2 (n - p) / chi^2 with n - p degrees of freedom. The intervals of few runs are
    therefore as wide as those of Student's t. If rows share a run or a trunk run, the noise has a
    part of the group and an own part, and each resample draws both variances: see
    `random_effects`, which states the simulated coverage.

    resample="auto" draws runs if there are at least MIN_RESAMPLED_RUNS and at least six per
    parameter. Otherwise it adds noise: with six runs and three parameters, most resamples of runs
    cannot be fitted.

    A parameter that the rows do not determine has no interval (`diagnostics.find_undetermined`).
    The resamples assume the form of the law; `form_uncertainty` adds the error of the form to
    predictions. Raises ValueError if there are fewer rows than parameters.
    """
    n, p = len(data), len(problem.lower)
    _check_problem(problem, n)
    problem = _limit_starts(problem, options.max_starts)
    target = problem.target(data)
    unit = 1.0 if weights is None else float(weights.mean())
    weights = None if weights is None else weights / unit  # the fit ignores the scale of weights
    minimum, start_agreement, optima = _search(problem, target, weights, options)
    result = _build_fit(problem, data, options, minimum)
    result.objective, result.start_agreement = float(minimum.value[0]) * unit, start_agreement
    if len(optima) > 1:
        result.optima = optima
        result.warnings.append(_describe_optima(problem.free, optima))
    _estimate_noise(result, p, weights)
    n_points = len(np.unique(np.stack(result.x, 1), axis=0))
    if n > p >= n_points:
        result.warnings.append(
            f"{n_points} different inputs for {p} parameters: nothing tests the form of the law"
        )
    if options.bootstrap and n > p:
        _resample(problem, result, minimum.theta, weights, options)
    elif options.bootstrap:
        result.warnings.append(
            f"{n} rows for {p} parameters leave no residuals to estimate the noise: no intervals;"
            f" at least {p + 1} rows have them"
        )
    _find_undetermined(problem, minimum.theta[0], result)
    if result.ensemble and all((x > 0).all() for x in result.x):
        result.form_sampler = partial(form_uncertainty.sample_deviations, row_weights=weights)
    if n > p and result.n_runs == n and weights is None:
        result.warnings += random_effects.find_shared_noise(result)
    result.warnings += diagnostics.diagnose(problem, minimum.theta[0], result)
    if not problem.additive_noise:
        result.warnings += diagnostics.describe_ranges(result)
    result.warnings += form_tests.check_form(problem, minimum.theta[0], result, weights)
    return result


def _check_problem(problem: FitProblem, n: int) -> None:
    """Raise ValueError for no free parameter, or fewer rows than parameters."""
    if not problem.free:
        raise ValueError(
            f"{problem.law} has no free parameter, fixed={problem.fixed}: leave at least one free"
        )
    p = len(problem.lower)
    if n < p:
        raise ValueError(
            f"{problem.law} has {p} free parameters and only {n} rows: add runs or fix a parameter"
        )


def _find_undetermined(problem: FitProblem, theta: np.ndarray, result: fit.Fit) -> None:
    """Store the parameters that the rows do not determine, with a warning."""
    names, is_undetermined = diagnostics.find_undetermined(problem, theta, result)
    names += [n for n in diagnostics.find_unbounded(problem, theta, result) if n not in names]
    result.undetermined, result.undetermined_at = names, is_undetermined
    if not names:
        return
    names = ", ".join(name for name in result.undetermined if name in result.free)
    result.warnings.append(
        f"the rows do not determine {names}: other values fit equally well. Add runs with other "
        f"values of {' and '.join(problem.inputs)}, or fix a parameter"
    )


def _limit_starts(problem: FitProblem, max_starts: int | None) -> FitProblem:
    """Return the problem with an evenly spaced part of its starts."""
    if not max_starts or len(problem.starts) <= max_starts:
        return problem
    used = np.linspace(0, len(problem.starts) - 1, max_starts).round().astype(int)
    return replace(problem, starts=problem.starts[used])


def _build_fit(
    problem: FitProblem, data: run_table.RunTable, options: fit.FitOptions, minimum: solver.Minimum
) -> fit.Fit:
    """Return the fit at a minimum, without its noise and ensemble."""
    params = {name: float(v[0]) for name, v in problem.natural(minimum.theta).items()}
    return fit.Fit(
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
        loss=options.loss,
        delta=options.delta,
        objective=float(minimum.value[0]),
        gradient=float(minimum.gradient[0]),
        converged=bool(minimum.converged[0]),
        n_starts=len(problem.starts),
        start_agreement=1.0,
        additive_noise=problem.additive_noise or options.loss == "squares",
        bounds=problem.bounds,
        reach=options.reach,
        seed=options.seed,
        warnings=data.warnings + problem.warnings,
    )


def _describe_optima(free: list[str], optima: list[dict[str, float]]) -> str:
    best = optima[0]["objective"]
    shown = [
        ", ".join(f"{k} {v[k]:.3g}" for k in free) + f" (+{v['objective'] / best - 1:.2%})"
        for v in optima[1:4]
    ]
    return (
        f"other parameters have an objective within 1% of the best: {'; '.join(shown)}; the"
        " function lm.laws.profile shows the range of each parameter"
    )


def _search(
    problem: FitProblem, target: np.ndarray, weights: np.ndarray | None, options: fit.FitOptions
) -> tuple[solver.Minimum, float, list[dict[str, float]]]:
    """Return the best minimum, the fraction of starts that reach it, and all optima within 1%."""
    rough, owner = _minimize_from_starts(problem, target, weights, options)
    best = np.nanmin(rough.value)
    if not np.isfinite(best):
        raise ValueError(
            f"{problem.law} cannot be evaluated at any of its {len(problem.starts)} starts"
        )
    rounding = 1e-10 * len(target)
    is_best = rough.value[owner] <= best * (1 + SAME_OBJECTIVE) + rounding
    order = np.argsort(rough.value)
    n_near = np.searchsorted(rough.value[order], best * NEARBY_OPTIMUM + rounding, "right")
    distinct = [order[0]]
    for i in order[:n_near]:
        if rough.converged[i] and _is_apart(rough.theta, i, distinct):
            distinct.append(i)
    chosen = np.unique([*order[:4], *distinct[:8]])
    repeated = _repeat(weights, len(chosen))
    final = _polish(problem, rough.theta[chosen], target, repeated, options.loss, options.delta)
    order = np.argsort(final.value)
    indices: list[int] = []
    for i in order[final.value[order] <= final.value[order[0]] * NEARBY_OPTIMUM]:
        if _is_apart(final.theta, i, indices):
            indices.append(int(i))
    params = problem.natural(final.theta)
    optima = [
        {k: float(v[i]) for k, v in params.items()} | {"objective": float(final.value[i])}
        for i in indices
    ]
    first = solver.Minimum(*(column[order[:1]] for column in final))
    return first, float(is_best.mean()), optima if best > 1e-9 else []


def _is_apart(theta: np.ndarray, i: int, others: list[int]) -> bool:
    """Return True if theta[i] has at least the minimum distance from the others."""
    return all(np.abs(theta[i] - theta[j]).max() > MIN_DISTANCE for j in others)


def _repeat(weights: np.ndarray | None, n_problems: int) -> np.ndarray | None:
    return None if weights is None else np.broadcast_to(weights, (n_problems, len(weights)))


def _minimize_from_starts(
    problem: FitProblem, target: np.ndarray, weights: np.ndarray | None, options: fit.FitOptions
) -> tuple[solver.Minimum, np.ndarray]:
    """Return the distinct minima from all starts, and the index of the minimum of each start.

    The absolute loss is approximated by Huber losses of decreasing delta. Squares of the loss
    overflow far from the data, so they start from the minimum of squares of logs.
    """
    stages = [(options.loss, _huber_deltas(options.loss, options.delta)[0])] * 2
    if stages[0][1] != options.delta:
        stages[0] = ("huber", 1e-2)
    elif options.loss == "squares" and not problem.additive_noise:
        stages[0] = ("log_squares", options.delta)
    theta, owner = problem.starts, np.arange(len(problem.starts))
    minima = solver.Minimum(theta, np.zeros(0), np.zeros(0), np.zeros(0, bool))
    for loss, delta in stages:
        # Starts that became equal by the bounds or by the first stage are optimized once.
        theta, inverse = np.unique(np.round(theta, 6), axis=0, return_inverse=True)
        owner = inverse.ravel()[owner]
        minima = solver.minimize(
            problem.objective(loss, delta),
            theta,
            problem.lower,
            problem.upper,
            target,
            _repeat(weights, len(theta)),
            80,
            1e-8,
        )
        theta = minima.theta
    return minima, owner


def _huber_deltas(loss: str, delta: float) -> list[float]:
    """Return decreasing deltas. The absolute loss is approximated by a small delta."""
    last = 1e-7 if loss == "absolute" else delta
    if loss not in ("absolute", "huber") or last >= 1e-4:
        return [last]
    return [*(d for d in (1e-4, 1e-5, 1e-6) if d > 2 * last), last]


def _polish(problem, theta, target, weights, loss, delta) -> solver.Minimum:
    """Return the final minimum of each problem from a theta near it."""
    minimum = solver.Minimum(theta, np.zeros(0), np.zeros(0), np.zeros(0, bool))
    for width in _huber_deltas(loss, delta):
        objective = problem.objective(loss, width)
        minimum = solver.minimize(
            objective, minimum.theta, problem.lower, problem.upper, target, weights, 200, 1e-13
        )
    return minimum


def _estimate_noise(result: fit.Fit, p: int, weights: np.ndarray | None) -> None:
    """Set the scale of the noise: that of the residuals, at least that between repeats (seeds)."""
    residuals = diagnostics.residuals(result, result.y)
    squares = residuals**2 if weights is None else weights * residuals**2
    result.sigma = float(np.sqrt(squares.sum() / max(result.n - p, 1)))
    result.seed_noise = diagnostics.seed_noise(result)
    if result.seed_noise is not None:
        result.sigma = max(result.sigma, result.seed_noise)


def _resample(
    problem: FitProblem,
    result: fit.Fit,
    theta: np.ndarray,
    weights: np.ndarray | None,
    options: fit.FitOptions,
) -> None:
    """Refit the law to resamples and store the parameters as the ensemble of the result."""
    n, p, bootstrap = result.n, theta.shape[1], options.bootstrap
    n_groups = result.n_runs
    rng = np.random.default_rng((result.seed, 0))
    mode = options.resample
    if mode == "auto":
        mode = "runs" if n_groups >= max(MIN_RESAMPLED_RUNS, 6 * p) else "noise"
    row_weights = None if weights is None else np.broadcast_to(weights, (bootstrap, n))
    if mode == "runs":
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=bootstrap)
        counts = counts[:, result.data.groups]
        row_weights = counts if row_weights is None else counts * row_weights
        targets = np.broadcast_to(problem.target(result.data), (bootstrap, n))
    else:
        targets = _noisy_targets(problem, result, theta[0], weights, bootstrap, rng)
    thetas = theta.repeat(bootstrap, 0)
    minima = _polish(problem, thetas, targets, row_weights, result.loss, result.delta)
    is_valid = np.isfinite(minima.value) & np.isfinite(minima.theta).all(1)
    with np.errstate(all="ignore"):
        draws = problem.natural(minima.theta)
    for values in draws.values():
        is_valid &= np.isfinite(values)
    if not is_valid.any():
        result.warnings.append("no resample could be fitted: no intervals")
        return
    if is_valid.mean() < 0.95:
        result.warnings.append(
            f"{1 - is_valid.mean():.0%} of the resamples could not be fitted and are excluded"
        )
    draws = {k: np.broadcast_to(v, bootstrap)[is_valid] for k, v in draws.items()}
    draws |= problem.derive(draws)
    free = {k: v for k, v in draws.items() if k not in problem.fixed}
    result.ensemble = {k: np.broadcast_to(v, is_valid.sum()) for k, v in free.items()}
    result.sigmas = None if result.sigmas is None else result.sigmas[is_valid]
    result.resampling = f"{bootstrap} resamples of {mode}"


def _noisy_targets(
    problem: FitProblem,
    result: fit.Fit,
    theta: np.ndarray,
    weights: np.ndarray | None,
    bootstrap: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return targets [B, n], the law with new noise, and set the noise scale of each resample."""
    n, p = result.n, len(theta)
    if result.n_runs < n:
        noise = random_effects.draw_group_noise(result, weights, bootstrap, rng)
    else:
        chi = np.sqrt((n - p) / rng.chisquare(n - p, size=bootstrap))
        result.sigmas = result.sigma * chi
        scale = (
            result.sigma if weights is None else result.sigma * np.sqrt(weights.mean() / weights)
        )
        noise = chi[:, None] * scale * rng.standard_normal((bootstrap, n))
    fitted = result.fitted
    if problem.additive_noise:
        return fitted + noise
    if result.additive_noise:
        return np.log(np.maximum(fitted + noise, 1e-3 * fitted))
    return np.log(fitted) + noise
