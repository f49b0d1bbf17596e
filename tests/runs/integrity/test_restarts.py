"""Rows of discarded weights, and runs without checksums that continue."""

import json

import pytest
from fixtures import verified_sweep

from lm.config import schema
from lm.runs import json_files, records
from lm.runs.integrity import restarts


@pytest.fixture
def run(tmp_path):
    return schema.Run(name="sweep/a", dir=str(tmp_path), steps=20)


def steps(path) -> list[tuple[int, int]]:
    """Return (step, attempt) of the evaluations and of the log steps, which must be equal."""
    evaluations, metrics = records.load_evals(path), records.load_metrics(path)
    pairs = [(row["step"], row["attempt"]) for row in evaluations]
    assert pairs == [(row["step"], row["attempt"]) for row in metrics]
    return pairs


def test_rows_after_the_restored_step_are_void(run):
    folder = records.run_dir(run)
    records.start_run(run, {}, -1)
    verified_sweep.write_rows(folder, 1, (0, 5, 8, 10), 3.0)
    (folder / "heldout.npz").write_bytes(b"of step 10")
    records.start_run(run, {}, 10)
    assert steps(folder) == [(0, 1), (5, 1), (8, 1), (10, 1)]
    assert (folder / "heldout.npz").exists()
    records.start_run(run, {}, 5)
    assert steps(folder) == [(0, 1), (5, 1)]
    assert not (folder / "heldout.npz").exists()
    verified_sweep.write_rows(folder, 3, (10,), 2.0)
    # A suspended process of the first attempt may write after its successor.
    verified_sweep.write_rows(folder, 1, (20,), 1.0)
    assert steps(folder) == [(0, 1), (5, 1), (10, 3)]
    assert [row["attempt"] for row in records.attempt_metrics(folder, 9)] == [1, 3]
    records.start_run(run, {}, -1)  # without a checkpoint
    assert steps(folder) == []


def test_loss_after_a_discarded_checkpoint_is_void(run):
    folder = records.run_dir(run)
    records.start_run(run, {}, -1)
    file = folder / "checkpoints" / "proofs.jsonl"
    file.parent.mkdir()
    for step in (4, 8):
        records.append_record(file, {"step": step, "next_loss": 3.0})
    records.start_run(run, {}, 4)
    assert [row["step"] for row in json_files.read_latest_rows(file)] == [4]
    records.append_record(file, {"step": 8, "next_loss": 2.0})
    assert [row["next_loss"] for row in json_files.read_latest_rows(file)] == [3.0, 2.0]


def test_attempts_continue_without_facts(run):
    folder = records.run_dir(run)
    for attempt in (1, 2, 3):
        assert records.start_run(run, {}, 5) == attempt
        verified_sweep.write_rows(folder, attempt, (5, 10), 3.0)
    (folder / "facts.json").unlink()
    assert records.start_run(run, {}, 5) == 4
    verified_sweep.write_rows(folder, 4, (10,), 1.0)
    assert steps(folder) == [(5, 3), (10, 4)]


@pytest.mark.parametrize("deleted", [[], ["config.json"], ["facts.json"]])
def test_lines_stay_valid_after_a_deleted_file(run, deleted):
    folder = records.run_dir(run)
    records.start_run(run, {}, -1)
    verified_sweep.write_rows(folder, 1, (5, 10), 3.0)
    for name in deleted:
        (folder / name).unlink()
    records.start_run(run, {}, 10)
    content = json_files.read_file(folder / "evals.jsonl")
    assert len(content.rows) == 2 and not content.corrupt_lines


def old_run(run) -> None:
    """Write a run of version 0.2 with a damaged line."""
    folder = records.run_dir(run)
    json_files.write_object(folder / "config.json", schema.to_dict(run))
    json_files.write_object(folder / "facts.json", {"format": 2, "attempts": 1, "status": "lost"})
    lines = [json.dumps({"attempt": 1, "step": step, "loss": 3.0}) for step in (5, 10)]
    for name in ("metrics.jsonl", "evals.jsonl"):
        (folder / name).write_text(f"{lines[0]}\n#damaged\n{lines[1]}\n")


def test_run_without_checksums_gets_them_when_it_continues(run):
    old_run(run)
    folder = records.run_dir(run)
    before = steps(folder)
    (row,) = records.load_runs(folder)
    assert row["format_version"] == 2 and row["eval.loss"] == 3.0
    assert records.start_run(run, {}, 10) == 2
    assert steps(folder) == before == [(5, 1), (10, 1)]
    content = json_files.read_file(folder / "evals.jsonl")
    assert content.corrupt_lines == [2] and "crc32" in (folder / "evals.jsonl").read_text()
    (row,) = records.load_runs(folder)
    assert row["format_version"] == 3 and "run_id" not in row and "format" not in row


@pytest.mark.parametrize("last_write", ["replace_lines", "write_facts"])
def test_interrupted_upgrade_is_repeated(run, last_write, monkeypatch):
    old_run(run)
    folder = records.run_dir(run)
    owner = records if last_write == "write_facts" else restarts.filesystem
    function = getattr(owner, last_write)

    def write_then_stop(*arguments, **named):
        function(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, last_write, write_then_stop)
        records.start_run(run, {}, 10)
    assert steps(folder) == [(5, 1), (10, 1)]
    records.start_run(run, {}, 10)
    assert steps(folder) == [(5, 1), (10, 1)]
    assert json_files.read_file(folder / "metrics.jsonl").corrupt_lines == [2]


def test_damaged_evaluation_refuses_early_stopping(run):
    run.eval.patience = 2
    folder = records.run_dir(run)
    records.start_run(run, {}, -1)
    verified_sweep.write_rows(folder, 1, (5, 10), 3.0)
    file = folder / "evals.jsonl"
    file.write_text(file.read_text().replace("3.0", "4.0"))
    with pytest.raises(ValueError, match="evals.jsonl: line 2 is damaged, and eval.patience=2"):
        records.start_run(run, {}, 10)
    assert records.read_facts(folder)["attempts"] == 1
