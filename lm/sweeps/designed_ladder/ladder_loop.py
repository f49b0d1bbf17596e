"""Train the runs of a designed ladder until its target is predicted precisely enough.

    state = ladder_loop.train_ladder(ladder, goal, folder, train, estimates, report)

The state of a ladder is its folder, so the same call continues an interrupted one.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lm.config import schema
from lm.runs import lock, records
from lm.sweeps.designed_ladder import ladder_cells, ladder_decision, ladder_record


def train_ladder(
    ladder: ladder_cells.DesignedLadder,
    goal: ladder_cells.LadderGoal,
    folder: Path,
    train: Callable[[schema.Run, list[schema.Run]], None],
    estimates: np.ndarray,
    report: Callable[[ladder_record.LadderDecision], None] = lambda decision: None,
) -> ladder_decision.LadderState:
    """Train chosen runs until the goal is reached or no run fits. Return the last state.

    train: trains a run; its second argument is all runs of the ladder so far. estimates: seconds of
    a run of each cell by the cost model, [m]. report: called with each new decision. Finished runs
    of the sweep file count as earlier decisions. An interrupted run continues if the time of the
    goal suffices. Raises ValueError if a run fails, and lock.RunLocked if another process trains
    the ladder.
    """
    with lock.RunLock(folder):
        decisions = _load_decisions(ladder, folder)
        while True:
            state = None
            for decision in _unfinished(ladder, decisions):
                arguments = ladder, goal, decisions, _load_rows(folder), estimates
                state = ladder_decision.check_time(*arguments, decision)
                if state is not None:
                    break
                runs = [ladder.cell(d.cell).run(d.seed) for d in decisions]
                run = ladder.cell(decision.cell).run(decision.seed)
                train(run, runs)
                _check_ended(run)
            if state is None:
                arguments = ladder, goal, decisions, _load_rows(folder), estimates
                state = ladder_decision.decide_next(*arguments)
            if state.decision is None:
                ladder_record.write_decisions(
                    folder, decisions, dataclasses.asdict(goal), _describe(state)
                )
                return state
            report(state.decision)
            decisions.append(state.decision)
            ladder_record.write_decisions(folder, decisions, dataclasses.asdict(goal))


def _unfinished(
    ladder: ladder_cells.DesignedLadder, decisions: list[ladder_record.LadderDecision]
) -> list[ladder_record.LadderDecision]:
    """Return the decisions whose run has not finished: the new one and interrupted ones."""
    return [d for d in decisions if not records.is_finished(ladder.cell(d.cell).run(d.seed))]


def _load_decisions(
    ladder: ladder_cells.DesignedLadder, folder: Path
) -> list[ladder_record.LadderDecision]:
    """Return the stored decisions, and finished runs of the sweep file as earlier ones.

    Raises ValueError for a changed config of a run.
    """
    decisions = ladder_record.read_decisions(folder)
    names = {decision.run for decision in decisions}
    for cell in ladder.cells:
        for seed in cell.runs:
            run = cell.run(seed)
            if run.name not in names and records.is_finished(run):
                reason = "the run was finished before"
                decisions.append(
                    ladder_record.LadderDecision(run.name, cell.label, seed, reason, True)
                )
    for decision in decisions:
        records.check_same_config(ladder.cell(decision.cell).run(decision.seed))
    return decisions


def _load_rows(folder: Path) -> dict[str, dict]:
    """Return the rows of all runs in the folder of the sweep, by name."""
    loaded = records.load_folder(folder)
    return {row["name"]: row for row in (*loaded.rows, *loaded.others)}


def _check_ended(run: schema.Run) -> None:
    """Raise ValueError if a run has neither finished nor diverged."""
    facts = records.read_facts(records.run_dir(run))
    if facts.get("status") not in records.TERMINAL_STATUSES:
        status = facts.get("status", "not started")
        reason = facts.get("reason") or "another process may train it"
        raise ValueError(
            f"{run.name} is {status} ({reason}): remove the cause and repeat the command"
        )


def _describe(state: ladder_decision.LadderState) -> dict:
    """Return the entry `result` of the record. Unknown numbers are None."""
    values = {name: value for name, value in state._asdict().items() if name != "decision"}
    for name in ("error", "value"):
        values[name] = values[name] if math.isfinite(values[name]) else None
    return values
