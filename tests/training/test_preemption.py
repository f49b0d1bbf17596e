"""Signals and the stall watchdog."""

import signal
import subprocess
import sys

import pytest

from lm.runs import lock
from lm.training import preemption

# The watchdog checks often in the processes that these tests start.
IMPORTS = (
    "import sys, time; from lm.runs import filesystem, lock; from lm.training import preemption\n"
    "preemption.CHECK_SECONDS = 0.05\n"
)


def test_signal_before_the_first_step_interrupts_at_once():
    with preemption.SignalHandler(), pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_first_signal_sets_stop_and_second_interrupts(number):
    before = signal.getsignal(number)
    with preemption.SignalHandler() as signals:
        signals.record_progress()
        assert not signals.stop
        signal.raise_signal(number)
        assert signals.stop == number.name
        with pytest.raises(preemption.Interrupted) as raised:
            signal.raise_signal(number)
        assert raised.value.signal_name == number.name
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_stalled_process_exits_and_writes_its_stacks(tmp_path):
    script = IMPORTS + (
        "run_lock = lock.RunLock(sys.argv[1])\n"
        "with run_lock, preemption.StallWatchdog(sys.argv[1], 2.0) as watchdog:\n"
        "    for _ in range(15):\n"
        "        time.sleep(0.1); watchdog.record_progress()\n"
        "    print('was alive', flush=True)\n"
        "    def stuck_function(): time.sleep(60)\n"
        "    stuck_function()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == preemption.EXIT_STALLED == 124
    assert done.stdout == "was alive\n" and "no progress for 2 seconds" in done.stderr
    assert "stuck_function" in (tmp_path / "stalled.txt").read_text()
    with lock.RunLock(tmp_path):  # the lock of the ended process is dead
        pass


def test_stalled_process_exits_while_its_disk_blocks(tmp_path):
    script = IMPORTS + (
        "lock.HEARTBEAT_SECONDS = 0.05\n"
        "with preemption.StallWatchdog(sys.argv[1], 0.2, process=1):\n"
        "    filesystem.write_file = lambda *_: time.sleep(60)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == preemption.EXIT_STALLED and "stalled-1.txt" in done.stderr


@pytest.mark.slow
def test_cpu_time_of_a_long_call_is_progress(tmp_path):
    """A compilation may take longer than the limit. A call that only waits is a stall."""
    script = IMPORTS + (
        "with preemption.StallWatchdog(sys.argv[1], 1.0) as watchdog, watchdog.long_call():\n"
        "    with watchdog.long_call():\n"
        "        pass\n"
        "    end = time.monotonic() + 1.6\n"
        "    while time.monotonic() < end: pass\n"
        "    print('the long call ended', flush=True)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == preemption.EXIT_STALLED
    assert done.stdout == "the long call ended\n"


def test_cpu_time_outside_of_a_long_call_is_no_progress(tmp_path):
    """A step that waits for another device may use CPU time forever."""
    script = IMPORTS + (
        "with preemption.StallWatchdog(sys.argv[1], 0.3) as watchdog:\n    while True: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == preemption.EXIT_STALLED


def test_watchdog_without_a_limit_starts_no_thread(tmp_path):
    with preemption.StallWatchdog(tmp_path, 0.0) as watchdog:
        watchdog.record_progress()
    assert not list(tmp_path.iterdir())


def test_shared_watchdog_watches_until_its_last_context_ends(tmp_path):
    script = IMPORTS + (
        "watchdog = preemption.StallWatchdog(sys.argv[1], 0.3)\n"
        "with watchdog:\n"
        "    with watchdog: pass\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == preemption.EXIT_STALLED
    with preemption.StallWatchdog(tmp_path, 60.0) as watchdog:
        pass
    assert watchdog._exited.is_set()
