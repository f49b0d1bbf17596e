"""Plot elements: markers of runs, fitted laws, training curves, intervals and labels.

Arguments of most functions: axes, rows of records.load_runs, columns x and y of the rows, and a
theme (style.LIGHT or style.DARK). The color of a run depends on its size. If the `gid` of an artist
starts with "tip:", the text after the colon is its tooltip on an HTML page.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from lm.laws import run_table
from lm.reports import task_significance
from lm.reports.plots import style
from lm.reports.plots.markers import error_bars, marker_shapes
from lm.runs import records, run_selection, short_names, task_results

LEVEL = 0.95  # level of all intervals in figures
MAX_LABELS = 12  # labels beside markers or curves of one figure
MAX_LINES = 60  # lines of a figure with a line per run
MAX_TOOLTIPS = 100  # markers of a panel that have tooltips

NOMINAL_SIZE = re.compile(r"([0-9]+(?:[.][0-9]+)?)([KMBT])")  # such as 10K or 1.5M
UNIT_SIZES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
SIZE_TOLERANCE = 1.3  # largest ratio of N and a nominal size
Kind = marker_shapes.Kind  # of the marker of a run


def draw_law(axes: Axes, rows, fit, x, y, theme, prediction=None, label_offset=(6, 6)) -> None:
    """Draw the finished runs and a fitted law of the column x with its interval.

    The law is solid in the range of its runs and dashed outside. Runs outside the fit have open
    markers. The target of the prediction is a diamond. Raises ValueError if the law was fitted to
    other columns.
    """
    if fit is not None:
        _check_columns(fit, x, y)
    axes.set(xscale="log", yscale="log")
    finished = run_selection.finished_with(rows, x, y)
    _law_points(axes, finished, fit, (x, y), style.size_colors(rows, theme), theme, prediction)
    named = [r for r in finished if fit_kind(r, fit) == "filled" and not is_target(r, prediction)]
    name_sizes(axes, named, (x, y), theme, label_offset, all_rows=finished)
    targets = [row for row in finished if is_target(row, prediction)]
    name_sizes(axes, targets, (x, y), theme, (6, 6), all_rows=finished)
    if fit is not None:
        _law_curve(axes, finished, fit, x, theme, prediction)
    low, high = np.log(axes.get_ylim())
    if label_offset[1] < 0:  # the labels below the lowest markers must not cover the axis
        axes.set_ylim(bottom=np.exp(low - 0.08 * (high - low)))
    set_scales(axes, x, y)


def _check_columns(fit, x, y) -> None:
    """Raise ValueError unless the fit is a law of the single column x for the column y."""
    inputs, output = [fit.columns[name] for name in fit.inputs], fit.columns[fit.output]
    if (inputs, output) != ([x], y):
        raise ValueError(
            f"fit is a law of {' and '.join(inputs)} for {output}, but the plot shows {y} against"
            f" {x}: pass a law of {x} for {y}, or set x and y to the columns of the law."
        )


def _law_points(axes: Axes, finished, fit, columns, colors, theme, prediction) -> None:
    """Draw the finished runs with their standard errors and tooltips."""
    x, y = columns
    # A prediction takes milliseconds, and many runs have the same size.
    sizes = {row[x] for row in finished} if fit is not None else set()
    laws = {size: f", law {law_interval(fit, size)}" for size in sizes}
    points = []
    for row in finished:
        error = task_results.standard_error(row, y)
        tip = f"{describe_point(row, y)} ± {error:.2g}{laws.get(row[x], '')}"
        kind = "diamond" if is_target(row, prediction) else fit_kind(row, fit)
        points.append(Point(row[x], row[y], error, colors[row["name"]], tip, kind))
    draw_points(axes, points, theme)


def _law_curve(axes: Axes, finished, fit, x, theme, prediction) -> None:
    """Draw the law, its interval and the predicted interval of the target."""
    has_target = prediction and records.is_finite(prediction.get(x))
    targets = [prediction[x]] if has_target else []
    fitted = [run_table.to_number(row[x]) for row in fit.data.rows]
    sizes = [row[x] for row in finished] + targets or fitted
    grid = np.geomspace(min(sizes) / 1.3, max(sizes) * 1.3, 200)
    curve = fit.predict(grid, level=LEVEL, noise=False)
    line = {"color": theme["ink"], "linewidth": 1.3, "zorder": 2}
    inside = (grid > min(fitted) * 0.99) & (grid < max(fitted) * 1.01)
    axes.plot(grid, curve.value, "--", **line)
    axes.plot(grid[inside], curve.value[inside], label=format_formula(fit), **line)
    if has_target:
        draw_interval(axes, prediction[x], prediction, theme, width=9)
    if np.isfinite(curve.lo).all():
        axes.set_ylim(axes.get_ylim())  # a wide interval must not compress the range of the runs
        label = f"{LEVEL:.0%} interval of the law"
        label += ", form uncertainty included" if curve.includes_form else ""
        band = {"color": theme["band"], "linewidth": 0, "zorder": 1, "label": label}
        axes.fill_between(grid, curve.lo, curve.hi, **band)


def draw_interval(axes: Axes, x, prediction, theme, width) -> None:
    """Draw a prediction at x: its interval as a bar of this width in points, its value as a stroke.

    prediction: a dict with "value", "lo" and "hi".
    """
    value, lo, hi = predicted_interval(prediction)
    gid = f"tip:predicted {style.format_prediction(value, lo, hi)}"
    bar = {"linewidth": width, "solid_capstyle": "butt", "color": theme["soft"], "zorder": 1.2}
    axes.plot([x, x], [lo, hi], gid=gid, **bar)
    axes.plot([x], [value], "_", color=theme["accent"], markersize=1.7 * width, markeredgewidth=1.8)


class Point(NamedTuple):
    """Marker of a run. error: standard error of y."""

    x: float
    y: float
    error: float
    color: str
    tip: str
    kind: Kind = "filled"


def draw_points(axes: Axes, points: Sequence[Point], theme) -> None:
    """Draw markers. More than MAX_TOOLTIPS lack tooltips and caps; equal ones are drawn at once.

    A figure with an artist per run would need minutes for a thousand runs.
    """
    if len(points) <= MAX_TOOLTIPS:
        error_bars.draw_error_bars(axes, [p[:4] for p in points if p.error > 0])
        for p in points:
            draw_point(axes, (p.x, p.y), p.color, theme, p.tip, kind=p.kind)
        return
    groups: dict[tuple[str, Kind], list[Point]] = {}
    for point in points:
        groups.setdefault((point.color, point.kind), []).append(point)
    for (color, kind), members in groups.items():
        xs, ys, errors = ([getattr(p, name) for p in members] for name in ("x", "y", "error"))
        draw_point(axes, (xs, ys), color, theme, "", errors, kind=kind)


def draw_point(
    axes: Axes, point, color, theme, tip, yerr: Any = None, xerr: Any = None, kind: Kind = "filled"
) -> None:
    """Draw one marker at point (x, y) with a tooltip, or the markers of two lists without tooltips.

    yerr, xerr: standard errors of the point, or None for no error bar.
    """
    xs, ys = np.atleast_1d(point[0]), np.atleast_1d(point[1])
    if yerr is not None or xerr is not None:
        cap = 2.5 if len(xs) == 1 else 0.0  # caps of many bars make a page large
        bars = {"fmt": "none", "color": color, "ecolor": color, "elinewidth": 1.2, "capsize": cap}
        axes.errorbar(xs, ys, yerr, xerr, zorder=4, **bars)
    shape, size = marker_shapes.SHAPES[kind]
    face, edge, width = (color, theme["paper"], 0.8)
    if kind.startswith("open"):
        face, edge, width = (theme["paper"], color, 1.5)
    look = {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": width, "zorder": 5}
    look |= {"gid": f"tip:{tip}"} if tip else {}
    axes.plot(xs, ys, shape, markersize=size, **look)


def draw_curves(axes: Axes, rows, metrics, x, theme, alpha=1.0) -> list[tuple[dict, float, float]]:
    """Draw the smoothed training curve of each run. Return (row, last x, last loss) of each curve.

    metrics: {name of run: records.load_metrics(directory)}. Runs without metrics are skipped.
    """
    colors, curve_ends = style.size_colors(rows, theme), []
    for row in rows:
        xs, losses = smooth_curve(metrics.get(row["name"], ()), x)
        if len(xs):
            look = {"color": colors[row["name"]], "linewidth": 1.3, "alpha": alpha, "zorder": 1.5}
            axes.plot(xs, losses, gid=f"tip:{short_run_name(row)}, {row['status']}", **look)
            curve_ends.append((row, xs[-1], losses[-1]))
    return curve_ends


def smooth_curve(metrics, x=records.TOKENS, y="loss", n_bins=80) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of x and y in at most n_bins equal intervals of log x.

    metrics: rows of records.load_metrics. Rows with a non-finite value or x <= 0 are skipped. Both
    arrays are empty for fewer than two points.
    """
    points = [
        (row[x], row[y])
        for row in metrics
        if records.is_finite(row.get(x)) and records.is_finite(row.get(y)) and row[x] > 0
    ]
    if len(points) < 2:
        return np.zeros(0), np.zeros(0)
    columns = np.array(points, float).T
    logs = np.log(columns[0]) - np.log(columns[0].min())
    bins = np.minimum((n_bins * logs / max(logs.max(), 1e-9)).astype(int), n_bins - 1)
    size = np.bincount(bins, minlength=n_bins)
    xs, ys = (np.bincount(bins, column, n_bins)[size > 0] / size[size > 0] for column in columns)
    return xs, ys


