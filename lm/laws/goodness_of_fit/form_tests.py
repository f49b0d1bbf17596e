"""Tests of the form of a law: outliers, curved residuals, and the runs test of their signs.

The runs test (Wald and Wolfowitz 1940) counts sequences of residuals with equal signs.

Legend: n rows, p free parameters.
"""

from typing import Any

import numpy as np

from lm.laws import comparability, diagnostics, fit, random_effects, solver

SIGNIFICANCE = 0.05  # of all tests of the form together
OUTLIER_SHARE, CURVATURE_SHARE, RUNS_TEST_SHARE = 0.4, 0.4, 0.2  # of the tests in that level
MIN_ROWS_OF_RUNS_TEST = 10
MAX_TESTED_ROWS = 12  # rows of the largest residuals that are tested for being outliers
# End of the warnings of a form that the tests reject.
MISFIT = "the form of the law does not describe these runs"
MIN_SPARE_ROWS = 2  # rows more than parameters below which a fit has a warning


def check_form(
    problem: Any, theta: np.ndarray, result: fit.Fit, weights: np.ndarray | None
) -> list[str]:
    """Return the results of the tests for outliers and for lack of fit, if they are significant.

    problem: an `estimation.FitProblem`. theta: the minimum [p]. weights: row weights [n] or None.
    All tests together give a false warning for about SIGNIFICANCE of the sweeps. In simulation (150
    sweeps per case, form right, standard error 2%), these were 2 to 7% of sweeps with rows that
    share a run or a trunk run, and 1 to 9% of sweeps of independent rows.
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
    if result.n_runs < n:
        return lack_of_fit(result, weights)
    rows = np.argsort(-np.abs(diagnostics.residuals(result, result.y)))[:MAX_TESTED_ROWS]
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
    return outliers + lack_of_fit(result, weights)


class ShiftTest:
    """t-tests of shifts of the residuals, relative to the noise of independent rows or of runs.

    Rows of one run or trunk run share noise: the rows are whitened with the variances between and
    within runs, see `random_effects`. The variances are estimated without the tested shift.
    """

    def __init__(
        self, law_fit: fit.Fit, jacobian: np.ndarray, weights: np.ndarray | None = None
    ) -> None:
        """Store the residuals and the Jacobian [n, p] of a fit. weights: of its rows [n]."""
        self.weights = np.ones(law_fit.n) if weights is None else weights
        self.root = np.sqrt(self.weights)
        self.jacobian = jacobian / np.linalg.norm(jacobian, axis=0)
        self.residuals = -diagnostics.residuals(law_fit, law_fit.y)
        self.groups = law_fit.data.groups
        self.group_weights = np.maximum(np.bincount(self.groups, self.weights), 1e-300)
        self.counts = np.bincount(self.groups)
        self.is_grouped = law_fit.n_runs < law_fit.n

    def group_means(self, values: np.ndarray) -> np.ndarray:
        """Return the weighted mean of rows [n] over the group of each row, [n]."""
        return (np.bincount(self.groups, self.weights * values) / self.group_weights)[self.groups]

    def projected_residuals(self) -> np.ndarray:
        """Return the residuals minus their weighted projection on the Jacobian, [n]."""
        basis = diagnostics.orthonormal_basis(self.jacobian * self.root[:, None])
        projected = diagnostics.remove_projection(self.residuals * self.root, basis)
        return projected / np.maximum(self.root, 1e-300)

    def p_value(self, direction: np.ndarray) -> float:
        """Return the p-value of a shift along a direction [n], 1 if it is not testable."""
        from scipy import special  # its import takes longer than that of all laws

        weighted, jacobian = direction * self.root, self.jacobian * self.root[:, None]
        shift = _project(weighted, jacobian)
        if np.linalg.norm(shift) < 1e-6 * np.linalg.norm(weighted):
            return 1.0
        extended = np.column_stack([self.jacobian, direction])
        if not self.is_grouped:
            errors, degrees = self.residuals * self.root, len(direction) - extended.shape[1]
            squares = (_project(errors, extended * self.root[:, None]) ** 2).sum()
            own = float(squares) / max(degrees, 1)
            t = abs(shift @ errors) / np.linalg.norm(shift) / np.sqrt(max(own, 1e-300))
            return float(2 * special.stdtr(degrees, -t)) if degrees > 0 else 1.0
        variances = random_effects.estimate_variances(
            self.residuals, extended, self.groups, self.weights
        )
        between, own = variances.estimates
        if own <= 0:
            return 1.0
        shrinkage = 1 - np.sqrt(own / (own + self.group_weights[self.groups] * between))

        def whiten(values: np.ndarray) -> np.ndarray:
            return (values - shrinkage * self.group_means(values)) * self.root / np.sqrt(own)

        jacobian = np.stack([whiten(column) for column in self.jacobian.T], 1)
        shift = _project(whiten(direction), jacobian)
        t = abs(shift @ whiten(self.residuals)) / np.linalg.norm(shift)
        degrees = variances.within_degrees
        group_part = self.group_means(shift / np.maximum(self.root, 1e-300)) * self.root
        if not variances.has_group_noise:
            degrees += variances.between_degrees
        elif (group_part**2).sum() > 0.5 * (shift**2).sum():
            degrees = self.between_degrees(extended)
        return float(2 * special.stdtr(degrees, -t)) if degrees >= 1 else 1.0

    def between_degrees(self, matrix: np.ndarray) -> float:
        """Return the degrees of freedom of the variance between runs (Satterthwaite 1946).

        matrix: directions [n, p] that are projected off. They may leave little of some runs. The
        degrees are (tr A)^2 / tr A^2, where A is the Gram matrix of what remains of the indicators.
        """
        basis = diagnostics.orthonormal_basis(matrix * self.root[:, None])
        sums = random_effects.group_sums(basis, self.groups, self.root)
        lengths = np.bincount(self.groups, self.weights)
        trace = lengths.sum() - (sums**2).sum()
        trace_of_square = (lengths**2).sum() - 2 * (lengths * (sums**2).sum(1)).sum()
        trace_of_square += ((sums.T @ sums) ** 2).sum()
        return float(trace**2 / trace_of_square)


def _project(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return values [n] or [n, k] minus their projection on the columns of a matrix [n, p]."""
    return diagnostics.remove_projection(values, diagnostics.orthonormal_basis(matrix))


