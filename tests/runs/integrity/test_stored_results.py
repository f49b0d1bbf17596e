"""Counts that follow from the config, and results that a run must have."""

import pytest
from fixtures import verified_sweep

from lm.config import flops
from lm.runs import json_files, records
from lm.runs.integrity import stored_results

COUNTS = {
    "params.non_embedding": 18336,
    "params.total": 1,
    "flops_per_token.6N": 5.0,
    "tokens": 5119,
    "flops": "1e9",
    "ends_at": 15,
}


@pytest.mark.parametrize("name", COUNTS)
def test_run_with_a_wrong_count_is_excluded(name, tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    records.write_facts(folder / "b", **{name: COUNTS[name]})
    loaded = records.load_folder(folder)
    assert [row["name"] for row in loaded.rows] == ["s/a", "s/c"]
    assert f"b/facts.json: {name}={COUNTS[name]!r}, config.json" in loaded.unreadable[folder / "b"]


def test_early_stop_may_have_fewer_tokens(tmp_path):
    run = verified_sweep.write_run(tmp_path, "s/a")
    facts = records.read_facts(records.run_dir(run))
    stopped = facts | {"tokens": 2560, "flops": 2560 * facts["flops_per_token.full"], "ends_at": 5}
    run.eval.patience = 1
    stored_results.check_counts(tmp_path, run, stopped)
    for wrong in ({"tokens": 2561}, {"tokens": 10**9}, {"tokens": None}, {"flops": 1.0}):
        with pytest.raises(ValueError, match="config.json gives"):
            stored_results.check_counts(tmp_path, run, stopped | wrong)


def damage_final_evaluation(folder) -> None:
    file = folder / "evals.jsonl"
    *lines, last = file.read_text().splitlines()
    file.write_text("\n".join([*lines, last.replace("2.0", "1.0")]) + "\n")


def test_run_without_its_final_evaluation_is_excluded(tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    damage_final_evaluation(folder / "a")
    row = records.load_runs(folder)[0]
    assert row["status"] == "done" and not any(key.startswith("eval.lo") for key in row)
    assert row["reason"].startswith("evals.jsonl has no evaluation of the final step 20: line ")
    (folder / "a" / "evals.jsonl").unlink()
    assert "no evaluation of the final step 20" in records.load_runs(folder)[0]["reason"]


def test_damaged_line_after_the_final_evaluation_hides_it(tmp_path):
    """The damaged line may contain the same evaluation with more tasks, or a restart."""
    folder = verified_sweep.write_sweep(tmp_path)
    file = folder / "a" / "evals.jsonl"
    records.extend_evals(folder / "a", 20, {"task.copy.accuracy": 0.5})
    assert records.load_runs(folder)[0]["eval.task.copy.accuracy"] == 0.5
    file.write_text(file.read_text()[:-9])
    row = records.load_runs(folder)[0]
    assert "eval.loss" not in row and "damaged and may replace the final" in row["reason"]


def test_run_that_lost_its_evaluation_is_evaluated_again(tmp_path):
    run = verified_sweep.write_run(tmp_path, "s/a")
    folder = records.run_dir(run)
    damage_final_evaluation(folder)
    assert records.is_finished(run)  # nothing can be done without a checkpoint
    (folder / "checkpoints" / "20").mkdir()
    assert not records.is_finished(run)
    records.append_record(folder / "evals.jsonl", verified_sweep.evaluation(2, 20, 2.0))
    assert records.is_finished(run)


def test_changed_evaluation_settings_are_refused(tmp_path):
    run = verified_sweep.write_run(tmp_path, "s/a")
    run.eval.n_sequences = 8
    records.check_same_config(run)  # a finished run is not evaluated
    records.write_facts(records.run_dir(run), status="lost")
    with pytest.raises(ValueError, match="has evaluations with eval.n_sequences=512, now 8"):
        records.check_same_config(run)
    (records.run_dir(run) / "evals.jsonl").unlink()
    records.check_same_config(run)


def test_imported_model_needs_no_evaluation(tmp_path):
    run = verified_sweep.write_run(tmp_path, "s/a")
    row = json_files.read_record(records.run_dir(run) / "facts.json")
    row |= {"data.heldout_fraction": 0.1, "eval.tasks": ""}
    assert stored_results.has_final_evaluation(row)
    assert not stored_results.has_final_evaluation(row | {"imported.from": "hub"})
    assert not stored_results.has_final_evaluation(row | {"data.heldout_fraction": 0.0})


@pytest.mark.parametrize("error", [ValueError, TypeError, OverflowError])
def test_error_of_a_count_is_not_ignored(error, tmp_path, monkeypatch):
    run = verified_sweep.write_run(tmp_path, "s/a")

    def fail(run):
        raise error("no count")

    monkeypatch.setattr(flops, "run_facts", fail)
    with pytest.raises(ValueError, match="config.json has no valid counts .no count"):
        stored_results.check_counts(records.run_dir(run), run, {})


def test_vocabulary_of_a_file_has_no_counts_to_compare(tmp_path):
    run = verified_sweep.write_run(tmp_path, "s/a")
    run.model.vocab_size, run.data.tokenizer = 0, "file.json"
    stored_results.check_counts(tmp_path, run, {"params.total": 1})
