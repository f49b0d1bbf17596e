"""Tests of the predictions, the text and the JSON form of a fit."""

import json

import numpy as np
import pytest

from lm.laws.forms import power_laws

N = np.geomspace(3e4, 3e6, 7)


def rows(seed=0, noise=0.004, sizes=N):
    rng = np.random.default_rng(seed)
    return [
        {"name": f"r{i}", "params": n, "loss": (1.2 + 30 * n**-0.3) * np.exp(noise * z)}
        for i, (n, z) in enumerate(zip(sizes, rng.standard_normal(len(sizes)), strict=True))
    ]


@pytest.fixture(scope="module")
def fit():
    return power_laws.power(rows(), x="params", y="loss")


def test_fit_prints_its_formula_with_intervals(fit):
    line = str(fit).splitlines()[0]
    assert line.startswith("L(N) = 1.225 + 32.37 N^-0.309") and line.endswith("n = 7 runs")
    assert "alpha 0.309 [0." in line


def test_fit_prints_its_columns_loss_and_backtest(fit):
    text = str(fit)
    assert "N = params, L = loss" in text and "log_squares" in text and "back-test:" in text
    huber = power_laws.power(rows(), x="params", y="loss", loss="huber", bootstrap=0)
    assert "huber delta 0.001" in str(huber)


def test_fit_converts_to_json_exactly(fit):
    stored = json.loads(json.dumps(fit.to_dict()))
    assert stored["params"] == fit.params and stored["n"] == 7
    assert stored["intervals"]["alpha"] == list(fit.interval("alpha"))


def test_predicted_value_is_inside_its_interval(fit):
    scalar = fit.predict(6e6)
    assert scalar.lo < scalar.value < scalar.hi and isinstance(scalar.value, float)
    array = fit.predict([1e6, 6e6])
    assert array.value[1] == pytest.approx(scalar.value) and array.lo.shape == (2,)
    assert fit.predict({"params": "6e6"}).value == scalar.value


def test_measurement_interval_is_wider_than_that_of_the_law(fit):
    law, measurement = fit.predict(1e6, noise=False), fit.predict(1e6)
    assert measurement.hi - measurement.lo > law.hi - law.lo
    wide = fit.predict(1e6, level=0.99)
    assert wide.hi - wide.lo > measurement.hi - measurement.lo


def test_extrapolation_beyond_reach_has_a_note(fit):
    assert fit.predict(6e6).note == ""
    far = fit.predict(3e8)
    assert far.factor == pytest.approx(100) and "100 times beyond the fitted N" in str(far)


def test_predict_rejects_inputs_that_are_not_positive(fit):
    for value in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="must be a positive number"):
            fit.predict(value)
    with pytest.raises(ValueError, match="needs N, got 2"):
        fit.predict(1, 2)


def test_unknown_interval_lists_the_known_names():
    fit = power_laws.power(rows(), x="params", y="loss", bootstrap=50)
    with pytest.raises(ValueError, match="known: .*alpha"):
        fit.interval("beta")


def test_equal_seeds_have_equal_intervals():
    first, second = (
        power_laws.power(rows(), x="params", y="loss", bootstrap=100, seed=3) for _ in range(2)
    )
    assert first.intervals == second.intervals
    assert first.predict(6e6).lo == second.predict(6e6).lo
