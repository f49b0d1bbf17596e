"""Diagnostics of a fit: residuals, undetermined parameters, and warnings.

Legend: n rows, p free parameters, P points.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit

STEP = 1e-4  # relative step of a finite difference
# Smallest eigenvalue of a scaled Gauss-Newton matrix along which the solver finds a minimum.
MIN_EIGENVALUE = 1e-8
# Smallest singular value, relative to the largest, of a matrix whose columns have length 1. The
# finite differences of a Jacobian leave singular values of up to 1e-9 of parallel columns.
RANK_TOLERANCE = 1e-7
MIN_COLUMN = 1e-12  # length of a column, relative to the longest, below which it counts as zero
MAX_STANDARD_ERROR = 3.0  # of a direction of theta, in e-folds, that the rows determine
MAX_RELATIVE_ERROR = 1.0  # of a parameter along a direction that is not determined
MAX_LAW_ERROR = 0.5  # standard error of log f at a point that has an interval
MIN_SENSITIVITY = 1e-3  # change of log f per e-fold of a parameter below which its column is unused
MIN_RANGE = 4.0  # ratio of the largest and the smallest input below which a law has a warning
RANGE_TOLERANCE = 0.98  # of MIN_RANGE, because runs end at a whole number of steps
MIN_OFFSET = 0.01  # of a law that is above or below all rows, for a warning


def seed_noise(result: fit.Fit) -> float | None:
    """Return the pooled standard deviation between replicates, or None without any.

    Replicates have equal inputs and differ only in the seed: see run_table.RunTable.replicates. The
    unit is log y, or y for a fit with additive noise.
    """
    y = result.y if result.additive_noise else np.log(result.y)
    replicates = result.data.replicates(result.x)
    counts = np.bincount(replicates)
    if counts.max() < 2:
        return None
    means = np.bincount(replicates, y) / counts
    return float(np.sqrt(((y - means[replicates]) ** 2).sum() / (counts - 1).sum()))


def residuals(result: fit.Fit, y: np.ndarray) -> np.ndarray:
    """Return the residuals: law - y for additive noise, else their difference in logs."""
    return result.fitted - y if result.additive_noise else np.log(result.fitted) - np.log(y)


def linked_values(
    law_fit: fit.Fit, params: dict[str, float], inputs: list[np.ndarray]
) -> np.ndarray:
    """Return the law at the inputs: f for additive noise, else log f."""
    values = np.asarray(law_fit.values(params, *inputs), float)
    return values if law_fit.additive_noise else np.log(values)


def typical_scale(law_fit: fit.Fit) -> float:
    """Return the scale of the linked values: the mean of y for additive noise, else 1."""
    return float(np.abs(law_fit.y).mean()) if law_fit.additive_noise else 1.0


def parameter_jacobian(
    law_fit: fit.Fit, *inputs: list[np.ndarray]
) -> tuple[list[str], list[np.ndarray]]:
    """Return the derivatives of the linked values by the logs of the free parameters, each [n, p].

    inputs: lists of input arrays [n]; the first list is that of the rows. Return the names of the
    parameters, and a Jacobian per list. A parameter without influence on the rows, such as a floor
    at its bound, has no column.
    """
    names, columns = [], []
    for name in law_fit.free:
        value = law_fit.params[name]
        # The coefficients A, B and E have any magnitude. Exponents near zero need a larger step.
        step = STEP * (abs(value) if name[0].isupper() else max(abs(value), 0.01))
        derivatives = []
        for x in inputs:
            up, down = (
                linked_values(law_fit, {**law_fit.params, name: value + signed_step}, x)
                for signed_step in (step, -step)
            )
            derivatives.append((up - down) / (2 * STEP))
        if np.abs(derivatives[0]).max() > MIN_SENSITIVITY * typical_scale(law_fit):
            names.append(name)
            columns.append(derivatives)
    return names, [
        np.stack([derivatives[i] for derivatives in columns], -1) if columns
        else np.zeros((len(x[0]), 0))
        for i, x in enumerate(inputs)
    ]  # fmt: skip


def orthonormal_basis(matrix: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the columns of a matrix [n, p], after scaling to length 1."""
    lengths = np.linalg.norm(matrix, axis=0)
    columns = matrix[:, lengths > MIN_COLUMN * max(lengths.max(initial=0.0), 1e-300)]
    if not columns.shape[1]:
        return np.zeros((len(matrix), 0))
    columns = columns / np.linalg.norm(columns, axis=0)
    basis, scales, _ = np.linalg.svd(columns, full_matrices=False)
    return basis[:, scales > RANK_TOLERANCE * scales[0]]


