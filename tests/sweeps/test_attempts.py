"""Attempts of a run that failed or whose process was killed."""

import dataclasses
import errno
import json

import pytest

from lm.config import flops, schema
from lm.runs import filesystem, lock, records
from lm.sweeps import attempts, launcher
from lm.training import loop, vmapped_runs


@pytest.fixture
def run(tiny) -> schema.Run:
    return dataclasses.replace(tiny, name="s/a")


def start(run: schema.Run, *_) -> None:
    records.start_run(run, flops.run_facts(run))


def kill(run: schema.Run) -> None:
    """Leave the files of an attempt whose process was killed: its status and its lock file."""
    start(run)
    folder = records.run_dir(run)
    with lock.RunLock(folder) as run_lock:
        owner = json.loads(run_lock.path.read_text())
    dead_process = json.dumps(owner | {"born": "before"})
    filesystem.write_file(folder / "lock-1-dead", dead_process)


def finish(run: schema.Run, *_) -> None:
    start(run)
    records.write_facts(records.run_dir(run), status="done")


def read_fact(run: schema.Run, name: str) -> object:
    return records.read_facts(records.run_dir(run)).get(name)


def test_run_whose_process_dies_each_time_has_failed(run, monkeypatch):
    """A killed process leaves the status running. After MAX_CRASHES the run is not started."""
    started = []

    def killed(run, *reports):
        started.append(run.name)
        kill(run)
        raise KeyboardInterrupt  # ends run_pending like a kill

    monkeypatch.setattr(loop, "train", killed)
    options = launcher.WorkerOptions("1")
    for _ in range(attempts.MAX_CRASHES + 1):
        with pytest.raises(KeyboardInterrupt):
            launcher.run_pending([run], options=options)
    launcher.run_pending([run], options=options)
    assert len(started) == attempts.MAX_CRASHES + 1
    with pytest.raises(KeyboardInterrupt):
        launcher.run_pending([run])  # another submission starts it again


def test_death_counts_once_if_several_workers_select_the_run(run, monkeypatch):
    """Each worker that selects the run finds the status running until a worker trains it."""
    n_selected = []

    def train(run, *reports):
        n_selected.append(1)
        if len(n_selected) < 6:
            raise lock.RunLocked("another worker was faster")
        finish(run)

    kill(run)
    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(launcher.time, "sleep", lambda seconds: None)
    launcher.run_pending([run], options=launcher.WorkerOptions("1", wait="always"))
    assert read_fact(run, "status") == "done" and read_fact(run, "crashed_in") == ["1"]


def test_two_deaths_count_twice(run):
    for _ in range(2):
        kill(run)
        for _ in range(2):
            attempts.record_crash(run, "1")
    assert read_fact(run, "crashed_in") == ["1", "1"]


def test_failure_of_a_common_program_is_no_crash(run, monkeypatch):
    group = [run, dataclasses.replace(run, name="s/b", seed=run.seed + 1)]

    def fail(runs, *reports):
        for run in runs:
            start(run)
        raise RuntimeError("broken")

    monkeypatch.setattr(vmapped_runs, "train_vmapped", fail)
    monkeypatch.setattr(loop, "train", finish)
    launcher.run_pending(group, options=launcher.WorkerOptions("1", max_vmapped=2))
    assert [read_fact(run, "status") for run in group] == ["done", "done"]
    assert [read_fact(run, "crashed_in") for run in group] == [None, None]


def test_facts_of_the_holder_of_the_lock_do_not_change(run):
    """Another worker continues the run before the failure or death is recorded."""
    kill(run)
    with lock.RunLock(records.run_dir(run)):
        before = records.read_facts(records.run_dir(run))
        attempts.record_crash(run, "1")
        attempts.record_failure(run, "broken", "1")
        assert records.read_facts(records.run_dir(run)) == before


def test_other_worker_continues_a_failed_run_at_once(run, monkeypatch):
    """The lock of the failed attempt is free before the failure is recorded."""
    run_lock = lock.RunLock(records.run_dir(run))

    def fail(run, *reports):
        start(run)
        run_lock.__enter__()
        raise RuntimeError("broken")

    monkeypatch.setattr(loop, "train", fail)
    launcher.run_pending([run], options=launcher.WorkerOptions("1"))
    assert read_fact(run, "status") == "running" and read_fact(run, "failed_in") is None
    run_lock.__exit__()


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EPIPE]
)
def test_failed_disk_or_output_stops_the_sweep(run, monkeypatch, number):
    def fail(run, *reports):
        raise OSError(number, "no file can be written")

    monkeypatch.setattr(loop, "train", fail)
    with pytest.raises(OSError, match="no file can be written"):
        launcher.run_pending([run])
    assert read_fact(run, "status") is None


@pytest.mark.parametrize("can_record", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"),
        PermissionError(errno.EACCES, "Permission denied", "a.txt"),
        TimeoutError("the source does not respond"),
    ],
)
def test_file_error_of_one_run_does_not_stop_the_sweep(run, monkeypatch, error, can_record):
    """A run whose folder cannot be written is not selected again."""
    child = dataclasses.replace(run, name="s/child", start=schema.Start(run="s/a"))
    runs, reasons, started = [run, dataclasses.replace(run, name="s/b"), child], {}, []

    def train(run, *reports):
        started.append(run.name)
        if run.name == "s/a":
            raise error
        finish(run)

    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "error.txt")

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(launcher.time, "sleep", lambda seconds: pytest.fail("the worker waits"))
    if not can_record:
        monkeypatch.setattr(lock, "RunLock", fail)
    launcher.run_pending(
        runs,
        on_end=lambda run, reason: reasons.update({run.name: reason}),
        options=launcher.WorkerOptions("1", wait="always"),
    )
    assert started == ["s/a", "s/b"]
    assert reasons == {"s/a": f"{type(error).__name__}: {error}", "s/b": ""}
    assert read_fact(run, "status") == ("failed" if can_record else None)
