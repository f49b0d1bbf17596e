"""Figures of task accuracy against size and loss, and of predicted task accuracies.

    task_accuracy.accuracy_vs_loss(rows, task_analysis.accuracy_curves(rows))
    predictions = sweep_files.read_prediction("runs/quickstart")["tasks"]
    task_accuracy.predicted_accuracy(predictions, rows[-1])

Figures against size show the finished runs of the largest token budget, see
run_selection.select_task_runs. Markers, colors and arguments are explained in scaling.py.
"""

import numpy as np
from matplotlib.figure import Figure

from lm.reports import task_significance
from lm.reports.plots import elements, style
from lm.reports.plots.geometry import tick_labels
from lm.runs import records, run_selection, short_names, task_results


def accuracy_vs_size(rows, y="eval.completion", x=records.N_PARAMS, theme=style.LIGHT) -> Figure:
    """Plot an accuracy in percent against the model size.

    y: a column with a fraction from 0 to 1. The default is the fraction of held-out words that the
    model completes exactly.
    """
    title = "Completed words" if y == "eval.completion" else "Accuracy"
    figure, axes = style.new_figure(f"{title} against parameters", x, y, theme)
    selection = run_selection.select_task_runs(rows, x)
    finished = elements.draw_means(
        axes, selection.rows, x, y, theme, scale=100, label_offset=(6, -11)
    )
    elements.set_scales(axes, x, y)
    axes.set_ylim(bottom=0)
    counts = {row[y + "_n"] for row in finished if records.is_finite(row.get(y + "_n"))}
    caption = (
        f"n = {elements.count_label(finished)}, {_format_range(counts) or 'unknown'}"
        f" questions each."
    )
    note = elements.budget_note(selection)
    return style.finish_figure(figure, axes, [caption, "Bars: one standard error.", note], theme)


def tasks_mastered(rows, x=records.N_PARAMS, theme=style.LIGHT) -> Figure:
    """Plot the number of mastered tasks and of tasks above baseline against size.

    The definitions are those of task_significance. The line of mastered tasks is solid, that of
    tasks above baseline dashed.
    """
    selection = run_selection.select_task_runs(rows, x)
    counted = task_significance.count_tasks(selection.rows)
    n_tasks = max((row["tasks.n"] for row in counted), default=0)
    figure, axes = style.new_figure(
        "Tasks above baseline and mastered", x, f"Tasks, of {n_tasks}", theme
    )
    above = "tasks.above_baseline"
    elements.draw_means(axes, counted, x, above, theme, line="--", label_offset=None)
    finished = elements.draw_means(axes, counted, x, "tasks.mastered", theme, label_offset=(6, -11))
    for column, text in ((above, "above baseline"), ("tasks.mastered", "mastered")):
        for row in finished[-1:]:
            style.annotate(axes, row[x], row[column], text, theme, (8, 8))
    elements.set_scales(axes, x, "tasks", right=0.22)
    max_count = max((row[above] for row in finished), default=n_tasks)
    axes.set_ylim(-0.12 * max(max_count, 4), min(1.35 * max(max_count, 4), n_tasks + 0.5))
    axes.locator_params(axis="y", integer=True)
    caption = [
        f"n = {elements.count_label(finished)}.",
        elements.baseline_note(),
        f"Mastered: also at least {task_significance.MASTERY_FRACTION:.0%} of the distance from the"
        " best baseline to 1.",
    ]
    return style.finish_figure(figure, axes, [*caption, elements.budget_note(selection)], theme)


def task_curves(
    rows, tasks=None, x=records.N_PARAMS, theme=style.LIGHT, title="Accuracy by task"
) -> Figure:
    """Plot the accuracy in percent against size, one small panel per task.

    tasks: names of the shown tasks, None for all. Minimal pairs have a panel per phenomenon. A
    dotted line is the best baseline.
    """
    selection = run_selection.select_task_runs(rows, x)
    tasks = task_results.summary_tasks(selection.rows) if tasks is None else tasks
    figure, panels = style.new_panels(title, len(tasks), theme)
    finished = []
    for axes, task in zip(panels, tasks, strict=False):
        y = task_results.task_column(task)
        shown = elements.draw_means(axes, selection.rows, x, y, theme, scale=100, label_offset=None)
        finished = shown or finished
        baseline = _draw_baseline(axes, finished, x, task, theme)
        style.panel_title(axes, _panel_title(task, baseline), theme)
        elements.set_scales(axes, x, y)
        tick_labels.thin_ticks(axes)
        axes.set_ylim(-4, 104)
    style.label_panels(panels, x, "Accuracy (%)", theme)
    counts = {
        task_results.task_value(row, task, "n")
        for row in finished
        for task in [*task_results.task_names([row]), *task_results.paradigm_means([row])]
    }
    caption = [
        f"n = {elements.count_label(finished)}, {_format_range(counts)} questions each.",
        "Bars: one standard error. Dotted: best baseline.",
    ]
    return style.finish_figure(
        figure, panels[0], [*caption, elements.budget_note(selection)], theme
    )


