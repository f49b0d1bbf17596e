"""Back-test, hold-out, and comparison of laws and conventions."""

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


def test_a_back_test_predicts_only_larger_levels(fit):
    score = backtesting.backtest(fit)
    size = {row["name"]: row["params"] * row["tokens"] for row in rows()}
    order = sorted(size, key=lambda name: size[name])
    for one in score.predictions:
        assert order.index(one["name"]) >= one["trained_on"]
        assert one["error"] == pytest.approx(one["value"] / one["measured"] - 1)
    assert score.origins >= 3 and score.mean < 0.02
    assert 0.8 <= score.coverage <= 1
    assert str(score) in str(fit)


def test_a_back_test_can_use_another_column(fit):
    score = backtesting.backtest(fit, by="params")
    sizes = {row["name"]: row["params"] for row in rows()}
    trained = {one["trained_on"] for one in score.predictions}
    assert all(n % 3 == 0 for n in trained)
    assert min(sizes[one["name"]] for one in score.predictions) > 1e7


def test_too_few_levels_have_no_score():
    few = power_laws.power(rows()[::6], x="params", y="loss", bootstrap=0)
    assert "none possible" in str(few.score)


def test_held_out_rows_are_scored_with_coverage(fit):
    new = [
        {
            "name": "big",
            "params": 4e9,
            "tokens": 8e10,
            "loss": 1.8 + 300 * 4e9**-0.34 + 700 * 8e10**-0.28,
        }
    ]
    score = backtesting.holdout(fit, new)
    assert score.mean < 0.01 and score.coverage == 1


def test_laws_are_ranked_by_held_out_error(fit):
    forms = {
        "N and D": fit,
        "N alone": power_laws.power(rows(), x="params", y="loss"),
        "C alone": power_laws.power(rows(), x="flops", y="loss"),
    }
    table = backtesting.compare_laws(forms)
    assert table.rows[0]["form"] == "N and D"
    errors = [row["held-out error"] for row in table.rows]
    assert errors == sorted(errors) and "held-out error" in str(table)


def test_conventions_are_rows_of_a_table():
    table = backtesting.compare_conventions(
        power_laws.power, rows(), x=["params", "total"], y="loss", bootstrap=100
    )
    assert [row["x"] for row in table.rows] == ["params", "total"]
    assert table.rows[0]["alpha"] < table.rows[1]["alpha"]
    assert "alpha 95%" in str(table)
    split = backtesting.compare_conventions(
        power_laws.power,
        [{**r, "set": k} for r in rows() for k in "ab"],
        by="set",
        x="params",
        y="loss",
        bootstrap=0,
    )
    assert [row["set"] for row in split.rows] == ["a", "b"]
