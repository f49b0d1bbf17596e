"""Figures of task accuracy against loss, and of predicted task accuracies.

    skills.against_loss(rows, mastery.curves(rows))
    skills.foretold(records.read_json("runs/quickstart/prediction.json")["tasks"], row)

Markers and colors are those of plots.py. A diamond is the predicted run.
"""

import numpy as np
from matplotlib.figure import Figure

from lm import marks, mastery, records, style
from lm.style import LIGHT


def against_loss(rows, curves, x=records.LOSS, theme=LIGHT) -> Figure:
    """Plot the accuracy in percent against the loss, which falls to the right, a panel per task.

    curves: result of mastery.curves. Tasks that no run has above chance are left out. Open markers
    are runs on fewer tokens than others of their size. If they are on the curve of the filled
    markers, the accuracy depends on the loss and not on the size.
    """
    all_tasks = mastery.tasks(rows)
    tasks = [t for t in all_tasks if any(mastery.is_above_chance(row, t) for row in rows)]
    figure, panels = style.panels("Accuracy against held-out loss", len(tasks), theme)
    colors = style.size_colours(rows, theme)
    full_budget = {row["name"] for row in records.largest_token_budget(rows).rows}
    for axes, task in zip(panels, tasks, strict=False):
        finished = records.finished_with(rows, x, records.task_column(task))
        fit, _ = curves.get(task, (None, ""))
        if fit is not None:
            grid = np.linspace(finished[0][x], finished[-1][x], 60)
            curve = fit.predict(grid, level=marks.LEVEL, noise=False)
            lo, hi = 100 * curve.lo, 100 * curve.hi
            axes.plot(grid, 100 * curve.value, color=theme["ink"], linewidth=1.1, zorder=2)
            axes.fill_between(grid, lo, hi, color=theme["band"], linewidth=0)
        for row in finished:
            accuracy = records.task_result(row, task)
            assert accuracy  # finished_with selects runs that have it
            value, error = 100 * accuracy["value"], 100 * accuracy["se"]
            tip = f"{marks.short(row)}: loss {style.number(row[x])}, {value:.0f}%"
            kind = "filled" if row["name"] in full_budget else "open"
            marks.mark(axes, (row[x], value), colors[row["name"]], theme, tip, error, kind=kind)
        chance = 100 * max(records.task_value(row, task, "chance") for row in finished)
        axes.axhline(chance, linestyle=":", color=theme["muted"], linewidth=1)
        style.panel_title(axes, style.shortened(marks.task_name(task)), theme)
        axes.locator_params(axis="x", nbins=4)
        axes.set_ylim(-4, 104)
        axes.invert_xaxis()
    n_runs = marks.n_runs(records.finished_with(rows, x, x))
    caption = [
        f"n = {n_runs}. Accuracy in percent. Horizontal: {style.label(x)}.",
        "Line and band: a sigmoid with its 95% interval. Dotted: chance. Bars: one standard error.",
        f"Open: fewer tokens. {len(all_tasks) - len(tasks)} tasks that no run has above chance are"
        " left out.",
    ]
    return style.end(figure, panels[0], caption, theme)


def foretold(predictions, target=None, theme=LIGHT) -> Figure:
    """Plot the predicted and the measured accuracy of one run in percent, one line per task.

    predictions: result of mastery.foretell. Tasks without a prediction are left out. target: the
    row of the run, or None.
    """
    figure, axes = style.start("Predicted task accuracy", "Accuracy (%)", "", theme)
    predicted = {task: p for task, p in predictions.items() if "value" in p}
    bar = {"linewidth": 9, "solid_capstyle": "butt", "color": theme["soft"], "zorder": 1}
    stroke = {"color": theme["accent"], "markersize": 11, "markeredgewidth": 1.8}
    for y, (task, prediction) in enumerate(reversed(predicted.items())):
        value, lo, hi = (100 * prediction[key] for key in ("value", "lo", "hi"))
        name = marks.task_name(task)
        axes.plot(
            [lo, hi], [y, y], gid=f"tip:{name}: predicted {value:.0f}% [{lo:.0f}, {hi:.0f}]", **bar
        )
        axes.plot([value], [y], "|", **stroke)
        measured = records.task_result(target or {}, task)
        if measured and np.isfinite(measured["value"]):
            accuracy, error = 100 * measured["value"], 100 * measured["se"]
            tip = f"{name}: measured {accuracy:.0f}%"
            marks.mark(axes, (accuracy, y), theme["ink"], theme, tip, xerr=error, kind="diamond")
    names = [style.shortened(marks.task_name(task)) for task in reversed(predicted)]
    axes.set_yticks(range(len(predicted)), names, parse_math=False)
    axes.set_ylim(-0.6, max(len(predicted), 1) - 0.4)
    axes.set_xlim(-3, 103)
    axes.grid(axis="y", visible=False)
    name = marks.short(target) if target else "The target is not measured"
    caption = [
        f"{name}: n = {len(predicted)} tasks of {len(predictions)}; no law fits the others.",
        "Bar: 95% interval of one measurement. Stroke: predicted value. Diamond: measured value",
        "with one standard error.",
    ]
    return style.end(figure, axes, caption, theme)
