"""Fits and back-tests of the models on curves with known constants."""

import numpy as np
import pytest
from fixtures import training_curves

from lm.laws.learning_curves import curve_backtest, curve_models


@pytest.fixture(scope="module")
def reference():
    return curve_backtest.Reference(training_curves.curves())


def test_fit_recovers_the_exponent_and_the_benefit(reference):
    """The gain g makes constants equivalent whose benefits are proportional."""
    fitted, _ = reference.fits["multi_power"]
    *constants, alpha = fitted.constants
    assert alpha == training_curves.ALPHA and 0.0005 < fitted.residual < 0.002
    curve = training_curves.curves()[0]
    known, benefit = (
        curve_models.multi_power_benefit(curve.rates, curve.steps, tuple(values))
        for values in (training_curves.CONSTANTS, constants)
    )
    assert np.corrcoef(known, benefit)[0, 1] > 0.995


def test_true_model_has_the_smallest_errors_from_half_the_steps(reference):
    backtests = reference.backtest(0.5)
    errors = {model: backtests[model].mean_error for model in curve_models.MODELS}
    assert errors["multi_power"] < 0.003
    assert errors["multi_power"] <= errors["baseline"] and errors["collapse"] < 0.01
    scores = backtests["multi_power"].scores
    assert 0.3 < np.sqrt((scores**2).mean()) < 2


def test_errors_shrink_as_a_run_goes_on(reference):
    errors = [reference.backtest(f)["collapse"].mean_error for f in (0.2, 0.5, 0.9)]
    assert errors[2] < errors[0]


def test_interval_factor_is_that_of_the_t_distribution():
    scores = np.array([1.0, -1.0, 1.0, -1.0])
    backtest = curve_backtest.ModelBacktest(scores / 100, scores)
    assert backtest.interval_factor() == pytest.approx(3.182 * np.sqrt(1.25), rel=1e-3)
    assert len(backtest.without(0).scores) == 3
