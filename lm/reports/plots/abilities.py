"""Figures of abilities: tasks above baseline by family, and accuracy beside log-probability.

    abilities.abilities_by_family(rows)
    abilities.gain_and_margin(rows)

A family is a phenomenon of minimal pairs, or all tasks with a name and other options, see
task_results.task_family. The figures show the finished runs of the largest token budget.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.reports import task_significance
from lm.reports.plots import elements, style
from lm.reports.plots.geometry import tick_labels
from lm.runs import records, run_selection, task_results

ALL_TASKS = "all tasks"  # title of the panel of all families
MAX_BELOW = 6  # tasks below baseline that a caption names


def abilities_by_family(rows, x=records.N_PARAMS, theme=style.LIGHT) -> Figure:
    """Plot the number of tasks above baseline and of mastered tasks against size, by family.

    The first panel shows all tasks, if there are several families. The line of mastered tasks is
    solid, that of tasks above baseline dashed, and the dotted line is the number of tasks. Points
    are means over the runs of a size, which differ in their seed, and bars are ranges over these
    runs. The caption names tasks in which the largest run is below baseline.
    """
    selection = run_selection.select_task_runs(rows, x)
    counted = task_significance.count_tasks(_finished(selection.rows, x))
    families, without = _families(counted)
    groups = {family: f".{family}" for family in families}
    if len(families) > 1 or not families:
        groups = {ALL_TASKS: ""} | groups
    figure, panels = style.new_panels("Abilities by group", len(groups), theme)
    for axes, (group, suffix) in zip(panels, groups.items(), strict=False):
        _draw_counts(axes, counted, x, suffix, group, theme)
    style.label_panels(panels, x, "Tasks", theme)
    caption = [
        f"n = {elements.count_label(counted)}.",
        "Solid: mastered. Dashed: above baseline. Dotted: number of tasks. Bars: range over seeds.",
        elements.baseline_note(),
        *([f"Groups without a task above baseline: {', '.join(without)}."] if without else []),
        *_below_notes(counted),
        elements.budget_note(selection),
    ]
    return style.finish_figure(figure, panels[0], caption, theme)


def _draw_counts(
    axes: Axes, counted: Sequence[Mapping], x: str, suffix: str, group: str, theme
) -> None:
    """Draw the panel of a family. suffix: of its columns, see task_significance.count_tasks."""
    for name, line, color in (
        ("above_baseline", "--", theme["ink"]),
        ("mastered", "-", theme["second"]),
    ):
        label = f"{name.replace('_', ' ')}"
        _draw_means(axes, counted, x, f"tasks.{name}{suffix}", color, line, group, label)
    elements.set_scales(axes, x, "tasks")
    tick_labels.thin_ticks(axes)
    tasks = [
        task
        for task in task_results.task_names(counted)
        if group == ALL_TASKS or task_results.task_family(task) == group
    ]
    axes.axhline(len(tasks), linestyle=":", color=theme["muted"], linewidth=1)
    axes.set_ylim(-0.06 * max(len(tasks), 1), 1.1 * max(len(tasks), 1))
    axes.locator_params(axis="y", integer=True, nbins=5)
    style.panel_title(axes, style.truncate_label(group, 32), theme)


def families_with_margin(rows: Sequence[Mapping]) -> list[str]:
    """Return the families of tasks that have a log-probability margin, in their order."""
    names = [
        task_results.task_family(task)
        for task in task_results.task_names(rows)
        if any(task_results.task_result(row, task, "margin") for row in rows)
    ]
    return list(dict.fromkeys(names))


def gain_and_margin(rows, x=records.N_PARAMS, theme=style.LIGHT) -> Figure:
    """Plot accuracy above the best baseline, and the log-probability margin, a panel per family.

    Both are means over the tasks of a family. The margin is the log-probability of the correct
    choice minus that of the best other choice. If the accuracy jumps where the margin rises
    smoothly, the jump comes from the metric (Schaeffer et al. 2023, arXiv:2304.15004).
    """
    selection = run_selection.select_task_runs(rows, x)
    finished = _finished(selection.rows, x)
    families = families_with_margin(finished)
    figure, panels = style.new_panels(
        "Accuracy and log-probability margin", len(families), theme, columns=4
    )
    for axes, family in zip(panels, families, strict=False):
        points = [row | _gain_and_margin(row, family) for row in finished]
        _draw_means(axes, points, x, "gain", theme["ink"], "-", family, "points")
        axes.axhline(0, linestyle=":", color=theme["muted"], linewidth=1)
        elements.set_scales(axes, x, "gain")
        tick_labels.thin_ticks(axes)
        right = axes.twinx()
        _draw_means(right, points, x, "margin", theme["second"], "--", family, "nats")
        right.tick_params(colors=theme["second"], labelsize=7.8, length=2)
        right.set_ylabel("Margin (nats)", size=8, color=theme["second"])
        right.spines[["top", "left"]].set_visible(False)
        right.spines["right"].set_color(theme["second"])
        right.grid(visible=False)
        style.panel_title(axes, style.truncate_label(family, 28), theme)
    style.label_panels(panels, x, "Gain (points)", theme)
    caption = [
        f"n = {elements.count_label(finished)}.",
        "Solid, left: accuracy minus that of the best baseline, in percentage points (dotted: 0).",
        "Dashed, right: log-probability margin of the correct choice, in nats. Bars: range over"
        " seeds.",
        elements.budget_note(selection),
    ]
    return style.finish_figure(figure, panels[0], caption, theme)


def _finished(rows: Sequence[dict], x: str) -> list[dict]:
    """Return the finished runs with task results, sorted by x."""
    finished = run_selection.finished_with(rows, x, x)
    return [row for row in finished if task_results.task_names([row])]


def _families(counted: Sequence[Mapping]) -> tuple[list[str], list[str]]:
    """Return the families with a task above baseline in any run, and the other families."""
    prefix = "tasks.above_baseline."
    largest: dict[str, int] = {}
    for row in counted:
        for name in row:
            if name.startswith(prefix):
                family = name.removeprefix(prefix)
                largest[family] = max(largest.get(family, 0), row[name])
    return [name for name in largest if largest[name]], [n for n in largest if not largest[n]]


def _gain_and_margin(row: Mapping, family: str) -> dict[str, float]:
    """Return the mean accuracy gain in points and the mean margin of the tasks of a family."""
    improvements, margins = [], []
    for task in task_results.task_names([row]):
        margin = task_results.task_value(row, task, "margin")
        if task_results.task_family(task) == family and np.isfinite(margin):
            baseline = task_results.best_baseline(row, task)[1]
            improvements.append(100 * (task_results.task_value(row, task) - baseline))
            margins.append(margin)
    if not improvements:
        return {}
    return {"gain": float(np.mean(improvements)), "margin": float(np.mean(margins))}


def _mean_by_size(
    rows: Sequence[Mapping], x: str, y: str
) -> tuple[list[float], list[float], np.ndarray]:
    """Return the sizes, the mean of y at each size, and its distances to the range [2, sizes]."""
    by_size: dict[float, list[float]] = {}
    for row in rows:
        if y in row:
            by_size.setdefault(row[x], []).append(row[y])
    means = [float(np.mean(values)) for values in by_size.values()]
    ranges = [
        (mean - min(values), max(values) - mean)
        for mean, values in zip(means, by_size.values(), strict=True)
    ]
    return list(by_size), means, np.array(ranges, float).reshape(-1, 2).T


def _draw_means(
    axes: Axes, rows, x: str, y: str, color: str, line: str, group: str, label: str
) -> None:
    """Draw the means over the runs of each size, with ranges over runs."""
    sizes, means, ranges = _mean_by_size(rows, x, y)
    if sizes:
        axes.errorbar(sizes, means, ranges, linestyle="none", color=color, capsize=2)
        tip = f"{means[-1]:.3g} {label}" if y.startswith("tasks.") else f"{label} {means[-1]:.3g}"
        gid = f"tip:{group}: {tip}"
        axes.plot(sizes, means, line, marker="o", markersize=2.5, color=color, gid=gid)


def _below_notes(counted: Sequence[Mapping]) -> list[str]:
    """Return a sentence that names the tasks in which the largest run is below baseline."""
    if not counted:
        return []
    row = counted[-1]
    below = task_significance.tasks_below_baseline(row) & set(task_results.task_names([row]))
    names = sorted(below)
    if not names:
        return ["Largest run: no task is below baseline."]
    listed = elements.format_tasks(names[:MAX_BELOW])
    more = f" and {len(names) - MAX_BELOW} more" if len(names) > MAX_BELOW else ""
    return [f"Largest run, below baseline: {listed}{more}."]
