"""Sections of the report: one answer per question, in the order of the page."""

import copy
import dataclasses
import math
import re

import pytest
from fixtures import committed_sweeps, made_up_sweep

from lm.laws import backtesting
from lm.reports import device_cost, report, summary
from lm.reports.audit import prediction_chain
from lm.reports.plots import style
from lm.reports.sections import (
    certainty_section,
    cost_section,
    law_section,
    next_run_section,
    report_sections,
    reproduction_section,
    setup_section,
)
from lm.reports.sections.abilities import ability_section
from lm.reports.tables import long_tables
from lm.runs import records, task_results

HEADINGS = [
    *("What was trained", "The law", "Prediction and result", "The next run", "Abilities"),
    *("Time and cost", "Runs and settings", "How to reproduce it"),
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Return the summary of a finished sweep with 20 tokens per parameter."""
    return summary.load_summary(made_up_sweep.sweep(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def toy_sections(toy) -> dict[str, str]:
    """Return the text of each section of the finished sweep."""
    return {name: visible(html) for name, html in report_sections.all_sections(toy, {}).items()}


def visible(html) -> str:
    """Return the text of HTML without tags, with single spaces."""
    return " ".join(re.sub(r"<[^>]*>", " ", str(html)).split())


def test_each_question_is_answered_in_one_section(toy_sections):
    assert list(toy_sections) == HEADINGS
    for heading, phrase in (
        ("The law", "How sure is the law? Tested up to"),
        ("The next run", "10 times the compute of 1.6M ("),
        ("Abilities", "Improve with size and are above baseline:"),
        ("Time and cost", "Spent:"),
        ("How to reproduce it", "python -m experiments.sweep"),
    ):
        headings = [name for name, text in toy_sections.items() if phrase in text]
        assert headings == [heading], phrase


def test_reproduction_names_the_folder_of_the_runs(toy, toy_sections, monkeypatch):
    command = f"experiments.sweep --sweep=configs/sweeps/toy.py --dir={toy.path.parent}"
    assert command in toy_sections["How to reproduce it"]
    monkeypatch.setattr(toy, "facts", toy.facts | {"archived": True})  # no run of it can continue
    text = visible(report_sections.all_sections(toy, {})["How to reproduce it"])
    assert "--sweep=configs/sweeps/toy.py uv run" in text


def test_setup_has_three_lines_of_models_text_and_recipe(toy):
    text = visible(setup_section.training_setup(toy))
    for phrase in (
        *("6 runs, 6 done", "6 sizes, 31K to 1.61M parameters", "1 seed", "(20 per parameter)"),
        *("docs (docstrings of Python", "tokenizer bytes", "adamw, cosine schedule", "2 cpu"),
    ):
        assert phrase in text


def test_origin_belongs_to_the_full_name_of_a_source(toy):
    """A file of a user may have the short name of a built-in source."""
    sources = {"jsonl:data/code": 0.5, "text:/x/docs": 0.2, "text:/y/tasks": 0.2, "tasks:copy": 0.1}
    text = setup_section.describe_text([toy.rows[0] | {"data.sources": sources}])
    assert text.count("(generated)") == 1 and "Python" not in text
    text = setup_section.describe_text([toy.rows[0] | {"data.sources": {"code": 1.0}}])
    assert "code (source code of Python's standard library)" in text


def test_certainty_states_intervals_and_backtest(toy):
    text = " ".join(certainty_section.describe_certainty(toy))
    interval = r"predicts a loss of \d\.\d+ \[\d\.\d+, \d\.\d+\] \(± \d+\.\d%\)"
    assert re.search(rf"10 times the parameters of the largest fitted run\), it {interval}", text)
    error = r"\d\.\d% of the measured loss"
    assert re.search(rf"predicted 1 larger run, with an error of {error} and inside", text)
    sweep = committed_sweeps.load_sweep("real_ladder")
    text = " ".join(certainty_section.describe_certainty(sweep))
    mean, worst = (f"{error:.1%}" for error in (sweep.fit.score.mean, sweep.fit.score.worst))
    assert f"mean error of {mean} and a largest error of {worst} of the measured loss" in text
    assert "8 of 10 results were inside the 95% interval" in text
    assert "Doubling N removes 1" in law_section.describe_law(toy.fit)


def test_trust_follows_from_the_predicted_run(toy):
    prediction, value = toy.prediction, toy.prediction["value"]
    assert certainty_section.describe_trust(toy).startswith("Tested up to 1.61M parameters")
    changes = {"lo": 0.9 * value, "hi": 0.95 * value, "value": 0.92 * value}
    missed = dataclasses.replace(toy, prediction=prediction | changes)
    text = certainty_section.describe_trust(missed)
    assert text.startswith("Do not trust its intervals beyond the fitted runs: the result of 1.6M")
    unpredicted = dataclasses.replace(toy, prediction=None)
    assert certainty_section.describe_trust(unpredicted).startswith("Tested up to ")
    untested = dataclasses.replace(unpredicted, fit=copy.copy(toy.fit))
    untested.fit.score = backtesting.BacktestScore(reason="none")
    assert certainty_section.describe_trust(untested).startswith("Nothing tests this law")


def test_undetermined_limit_is_an_upper_bound():
    law_fit = committed_sweeps.load_sweep("ability_ladder").fit
    text = law_section.describe_law(law_fit)
    bound = f"{law_fit.intervals['E'][1]:.3g}"
    assert text.endswith(f"These runs do not determine E: it is at most {bound} (95% interval).")
    unknown = copy.copy(law_fit)
    unknown.undetermined = ["E"]  # such a parameter has no interval
    assert law_section.describe_law(unknown).endswith("These runs do not determine E.")


def test_each_law_has_its_own_limit():
    """The interval of E begins at 0 in all three laws, and L(N) is fitted at 10M tokens."""
    sweep = committed_sweeps.load_sweep("ability_ladder")
    text = visible(law_section.law_section(sweep, "", ""))
    assert "limit of this law for large N at 10M tokens, nats per token; not determined" in text
    assert text.count("(not determined)") == 2 and "no size or amount of text" not in text
    assert "Why E differs: " in text and "E in the law of size and of compute and of size" in text
    assert "The intervals of E overlap" in text and "loss that more tokens would remove" in text
    one_law = dataclasses.replace(sweep, laws=dict.fromkeys(sweep.laws, (None, "refused")))
    assert "Why E differs" not in law_section.law_section(one_law, "", "")


def test_tables_of_many_runs_have_the_largest_runs_and_a_link(toy):
    rows = [toy.rows[i % len(toy.rows)] | {"seed": i} for i in range(long_tables.MAX_RUNS + 1)]
    sweep = dataclasses.replace(toy, rows=rows)
    for html in (report_sections._runs(sweep), "".join(report_sections._settings(sweep))):
        assert html.count("<tr>") == html.count("<table") * (1 + long_tables.N_SHOWN) > 0
        assert html.count(f'href="{long_tables.FILE}"') == html.count("<table")


def test_repetition_states_what_is_not_in_a_commit(toy):
    sources = {"data.sources": {"jsonl:x/*.gz": 1.0, "code": 1.0}}
    rows = [
        row | sources | {"code.commit": "abc+" if i else "def"} for i, row in enumerate(toy.rows)
    ]
    facts = toy.facts | {"sweep": "mine.py:1M", "command": "run mine.py:1M"}
    text = reproduction_section.describe_repetition(
        dataclasses.replace(toy, rows=rows, facts=facts)
    )
    assert text == (
        "Repeatable only with the file mine.py, the text files of 1 source, the uncommitted code of"
        " 5 of 6 runs and all 2 commits of the runs."
    )
    committed = dataclasses.replace(toy, rows=[row | {"code.commit": "abc"} for row in toy.rows])
    assert "Repeatable from the commit" in reproduction_section.describe_repetition(committed)
    assert "Not repeatable" in reproduction_section.describe_repetition(
        dataclasses.replace(toy, facts={})
    )


def test_tokens_of_a_trunk_run_are_counted_once():
    sweep = committed_sweeps.load_sweep("ability_ladder")
    spent, ratio = cost_section.describe_cost(sweep, device_cost.DeviceRates())[:2]
    n_all = sum(row[records.TOKENS] for row in sweep.rows)
    n_counted = sum(device_cost.incremental_cost(row, records.TOKENS) for row in sweep.rows)
    tokens, n_runs = style.format_si(n_counted), len(sweep.rows)
    assert n_counted < n_all and f"training FLOPs on {tokens} tokens," in spent
    for n_devices, unit in ((1, "device"), (2, "devices")):
        count = sum(row["devices"] == n_devices for row in sweep.rows)
        assert f"{count} runs on {n_devices} {unit} " in ratio
    table = visible(cost_section.cost_section(sweep, device_cost.DeviceRates(), ""))
    assert f"all {n_runs} started {tokens} {tokens}" in table
    excluded, name = visible(report_sections._excluded_runs(sweep)), sweep.target["name"]
    assert excluded.endswith(f"{name.rpartition('/')[2]} done predicted by the law")


def test_four_lines_below_the_headline_answer_the_first_questions():
    sweep = committed_sweeps.load_sweep("ability_ladder")
    lines = report.overview_lines(sweep)
    error = summary.relative_error(sweep.measured, sweep.prediction["joint"]["value"])
    n_tasks = len(task_results.task_names([sweep.target]))
    assert len(lines) == 4
    assert f"{error} the prediction of the law of size and tokens. These runs do not" in lines[0]
    assert re.search(r"Caution: this is 0\.\d+ tokens per parameter; the published rule", lines[1])
    counts = re.search(r"above baseline in (\d+), .* in (\d+), and neither in (\d+)\.", lines[2])
    assert sum(map(int, counts.groups())) == n_tasks
    assert "Repeatable only with the file first_seed_target.py, the text files of 7" in lines[3]


def test_reproduction_names_commits_file_text_and_start(toy):
    rows = [row | {"code.commit": "abc+" if i else "def"} for i, row in enumerate(toy.rows)]
    facts = toy.facts | {"sweep": "mine.py:x,1M", "command": "run mine.py:x,1M"}
    sweep = dataclasses.replace(toy, rows=rows, facts=facts)
    text = visible(reproduction_section.training_commands(sweep, "report"))
    for phrase in (
        *("git checkout abc run", "several commits: abc (5 runs), def (1 run)"),
        *("not committed: abc (5 runs)", "x,1M are the arguments", "It has no folder"),
        *("Its sources: ", "The sweep command was last called at"),
    ):
        assert phrase in text, phrase


def test_size_for_ten_times_the_compute_keeps_the_ratio(toy):
    """The runs have 20 tokens per parameter, so the size grows by the root of ten."""
    text = next_run_section.describe_size(toy)
    size = made_up_sweep.SIZES["1.6M"] * math.sqrt(10) / 1e6
    assert f"train about {size:.3g}M parameters" in text and "same tokens per parameter" in text


def test_equal_tokens_lead_to_the_published_ratio():
    """A law of size at equal tokens would advise a large model that is hardly trained."""
    sweep = committed_sweeps.load_sweep("real_ladder")
    budget = 10 * max(row["flops"] for row in sweep.finished)
    size = next_run_section._size_by_rule(sweep.fit, budget)
    text = next_run_section.describe_size(sweep)
    assert f"train about {style.format_si(size)} parameters" in text
    assert f"on {style.format_si(20 * size)} tokens. This is the published rule of 20" in text


def test_isoflop_law_divides_the_budget(tmp_path):
    """The best size is 0.1 C^0.5 and the largest budget 8e11 FLOPs."""
    sweep = summary.load_summary(made_up_sweep.isoflop(tmp_path))
    text = next_run_section.describe_size(sweep)
    size, unit = re.search(r"train ([\d.]+)([KM]) parameters", text).groups()
    best = float(size) * {"K": 1e3, "M": 1e6}[unit]
    assert best == pytest.approx(0.1 * 8e12**0.5, rel=0.1) and "gives this division" in text


def test_unfinished_sweep_states_what_is_missing(tmp_path):
    sizes = list(made_up_sweep.SIZES)
    folder = made_up_sweep.sweep(tmp_path, missing=sizes[1:], predict=False)
    sweep = summary.load_summary(folder)
    sections = {name: visible(t) for name, t in report_sections.all_sections(sweep, {}).items()}
    assert "at least 3 sizes besides the predicted run" in sections["The law"]
    assert "Finished sizes: 1." in sections["The law"]
    assert "size unknown, because no law" in sections["The next run"]
    assert "is unknown: only one size is finished" in sections["Abilities"]
    assert "Not finished: 5 runs." in sections["Time and cost"]
    sizes = ("60K", "700K", "1.6M")  # a law of three runs has no intervals
    sweep = summary.load_summary(made_up_sweep.sweep(tmp_path, "few", missing=sizes, predict=False))
    assert "has no intervals: train more runs" in next_run_section.next_runs(sweep)


def test_cost_compares_actual_and_planned_time(toy):
    rates = device_cost.DeviceRates(price_per_device_hour=2.0)
    lines = cost_section.describe_cost(toy, rates)
    assert any(line.startswith("Spent: ") and "FLOPs" in line for line in lines)
    assert any("6 runs took 1.25 times the planned training time" in line for line in lines)
    assert any(line.startswith("price: ") for line in lines)


def test_elapsed_time_is_the_union_of_the_runs():
    """Two sessions of one and two hours, with parallel runs, and a clock that was set back."""
    times = (("10:00", "11:00"), ("10:30", "10:40"), ("20:00", "22:00"), ("23:00", "22:30"))
    day = "2026-01-01T"
    rows = [{"started": f"{day}{a}:00+00:00", "ended": f"{day}{b}:00+00:00"} for a, b in times]
    assert cost_section.elapsed_seconds(rows) == 3 * 3600
    assert cost_section.elapsed_seconds([*rows, {"started": rows[0]["started"]}]) == 0.0
    assert cost_section.elapsed_seconds([]) == 0.0


def test_ratio_by_devices_is_empty_without_planned_times(toy):
    rows = [row | {"devices": 1 + i % 2} for i, row in enumerate(toy.rows)]
    assert cost_section._ratios_by_devices(dataclasses.replace(toy, rows=rows)).count("times") == 2
    without_plan = dataclasses.replace(toy, rows=rows, plan=[])
    assert cost_section._ratios_by_devices(without_plan) == ""


def test_overview_ignores_losses_that_are_not_finite(toy):
    y, names = toy.prediction["y"], toy.prediction["runs"]
    for value in (math.nan, None):
        rows = [row | {y: value} if row["name"] in names else row for row in toy.rows]
        sweep = dataclasses.replace(toy, rows=rows)
        sweep.finished = rows  # may also contain rows without the predicted column
        sentence = report._describe_test(sweep)
        assert "nan" not in sentence and "largest fitted run" not in sentence


def test_archive_explains_only_unverifiable_links(toy):
    sweep = dataclasses.replace(toy, facts=toy.facts | {"archived": True})
    reason = "an archive rounds and shortens records"
    sweep.audit_links = [prediction_chain.Link(prediction_chain.VERIFIED, "")]
    assert reason not in report._describe_test(sweep)
    sweep.audit_links = [prediction_chain.Link(prediction_chain.UNVERIFIABLE, "")]
    assert reason in report._describe_test(sweep)


def test_tasks_with_and_without_trend_are_named(toy, toy_sections):
    lines = ability_section.describe_abilities(toy)
    assert lines[0].startswith("The largest finished model, 1.6M, masters ")
    assert any(line.startswith("Improve with size and are above baseline: ") for line in lines)
    assert any(line.startswith("No trend: ") for line in lines)
    assert "Get worse with size: none." in lines
    excluded = toy_sections["Runs and settings"]
    assert "every run is done and in the law, except 1.6M, which the law predicts." in excluded


def test_counts_of_tasks_are_averaged_over_the_seeds_of_the_largest_size(toy):
    sentence = ability_section.describe_counts(toy)
    largest = max(toy.finished, key=lambda row: row["params.non_embedding"])
    at_chance = {name: 0.0 for name in largest if name.endswith((".accuracy", ".z"))}
    seed = largest | at_chance | {"name": "toy/1.6M-seed1", "seed": 1}
    sweep = dataclasses.replace(toy, rows=[*toy.rows, seed])
    averaged = ability_section.describe_counts(sweep)
    assert averaged.startswith("The largest size has 2 finished runs, such as 1.6M. On average, ")
    counts = [float(re.findall(r"masters ([\d.]+) of", text)[0]) for text in (sentence, averaged)]
    assert counts[1] == counts[0] / 2 > 0


def test_constant_columns_are_one_line(toy_sections):
    text = toy_sections["Runs and settings"]
    assert "The same in all runs: status done" in text and records.N_PARAMS not in text
