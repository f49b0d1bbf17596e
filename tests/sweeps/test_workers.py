"""Worker processes on this machine, and SLURM jobs that are killed."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from fixtures import commands

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


SAVE_AT_SIGTERM = """
import signal, sys, time
def save(*_):
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, save)
print("started", flush=True)
time.sleep(20)
"""


def run_until_started(folder: pathlib.Path, stop: Callable[[], None]) -> list[int]:
    """Run two workers, and call stop() repeatedly after both have started."""

    def on_poll() -> None:
        if all((folder / f"{index}.log").read_text() for index in range(2)):
            stop()

    command = [sys.executable, "-c", SAVE_AT_SIGTERM]
    return workers.run_local(command, [{}, {}], folder, on_poll)


def read_logs(folder: pathlib.Path) -> list[str]:
    return [(folder / f"{index}.log").read_text() for index in range(2)]


@pytest.mark.parametrize("error", [SystemExit(141), OSError(5, "Input/output error")])
def test_workers_save_and_end_if_the_parent_fails(tmp_path, error):
    """The parent fails if the reader of its output, such as head, has ended."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        run_until_started(tmp_path, fail)
    assert read_logs(tmp_path) == ["started\nsaved\n"] * 2


def test_end_of_the_terminal_stops_the_workers_once(tmp_path, monkeypatch):
    """A shell and the kernel both send SIGHUP. A second signal would interrupt the save."""
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.1)
    handler_before = signal.signal(signal.SIGHUP, lambda *_: pytest.fail("SIGHUP ends the parent"))
    try:
        statuses = run_until_started(tmp_path, lambda: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, handler_before)
    assert statuses == [7, 7] and read_logs(tmp_path) == ["started\nsaved\n"] * 2


def test_nohup_is_not_changed(tmp_path):
    handler_before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        command = [sys.executable, "-c", "import time; time.sleep(0.5)"]
        hang_up = functools.partial(os.kill, os.getpid(), signal.SIGHUP)
        assert workers.run_local(command, [{}], tmp_path, hang_up) == [0]
    finally:
        signal.signal(signal.SIGHUP, handler_before)


@pytest.mark.parametrize("n_workers", [0, 1, 2], ids=["planner", "one worker", "two workers"])
def test_signal_during_the_start_reaches_each_worker(tmp_path, monkeypatch, n_workers):
    start_process, n_started = subprocess.Popen, []

    def start_and_signal(*arguments, **options) -> subprocess.Popen:
        process = start_process(*arguments, **options)
        if not n_started:
            os.kill(os.getpid(), signal.SIGTERM)
        n_started.append(1)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_signal)
    command = [sys.executable, "-c", "import time; time.sleep(3)"]
    if n_workers:
        statuses = workers.run_local(command, [{}] * n_workers, tmp_path, lambda: None)
    else:
        statuses = [workers.run_planner(command, [{}])]
    assert statuses == [128 + signal.SIGTERM] * max(n_workers, 1)


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


@pytest.mark.parametrize(
    ("n_runs", "shares"), [(4, ["0", "1", "2"]), (2, ["0,1", "2,3"]), (1, ["0,1,2,3"])]
)
def test_devices_are_divided_among_the_pending_runs(folder, monkeypatch, n_runs, shares):
    """Three of four runs are parallel: a run waits for its parent."""
    started = []

    def run_local(command: list[str], environments: list[dict], *_) -> None:
        started.append((command[-3:], [environment[GPU] for environment in environments]))
        raise ValueError("the workers would start")

    monkeypatch.setattr(workers, "count_devices", lambda: workers.Devices("gpu", 4))
    monkeypatch.setattr(workers, "run_planner", lambda command, environments: 0)
    monkeypatch.setattr(workers, "run_local", run_local)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    result = commands.run_command(folder, "sweep", f"--sweep=sweep.py:{n_runs}", "--jobs=8")
    assert "the workers would start" in result.stderr
    (flags, used_shares) = started[0]
    assert used_shares == shares and flags[0] == f"--jobs={len(shares)}"
    assert flags[2] == f"--worker_devices=gpu:{4 // len(shares)}"


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
