"""Report page: completeness, missing runs, escaping, verification of figures."""

import dataclasses
import re
import shutil

import pytest
from fixtures import committed_sweeps, made_up_sweep
from markupsafe import Markup
from matplotlib.figure import Figure

from lm.reports import device_cost, figures, html, report, summary
from lm.reports.plots import style
from lm.reports.sections import forecast_section, prediction_section
from lm.runs import json_files, provenance, records, task_results

HOSTILE = "<img src=x onerror=alert(1)>"
TASK_FIGURES = {
    *("mastered", "abilities", "emergence", "tasks", "tasks_flat", "tasks_vs_loss"),
    "predicted_tasks",
}
FIGURES = TASK_FIGURES - {"predicted_tasks"} | {
    *("loss", "compute", "curves", "completion", "sources", "predicted", "goodput"),
}


@pytest.fixture(scope="module")
def finished_sweep(tmp_path_factory) -> summary.SweepSummary:
    """Return the summary of a finished sweep."""
    return summary.load_summary(made_up_sweep.sweep(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def finished(finished_sweep):
    """Return the folder of a finished sweep and the text of its page."""
    page = report.write_summary(finished_sweep)
    return finished_sweep.path, page.read_text(encoding="utf-8")


@pytest.fixture
def no_forecasts(monkeypatch):
    """Write no forecasts, which have their own tests."""
    monkeypatch.setattr(forecast_section, "loss_forecasts", lambda sweep: Markup())


@pytest.fixture
def page_only(no_forecasts, monkeypatch):
    """Write neither the files of figures nor forecasts."""
    monkeypatch.setattr(style, "save_figure", lambda *_: [])


@pytest.fixture
def text_only(page_only, monkeypatch):
    """Draw no figures, which require most of the time, for tests of the text beside them."""
    monkeypatch.setattr(figures, "all_figures", lambda sweep: {})


def draw_only(monkeypatch, *names: str) -> None:
    """Draw only these figures, for tests of the page around them."""
    available = figures.available_figures

    def select(sweep: summary.SweepSummary) -> dict:
        return {name: drawing for name, drawing in available(sweep).items() if name in names}

    monkeypatch.setattr(figures, "available_figures", select)


def visible_text(text: str) -> str:
    """Return the text of a page without tags, scripts and styles, with single spaces."""
    text = re.sub(r"<(script|style)>.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
    return " ".join(text.split())


def page_text(folder) -> str:
    """Write the report of a sweep and return its visible text."""
    return visible_text(report.write_report(folder).read_text(encoding="utf-8"))


def test_report_path_may_be_text(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, missing=tuple(made_up_sweep.SIZES), predict=False)
    assert report.write_report(str(folder)) == folder / "report.html"
    assert (folder / "report.html").exists()


def test_page_states_prediction_and_result(finished, finished_sweep):
    _, text = finished
    _, expected = summary.headline(finished_sweep)
    assert expected in visible_text(text) and "inside its own 95% interval" in expected
    for name in made_up_sweep.SIZES:
        assert name in visible_text(text)
    assert "Links: 0 verified, 0 contradictions, " in visible_text(text)
    for phrase in ("python -m experiments.sweep", "0123456789abcdef", "versions.jax", "1.25×"):
        assert phrase in visible_text(text)


def test_page_has_task_verdicts_and_correlations(finished):
    text = visible_text(finished[1])
    metric = "probability of the correct answer"
    expected = (
        "copy?length=4",
        "not above baseline",
        "predictable from",
        metric,
        "rank correlation",
    )
    assert [phrase for phrase in expected if phrase not in text.replace("Rank", "rank")] == []


def test_page_has_predicted_task_accuracies(tmp_path, text_only):
    folder = made_up_sweep.sweep(tmp_path)
    prediction = {"copy?length=4": {"value": 0.87, "lo": 0.7, "hi": 1.0}}
    prediction["modular"] = {"refused": "at chance"}
    stored = json_files.read_object(folder / "prediction.json")
    json_files.write_object(folder / "prediction.json", stored | {"tasks": prediction})
    text = page_text(folder)
    drawing = figures.available_figures(summary.load_summary(folder))["predicted_tasks"]
    assert drawing.draw().axes
    assert "0.870 [0.700, 1.000]" in text and "predicted for the target" in text


def test_figures_are_in_the_page_and_in_files(finished):
    folder, text = finished
    files = {path.name for path in (folder / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert text.count("<svg") > text.count("<figcaption") == len(FIGURES)  # one per panel


def test_page_loads_nothing_from_a_network(finished):
    _, text = finished
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe)|@import|url\((?!#)|\bsrc=", text)
    assert "default-src 'none'" in text


def test_every_color_of_the_page_has_a_dark_value(finished):
    folder, text = finished
    used = set(re.findall(r"var\(--c([0-9a-f]{6})", text))
    assert used <= set(re.findall(r"--c([0-9a-f]{6}): #", text))


def test_unfinished_sweep_is_reported_with_reasons(tmp_path, text_only):
    status = {"60K": ("diverged", "loss is nan at step 731"), "700K": ("failed", "disk is full")}
    folder = made_up_sweep.sweep(tmp_path, status=status, missing=("1.6M",))
    text = page_text(folder)
    for expected in ("not started", "loss is nan at step 731", "disk is full", "3 of 6", "missing"):
        assert expected in text


def test_sweep_of_one_run_has_a_reason_instead_of_a_law(tmp_path, text_only):
    folder = made_up_sweep.sweep(tmp_path, missing=tuple(made_up_sweep.SIZES)[1:], predict=False)
    text = page_text(folder)
    assert "No law could be fitted" in text and "No prediction was stored" in text
    assert "parameters without embeddings 31K" in text  # no range and no factor of one size
    available = figures.available_figures(summary.load_summary(folder))
    assert "loss" not in available and "compute" in available


def test_sweep_without_runs_is_a_page_of_missing_runs(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, missing=tuple(made_up_sweep.SIZES), predict=False)
    text = page_text(folder)
    assert text.count("not started") == 6 and "0 of 6" in text
    assert "No run has data for a figure yet" in text


def test_hostile_names_and_reasons_are_escaped(tmp_path, page_only):
    folder = made_up_sweep.sweep(tmp_path, status={"60K": ("diverged", HOSTILE)})
    for name in ("sweep.json", "prediction.json", "plan.json"):
        stored = (folder / name).read_text(encoding="utf-8").replace("toy/30K", f"toy/{HOSTILE}")
        (folder / name).write_text(stored, encoding="utf-8")
    sweep = json_files.read_object(folder / "sweep.json")
    json_files.write_object(folder / "sweep.json", sweep | {"command": HOSTILE, "created": HOSTILE})
    config = json_files.read_object(folder / "120K" / "config.json") | {
        "name": f"toy/120K{HOSTILE}"
    }
    json_files.write_object(folder / "120K" / "config.json", config)
    records.log_event(folder / "60K", 1, 5, f"spike{HOSTILE}", HOSTILE)
    config = json_files.read_object(folder / "30K" / "config.json")
    config["data"]["sources"] = {f"text:{HOSTILE}": 1.0}
    config["eval"]["tasks"] = f"file:{HOSTILE}"
    json_files.write_object(folder / "30K" / "config.json", config)
    text = report.write_report(folder).read_text(encoding="utf-8")
    assert "<img" not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") > 5


def test_changed_law_is_reported(finished, tmp_path, text_only):
    folder = made_up_sweep.sweep(tmp_path)
    expected = "runs changed after the prediction"
    assert expected not in finished[1]
    stored = records.load_evals(folder / "30K")[-1]
    records.append_record(folder / "30K" / "evals.jsonl", stored | {"loss": stored["loss"] * 1.02})
    assert expected in report.write_report(folder).read_text(encoding="utf-8")


def test_verify_finds_changed_runs(finished, tmp_path):
    folder, _ = finished
    figure = folder / "figures" / "loss.svg"
    changed = shutil.copytree(folder, tmp_path / "toy")  # the folder may be moved
    assert figures.verify_figure(figure, changed) == []
    stored = records.load_evals(changed / "30K")[-1]
    records.append_record(changed / "30K" / "evals.jsonl", stored | {"loss": stored["loss"] * 1.02})
    lines = figures.verify_figure(figure, changed)
    assert [line.split(":")[0] for line in lines] == ["run toy/30K changed", "law"]
    style.save_figure(Figure(), tmp_path / "x", {"figure": "y"})
    assert "'y'" in figures.verify_figure(tmp_path / "x.png", folder)[0]


def test_verify_finds_missing_runs_and_changed_code(finished, tmp_path, monkeypatch):
    folder, _ = finished
    incomplete = shutil.copytree(folder, tmp_path / "toy")
    shutil.rmtree(incomplete / "60K")
    monkeypatch.setattr(provenance, "code_hash", lambda name: "0.9.0 00000000")
    lines = figures.verify_figure(folder / "figures" / "loss.png", incomplete)
    assert lines[0] == "run toy/60K is missing"
    version = provenance.package_version()
    assert lines[-1].startswith(f"code: {version} ") and lines[-1].endswith("0.9.0 00000000 now")


def test_live_report_reloads_and_has_no_broken_links(tmp_path, no_forecasts, monkeypatch):
    draw_only(monkeypatch, "loss", "curves")
    folder = made_up_sweep.sweep(tmp_path, status={"60K": ("running", "")}, predict=False)
    text = report.write_report(folder, refresh=12).read_text(encoding="utf-8")
    assert text.count("<figcaption") == 2
    assert 'data-refresh="12"' in text and "figures/loss.png" not in text
    assert not (folder / "figures").exists()
    assert "50% of its tokens" in visible_text(text)


def test_every_law_has_intervals_or_a_reason(finished):
    text = visible_text(finished[1])
    assert re.search(r"compute L\(C\) = .* alpha 0\.\d+ \[0\.\d+, 0\.\d+\]", text)
    assert "size and tokens: all runs have the same relation of N and D" in text
    assert "isoFLOP: a minimum needs several sizes at one budget of compute" in text


def test_events_are_listed_and_escaped(finished, tmp_path, text_only):
    assert "No events." in finished[1]
    folder = made_up_sweep.sweep(tmp_path)
    records.log_event(folder / "30K", 2, 40, "damaged", f"checkpoint 40 is damaged {HOSTILE}")
    text = report.write_report(folder).read_text(encoding="utf-8")
    assert "checkpoint 40 is damaged" in visible_text(text) and HOSTILE not in text


def test_joint_prediction_is_listed_beside_that_of_size(finished_sweep):
    stored = finished_sweep.prediction
    joint = {"value": 1.4, "lo": 1.3, "hi": 1.5, "level": 0.95}
    joint["runs"] = ["toy/30K", "toy/60K", "toy/120K"]

    def section_text(joint: dict) -> str:
        sweep = dataclasses.replace(finished_sweep, prediction=stored | {"joint": joint})
        return visible_text(str(prediction_section.prediction_section(sweep, Markup())))

    text = section_text(joint)
    assert "size and tokens Held-out loss, L (nats per token) 1.400 1.300 to 1.500" in text
    assert "The law of size and tokens was fitted to 30K, 60K, 120K." in text
    text = section_text(joint | {"runs": joint["runs"][:2]})
    assert "is not shown: 2 token budgets do not determine E, B and beta" in text
    text = section_text({"refused": "too few"})
    assert "The law of size and tokens gave no prediction: too few." in text


def test_trunk_run_is_excluded_and_its_cost_counted_once(tmp_path, text_only):
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    flops = records.read_facts(folder / "30K")["flops"]
    config = json_files.read_object(folder / "60K" / "config.json")
    config["start"] |= {"run": "toy/30K", "restore": "full_state"}
    json_files.write_object(folder / "60K" / "config.json", config)
    total_flops = records.read_facts(folder / "60K")["flops"]
    records.write_facts(folder / "60K", **{"parent.flops": flops})
    text = page_text(folder)
    assert "30K done trunk run, represented by its" in text
    assert visible_text(html.superscripts(style.power_of_ten(total_flops - flops))) in text
    row = next(row for row in summary.load_summary(folder).rows if row["name"] == "toy/60K")
    assert device_cost.incremental_cost(row, "flops") == total_flops - flops


def test_runs_on_other_token_budgets_are_excluded(tmp_path, text_only):
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    for size in made_up_sweep.SIZES:
        shutil.copytree(folder / size, folder / f"{size}-short")
        config = json_files.read_object(folder / size / "config.json") | {
            "name": f"toy/{size}-short"
        }
        json_files.write_object(folder / f"{size}-short" / "config.json", config)
        records.write_facts(folder / f"{size}-short", tokens=1_000_000)
        records.write_facts(folder / size, tokens=2_000_000)
    (folder / "sweep.json").unlink()
    (folder / "plan.json").unlink()  # names the runs of the sweep too
    text = page_text(folder)
    assert "1.6M-short done trained on 1M tokens; the law is for 2M" in text


def test_hostile_source_names_are_escaped(tmp_path, page_only, monkeypatch):
    draw_only(monkeypatch, "sources", "goodput")
    folder = made_up_sweep.sweep(tmp_path)
    for name in ("30K", "60K", "120K"):
        config = json_files.read_object(folder / name / "config.json")
        config["data"]["sources"] = {HOSTILE: 0.5, "docs": 0.5}
        json_files.write_object(folder / name / "config.json", config)
        row = records.load_evals(folder / name)[-1]
        row |= {f"loss.{HOSTILE}": 3.0, f"loss_se.{HOSTILE}": 0.1, "loss.docs": 2.0}
        records.append_record(folder / name / "evals.jsonl", row)
        records.write_facts(folder / name, **{f"epochs.{HOSTILE}": 1.0, "devices.kind": HOSTILE})
    text = report.write_report(folder).read_text(encoding="utf-8")
    assert "<img" not in text and "&lt;img src=x" in text


def add_other_run(folder, loss=0.15):
    """Write a fine-tuned run on another corpus into the folder of a sweep."""
    shutil.copytree(folder / "1.6M", folder / "tuned")
    config = json_files.read_object(folder / "tuned" / "config.json") | {"name": "toy/tuned"}
    config["start"]["run"], config["is_prediction_target"] = "toy/1.6M", False
    json_files.write_object(folder / "tuned" / "config.json", config)
    records.write_facts(folder / "tuned", **{"corpus.hash": "f" * 16})
    stored = records.load_evals(folder / "tuned")[-1]
    records.append_record(folder / "tuned" / "evals.jsonl", stored | {"loss": loss})


def test_other_runs_do_not_change_the_report(finished_sweep, tmp_path, text_only):
    """Figures are drawn from the rows of the sweep."""
    folder = made_up_sweep.sweep(tmp_path)
    before = page_text(folder)
    add_other_run(folder)
    sweep = summary.load_summary(folder)
    after = visible_text(report.write_summary(sweep).read_text(encoding="utf-8"))
    note = f"1 run here is not part of this sweep: {folder / 'tuned'} (done)"
    assert after.replace(note, "").split() == before.split() and note in after
    assert [row["name"] for row in sweep.others] == ["toy/tuned"]
    assert [row["name"] for row in sweep.rows] == [row["name"] for row in finished_sweep.rows]
    assert all("tuned" not in law.data.names for law, _ in sweep.laws.values() if law)


def test_laws_of_a_folder_with_several_corpora_are_refused(tmp_path, text_only):
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    add_other_run(folder)
    (folder / "sweep.json").unlink()
    (folder / "plan.json").unlink()  # names the runs of the sweep too
    text = page_text(folder)
    assert "No law could be fitted: the rows are not comparable: corpus.hash is" in text
    assert "ffffffffffffffff for toy/tuned" in text


def test_damaged_runs_are_named_and_others_shown(tmp_path, page_only, monkeypatch):
    draw_only(monkeypatch, "loss", "curves")
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    (folder / "30K" / "facts.json").write_text("{")
    metrics = folder / "60K" / "metrics.jsonl"
    metrics.write_bytes(b"\xff\n" + metrics.read_bytes())
    text = page_text(folder)
    assert "30K/facts.json is not valid JSON" in text and "The run is left out." in text
    assert "60K/metrics.jsonl: line 1 is damaged and not used" in text
    assert "30K missing" not in text and "L(N) =" in text


@pytest.mark.parametrize(
    "n_runs, status",
    [(0, ""), (1, ""), pytest.param(1, "running", marks=pytest.mark.slow), (3, "failed")],
)
def test_page_of_few_runs_never_shows_nan(tmp_path, page_only, n_runs, status):
    """The sweep has n runs, of which the last has `status`; the prediction has no interval."""
    sizes = list(made_up_sweep.SIZES)
    statuses = {sizes[n_runs - 1]: (status, "stopped")} if status and n_runs else {}
    folder = made_up_sweep.sweep(
        tmp_path, status=statuses, missing=sizes[n_runs:-1] if n_runs else sizes
    )
    stored = json_files.read_object(folder / "prediction.json")
    if "value" in stored:
        json_files.write_object(folder / "prediction.json", stored | {"lo": None, "hi": None})
    text = report.write_report(folder).read_text(encoding="utf-8")
    shown = visible_text(text) + " ".join(re.findall(r'"tip:([^"]*)"', text))
    assert not re.search(r"\b(nan|inf|NaN)\b", shown)


def test_prediction_without_an_interval_is_stated(tmp_path, text_only):
    folder = made_up_sweep.sweep(tmp_path)
    stored = json_files.read_object(folder / "prediction.json")
    for bounds in ({"lo": None, "hi": None}, {"lo": "nan", "hi": "nan"}):
        json_files.write_object(folder / "prediction.json", stored | bounds)
        text = page_text(folder)
        assert f"predicted {stored['value']:#.4g} (no interval) for toy/1.6M" in text
        assert "The prediction has no interval to compare the result with." in text


def test_fixed_tokens_have_no_law_of_compute(finished_sweep, tmp_path):
    """The tokens of the finished sweep are in proportion to the size."""
    assert finished_sweep.laws["compute"][0]
    folder = made_up_sweep.sweep(tmp_path)
    for size in made_up_sweep.SIZES:
        facts = records.read_facts(folder / size)
        flops = facts["flops"] / facts["tokens"] * 2_000_000
        records.write_facts(folder / size, tokens=2_000_000, flops=flops)
    fit, reason = summary.load_summary(folder).laws["compute"]
    assert fit is None
    assert (
        reason == "all runs have 2M tokens, so compute depends on the size alone: see the law"
        " of size"
    )


def test_law_of_compute_uses_the_frontier_of_several_budgets():
    ladder = committed_sweeps.load_sweep("real_ladder")
    fit, _ = ladder.laws["compute"]
    losses = [row["eval.loss"] for row in fit.data.rows]
    assert fit.n < len(ladder.finished) and losses == sorted(losses, reverse=True)


def test_truncated_and_skipped_prompts_are_counted(tmp_path, text_only):
    folder = made_up_sweep.sweep(tmp_path)
    results = {"task.modular.n_truncated": 31, "task.modular.n_skipped": 0}
    results |= {"task.copy?length=4.n_skipped": 5}
    last = records.load_evals(folder / "30K")[-1]["step"]
    records.extend_evals(folder / "30K", last, results)
    text = page_text(folder)
    assert (
        "Prompts that lost their beginning, because they exceed the context: modular 31 of" in text
    )
    assert (
        "Prompts that were skipped, because they exceed the context: copy?length=4 5 of 105."
        in text
    )


def test_invalid_results_are_stated_and_not_shown(tmp_path, page_only, monkeypatch):
    draw_only(monkeypatch, *TASK_FIGURES)
    folder = made_up_sweep.sweep(tmp_path)
    for size in made_up_sweep.SIZES:
        records.write_facts(folder / size, invalid_results={"task.modular": "Scored wrongly."})
    stored = json_files.read_object(folder / "prediction.json")
    tasks = {"modular": {"value": 0.5, "lo": 0.4, "hi": 0.6}}
    json_files.write_object(folder / "prediction.json", stored | {"tasks": tasks})
    text = page_text(folder)
    assert text.count("modular") == 1
    assert "Marked as invalid and not shown: modular. Scored wrongly." in text
    assert "predicted_tasks" not in figures.available_figures(summary.load_summary(folder))


def test_committed_ladder_marks_wrongly_scored_tasks():
    """The prompts of brackets were tokenized in a way that never occurs in training."""
    sweep = committed_sweeps.load_sweep("real_ladder")
    assert set(sweep.invalid_results) == {f"task.brackets?depth={depth}" for depth in (2, 3, 4)}
    tasks = task_results.task_names(sweep.rows)
    assert len(tasks) == 21 and not any("brackets" in task for task in tasks)
    assert sweep.prediction and not any("brackets" in task for task in sweep.prediction["tasks"])


def test_held_out_documents_are_counted_per_source(tmp_path, text_only):
    folder = made_up_sweep.sweep(tmp_path)
    assert "Sources: code, docs. These runs do not record the number of held-out" in page_text(
        folder
    )
    for size in made_up_sweep.SIZES:
        facts = {"documents.heldout.code": 19, "documents.train.code": 1900, "duplicates.code": 3}
        facts |= {"documents.heldout.docs": 80, "dropped.short.docs": 7}
        facts |= {"corpus.warnings": ["code: held-out split: 19 documents. Fewer than 50"]}
        records.write_facts(folder / size, **facts)
    text = page_text(folder)
    assert "code 1,900 19 3" in text and "docs – 80 – 7 short" in text
    assert "code: held-out split: 19 documents. Fewer than 50" in text
