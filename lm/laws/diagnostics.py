"""Diagnostics of a fit: residuals, undetermined parameters, lack of fit, and warnings.

Legend: n rows, p free parameters, P points.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit, solver

STEP = 1e-4  # relative step of a finite difference
# Smallest eigenvalue of a scaled Gauss-Newton matrix along which the solver finds a minimum.
RANK_TOLERANCE = 1e-8
MAX_STANDARD_ERROR = 3.0  # of a direction of theta, in e-folds, that the rows determine
MAX_RELATIVE_ERROR = 1.0  # of a parameter along a direction that is not determined
MAX_LAW_ERROR = 0.5  # standard error of log f at a point that has an interval
MIN_SENSITIVITY = 1e-3  # change of log f per e-fold of a parameter below which its column is unused
SIGNIFICANCE = 0.05  # of a test, divided by the number of tests
MIN_ROWS_OF_RUNS_TEST = 10
MAX_TESTED_ROWS = 20  # rows of the largest residuals that are tested for being outliers
MIN_OFFSET = 0.01  # of a law that is above or below all rows, for a warning
MIN_SPARE_ROWS = 2  # rows more than parameters below which a fit has a warning


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
    RANK_TOLERANCE: the matrix has no full rank. For example, two token budgets leave E, B and beta
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
    has_rank = eigenvalues > RANK_TOLERANCE
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


def check_form(
    problem: Any, theta: np.ndarray, result: fit.Fit, weights: np.ndarray | None
) -> list[str]:
    """Return the results of the tests for outliers and for lack of fit, if they are significant.

    problem: an `estimation.FitProblem`. theta: the minimum [p]. weights: row weights [n] or None.
    """
    n, p = result.n, len(theta)
    n_points = len(np.unique(np.stack(result.x, 1), axis=0))
    if p < n_points < p + MIN_SPARE_ROWS:
        return [
            f"{n_points} different inputs for {p} parameters hardly test the form of the law: add "
            "runs"
        ]
    if n < p + MIN_SPARE_ROWS or result.undetermined or not result.converged:
        return []
    rows = np.argsort(-np.abs(residuals(result, result.y)))[:MAX_TESTED_ROWS]
    included = np.ones((len(rows) + 1, n))
    included[np.arange(len(rows)) + 1, rows] = 0
    included = included if weights is None else included * weights
    loss = "squares" if result.loss == "squares" else "log_squares"
    minima = solver.minimize(
        problem.objective(loss, result.delta),
        np.tile(theta, (len(included), 1)),
        problem.lower,
        problem.upper,
        problem.target(result.data),
        included,
    )
    outliers = describe_outliers(result, rows, minima.value[0], minima.value[1:], p)
    return outliers + lack_of_fit(result)


def lack_of_fit(law_fit: fit.Fit) -> list[str]:
    """Return the signs that the form of the law does not describe the rows.

    The residuals are regressed on the square of each log input, and of the log product of the
    inputs, after projection onto the complement of the Jacobian (F test with 1 and n - p - 1
    degrees of freedom). The number of runs of equal signs, by the product of the inputs, is
    compared with that of a random order (Wald and Wolfowitz 1940). The tests need two rows more
    than parameters; rows of one run count once.
    """
    from scipy import special  # its import takes longer than that of all laws

    errors = -residuals(law_fit, law_fit.y)
    names, (jacobian,) = parameter_jacobian(law_fit, law_fit.x)
    n_spare = law_fit.n_runs - len(names) - 1
    if n_spare < 1 or np.abs(errors).max() < 1e-9 * typical_scale(law_fit) or not names:
        return []
    if min(x.min() for x in law_fit.x) <= 0:
        return []
    logs = dict(zip(law_fit.inputs, np.log(law_fit.x), strict=True))
    if len(logs) > 1:
        logs[" ".join(logs)] = np.sum(list(logs.values()), axis=0)
    basis = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0), full_matrices=False)[0]
    errors = errors - basis @ (basis.T @ errors)
    texts = []
    for letter, log_x in logs.items():
        curve = (log_x - log_x.mean()) ** 2
        curve = curve - basis @ (basis.T @ curve)
        length = np.linalg.norm(curve)
        if length < 1e-6 * max(np.ptp(log_x) ** 2, 1e-12):
            continue
        explained = float(curve @ errors / length)
        rest = float(errors @ errors) - explained**2
        t = abs(explained) / np.sqrt(max(rest, 1e-300) / n_spare)
        p_value = 2 * special.stdtr(n_spare, -t)
        if p_value < SIGNIFICANCE / len(logs):
            texts.append(
                f"the residuals are curved in log {letter} (p = {p_value:.2g}): the form does not "
                "describe these rows"
            )
    order = np.argsort(list(logs.values())[-1], kind="stable")
    p_value = _runs_test(errors[order])
    if law_fit.n_runs >= MIN_ROWS_OF_RUNS_TEST and p_value < SIGNIFICANCE / 2:
        texts.append(
            f"neighboring rows have residuals of equal sign (runs test, p = {p_value:.2g}): the "
            "form does not describe these rows"
        )
    return texts


def _runs_test(errors: np.ndarray) -> float:
    """Return the probability of so few runs of equal signs in a random order (normal limit)."""
    from scipy import special

    is_positive = errors > 0
    n_positive, n = int(is_positive.sum()), len(errors)
    n_negative = n - n_positive
    if min(n_positive, n_negative) < 2:
        return 1.0
    n_runs = 1 + int((is_positive[1:] != is_positive[:-1]).sum())
    mean = 1 + 2 * n_positive * n_negative / n
    variance = (mean - 1) * (mean - 2) / (n - 1)
    return float(special.ndtr((n_runs + 0.5 - mean) / np.sqrt(variance)))


def describe_outliers(
    law_fit: fit.Fit, rows: np.ndarray, objective: float, objectives_without: np.ndarray, p: int
) -> list[str]:
    """Return a text for each row whose removal lowers the sum of squares significantly.

    rows: indices of the tested rows. objective: minimal sum of squares of all rows.
    objectives_without: minimal sum without each tested row. The statistic is that of a shift of one
    row, t^2 = (S - S_i) (n - p - 1) / S_i, with Bonferroni's correction for n rows (Cook and
    Weisberg 1982).
    """
    from scipy import special

    n_spare = law_fit.n - p - 1
    rounding = 1e-18 * law_fit.n * typical_scale(law_fit) ** 2
    if n_spare < 1 or objective <= rounding:
        return []
    without = np.maximum(objectives_without, rounding)
    t = np.sqrt(np.maximum(objective - without, 0) * n_spare / without)
    p_values = np.minimum(1, 2 * law_fit.n * special.stdtr(n_spare, -t))
    texts = []
    for k in np.argsort(p_values)[:3]:
        if p_values[k] < SIGNIFICANCE:
            i = rows[k]
            error = law_fit.y[i] / law_fit.fitted[i] - 1
            texts.append(
                f"{law_fit.data.names[i]} is an outlier (p = {p_values[k]:.2g}), {error:+.1%} off "
                "this fit: check the run"
            )
    return texts


def diagnose(problem, theta: np.ndarray, result: fit.Fit) -> list[str]:
    """Return the reasons not to trust a fit: convergence, agreement of starts, weak parameters."""
    texts = []
    if not result.converged and result.gradient > 1e-4:
        texts.append(
            f"the optimizer has not converged (scaled gradient {result.gradient:.1e}): do not use "
            "these numbers"
        )
    if np.abs(problem.starts - theta).max(1).min() < 1e-5 and result.gradient > 1e-4:
        texts.append("the solution equals one of its starts: nothing was fitted")
    if result.start_agreement < 0.02 and len(problem.starts) >= 100:
        texts.append(
            f"only {result.start_agreement:.1%} of {len(problem.starts)} starts agree on the "
            "optimum"
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
                    f"{name} is hardly determined, [{lo:.3g}, {hi:.3g}]: the objective is flat "
                    "along it, see its profile"
                )
    return texts
