"""Tests of the cost of a decision."""

import pytest
from fixtures.recipe_rows import recipe_rows

from lm.laws.recipe_comparison import decision_cost, recipe_verdict


def plan(log_m, slope, noise, n_seeds=2, **columns):
    """Return the comparison of two recipes, and the plan of its decision."""
    rows_a, rows_b = recipe_rows("a", noise=noise, n_seeds=n_seeds, **columns), recipe_rows(
        "b", log_m, slope, noise=noise, n_seeds=n_seeds, **columns
    )  # fmt: skip
    options = recipe_verdict.ComparisonOptions(n_draws=100)
    comparison = recipe_verdict.compare_recipes(rows_a, rows_b, options)
    return comparison, decision_cost.plan_decision(comparison)


def test_open_question_has_cheap_runs_that_decide_it():
    comparison, decision = plan(0.3, 0.0, 0.01, n_seeds=1)
    assert comparison.verdict == "undecided"
    assert decision.pairs and not decision.problem
    assert decision.unit == "seconds"
    assert decision.cost >= 4 * sum(decision.pairs.values())
    assert "minutes on the device of the runs" in str(decision)
    assert "more pair" in str(decision)


def test_clear_comparison_needs_no_further_run():
    comparison, decision = plan(0.5, 0.06, 0.001)
    assert comparison.verdict == "grows"
    assert str(decision) == "decision: no further run is needed"


def test_hopeless_question_is_stated():
    _, decision = plan(0.02, 0.0, 0.5)
    assert "would not decide it" in str(decision)


def test_cost_is_in_flops_without_seconds():
    decision = plan(0.3, 0.0, 0.01, n_seeds=1, seconds=None)[1]
    assert decision.unit == "FLOPs"
    assert "FLOPs" in str(decision)


def test_costs_have_their_unit_without_flops_and_seconds():
    rows = [
        [
            {k: v for k, v in row.items() if k not in ("flops", "seconds")}
            for row in recipe_rows(name, log_m, noise=0.01, n_seeds=1)
        ]
        for name, log_m in (("a", 0.0), ("b", 0.3))
    ]
    options = recipe_verdict.ComparisonOptions(n_draws=100)
    comparison = recipe_verdict.compare_recipes(*rows, options)
    decision = decision_cost.plan_decision(comparison)
    assert comparison.cost == "params.non_embedding" and decision.unit == "parameters"
    assert comparison.to_dict()["sizes"][0]["cost_a"] == pytest.approx(1e4)
    assert str(decision).endswith(" parameters") and "FLOPs" not in str(decision)
