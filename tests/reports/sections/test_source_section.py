"""Predicted losses of sources: stored, audited, and shown in the report."""

import pytest
from fixtures import predicted_sweep

from lm.reports import summary
from lm.reports.audit import prediction_audit, prediction_chain, target_prediction
from lm.reports.sections import source_section
from lm.runs import json_files, provenance

SOURCES = target_prediction.SOURCE_LOSSES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a finished sweep with two sources and a task."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "code_hash", lambda module: "0.2.0 00000000")
        yield predicted_sweep.write_sweep(tmp_path_factory.mktemp("sources"), patch, True)


def test_every_source_and_task_is_predicted_before_the_start(folder):
    stored = json_files.read_record(folder / "prediction.json")
    total, losses = stored["value"], stored[SOURCES]
    assert list(losses) == ["eval.loss.books", "eval.loss.code", "eval.task.copy.bits_per_byte"]
    assert losses["eval.loss.code"]["value"] == pytest.approx(0.2 + 0.8 * total, rel=2e-3)
    assert losses["eval.loss.books"]["n_runs"] == 6
    for prediction in losses.values():  # the interval includes the error of the total
        width = (prediction["hi"] - prediction["lo"]) / prediction["value"]
        assert width > 0.5 * (stored["hi"] - stored["lo"]) / total
    assert stored["inputs"]["s/b"]["values"]["eval.loss.code"] > 0


def test_report_compares_each_source_with_its_result(folder):
    sweep = summary.load_summary(folder)
    text = str(source_section.source_losses(sweep))
    assert text.count("<tr>") == 5 and "Bits per byte of the tasks" in text
    lines = source_section.describe_errors(sweep)
    assert len(lines) == 2 and "Predicted losses of 2 sources: mean deviation 0." in lines[0]
    assert "2 of 2 inside their interval" in lines[0] and "bits per byte of 1 task" in lines[1]


def test_audit_fits_the_laws_of_sources_again(folder, monkeypatch):
    monkeypatch.setattr(provenance, "code_hash", lambda module: "0.2.0 00000000")
    content = json_files.read_record(folder / "prediction.json")
    links = prediction_audit.audit_prediction(folder)
    assert not [link for link in links if link.status == prediction_chain.CONTRADICTION]
    assert "the laws of 3 sources and tasks, fitted again" in links[-1].text
    try:
        changed = content[SOURCES] | {"eval.loss.code": {"value": 1.0, "lo": 0.9, "hi": 1.1}}
        predicted_sweep.rewrite_prediction(folder, **{SOURCES: changed})
        last = prediction_audit.audit_prediction(folder)[-1]
        assert last.status == prediction_chain.CONTRADICTION and "eval.loss.code" in last.text
        predicted_sweep.rewrite_prediction(folder, **{SOURCES: [1]})
        texts = [link.text for link in prediction_audit.audit_prediction(folder)]
        assert f"the entry {SOURCES} is missing or invalid" in texts[-1]
    finally:
        predicted_sweep.rewrite_prediction(folder, **{SOURCES: content[SOURCES]})


def test_prediction_of_an_earlier_version_has_no_section(folder):
    sweep = summary.load_summary(folder)
    assert sweep.prediction
    del sweep.prediction[SOURCES]
    assert source_section.load_results(sweep) == source_section.describe_errors(sweep) == []
