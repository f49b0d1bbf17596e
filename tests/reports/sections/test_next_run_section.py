"""Tests of the next runs of a sweep."""

import dataclasses

import pytest
from fixtures import committed_sweeps, made_up_sweep

from lm.laws.design import run_cost
from lm.reports import summary
from lm.reports.plots import style
from lm.reports.sections import next_run_section, report_sections
from lm.reports.tables import ladder_sizes
from lm.runs import records


def test_next_run_narrows_the_target_of_an_unfinished_sweep(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"1.6M": ("running", "")})
    sweep = summary.load_summary(folder)
    plan = next_run_section.plan_next_runs(sweep)
    assert plan.is_sweep_target and plan.target == {"N": made_up_sweep.SIZES["1.6M"]}
    assert plan.budget == pytest.approx(max(row["flops"] for row in plan.law_fit.data.rows))
    assert plan.advice.flops <= plan.budget and plan.advice.after < plan.advice.before
    assert plan.describe_target() == "N = 1.61M (the target of the sweep)"


def test_target_of_a_finished_sweep_is_larger_than_its_runs(tmp_path):
    sweep = summary.load_summary(made_up_sweep.isoflop(tmp_path))
    plan = next_run_section.plan_next_runs(sweep, n_runs=2)
    n, d = plan.law_fit.x
    assert not plan.is_sweep_target and len(plan.advice.runs) == 2
    ratio = plan.target["N"] * plan.target["D"] / (n.max() * d.max())
    assert ratio == pytest.approx(10)


def test_section_has_a_row_per_budget(tmp_path):
    sweep = summary.load_summary(made_up_sweep.sweep(tmp_path))
    text = str(report_sections.all_sections(sweep, {})["The next run"])
    assert text.count("<tr>") == 1 + len(next_run_section.BUDGET_FACTORS)
    assert "nearest size of the ladder" in text and "If the form of the law is right" in text
    assert "(not in this sweep)" in text and "The ladder is the list of model sizes" in text


def test_section_of_a_sweep_without_law_has_the_reason(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, missing=("60K", "120K", "300K", "700K"), predict=False)
    text = str(next_run_section.next_runs(summary.load_summary(folder)))
    assert "No advice on the next run: the sweep has no law" in text


def test_law_without_intervals_gives_no_advice(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, missing=("60K", "120K"), predict=False)
    with pytest.raises(ValueError, match="the law of 3 runs has no intervals: train more runs"):
        next_run_section.plan_next_runs(summary.load_summary(folder))


def test_size_for_ten_times_the_compute_has_these_flops():
    """The archive has FLOPs of the output layer, which are not proportional to the size."""
    sweep = committed_sweeps.load_sweep("real_ladder")
    price = run_cost.cost_of_rows(sweep.fit)
    budget = 10 * max(row["flops"] for row in sweep.finished)
    size = next_run_section._size_at_cost(sweep.fit, budget)
    assert price(size) == pytest.approx(budget, rel=1e-3)
    text = next_run_section.describe_size(sweep)
    assert f"train about {style.format_si(size)} parameters" in text, text
    without_flops = [row | {"flops": 1e12 * (1 + i % 2)} for i, row in enumerate(sweep.rows)]
    law_fit = sweep.fit.refit(without_flops)
    with pytest.raises(ValueError, match="no function of N"):
        next_run_section._size_at_cost(law_fit, budget)


def test_divided_budget_contains_the_output_layer(tmp_path):
    sweep = summary.load_summary(made_up_sweep.isoflop(tmp_path))
    law_fit = sweep.laws["size and tokens"][0]
    sizes = [(row["params.non_embedding"], row["tokens"]) for row in sweep.finished]
    costs = [((6 * n + 1e4 * n**0.3) * d, n, d) for n, d in sizes]
    budget = 10 * max(costs)[0]
    best = next_run_section._divide_budget(law_fit, budget, costs)
    assert (6 * best.n + 1e4 * best.n**0.3) * best.d == pytest.approx(budget, rel=1e-3)


def test_ratio_far_from_the_published_rule_has_a_caution():
    rows = [{"params.non_embedding": 1e6, "tokens": n * 1e6} for n in (5, 80)]
    assert next_run_section.describe_ratio(30, rows).startswith("This is 30 tokens per parameter;")
    assert next_run_section.describe_ratio(0.8, rows) == (
        "Caution: this is 0.8 tokens per parameter; the published rule is 20 (Hoffmann et al."
        " 2022), and the finished runs have 5 to 80."
    )
    text = next_run_section.describe_ratio(1250, rows[:1])
    assert "this is 1,250 tokens" in text and text.endswith("the finished runs have 5.")
    assert "this is 100 tokens" in next_run_section.describe_ratio(100, rows)


def test_nearest_run_is_a_fitted_run_of_the_same_size(tmp_path):
    """A law of size ignores tokens, so another budget of this size is not the nearest run."""
    sweep = committed_sweeps.load_sweep("ability_ladder")
    rows = sweep.fit.data.rows
    text = next_run_section._describe_nearest(sweep, rows, {"N": 1.02e6})
    assert text == " It has nearly the same size as 1M-10M."
    text = next_run_section._describe_nearest(sweep, sweep.finished, {"N": 1.02e6, "D": 2.5e6})
    assert text == " It has nearly the same size and tokens as 1M-2.5M."
    trunk = [row for row in sweep.rows if row["name"].endswith("1M-trunk")]
    assert trunk and next_run_section._describe_nearest(sweep, trunk, {"N": 1.02e6}) == ""
    assert next_run_section._describe_nearest(sweep, rows, {"N": 3e6}) == ""


def test_advice_names_finished_runs_that_cost_nothing():
    text = str(next_run_section.next_runs(committed_sweeps.load_sweep("real_ladder")))
    assert "First fit the law again with 4M-2.5M: it is finished and costs nothing." in text


def test_nearest_size_of_the_ladder():
    assert ladder_sizes.nearest_ladder_size(1.01e6) == "1M"


def test_models_with_much_text_are_not_advised_to_use_less():
    """The rule of 20 tokens per parameter applies if it gives more tokens than the largest run."""
    sweep = committed_sweeps.load_sweep("real_ladder")
    rows = [
        row | {records.TOKENS: 800 * row[records.TOKENS], "flops": 800 * row["flops"]}
        for row in sweep.fit.data.rows
    ]
    law_fit = sweep.fit.refit(rows)
    tokens = style.format_si(max(row[records.TOKENS] for row in law_fit.data.rows))
    much_text = dataclasses.replace(sweep, rows=rows, fit=law_fit, prediction=None)
    budget = 10 * max(row["flops"] for row in rows)
    text = next_run_section._size_without_division(much_text, "", budget).size
    assert f"on {tokens} tokens, the same tokens as the largest run" in text, text
