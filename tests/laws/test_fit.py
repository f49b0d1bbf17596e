"""Tests of the predictions, the text and the JSON form of a fit."""

import dataclasses
import json

import numpy as np
import pytest

from lm import laws
from lm.laws.fit import FitOptions
from lm.laws.forms import power_laws
from lm.laws.prediction_intervals import format_interval

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
    assert "huber (delta 0.001)" in str(huber)


def test_fit_counts_the_starting_points_that_reach_its_minimum(fit):
    fit = dataclasses.replace(fit, n_starts=1_600, start_agreement=0.75)
    assert "; 1,200 of 1,600 starting points reach this minimum; " in str(fit)


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


def test_prediction_labels_both_intervals(fit):
    prediction = fit.predict(6e6)
    text = str(prediction)
    assert "95% interval, form uncertainty included" in text and "if the form is right" in text
    assert f"{prediction.lo:.4g}" in text and f"{prediction.hi_if_form_right:.4g}" in text
    assert str(prediction) in str(fit) and "L at twice the largest inputs" in str(fit)
    several = fit.predict([1e6, 6e6])
    assert str(several).startswith("(1.") and str(several).count("[") == 4
    law = fit.predict(6e6, noise=False)
    assert law.hi - law.lo < prediction.hi - prediction.lo


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


def test_fits_without_an_interval_never_print_nan():
    exact = power_laws.power(rows()[:3], x="params", y="loss")
    two = power_laws.power(rows()[:3], x="params", y="loss", floor=False, bootstrap=0)
    shown = [exact, two, exact.predict(1e6), exact.predict([1e6, 2e6]), two.predict(1e6)]
    shown += [laws.compare_laws([exact, two]), laws.holdout(exact, rows()[3:])]
    shown += [laws.allocation({"E": 1, "A": 20, "B": 30, "alpha": 0.3}, 1e15)]
    text = "\n".join(map(str, shown))
    assert "nan" not in text and "inf" not in text
    assert str(exact.predict(1e6)).endswith("no interval") and "; no intervals" in str(exact)
    assert any("no intervals; at least 4 rows have them" in line for line in exact.warnings)
    json.dumps([fit.to_dict() for fit in (exact, two)], allow_nan=False)


def test_infinite_bounds_are_shown_as_unbounded():
    assert format_interval(1.0, float("inf")) == " [1, unbounded]"
    assert format_interval(float("nan"), 2.0) == ""


def test_form_is_untested_if_the_law_passes_through_each_size():
    repeats = [
        row | {"name": f"{row['name']}-{i}", "loss": row["loss"] * (1 + 0.01 * i)}
        for row in rows()[:3]
        for i in range(2)
    ]
    law = power_laws.power(repeats, x="params", y="loss")
    assert "3 different inputs for 3 parameters: nothing tests the form of the law" in law.warnings


def test_inputs_are_accepted_by_name(fit):
    assert fit.predict(N=1e7).value == fit.predict(1e7).value
    two = laws.given("hoffmann2022")
    assert two.predict(D=1.4e12, N=70e9).value == two.predict(70e9, 1.4e12).value
    for inputs, named in (((), {"D": 1e9}), ((1e9,), {"N": 1e9}), ((1e9,), {"levl": 0.9})):
        with pytest.raises(ValueError, match="predict accepts N= all by name"):
            fit.predict(*inputs, **named)


def test_extrapolation_is_the_largest_factor_in_both_directions(fit):
    """The reach itself is no extrapolation. The note names the input that is furthest out."""
    largest, smallest = fit.x[0].max(), fit.x[0].min()
    exact = fit.reach * largest
    assert exact / largest == fit.reach and fit.predict(exact).note == ""
    assert "extrapolation" in fit.predict(1.01 * exact).note
    factor, note = fit._extrapolation([np.array([largest * 2 * fit.reach, smallest / 1e3])])
    assert factor == pytest.approx(max(1e3, 2 * fit.reach)) and note.startswith("1e+03 times")
    assert fit._extrapolation([np.array([smallest, largest])]) == (1.0, "")


def test_interval_has_the_percentiles_of_its_level(fit):
    for level in (0.5, 0.9, 0.95):
        expected = np.quantile(fit.ensemble["alpha"], [(1 - level) / 2, (1 + level) / 2])
        assert fit.interval("alpha", level) == pytest.approx(tuple(expected))


def test_options_of_a_fit_have_documented_defaults():
    """Parameters and tokens have own exponents, and rows must be comparable."""
    options = FitOptions()
    assert (options.tied, options.mixed, options.delta, options.reach) == (False, False, 1e-3, 10.0)
    assert (options.bootstrap, options.seed, options.max_starts) == (1000, 0, None)


def test_collinear_runs_predict_within_a_factor_of_their_line():
    """The distance is that to the line D = 20 N in logs; the position along it is free."""
    rows_on_line = [
        {"N": n, "D": 20 * n, "loss": 1.7 + 400 * n**-0.34 + 400 * (20 * n) ** -0.28}
        for n in np.geomspace(1e7, 1e9, 8)
    ]
    law = power_laws.chinchilla(rows_on_line, n="N", d="D", y="loss", bootstrap=0)
    along = law.predict(1e12, 2e13)
    assert along.factor == pytest.approx(1000) and 1.7 < along.value < 2
    off = 1.4**0.5  # N is multiplied and D divided by this factor
    law.predict(1e8 * off, 2e9 / off)
    with pytest.raises(ValueError, match="a factor 1.6 off it"):
        law.predict(1e8 * 1.6, 2e9 / 1.6)


def test_rows_of_inputs_are_accepted_as_a_list(fit):
    values = fit.predict([{"params": 1e6}, {"params": 6e6}]).value
    assert list(values) == [fit.predict(1e6).value, fit.predict(6e6).value]
    assert fit.predict([{"params": 1e6}]).value == pytest.approx(values[:1])
