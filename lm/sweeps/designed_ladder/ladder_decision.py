"""Decision of a designed ladder: the next run, or the reason to stop.

    state = ladder_decision.decide_next(ladder, goal, decisions, rows, estimates)
    state.decision or state.reason

The cost of a run is its estimate, corrected by the wall time of the finished runs on this machine.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.laws import fit
from lm.laws.design import next_ladder_run, run_cost
from lm.runs import phase_timer, records
from lm.sweeps.designed_ladder import ladder_cells, ladder_record

MIN_IMPROVEMENT = 0.01  # expected decrease of the error by a run, relative, without a plan
# A line through few residuals may have a small interval by chance.
MIN_SPARE = 2  # runs beyond the parameters of the law, before the ladder may stop


class LadderState(NamedTuple):
    """State of a ladder: its next decision, or the reason to stop without one."""

    decision: ladder_record.LadderDecision | None
    reason: str  # of the stop
    spent_seconds: float  # wall time of the runs of the ladder
    error: float  # of the prediction of the target; infinite without a law
    value: float  # predicted loss of the target; NaN without a law
    is_reached: bool = False


def wall_seconds(row: Mapping) -> float:
    """Return the wall time of a finished run, with compilation, evaluation and lost steps."""
    names = [f"clock.{phase}" for phase in (*phase_timer.PHASES, "lost")]
    seconds = sum(v for name in names if records.is_finite(v := row.get(name)))
    return seconds or float(row.get("seconds") or 0.0)


def decide_next(
    ladder: ladder_cells.DesignedLadder,
    goal: ladder_cells.LadderGoal,
    decisions: Sequence[ladder_record.LadderDecision],
    rows: Mapping[str, dict],
    estimates: np.ndarray,
) -> LadderState:
    """Return the next run of a ladder, or the reason to stop.

    decisions: all earlier ones, whose runs have ended. rows: their rows by name. estimates: seconds
    of a run of each cell by the cost model, [m]. Cells with a diverged run are not trained again.
    """
    finished = [d for d in decisions if d.run in rows and rows[d.run].get("status") == "done"]
    diverged = {d.cell for d in decisions if rows.get(d.run, {}).get("status") == "diverged"}
    labels = [cell.label for cell in ladder.cells]
    measured = {d.run: wall_seconds(rows[d.run]) for d in finished}
    seconds = _calibrate(labels, finished, measured, estimates)
    spent = sum(measured[d.run] for d in finished if not d.is_earlier)
    is_allowed = (seconds <= goal.budget_seconds - spent) & ~np.isin(labels, list(diverged))
    law_fit, error, problem = _fit_law(ladder, [rows[d.run] for d in finished])
    if problem or law_fit is None:
        return _decide_first(ladder, decisions, is_allowed, seconds, spent, problem)
    value = float(law_fit.predict(*ladder.target.values()).value)
    n_spare = law_fit.n - len(law_fit.free)
    if error <= goal.max_error and n_spare >= MIN_SPARE:
        reason = f"the error of {error:.2%} is at most {goal.max_error:.2%}"
        return LadderState(None, reason, spent, error, value, True)
    # An early estimate may be far off, so no run costs more than all earlier runs together.
    is_cautious = is_allowed & (seconds <= sum(measured.values()))
    choice = next_ladder_run.choose_run(
        law_fit,
        list(ladder.target.values()),
        np.array(ladder.points(ladder.cells), float),
        seconds,
        # A lucky interval of few rows is confirmed by a further run.
        min(goal.max_error, 0.9 * error),
        is_cautious if is_cautious.any() else is_allowed,
    )
    plan = _describe_plan(choice, labels, goal)
    if choice.index < 0:
        left = max(goal.budget_seconds - spent, 0.0)
        return LadderState(
            None, f"{left:.0f} s of the time are left, too few; {plan}", spent, error, value
        )
    improvement = 1 - choice.error_after / error
    if not choice.is_reachable and improvement < MIN_IMPROVEMENT:
        return LadderState(None, plan, spent, error, value)
    reason = (
        f"removes {1 - (choice.error_after / error) ** 2:.0%} of the variance of the target in"
        f" {seconds[choice.index]:.3g} s; {plan}"
    )
    decision = _make_decision(ladder, choice.index, decisions, reason, seconds)
    decision = dataclasses.replace(decision, error=error, error_after=choice.error_after)
    return LadderState(decision, "", spent, error, value)


def check_time(
    ladder: ladder_cells.DesignedLadder,
    goal: ladder_cells.LadderGoal,
    decisions: Sequence[ladder_record.LadderDecision],
    rows: Mapping[str, dict],
    estimates: np.ndarray,
    interrupted: ladder_record.LadderDecision,
) -> LadderState | None:
    """Return the reason to stop before an interrupted run continues, None if its time suffices.

    interrupted: decision of the run, one of `decisions`. The other arguments are those of
    `decide_next`. The earlier wall time of the run is part of the time of the runs.
    """
    labels = [cell.label for cell in ladder.cells]
    finished = [d for d in decisions if d.run in rows and rows[d.run].get("status") == "done"]
    measured = {d.run: wall_seconds(rows[d.run]) for d in finished}
    run_seconds = wall_seconds(rows.get(interrupted.run, {}))
    spent = sum(measured[d.run] for d in finished if not d.is_earlier) + run_seconds
    seconds = _calibrate(labels, finished, measured, estimates)[labels.index(interrupted.cell)]
    missing = max(float(seconds) - run_seconds, 0.0)
    if spent + missing <= goal.budget_seconds:
        return None
    law_fit, error, problem = _fit_law(ladder, [rows[d.run] for d in finished])
    value = float("nan")
    if law_fit is not None and not problem:
        value = float(law_fit.predict(*ladder.target.values()).value)
    left = max(goal.budget_seconds - spent, 0.0)
    reason = (
        f"{left:.0f} s of the time are left, too few for the interrupted run {interrupted.run},"
        f" which needs about {missing:.3g} s more: allow more time"
    )
    return LadderState(None, reason, spent, error, value)


def _calibrate(
    labels: Sequence[str],
    finished: Sequence[ladder_record.LadderDecision],
    measured: Mapping[str, float],
    estimates: np.ndarray,
) -> np.ndarray:
    """Return the expected seconds of a run of each cell. measured: wall time by name of a run."""
    timed = [d for d in finished if measured[d.run] > 0]
    return run_cost.calibrate_seconds(
        estimates,
        np.array([estimates[labels.index(d.cell)] for d in timed]),
        np.array([measured[d.run] for d in timed]),
    )


def _fit_law(
    ladder: ladder_cells.DesignedLadder, rows: Sequence[dict]
) -> tuple[fit.Fit | None, float, str]:
    """Return the law, the error of the target, and the reason why there is no error or ""."""
    try:
        law_fit = ladder.fit_law(rows)
    except ValueError as refusal:
        return None, float("inf"), str(refusal)
    error = next_ladder_run.interval_error(law_fit, list(ladder.target.values()))
    problem = "" if np.isfinite(error) else "the runs give no interval of the target"
    return law_fit, error, problem


def _decide_first(
    ladder: ladder_cells.DesignedLadder,
    decisions: Sequence[ladder_record.LadderDecision],
    is_allowed: np.ndarray,
    seconds: np.ndarray,
    spent: float,
    problem: str,
) -> LadderState:
    """Return the cheapest run of the cells with the fewest runs, until the law has an interval."""
    counts = np.array([sum(d.cell == cell.label for d in decisions) for cell in ladder.cells])
    if not is_allowed.any():
        n_missing = max(ladder_cells.MIN_SIZES - int((counts > 0).sum()), 1)
        cost = float(np.sort(seconds[counts == counts.min()])[:n_missing].sum())
        text = (
            f"the time is too short for an interval ({problem}): it needs about {cost:.3g} s more"
        )
        return LadderState(None, text, spent, float("inf"), float("nan"))
    candidates = np.flatnonzero(is_allowed)
    index = int(min(candidates, key=lambda i: (counts[i], seconds[i])))
    reason = f"the cheapest new size, because the law has no interval yet: {problem}"
    decision = _make_decision(ladder, index, decisions, reason, seconds)
    return LadderState(decision, "", spent, float("inf"), float("nan"))


def _make_decision(
    ladder: ladder_cells.DesignedLadder,
    index: int,
    decisions: Sequence[ladder_record.LadderDecision],
    reason: str,
    seconds: np.ndarray,
) -> ladder_record.LadderDecision:
    """Return the decision to train the next seed of a cell."""
    cell = ladder.cells[index]
    seed = cell.next_seed([d.seed for d in decisions if d.cell == cell.label])
    return ladder_record.LadderDecision(
        run=cell.run(seed).name,
        cell=cell.label,
        seed=seed,
        reason=reason,
        seconds=float(seconds[index]),
        time=records.current_time(),
    )


def _describe_plan(
    choice: next_ladder_run.RunChoice, labels: Sequence[str], goal: ladder_cells.LadderGoal
) -> str:
    """Return the text of a plan: its runs, its cost and its error."""
    runs = [f"{n} x {label}" for n, label in zip(choice.counts, labels, strict=True) if n]
    if choice.is_reachable:
        return f"{goal.max_error:.2%} costs about {choice.seconds:.3g} s more: {', '.join(runs)}"
    text = f"more runs of these sizes do not reach {goal.max_error:.2%}"
    if runs:
        text += f": {', '.join(runs)} in {choice.seconds:.3g} s reach {choice.planned_error:.2%}"
    return f"{text}: add a larger size to the sweep file"
