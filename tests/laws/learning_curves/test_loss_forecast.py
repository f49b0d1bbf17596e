"""Forecasts of unfinished runs, and refusals."""

import dataclasses

import pytest
from fixtures import training_curves

import lm


@pytest.fixture(scope="module")
def curves():
    return training_curves.curves()


@pytest.fixture(scope="module")
def result(curves):
    return lm.laws.forecast(curves, curves[0].until(100))


def test_interval_of_a_forecast_contains_the_final_loss(curves, result):
    assert result.lo < curves[0].final_loss < result.hi
    assert result.value == pytest.approx(curves[0].final_loss, rel=0.005)
    assert result.hi - result.lo < 0.1 and result.n_runs == 11 and result.step == 100
    assert not result.check.is_flagged
    errors = {name: backtest.mean_error for name, backtest in result.backtests.items()}
    assert errors[result.model] == min(errors.values())


def test_printed_forecast_names_all_models(result):
    text = str(result)
    assert "forecast at step 100 of 200 from 11 finished runs" in text
    assert text.count("mean error of the back-test") == 4 and text.count("(selected)") == 1
    assert f"baseline: {result.baseline.value:.4f}" in text and "curve: expected" in text


def test_training_losses_replace_missing_evaluations(curves):
    final_only = [dataclasses.replace(c, steps=c.steps[-1:], losses=c.losses[-1:]) for c in curves]
    result = lm.laws.forecast(final_only, final_only[0].until(100))
    assert result.value == pytest.approx(curves[0].final_loss, rel=0.01)
    assert result.lo < curves[0].final_loss < result.hi


@pytest.mark.parametrize(
    "n_finished, step, change, message",
    [
        (3, 100, {}, "3 finished runs do not suffice: finish at least 4"),
        (8, 30, {}, "a forecast needs 3 and 20% of the steps: train it further"),
        (8, 100, {"corpus.hash": "cd" * 8}, "corpus.hash is abab.* for toy.*, cdcd.* for other"),
    ],
)
def test_insufficient_input_is_refused_in_one_line(curves, n_finished, step, change, message):
    target = dataclasses.replace(
        curves[0].until(step), name="other", settings=curves[0].settings | change
    )
    with pytest.raises(ValueError, match=message) as error:
        lm.laws.forecast(curves[1 : 1 + n_finished], target)
    assert "\n" not in str(error.value)


def test_unknown_run_and_invalid_level_are_refused(curves):
    with pytest.raises(ValueError, match="run='b' is none of runs; unfinished: none"):
        lm.laws.forecast(curves, "b")
    with pytest.raises(ValueError, match="level"):
        lm.laws.forecast(curves, curves[0].until(100), level=95)


def test_runs_without_losses_are_left_out_and_named(curves):
    empty = dataclasses.replace(
        curves[1], steps=curves[1].steps[-1:], losses=curves[1].losses[-1:],
        training_steps=curves[1].steps[:0], training_losses=curves[1].losses[:0],
    )  # fmt: skip
    result = lm.laws.forecast([empty, *curves[2:7]], curves[0].until(100))
    assert result.excluded == [(curves[1].name, "1 losses of its curve are recorded")]
    assert f"left out: {curves[1].name}" in str(result)
