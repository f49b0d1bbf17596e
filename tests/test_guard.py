import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lm import guard


def test_one_process_at_a_time(tmp_path):
    with guard.Guard(tmp_path):
        assert guard.is_alive(tmp_path)
        with pytest.raises(
            guard.Taken, match=f"trained by process {os.getpid()} on .*heartbeat 0 s"
        ):
            guard.Guard(tmp_path).__enter__()
    assert not guard.is_alive(tmp_path) and not (tmp_path / "lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "lock").write_text(json.dumps(guard._myself() | {"pid": gone.pid}))
    assert not guard.is_alive(tmp_path)
    with guard.Guard(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_the_lock_of_another_machine_is_respected_until_its_heart_stops(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(guard.Taken, match="process 1 on elsewhere"):
        guard.Guard(tmp_path).__enter__()
    old = time.time() - guard.STALE_SECONDS - 1
    os.utime(tmp_path / "lock", (old, old))
    with guard.Guard(tmp_path):
        assert guard.is_alive(tmp_path)


def test_a_torn_lock_is_no_owner(tmp_path):
    (tmp_path / "lock").write_text('{"ho')
    assert guard.is_alive(tmp_path)  # somebody on some machine may be writing it
    old = time.time() - guard.STALE_SECONDS - 1
    os.utime(tmp_path / "lock", (old, old))
    assert not guard.is_alive(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_once_and_insists_twice(tmp_path, number):
    before = signal.getsignal(number)
    with guard.Guard(tmp_path) as watch:
        assert not watch.stop
        signal.raise_signal(number)
        assert watch.stop == number.name
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_process_without_progress_ends_with_its_own_status_and_its_stacks(tmp_path):
    script = (
        "import sys, time; from lm import guard; guard.BEAT_SECONDS = 0.05\n"
        "with guard.Guard(sys.argv[1], stall_seconds=0.6) as watch:\n"
        "    for _ in range(15):\n"
        "        time.sleep(0.1); watch.beat()\n"
        "    print('was alive', flush=True)\n"
        "    def stuck_here(): time.sleep(60)\n"
        "    stuck_here()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == guard.STALLED == 124
    assert done.stdout == "was alive\n" and "no progress for 0.6 seconds" in done.stderr
    assert "stuck_here" in (tmp_path / "stalled.txt").read_text()
    with guard.Guard(tmp_path):  # and its lock does not outlive it
        pass
