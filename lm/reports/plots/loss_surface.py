"""Figures of sweeps that vary size and tokens: L against D, frontier, contours, isoFLOP profiles.

    joint = laws.chinchilla(rows)                     # L(N, D)
    loss_surface.loss_contours(rows, joint)
    loss_surface.isoflop_parabolas(rows, laws.isoflop(rows))

Only finished runs are shown. Markers, colors and arguments are explained in scaling.py. In isoFLOP
figures a color is a compute budget. Contours of equal loss have no color.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.laws.forms import compute_optimal
from lm.reports.plots import elements, style
from lm.reports.plots.geometry import label_placement
from lm.runs import records, run_selection, task_results

BUDGET_TOLERANCE = 0.1  # relative deviation of a run's FLOPs from its isoFLOP budget


def loss_vs_tokens(rows, fit=None, x=records.TOKENS, y=records.LOSS, theme=style.LIGHT) -> Figure:
    """Plot the held-out loss against training tokens, a color per size, on log axes.

    fit: a law of N and D such as laws.chinchilla, which gives the line of each size. Without a law,
    the line connects the means of runs with equal tokens.
    """
    figure, axes = style.new_figure("Loss against tokens", x, y, theme)
    finished, colors = run_selection.finished_with(rows, x, y), style.size_colors(rows, theme)
    labels, names, points = [], elements.nominal_sizes(finished), []
    axes.set(xscale="log", yscale="log")
    for size in sorted({row[records.N_PARAMS] for row in finished}):
        same_size = [row for row in finished if row[records.N_PARAMS] == size]
        color = colors[same_size[0]["name"]]
        if fit is not None:
            tokens = np.geomspace(same_size[0][x], same_size[-1][x], 40)
            axes.plot(tokens, fit.predict(size, tokens).value, color=color, linewidth=1.2, zorder=1)
        else:
            means = elements.mean_curve(same_size, x, y)
            axes.plot(*means, color=color, linewidth=1.2, zorder=1)
        points += [_point(row, (x, y), fit, color) for row in same_size]
        labels.append((names[size], same_size[-1][x], same_size[-1][y]))
    elements.draw_points(axes, points, theme)
    if finished:
        elements.set_scales(axes, x, y, right=0.12)
    elements.label_line_ends(axes, labels, theme)
    return style.finish_figure(figure, axes, _caption(rows, fit, x, y, "lines show"), theme)


def compute_optimal_frontier(
    rows, metrics, fit, x=records.FLOPS, y=records.LOSS, theme=style.LIGHT
) -> Figure:
    """Plot the loss against compute and the compute-optimal frontier of a law, on log axes.

    metrics: {name of run: records.load_metrics(row["dir"])}, for the training curves. It may be
    empty. fit: a law of N and D such as laws.chinchilla. The frontier is the least loss of the law
    for a budget. It spans the budgets of the fitted runs, and its band is the 95% interval.
    """
    figure, axes = style.new_figure("The compute-optimal frontier", x, y, theme)
    elements.draw_curves(axes, rows, metrics, x, theme, alpha=0.35)
    finished, colors = run_selection.finished_with(rows, x, y), style.size_colors(rows, theme)
    points = [_point(row, (x, y), fit, colors[row["name"]]) for row in finished]
    elements.draw_points(axes, points, theme)
    fitted = [row for row in finished if elements.is_in_fit(row, fit)]
    flops = [row[x] for row in fitted]
    budgets = np.geomspace(min(flops), max(flops), 80)
    best_N, best_D = compute_optimal.best_allocation_grid(fit, fitted, budgets)
    curve = fit.predict(best_N, best_D, level=elements.LEVEL, noise=False)
    axes.plot(budgets, curve.value, color=theme["ink"], linewidth=1.6, label="frontier of L(N, D)")
    axes.set(xscale="log", yscale="log", xlim=(min(flops) / 3, max(flops) * 1.3))
    losses = [row[y] for row in finished]
    axes.set_ylim(0.94 * min(losses), 1.25 * max(losses))
    if np.isfinite(curve.lo).all():
        label = f"{elements.LEVEL:.0%} interval of the law"
        label += ", form uncertainty included" if curve.includes_form else ""
        band = {"label": label, "linewidth": 0, "zorder": 1}
        axes.fill_between(budgets, curve.lo, curve.hi, color=theme["band"], **band)
    elements.set_scales(axes, x, y, right=0.12)
    last = {row[records.N_PARAMS]: row for row in finished}  # the largest budget of each size
    names = elements.nominal_sizes(finished)
    for size, row in last.items():
        style.annotate(axes, row[x], row[y], names[size], theme)
    caption = [*_caption(rows, fit, x, y, "frontier is that of"), "Thin lines: training loss."]
    return style.finish_figure(figure, axes, caption, theme)


def loss_contours(rows, fit, levels=8, y=records.LOSS, theme=style.LIGHT) -> Figure:
    """Plot contours of L(N, D) over parameters and tokens, and the runs, on log axes.

    fit: a law of N and D such as laws.chinchilla. levels: number of contours. A dashed line is the
    compute-optimal N and D of each budget.
    """
    n_column, d_column = records.N_PARAMS, records.TOKENS
    figure, axes = style.new_figure("Loss over parameters and tokens", n_column, d_column, theme)
    finished = run_selection.finished_with(rows, n_column, y)
    fitted = [row for row in finished if elements.is_in_fit(row, fit)]
    logs = [np.log([row[column] for row in finished]) for column in (n_column, d_column)]
    N, D = (np.exp(np.linspace(log.min() - 0.25, log.max() + 0.25, 120)) for log in logs)
    losses = fit.predict(N[None, :], D[:, None]).value
    heights = np.quantile(losses, np.linspace(0.04, 0.96, levels))
    contours = axes.contour(N, D, losses, heights, colors=theme["muted"], linewidths=1)
    axes.set(xscale="log", yscale="log", xlim=(N[0], N[-1]), ylim=(D[0], D[-1]))
    formula = elements.format_formula(fit)
    axes.plot([], [], color=theme["muted"], linewidth=1, label=f"equal loss: {formula}")
    flops = [row[records.FLOPS] for row in fitted]
    budgets = np.geomspace(min(flops) / 30, max(flops) * 30, 200)
    line = {"color": theme["ink"], "linewidth": 1.6, "label": "least loss for a budget"}
    best = np.array(compute_optimal.best_allocation_grid(fit, fitted, budgets))
    axes.plot(*best, "--", **line)
    colors, points = style.size_colors(finished, theme), []
    for row in finished:
        tip = f"{elements.short_run_name(row)}, {style.format_si(row[d_column])} tokens: "
        tip += style.format_number(row[y])
        kind, color = elements.fit_kind(row, fit), colors[row["name"]]
        points.append(elements.Point(row[n_column], row[d_column], 0.0, color, tip, kind))
    elements.draw_points(axes, points, theme)
    axes.set(xlim=(N[0], N[-1]), ylim=(D[0], D[-1]))
    style.log_x(axes, style.format_si)
    style.log_y(axes, style.format_si)
    caption = ["Numbers: loss.", *_caption(rows, fit, n_column, y, "contours show")]
    style.finish_figure(figure, axes, caption, theme)
    runs = [[row[n_column], row[d_column]] for row in finished]
    _label_contours(axes, contours, np.vstack([runs, best.T]), theme)
    return figure


def _label_contours(axes: Axes, contours, points_P2, theme) -> None:
    """Write the loss of each contour where it is far from the points (N, D) and other labels.

    The panel must have its final size.
    """
    curves = [path.vertices for path in contours.get_paths() if len(path.vertices)]
    positions = label_placement.free_positions(axes, curves, points_P2)
    look = {"fontsize": 8.5, "colors": theme["ink"]}
    axes.clabel(contours, fmt=style.format_number, manual=list(map(tuple, positions)), **look)


def isoflop_parabolas(rows, fit, y=records.LOSS, theme=style.LIGHT) -> Figure:
    """Plot the loss against size, with one parabola per compute budget, on log axes.

    fit: result of laws.isoflop. A minimum that the law uses is a diamond, a rejected minimum a
    cross. Budgets without a minimum have open gray markers and no label. Runs that do not belong to
    a budget of the fit are not shown.
    """
    x = fit.columns[fit.output]
    figure, axes = style.new_figure("Loss against size at equal compute", x, y, theme)
    minima, colors, points = fit.budgets, _budget_colors(fit, theme), []
    for minimum in minima:
        color = colors.get(minimum.budget, theme["muted"])
        runs = [
            row
            for row in run_selection.finished_with(rows, x, y)
            if abs(row[records.FLOPS] / minimum.budget - 1) <= BUDGET_TOLERANCE
        ]
        has_minimum = minimum.budget in colors
        kind = "filled" if has_minimum else "open"
        points += [_point(row, (x, y), None, color, kind) for row in runs]
        _draw_parabola(axes, minimum, [row[x] for row in runs], color, theme)
        if has_minimum:
            for row in runs[-1:]:
                label = style.power_of_ten(minimum.budget, 2)
                style.annotate(axes, row[x], row[y], label, theme)
    elements.draw_points(axes, points, theme)
    if points:
        axes.set(xscale="log", yscale="log")
        elements.set_scales(axes, x, y, right=0.15)
    n_without = len(minima) - len(colors)
    caption = [
        f"n = {len(points)} runs at {len(minima)} budgets. Numbers: budgets in FLOPs.",
        "Diamond: minimum of a parabola.",
        "Cross: minimum outside the range of sizes, not used. Bars: one standard error.",
        f"Open: budgets with too few sizes for a minimum ({n_without})." if n_without else "",
    ]
    return style.finish_figure(figure, axes, caption, theme)


def _budget_colors(fit, theme) -> dict[float, str]:
    """Return {budget: color} of the budgets with a minimum. Larger budgets are darker."""
    budgets = [minimum.budget for minimum in fit.budgets if np.isfinite(minimum.x)]
    colors = style.ordered_colors(theme, max(len(budgets), 2))
    return dict(zip(sorted(budgets), colors, strict=False))


def _draw_parabola(axes: Axes, minimum, sizes, color, theme) -> None:
    """Draw the parabola of one budget, and its minimum if it is near the sizes of the runs."""
    if not sizes:
        return
    if minimum.coefficients is not None:
        grid = np.geomspace(min(sizes), max(sizes), 80)
        parabola = np.polynomial.Polynomial(minimum.coefficients)
        losses = parabola(np.log(grid) - minimum.center)
        axes.plot(grid, losses, color=color, linewidth=1.2, zorder=2)
    best_size = minimum.x
    if np.isfinite(best_size) and min(sizes) / 2 < best_size < 2 * max(sizes):
        tip = f"{style.power_of_ten(minimum.budget)} FLOPs: best {style.format_si(best_size)}"
        look = {"marker": "D" if minimum.is_used else "x", "markersize": 7, "zorder": 6}
        axes.plot(best_size, minimum.loss, color=theme["ink"], gid=f"tip:{tip}", **look)


def optimal_size(rows, fit, joint=None, theme=style.LIGHT) -> Figure:
    """Plot the compute-optimal size of each budget and the isoFLOP law, on log axes.

    fit: result of laws.isoflop. joint: a law of N and D such as laws.chinchilla, or None. It adds
    its own compute-optimal size as a dashed line.
    """
    column = fit.columns[fit.output]
    figure, axes = style.new_figure("The best size of a budget", records.FLOPS, column, theme)
    minima, colors = fit.budgets, _budget_colors(fit, theme)
    for minimum in minima:
        if minimum.is_used:
            color = colors.get(minimum.budget, theme["muted"])
            best_size = minimum.x
            tip = f"{style.power_of_ten(minimum.budget)} FLOPs: {style.format_si(best_size)}"
            sd = best_size * minimum.log_x_sd if np.isfinite(minimum.log_x_sd) else None
            elements.draw_point(axes, (minimum.budget, best_size), color, theme, tip, sd)
    budgets = [minimum.budget for minimum in minima]
    grid = np.geomspace(min(budgets) / 1.5, max(budgets) * 3, 60)
    curve = fit.predict(grid, level=elements.LEVEL, noise=False)
    line = {
        "color": theme["ink"],
        "linewidth": 1.4,
        "label": elements.format_formula(fit),
        "zorder": 2,
    }
    axes.plot(grid, curve.value, **line)
    axes.set(xscale="log", yscale="log")
    if np.isfinite(curve.lo).all():
        low, high = axes.get_ylim()  # a wide interval must not compress the range of the minima
        axes.set_ylim(low / 2, high * 2)
        band = {"color": theme["band"], "linewidth": 0, "zorder": 1}
        label = f"{elements.LEVEL:.0%} interval of the line"
        axes.fill_between(grid, curve.lo, curve.hi, label=label, **band)
    if joint is not None and column == joint.columns["N"]:
        finished = run_selection.finished_with(rows, records.FLOPS, records.LOSS)
        fitted = [row for row in finished if elements.is_in_fit(row, joint)]
        line = {"color": theme["second"], "linewidth": 1.4, "label": "by L(N, D)"}
        axes.plot(grid, compute_optimal.best_allocation_grid(joint, fitted, grid)[0], "--", **line)
    style.log_x(axes, style.power_of_ten)
    style.log_y(axes, style.format_si)
    n_used, n_runs = sum(minimum.is_used for minimum in minima), fit.n_sweep_runs
    caption = f"n = {n_used} minima of {n_runs} runs. Bars: one standard deviation over resamples."
    return style.finish_figure(figure, axes, [caption], theme)


def _point(row, columns, fit, color, kind=None) -> elements.Point:
    """Return the marker of a run at its columns (x, y), with its standard error and a tooltip.

    kind: marker, None for the marker by the fit.
    """
    x, y = columns
    error = task_results.standard_error(row, y)
    name, tokens = elements.short_run_name(row), style.format_si(row[records.TOKENS])
    tip = f"{name}, {tokens} tokens: {style.format_number(row[y])} ± {error:.2g}"
    return elements.Point(row[x], row[y], error, color, tip, kind or elements.fit_kind(row, fit))


def _caption(rows, fit, x, y, subject: str) -> list[str]:
    """Return the caption sentences. subject: subject and verb of the sentence on the law."""
    finished = run_selection.finished_with(rows, x, y)
    if fit is None:
        return [f"n = {len(finished)} runs, no law of N and D fitted. Bars: one standard error."]
    n_fitted = sum(elements.is_in_fit(row, fit) for row in finished)
    return [
        f"n = {n_fitted} runs in the fit, of {len(finished)} finished.",
        f"The {subject} the {'law of size and tokens' if fit.law == 'chinchilla' else fit.law}.",
        f"Intervals: {fit.resampling}. Bars: one standard error.",
    ]
