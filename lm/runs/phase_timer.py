"""Seconds per phase of a run, and goodput: the fraction of time spent in useful steps.

    timer = PhaseTimer()                                 # at the start of an attempt
    with timer.phase("evaluate"):                        # or timer.add("steps", seconds)
        ...
    timer.as_metrics()                                   # {"clock.steps": 41.0, ...}
    combine_attempts([row, row], useful_seconds=40.2)    # all attempts; repeated steps are lost

An attempt is one training session of the run. Its phases add up to its wall time:

start     prepare the text, acquire the lock, read a checkpoint
compile   compile, up to the first step, and the evaluation before its first use
steps     compute steps, without the wait for input
input     wait for the next batch
log       fetch and write metrics
evaluate  held-out loss and tasks
save      wait for checkpoints, including the last checkpoint at the end
other     all remaining time
"""

import contextlib
import time
from collections.abc import Iterable, Iterator

PHASES = ("start", "compile", "steps", "input", "log", "evaluate", "save", "other")


class PhaseTimer:
    """Timer of one attempt. The timer starts when it is created.

    now: function that returns the seconds of a monotonic clock.
    """

    def __init__(self, now=time.perf_counter):
        self._now, self._start = now, now()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the duration of the context to a phase, a name in PHASES."""
        start = self._now()
        try:
            yield
        finally:
            self.add(name, self._now() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase."""
        assert phase in PHASES, phase
        self._seconds[phase] += seconds

    def assign_remainder(self, phase: str) -> None:
        """Add all time until now that belongs to no phase to this phase."""
        self.add(phase, self._unassigned())

    def as_metrics(self) -> dict[str, float]:
        """Return {"clock.PHASE": seconds}. The values add up to the time since the start."""
        seconds = {f"clock.{phase}": self._seconds[phase] for phase in PHASES[:-1]}
        return seconds | {"clock.other": self._unassigned()}

    def _unassigned(self) -> float:
        return self._now() - self._start - sum(self._seconds.values())


def combine_attempts(rows: Iterable[dict], useful_seconds: float) -> dict[str, float]:
    """Add up the rows of all attempts of a run, and return them with two more columns.

    clock.lost are the seconds of repeated steps, which follow the last checkpoint of an interrupted
    attempt. clock.goodput is the fraction of all seconds that were spent in useful steps, without
    the wait for input. useful_seconds: seconds of the steps that were not repeated, with their wait
    for input.
    """
    rows = list(rows)
    seconds: dict[str, float] = {
        f"clock.{phase}": sum(row.get(f"clock.{phase}", 0.0) for row in rows) for phase in PHASES
    }
    step_seconds = seconds["clock.steps"] + seconds["clock.input"]
    lost = max(0.0, step_seconds - useful_seconds)
    useful_fraction = 1 - lost / step_seconds if step_seconds else 0.0
    wall_time = sum(seconds.values())
    for phase in ("steps", "input"):
        seconds[f"clock.{phase}"] *= useful_fraction
    seconds["clock.lost"] = lost
    seconds["clock.goodput"] = seconds["clock.steps"] / wall_time if wall_time else 0.0
    return seconds
