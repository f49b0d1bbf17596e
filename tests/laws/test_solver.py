"""Tests of the batched minimizer: gradients, bounds, independence of problems."""

import numpy as np
import pytest
from scipy import optimize

from lm.laws import solver

N = np.geomspace(1e7, 1e10, 30)
LOG_Y = np.log(1.7 + 400 * N**-0.34) + 0.01 * np.sin(np.arange(30))
LOWER, UPPER = np.array([-10.0, -40.0, 0.0]), np.array([5.0, 40.0, 5.0])
START = np.array([[0.0, 3.0, 0.2]])


def objective(loss, delta=1e-3):
    ones, centered = np.ones(30), np.log(N) - np.log(N).mean()
    terms = [
        solver.Term([0], ones[:, None], 0 * ones),
        solver.Term([1, 2], np.stack([ones, -centered], 1), 0 * ones),
    ]
    return solver.log_sum_exp(terms, 3, loss, delta)


@pytest.mark.parametrize("loss", solver.LOSSES)
def test_gradient_and_hessian_equal_finite_differences(loss):
    function, theta, step = objective(loss, 0.1), np.array([[0.3, -0.4, 0.3]]), 1e-6
    _, gradient, hessian, _ = function(theta, LOG_Y, None)
    for i, unit in enumerate(np.eye(3)):
        up, down = (function(theta + s * step * unit, LOG_Y, None) for s in (1, -1))
        assert gradient[0, i] == pytest.approx((up[0][0] - down[0][0]) / (2 * step), rel=1e-5)
        if loss != "absolute":
            assert hessian[0, i] == pytest.approx((up[1][0] - down[1][0]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("loss", ["huber", "squares", "log_squares"])
def test_minimum_is_not_above_that_of_scipy(loss):
    function = objective(loss)
    minimum = solver.minimize(function, START, LOWER, UPPER, LOG_Y)

    def scaled(theta):
        value, gradient, *_ = function(theta[None], LOG_Y, None)
        return 1e6 * value[0], 1e6 * gradient[0]

    reference = optimize.minimize(scaled, START[0], jac=True, method="L-BFGS-B", tol=1e-14)
    assert minimum.value[0] <= reference.fun / 1e6 * (1 + 1e-6)
    assert minimum.converged[0] and minimum.gradient[0] < 1e-4


def test_problems_of_a_batch_are_independent():
    starts = np.array([[0.0, 3.0, 0.2], [0.5, -1.0, 1.0], [-1.0, 0.0, 0.05]])
    weights = np.random.default_rng(0).integers(0, 3, (3, 30)).astype(float)
    function = objective("huber")
    batch = solver.minimize(function, starts, LOWER, UPPER, LOG_Y, weights)
    for i in range(3):
        part = slice(i, i + 1)
        single = solver.minimize(function, starts[part], LOWER, UPPER, LOG_Y, weights[part])
        assert single.theta[0] == pytest.approx(batch.theta[i], abs=1e-7)


def test_parameter_at_its_bound_converges():
    minimum = solver.minimize(
        objective("log_squares"), START, LOWER, np.array([5.0, 40.0, 0.25]), LOG_Y
    )
    assert minimum.theta[0, 2] == 0.25
    assert minimum.gradient[0] < 1e-4


def test_absolute_loss_is_the_limit_of_a_small_delta():
    minimum = solver.minimize(objective("absolute", 1e-7), START, LOWER, UPPER, LOG_Y)
    value, *_ = objective("log_squares")(minimum.theta, LOG_Y, None)
    assert minimum.value[0] == pytest.approx(
        np.abs(LOG_Y - np.log(np.exp(minimum.theta[0, 0]) + law(minimum.theta[0]))).sum(), rel=1e-4
    )
    assert value[0] > 0


def law(theta):
    return np.exp(theta[1] - theta[2] * (np.log(N) - np.log(N).mean()))


def test_curve_and_log_sum_exp_have_the_same_minimum():
    def log_f(theta):
        floor, term = np.exp(theta[:, :1]), np.stack([law(t) for t in theta])
        centered = np.log(N) - np.log(N).mean()
        total = floor + term
        return np.log(total), np.stack([floor / total, term / total, -centered * term / total], -1)

    for loss in ("huber", "log_squares"):
        by_curve = solver.minimize(solver.curve(log_f, loss, 1e-3), START, LOWER, UPPER, LOG_Y)
        by_terms = solver.minimize(objective(loss), START, LOWER, UPPER, LOG_Y)
        assert by_curve.value[0] == pytest.approx(by_terms.value[0], rel=1e-6)


@pytest.mark.parametrize("loss", ["huber", "squares", "log_squares"])
def test_derivatives_of_a_curve_equal_those_of_its_terms(loss):
    """Gauss-Newton is exact for squares of logs only where the residuals are 0."""
    centered = np.log(N) - np.log(N).mean()

    def log_f(theta):
        floor, term = np.exp(theta[:, :1]), np.exp(theta[:, 1:2] - theta[:, 2:] * centered)
        total = floor + term
        return np.log(total), np.stack([floor / total, term / total, -centered * term / total], -1)

    theta = np.array([[0.3, -0.4, 0.3]])
    log_y = log_f(theta)[0][0] if loss == "log_squares" else LOG_Y
    by_terms = objective(loss, 0.1)(theta, log_y, None)
    for by_curve, expected in zip(solver.curve(log_f, loss, 0.1)(theta, log_y, None), by_terms,
                                  strict=True):  # fmt: skip
        assert by_curve == pytest.approx(expected, rel=1e-4, abs=1e-6)
