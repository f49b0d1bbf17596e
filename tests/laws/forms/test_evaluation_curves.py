"""Tests of the last and of smoothed evaluations of runs."""

import numpy as np
import pytest

from lm.laws.forms import evaluation_curves


def curve(losses):
    return [{"run": "a", "tokens": str(i), "loss": str(v)} for i, v in enumerate(losses)]


def test_final_evaluation_is_a_mean_of_the_last_ones():
    (row,) = evaluation_curves.final_evaluations(curve([9, 5, 4, 3]), ["loss"], last=2)
    assert (row["tokens"], row["loss"]) == ("3", 3.5)


def test_smoothing_drops_the_start_and_averages():
    rows = evaluation_curves.smooth_evaluations(
        curve([9, 8, 6, 4, 2]), ["loss"], drop=0.25, window=2
    )
    assert [row["loss"] for row in rows] == [6, 5, 3]


def test_evaluations_out_of_order_are_sorted():
    rows = curve([9, 5, 4, 3])
    ascending, descending = (
        evaluation_curves.final_evaluations(ordered, ["loss"], last=2)
        for ordered in (rows, rows[::-1])
    )
    assert ascending == descending


def test_smoothed_evaluations_are_trailing_means():
    losses = [9.0, 8.0, 6.5, 4.0, 3.5, 2.0, 1.0]
    for window in (1, 2, 3, 5, 9):
        rows = evaluation_curves.smooth_evaluations(
            curve(losses), ["loss"], drop=0.1, window=window
        )
        late = losses[1:]  # a tenth of seven evaluations is rounded up to one
        expected = [np.mean(late[: i + 1][-window:]) for i in range(len(late))]
        assert [row["loss"] for row in rows] == pytest.approx(expected)
    (row,) = evaluation_curves.final_evaluations(curve(losses), ["loss"])
    assert row["loss"] == pytest.approx(np.mean(losses[-5:]))
