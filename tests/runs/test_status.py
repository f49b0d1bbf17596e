"""Status and progress of the runs of a sweep."""

import json
import os
import shutil
import time

import pytest
from fixtures import made_up_sweep, verified_sweep

from lm.config import schema
from lm.runs import json_files, lock, records, status


def test_statuses_of_a_half_done_sweep(tmp_path):
    folder = made_up_sweep.sweep(
        tmp_path, status={"60K": ("lost", "SIGTERM")}, missing=("700K", "1.6M"), predict=False
    )
    runs = {run["name"].partition("/")[2]: run for run in status.run_statuses(folder)}
    assert set(runs) == set(made_up_sweep.SIZES)
    assert runs["30K"]["status"] == "done" and runs["30K"]["seconds_left"] == 0
    assert runs["60K"]["status"] == "lost" and runs["60K"]["reason"] == "SIGTERM"
    assert runs["1.6M"]["status"] == "planned" and runs["1.6M"]["seconds_left"] > 0
    assert runs["1.6M"]["loss"] is None and runs["1.6M"]["heldout_loss"] is None
    (row,) = records.load_runs(folder / "30K")
    assert runs["30K"]["heldout_loss"] == row["eval.loss"]
    totals = status.sweep_progress(list(runs.values()))
    assert totals["runs"] == 6 and totals["done"] == 3
    assert 0 < totals["share"] < 0.5  # the two runs that have not started are the largest
    assert totals["device_hours_left"] > 0


def test_run_without_new_metrics_is_stuck(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    records.write_facts(folder / "30K", status="running")
    (folder / "30K" / "lock-1-a").write_text(lock._lock_contents(held=True))
    statuses = {run["name"]: run["status"] for run in status.run_statuses(folder)}
    assert statuses["toy/30K"] == "running"
    long_ago = time.time() - 1e5
    for file in ("metrics.jsonl", "evals.jsonl"):
        os.utime(folder / "30K" / file, (long_ago, long_ago))
    statuses = {run["name"]: run["status"] for run in status.run_statuses(folder)}
    assert statuses["toy/30K"] == "stuck" and statuses["toy/60K"] == "done"


def test_run_in_an_evaluation_is_not_stuck(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    records.write_facts(folder / "30K", status="running")
    (folder / "30K" / "lock-1-a").write_text(lock._lock_contents(held=True))
    evals = folder / "30K" / "evals.jsonl"
    lines = evals.read_text().splitlines(keepends=True)
    evals.write_text("".join(lines[:-1]))  # the final evaluation has no row yet
    long_ago = time.time() - 1e5
    for path in (evals, folder / "30K" / "metrics.jsonl"):
        os.utime(path, (long_ago, long_ago))

    def state():
        (run,) = (run for run in status.run_statuses(folder) if run["name"] == "toy/30K")
        return run["status"], run["state"]

    assert state() == ("running", "evaluating")
    evals.write_text("".join(lines))
    assert state() == ("running", "running")  # the row of the evaluation is new
    os.utime(evals, (long_ago, long_ago))
    assert state() == ("stuck", "stuck")


@pytest.mark.parametrize(
    ("fields", "tasks_row", "expected"),
    [
        ({"eval.interval": 7}, False, "evaluating"),  # at step 49, after the log step 45
        ({"eval.interval": 8}, False, "stuck"),  # the next evaluation is at step 48 and has a row
        ({"eval.interval": 20}, False, "stuck"),  # the next one is after the next log step
        ({"eval.interval": 8, "eval.patience": 3}, False, "stuck"),  # no tasks of best weights
        ({"eval.interval": 8, "eval.patience": 3, "eval.tasks": "copy"}, False, "evaluating"),
        ({"eval.interval": 8, "eval.patience": 3, "eval.tasks": "copy"}, True, "stuck"),
    ],
)
def test_evaluation_after_the_last_log_step(tmp_path, fields, tasks_row, expected):
    long_ago = time.time() - 1e5
    for name, step in (("metrics.jsonl", 45), ("evals.jsonl", 48)):
        row = {"step": step, "loss": 2.0, "seconds": 9.0} | (
            {"task.copy.n": 1} if tasks_row else {}
        )
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        os.utime(tmp_path / name, (long_ago, long_ago))
    row = schema.flatten(schema.Run(steps=100, log_interval=5)) | fields
    assert status._is_evaluating(row, tmp_path, 45) == (expected == "evaluating")
    assert status._is_stuck(tmp_path, records.load_metrics(tmp_path))  # by time alone


def test_hours_left_are_unknown_if_a_speed_is_unknown(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"30K": ("running", "")}, predict=False)
    (folder / "30K" / "metrics.jsonl").unlink()
    runs = status.run_statuses(folder)
    assert status.sweep_progress(runs)["device_hours_left"] is None
    assert status.sweep_progress([])["share"] == 0.0


def add_other_run(folder, name="tuned"):
    """Copy a run of the sweep and give it another name."""
    shutil.copytree(folder / "30K", folder / name)
    config = json_files.read_object(folder / name / "config.json") | {
        "name": f"{folder.name}/{name}"
    }
    json_files.write_object(folder / name / "config.json", config)


def test_other_runs_are_listed_apart(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    expected = status.sweep_progress(status.run_statuses(folder))
    add_other_run(folder)
    runs, notes = status.folder_status(folder)
    assert len(runs) == 6 and status.sweep_progress(runs) == expected
    assert notes[0] == f"1 run here is not part of this sweep: {folder / 'tuned'} (done)"
    assert notes[1:] == [
        "6 runs have no checksums (written by version 0.2): the records are not verified"
    ]


def test_runs_are_sorted_by_sweep(tmp_path):
    for name in ("b", "a"):
        made_up_sweep.sweep(tmp_path, name, missing=("60K",), predict=False)
    sweeps = [run["name"].partition("/")[0] for run in status.run_statuses(tmp_path)]
    assert sweeps == ["a"] * 6 + ["b"] * 6
    planned = [run["name"] for run in status.run_statuses(tmp_path) if run["status"] == "planned"]
    assert planned == ["a/60K", "b/60K"]


def test_damaged_records_hide_only_their_run(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    (folder / "30K" / "facts.json").write_text("{")
    metrics = folder / "60K" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b"loss", b"l\xffss", 1))
    runs, notes = status.folder_status(folder)
    by_name = {run["name"]: run["status"] for run in runs}
    assert by_name["toy/30K"] == "unreadable" and by_name["toy/60K"] == "done"
    assert "30K/facts.json is not valid JSON" in notes[0]
    assert notes[1] == f"{metrics}: line 1 is damaged and not used"
    (folder / "plan.json").write_text('{"runs": [{"name": "toy/x"}]}')
    assert "plan.json: a run has no name or flops or seconds" in status.folder_status(folder)[1][-1]


def test_loss_that_is_not_a_number_is_unknown(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"30K": ("diverged", "loss")}, predict=False)
    row = records.load_metrics(folder / "30K")[-1] | {"loss": float("nan")}
    records.append_record(folder / "30K" / "metrics.jsonl", row)
    assert status.run_statuses(folder)[0]["loss"] is None


def test_done_run_without_its_last_metrics_is_complete(tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    (expected,) = (run for run in status.run_statuses(folder) if run["name"] == "s/a")
    file = folder / "a" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for n_lines in (len(lines) - 1, 0):
        file.write_text("".join(lines[:n_lines]))
        (run,) = (run for run in status.run_statuses(folder) if run["name"] == "s/a")
        assert run["step"] == expected["step"] == 20 and run["loss"] is None
        assert run["heldout_loss"] == expected["heldout_loss"]