def _panel_title(task: str, baseline: str) -> str:
    """Return the short name of a task with its best baseline: copy (chance 17%).

    A long title has the baseline on a second line, and a long name a line per part.
    """
    name = style.truncate_label(short_names.shorten_task(task), 32)
    title = f"{name} ({baseline})" if baseline else name
    if len(title) < style.PANEL_TITLE_LENGTH:
        return title
    first = name if len(name) < style.PANEL_TITLE_LENGTH else name.replace("/", "/\n", 1)
    return f"{first}\n({baseline})" if baseline else first


def _draw_baseline(axes, finished, x, task, theme) -> str:
    """Draw the score of the best baseline as a dotted line. Return its name and score as text."""
    best = {row[x]: task_results.best_baseline(row, task) for row in finished}
    if not best:
        return ""
    scores = [100 * score for _, score in best.values()]
    axes.plot(list(best), scores, ":", color=theme["muted"], linewidth=1)
    name, score = next(iter(best.values()))
    return f"{name} {100 * score:.0f}%"


def emergence(rows, tasks, x=records.N_PARAMS, theme=style.LIGHT) -> Figure:
    """Plot exact match, p and p^k against size in percent, a panel per task.

    tasks: names as in task_results.task_names. p is the geometric mean of the probability of an
    answer token (dotted), k the number of tokens per answer, and p^k is dashed. If the markers of
    exact match follow the dashed line while p is smooth, a jump comes from the metric (Schaeffer et
    al. 2023, arXiv:2304.15004).
    """
    selection = run_selection.select_task_runs(rows, x)
    title = "Emergence and the choice of metric"
    figure, panels = style.new_panels(title, len(tasks), theme, columns=4)
    finished = []
    for axes, task in zip(panels, tasks, strict=False):
        exact = task_results.task_column(task, "exact")
        shown = run_selection.finished_with(selection.rows, x, exact)
        finished = shown or finished
        _draw_emergence(axes, shown, task, x, theme)
        elements.set_scales(axes, x, "tasks")
        tick_labels.thin_ticks(axes)
        axes.set_ylim(-4, 104)
        axes.set_yticks(range(0, 101, 20))
        name = style.truncate_label(short_names.shorten_task(task), 32)
        lengths = [task_results.task_value(row, task, "tokens") for row in shown]
        style.panel_title(axes, f"{name}, k = {lengths[-1]:.3g}" if lengths else name, theme)
    style.label_panels(panels, x, "Probability (%)", theme)
    caption = [
        f"n = {elements.count_label(finished)}. Dotted: probability p of a token (geometric mean).",
        "Dashed: p to the power k, the mean number of tokens of an answer.",
        "Markers: exact match with one standard error.",
    ]
    return style.finish_figure(
        figure, panels[0], [*caption, elements.budget_note(selection)], theme
    )


def _draw_emergence(axes, finished, task, x, theme) -> None:
    """Draw exact match, p and p^k of one task for the finished runs."""
    points, colors = [], style.size_colors(finished, theme)
    for row in finished:
        p = task_results.task_value(row, task, "token_probability")
        k = task_results.task_value(row, task, "tokens")
        points.append({x: row[x], "p": p, "p^k": p**k})
    for name, line in (("p", ":"), ("p^k", "--")):
        curve = elements.mean_curve(points, x, name, 100)
        axes.plot(*curve, line, color=theme["ink"], linewidth=1.3)
    markers = []
    for row, point in zip(finished, points, strict=True):
        exact = task_results.task_result(row, task, "exact")
        assert exact, "finished_with selects runs with an exact match"
        share, error = 100 * exact["value"], 100 * exact["se"]
        tip = f"{task}, {elements.short_run_name(row)}: exact {share:.0f}%, p {point['p']:.2f}"
        markers.append(elements.Point(row[x], share, error, colors[row["name"]], tip))
    elements.draw_points(axes, markers, theme)


