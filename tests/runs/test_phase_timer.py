"""Phase timer and goodput."""

import json
import time

import pytest

from lm.runs import phase_timer, records
from lm.training import loop


class Hands:
    """A clock whose time is set by the test."""

    at = 0.0

    def __call__(self) -> float:
        return self.at


def seconds(**parts: float) -> dict:
    return {f"clock.{part}": value for part, value in parts.items()}


def test_phases_add_up_to_wall_time():
    hands = Hands()
    timer = phase_timer.PhaseTimer(hands)
    hands.at = 2.0
    timer.rest("start")
    with pytest.raises(OSError), timer.of("save"):
        hands.at = 5.0
        raise OSError  # a save that fails took its time all the same
    hands.at = 6.0
    row = timer.row()
    assert (row["clock.start"], row["clock.save"], row["clock.other"]) == (2.0, 3.0, 1.0)
    assert sum(row.values()) == 6.0


def test_repeated_steps_and_input_waits_reduce_goodput():
    ended = seconds(start=1.0, steps=9.0, input=1.0)
    total = phase_timer.combine_attempts(
        [ended, seconds(start=1.0, steps=7.0, input=1.0, save=1.0)], useful=12.0
    )
    assert total["clock.lost"] == pytest.approx(6.0)
    assert total["clock.steps"] + total["clock.input"] == pytest.approx(12.0)
    assert total["clock.goodput"] == pytest.approx(total["clock.steps"] / 21.0)
    assert sum(total.values()) - total["clock.goodput"] == pytest.approx(21.0)


def test_attempts_returns_the_last_step_of_each_attempt(tmp_path):
    lines = [(1, 2), (1, 4), (2, 4), (3, 6)]
    rows = [{"attempt": attempt, "step": step} for attempt, step in lines]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert records.count_attempts(tmp_path, before=3) == [rows[1], rows[2]]


def test_run_records_its_time_by_phase(tiny):
    began = time.perf_counter()
    loop.train(tiny)
    took = time.perf_counter() - began
    facts = records.read_facts(records.run_dir(tiny))
    parts = {part: facts[f"clock.{part}"] for part in (*phase_timer.PHASES, "lost")}
    assert all(value >= 0 for value in parts.values()), parts
    assert 0.5 * took < sum(parts.values()) <= took and parts["other"] < 0.5 * took
    assert parts["steps"] + parts["input"] == pytest.approx(facts["seconds"])
    assert min(parts[part] for part in ("compile", "evaluate", "save", "log")) > 0
    assert 0 < facts["clock.goodput"] < 1 and parts["lost"] == 0
