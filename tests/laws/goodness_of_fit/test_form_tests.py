"""Tests of the form of a law on rows that share a run or a trunk run."""

from itertools import combinations

import numpy as np
import pytest
from scipy import special

from lm import laws
from lm.laws import diagnostics, random_effects
from lm.laws.goodness_of_fit import form_tests


def branches(n_trunks, ratios, seed, trunk_noise=0.004, own_noise=0.001):
    """Return branches of trunk runs: rows of one size share the noise of their trunk run."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, n in enumerate(np.geomspace(1e7, 1e9, n_trunks)):
        shared = trunk_noise * rng.standard_normal()
        for ratio in ratios:
            loss = 1.8 + 300 * n**-0.34 + 700 * (n * ratio) ** -0.28
            row = {"name": f"{i}-{ratio:g}", "params": n, "tokens": n * ratio}
            row |= {"start.run": f"trunk {i}", "start.restore": "full_state"}
            row["loss"] = loss * np.exp(shared + own_noise * rng.standard_normal())
            rows.append(row)
    return rows


def checkpoints(seed, loss=lambda n: 1.8 + 300 * n**-0.34):
    """Return three rows of each of twelve runs, which share the noise of the run."""
    rng = np.random.default_rng(seed)
    return [
        {"run": f"run {i}", "step": step, "params": n,
         "loss": loss(n) * np.exp(shared + 0.0005 * rng.standard_normal())}
        for i, n in enumerate(np.geomspace(1e7, 1e9, 12))
        for shared in [0.003 * rng.standard_normal()]
        for step in range(3)
    ]  # fmt: skip


def form_warnings(fit):
    texts = ("outlier", "curved", "runs test")
    return [warning for warning in fit.warnings if any(text in warning for text in texts)]


def fit_grid(rows):
    return laws.chinchilla(rows, n="params", d="tokens", y="loss", loss="log_squares", bootstrap=0)


def fit_size(rows):
    return laws.power(rows, x="params", y="loss", bootstrap=0)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [(0.004, 0.001), (0, 0.004), (0.001, 0.002)])
def test_branches_have_few_false_alarms(noise):
    fits = [fit_grid(branches(7, (10, 28, 80), seed, *noise)) for seed in range(8)]
    assert sum(bool(form_warnings(fit)) for fit in fits) <= 1


@pytest.mark.slow
def test_checkpoints_have_few_false_alarms():
    fits = [fit_size(checkpoints(seed)) for seed in range(40)]
    assert sum(bool(form_warnings(fit)) for fit in fits) <= 4


@pytest.mark.parametrize("trunk", [1, 3, 5])
def test_trunk_with_an_error_of_eight_percent_is_named(trunk):
    rows = branches(7, (10, 28, 80), 0, 0.003)
    for row in rows:
        row["loss"] *= 1.08 if row["start.run"] == f"trunk {trunk}" else 1
    assert any(
        f"the trunk of {trunk}-10 is an outlier" in text for text in form_warnings(fit_grid(rows))
    )


def test_branch_with_an_error_is_named_despite_noisy_trunks():
    rows = branches(8, (10, 28, 80), 0, trunk_noise=0.01)
    rows[10]["loss"] *= 1.02
    (text,) = form_warnings(fit_grid(rows))
    assert text.startswith(
        f"{rows[10]['name']} is an outlier among the other branches of its trunk"
    )


def test_curvature_between_runs_is_reported():
    def broken(n):
        return 1.5 + 120 * n**-0.25 * (1 + (n / 1e8) ** 2) ** -0.15

    fits = [fit_size(checkpoints(seed, broken)) for seed in range(4)]
    assert sum(any("does not describe" in w for w in fit.warnings) for fit in fits) >= 3


def test_weights_scale_the_own_noise_in_a_shift_test():
    """The p-value equals that of generalized least squares with the covariance of the model."""
    rows, rng = branches(7, (10, 20, 40, 80), 1), np.random.default_rng(5)
    weights = rng.uniform(0.05, 4.0, len(rows))
    fit = fit_grid(rows)
    jacobian = diagnostics.parameter_jacobian(fit, fit.x)[1][0]
    direction = (np.arange(len(rows)) == 9).astype(float)
    groups, design = fit.data.groups, np.column_stack([jacobian, direction])
    errors = -diagnostics.residuals(fit, fit.y)
    variances = random_effects.estimate_variances(errors, design, groups, weights)
    between, own = variances.estimates
    covariance = np.diag(own / weights) + between * (groups[:, None] == groups)
    inverse = np.linalg.inv(covariance)
    information = design.T @ inverse @ design
    t = np.linalg.solve(information, design.T @ inverse @ errors)[-1]
    t /= np.sqrt(np.linalg.inv(information)[-1, -1])
    expected = 2 * special.stdtr(variances.within_degrees, -abs(t))
    test = form_tests.ShiftTest(fit, jacobian, weights)
    assert test.p_value(direction) == pytest.approx(expected, rel=1e-3)


def test_constant_weights_do_not_change_a_shift_test():
    fit = fit_grid(branches(7, (10, 28, 80), 1))
    jacobian = diagnostics.parameter_jacobian(fit, fit.x)[1][0]
    direction = (fit.data.groups == 3).astype(float)
    tests = [
        form_tests.ShiftTest(fit, jacobian, weights) for weights in (None, np.full(fit.n, 1.0))
    ]
    assert tests[0].p_value(direction) == tests[1].p_value(direction)


def test_probability_of_few_runs_is_that_of_all_orders():
    """Compare the normal limit with all 252 orders of five signs of each kind."""
    orders = [np.isin(np.arange(10), chosen) for chosen in combinations(range(10), 5)]
    n_runs = np.array([1 + (order[1:] != order[:-1]).sum() for order in orders])
    for order, n in zip(orders[::7], n_runs[::7], strict=True):
        p_value = form_tests._runs_test(np.where(order, 1.0, -1.0))
        assert p_value == pytest.approx((n_runs <= n).mean(), abs=0.015)
    assert form_tests._runs_test(np.array([1.0, -1.0, -1.0, -1.0])) == 1.0


def test_fit_with_one_spare_input_hardly_tests_its_form():
    for n_sizes, is_warned in ((3, False), (4, True), (5, False)):
        rows = [{"n": n, "loss": 1.8 + 300 * n**-0.34 + 1e-4 * (-1) ** i}
                for i, n in enumerate(np.geomspace(1e7, 1e9, n_sizes))]  # fmt: skip
        fit = laws.power(rows, x="n", y="loss", bootstrap=0)
        assert any("hardly test the form" in text for text in fit.warnings) == is_warned


def test_degrees_between_runs_equal_those_of_the_singular_values():
    rows = branches(5, (1, 2, 4), seed=0)
    law_fit = laws.chinchilla(rows, n="params", y="loss", bootstrap=0)
    rng = np.random.default_rng(0)
    jacobian, weights = rng.standard_normal((15, 3)), rng.uniform(0.5, 2, 15)
    test = form_tests.ShiftTest(law_fit, jacobian, weights)
    assert len(test.counts) == 5
    indicators = (test.groups[:, None] == np.arange(5)) * test.root[:, None]
    basis = diagnostics.orthonormal_basis(jacobian * test.root[:, None])
    squares = np.linalg.svd(diagnostics.remove_projection(indicators, basis), compute_uv=False) ** 2
    expected = squares.sum() ** 2 / (squares**2).sum()
    assert test.between_degrees(jacobian) == pytest.approx(expected)