def accuracy_vs_loss(rows, curves, x=records.LOSS, theme=style.LIGHT) -> Figure:
    """Plot the accuracy in percent against the loss, a panel per task. The loss falls to the right.

    curves: result of task_analysis.accuracy_curves. Tasks that no run has above baseline are not
    shown. All finished runs are shown. Open markers are runs on fewer tokens than other runs of
    their size. If they are on the curve of the filled markers, the accuracy depends on the loss and
    not on the size.
    """
    all_tasks = task_results.summary_tasks(rows)
    above = task_significance.above_baseline_in_any(rows)
    tasks = [task for task in all_tasks if task in above]
    figure, panels = style.new_panels("Accuracy against held-out loss", len(tasks), theme)
    colors = style.size_colors(rows, theme)
    full_budget = {row["name"] for row in run_selection.select_task_runs(rows).rows}
    for axes, task in zip(panels, tasks, strict=False):
        finished = run_selection.finished_with(rows, x, task_results.task_column(task))
        fit, _ = curves.get(task, (None, ""))
        if fit is not None:
            grid = np.linspace(finished[0][x], finished[-1][x], 60)
            curve = fit.predict(grid, level=elements.LEVEL, noise=False)
            lo, hi = 100 * curve.lo, 100 * curve.hi
            axes.plot(grid, 100 * curve.value, color=theme["ink"], linewidth=1.1, zorder=2)
            axes.fill_between(grid, lo, hi, color=theme["band"], linewidth=0)
        points = []
        for row in finished:
            accuracy = task_results.task_result(row, task)
            assert accuracy, "finished_with selects runs with an accuracy"
            value, error = 100 * accuracy["value"], 100 * accuracy["se"]
            name = elements.short_run_name(row)
            tip = f"{name}: loss {style.format_number(row[x])}, {value:.0f}%"
            kind = "filled" if row["name"] in full_budget else "open"
            color = colors[row["name"]]
            points.append(elements.Point(row[x], value, error, color, tip, kind))
        elements.draw_points(axes, points, theme)
        baseline = _draw_baseline(axes, finished, x, task, theme)
        style.panel_title(axes, _panel_title(task, baseline), theme)
        axes.locator_params(axis="x", nbins=4)
        axes.set_ylim(-4, 104)
        axes.invert_xaxis()
    style.label_panels(panels, x, "Accuracy (%)", theme)
    n_runs = elements.count_label(run_selection.finished_with(rows, x, x))
    caption = [
        f"n = {n_runs}. The loss falls to the right.",
        "Line and band: a sigmoid with its 95% interval. Dotted: best baseline.",
        "Bars: one standard error. Open: fewer tokens than other runs of the size. Tasks that no"
        f" run has above baseline, not shown: {len(all_tasks) - len(tasks)}.",
    ]
    return style.finish_figure(figure, panels[0], caption, theme)


def predicted_accuracy(predictions, target=None, theme=style.LIGHT) -> Figure:
    """Plot the predicted and the measured accuracy of one run in percent, one line per task.

    predictions: result of task_analysis.predict_task_accuracy. Tasks without a prediction are not
    shown. target: the row of the predicted run, or None if it is not measured.
    """
    figure, axes = style.new_figure("Predicted task accuracy", "Accuracy (%)", "", theme)
    predicted = {task: p for task, p in predictions.items() if "value" in p}
    figure.set_figheight(1.6 + 0.33 * max(len(predicted), 2))
    bar = {"linewidth": 9, "solid_capstyle": "butt", "color": theme["soft"], "zorder": 1}
    stroke = {"color": theme["accent"], "markersize": 11, "markeredgewidth": 1.8}
    for y, (task, prediction) in enumerate(reversed(predicted.items())):
        value, lo, hi = (100 * number for number in elements.predicted_interval(prediction))
        name = short_names.shorten_task(task)
        bounds = f" [{lo:.0f}, {hi:.0f}]" if np.isfinite(lo) else ", no interval"
        gid = f"tip:{name}: predicted {value:.0f}%{bounds}"
        axes.plot([lo, hi], [y, y], gid=gid, **bar)
        axes.plot([value], [y], "|", **stroke)
        measured = task_results.task_result(target or {}, task)
        if measured and np.isfinite(measured["value"]):
            accuracy, error = 100 * measured["value"], 100 * measured["se"]
            tip = f"{name}: measured {accuracy:.0f}%"
            elements.draw_point(
                axes, (accuracy, y), theme["ink"], theme, tip, xerr=error, kind="diamond"
            )
    names = [
        style.truncate_label(short_names.shorten_task(task), 32) for task in reversed(predicted)
    ]
    axes.set_yticks(range(len(predicted)), names, parse_math=False)
    axes.set_ylim(-0.6, max(len(predicted), 1) - 0.4)
    axes.set_xlim(-3, 103)
    axes.grid(axis="y", visible=False)
    name = elements.short_run_name(target) if target else "The target is not measured"
    caption = [
        f"{name}: n = {len(predicted)} of {len(predictions)} tasks; no law fits the others.",
        "Bar: 95% interval of one measurement. Stroke: predicted value. Diamond: measured value",
        "with one standard error.",
    ]
    return style.finish_figure(figure, axes, caption, theme)


def _format_range(counts) -> str:
    """Format the range of numbers: "100", "50 to 100", or "" for no numbers."""
    ordered = sorted(counts)
    return " to ".join(f"{n:,.0f}" for n in dict.fromkeys(ordered[:1] + ordered[-1:]))
