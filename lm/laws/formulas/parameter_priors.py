"""Normal priors of the parameters of a user-defined law.

Legend: p free parameters. theta is the vector of the free parameters in unit scale, see
`custom.CustomModel`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from lm.laws import estimation, fit, run_table, solver

MIN_PRIOR_DRAWS = 100  # with fewer effective draws, prior and data disagree
Priors = Mapping[str, tuple[float, float]]


class Model(Protocol):
    """Parameters of a law, and their map from theta."""

    fixed: dict[str, float]
    is_log: dict[str, bool]
    scales: dict[str, float]

    @property
    def free(self) -> list[str]:
        """Names of the fitted parameters."""
        ...

    def natural(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Convert theta [S, p] to parameters, each [S]."""
        ...


def check_priors(model: Model, priors: Priors, options: fit.FitOptions) -> None:
    """Raise ValueError for invalid priors, and for a loss without a noise variance."""
    if options.loss != "log_squares":
        raise ValueError(f"loss={options.loss!r} has no priors: use log_squares")
    for name, (mean, sd) in priors.items():
        if not (np.isfinite(mean) and np.isfinite(sd) and sd > 0) or name in model.fixed:
            raise ValueError(
                f"priors[{name!r}]=({mean}, {sd}) must have a positive standard deviation, and "
                f"{name} must not be fixed"
            )


def fit_with_priors(
    model: Model,
    problem: estimation.FitProblem,
    priors: Priors,
    data: run_table.RunTable,
    options: fit.FitOptions,
    without: fit.Fit,
    weights: np.ndarray | None,
) -> fit.Fit:
    """Return the fit of maximal posterior density; `without` is the fit without priors."""
    base, noise = problem.objective, without.sigma

    def objective(loss: str, delta: float) -> solver.Objective:
        return _add_priors(base(loss, delta), model, priors, noise)

    problem.objective = objective
    result = estimation.fit_problem(problem, data, replace(options, bootstrap=0), weights)
    names = ", ".join(priors)
    if not without.ensemble:
        return result
    z = [(without.ensemble[k] - mean) / sd for k, (mean, sd) in priors.items()]
    log_weights = -0.5 * (np.stack(z) ** 2).sum(0)
    density = np.exp(log_weights - log_weights.max())
    density = density / density.sum()
    n_effective = 1 / (density**2).sum()
    index = np.random.default_rng((options.seed, 3)).choice(
        len(density), size=len(density), p=density
    )
    result.ensemble = {name: draws[index] for name, draws in without.ensemble.items()}
    result.sigmas = None if without.sigmas is None else without.sigmas[index]
    result.form_sampler = without.form_sampler
    result.resampling = f"{without.resampling}, weighted by the priors of {names}"
    if n_effective < MIN_PRIOR_DRAWS:
        result.warnings.append(
            f"the priors of {names} leave {n_effective:.0f} effective draws: they disagree with the"
            " data or are much narrower, so the intervals are rough"
        )
    return result


def _add_priors(
    objective: solver.Objective, model: Model, priors: Priors, noise: float
) -> solver.Objective:
    """Return the objective with noise^2 ((parameter - mean) / sd)^2 of each prior added."""

    def penalized(theta: np.ndarray, log_y: np.ndarray, weights: np.ndarray | None):
        value, gradient, hessian, majorizer = (
            part.copy() for part in objective(theta, log_y, weights)
        )
        params = model.natural(theta)
        for name, (mean, sd) in priors.items():
            i, factor = model.free.index(name), (noise / sd) ** 2
            offset = params[name] - mean
            slope = params[name] if model.is_log[name] else model.scales[name]
            value += factor * offset**2
            gradient[:, i] += 2 * factor * offset * slope
            bend = offset * slope if model.is_log[name] else 0.0
            hessian[:, i, i] += 2 * factor * (slope**2 + bend)
            majorizer[:, i, i] += 2 * factor * slope**2
        return value, gradient, hessian, majorizer

    return penalized
