"""Interleaved timing of several programs, each in its own process.

    with Program("repository", command) as program:
        program.first_step_seconds     # seconds from the start of the process to its first step
        program.time_steps(10)         # {"seconds": [...], ...} of ten more steps

The command must follow this protocol. It runs one step and prints a JSON line whose "now" is the
time after that step. It then reads numbers of steps from stdin, one per line, and prints a JSON
line for each. A program waits for its next number without using a core, so that it does not slow
the others.
"""

import contextlib
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence


class Program:
    """Context manager of a process that times steps on request.

    Raises RuntimeError with the last line of stderr if the process ends early.
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str] | None = None):
        self.name, self._command, self._environment = name, command, environment or {}

    def __enter__(self) -> "Program":
        start = time.time()
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=os.environ | self._environment,
        )
        self.first_step_seconds = self._read_answer()["now"] - start
        return self

    def __exit__(self, *raised) -> None:
        self._process.communicate()  # closes stdin, which ends the process
        self._stderr.close()

    def time_steps(self, n_steps: int) -> dict:
        """Return the JSON answer of the process for `n_steps` steps."""
        assert self._process.stdin
        self._process.stdin.write(f"{n_steps}\n")
        self._process.stdin.flush()
        return self._read_answer()

    def _read_answer(self) -> dict:
        """Return the next JSON line of stdout. Lines that are not JSON objects are skipped."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._stderr.seek(0)
        messages = self._stderr.read().strip().splitlines()
        raise RuntimeError(f"{self.name} ended: {messages[-1] if messages else 'no message'}")


def time_interleaved(
    programs: list[Program], n_rounds: int, round_seconds: float
) -> list[list[dict]]:
    """Start the programs and time them in rounds. Return the answers of each program.

    In a round, each program runs for about `round_seconds`, one after another. The order of the
    programs is reversed in every second round, so that a drift of the machine affects all equally.
    """
    with contextlib.ExitStack() as stack:
        for program in programs:
            stack.enter_context(program)
        n_steps = []
        for program in programs:
            step_seconds = min(program.time_steps(3)["seconds"])
            n_steps.append(max(3, round(round_seconds / step_seconds)))
        answers = [[] for _ in programs]
        for round_index in range(n_rounds):
            order = range(len(programs))
            for i in order if round_index % 2 else reversed(order):
                answers[i].append(programs[i].time_steps(n_steps[i]))
    return answers


def timed(call: Callable[[], object], n_steps: int, steps_per_call: int = 1) -> dict:
    """Time at least `n_steps` steps in calls of `steps_per_call` steps. Return an answer.

    Its keys are "seconds" (a list of wall seconds per step, one per call), "cpu" (processor seconds
    per step) and "memory" (peak memory of the process in bytes).
    """
    seconds, cpu_start = [], time.process_time()
    n_calls = -(-n_steps // steps_per_call)
    for _ in range(n_calls):
        start = time.perf_counter()
        call()
        seconds.append((time.perf_counter() - start) / steps_per_call)
    cpu_seconds = time.process_time() - cpu_start
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cpu_per_step = cpu_seconds / (n_calls * steps_per_call)
    return {"seconds": seconds, "cpu": cpu_per_step, "memory": peak_bytes}


def median(values: Sequence[float], n_resamples: int = 2000) -> tuple[float, float, float]:
    """Return the median and its 95% bootstrap interval: (median, low, high)."""
    # torch_train.py imports this file with a Python that may have no numpy.
    import numpy as np

    sample = np.asarray(values)
    resamples = np.random.default_rng(0).choice(sample, (n_resamples, len(sample)))
    low, high = np.quantile(np.median(resamples, axis=1), (0.025, 0.975))
    return float(np.median(sample)), float(low), float(high)
