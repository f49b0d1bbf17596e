"""Figures of hyperparameter transfer: coordinate check, loss against learning rate.

    rows = coordinate_check.measure_activations(run, batches, mesh)
    learning_rates.activation_changes(rows)
    runs = records.load_runs("runs/lr_transfer")
    learning_rates.loss_vs_learning_rate(runs, lr_analysis.WIDTH)

A parametrization is called rule. In the coordinate check, a color is a part of the model. In
the other figure, it is a model size, as everywhere.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.reports import lr_analysis
from lm.reports.plots import elements, style

# Pairs of columns: of coordinate_check.measure_activations, and of records.load_runs.
DIRECTIONS = (("width", "depth"), (lr_analysis.WIDTH, lr_analysis.DEPTH))
NAMES = {
    lr_analysis.WIDTH: "width",
    lr_analysis.DEPTH: "depth",
    "width": "Width, d_model",
    "depth": "Depth, layers",
}


def activation_changes(rows, theme=style.LIGHT) -> Figure:
    """Plot the change of activations between the first and the last step against width and depth.

    rows: results of coordinate_check.measure_activations for several shapes and seeds. There is one
    panel per parametrization and direction (width or depth), and one line per part of the model,
    the mean over seeds. Axes are logarithmic. The label of a line is its exponent, which is 0 if a
    step has the same effect at any shape.
    """
    last_step = max((row["step"] for row in rows), default=0)
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    varied = [
        (rule, along, rows_along([row for row in rows if row["rule"] == rule], along))
        for along in ("width", "depth")
        for rule in rules
    ]
    shown = [(rule, along, subset) for rule, along, subset in varied if subset]
    n_columns = max(len({rule for rule, _, _ in shown}), 1)
    figure, panels = style.new_panels("Coordinate check", len(shown), theme, columns=n_columns)
    figure.set_figheight(0.8 + 2.5 * max(-(-len(shown) // n_columns), 1))
    parts = list(dict.fromkeys(row["part"] for row in rows))
    colors = dict(zip(parts, style.categorical_colors(theme, max(len(parts), 2)), strict=False))
    changes = [row["change"] for row in rows if row["step"] == last_step]
    for axes, (rule, along, subset) in zip(panels, shown, strict=False):
        labels = _draw_coordinates(axes, subset, along, last_step, colors, theme)
        style.panel_title(axes, rule, theme)
        axes.set_xlabel(NAMES[along], size=8.5, color=theme["ink"])
        axes.set_ylabel("Change, root mean square", size=8.5, color=theme["ink"])
        _shape_axis(axes, sorted({row[along] for row in subset}), right=2.6)
        axes.set_ylim(min(changes) / 1.5, max(changes) * 1.5)
        style.log_y(axes)
        elements.label_line_ends(axes, labels, theme)
    n_seeds = len({row["seed"] for row in rows})
    caption = [
        f"n = {n_seeds} seed{'' if n_seeds == 1 else 's'} per shape. Change of an activation in"
        f" {last_step} steps at one learning rate.",
        "Label: exponent ± one standard error over seeds.",
    ]
    return style.finish_figure(figure, panels[0], caption, theme)


def _draw_coordinates(axes: Axes, rows, along, step, colors, theme) -> list:
    """Draw one line per part of the model. Return the labels of the lines."""
    exponents = {
        (exponent["step"], exponent["part"]): exponent
        for exponent in lr_analysis.activation_exponents(rows, along)
    }
    shapes, labels = sorted({row[along] for row in rows}), []
    for part, color in colors.items():
        changes: dict[int, list[float]] = {shape: [] for shape in shapes}
        for row in rows:
            if (row["step"], row["part"]) == (step, part):
                changes[row[along]].append(row["change"])
        means = [np.mean(values) for values in changes.values()]
        for shape, mean in zip(shapes, means, strict=True):
            tip = f"{rows[0]['rule']}, {along} {shape}, {part}: {style.format_number(float(mean))}"
            elements.draw_point(axes, (shape, mean), color, theme, tip)
        axes.plot(shapes, means, color=color, linewidth=1.3)
        text = f"{part} {_exponent_text(exponents[step, part])}"
        labels.append((text, shapes[-1], float(means[-1])))
    return labels


def loss_vs_learning_rate(rows, along, theme=style.LIGHT, optima=None) -> Figure:
    """Plot the loss of finished runs against the learning rate, on log axes.

    There is one panel per parametrization with at least two values of the column `along`, and one
    line per value. along: lr_analysis.WIDTH or lr_analysis.DEPTH. The other of the two columns is
    fixed at the value that has the largest number of values of `along`. optima: result of
    lr_analysis.optimal_lr, or None to compute it. A diamond is the minimum of a parabola with its
    interval. The title of a panel contains the exponent of the best rate.
    """
    rows = lr_analysis.share_base_shape([row for row in rows if row["status"] == "done"])
    optima = rows_along(lr_analysis.optimal_lr(rows) if optima is None else optima, along)
    shapes: dict[str, set] = {}
    for optimum in optima:
        shapes.setdefault(optimum[lr_analysis.RULE], set()).add(optimum[along])
    rules = [rule for rule in sorted(shapes, key=_standard_first) if len(shapes[rule]) > 1]
    rows = [row for row in rows_along(rows, along) if row[lr_analysis.RULE] in rules]
    optima = [optimum for optimum in optima if optimum[lr_analysis.RULE] in rules]
    title = f"Loss against learning rate by {NAMES[along]}"
    figure, panels = style.new_panels(title, len(rules), theme, columns=max(len(rules), 1))
    figure.set_size_inches(max(3.7 * len(rules), 5.4), 3.7)
    by_run = style.size_colors(rows, theme)
    colors = {row[along]: by_run[row["name"]] for row in rows}
    exponents = {line[lr_analysis.RULE]: line for line in lr_analysis.lr_exponents(optima, along)}
    for axes, rule in zip(panels, rules, strict=False):
        labels = []
        for optimum in (o for o in optima if o[lr_analysis.RULE] == rule):
            value, name = optimum[along], f"{NAMES[along]} {optimum[along]}"
            subset = [r for r in rows if (r[lr_analysis.RULE], r[along]) == (rule, value)]
            labels.append(_draw_losses(axes, subset, name, colors[value], theme))
            _draw_minimum(axes, optimum, name, theme)
        style.panel_title(axes, f"{rule}: {_lr_exponent_text(exponents.get(rule))}", theme)
        _set_rate_axes(axes, rows, theme)
        elements.label_line_ends(axes, labels, theme)
    caption = [
        f"n = {len({row['name'] for row in rows})} runs. Small: runs. Line: means.",
        f"Diamond: minimum of a parabola with its {lr_analysis.INTERVAL_LEVEL:.0%} interval.",
        f"Title: doublings of the best rate per doubling of {NAMES[along]}.",
    ]
    return style.finish_figure(figure, panels[0], caption, theme)


def _draw_losses(axes: Axes, rows, name, color, theme) -> tuple[str, float, float]:
    """Draw runs and the line through their means. Return the label of the line."""
    losses: dict[float, list[float]] = {}
    for row in rows:
        losses.setdefault(row[lr_analysis.RATE], []).append(row[lr_analysis.LOSS])
    rates = sorted(losses)
    means = [np.mean(losses[rate]) for rate in rates]
    axes.plot(rates, means, color=color, linewidth=1.3, zorder=2)
    for row in rows:
        rate, loss = row[lr_analysis.RATE], row[lr_analysis.LOSS]
        gid = f"tip:{elements.short_run_name(row)}: {style.format_number(loss)}"
        look = {"color": color, "markersize": 3.5, "markeredgewidth": 0, "zorder": 4}
        axes.plot(rate, loss, "o", gid=gid, **look)
    return name, rates[-1], float(means[-1])


def _draw_minimum(axes: Axes, optimum, name, theme) -> None:
    """Draw the best learning rate with its interval, unless it has a warning."""
    if optimum["warning"]:
        return
    rate, lo, hi, loss = (optimum[key] for key in ("lr", "lo", "hi", "loss"))
    bar = {"color": theme["ink"], "linewidth": 2, "zorder": 4.5, "solid_capstyle": "butt"}
    axes.plot([lo, hi], [loss] * 2, **bar)
    tip = f"{name}: best {rate:.3g} [{lo:.3g}, {hi:.3g}]"
    elements.draw_point(axes, (rate, loss), theme["ink"], theme, tip, kind="diamond")


def _set_rate_axes(axes: Axes, rows, theme) -> None:
    """Set labels, ticks and limits. Losses above 1.5 times the smallest are cut off."""
    rates = sorted({row[lr_analysis.RATE] for row in rows})
    losses = [row[lr_analysis.LOSS] for row in rows]
    axes.set_xscale("log", base=2)
    axes.set_xlabel("Peak learning rate at the base shape", size=8.5, color=theme["ink"])
    axes.set_ylabel(style.axis_label(lr_analysis.LOSS), size=8.5, color=theme["ink"])
    axes.set_xticks(rates[::2], [f"{rate:.3g}" for rate in rates[::2]])
    axes.set_xlim(rates[0] / 1.2, rates[-1] * 3)
    axes.set_ylim(min(losses) / 1.02, min(max(losses), 1.5 * min(losses)) * 1.02)
    style.log_y(axes)


def _lr_exponent_text(line) -> str:
    """Format the exponent of the best learning rate with its interval."""
    if line is None or not np.isfinite(line["slope"]):
        return "exponent not determined"
    return f"exponent {line['slope']:+.2f} [{line['lo']:+.2f}, {line['hi']:+.2f}]"


def rows_along(rows: Sequence[Mapping], along: str) -> list:
    """Return the rows that vary along one direction, at a fixed value of the other direction.

    along: width or depth, as a column in DIRECTIONS. The fixed value is the value that occurs with
    the largest number of values of `along`. Return an empty list if that number is below two.
    """
    pair = next(pair for pair in DIRECTIONS if along in pair)
    fixed = pair[1] if pair[0] == along else pair[0]
    values: dict = {}
    for row in rows:
        values.setdefault(row[fixed], set()).add(row[along])
    fixed_value = max(values, key=lambda value: (len(values[value]), -value), default=None)
    if len(values.get(fixed_value, ())) < 2:
        return []
    return [row for row in rows if row[fixed] == fixed_value]


def _standard_first(rule: str) -> tuple:
    """Return a sort key that puts the standard parametrization first."""
    return rule != "standard", rule


def _exponent_text(exponents) -> str:
    """Format the exponent of the change of an activation with its standard error."""
    error = f" ± {exponents['change_se']:.2f}" if np.isfinite(exponents["change_se"]) else ""
    return f"{round(exponents['change'], 2) + 0.0:+.2f}{error}"  # + 0.0 turns -0.0 into 0.0


def _shape_axis(axes: Axes, shapes, right) -> None:
    """Make the x axis logarithmic, with ticks at the shapes. right: factor of space for labels."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(shapes[0] / 1.15, shapes[-1] * (shapes[-1] / shapes[0]) ** 0.1 * right)
    axes.set_xticks(shapes, [str(shape) for shape in shapes])
