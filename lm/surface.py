"""Figures of sweeps that vary size and tokens: L over N, D and C, and the best use of a budget.

    joint = laws.chinchilla(rows)                     # L(N, D), or None where it cannot be fitted
    surface.contour(rows, joint); surface.isoflop(rows, laws.isoflop(rows))

Marks, colours and letters are those of plots.py: a size has its colour, filled marks are runs in
the fit. Budgets and levels, which are no sizes, have colours of their own.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm import frontier as least
from lm import marks, style
from lm.style import LIGHT

N, D, C, L = "params.non_embedding", "tokens", "flops", "eval.loss"


def loss_against_tokens(rows, fit=None, x=D, y=L, theme=LIGHT) -> Figure:
    """Log-log: held-out loss against training tokens, a colour a size; lines: L(N, D), if given."""
    figure, axes = style.start("Loss against tokens", x, y, theme)
    done, colours, ends = marks.points(rows, x, y), style.size_colours(rows, theme), []
    axes.set(xscale="log", yscale="log")
    for n in sorted({row[N] for row in done}):
        mine = [row for row in done if row[N] == n]
        colour = colours[mine[0]["name"]]
        tokens = np.geomspace(mine[0][x], mine[-1][x], 40)
        if fit is not None:
            axes.plot(tokens, fit.predict(n, tokens).value, color=colour, linewidth=1.2, zorder=1)
        for row in mine:
            _mark(axes, row, x, y, fit, colour, theme)
        ends.append((style.count(n), mine[-1][x], mine[-1][y]))
    if done:
        marks.scales(axes, x, y, right=0.12)
    lifts = style.lifts(axes, [(at, loss) for _, at, loss in ends])
    for (words, at, loss), lift in zip(ends, lifts, strict=True):
        style.write(axes, at, loss, words, theme, (7, lift - 3))
    return style.end(figure, axes, _caption(rows, fit, x, y, "lines"), theme)


def frontier(rows, metrics, fit, x=C, y=L, theme=LIGHT) -> Figure:
    """Log-log: loss against compute, and the least loss that the law allows at each budget.

    `metrics` is {name of run: records.metrics(its folder)}, `fit` a law of N and D. The frontier
    is solid between the smallest and the largest budget of the runs, its 95% interval a band.
    """
    figure, axes = style.start("The compute-optimal frontier", x, y, theme)
    marks.curves(axes, rows, metrics, x, theme, alpha=0.35)
    done, colours = marks.points(rows, x, y), style.size_colours(rows, theme)
    for row in done:
        _mark(axes, row, x, y, fit, colours[row["name"]], theme)
    used = [row for row in done if marks.in_fit(row, fit)]
    spent = [row[x] for row in used]
    budgets = np.geomspace(min(spent), max(spent), 80)
    said = fit.predict(*least.best(fit, used, budgets), level=marks.LEVEL, noise=False)
    axes.plot(budgets, said.value, color=theme["ink"], linewidth=1.6, label="frontier of L(N, D)")
    axes.set(xscale="log", yscale="log", xlim=(min(spent) / 3, max(spent) * 1.3))
    losses = [row[y] for row in done]
    axes.set_ylim(0.94 * min(losses), 1.25 * max(losses))
    label = {"label": f"{marks.LEVEL:.0%} interval of the law", "linewidth": 0, "zorder": 1}
    if np.isfinite(said.lo).all():
        axes.fill_between(budgets, said.lo, said.hi, color=theme["band"], **label)
    marks.scales(axes, x, y, right=0.12)
    largest = {row[N]: row for row in done}.values()  # of each size
    lifts = style.lifts(axes, [(row[x], row[y]) for row in largest])
    for row, lift in zip(largest, lifts, strict=True):
        style.write(axes, row[x], row[y], style.count(row[N]), theme, (7, lift - 3))
    caption = [*_caption(rows, fit, x, y, "frontier"), "Thin: training loss on the way."]
    return style.end(figure, axes, caption, theme)


def contour(rows, fit, levels=8, theme=LIGHT) -> Figure:
    """Lines of equal loss over N and D, the runs, and the best split of each budget (dashed)."""
    figure, axes = style.start("Loss over parameters and tokens", N, D, theme)
    done = marks.points(rows, N, L)
    used = [row for row in done if marks.in_fit(row, fit)]
    logs = [np.log([row[key] for row in done]) for key in (N, D)]
    n, d = (np.exp(np.linspace(log.min() - 0.25, log.max() + 0.25, 120)) for log in logs)
    losses = fit.predict(n[None, :], d[:, None]).value
    at = np.quantile(losses, np.linspace(0.04, 0.96, levels))
    shades = style.spread(theme, levels)
    lines = axes.contour(n, d, losses, levels=at, colors=shades, linewidths=1.4)
    axes.set(xscale="log", yscale="log")
    axes.clabel(lines, fmt=style.number, fontsize=8)
    spent = [row[C] for row in used]
    best = least.best(fit, used, np.geomspace(min(spent) / 30, max(spent) * 30, 200))
    look = {"color": theme["accent"], "linewidth": 1.6, "label": "least loss for a budget"}
    axes.plot(*best, "--", **look)
    for row in done:
        tip = f"{marks.short(row)}, {style.count(row[D])} tokens: {style.number(row[L])}"
        full = marks.in_fit(row, fit)
        marks.mark(axes, (row[N], row[D]), theme["ink"], theme, tip, full=full)
    axes.set(xlim=(n[0], n[-1]), ylim=(d[0], d[-1]))
    style.log_x(axes, style.count)
    style.log_y(axes, style.count)
    caption = [f"{marks.formula(fit)}.", *_caption(rows, fit, N, L, "contours")]
    return style.end(figure, axes, caption, theme)


def isoflop(rows, fit, y=L, theme=LIGHT) -> Figure:
    """A parabola a budget, its minimum a diamond; a cross where the minimum was refused.

    `fit` is what laws.isoflop gave. Runs that are at no budget are not shown.
    """
    column = next(name for letter, name in fit.columns.items() if letter == fit.output)
    figure, axes = style.start("Loss against size at equal compute", column, y, theme)
    budgets = fit.budgets
    n, ends = 0, []
    for one, colour in zip(budgets, style.spread(theme, max(len(budgets), 2)), strict=False):
        mine = [row for row in marks.points(rows, column, y) if _at(row[C], one.budget)]
        n += len(mine)
        for row in mine:
            _mark(axes, row, column, y, None, colour, theme)
        sizes = [row[column] for row in mine]
        if one.coefficients is not None and mine:
            grid = np.geomspace(min(sizes), max(sizes), 80)
            curve = np.polynomial.Polynomial(one.coefficients)(np.log(grid) - one.center)
            axes.plot(grid, curve, color=colour, linewidth=1.2, zorder=2)
        if np.isfinite(one.x) and mine and min(sizes) / 2 < one.x < 2 * max(sizes):
            tip = f"{style.power_of_ten(one.budget)} FLOPs: best {style.count(one.x)}"
            shape = {"marker": "D" if one.is_used else "x", "markersize": 7, "zorder": 6}
            axes.plot(one.x, one.loss, color=theme["accent"], gid=f"tip:{tip}", **shape)
        ends += [(style.power_of_ten(one.budget), row[column], row[y]) for row in mine[-1:]]
    if ends:
        axes.set(xscale="log", yscale="log")
        marks.scales(axes, column, y, right=0.2)
    lifts = style.lifts(axes, [(at, loss) for _, at, loss in ends])
    for (words, at, loss), lift in zip(ends, lifts, strict=True):
        style.write(axes, at, loss, words, theme, (8, lift - 3))
    caption = f"n = {n} runs at {len(budgets)} budgets in FLOPs. Diamond: a parabola's minimum;"
    rest = "cross: one beyond the sizes that were tried, which is not used. Bars: one standard"
    return style.end(figure, axes, [caption, rest, "error."], theme)


def best_size(rows, fit, joint=None, theme=LIGHT) -> Figure:
    """Log-log: the best size of each budget, the line through them, and what L(N, D) says of it."""
    column = fit.columns[fit.output]
    figure, axes = style.start("The best size of a budget", C, column, theme)
    budgets = fit.budgets
    colours = style.spread(theme, max(len(budgets), 2))
    for one, colour in zip(budgets, colours, strict=False):
        if one.is_used:
            tip = f"{style.power_of_ten(one.budget)} FLOPs: {style.count(one.x)}"
            spread = one.x * one.log_x_sd if np.isfinite(one.log_x_sd) else None
            marks.mark(axes, (one.budget, one.x), colour, theme, tip, spread)
    spent = [one.budget for one in budgets]
    grid = np.geomspace(min(spent) / 1.5, max(spent) * 3, 60)
    said = fit.predict(grid, level=marks.LEVEL, noise=False)
    line = {"color": theme["ink"], "linewidth": 1.4, "label": marks.formula(fit), "zorder": 2}
    axes.plot(grid, said.value, **line)
    axes.set(xscale="log", yscale="log")
    if np.isfinite(said.lo).all():
        low, high = axes.get_ylim()  # a line that says little must not flatten the minima
        axes.set_ylim(low / 2, high * 2)
        band = {"color": theme["band"], "linewidth": 0, "zorder": 1}
        label = f"{marks.LEVEL:.0%} interval of the line"
        axes.fill_between(grid, said.lo, said.hi, label=label, **band)
    if joint is not None and column == joint.columns["N"]:
        used = [row for row in marks.points(rows, C, L) if marks.in_fit(row, joint)]
        look = {"color": theme["accent"], "linewidth": 1.4, "label": "by L(N, D)"}
        axes.plot(grid, least.best(joint, used, grid)[0], "--", **look)
    style.log_x(axes, style.power_of_ten)
    style.log_y(axes, style.count)
    used = sum(one.is_used for one in budgets)
    n_runs = fit.n_sweep_runs
    caption = f"n = {used} minima of {n_runs} runs. Bars: one standard deviation over resamples."
    return style.end(figure, axes, [caption], theme, legend="upper left")


def _mark(axes: Axes, row, x, y, fit, colour, theme) -> None:
    error = marks.error(row, y)
    tip = f"{marks.short(row)}, {style.count(row[D])} tokens: {style.number(row[y])} ± {error:.2g}"
    full = fit is None or marks.in_fit(row, fit)
    marks.mark(axes, (row[x], row[y]), colour, theme, tip, error, full=full)


def _at(flops: float, budget: float, tolerance=0.1) -> bool:
    return abs(flops / budget - 1) <= tolerance


def _caption(rows, fit, x, y, what: str) -> list[str]:
    done = marks.points(rows, x, y)
    if fit is None:
        return [f"n = {len(done)} runs, no law of N and D fitted. Bars: one standard error."]
    used = sum(marks.in_fit(row, fit) for row in done)
    words = f"n = {used} runs in the fit, of {len(done)} finished; {what}: {fit.law} law,"
    return [words, f"intervals by {fit.resampling}. Bars: one standard error."]
