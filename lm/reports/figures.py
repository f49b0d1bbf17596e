"""Figures that a sweep has data for, their metadata, and verification of stored figures.

    sweep = summary.load_summary("runs/quickstart")
    for name, (figure, meta) in figures.all_figures(sweep).items():
        style.save_figure(figure, f"runs/quickstart/figures/{name}", meta)
    figures.verify_figure("runs/quickstart/figures/loss.svg", "runs/quickstart")

The metadata of a figure contain hashes of its runs, law, prediction and code. verify_figure
compares them with the current records.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from lm.reports import lr_analysis, summary, task_analysis, task_significance, task_trends
from lm.reports.audit import target_prediction
from lm.reports.plots import (
    abilities,
    elements,
    goodput,
    learning_rates,
    loss_surface,
    scaling,
    style,
    task_accuracy,
    transfer,
)
from lm.reports.tuned_abilities import pretraining_gain
from lm.runs import provenance, records, run_selection, task_results


@dataclass(frozen=True)
class Drawing:
    """Function that draws a figure for an argument `theme`, and the law in the figure or None."""

    draw: Callable[..., Figure]
    law: Any = None


def all_figures(sweep: summary.SweepSummary) -> dict[str, tuple[Figure, dict]]:
    """Draw all figures that a sweep has data for. Return {name: (figure, metadata)}."""
    shared, theme = shared_metadata(sweep), style.theme_of_sweep(sweep.rows)
    return {
        name: (drawing.draw(theme=theme), figure_metadata(shared, name, drawing.law))
        for name, drawing in available_figures(sweep).items()
    }


def available_figures(sweep: summary.SweepSummary) -> dict[str, Drawing]:
    """Return {name: drawing} of all figures for which a sweep has data. No figure is drawn yet."""
    return {
        **_loss_figures(sweep),
        **_token_figures(sweep),
        **_learning_rate_figures(sweep),
        **_task_figures(sweep),
    }


def _loss_figures(sweep: summary.SweepSummary) -> dict[str, Drawing]:
    """Return the figures of loss against size and compute, of training curves and of time."""
    rows, fit, prediction, metrics = sweep.rows, sweep.fit, sweep.prediction, sweep.metrics
    y, curves = sweep.loss_column, _training_curves(sweep)
    figures: dict[str, Drawing] = {}
    if len({row[records.N_PARAMS] for row in sweep.finished}) > 1:
        draw_loss = partial(scaling.loss_vs_parameters, rows, fit, prediction, y=y)
        figures["loss"] = Drawing(draw_loss, fit)
    if sweep.finished:
        law = sweep.laws["compute"][0]
        draw_compute = partial(scaling.loss_vs_compute, rows, curves, law, y=y)
        figures["compute"] = Drawing(draw_compute, law)
    if fit and fit.ensemble:
        draw_predicted = partial(scaling.predicted_vs_measured, rows, fit, prediction)
        figures["predicted"] = Drawing(draw_predicted, fit)
    if any(len(lines) > 1 for lines in metrics.values()):
        figures["curves"] = Drawing(partial(scaling.learning_curves, rows, metrics))
    if elements.source_columns(sweep.finished) and y == records.LOSS:
        figures["sources"] = Drawing(partial(scaling.loss_by_source, rows))
    if goodput.timed_runs(rows):
        figures["goodput"] = Drawing(partial(goodput.time_by_phase, rows))
    return figures


def _training_curves(sweep: summary.SweepSummary) -> dict[str, list[dict]]:
    """Return the log steps of each run, {} if their losses have another unit than the figures."""
    return sweep.metrics if sweep.loss_column == records.LOSS else {}


def _token_figures(sweep: summary.SweepSummary) -> dict[str, Drawing]:
    """Return the figures of sweeps that vary both size and tokens."""
    rows, y = sweep.without_trunks, sweep.loss_column
    joint, isoflop = sweep.laws["size and tokens"][0], sweep.laws["isoFLOP"][0]
    figures: dict[str, Drawing] = {}
    finished = run_selection.finished_with(rows, records.TOKENS, records.LOSS)
    pairs = {(row[records.N_PARAMS], row[records.TOKENS]) for row in finished}
    if len(pairs) > len({size for size, _ in pairs}):
        figures["tokens"] = Drawing(partial(loss_surface.loss_vs_tokens, rows, joint, y=y), joint)
    if joint:
        draw_frontier = partial(
            loss_surface.compute_optimal_frontier, rows, _training_curves(sweep), joint, y=y
        )
        figures["frontier"] = Drawing(draw_frontier, joint)
        figures["contours"] = Drawing(partial(loss_surface.loss_contours, rows, joint, y=y), joint)
    if isoflop:
        figures["isoflop"] = Drawing(
            partial(loss_surface.isoflop_parabolas, rows, isoflop, y=y), isoflop
        )
        draw_optimal_size = partial(loss_surface.optimal_size, rows, isoflop, joint)
        figures["optimal_size"] = Drawing(draw_optimal_size, isoflop)
    return figures


def _learning_rate_figures(sweep: summary.SweepSummary) -> dict[str, Drawing]:
    """Return the figures of sweeps that vary the learning rate at several model shapes."""
    rows = lr_analysis.share_base_shape(sweep.finished)
    return {
        f"rates_by_{name}": Drawing(partial(learning_rates.loss_vs_learning_rate, rows, along))
        for name, along in (("width", lr_analysis.WIDTH), ("depth", lr_analysis.DEPTH))
        if lr_analysis.has_enough_rates(rows, along)
    }


def _task_figures(sweep: summary.SweepSummary) -> dict[str, Drawing]:
    """Return the figures of task accuracy and of predicted task accuracy."""
    rows = sweep.finished
    figures = _predicted_task_figures(sweep)
    if len({row[records.N_PARAMS] for row in rows}) < 2:
        return figures  # a point is not a trend: the table has its values
    if any(records.is_finite(row.get("eval.completion")) for row in rows):
        figures["completion"] = Drawing(partial(task_accuracy.accuracy_vs_size, sweep.rows))
    if task_results.task_names(rows):
        figures["mastered"] = Drawing(partial(task_accuracy.tasks_mastered, rows))
        figures["abilities"] = Drawing(partial(abilities.abilities_by_family, rows))
        if abilities.families_with_margin(rows):
            figures["margins"] = Drawing(partial(abilities.gain_and_margin, rows))
        if tasks := task_analysis.fastest_improving(rows):
            figures["emergence"] = Drawing(partial(task_accuracy.emergence, rows, tasks))
        figures |= _task_panels(rows)
        figures["tasks_vs_loss"] = Drawing(
            lambda theme: task_accuracy.accuracy_vs_loss(
                rows, _fit_accuracy_curves(rows, sweep.loss_column), sweep.loss_column, theme
            )
        )
    scores = pretraining_gain.task_scores(sweep.rows)
    if effects := pretraining_gain.compare_methods(scores):
        figures["tuned"] = Drawing(partial(transfer.tuned_scores_vs_size, scores))
        figures["pretraining_gain"] = Drawing(partial(transfer.pretraining_gain_vs_size, effects))
    return figures


def _fit_accuracy_curves(rows: list[dict], x: str) -> dict[str, tuple]:
    """Fit the accuracy of the tasks that accuracy_vs_loss shows against the column x."""
    shown = task_significance.above_baseline_in_any(rows)
    return task_analysis.accuracy_curves(rows, x, tasks=shown)


def _predicted_task_figures(sweep: summary.SweepSummary) -> dict[str, Drawing]:
    """Return the figure of predicted task accuracies, if the prediction has any."""
    prediction = sweep.prediction or {}
    tasks = prediction.get("tasks", {})
    if not any("value" in task for task in tasks.values()):
        return {}
    if target_prediction.ABILITIES in prediction:  # its table has one method for all scores
        return {}
    target = sweep.target or {"name": prediction["target"]}
    return {"predicted_tasks": Drawing(partial(task_accuracy.predicted_accuracy, tasks, target))}


def _task_panels(rows: list[dict]) -> dict[str, Drawing]:
    """Return the panels of the tasks with a trend over size, and those of the flat tasks."""
    tasks = task_results.summary_tasks(run_selection.select_task_runs(rows).rows)
    with_trend = set(task_trends.tasks_with_trend(rows))
    moving = [task for task in tasks if task in with_trend]
    flat = [task for task in tasks if task not in with_trend]
    draw, figures = task_accuracy.task_curves, {}
    if moving:
        figures["tasks"] = Drawing(partial(draw, rows, moving))
    if flat:
        title = "Accuracy of flat tasks"
        figures["tasks_flat"] = Drawing(partial(draw, rows, flat, title=title))
    return figures


def shared_metadata(sweep: summary.SweepSummary) -> dict:
    """Return the metadata of all figures of a sweep: hashes of its runs, prediction and code."""
    return {
        "sweep": sweep.facts.get("sweep", ""),
        "runs": scaling.run_fingerprints(sweep.rows),
        "prediction": style.hash_data(sweep.prediction),
        "code": provenance.code_hash(__name__),
    }


def figure_metadata(shared: dict, name: str, fit=None) -> dict:
    """Return the metadata of a figure. shared: result of `shared_metadata`."""
    law = {key: f"{value:.6g}" for key, value in fit.params.items()} if fit else {}
    return {"figure": name, "law": law} | shared


def verify_figure(figure_path, sweep_dir) -> list[str]:
    """Compare the metadata of a stored figure with the sweep. Return one line per difference.

    Raises ValueError if the file contains no metadata.
    """
    stored = style.read_figure_metadata(figure_path)
    sweep = summary.load_summary(sweep_dir)
    name, figures = str(stored.get("figure")), available_figures(sweep)
    if name not in figures:
        names = ", ".join(figures) or "none"
        return [f"figure={name!r} is not available for these runs. Available: {names}"]
    current = figure_metadata(shared_metadata(sweep), name, figures[name].law)
    old_runs, new_runs = stored["runs"], current["runs"]
    lines = [f"run {run} is missing" for run in old_runs if run not in new_runs]
    lines += [f"run {run} is new" for run in new_runs if run not in old_runs]
    lines += [
        f"run {run} changed: {old_hash} then, {new_runs[run]} now"
        for run, old_hash in old_runs.items()
        if run in new_runs and new_runs[run] != old_hash
    ]
    changed = [key for key in ("law", "prediction", "code") if stored[key] != current[key]]
    return lines + [f"{key}: {stored[key]} then, {current[key]} now" for key in changed]