def remove_projection(values: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return values [n] or [n, k] minus their projection on an orthonormal basis [n, r]."""
    return values - basis @ (basis.T @ values)


@dataclass(frozen=True)
class FlatDirections:
    """Test of points along directions that the rows hardly determine: see `flat_directions`."""

    pairs: list[list[dict[str, float]]]  # parameters a step above and below the fit, by direction
    errors: list[float]  # standard error of each direction, in e-folds

    def __call__(self, law_fit: fit.Fit, points: list[np.ndarray]) -> np.ndarray:
        """Return a mask of the points where a standard error of the law exceeds MAX_LAW_ERROR."""
        mask = np.zeros(points[0].shape, bool)
        for (above, below), error in zip(self.pairs, self.errors, strict=True):
            change = linked_values(law_fit, above, points) - linked_values(law_fit, below, points)
            slope = np.abs(change) / (2 * STEP * typical_scale(law_fit))
            mask |= slope > max(MIN_SENSITIVITY, MAX_LAW_ERROR / error)
        return mask


def flat_directions(
    problem: Any, theta: np.ndarray, result: fit.Fit
) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions of theta that the rows hardly determine [k, p], and their errors [k].

    A direction is an eigenvector of the Gauss-Newton matrix of the law, scaled to a diagonal of
    ones, of unit length in theta. Its standard error is infinite if its eigenvalue is below
    MIN_EIGENVALUE: the matrix has no full rank. For example, two token budgets leave E, B and beta
    of `chinchilla` one such direction. Directions with errors up to MAX_STANDARD_ERROR are left
    out. problem: an `estimation.FitProblem`. theta: the minimum [p].
    """
    target = problem.target(result.data)
    # The majorizer of squares is 2 J^T J.
    matrix = 0.5 * problem.objective("log_squares", 1.0)(theta[None], target, None)[3][0]
    scale = np.sqrt(np.maximum(np.diag(matrix), 0.0))
    is_used = scale > MIN_SENSITIVITY * max(scale.max(), 1e-300)
    scaled = (matrix / np.outer(scale, scale).clip(1e-300))[np.ix_(is_used, is_used)]
    eigenvalues, vectors = np.linalg.eigh(scaled)
    directions = np.zeros((len(eigenvalues), len(theta)))
    directions[:, is_used] = vectors.T / scale[is_used]
    lengths = np.linalg.norm(directions, axis=1)
    has_rank = eigenvalues > MIN_EIGENVALUE
    sigma = result.sigma
    if result.additive_noise and not problem.additive_noise:
        sigma = sigma / float(np.mean(result.y))  # the objective compares log y
    errors = np.where(has_rank, sigma / np.sqrt(np.where(has_rank, eigenvalues, 1.0)), np.inf)
    errors = errors * lengths
    is_flat = errors > MAX_STANDARD_ERROR
    return (directions / lengths[:, None])[is_flat], errors[is_flat]


def find_undetermined(
    problem: Any, theta: np.ndarray, result: fit.Fit
) -> tuple[list[str], FlatDirections | None]:
    """Return the parameters that the rows do not determine, and a test of points.

    A parameter, also a derived one, is undetermined if its standard error along a direction of
    `flat_directions` exceeds MAX_STANDARD_ERROR e-folds. The test is None if all parameters are
    determined.
    """
    directions, errors = flat_directions(problem, theta, result)
    if not len(directions):
        return [], None
    moved = [problem.natural(theta + sign * STEP * directions) for sign in (1, -1)]
    moved = [values | problem.derive(values) for values in moved]
    names = []
    for name, value in {**result.params, **result.derived}.items():
        change = np.abs(moved[0][name] - moved[1][name]) / (2 * STEP * max(abs(value), 1e-3))
        # A change below MIN_SENSITIVITY is that of rounding.
        if (change > np.maximum(MIN_SENSITIVITY, MAX_RELATIVE_ERROR / errors)).any():
            names.append(name)
    pairs = [
        [{name: float(values[name][k]) for name in result.params} for values in moved]
        for k in range(len(directions))
    ]
    return names, FlatDirections(pairs, errors.tolist())


def find_unbounded(problem: Any, theta: np.ndarray, result: fit.Fit) -> list[str]:
    """Return the free parameters whose draws reach both of their bounds.

    An interval of such a parameter would contain all its allowed values. The number of repeats that
    have value (R_D, R_N) is also unbounded at its bound, which is beyond all repeats of data, and
    if its draws span 4 MAX_STANDARD_ERROR e-folds.
    """
    names = []
    for i, name in enumerate(problem.free):
        if (
            name not in result.ensemble
            or not np.isfinite([problem.lower[i], problem.upper[i]]).all()
        ):
            continue
        ends = np.repeat(theta[None], 2, axis=0)
        ends[:, i] = problem.lower[i], problem.upper[i]
        with np.errstate(all="ignore"):
            low, high = problem.natural(ends)[name]
        if not (np.isfinite([low, high]).all() and low < high):
            continue  # The parameter is a function of several components of theta.
        lo, hi = np.percentile(result.ensemble[name], [2.5, 97.5])
        is_scale = name in problem.watch and name[0].isupper() and lo > 0
        is_at_bound = not problem.lower[i] + 1e-9 < theta[i] < problem.upper[i] - 1e-9
        if is_scale and (is_at_bound or hi > lo * np.exp(4 * MAX_STANDARD_ERROR)):
            names.append(name)
        elif lo <= low + 0.01 * abs(low) and hi >= high - 0.01 * abs(high):
            names.append(name)
    return names


def describe_ranges(result: fit.Fit) -> list[str]:
    """Return a warning for each input whose values are close together."""
    return [
        f"{letter} spans only a factor of {x.max() / x.min():.3g}: add runs, so that it spans at "
        f"least a factor of {MIN_RANGE:g}, or better 30"
        for letter, x in zip(result.inputs, result.x, strict=True)
        if x.max() < RANGE_TOLERANCE * MIN_RANGE * x.min()
    ]


def diagnose(problem, theta: np.ndarray, result: fit.Fit) -> list[str]:
    """Return the reasons not to trust a fit: convergence, agreement of starts, weak parameters."""
    texts = []
    if not result.converged and result.gradient > 1e-4:
        texts.append(
            f"the optimizer has not converged (scaled gradient {result.gradient:.1e}): do not use "
            "these numbers"
        )
    if np.abs(problem.starts - theta).max(1).min() < 1e-5 and result.gradient > 1e-4:
        texts.append("the solution equals one of its starting points: nothing was fitted")
    if result.start_agreement < 0.02 and len(problem.starts) >= 100:
        n_agreeing = round(result.start_agreement * len(problem.starts))
        texts.append(
            f"only {n_agreeing:,} of {len(problem.starts):,} starting points reach the best minimum"
        )
    errors = residuals(result, result.y) / typical_scale(result)
    if result.n > 1 and max(errors.min(), -errors.max()) > MIN_OFFSET:
        side = "above" if errors.min() > 0 else "below"
        texts.append(
            f"the law is {side} every row by at least {np.abs(errors).min():.2g} e-folds: the form,"
            " a bound or a fixed parameter is wrong"
        )
    for i, name in enumerate(problem.free):
        value = result.params[name]
        if name in problem.watch and value == 0:
            texts.append(f"{name} = 0: the loss does not fall with this input")
        elif theta[i] <= problem.lower[i] + 1e-9 or theta[i] >= problem.upper[i] - 1e-9:
            texts.append(f"{name} = {value:.3g} is at its bound: these runs do not determine it")
    for name in problem.watch:
        if name in result.ensemble and name not in result.undetermined:
            lo, hi = result.interval(name)
            if hi > 4 * max(lo, 1e-9):
                texts.append(
                    f"{name} is poorly determined, 95% interval [{lo:.3g}, {hi:.3g}]: add runs over"
                    " a wider range; the function lm.laws.profile shows the values that fit"
                )
    return texts
