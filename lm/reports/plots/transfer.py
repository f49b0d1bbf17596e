"""Figures of fine-tuning: transfer, forgetting, task quality and compute saved.

    transfer.finetuned_vs_scratch(records.load_runs("runs/transfer"))
    points = transfer_analysis.task_quality(records.load_runs("runs/specialists"))
    transfer.task_quality_vs_data(points)

A model size has the same color in every figure. Filled markers on solid lines are fine-tuned runs
(with start.run), open markers on dashed lines are runs from scratch. Only finished runs are shown.
Error bars are one standard error.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lm.reports import transfer_analysis
from lm.reports.plots import elements, style
from lm.reports.plots.markers import marker_shapes
from lm.reports.tuned_abilities import pretraining_gain
from lm.runs import records, run_selection, task_results

# Training method (see transfer_analysis.task_quality) -> line style, kind of marker.
METHOD_LINES = {"from scratch": "--", "tuned": "-", "from scratch, same FLOPs": "None"}
METHOD_MARKERS: dict[str, marker_shapes.Kind] = {
    "from scratch": "open",
    "tuned": "filled",
    "from scratch, same FLOPs": "diamond",
}
# Method (see pretraining_gain) -> line style, kind of marker, color of the theme.
TUNING_LINES: dict[str, tuple[str, marker_shapes.Kind, str]] = {
    pretraining_gain.TUNED: ("-", "filled", "ink"),
    pretraining_gain.SCRATCH: ("--", "open", "ink"),
    pretraining_gain.TOTAL_FLOPS: ("None", "diamond", "ink"),
    pretraining_gain.TUNED_ON_ALL: ("-", "square", "second"),
    pretraining_gain.SCRATCH_ON_ALL: ("--", "open square", "second"),
}
METHOD_NOTES = {
    pretraining_gain.TUNED: "filled circle: pre-trained, tuned on this task",
    pretraining_gain.SCRATCH: "open circle: on this task from scratch, same steps",
    pretraining_gain.TOTAL_FLOPS: "diamond: from scratch, FLOPs of pre-training and tuning",
    pretraining_gain.TUNED_ON_ALL: "filled square: pre-trained, tuned on all tasks together",
    pretraining_gain.SCRATCH_ON_ALL: "open square: on all tasks from scratch, same steps",
}
# Line style, marker, color of the theme, and marker in the caption of each comparison.
GAIN_STYLES: list[tuple[str, marker_shapes.Kind, str, str]] = [
    ("-", "filled", "ink", "circle"),
    ("None", "diamond", "ink", "diamond"),
    ("-", "square", "second", "filled square"),
    ("--", "open square", "second", "open square"),
]
GAIN_LINES = dict(zip(pretraining_gain.COMPARISONS, GAIN_STYLES, strict=True))


def finetuned_vs_scratch(rows, x="unique_tokens", y=records.LOSS, theme=style.LIGHT) -> Figure:
    """Plot the held-out loss of fine-tuned runs and runs from scratch against x, on log axes.

    x: a column with the number of unique tokens of the task. Sizes and values of x without both
    kinds of runs are not shown.
    """
    figure, axes = style.new_figure("Fine-tuned and from scratch", "Tokens of the task", y, theme)
    paired = {
        (pair["size"], pair["tokens"]) for pair in transfer_analysis.finetune_pairs(rows, x, y)
    }
    finished = [
        row
        for row in run_selection.finished_with(rows, x, y)
        if (row.get(records.N_PARAMS), row[x]) in paired
    ]
    colors, labels = style.size_colors(rows, theme), []
    for size in sorted({row[records.N_PARAMS] for row in finished}):
        same_size = [row for row in finished if row[records.N_PARAMS] == size]
        for is_tuned in (False, True):
            line, kind = ("-", "filled") if is_tuned else ("--", "open")
            runs = [row for row in same_size if run_selection.is_finetuned(row) == is_tuned]
            color = colors[runs[0]["name"]]
            xs, ys = [row[x] for row in runs], [row[y] for row in runs]
            axes.plot(xs, ys, line, color=color, linewidth=1.2)
            for row in runs:
                tip = f"{elements.short_run_name(row)}: {style.format_number(row[y])}"
                error = task_results.standard_error(row, y)
                elements.draw_point(axes, (row[x], row[y]), color, theme, tip, error, kind=kind)
            if is_tuned:
                labels.append((style.format_si(size), xs[-1], ys[-1]))
    if finished:
        axes.set(xscale="log", yscale="log", xlim=(None, 1.5 * max(row[x] for row in finished)))
        style.log_x(axes, style.format_si)
        style.log_y(axes)
    elements.label_line_ends(axes, labels, theme)
    caption = [
        f"n = {elements.count_label(finished)}. Filled, solid: from pre-trained weights.",
        "Open, dashed: from scratch. Bars: one standard error.",
    ]
    return style.finish_figure(figure, axes, caption, theme)


def forgetting_vs_size(rows, theme=style.LIGHT) -> Figure:
    """Plot the held-out loss on pre-training text before and after fine-tuning, on log axes.

    rows: fine-tuned runs and their parents. The horizontal axis is the number of task tokens, or
    the size if all fine-tuned runs have the same number. The loss before fine-tuning is dotted.
    """
    points = transfer_analysis.forgetting(rows)
    is_by_size = len({point["tokens"] for point in points}) < 2
    x = "size" if is_by_size else "tokens"
    label = records.N_PARAMS if is_by_size else "Tokens of the task"
    source = ", ".join(sorted({point["source"] for point in points}))
    title = f"Forgetting by fine-tuning: {source}" if source else "Forgetting by fine-tuning"
    figure, axes = style.new_figure(title, label, records.LOSS, theme)
    labels = []
    for size, color in _size_colors(points, theme).items():
        same_size = sorted((p for p in points if p["size"] == size), key=lambda p: p[x])
        _draw_forgetting(axes, same_size, x, color, theme, has_markers_before=is_by_size)
        labels += [(style.format_si(size), p[x], p["after"]) for p in same_size[-1:]]
    if points:
        axes.set(xscale="log", yscale="log", xlim=(None, 1.5 * max(p[x] for p in points)))
        style.log_x(axes, style.format_si)
        style.log_y(axes)
    elements.label_line_ends(axes, labels, theme)
    before = "Open" if is_by_size else "Dotted"
    caption = [
        f"n = {len(points)} fine-tuned runs. {before}: before fine-tuning.",
        "Filled: after, on the same held-out text. Bars: one standard error.",
    ]
    return style.finish_figure(figure, axes, caption, theme)


def _draw_forgetting(axes, points, x, color, theme, has_markers_before) -> None:
    """Draw the losses of one size before and after fine-tuning."""
    xs = [point[x] for point in points]
    before, after = ([point[key] for point in points] for key in ("before", "after"))
    axes.plot(xs, before, color=color, linewidth=1.2, linestyle=":")
    axes.plot(xs, after, color=color, linewidth=1.2)
    for p in points:
        tip = f"{style.format_si(p['size'])}: {p['before']:.3f} before, {p['after']:.3f} after"
        tip += f", change {p['change']:+.3f} ± {p['change_se']:.2g}"
        elements.draw_point(axes, (p[x], p["after"]), color, theme, tip, p["after_se"])
        if has_markers_before:
            elements.draw_point(
                axes, (p[x], p["before"]), color, theme, tip, p["before_se"], kind="open"
            )


def task_quality_vs_data(points, y="Bits per byte", theme=style.LIGHT) -> Figure:
    """Plot a metric against the number of training examples, a panel per task, a color per size.

    points: result of transfer_analysis.task_quality. y: name of the metric, for the axis.
    Solid, filled: fine-tuned on the task. Dashed, open: trained from scratch for the same number of
    steps. Diamond: from scratch, with the FLOPs of pre-training and fine-tuning together. Dotted:
    the pre-trained model, prompted without examples.
    """
    tasks = list(dict.fromkeys(point["task"] for point in points))
    figure, panels = style.new_panels("Quality against task examples", len(tasks), theme, columns=3)
    colors = _size_colors(points, theme)
    for axes, task in zip(panels, tasks, strict=False):
        task_points, labels = [p for p in points if p["task"] == task], []
        for size, color in colors.items():
            same_size = [p for p in task_points if p["size"] == size]
            labels += _draw_methods(axes, same_size, color, theme)
        axes.set_ylim(axes.get_ylim())  # the prompted model may be far above the other values
        for point in task_points:
            if point["method"] == "prompted, 0 shots":
                line = {"color": colors[point["size"]], "linewidth": 1, "linestyle": ":"}
                axes.axhline(point["value"], **line)
        style.panel_title(axes, task, theme)
        axes.set(xscale="log", xlim=(None, 4 * max((x for _, x, _ in labels), default=1)))
        style.log_x(axes, style.format_si)
        elements.label_line_ends(axes, labels, theme)
    style.label_panels(panels, "Training examples", y, theme)
    n_models = len({(p["size"], p["task"], p["method"], p["n_examples"]) for p in points})
    caption = [
        f"n = {n_models} models and tasks.",
        "Filled, solid: from pre-trained weights. Open, dashed: from scratch, same steps.",
        "Diamond: from scratch, FLOPs of pre-training and fine-tuning. Dotted: pre-trained model,",
        "prompted, if in range. Bars: one standard error.",
    ]
    return style.finish_figure(figure, panels[0], caption, theme)


def _draw_methods(axes, points, color, theme) -> list[tuple[str, float, float]]:
    """Draw one line per training method. Return a list with the label of the fine-tuned line."""
    labels = []
    for method, line in METHOD_LINES.items():
        curve = [point for point in points if point["method"] == method]
        curve = sorted(curve, key=lambda point: point["n_examples"])
        xs, ys = [p["n_examples"] for p in curve], [p["value"] for p in curve]
        axes.plot(xs, ys, line, color=color, linewidth=1.2)
        kind = METHOD_MARKERS[method]
        for x, p in zip(xs, curve, strict=True):
            tip = f"{style.format_si(p['size'])} {method}: {p['value']:.2f} ± {p['se']:.2f}"
            elements.draw_point(axes, (x, p["value"]), color, theme, tip, p["se"], kind=kind)
        if method == "tuned" and curve:
            labels.append((style.format_si(curve[0]["size"]), xs[-1], ys[-1]))
    return labels


def compute_saved_vs_size(points, theme=style.LIGHT) -> Figure:
    """Plot the ratio of FLOPs from scratch and of fine-tuning against size, a line per task.

    Both reach the same held-out loss. points: result of transfer_analysis.compute_saved. An open
    marker is a lower bound: no run from scratch reached the loss.
    """
    label = "FLOPs from scratch / FLOPs of fine-tuning"
    figure, axes = style.new_figure("Compute saved by fine-tuning", records.N_PARAMS, label, theme)
    tasks = list(dict.fromkeys(point["task"] for point in points))
    labels = []
    for task, color in zip(
        tasks, style.categorical_colors(theme, max(len(tasks), 2)), strict=False
    ):
        curve = sorted((p for p in points if p["task"] == task), key=lambda p: p["size"])
        sizes, ratios = [p["size"] for p in curve], [p["flops_ratio"] for p in curve]
        axes.plot(sizes, ratios, color=color, linewidth=1)
        for p in curve:
            ratio, is_exact = p["flops_ratio"], p["is_loss_reached"]
            bound = "" if is_exact else "more than "
            tip = f"{task}, {style.format_si(p['size'])}: {bound}{ratio:.1f} times"
            kind = "filled" if is_exact else "open"
            elements.draw_point(axes, (p["size"], ratio), color, theme, tip, kind=kind)
        labels.append((task, sizes[-1], ratios[-1]))
    axes.axhline(1, color=theme["muted"], linewidth=1, linestyle=":")
    axes.set_yscale("log")
    if points:
        elements.set_scales(axes, records.N_PARAMS, "flops_ratio", right=0.6)
        style.log_y(axes)
    elements.label_line_ends(axes, labels, theme)
    caption = [
        f"n = {len(points)} fine-tuned runs. FLOPs until a run from scratch has the best held-out",
        "loss of the fine-tuned run. FLOPs of fine-tuning exclude pre-training. Open: lower bound.",
    ]
    return style.finish_figure(figure, axes, caption, theme)


def tuned_scores_vs_size(points, theme=style.LIGHT) -> Figure:
    """Plot the score of each tuned task against size, a panel per task, a line per method.

    points: result of pretraining_gain.task_scores.
    """
    tasks = list(dict.fromkeys(point["task"] for point in points))
    title = "Tuned on prompts: score by size"
    figure, panels = style.new_panels(title, len(tasks), theme, columns=3)
    for axes, task in zip(panels, tasks, strict=False):
        of_task = [point for point in points if point["task"] == task]
        for method, (line, kind, color) in TUNING_LINES.items():
            curve = [point for point in of_task if point["method"] == method]
            xs, ys = [p["size"] for p in curve], [p["value"] for p in curve]
            axes.plot(xs, ys, line, color=theme[color], linewidth=1.2)
            for p in curve:
                score = pretraining_gain.format_score(p)
                tip, point = (
                    f"{style.format_si(p['size'])} {method}: {score}",
                    (p["size"], p["value"]),
                )
                elements.draw_point(axes, point, theme[color], theme, tip, p["se"], kind=kind)
        best = max(of_task, key=lambda point: point["size"])
        if best["baseline_name"]:
            axes.axhline(best["baseline"], color=theme["muted"], linewidth=1, linestyle=":")
        elements.set_scales(axes, records.N_PARAMS, "tasks")
        unit = pretraining_gain.UNITS.get(best["metric"], best["metric"])
        style.label_panels([axes], records.N_PARAMS, f"Score ({unit})", theme)
        suffix = f" ({best['baseline_name']})" if best["baseline_name"] else ""
        style.panel_title(axes, style.truncate_label(task, 32) + suffix, theme)
    methods = {point["method"] for point in points}
    caption = [_sentence([text for name, text in METHOD_NOTES.items() if name in methods])]
    if any(point["baseline_name"] for point in points):
        caption[0] += " Dotted: the baseline in the title."
    if any(point["metric"] == "bits_per_byte" for point in points):
        caption.append("Bits per byte of the right answer: lower is better.")
    caption.append(f"Bars: one standard error over {_error_sources(points)}.")
    return style.finish_figure(figure, panels[0], caption, theme)


def pretraining_gain_vs_size(effects, theme=style.LIGHT) -> Figure:
    """Plot the gain of pre-training against size, a panel per task, a line per comparison.

    effects: see pretraining_gain.compare_methods.
    """
    tasks = list(dict.fromkeys(gain["task"] for gain in effects))
    title = "Gain of pre-training by size"
    figure, panels = style.new_panels(title, len(tasks), theme, columns=3)
    for axes, task in zip(panels, tasks, strict=False):
        of_task = sorted((g for g in effects if g["task"] == task), key=lambda gain: gain["size"])
        for (method, other), (line, kind, color, _) in GAIN_LINES.items():
            curve = [g for g in of_task if (g["method"], g["other"]) == (method, other)]
            xs, ys = [g["size"] for g in curve], [g["gain"] for g in curve]
            axes.plot(xs, ys, line, color=theme[color], linewidth=1.2)
            for g in curve:
                gain = pretraining_gain.format_gain(g)
                tip = f"{style.format_si(g['size'])}, {method} against {other}: {gain}"
                point, error = (g["size"], g["gain"]), g["gain_se"]
                elements.draw_point(axes, point, theme[color], theme, tip, error, kind=kind)
        axes.axhline(0, color=theme["muted"], linewidth=1)
        elements.set_scales(axes, records.N_PARAMS, "tasks")
        unit = pretraining_gain.gain_unit(of_task[0]["metric"])
        style.label_panels([axes], records.N_PARAMS, f"Gain ({unit})", theme)
        style.panel_title(axes, style.truncate_label(task, 32), theme)
    pairs = {(effect["method"], effect["other"]) for effect in effects}
    lines = [
        f"{marker}: {a} against {b}"
        for (a, b), (*_, marker) in GAIN_LINES.items()
        if (a, b) in pairs
    ]
    caption = [_sentence(lines), f"Bars: one standard error over {_error_sources(effects)}."]
    return style.finish_figure(figure, panels[0], caption, theme)


def _sentence(parts) -> str:
    """Return a sentence of a caption. parts: texts between semicolons."""
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _error_sources(points) -> str:
    """Return the sources of the errors of points of pretraining_gain, for a caption."""
    have_seeds = [point["seed_degrees"] > 0 for point in points]
    if any(have_seeds):
        return "test items and seeds" + ("" if all(have_seeds) else ", if a task has two seeds")
    return "test items alone, because each size has one seed"


def unseen_task_accuracy(points, theme=style.LIGHT) -> Figure:
    """Plot the accuracy in percent against size, a panel per group of tasks.

    There is one line per number of task clusters that the model was fine-tuned on. The line of the
    model before fine-tuning is dotted. points: result of transfer_analysis.mean_accuracy.
    """
    groups = list(dict.fromkeys(point["group"] for point in points))
    figure, panels = style.new_panels("Tuned and unseen tasks", len(groups), theme, columns=3)
    numbers = sorted({point["n_clusters"] for point in points})
    colors = dict(zip(numbers, [theme["muted"], *style.categorical_colors(theme)], strict=False))
    for axes, group in zip(panels, groups, strict=False):
        labels = []
        for n in numbers:
            curve = [p for p in points if (p["group"], p["n_clusters"]) == (group, n)]
            color = colors.get(n, theme["ink"])
            sizes, accuracies = [p["size"] for p in curve], [100 * p["value"] for p in curve]
            axes.plot(sizes, accuracies, "-" if n else ":", color=color, linewidth=1.2)
            for p, accuracy in zip(curve, accuracies, strict=True):
                tip = f"{n} clusters, {style.format_si(p['size'])}: {accuracy:.0f}%"
                elements.draw_point(axes, (p["size"], accuracy), color, theme, tip, 100 * p["se"])
            text = f"{n} cluster{'s' if n > 1 else ''}" if n else "before"
            labels += [(text, p["size"], 100 * p["value"]) for p in curve[-1:]]
        style.panel_title(axes, group, theme)
        elements.set_scales(axes, records.N_PARAMS, "tasks", right=0.3)
        axes.set_ylim(-14, 112)
        elements.label_line_ends(axes, labels, theme)
    style.label_panels(panels, records.N_PARAMS, "Accuracy (%)", theme)
    n_runs = sum({(p["size"], p["n_clusters"]): p["n_runs"] for p in points}.values())
    caption = [
        f"n = {n_runs} runs.",
        "Bars: one standard error.",
    ]
    return style.finish_figure(figure, panels[0], caption, theme)


def left_out_clusters(points, theme=style.LIGHT) -> Figure:
    """Plot the accuracy on a task cluster, included in or left out of fine-tuning, against size.

    points: result of transfer_analysis.leave_one_cluster_out. A small marker is a cluster. A large
    marker is the mean over clusters with one standard error.
    """
    figure, axes = style.new_figure(
        "Each cluster left out in turn", records.N_PARAMS, "Accuracy (%)", theme
    )
    labels = []
    sizes = sorted({point["size"] for point in points})
    lines = (("with", "tuned on", theme["ink"]), ("without", "left out", theme["second"]))
    for key, text, color in lines:
        means = []
        for size in sizes:
            values = 100 * np.array([p[key] for p in points if p["size"] == size])
            axes.plot([size] * len(values), values, "o", color=color, alpha=0.35, markersize=4)
            mean = values.mean()
            error = values.std(ddof=min(1, len(values) - 1)) / len(values) ** 0.5
            tip = f"{text}, {style.format_si(size)}: {mean:.0f}% ± {error:.0f}"
            elements.draw_point(axes, (size, mean), color, theme, tip, error)
            means.append(mean)
        axes.plot(sizes, means, "-", color=color, linewidth=1.2)
        if sizes:
            labels.append((text, sizes[-1], means[-1]))
    if points:
        elements.set_scales(axes, records.N_PARAMS, "tasks", right=0.3)
    axes.set_ylim(-4, 106)
    elements.label_line_ends(axes, labels, theme)
    caption = [
        f"n = {len(points)} runs, each without one cluster. Small: a cluster. Large: the mean",
        "of the clusters with its standard error.",
    ]
    return style.finish_figure(figure, axes, caption, theme)


def _size_colors(points: Sequence[dict], theme) -> dict[float, str]:
    """Return {size: color} of points with the key "size", sorted by size."""
    rows = [{"name": str(p["size"]), records.N_PARAMS: p["size"]} for p in points]
    colors = style.size_colors(rows, theme)
    return {size: colors[str(size)] for size in sorted({p["size"] for p in points})}
