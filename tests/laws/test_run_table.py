"""Tests of the selection of rows, of its errors, and of means over evaluations."""

import pytest

from lm.laws import run_table
from lm.laws.forms import power_laws

GOOD = [{"name": f"r{i}", "params": 10.0**i, "loss": 5.0 - 0.3 * i} for i in range(3, 9)]


def fit_power(rows, **options):
    return power_laws.power(rows, x="params", y="loss", bootstrap=0, **options)


def test_unknown_column_lists_the_known_columns():
    with pytest.raises(ValueError, match=r"no row has a column 'flops'.*params, loss"):
        power_laws.power(GOOD, x="flops", y="loss")


def test_unknown_column_of_a_long_row_lists_similar_columns():
    rows = [row | {f"column{i}": i for i in range(100)} for row in GOOD]
    with pytest.raises(ValueError, match="no row has a column 'parms'; the rows have params") as e:
        power_laws.power(rows, x="parms", y="loss")
    assert len(str(e.value)) < 200


def test_runs_without_heldout_text_have_no_law():
    rows = [row | {"data.heldout_fraction": 0.0} for row in GOOD]
    with pytest.raises(ValueError, match="no run has a held-out loss .* data.heldout_fraction=0"):
        power_laws.power(rows, x="params", y="eval.loss")


def test_rows_without_a_result_are_excluded_by_name():
    without_result = [
        {"name": "boom", "params": 1e9, "loss": 9.0, "status": "diverged"},
        {"name": "empty", "params": 1e9, "loss": ""},
        {"name": "nan", "params": 1e9, "loss": float("nan")},
        {"name": "soon", "params": 1e9},
    ]
    fit = fit_power(GOOD + without_result)
    assert fit.n == len(GOOD)
    assert [name for name, _ in fit.excluded] == ["boom", "empty", "nan", "soon"]
    assert "status is diverged" in str(fit) and "has no loss" in dict(fit.excluded)["soon"]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_loss_that_is_not_positive_raises_with_its_row(value):
    with pytest.raises(ValueError, match=r"loss must be above 0: odd \("):
        fit_power([*GOOD, {"name": "odd", "params": 1e9, "loss": value}])


def test_duplicate_rows_raise_with_their_names():
    with pytest.raises(ValueError, match="duplicate run: r3 and r3"):
        fit_power([*GOOD, dict(GOOD[0])])


def test_repeats_of_a_run_are_resampled_together():
    seeds = [{**row, "loss": row["loss"] * 1.001} for row in GOOD]
    fit = power_laws.power(GOOD + seeds, x="params", y="loss", bootstrap=50)
    assert (fit.n, fit.n_runs) == (12, 6)
    assert fit.seed_noise == pytest.approx(0.001 / 2**0.5, rel=0.01)


def test_rows_excluded_by_where_have_a_reason():
    rows = [{**row, "used": i % 2} for i, row in enumerate(GOOD)]
    fit = fit_power(rows, where={"used": 1})
    assert fit.n == 3 and fit.excluded[0] == ("r3", "used is 0, not 1")
    assert fit_power(rows, where=lambda row: row["used"] == 1).n == 3
    assert fit_power(rows, where={"name": ["r3", "r4", "r5", "r6"]}).n == 4


def test_selection_without_rows_raises():
    with pytest.raises(ValueError, match="the list is empty"):
        fit_power([])
    with pytest.raises(ValueError, match="no row is left"):
        fit_power([{"name": "a", "params": 1.0, "loss": None}])


def curve(losses):
    return [{"run": "a", "tokens": str(i), "loss": str(v)} for i, v in enumerate(losses)]


def test_final_evaluation_is_a_mean_of_the_last_ones():
    (row,) = run_table.final_evaluations(curve([9, 5, 4, 3]), ["loss"], last=2)
    assert (row["tokens"], row["loss"]) == ("3", 3.5)


def test_smoothing_drops_the_start_and_averages():
    rows = run_table.smooth_evaluations(curve([9, 8, 6, 4, 2]), ["loss"], drop=0.25, window=2)
    assert [row["loss"] for row in rows] == [6, 5, 3]


def test_evaluations_out_of_order_are_sorted():
    rows = curve([9, 5, 4, 3])
    ascending, descending = (
        run_table.final_evaluations(ordered, ["loss"], last=2) for ordered in (rows, rows[::-1])
    )
    assert ascending == descending
