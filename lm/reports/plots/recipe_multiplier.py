"""Figures of recipes: the compute multiplier against compute, and the ladders of both recipes."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.laws.recipe_comparison import paired_runs, recipe_verdict
from lm.reports.plots import style


def multiplier_vs_compute(comparison: recipe_verdict.RecipeComparison, theme=style.LIGHT) -> Figure:
    """Plot the multiplier with its band against cost, and the losses of both ladders.

    The band is the interval with form uncertainty, also beyond the largest run (dashed line).
    """
    unit = paired_runs.COSTS[comparison.cost]
    figure, (left, right) = style.new_panels("B against A", 2, theme, columns=2)
    figure.set_size_inches(9, 4.2)
    _draw_multiplier(left, comparison, theme)
    _draw_ladders(right, comparison, theme)
    style.panel_title(left, "Multiplier m: A needs m times the cost for the loss of B", theme)
    left.set_ylabel("Multiplier m", size=8.5, color=theme["ink"])
    style.panel_title(right, "Loss of both recipes", theme)
    for axes in (left, right):
        axes.set_xlabel(style.axis_label(comparison.cost), size=8.5, color=theme["ink"])
        style.log_x(axes, style.power_of_ten if unit == "FLOPs" else style.format_si)
        style.log_y(axes)
    style.add_legend(right, theme)
    n_pairs = comparison.selection.n_pairs
    caption = [
        f"n = {n_pairs} pairs of runs at {len(comparison.sizes)} sizes.",
        f"Bars and band: {1 - comparison.options.error:.0%} intervals. Dashed: extrapolation.",
        f"Verdict: {comparison.verdict}.",
    ]
    style.add_caption(figure, caption, theme)
    style.compute_layout(figure)
    style.freeze_layout(figure)
    return figure


def multipliers_vs_compute(
    comparisons: Mapping[str, recipe_verdict.RecipeComparison], theme=style.LIGHT
) -> Figure:
    """Plot the multiplier of several comparisons, in one panel per title, with a common y axis."""
    figure, panels = style.new_panels("B against A", len(comparisons), theme, columns=3)
    figure.set_size_inches(11, 1.0 + 2.6 * -(-len(comparisons) // 3))
    for axes, (title, comparison) in zip(panels, comparisons.items(), strict=False):
        _draw_multiplier(axes, comparison, theme)
        better = f", {comparison.better} is better" if comparison.is_different else ""
        style.panel_title(axes, f"{title}: {comparison.verdict}{better}", theme)
        axes.set_xlabel(style.axis_label(comparison.cost), size=8.5, color=theme["ink"])
        axes.set_ylabel("Multiplier m", size=8.5, color=theme["ink"])
        unit = paired_runs.COSTS[comparison.cost]
        style.log_x(axes, style.power_of_ten if unit == "FLOPs" else style.format_si)
    limits = [axes.get_ylim() for axes in panels[: len(comparisons)]]
    for axes in panels[: len(comparisons)]:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        style.log_y(axes)
    caption = [
        "A needs m times the cost to reach the loss of B. Points: sizes.",
        "Bars and band: intervals. Dashed: extrapolation.",
    ]
    style.add_caption(figure, caption, theme)
    style.compute_layout(figure)
    style.freeze_layout(figure)
    return figure


def _draw_multiplier(axes: Axes, comparison: recipe_verdict.RecipeComparison, theme) -> None:
    """Draw the curve with its band, and the multiplier of each size."""
    cost, value, lo, hi = (np.array(comparison.curve[k]) for k in ("cost", "value", "lo", "hi"))
    ladder = comparison.fitted.ladder
    shown = [m for size in comparison.sizes for m in (size.multipliers[comparison.cost],)]
    highest = 4 * max(*(m.value for m in shown), value[0], 1.0)
    lowest = min(*(m.value for m in shown), value[0], 1.0) / 4
    # Values beyond the axis leave it. Their limits only avoid infinite coordinates.
    limits = lowest / 1e3, highest * 1e3
    value, lo, hi = np.clip([value, lo, hi], *limits)
    axes.fill_between(cost, lo, hi, color=theme["band"], zorder=1)
    is_inside = cost <= np.exp(ladder.x_mean.max())
    axes.plot(cost[is_inside], value[is_inside], color=theme["second"], zorder=2)
    axes.plot(cost[~is_inside], value[~is_inside], "--", color=theme["second"])
    axes.axhline(1, color=theme["ink"], linewidth=0.8)
    for x, m in zip(np.exp(ladder.x_b), shown, strict=True):
        bar = [[m.value - max(m.lo, limits[0])], [min(m.hi, limits[1]) - m.value]]
        axes.errorbar(x, m.value, yerr=np.maximum(bar, 0), fmt="o", color=theme["ink"], ms=4)
    axes.set_ylim(lowest, highest)


def _draw_ladders(axes: Axes, comparison: recipe_verdict.RecipeComparison, theme) -> None:
    """Draw the losses of the runs of both recipes, and lines through the means of the sizes."""
    ladder = comparison.fitted.ladder
    colors = style.categorical_colors(theme, 2)
    for name, x, loss, color in zip(
        "AB", (ladder.x_a, ladder.x_b), (ladder.loss_a, ladder.loss_b), colors, strict=True
    ):
        counts = ladder.pairs_per_size
        means = np.bincount(ladder.size_index, loss) / counts
        axes.plot(np.exp(x), means, color=color, label=name)
        axes.plot(np.exp(x)[ladder.size_index], loss, "o", color=color, ms=3)
    axes.set_ylabel(style.axis_label(comparison.selection.y), size=8.5, color=theme["ink"])
