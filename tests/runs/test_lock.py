"""Lock of a run directory."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from lm.runs import filesystem, lock


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    if request.param == "local":
        return tmp_path
    request.getfixturevalue("bucket")
    return filesystem.open_path("gs://bucket/run")


def lock_files(folder) -> list:
    return lock._lock_files(filesystem.open_path(folder))


def own_lock() -> dict:
    """Return the contents of a lock file of this process."""
    return json.loads(lock._lock_contents(held=True))


def write_lock(folder, age: float = 0.0, **owner) -> pathlib.Path:
    """Write the lock file of a process on another machine with a heartbeat `age` seconds ago."""
    path = folder / "lock-1-other"
    contents = {"host": "elsewhere", "machine": "other", "pid": 1, "born": "", "held": True}
    heartbeat = time.time() - age
    filesystem.write_file(path, json.dumps(contents | {"time": heartbeat} | owner))
    if not filesystem.is_remote(path):
        os.utime(path, (heartbeat, heartbeat))
    return path


def assert_locked(folder, message: str = "trained by process") -> None:
    with pytest.raises(lock.RunLocked, match=message):
        lock.RunLock(folder).__enter__()


def test_one_process_at_a_time_has_the_lock(folder):
    with lock.RunLock(folder):
        assert lock.is_alive(folder)
        assert_locked(folder, f"trained by process {os.getpid()} on .*heartbeat 0 s")
        assert len(lock_files(folder)) == 1
    assert not lock.is_alive(folder) and not lock_files(folder)


def test_one_of_five_simultaneous_processes_gets_the_lock(folder):
    start, acquired, refused = threading.Barrier(5), [], []

    def enter():
        run_lock = lock.RunLock(folder)
        start.wait()
        try:
            acquired.append(run_lock.__enter__())
        except lock.RunLocked:
            refused.append(run_lock)

    threads = [threading.Thread(target=enter) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(acquired), len(refused)) == (1, 4)
    assert lock_files(folder) == [acquired[0].path]
    acquired[0].__exit__()


def test_lock_of_a_dead_process_is_taken_over(folder):
    """A zombie process and a process with a reused pid are dead."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    write_lock(folder, **own_lock() | {"pid": child.pid})
    assert not lock.is_alive(folder)
    child.wait()
    write_lock(folder, **own_lock() | {"born": "1"})
    assert not lock.is_alive(folder)
    with lock.RunLock(folder) as run_lock:
        assert lock_files(folder) == [run_lock.path]


def test_living_process_of_this_machine_needs_no_heartbeat(folder):
    write_lock(folder, age=1e6, **own_lock() | {"time": 0.0})
    assert_locked(folder)


def test_lock_of_another_machine_expires_without_heartbeat(folder):
    write_lock(folder, age=30)
    assert lock.is_alive(folder)
    assert_locked(folder, "process 1 on elsewhere .heartbeat 30 s ago")
    write_lock(folder, age=lock.STALE_SECONDS + 1)
    assert not lock.is_alive(folder)
    with lock.RunLock(folder) as run_lock:
        assert lock_files(folder) == [run_lock.path]


@pytest.mark.parametrize("hours", [-3, 3])
def test_heartbeat_of_a_wrong_clock_is_respected(folder, hours):
    clock_error, stop = 3600 * hours, threading.Event()
    write_lock(folder, age=clock_error)

    def send_heartbeats():
        while not stop.wait(0.05):
            write_lock(folder, age=clock_error)

    thread = threading.Thread(target=send_heartbeats)
    thread.start()
    assert_locked(folder, "elsewhere")
    stop.set()
    thread.join()
    with lock.RunLock(folder):  # the lock is free after the last heartbeat
        pass


def test_unreadable_lock_is_respected_until_it_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    path = write_lock(tmp_path)
    path.write_text('{"ho')
    assert_locked(tmp_path)
    os.utime(path, (0, 0))
    with lock.RunLock(tmp_path):
        pass


def test_process_exits_when_its_lock_is_taken_over(tmp_path):
    script = (
        "import sys, time; from lm.runs import lock; lock.HEARTBEAT_SECONDS = 1.0\n"
        "with lock.RunLock(sys.argv[1]) as run_lock:\n"
        "    run_lock.path.unlink()\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == lock.EXIT_LOCK_LOST == 75
    assert "its lock file is missing" in done.stderr
    assert "its lock file is missing" in (tmp_path / "stalled.txt").read_text()


@pytest.mark.parametrize("content", ["[]", "7", "{", '{"machine": "%s"}', '{"pid": "1"}', "\ufffd"])
def test_damaged_lock_file_belongs_to_no_process(tmp_path, content):
    """The heartbeat of such a file decides."""
    path = tmp_path / "lock-1-other"
    path.write_text(content.replace("%s", lock._machine_id()))
    assert lock.is_alive(tmp_path)
    os.utime(path, (1, 1))
    assert not lock.is_alive(tmp_path)


def test_next_lock_removes_the_file_of_a_killed_write(tmp_path):
    old, recent = tmp_path / ".lock-7-aa.host-7-bb", tmp_path / ".lock-8-aa.host-8-bb"
    for path, age in ((old, 60), (recent, 0)):
        path.write_text("{")
        os.utime(path, (time.time() - age,) * 2)
    with lock.RunLock(tmp_path):
        assert recent.exists() and not old.exists()
