import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from lm.runs import filesystem, lock


@pytest.fixture(params=["here", "bucket"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    if request.param == "here":
        return tmp_path
    request.getfixturevalue("bucket")
    return filesystem.open_path("gs://bucket/run")


def claims(folder) -> list:
    return lock._claims(filesystem.open_path(folder))


def claim(folder, age: float = 0.0, **who) -> pathlib.Path:
    """That of a process on another machine, whose heart last beat `age` seconds ago."""
    path = folder / "lock-1-other"
    said = {"host": "elsewhere", "machine": "other", "pid": 1, "born": "", "held": True}
    when = time.time() - age
    filesystem.write_file(path, json.dumps(said | {"time": when} | who))
    if not filesystem.is_remote(path):
        os.utime(path, (when, when))
    return path


def test_one_process_at_a_time(folder):
    with lock.Guard(folder):
        assert lock.is_alive(folder)
        with pytest.raises(
            lock.RunLocked, match=f"trained by process {os.getpid()} on .*heartbeat 0 s"
        ):
            lock.Guard(folder).__enter__()
        assert len(claims(folder)) == 1
    assert not lock.is_alive(folder) and not claims(folder)


def test_of_many_that_start_at_once_one_trains(folder):
    start, held, refused = threading.Barrier(5), [], []

    def enter():
        watch = lock.Guard(folder)
        start.wait()
        try:
            held.append(watch.__enter__())
        except lock.RunLocked:
            refused.append(watch)

    threads = [threading.Thread(target=enter) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 4)
    assert claims(folder) == [held[0].claim]
    held[0].__exit__()


def test_the_claim_of_a_dead_process_is_taken_over(folder):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    mine = json.loads(lock._claim_contents(held=True))
    claim(folder, **mine | {"pid": gone.pid})  # ended, though nobody has waited for it yet
    assert not lock.is_alive(folder)
    gone.wait()
    claim(folder, **mine | {"born": "1"})  # its number was given to a process of today
    assert not lock.is_alive(folder)
    with lock.Guard(folder) as watch:
        assert claims(folder) == [watch.claim]


def test_a_process_that_sleeps_on_this_machine_keeps_its_run(folder):
    claim(folder, age=1e6, **{**json.loads(lock._claim_contents(held=True)), "time": 0.0})
    with pytest.raises(lock.RunLocked):
        lock.Guard(folder).__enter__()


def test_another_machine_is_respected_until_its_heart_stops(folder):
    claim(folder, age=30)
    assert lock.is_alive(folder)
    with pytest.raises(lock.RunLocked, match="process 1 on elsewhere .heartbeat 30 s ago"):
        lock.Guard(folder).__enter__()
    claim(folder, age=lock.STALE_SECONDS + 1)
    assert not lock.is_alive(folder)
    with lock.Guard(folder) as watch:
        assert claims(folder) == [watch.claim]


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_heart_that_beats_by_a_wrong_clock_is_respected(folder, hours):
    wrong, stop = 3600 * hours, threading.Event()
    claim(folder, age=wrong)

    def beat():
        while not stop.wait(0.05):
            claim(folder, age=wrong)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(lock.RunLocked, match="elsewhere"):
        lock.Guard(folder).__enter__()
    stop.set()
    thread.join()
    with lock.Guard(folder):  # and once it has stopped, the run can go on
        pass


def test_an_unreadable_claim_is_somebodys_until_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    path = claim(tmp_path)
    path.write_text('{"ho')
    with pytest.raises(lock.RunLocked):
        lock.Guard(tmp_path).__enter__()
    os.utime(path, (0, 0))
    with lock.Guard(tmp_path):
        pass


def test_whose_claim_was_taken_over_while_it_slept_ends_before_it_writes_more(tmp_path):
    script = (
        "import sys, time; from lm.runs import lock; lock.BEAT_SECONDS = 0.05\n"
        "with lock.Guard(sys.argv[1]) as watch:\n"
        "    watch.claim.unlink()\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == lock.EXIT_LOCK_LOST == 75 and "its claim is missing" in done.stderr


def test_before_the_first_step_a_signal_ends_it_at_once(tmp_path):
    with lock.Guard(tmp_path), pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_once_and_insists_twice(tmp_path, number):
    before = signal.getsignal(number)
    with lock.Guard(tmp_path) as watch:
        watch.beat()
        assert not watch.stop
        signal.raise_signal(number)
        assert watch.stop == number.name
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_process_without_progress_ends_with_its_own_status_and_its_stacks(tmp_path):
    script = (
        "import sys, time; from lm.runs import lock; lock.BEAT_SECONDS = 0.05\n"
        "with lock.Guard(sys.argv[1], stall_seconds=0.6) as watch:\n"
        "    for _ in range(15):\n"
        "        time.sleep(0.1); watch.beat()\n"
        "    print('was alive', flush=True)\n"
        "    def stuck_here(): time.sleep(60)\n"
        "    stuck_here()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == lock.EXIT_STALLED == 124
    assert done.stdout == "was alive\n" and "no progress for 0.6 seconds" in done.stderr
    assert "stuck_here" in (tmp_path / "stalled.txt").read_text()
    with lock.Guard(tmp_path):  # and its lock does not outlive it
        pass


def test_a_stall_that_the_disk_causes_still_ends(tmp_path):
    script = (
        "import sys, time; from lm.runs import filesystem; from lm.runs import lock;"
        " lock.BEAT_SECONDS = 0.05\n"
        "with lock.Guard(sys.argv[1], stall_seconds=0.2) as watch:\n"
        "    filesystem.write_file = lambda *_: time.sleep(60)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], timeout=30)
    assert done.returncode == lock.EXIT_STALLED