def draw_means(
    axes: Axes, rows, x, y, theme, scale=1.0, line="-", label_offset=(6, 6)
) -> list[dict]:
    """Draw the finished runs with errors and a line through the mean at each x.

    scale: factor of y and its error. line: line style. label_offset: offset of the labels of the
    sizes in points, or None for no labels. Return the finished rows, sorted by x.
    """
    finished, colors = run_selection.finished_with(rows, x, y), style.size_colors(rows, theme)
    mean_line = {"color": theme["muted"], "linewidth": 1.1, "zorder": 1}
    axes.plot(*mean_curve(finished, x, y, scale), line, **mean_line)
    points = []
    for row in finished:
        value, error = scale * row[y], scale * task_results.standard_error(row, y)
        tip = f"{describe_point(row, y, scale)} ± {error:.2g}"
        points.append(Point(row[x], value, error, colors[row["name"]], tip))
    draw_points(axes, points, theme)
    name_sizes(axes, finished, (x, y), theme, label_offset, scale)
    return finished


def mean_curve(rows, x, y, scale=1.0) -> tuple[list[float], list[float]]:
    """Return the distinct values of x, and the mean of scale * y at each of them.

    The rows must be sorted by x.
    """
    values: dict[float, list[float]] = {}
    for row in rows:
        values.setdefault(row[x], []).append(scale * row[y])
    return list(values), [sum(ys) / len(ys) for ys in values.values()]


