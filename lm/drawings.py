"""Which figures a sweep's runs allow, what each carries inside, and whether one still holds.

for name, (figure, meta) in drawings.every(outcome.load("runs/quickstart")).items(): ...
drawings.verify("runs/quickstart/figures/loss.svg", "runs/quickstart")   # [] if it holds
"""

from collections.abc import Callable
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
from lm.marks import finite
from lm.outcome import Sweep


def every(sweep: Sweep) -> dict[str, tuple[Figure, dict]]:
    """{name: (figure, its record)} of every figure that these runs allow."""
    return {name: (draw(), record(sweep, name, law)) for name, (draw, law) in _all(sweep).items()}


def _all(sweep: Sweep) -> dict[str, tuple[Callable[[], Figure], Any]]:
    """{name: (what draws it, the law in it or None)}."""
    return {**_losses(sweep), **_surfaces(sweep), **_rates(sweep), **_tasks(sweep)}


def _losses(sweep: Sweep) -> dict:
    rows, fit, said = sweep.rows, sweep.fit, sweep.prediction
    done, metrics, found = _done(sweep), _metrics(rows), {}
    if done:
        found["loss"] = (lambda: plots.loss_against_params(rows, fit, said)), fit
        law = sweep.laws["compute"][0]
        found["compute"] = (lambda: plots.loss_against_compute(rows, metrics, law)), law
    if fit and fit.ensemble:
        found["predicted"] = (lambda: plots.predicted_against_measured(rows, fit, said)), fit
    if any(len(lines) > 1 for lines in metrics.values()):
        found["curves"] = (lambda: plots.learning_curves(rows, metrics)), None
    if marks.source_columns(done):
        found["sources"] = (lambda: plots.loss_by_source(rows)), None
    if goodput.timed(rows):
        found["goodput"] = (lambda: goodput.figure(rows)), None
    return found


def _surfaces(sweep: Sweep) -> dict:
    """Of sweeps that vary tokens besides size."""
    rows, found = marks.ends(sweep.rows), {}
    joint, isoflop = sweep.laws["size and tokens"][0], sweep.laws["isoFLOP"][0]
    done = marks.points(rows, "tokens", "eval.loss")
    if len({(row[style.SIZE], row["tokens"]) for row in done}) > len({r[style.SIZE] for r in done}):
        found["tokens"] = (lambda: surface.loss_against_tokens(rows, joint)), joint
    if joint:
        found["frontier"] = (lambda: surface.frontier(rows, _metrics(rows), joint)), joint
        found["contour"] = (lambda: surface.contour(rows, joint)), joint
    if isoflop:
        found["isoflop"] = (lambda: surface.isoflop(rows, isoflop)), isoflop
        found["best_size"] = (lambda: surface.best_size(rows, isoflop, joint)), isoflop
    return found


def _rates(sweep: Sweep) -> dict:
    """Of sweeps that try learning rates at several shapes."""
    rows = drift.shared(_done(sweep))
    return {
        f"rates_by_{name}": (partial(rate_plots.learning_rates, rows, along), None)
        for name, along in (("width", drift.WIDTH), ("depth", drift.DEPTH))
        if drift.is_asked(rows, along)
    }


def _tasks(sweep: Sweep) -> dict:
    done, found = _done(sweep), {}
    if any(finite(row.get("eval.completion")) for row in done):
        found["ability"] = (lambda: plots.ability(sweep.rows)), None
    if mastery.tasks(done):
        found["mastered"] = (lambda: plots.tasks_mastered(done)), None
        found["emergence"] = (lambda: plots.emergence(done, mastery.steepest(done))), None
        found["tasks"] = (lambda: plots.task_curves(done)), None
        found["abilities"] = (lambda: skills.against_loss(done, mastery.curves(done))), None
    said = (sweep.prediction or {}).get("tasks", {})
    if any("value" in one for one in said.values()):
        target = sweep.target or {"name": (sweep.prediction or {})["target"]}
        found["foretold"] = (lambda: skills.foretold(said, target)), None
    return found


def record(sweep: Sweep, name: str, fit=None) -> dict:
    """What a figure carries inside: its runs, law and prediction, and the code that drew it."""
    return {
        "figure": name,
        "sweep": sweep.facts.get("sweep", ""),
        "runs": plots.fingerprints(sweep.rows),
        "law": {key: f"{value:.6g}" for key, value in fit.params.items()} if fit else {},
        "prediction": style.fingerprint(sweep.prediction),
        "code": revision.code("drawings"),
    }


def verify(figure_path, sweep_dir) -> list[str]:
    """What has changed since a figure was drawn, a line each; empty if it still holds."""
    old = style.read_meta(figure_path)
    sweep = outcome.load(sweep_dir)
    name, found = str(old.get("figure")), _all(sweep)
    if name not in found:
        return [f"these runs give no figure {name!r}, but {', '.join(found) or 'none'}"]
    new = record(sweep, name, found[name][1])
    lines = [f"run {run} is missing" for run in old["runs"] if run not in new["runs"]]
    lines += [f"run {run} is new" for run in new["runs"] if run not in old["runs"]]
    lines += [
        f"run {run} changed: {old['runs'][run]} then, {new['runs'][run]} now"
        for run in old["runs"]
        if new["runs"].get(run, old["runs"][run]) != old["runs"][run]
    ]
    rest = [key for key in ("law", "prediction", "code") if old[key] != new[key]]
    return lines + [f"{key}: {old[key]} then, {new[key]} now" for key in rest]


def _done(sweep: Sweep) -> list[dict]:
    return marks.points(sweep.rows, style.SIZE, "eval.loss")


def _metrics(rows) -> dict[str, list[dict]]:
    return {row["name"]: records.metrics(row["dir"]) for row in rows}
