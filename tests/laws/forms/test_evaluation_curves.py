"""Tests of the last and of smoothed evaluations of runs."""

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
