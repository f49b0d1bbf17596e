"""Where the seconds of a run go: its goodput, and what took the rest.

    clock = Clock()                       at the beginning of an attempt
    with clock.of("evaluate"): ...        or clock.add("steps", seconds)
    clock.row()                           {"clock.steps": 41.0, ..., "clock.other": 0.3}
    total([row, row], useful=40.2)        of all attempts: steps that had to be done again are lost

The parts of an attempt add up to its seconds:

start     text, claim, reading a checkpoint      log       reading metrics back and writing them
compile   from there to the first step           evaluate  held-out text and tasks
steps     without the wait for input             save      the part of a checkpoint that training
input     waiting for the next batch                       waits for, and the end of the last one
other     what is none of these
"""

import contextlib
import time
from collections.abc import Iterable, Iterator

PARTS = ("start", "compile", "steps", "input", "log", "evaluate", "save", "other")


class Clock:
    """Of one attempt, from now on. now: seconds of a clock that only goes on."""

    def __init__(self, now=time.perf_counter):
        self._now, self._began = now, now()
        self._spent = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What happens within counts as this part."""
        began = self._now()
        try:
            yield
        finally:
            self.add(part, self._now() - began)

    def add(self, part: str, seconds: float) -> None:
        assert part in PARTS, part
        self._spent[part] += seconds

    def rest(self, part: str) -> None:
        """What no part has of the time until now was this one."""
        self.add(part, self._now() - self._began - sum(self._spent.values()))

    def row(self) -> dict[str, float]:
        """Seconds of each part until now, which add up to those since the beginning."""
        other = self._now() - self._began - sum(self._spent.values())
        return {f"clock.{part}": self._spent[part] for part in PARTS[:-1]} | {"clock.other": other}


def total(rows: Iterable[dict], useful: float) -> dict[str, float]:
    """Of a run's attempts together, a row each; useful: seconds of the steps that count.

    clock.lost are those of steps after the last checkpoint of an attempt that ended early;
    clock.goodput is the share of all seconds in steps that count, waits for input left out.
    """
    rows = list(rows)
    found = {f"clock.{part}": sum(row.get(f"clock.{part}", 0.0) for row in rows) for part in PARTS}
    stepped = found["clock.steps"] + found["clock.input"]
    lost = max(0.0, stepped - useful)
    kept = 1 - lost / stepped if stepped else 0.0
    whole = sum(found.values())
    found |= {f"clock.{part}": found[f"clock.{part}"] * kept for part in ("steps", "input")}
    found["clock.lost"] = lost
    found["clock.goodput"] = found["clock.steps"] / whole if whole else 0.0
    return found