def name_sizes(axes: Axes, rows, columns, theme, label_offset, scale=1.0, all_rows=None) -> None:
    """Write the name of every size beside its first run.

    columns: (x, y). all_rows: rows that the names must distinguish, by default the same rows. Write
    nothing if label_offset is None or if there are more than MAX_LABELS sizes.
    """
    x, y = columns
    first_rows = {row.get(records.N_PARAMS, row[x]): row for row in reversed(rows)}
    if not label_offset or len(first_rows) > MAX_LABELS:
        return
    names, alignment = size_labels(all_rows or rows), "right" if label_offset[0] < 0 else "left"
    for size, row in sorted(first_rows.items()):
        text = names.get(size, short_run_name(row))
        style.annotate(axes, row[x], scale * row[y], text, theme, label_offset, ha=alignment)


def size_labels(rows) -> dict[float, str]:
    """Return {size: shortest name of a run of this size}, without a suffix that all names share.

    Example: 60K-2.5M, 60K-seed1-2.5M and 100K-2.5M give the names 60K and 100K.
    """
    shortest: dict[float, list[str]] = {}  # names, split at hyphens
    for row in rows:
        size, parts = row.get(records.N_PARAMS, 0), short_run_name(row).split("-")
        shortest[size] = min(shortest.get(size, parts), parts, key=len)
    while len(shortest) > 1 and min(map(len, shortest.values())) > 1:
        if len({parts[-1] for parts in shortest.values()}) > 1:
            break
        shortest = {size: parts[:-1] for size, parts in shortest.items()}
    return {size: "-".join(parts) for size, parts in shortest.items()}


def nominal_sizes(rows) -> dict[float, str]:
    """Return {size: label}: the name of its runs if this is about the size, or else the size.

    The name 10K agrees with 9,800 parameters. The name 2024 is not a size, because it has no unit.
    """
    labels = size_labels(rows)
    return {n: x if _is_nominal_size(x, n) else style.format_si(n) for n, x in labels.items()}


def _is_nominal_size(name: str, size: float) -> bool:
    """Return True if a name is a number with a unit that SIZE_TOLERANCE permits for a size."""
    match = NOMINAL_SIZE.fullmatch(name)
    nominal = float(match[1]) * UNIT_SIZES[match[2]] if match else 0.0
    return size / SIZE_TOLERANCE < nominal <= size * SIZE_TOLERANCE


def set_scales(axes: Axes, x, y, right=0.07) -> None:
    """Make the x axis logarithmic, and the y axis too if y is a loss.

    right: space for labels on the right, as a fraction of the width.
    """
    axes.set_xscale("log")
    low, high = np.log10(axes.get_xlim())
    axes.set_xlim(right=10 ** (high + right * (high - low)))
    style.log_x(axes, style.power_of_ten if x == records.FLOPS else style.format_si)
    if y.startswith((records.LOSS, "eval.bits")):
        style.log_y(axes)


