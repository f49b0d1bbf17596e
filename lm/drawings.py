"""Figures that a sweep has data for, their metadata, and verification of stored figures.

for name, (figure, meta) in drawings.every(outcome.load("runs/quickstart")).items(): ...
drawings.verify("runs/quickstart/figures/loss.svg", "runs/quickstart")   # [] if it is up to date
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from lm import (
    drift,
    goodput,
    marks,
    mastery,
    outcome,
    plots,
    rate_plots,
    records,
    revision,
    skills,
    style,
    surface,
)
from lm.outcome import Sweep


@dataclass(frozen=True)
class Drawing:
    """A figure that a sweep has data for, not drawn yet, and the law in it."""

    draw: Callable[[], Figure]
    law: Any = None


def every(sweep: Sweep) -> dict[str, tuple[Figure, dict]]:
    """Draw all figures that a sweep has data for. Return {name: (figure, metadata)}."""
    return {
        name: (drawing.draw(), record(sweep, name, drawing.law))
        for name, drawing in available(sweep).items()
    }


def available(sweep: Sweep) -> dict[str, Drawing]:
    """Return {name: figure} of all figures that a sweep has data for, without drawing them."""
    return {
        **_losses(sweep),
        **_tokens_and_compute(sweep),
        **_learning_rates(sweep),
        **_tasks(sweep),
    }


def _losses(sweep: Sweep) -> dict[str, Drawing]:
    rows, fit, prediction, metrics = sweep.rows, sweep.fit, sweep.prediction, sweep.metrics
    drawings: dict[str, Drawing] = {}
    if sweep.finished:
        draw_loss = partial(plots.loss_against_params, rows, fit, prediction)
        drawings["loss"] = Drawing(draw_loss, fit)
        law = sweep.laws["compute"][0]
        draw_compute = partial(plots.loss_against_compute, rows, metrics, law)
        drawings["compute"] = Drawing(draw_compute, law)
    if fit and fit.ensemble:
        draw_predicted = partial(plots.predicted_against_measured, rows, fit, prediction)
        drawings["predicted"] = Drawing(draw_predicted, fit)
    if any(len(lines) > 1 for lines in metrics.values()):
        drawings["curves"] = Drawing(partial(plots.learning_curves, rows, metrics))
    if marks.source_columns(sweep.finished):
        drawings["sources"] = Drawing(partial(plots.loss_by_source, rows))
    if goodput.timed(rows):
        drawings["goodput"] = Drawing(partial(goodput.figure, rows))
    return drawings


def _tokens_and_compute(sweep: Sweep) -> dict[str, Drawing]:
    """Return the figures of sweeps that vary tokens as well as size."""
    rows = sweep.without_trunks
    joint, isoflop = sweep.laws["size and tokens"][0], sweep.laws["isoFLOP"][0]
    drawings: dict[str, Drawing] = {}
    finished = records.finished_with(rows, records.TOKENS, records.LOSS)
    shapes = {(row[records.N_PARAMS], row[records.TOKENS]) for row in finished}
    if len(shapes) > len({size for size, _ in shapes}):
        drawings["tokens"] = Drawing(partial(surface.loss_against_tokens, rows, joint), joint)
    if joint:
        draw_frontier = partial(surface.frontier, rows, sweep.metrics, joint)
        drawings["frontier"] = Drawing(draw_frontier, joint)
        drawings["contour"] = Drawing(partial(surface.contour, rows, joint), joint)
    if isoflop:
        drawings["isoflop"] = Drawing(partial(surface.isoflop, rows, isoflop), isoflop)
        draw_best_size = partial(surface.best_size, rows, isoflop, joint)
        drawings["best_size"] = Drawing(draw_best_size, isoflop)
    return drawings


def _learning_rates(sweep: Sweep) -> dict[str, Drawing]:
    """Return the figures of sweeps that vary the learning rate at several shapes."""
    rows = drift.shared(sweep.finished)
    return {
        f"rates_by_{name}": Drawing(partial(rate_plots.learning_rates, rows, along))
        for name, along in (("width", drift.WIDTH), ("depth", drift.DEPTH))
        if drift.is_asked(rows, along)
    }


def _tasks(sweep: Sweep) -> dict[str, Drawing]:
    rows = sweep.finished
    drawings: dict[str, Drawing] = {}
    if any(records.is_finite(row.get("eval.completion")) for row in rows):
        drawings["ability"] = Drawing(partial(plots.ability, sweep.rows))
    if mastery.tasks(rows):
        drawings["mastered"] = Drawing(partial(plots.tasks_mastered, rows))
        drawings["emergence"] = Drawing(lambda: plots.emergence(rows, mastery.steepest(rows)))
        drawings["tasks"] = Drawing(partial(plots.task_curves, rows))
        drawings["abilities"] = Drawing(lambda: skills.against_loss(rows, mastery.curves(rows)))
    prediction = sweep.prediction or {}
    tasks = prediction.get("tasks", {})
    if any("value" in task for task in tasks.values()):
        target = sweep.target or {"name": prediction["target"]}
        drawings["foretold"] = Drawing(partial(skills.foretold, tasks, target))
    return drawings


def record(sweep: Sweep, name: str, fit=None) -> dict:
    """Return the metadata of a figure: runs, law, prediction and code that it was drawn from."""
    return {
        "figure": name,
        "sweep": sweep.facts.get("sweep", ""),
        "runs": plots.fingerprints(sweep.rows),
        "law": {key: f"{value:.6g}" for key, value in fit.params.items()} if fit else {},
        "prediction": style.fingerprint(sweep.prediction),
        "code": revision.code(__name__),
    }


def verify(figure_path, sweep_dir) -> list[str]:
    """Compare the metadata of a stored figure with the sweep. Return one line per difference."""
    old = style.read_meta(figure_path)
    sweep = outcome.load(sweep_dir)
    name, drawings = str(old.get("figure")), available(sweep)
    if name not in drawings:
        names = ", ".join(drawings) or "none"
        return [f"figure={name!r} is not available for these runs. Available: {names}"]
    new = record(sweep, name, drawings[name].law)
    lines = [f"run {run} is missing" for run in old["runs"] if run not in new["runs"]]
    lines += [f"run {run} is new" for run in new["runs"] if run not in old["runs"]]
    lines += [
        f"run {run} changed: {old['runs'][run]} then, {new['runs'][run]} now"
        for run in old["runs"]
        if new["runs"].get(run, old["runs"][run]) != old["runs"][run]
    ]
    changed = [key for key in ("law", "prediction", "code") if old[key] != new[key]]
    return lines + [f"{key}: {old[key]} then, {new[key]} now" for key in changed]
