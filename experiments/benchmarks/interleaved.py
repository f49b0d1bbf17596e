"""Programs that are measured in turns, each in a process of its own: what two sides take, paired.

    with Side("ours", command) as side:
        side.first                     # seconds from its start to its first step
        side.ask(10)                   # {"seconds": [...], ...} of ten more steps

A side does its first step, prints a line of JSON with the time that was ("now"), then answers each
number of steps that it reads with a line of JSON. While it waits it takes no core from the other.
"""

import contextlib
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence


class Side:
    """A context manager; RuntimeError with the last words of a side that ended."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str] | None = None):
        self.name, self._command, self._environment = name, command, environment or {}

    def __enter__(self) -> "Side":
        began = time.time()
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | self._environment,
        )
        self.hello = self._answer()
        self.first = self.hello["now"] - began
        return self

    def __exit__(self, *raised) -> None:
        self._process.communicate()  # the end of stdin ends it
        self._said.close()

    def ask(self, steps: int) -> dict:
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._said.seek(0)
        said = self._said.read().strip().splitlines()
        raise RuntimeError(f"{self.name} ended: {said[-1] if said else 'without a word'}")


def in_turns(sides: list[Side], n_turns: int, seconds: float) -> list[list[dict]]:
    """Of each side its answers: n_turns of about so many seconds, one side after another."""
    with contextlib.ExitStack() as stack:
        for side in sides:
            stack.enter_context(side)
        steps = []
        for side in sides:
            step = min(side.ask(3)["seconds"])
            steps.append(max(3, round(seconds / step)))
        found = [[] for _ in sides]
        for turn in range(n_turns):
            order = range(len(sides))
            for place in order if turn % 2 else reversed(order):
                found[place].append(sides[place].ask(steps[place]))
    return found


def timed(call: Callable[[], object], n: int, size: int = 1) -> dict:
    """An answer: wall and processor seconds a step, and bytes at most that were held.

    Of as many calls, of `size` steps each, as have n steps.
    """
    seconds, began, n = [], time.process_time(), -(-n // size) * size
    for _ in range(n // size):
        start = time.perf_counter()
        call()
        seconds.append((time.perf_counter() - start) / size)
    cpu, held = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "cpu": cpu / n, "memory": held * 1024}


def median(values: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """The median, and the ends of its 95% interval by bootstrap over the values."""
    import numpy as np

    found = np.asarray(values)
    drawn = np.random.default_rng(0).choice(found, (draws, len(found)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(found)), float(low), float(high)
