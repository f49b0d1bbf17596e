"""Phase timer and goodput."""

import json
import time

import pytest

from lm.runs import phase_timer, records
from lm.training import loop


class FakeClock:
    """A clock whose time is set by the test."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def columns(**seconds: float) -> dict:
    return {f"clock.{phase}": value for phase, value in seconds.items()}


def test_phases_add_up_to_wall_time():
    """A phase that raises an exception counts too."""
    clock = FakeClock()
    timer = phase_timer.PhaseTimer(clock)
    clock.seconds = 2.0
    timer.assign_remainder("start")
    with pytest.raises(OSError), timer.phase("save"):
        clock.seconds = 5.0
        raise OSError
    clock.seconds = 6.0
    row = timer.as_metrics()
    assert (row["clock.start"], row["clock.save"], row["clock.other"]) == (2.0, 3.0, 1.0)
    assert sum(row.values()) == 6.0


def test_repeated_steps_and_input_waits_reduce_goodput():
    first = columns(start=1.0, steps=9.0, input=1.0)
    second = columns(start=1.0, steps=7.0, input=1.0, save=1.0)
    total = phase_timer.combine_attempts([first, second], useful_seconds=12.0)
    assert total["clock.lost"] == pytest.approx(6.0)
    assert total["clock.steps"] + total["clock.input"] == pytest.approx(12.0)
    assert total["clock.goodput"] == pytest.approx(total["clock.steps"] / 21.0)
    assert sum(total.values()) - total["clock.goodput"] == pytest.approx(21.0)


def test_attempts_returns_the_last_step_of_each_attempt(tmp_path):
    rows = [{"attempt": a, "step": step} for a, step in [(1, 2), (1, 4), (2, 4), (3, 6)]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert records.attempt_metrics(tmp_path, before=3) == [rows[1], rows[2]]


def test_run_records_its_time_by_phase(tiny):
    start = time.perf_counter()
    loop.train(tiny)
    wall_seconds = time.perf_counter() - start
    facts = records.read_facts(records.run_dir(tiny))
    seconds = {phase: facts[f"clock.{phase}"] for phase in (*phase_timer.PHASES, "lost")}
    assert all(value >= 0 for value in seconds.values()), seconds
    assert 0.5 * wall_seconds < sum(seconds.values()) <= wall_seconds
    assert seconds["other"] < 0.5 * wall_seconds
    assert seconds["steps"] + seconds["input"] == pytest.approx(facts["seconds"])
    assert min(seconds[phase] for phase in ("compile", "evaluate", "save", "log")) > 0
    assert 0 < facts["clock.goodput"] < 1 and seconds["lost"] == 0
