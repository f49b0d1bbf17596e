"""Models of learning curves against direct sums."""

import numpy as np
import pytest

from lm.laws.learning_curves import curve_models

STEPS = np.array([3, 10, 20, 30])
RATES = np.concatenate([[1.0, 2.0, 3.0], np.full(12, 3.0), np.linspace(3.0, 0.3, 15)])


@pytest.mark.parametrize("model", curve_models.MODELS)
def test_benefit_is_zero_until_the_rate_falls(model):
    form = curve_models.MODELS[model]
    benefit = form.benefit(RATES, STEPS, form.benefit_constants[0])
    assert benefit[:2] == pytest.approx(0) and benefit[3] > benefit[2] > 0
    constant = form.benefit(np.ones(30), STEPS, form.benefit_constants[0])
    assert constant == pytest.approx(0)


def test_multi_power_benefit_is_the_sum_over_rate_changes():
    c, beta, gamma = 0.1, 0.5, 0.7
    relative, summed = RATES / 3, np.cumsum(RATES) / 3
    for step, benefit in zip(
        STEPS, curve_models.multi_power_benefit(RATES, STEPS, (c, beta, gamma)), strict=True
    ):
        terms = [
            (relative[k - 1] - relative[k])
            * (1 - (1 + c * relative[k] ** -gamma * (summed[step - 1] - summed[k - 1])) ** -beta)
            for k in range(3, step)
        ]
        assert benefit == pytest.approx(sum(terms), abs=1e-12)


def test_annealing_benefit_is_the_double_sum():
    memory = 5.0
    relative = RATES / 3
    for step, benefit in zip(
        STEPS, curve_models.annealing_benefit(RATES, STEPS, (memory,)), strict=True
    ):
        terms = [
            (relative[k - 1] - relative[k]) * (1 - 1 / memory) ** (i - k)
            for i in range(3, step)
            for k in range(3, i + 1)
        ]
        assert benefit == pytest.approx(sum(terms) / memory, abs=1e-12)


def test_hat_functions_interpolate_between_knots():
    knots, values = np.array([0.0, 1.0, 3.0]), np.array([2.0, 5.0, 1.0])
    x = np.array([-1.0, 0.5, 2.0, 9.0])
    interpolated = curve_models.hat_functions(x, knots) @ values
    np.testing.assert_allclose(interpolated, np.interp(x, knots, values))
    np.testing.assert_allclose(curve_models.hat_functions(x, knots).sum(1), 1)
