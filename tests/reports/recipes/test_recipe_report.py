"""Tests of the comparison of two sweeps, its record and its page."""

import numpy as np
import pytest
from fixtures import made_up_sweep
from fixtures.recipe_rows import recipe_rows

import lm
from lm.data import heldout_documents
from lm.laws.recipe_comparison import paired_runs
from lm.reports.audit import prediction_chain
from lm.reports.plots import recipe_multiplier
from lm.reports.recipes import comparison_record, recipe_report
from lm.runs import json_files, records


@pytest.fixture
def sweeps(tmp_path, monkeypatch):
    """Return the folders of two sweeps. B has a lower loss at every size."""
    folders = {"A": made_up_sweep.sweep(tmp_path, "a", predict=False)}
    monkeypatch.setattr(made_up_sweep, "SCALE", 16.0)
    folders["B"] = made_up_sweep.sweep(tmp_path, "b", predict=False)
    return {name: str(folder) for name, folder in folders.items()}


def test_record_of_a_comparison_is_verified_and_detects_changes(sweeps, tmp_path):
    report = lm.compare(*(lm.load_runs(folder) for folder in sweeps.values()), n_draws=200)
    assert report.comparison.is_different and report.comparison.better == "B"
    assert report.comparison.sizes[0].multipliers["flops"].value > 1.1
    folder = tmp_path / "comparison"
    comparison_record.write_record(report, folder, sweeps)
    page = recipe_report.write_comparison_page(report, folder).read_text()
    assert page.count("<svg") == 2 and page.count("<figcaption") == 1  # a drawing per panel
    assert (folder / "multiplier.png").exists()
    links = comparison_record.verify_record(folder)
    assert {link.status for link in links} == {prediction_chain.VERIFIED}
    assert len(links) == 2 * len(made_up_sweep.SIZES) + 1
    (row,) = comparison_record.summarize_records(tmp_path)
    expected = report.comparison.average["flops"].value, len(made_up_sweep.SIZES), sweeps["B"]
    assert (row["m"], row["pairs"], row["B"]) == expected and row["better"] == "B"
    # A changed number of the record, and then a changed run.
    record = json_files.read_record(folder / "comparison.json")
    record["result"]["average"]["flops"]["value"] *= 1.01
    json_files.write_record(folder / "comparison.json", record)
    wrong = [x.text for x in comparison_record.verify_record(folder) if x.status != "verified"]
    assert wrong == [
        "the numbers of comparison.json, and 1 differ when repeated, such as average.flops.value"
    ]
    records.write_facts(tmp_path / "b" / "30K", flops=1.0)
    wrong = [x.text for x in comparison_record.verify_record(folder) if x.status != "verified"]
    assert "30K/facts.json" in wrong[0].replace("\\", "/")


def test_record_and_sweeps_can_be_moved_together(sweeps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = {side: f"{side.lower()}?status=done" for side in sweeps}
    report = lm.compare(*map(recipe_report.load_recipe, relative.values()), n_draws=200)
    comparison_record.write_record(report, "verdicts/first", relative)
    hash_before = comparison_record.record_sha256("verdicts/first")
    (tmp_path / "moved").mkdir()
    for name in ("a", "b", "verdicts"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    links = comparison_record.verify_record("moved/verdicts/first")
    assert {link.status for link in links} == {prediction_chain.VERIFIED}
    (row,) = comparison_record.summarize_records("moved/verdicts")
    assert (row["A"], row["B"]) == ("moved/a?status=done", "moved/b?status=done")
    monkeypatch.chdir(tmp_path / "moved" / "verdicts")
    assert comparison_record.record_sha256("first") == hash_before
    assert comparison_record.read_record("first")["sources"]["A"] == "../a?status=done"


def test_panels_of_several_comparisons_have_one_scale():
    report = lm.compare(recipe_rows("a"), recipe_rows("b", 0.5), n_draws=100)
    comparisons = {"first": report.comparison, "second": report.comparison}
    panels = recipe_multiplier.multipliers_vs_compute(comparisons).axes
    titles = [axes.get_title(loc="left") for axes in panels]
    verdict = f"{report.comparison.verdict}, B is better"
    assert titles == [f"{name}: {verdict}" for name in comparisons]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert len(panels[0].lines) == len(panels[1].lines) > 2


def test_missing_and_damaged_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="comparison.json is missing: write it with"):
        comparison_record.verify_record(tmp_path)
    json_files.write_record(tmp_path / "comparison.json", {"sources": {}, "inputs": {}})
    with pytest.raises(ValueError, match="has no entry result: delete it"):
        comparison_record.verify_record(tmp_path)


def test_recipe_is_a_selection_of_the_runs_of_a_folder(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, "a", predict=False)
    n_params = made_up_sweep.SIZES["60K"]
    rows = recipe_report.load_recipe(f"{folder}?params.non_embedding={n_params}&seed=0")
    assert [row["name"] for row in rows] == ["a/60K"]
    with pytest.raises(ValueError, match="no run has optim.name=muon; its values are adamw"):
        recipe_report.load_recipe(f"{folder}?optim.name=muon")
    with pytest.raises(ValueError, match="write the selection as FOLDER"):
        recipe_report.load_recipe(f"{folder}?muon")


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="candidates=3 is no option of a comparison; allowed: y,"):
        lm.compare(recipe_rows("a"), recipe_rows("b"), candidates=3)


def test_held_out_documents_widen_the_intervals(tmp_path):
    """Each recipe is better on some documents, so other documents may change the difference."""
    rng, rows = np.random.default_rng(0), {}
    targets = np.full(50, 100.0)
    gains = 0.3 * rng.standard_normal(50)
    for name, sign in (("a", 1), ("b", -1)):
        rows[name] = recipe_rows(name, noise=0.001, n_seeds=2)
        for i, row in enumerate(rows[name]):
            nats = targets * (row["eval.loss"] + sign * gains)
            row["eval.loss"] = float(nats.sum() / targets.sum())
            row["dir"] = str(tmp_path / f"{name}{i}")
            sums = {"code": (np.arange(50), nats, targets)}
            (tmp_path / f"{name}{i}").mkdir()
            (tmp_path / f"{name}{i}" / "heldout.npz").write_bytes(
                heldout_documents.encode_sums({"code": 1.0}, sums)
            )
    error = recipe_report.measure_document_error(paired_runs.pair_runs(*rows.values()))
    assert error * 4 == pytest.approx(2 * 0.3 / 50**0.5, rel=0.4)
    report = lm.compare(*rows.values(), n_draws=200)
    assert report.comparison.options.document_error == error
    wide = report.comparison.average["flops"]
    narrow = lm.compare(*rows.values(), n_draws=200, y="eval.loss", document_error=1e-9)
    assert wide.hi / wide.lo > 1.5 * (
        narrow.comparison.average["flops"].hi / narrow.comparison.average["flops"].lo
    )
