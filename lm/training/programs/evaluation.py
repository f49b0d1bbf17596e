"""Evaluate the held-out loss and the tasks of weights during training, as rows of evals.jsonl."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lm.evaluation import heldout, task_eval


class Parts(NamedTuple):
    """Parts of an evaluation."""

    has_heldout: bool
    has_tasks: bool


def write_row(
    active_session: Any, step: int, compile_score: Callable, weights: dict, parts: Parts
) -> None:
    """Evaluate the weights of a step, and write a row of evals.jsonl with all its results so far.

    active_session: session.TrainingSession of the run, whose history receives the row. weights:
    tree of parameters on the mesh of the session. compile_score: see compilation.compile_all.
    """
    session, rows = active_session, active_session.evaluations.rows
    row = rows.get(step, {}) | {"attempt": session.attempt, "step": step}
    rows[step] = row = row | _evaluate(session, compile_score, weights, parts)
    session.writer.append("evals.jsonl", row)
    session.trackers.write_evaluation(row)
    session.report_evaluation(row)


def _evaluate(session: Any, compile_score: Callable, weights: dict, parts: Parts) -> dict:
    """Return the columns of an evaluation, and write its files heldout.npz and tasks.npz."""
    row, on_progress = {}, session.watchdog.record_progress
    with session.timer.phase("compile"):
        score = heldout.report_batches(compile_score(), on_progress)
    with session.timer.phase("evaluate"), jax.set_mesh(session.mesh):
        model = session.run, session.mesh, score, weights, session.text
        if parts.has_heldout:
            row |= heldout.evaluate_heldout(*model, session.writer)
        if parts.has_tasks:
            row |= task_eval.evaluate_columns(*model, session.tasks, on_progress, session.writer)
    return row