def lack_of_fit(law_fit: fit.Fit, weights: np.ndarray | None = None) -> list[str]:
    """Return the signs that the form of the law does not describe the rows.

    The residuals are regressed on the square of each log input, and of the log product of the
    inputs, after projection onto the complement of the Jacobian. The number of runs of equal signs,
    by the product of the inputs, is compared with that of a random order (Wald and Wolfowitz 1940).
    Rows of one run or trunk run are no independent rows, see `ShiftTest`: they have one sign
    together, and their outliers are tested here instead of by `describe_outliers`.
    """
    errors = -diagnostics.residuals(law_fit, law_fit.y)
    names, (jacobian,) = diagnostics.parameter_jacobian(law_fit, law_fit.x)
    if np.abs(errors).max() < 1e-9 * diagnostics.typical_scale(law_fit) or not names:
        return []
    if min(x.min() for x in law_fit.x) <= 0:
        return []
    logs = dict(zip(law_fit.inputs, np.log(law_fit.x), strict=True))
    if len(logs) > 1:
        logs[" ".join(logs)] = np.sum(list(logs.values()), axis=0)
    test = ShiftTest(law_fit, jacobian, weights)
    texts = _describe_grouped_outliers(law_fit, test) if test.is_grouped else []
    limit = SIGNIFICANCE * CURVATURE_SHARE / len(logs)
    for letter, log_x in logs.items():
        p_value = test.p_value((log_x - log_x.mean()) ** 2)
        if p_value < limit:
            texts.append(f"the residuals are curved in log {letter} (p = {p_value:.2g}): {MISFIT}")
    projected, first_rows = test.projected_residuals(), np.unique(test.groups, return_index=True)[1]
    positions = test.group_means(list(logs.values())[-1])[first_rows]
    signs = test.group_means(projected)[first_rows][np.argsort(positions, kind="stable")]
    p_value = _runs_test(signs)
    if law_fit.n_runs >= MIN_ROWS_OF_RUNS_TEST and p_value < SIGNIFICANCE * RUNS_TEST_SHARE:
        texts.append(
            f"neighboring rows have residuals of equal sign (runs test, p = {p_value:.2g}):"
            f" {MISFIT}"
        )
    return texts


def _describe_grouped_outliers(law_fit: fit.Fit, test: ShiftTest) -> list[str]:
    """Return a text for each run, or row of a run, that differs significantly from the others."""
    groups, names = law_fit.data.groups, law_fit.data.names
    projected = test.projected_residuals()
    means = test.group_means(projected)
    largest_runs = np.argsort(-np.abs(means), kind="stable")
    runs = list(dict.fromkeys(groups[largest_runs].tolist()))[:MAX_TESTED_ROWS]
    rows = np.argsort(-np.abs(projected - means))[:MAX_TESTED_ROWS].tolist()
    tests = [("run", int(np.flatnonzero(groups == group)[0]), groups == group) for group in runs]
    tests += [("row", i, np.arange(law_fit.n) == i) for i in rows if test.counts[groups[i]] > 1]
    n_tests = {"run": law_fit.n_runs, "row": law_fit.n}
    ranked = sorted(
        (test.p_value(direction.astype(float)) * 2 * n_tests[kind], kind, i)
        for kind, i, direction in tests
    )
    texts = []
    for p_value, kind, i in ranked[:3]:
        if p_value < SIGNIFICANCE * OUTLIER_SHARE:
            is_branch = bool(comparability.trunk_name(law_fit.data.rows[i]))
            group = "trunk" if is_branch else "run"
            subject = f"the {group} of " if kind == "run" else ""
            members = "branches" if is_branch else "rows"
            other = f"the other {group if kind == 'run' else members}"
            other = f"{other}s" if kind == "run" else f"{other} of its {group}"
            texts.append(
                f"{subject}{names[i]} is an outlier among {other} (p = {p_value:.2g}): check the"
                " run"
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
    rounding = 1e-18 * law_fit.n * diagnostics.typical_scale(law_fit) ** 2
    if n_spare < 1 or objective <= rounding:
        return []
    without = np.maximum(objectives_without, rounding)
    t = np.sqrt(np.maximum(objective - without, 0) * n_spare / without)
    p_values = np.minimum(1, 2 * law_fit.n * special.stdtr(n_spare, -t))
    texts = []
    for k in np.argsort(p_values)[:3]:
        if p_values[k] < SIGNIFICANCE * OUTLIER_SHARE:
            i = rows[k]
            error = law_fit.y[i] / law_fit.fitted[i] - 1
            texts.append(
                f"{law_fit.data.names[i]} is an outlier (p = {p_values[k]:.2g}), {error:+.1%} off "
                "this fit: check the run"
            )
    return texts
