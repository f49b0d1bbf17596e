"""Flags of runs that leave their expected curve."""

import dataclasses

import pytest
from fixtures import training_curves

from lm.laws.learning_curves import departures


@pytest.fixture(scope="module")
def curves():
    return training_curves.curves()


def check(curves, step=100, **changes):
    """Check the run of 2K parameters, schedule wsd and rate 0.01, with changes."""
    index = 6
    target = training_curves.curve(curves[index].name, 2000.0, "wsd", 0.01, seed=index, **changes)
    return departures.check_run(curves[:index] + curves[index + 1 :], target.until(step))


def test_healthy_run_is_not_flagged(curves):
    result = check(curves)
    assert not result.is_flagged and str(result) == "expected at step 100"
    assert [test.name for test in result.tests] == ["level", "noise"]


def test_wrong_learning_rate_is_flagged(curves):
    result = check(curves, rate_factor=4.0)
    assert result.is_flagged and "Compare the learning rate" in str(result)


def test_other_batches_are_flagged(curves):
    result = check(curves, batches=1)
    assert result.is_flagged and "batches contain the text" in str(result)


def test_reason_of_a_missing_test_is_named(curves):
    assert "before 20% of its steps" in str(check(curves, step=30))
    few = departures.check_run(curves[:5], curves[6].until(100))
    assert "5 finished runs have its seed, text and batch size, 8 needed" in str(few)
    other_seed = dataclasses.replace(curves[6], settings=curves[6].settings | {"seed": 1})
    assert not departures.check_run(curves[:6], other_seed).is_flagged
    thin = dataclasses.replace(
        curves[6], training_steps=curves[6].training_steps[::9],
        training_losses=curves[6].training_losses[::9],
    )  # fmt: skip
    assert "rows of metrics at common steps" in str(departures.check_run(curves, thin))
