"""Worker processes on this machine, and SLURM jobs that are killed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lm.runs import records
from lm.sweeps import workers

ROOT = pathlib.Path(__file__).parent.parent.parent
SWEEP = """
from lm.config import model_sizes, schema

def get_sweep(n="30"):
    for number in range(int(n)):
        run = schema.Run(name=f"s/{{number:02}}", seed=number, steps=120)
        run.log_interval, run.checkpoint_interval = 10, 20
        run.model = model_sizes.ladder_model("10K", n_layers=1 + number % 2)
        run.data.sources, run.data.cache_dir = {{"text:{text}": 1.0}}, "{text}/../data"
        run.data.seq_len, run.data.batch_size, run.data.heldout_fraction = 32, 8, 0.2
        run.eval.n_sequences, run.eval.n_completions = 16, 0
        if number == 3:
            run.start.run = "s/01"  # a run of the same shape
        yield run
"""


def test_workers_share_cores_and_receive_signals(tmp_path):
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print(len(os.sched_getaffinity(0)), os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n"
        "time.sleep(30)\n"
    )
    poll_times, signals_sent = [], []

    def on_poll() -> None:
        poll_times.append(time.monotonic())
        logs = [(tmp_path / f"{i}.log").read_text() for i in range(2)]
        # A second signal could arrive while a worker exits.
        if all(logs) and len(poll_times) > 2 and not signals_sent:
            signals_sent.append(os.kill(os.getpid(), signal.SIGTERM))

    handler_before = signal.getsignal(signal.SIGTERM)
    statuses = workers.run_local([sys.executable, "-c", code], 2, tmp_path, on_poll)
    assert statuses == [7, 7] and signal.getsignal(signal.SIGTERM) is handler_before
    n_cores = max(len(os.sched_getaffinity(0)) // 2, 1)
    logs = [(tmp_path / f"{i}.log").read_text().split()[:2] for i in range(2)]
    assert [int(cores) for cores, _ in logs] == [n_cores, n_cores]
    assert [device for _, device in logs] == ["0", "1"]


@pytest.fixture
def folder(tmp_path, text_file) -> pathlib.Path:
    (tmp_path / "sweep.py").write_text(SWEEP.format(text=text_file))
    return tmp_path


def launch(folder: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.sweep", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def check_all_done(folder: pathlib.Path, n: int, n_restarts: int) -> None:
    """Check that all runs are done, and that runs without a restart logged each step once."""
    rows = records.load_runs(folder / "runs/s")
    assert [row["status"] for row in rows] == ["done"] * n
    for row in rows:
        lines = (pathlib.Path(row["dir"]) / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert sorted(set(steps)) == list(range(10, 121, 10))
        assert row["attempts"] > 1 or steps == sorted(set(steps))
    assert sum(row["attempts"] - 1 for row in rows) == n_restarts
    assert records.read_facts(folder / "runs/s/03")["parent.step"] == 120


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_local_workers_share_a_sweep(folder):
    result = launch(folder, "--sweep=sweep.py:6", "--jobs=2")
    assert result.returncode == 0, result.stdout + result.stderr
    check_all_done(folder, 6, n_restarts=0)
    logs = [(folder / f"runs/s/workers/{i}.log").read_text() for i in range(2)]
    assert all("step 120 of 120" in log for log in logs)  # each worker trained a run


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
    reason="no SLURM is running: tests/fixtures/slurm_here.sh start, and export what it prints",
)
def test_slurm_sweep_survives_two_killed_jobs(folder):
    slurm_flags = ("--on=slurm", "--jobs=2", "--slurm=--cpus-per-task=1")
    result = launch(folder, "--sweep=sweep.py", *slurm_flags)
    assert result.returncode == 0 and "SLURM job" in result.stdout, result.stdout + result.stderr
    runs, killed, deadline = folder / "runs/s", [], time.monotonic() + 1000
    while time.monotonic() < deadline:
        rows = records.load_runs(runs)
        n_done = sum(row["status"] == "done" for row in rows)
        if n_done == 30 or not subprocess.run(["squeue", "-h"], capture_output=True).stdout:
            break  # without a job, no other run will be trained
        for row in rows:
            locks = list(pathlib.Path(row["dir"]).glob("lock-*"))
            has_checkpoint = pathlib.Path(row["dir"], "checkpoints/20").exists()
            if n_done >= 5 * (len(killed) + 1) and len(killed) < 2 and has_checkpoint and locks:
                pid = json.loads(locks[0].read_text())["pid"]
                os.kill(pid, signal.SIGKILL if not killed else signal.SIGTERM)
                killed.append(row["name"])
                break
        time.sleep(0.1)
    assert len(killed) == 2
    check_all_done(folder, 30, n_restarts=2)
    second = launch(folder, "--sweep=sweep.py", "--on=slurm", "--jobs=2")
    assert "all 30 runs are done" in second.stdout and "SLURM job" not in second.stdout
