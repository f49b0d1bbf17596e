"""Predicted abilities: stored, audited with their results, and shown in the report."""

import shutil

import pytest
from fixtures import predicted_sweep

from lm.reports import summary
from lm.reports.audit import (
    prediction_audit,
    prediction_chain,
    prediction_results,
    target_prediction,
)
from lm.reports.sections.abilities import ability_prediction_section
from lm.runs import archive, json_files, provenance

ABILITIES = target_prediction.ABILITIES


@pytest.fixture(scope="module", autouse=True)
def code_hash():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "code_hash", lambda module: "0.2.0 00000000")
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory, code_hash):
    """Return the folder of a finished sweep with a task, and its results."""
    with pytest.MonkeyPatch.context() as patch:
        folder = predicted_sweep.write_sweep(tmp_path_factory.mktemp("abilities"), patch, True)
    sweep = summary.load_summary(folder)
    results = prediction_results.load_prediction_results(sweep.path, sweep.rows)
    prediction_results.write_results(folder, results)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """Return a copy of the sweep that a test may change."""
    return shutil.copytree(original, tmp_path / "s")


def links(folder, status, should_refit=False) -> str:
    """Return the texts of the links of a status."""
    audited = prediction_audit.audit_prediction(folder, should_refit)
    return "\n".join(link.text for link in audited if link.status == status)


def test_audit_repeats_the_abilities_and_their_results(folder):
    verified = links(folder, prediction_chain.VERIFIED, should_refit=True)
    assert "the abilities, predicted again, give the" in verified
    assert f"{prediction_results.FILE} has the results of" in verified
    assert not links(folder, prediction_chain.CONTRADICTION)


def test_changed_abilities_and_results_are_contradictions(folder):
    stored = json_files.read_record(folder / "prediction.json")[ABILITIES]
    changed = stored | {"direct": stored["direct"] | {"above": {"copy": 0.123}}}
    predicted_sweep.rewrite_prediction(folder, **{ABILITIES: changed})
    text = links(folder, prediction_chain.CONTRADICTION, should_refit=True)
    assert "differ from prediction.json in direct.above.copy" in text
    assert f"{prediction_results.FILE} has the results" in text  # of another prediction
    predicted_sweep.rewrite_prediction(folder, **{ABILITIES: stored | {"two_step": [1]}})
    text = links(folder, prediction_chain.CONTRADICTION)
    assert f"the entry {ABILITIES} is missing or invalid" in text


def test_edited_results_are_a_contradiction_and_missing_ones_none(folder):
    file = folder / prediction_results.FILE
    content = json_files.read_record(file)
    content["quantities"][0]["is_inside"] = not content["quantities"][0]["is_inside"]
    json_files.write_record(file, content)
    assert "write the report again" in links(folder, prediction_chain.CONTRADICTION)
    file.write_text("{")
    assert prediction_results.FILE in links(folder, prediction_chain.CONTRADICTION)
    file.unlink()
    assert not links(folder, prediction_chain.CONTRADICTION)


def test_prediction_without_abilities_is_verified_as_before(folder):
    content = json_files.read_record(folder / "prediction.json")
    del content[ABILITIES]
    (folder / prediction_results.FILE).unlink()
    json_files.write_record(folder / "prediction.json", content)
    text = links(folder, prediction_chain.CONTRADICTION, should_refit=True)
    assert "abilities" not in text and "records" in text  # only the hash differs


def test_section_shows_intervals_before_and_results_after_the_run(folder):
    sweep = summary.load_summary(folder)
    text = str(ability_prediction_section.predicted_abilities(sweep))
    assert "number of tasks above baseline" in text and "accuracy of copy" in text
    assert "Wrong predictions" in text and "back-test" in text and "not yet" not in text
    main, _, direct = text.partition("The same scores, predicted by the direct method")
    assert main.count("<td") > 10 and "accuracy of copy" in direct
    sweep.rows = [row for row in sweep.rows if row["name"] != predicted_sweep.TARGET]
    text = str(ability_prediction_section.predicted_abilities(sweep))
    assert "not yet" in text and "Wrong predictions" not in text


def test_brier_scores_are_compared_with_the_previous_size():
    scores = {"two_step": {"brier": 0.118}, "previous": {"brier": 0.119}}
    results = {"brier": {"two_step": 0.05, "previous": 0.1}}
    target, backtest = ability_prediction_section.describe_skill({"backtest": scores}, results)
    assert "two-step is better than the outcome" in target and "0.050 and 0.100" in target
    assert "On the back-test, two-step is about as good as" in backtest
    assert ability_prediction_section.describe_skill({}, {}) == []


def test_archive_keeps_the_results_of_its_report(folder, tmp_path):
    archive.archive_sweep(folder, tmp_path / "archive")
    sweep = summary.load_summary(tmp_path / "archive")
    results = prediction_results.load_prediction_results(sweep.path, sweep.rows)
    prediction_results.write_results(sweep.path, results)
    archive.archive_sweep(folder, tmp_path / "archive")
    assert (sweep.path / prediction_results.FILE).exists()
    assert not links(tmp_path / "archive", prediction_chain.CONTRADICTION)


def test_archive_with_shortened_paths_is_not_a_contradiction(tmp_path, monkeypatch):
    """The names of tasks and sources in a prediction contain paths."""
    names = {"loss.jsonl:../x/code/*.gz": 1.1, "task.pair:../x/blimp#a/b.accuracy": 0.2}
    monkeypatch.setattr(
        predicted_sweep, "source_losses", lambda loss: {k: v * loss for k, v in names.items()}
    )
    folder = predicted_sweep.write_sweep(tmp_path, monkeypatch, has_sources=True)
    archive.archive_sweep(folder, tmp_path / "archive")
    assert "paths are shortened" in links(tmp_path / "archive", prediction_chain.UNVERIFIABLE)
    assert not links(tmp_path / "archive", prediction_chain.CONTRADICTION)
    content = json_files.read_record(tmp_path / "archive" / "prediction.json")
    json_files.write_record(tmp_path / "archive" / "prediction.json", content | {"value": 1.0})
    assert "records" in links(tmp_path / "archive", prediction_chain.CONTRADICTION)


def test_prediction_of_an_earlier_target_stays_with_its_result(folder):
    stored = json_files.read_record(folder / "prediction.json")
    earlier = folder / "prediction-target.json"
    (folder / "prediction.json").rename(earlier)
    changes = {"target": "s/larger", "value": 1.0, "lo": 0.5, "hi": 1.5}
    json_files.write_record(folder / "prediction.json", stored | changes)
    sweep = summary.load_summary(folder)
    results = prediction_results.load_prediction_results(folder, sweep.rows)
    assert [result["target"] for result in results["earlier"]] == ["s/target"]
    assert "quantities" not in results and results["earlier"][0]["quantities"]
    text = str(ability_prediction_section.predicted_abilities(sweep))
    assert "Earlier prediction of s/target" in text
    assert f"{earlier} has SHA-256" in links(folder, prediction_chain.VERIFIED)
    json_files.write_record(earlier, stored | {"value": 9.0})
    assert f"{earlier} has SHA-256" in links(folder, prediction_chain.CONTRADICTION)
