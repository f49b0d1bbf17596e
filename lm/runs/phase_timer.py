"""Timer of the phases of a run, and goodput: the share of time spent in useful steps.

    clock = Clock()                       at the start of an attempt
    with clock.of("evaluate"): ...        or clock.add("steps", seconds)
    clock.row()                           {"clock.steps": 41.0, ..., "clock.other": 0.3}
    total([row, row], useful=40.2)        all attempts; repeated steps count as lost

The phases of an attempt add up to its wall time:

start     data, lock, reading a checkpoint      log       fetching and writing metrics
compile   from there to the first step          evaluate  held-out loss and tasks
steps     without the wait for input            save      waiting for checkpoints, including the
input     waiting for the next batch                      last one at the end
other     the rest
"""

import contextlib
import time
from collections.abc import Iterable, Iterator

PHASES = ("start", "compile", "steps", "input", "log", "evaluate", "save", "other")


class PhaseTimer:
    """Timer of one attempt. It starts when it is created.

    now: function that returns the seconds of a monotonic clock.
    """

    def __init__(self, now=time.perf_counter):
        self._now, self._start = now, now()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time of the context to a phase."""
        start = self._now()
        try:
            yield
        finally:
            self.add(part, self._now() - start)

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a phase."""
        assert part in PHASES, part
        self._seconds[part] += seconds

    def rest(self, part: str) -> None:
        """Add all time until now that belongs to no phase to this phase."""
        self.add(part, self._unassigned())

    def row(self) -> dict[str, float]:
        """Return the seconds of each phase. They add up to the time since the start."""
        seconds = {f"clock.{part}": self._seconds[part] for part in PHASES[:-1]}
        return seconds | {"clock.other": self._unassigned()}

    def _unassigned(self) -> float:
        return self._now() - self._start - sum(self._seconds.values())


def combine_attempts(rows: Iterable[dict], useful: float) -> dict[str, float]:
    """Combine the rows of all attempts of a run.

    useful: seconds of steps that were not repeated. clock.lost are the seconds of repeated steps,
    those after the last checkpoint of an interrupted attempt. clock.goodput is the share of all
    seconds in useful steps, without the wait for input.
    """
    rows = list(rows)
    seconds: dict[str, float] = {
        f"clock.{part}": sum(row.get(f"clock.{part}", 0.0) for row in rows) for part in PHASES
    }
    stepped = seconds["clock.steps"] + seconds["clock.input"]
    lost = max(0.0, stepped - useful)
    useful_share = 1 - lost / stepped if stepped else 0.0
    wall_time = sum(seconds.values())
    for part in ("steps", "input"):
        seconds[f"clock.{part}"] *= useful_share
    seconds["clock.lost"] = lost
    seconds["clock.goodput"] = seconds["clock.steps"] / wall_time if wall_time else 0.0
    return seconds
