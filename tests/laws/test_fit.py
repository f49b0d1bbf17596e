"""Output of a fit: predictions with intervals, text, JSON."""

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


def test_a_fit_prints_as_a_formula_with_intervals(fit):
    line = str(fit).splitlines()[0]
    assert line.startswith("L(N) = 1.225 + 32.37 N^-0.309") and line.endswith("n = 7 runs")
    assert "alpha 0.309 [0." in line


def test_a_fit_prints_its_columns_loss_and_back_test(fit):
    text = str(fit)
    assert "N = params, L = loss" in text and "log_squares" in text and "back-test:" in text
    huber = power_laws.power(rows(), x="params", y="loss", loss="huber", bootstrap=0)
    assert "huber delta 0.001" in str(huber)


def test_a_fit_converts_to_json_exactly(fit):
    back = json.loads(json.dumps(fit.to_dict()))
    assert back["params"] == fit.params and back["n"] == 7
    assert back["intervals"]["alpha"] == list(fit.interval("alpha"))


def test_a_prediction_has_a_value_inside_its_interval(fit):
    one = fit.predict(6e6)
    assert one.lo < one.value < one.hi and isinstance(one.value, float)
    many = fit.predict([1e6, 6e6])
    assert many.value[1] == pytest.approx(one.value) and many.lo.shape == (2,)
    assert fit.predict({"params": "6e6"}).value == one.value


def test_a_new_measurement_is_less_certain_than_the_law(fit):
    law, new = fit.predict(1e6, noise=False), fit.predict(1e6)
    assert new.hi - new.lo > law.hi - law.lo
    wide = fit.predict(1e6, level=0.99)
    assert wide.hi - wide.lo > new.hi - new.lo


def test_an_extrapolation_beyond_reach_is_marked(fit):
    assert fit.predict(6e6).note == ""
    far = fit.predict(3e8)
    assert far.factor == pytest.approx(100) and "100 times beyond the fitted N" in str(far)


def test_an_input_that_is_not_positive_is_refused(fit):
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="must be a positive number"):
            fit.predict(wrong)
    with pytest.raises(ValueError, match="needs N, got 2"):
        fit.predict(1, 2)


def test_an_unknown_interval_lists_the_known_names():
    fit = power_laws.power(rows(), x="params", y="loss", bootstrap=50)
    with pytest.raises(ValueError, match="known: .*alpha"):
        fit.interval("beta")


def test_the_same_seed_gives_the_same_intervals():
    a, b = (power_laws.power(rows(), x="params", y="loss", bootstrap=100, seed=3) for _ in range(2))
    assert a.intervals == b.intervals and a.predict(6e6).lo == b.predict(6e6).lo
