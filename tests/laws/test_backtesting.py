"""Tests of back-tests, hold-outs, and comparisons of laws and counting conventions."""

import json
from typing import Any

import numpy as np
import pytest

from lm.laws import backtesting
from lm.laws.forms import power_laws

NAMES: dict[str, Any] = {"n": "params", "d": "tokens", "y": "loss"}


def rows(noise=0.002):
    rng = np.random.default_rng(0)
    return [
        {
            "name": f"{n:.3g}x{m}",
            "params": n,
            "total": n + 50 * n**0.6,
            "tokens": n * m,
            "flops": 6 * n * n * m,
            "loss": (1.8 + 300 * n**-0.34 + 700 * (n * m) ** -0.28)
            * np.exp(noise * rng.standard_normal()),
        }
        for n in np.geomspace(1e7, 1e9, 6)
        for m in (5, 20, 80)
    ]


@pytest.fixture(scope="module")
def fit():
    return power_laws.chinchilla(rows(), **NAMES, loss="log_squares")


def test_backtest_predicts_only_larger_levels(fit):
    score = backtesting.backtest(fit)
    products = {row["name"]: row["params"] * row["tokens"] for row in rows()}
    ascending_names = sorted(products, key=lambda name: products[name])
    for prediction in score.predictions:
        assert ascending_names.index(prediction["name"]) >= prediction["trained_on"]
        relative_error = prediction["value"] / prediction["measured"] - 1
        assert prediction["error"] == pytest.approx(relative_error)
    assert score.n_origins >= 3 and score.mean < 0.02
    assert 0.8 <= score.coverage <= 1
    assert str(score) in str(fit)
    n_rows = len(score.predictions)
    text = f"{n_rows} held-out rows, predicted by {score.n_origins} fits to other rows, mean error"
    assert text in str(score)


def test_backtest_excludes_the_trunks_of_its_targets():
    branches = [{**row, "start.run": f"{row['params']:.3g}", "start.restore": "full_state"}
                for row in rows()]  # fmt: skip
    options: dict[str, Any] = {**NAMES, "loss": "log_squares", "bootstrap": 0}
    fit = power_laws.chinchilla(branches, **options)
    fitted_trunks: dict[int, set[str]] = {}

    def record_refit(part, **changes):
        fitted_trunks[len(part)] = {row["start.run"] for row in part}
        return power_laws.chinchilla(part, **options)

    fit.refit = record_refit
    score = backtesting.backtest(fit)
    assert score.n_origins >= 2
    trunks = {row["name"]: row["start.run"] for row in branches}
    for prediction in score.predictions:
        assert trunks[prediction["name"]] not in fitted_trunks[prediction["trained_on"]]


def test_backtest_ranks_by_a_given_column(fit):
    score = backtesting.backtest(fit, by="params")
    sizes = {row["name"]: row["params"] for row in rows()}
    assert all(prediction["trained_on"] % 3 == 0 for prediction in score.predictions)
    assert min(sizes[prediction["name"]] for prediction in score.predictions) > 1e7


def test_backtest_reports_the_signed_error_by_distance():
    """Losses that stop falling are predicted too low, and more so at larger distances."""
    sizes = np.geomspace(1e6, 1e10, 9)
    capped = [
        {"name": f"{n:.3g}", "params": n, "loss": 1.5 + 60 * min(n, 1e9) ** -0.25} for n in sizes
    ]
    score = power_laws.power(capped, x="params", y="loss", bootstrap=50).score
    table = score.by_distance
    assert [line["up_to"] for line in table] == sorted(line["up_to"] for line in table)
    assert sum(line["n"] for line in table) == len(score.predictions)
    assert table[-1]["signed_error"] < 0
    assert f"{table[-1]['signed_error']:+.2%}" in str(score) and "signed error" in str(score)
    assert score.to_dict()["by_distance"][0]["n"] == table[0]["n"]
    json.dumps(score.to_dict(), allow_nan=False)


def test_backtest_of_too_few_levels_has_a_reason():
    few = power_laws.power(rows()[::6], x="params", y="loss", bootstrap=0)
    assert "none possible" in str(few.score)


def test_holdout_returns_error_and_coverage(fit):
    larger_runs = [
        {
            "name": "big",
            "params": 4e9,
            "tokens": 8e10,
            "loss": 1.8 + 300 * 4e9**-0.34 + 700 * 8e10**-0.28,
        }
    ]
    score = backtesting.holdout(fit, larger_runs)
    assert score.mean < 0.01 and score.coverage == 1


def test_compare_laws_ranks_by_held_out_error(fit):
    candidates = {
        "N and D": fit,
        "N alone": power_laws.power(rows(), x="params", y="loss"),
        "C alone": power_laws.power(rows(), x="flops", y="loss"),
    }
    table = backtesting.compare_laws(candidates)
    assert table.rows[0]["form"] == "N and D"
    errors = [row["held-out error"] for row in table.rows]
    assert errors == sorted(errors) and "held-out error" in str(table)


def test_compare_conventions_has_a_row_per_convention():
    table = backtesting.compare_conventions(
        power_laws.power, rows(), x=["params", "total"], y="loss", bootstrap=100
    )
    assert [row["x"] for row in table.rows] == ["params", "total"]
    assert table.rows[0]["alpha"] < table.rows[1]["alpha"]
    assert "alpha 95%" in str(table)
    by_set = backtesting.compare_conventions(
        power_laws.power,
        [{**r, "set": k} for r in rows() for k in "ab"],
        by="set",
        x="params",
        y="loss",
        bootstrap=0,
    )
    assert [row["set"] for row in by_set.rows] == ["a", "b"]


def test_backtest_of_many_rows_has_fewer_starts(fit, monkeypatch):
    n_starts = []

    def refit(rows, **options):
        part = power_laws.chinchilla(rows, **NAMES, loss="log_squares", bootstrap=0)
        n_starts.append((len(rows), options["max_starts"]))
        return part

    monkeypatch.setattr(fit, "refit", refit)
    monkeypatch.setattr(backtesting, "STARTS_TIMES_ROWS", 1000)
    backtesting.backtest(fit)
    assert n_starts and all(n == max(64, 1000 // rows) for rows, n in n_starts)


def test_errors_are_grouped_by_the_distance_from_the_fit():
    distances = [1.5, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 31.0, float("nan")]
    predictions = [
        {"distance": d, "error": 0.01 * (i + 1) * (-1) ** i, "lo": 1.0, "hi": 2.0, "measured": i}
        for i, d in enumerate(distances)
    ]
    table = backtesting.BacktestScore(predictions).by_distance
    assert [row["up_to"] for row in table] == [2, 4, 10, 30, float("inf")]
    assert [row["n"] for row in table] == [2, 2, 1, 2, 1]
    assert [row["signed_error"] for row in table] == pytest.approx(
        [-0.005, -0.005, 0.05, 0.005, -0.08]
    )
    assert [row["mean_error"] for row in table] == pytest.approx([0.015, 0.035, 0.05, 0.065, 0.08])
    assert [row["coverage"] for row in table] == [0.5, 0.5, 0, 0, 0]