def label_line_ends(axes: Axes, labels: list[tuple[str, float, float]], theme) -> None:
    """Write labels (text, x, y) beside line ends. `style.finish_figure` separates the labels."""
    leader = {"arrowstyle": "-", "color": theme["muted"], "linewidth": 0.6, "shrinkB": 4}
    leader |= {"relpos": (0, 0.5), "shrinkA": 1}
    for text, x, y in labels:
        # Points of other lines have a zorder of 5 and must not cover the text.
        look = {"zorder": 5.5, "va": "center", "arrowprops": leader}
        style.annotate(axes, x, y, text, theme, (9, 0), **look)


def budget_note(selection: run_selection.BudgetSelection) -> str:
    """Return caption sentences about a selection of runs, "" for all runs of one kind of start."""
    budget = "Only the runs of each size with the most tokens."
    if selection.n_tokens is not None:
        budget = f"Only runs on {style.format_si(selection.n_tokens)} tokens."
    starts = "Means over fine-tuned runs and runs from scratch." * selection.has_two_starts
    starts += f"Only {selection.only_kind}." if selection.only_kind else ""
    return f"{'' if selection.is_complete else budget} {starts}".strip()


def baseline_note() -> str:
    """Return the caption sentence that defines tasks above baseline."""
    return (
        "Above baseline: better than each baseline of the task, at a false discovery rate of"
        f" {task_significance.FALSE_DISCOVERY_RATE:.0%} (Benjamini-Hochberg)."
    )


def format_tasks(tasks: Iterable[str]) -> str:
    """Return the short names of tasks in order, joined by commas."""
    return ", ".join(sorted(short_names.shorten_task(task) for task in tasks))


def short_run_name(row: Mapping) -> str:
    """Return the last part of the name of a run: quickstart/100K -> 100K."""
    return row["name"].rsplit("/", 1)[-1]


def describe_point(row: Mapping, y: str, scale=1.0) -> str:
    """Return name, size, tokens and result of a run as text of a tooltip.

    Example: 100K: N = 102K, D = 2.5M, 4.192.
    """
    inputs = (("N", records.N_PARAMS), ("D", records.TOKENS))
    known = [(letter, row[key]) for letter, key in inputs if records.is_finite(row.get(key))]
    texts = [f"{letter} = {style.format_si(value)}" for letter, value in known]
    return f"{short_run_name(row)}: {', '.join([*texts, style.format_number(scale * row[y])])}"


def law_interval(fit, value) -> str:
    """Return the value and the interval of a law of one input as text: 4.21 [4.15, 4.27]."""
    estimate = fit.predict(value, level=LEVEL)
    return style.format_prediction(estimate.value, estimate.lo, estimate.hi)


def count_label(rows: Sequence) -> str:
    """Return the number of rows as text: "1 run", "6 runs"."""
    return "1 run" if len(rows) == 1 else f"{len(rows)} runs"


def describe_shown(rows: Sequence, n_available: int) -> str:
    """Return the number of shown rows as text: "60 runs, the largest of 1000"."""
    omitted = f", the largest of {n_available}" if n_available > len(rows) else ""
    return f"{count_label(rows)}{omitted}"


def source_columns(rows, y=records.LOSS) -> list[str]:
    """Return the sorted columns with y for a single source: eval.loss.code, eval.loss.docs."""
    return sorted(key for key in set().union(*rows) if key.startswith(y + "."))


def source_names(columns: Sequence[str], y=records.LOSS) -> dict[str, str]:
    """Return {column: short name of its source}.

    columns: names such as "eval.loss.SOURCE". y: prefix of the columns, without the dot.
    """
    full_names = {column: column.removeprefix(y + ".") for column in columns}
    names = short_names.shorten_sources(list(full_names.values()))
    return {column: names[source] for column, source in full_names.items()}


def is_in_fit(row, fit) -> bool:
    """Return True if the fit used the run."""
    return row["name"] in fit.data.names


def fit_kind(row, fit) -> Kind:
    """Return the marker kind of a run: "open" if there is a fit that did not use the run."""
    return "filled" if fit is None or is_in_fit(row, fit) else "open"


def is_target(row, prediction) -> bool:
    """Return True if the run is the target of the prediction, False if prediction is None."""
    return bool(prediction) and row["name"] == prediction["target"]


def predicted_interval(prediction: dict) -> tuple[float, float, float]:
    """Return (value, lo, hi) of a stored prediction. Bounds are NaN if there is no interval."""
    stored = (prediction.get(key) for key in ("value", "lo", "hi"))
    value, lo, hi = (run_table.to_number(number) for number in stored)
    return value, lo, hi


def format_formula(fit) -> str:
    """Format a fitted law in one line of plain characters: L(N) = 0.9 + 18 N^-0.25."""
    values = {name: style.format_parameter(value) for name, value in fit.params.items()}
    return fit.formula.format(**values).replace("+ -", "- ").replace("- -", "+ ")
