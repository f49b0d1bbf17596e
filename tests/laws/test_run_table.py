"""Selection of rows: exclusions are listed, wrong rows are refused by name."""

import pytest

from lm.laws import run_table
from lm.laws.forms import power_laws

GOOD = [{"name": f"r{i}", "params": 10.0**i, "loss": 5.0 - 0.3 * i} for i in range(3, 9)]


def fit(rows, **options):
    return power_laws.power(rows, x="params", y="loss", bootstrap=0, **options)


def test_an_unknown_column_is_refused_with_the_known_columns():
    with pytest.raises(ValueError, match=r"no row has a column 'flops'.*params, loss"):
        power_laws.power(GOOD, x="flops", y="loss")


def test_diverged_and_unfinished_rows_are_excluded_by_name():
    bad = [
        {"name": "boom", "params": 1e9, "loss": 9.0, "status": "diverged"},
        {"name": "empty", "params": 1e9, "loss": ""},
        {"name": "nan", "params": 1e9, "loss": float("nan")},
        {"name": "soon", "params": 1e9},
    ]
    found = fit(GOOD + bad)
    assert found.n == len(GOOD)
    assert [name for name, _ in found.excluded] == ["boom", "empty", "nan", "soon"]
    assert "status is diverged" in str(found) and "has no loss" in dict(found.excluded)["soon"]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_loss_that_is_zero_or_negative_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"loss must be above 0: odd \("):
        fit([*GOOD, {"name": "odd", "params": 1e9, "loss": value}])


def test_a_duplicate_run_is_refused_by_name():
    with pytest.raises(ValueError, match="duplicate run: r3 and r3"):
        fit([*GOOD, dict(GOOD[0])])


def test_repeats_of_one_run_are_kept_and_resampled_together():
    seeds = [{**row, "loss": row["loss"] * 1.001} for row in GOOD]
    found = power_laws.power(GOOD + seeds, x="params", y="loss", bootstrap=50)
    assert (found.n, found.n_runs) == (12, 6)
    assert found.seed_noise == pytest.approx(0.001 / 2**0.5, rel=0.01)


def test_rows_excluded_by_where_are_listed_with_the_reason():
    rows = [{**row, "keep": i % 2} for i, row in enumerate(GOOD)]
    found = fit(rows, where={"keep": 1})
    assert found.n == 3 and found.excluded[0] == ("r3", "keep is 0, not 1")
    assert fit(rows, where=lambda row: row["keep"] == 1).n == 3
    assert fit(rows, where={"name": ["r3", "r4", "r5", "r6"]}).n == 4


def test_no_rows_and_no_rows_left_are_refused():
    with pytest.raises(ValueError, match="the list is empty"):
        fit([])
    with pytest.raises(ValueError, match="no row is left"):
        fit([{"name": "a", "params": 1.0, "loss": None}])


def curve(losses):
    return [{"run": "a", "tokens": str(i), "loss": str(v)} for i, v in enumerate(losses)]


def test_finals_are_last_rows_with_means_of_the_last_evaluations():
    (row,) = run_table.final_evaluations(curve([9, 5, 4, 3]), ["loss"], last=2)
    assert (row["tokens"], row["loss"]) == ("3", 3.5)


def test_smoothing_drops_the_start_and_takes_trailing_means():
    rows = run_table.smooth_evaluations(curve([9, 8, 6, 4, 2]), ["loss"], drop=0.25, window=2)
    assert [row["loss"] for row in rows] == [6, 5, 3]


def test_evaluations_out_of_order_are_sorted():
    rows = curve([9, 5, 4, 3])
    assert run_table.final_evaluations(rows[::-1], ["loss"], last=2) == run_table.final_evaluations(
        rows, ["loss"], last=2
    )
