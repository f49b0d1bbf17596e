"""Status and progress of the runs of a sweep."""

import os
import time

from fixtures import made_up_sweep

from lm.runs import lock, records, status


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
    os.utime(folder / "30K" / "metrics.jsonl", (long_ago, long_ago))
    statuses = {run["name"]: run["status"] for run in status.run_statuses(folder)}
    assert statuses["toy/30K"] == "stuck" and statuses["toy/60K"] == "done"


def test_hours_left_are_unknown_if_a_speed_is_unknown(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"30K": ("running", "")}, predict=False)
    (folder / "30K" / "metrics.jsonl").unlink()
    runs = status.run_statuses(folder)
    assert status.sweep_progress(runs)["device_hours_left"] is None
    assert status.sweep_progress([])["share"] == 0.0
