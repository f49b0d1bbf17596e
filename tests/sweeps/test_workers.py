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

from lm.runs import filesystem, records
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
    environments = [{"CUDA_VISIBLE_DEVICES": str(index)} for index in range(2)]
    statuses = workers.run_local([sys.executable, "-c", code], environments, tmp_path, on_poll)
    assert statuses == [7, 7] and signal.getsignal(signal.SIGTERM) is handler_before
    n_cores = max(len(os.sched_getaffinity(0)) // 2, 1)
    logs = [(tmp_path / f"{i}.log").read_text().split()[:2] for i in range(2)]
    assert [int(cores) for cores, _ in logs] == [n_cores, n_cores]
    assert [device for _, device in logs] == ["0", "1"]


GPU = "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("devices", "n_workers", "env", "shares"),
    [
        (("gpu", 8), 2, {}, [{GPU: "0,1,2,3"}, {GPU: "4,5,6,7"}]),
        (("gpu", 8), 3, {}, [{GPU: "0,1"}, {GPU: "2,3"}, {GPU: "4,5"}]),
        (("gpu", 2), 2, {GPU: "3, 5"}, [{GPU: "3"}, {GPU: "5"}]),
        (("gpu", 2), 2, {GPU: "GPU-8f,GPU-2a"}, [{GPU: "GPU-8f"}, {GPU: "GPU-2a"}]),
        (("gpu", 1), 1, {GPU: "2,9"}, [{GPU: "2"}]),  # CUDA ignores ids after an invalid one
        (
            ("gpu", 2),
            2,
            {"HIP_VISIBLE_DEVICES": "4,6"},
            [{"HIP_VISIBLE_DEVICES": "4"}, {"HIP_VISIBLE_DEVICES": "6"}],
        ),
        (("cpu", 2), 4, {}, [{}] * 4),
        (("cpu", 8), 2, {"JAX_NUM_CPU_DEVICES": "8"}, [{"JAX_NUM_CPU_DEVICES": "4"}] * 2),
        (
            ("cpu", 8),
            3,
            {"XLA_FLAGS": "--x --xla_force_host_platform_device_count=8"},
            [{"JAX_NUM_CPU_DEVICES": "2"}] * 3,
        ),
    ],
)
def test_each_worker_has_an_equal_share_of_devices(devices, n_workers, env, shares):
    assert workers.split_devices(workers.Devices(*devices), n_workers, env) == shares


@pytest.mark.parametrize(
    ("n_chips", "n_workers", "ids", "bounds"),
    [
        (4, 4, ["0", "1", "2", "3"], "1,1,1"),
        (4, 2, ["0,1", "2,3"], "1,2,1"),
        (8, 2, ["0,1,2,3", "4,5,6,7"], "2,2,1"),
        (8, 3, ["0,1", "2,3", "4,5"], "1,2,1"),
        (4, 3, ["0", "1", "2"], "1,1,1"),
    ],
)
def test_tpu_workers_have_own_chips_bounds_and_ports(n_chips, n_workers, ids, bounds):
    shares = workers.split_devices(workers.Devices("tpu", n_chips), n_workers, {})
    assert [share["TPU_VISIBLE_CHIPS"] for share in shares] == ids
    assert [share["TPU_VISIBLE_DEVICES"] for share in shares] == ids
    assert {share["TPU_CHIPS_PER_PROCESS_BOUNDS"] for share in shares} == {bounds}
    assert {share["TPU_PROCESS_BOUNDS"] for share in shares} == {"1,1,1"}
    ports = [share[name] for share in shares for name in share if name.endswith("_PORT")]
    assert len({*ports}) == 2 * n_workers
    assert all(
        share["TPU_PROCESS_ADDRESSES"].endswith(share["TPU_PROCESS_PORT"]) for share in shares
    )


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_more_workers_than_devices_are_refused(platform):
    with pytest.raises(ValueError, match=f"--jobs=9 exceeds the 8 {platform} devices.*--jobs=8"):
        workers.split_devices(workers.Devices(platform, 8), 9, {})


def test_missing_device_of_a_worker_is_one_line(monkeypatch):
    """The tests run on four CPU devices, which JAX also uses if a GPU does not exist."""
    monkeypatch.setenv(GPU, "9")
    with pytest.raises(ValueError, match=f"needs 1 gpu device, but JAX with .*{GPU}=9 finds 4 cpu"):
        workers.check_devices(workers.Devices("gpu", 1))
    workers.check_devices(workers.Devices("cpu", 4))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(ValueError, match=f"{GPU}=9, but JAX finds no GPU.* set JAX_PLATFORMS=cpu"):
        workers.check_visible_devices()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    workers.check_visible_devices()


def test_logs_of_workers_are_not_written_to_a_bucket(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    folder = filesystem.open_path("gs://bucket/runs/s/workers")
    with pytest.raises(ValueError, match=r"^dir=gs://bucket/runs/s: --jobs .*: remove --jobs"):
        workers.run_local(["true"], [{}], folder, lambda: None)
    assert not [*tmp_path.iterdir()] and not bucket.objects


def test_devices_are_counted_in_a_process_that_ends(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    assert workers.count_devices() == ("cpu", 3)
    monkeypatch.setenv("JAX_PLATFORMS", "missing")
    with pytest.raises(ValueError, match="JAX finds no devices: .*missing") as error:
        workers.count_devices()
    assert "\n" not in str(error.value)


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
    assert "workers: 2" in result.stdout and "pending runs: 6 of 6" in result.stdout
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
