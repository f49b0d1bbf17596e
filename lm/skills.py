"""Figures of abilities: what the accuracy of a task follows, and what was said of it beforehand.

    skills.against_loss(rows, mastery.curves(rows))
    skills.foretold(records.read_json("runs/quickstart/prediction.json")["tasks"], row)

Marks and colours are those of plots.py: a size has its colour, a diamond is the run predicted.
"""

import numpy as np
from matplotlib.figure import Figure

from lm import marks, mastery, style
from lm.style import LIGHT


def against_loss(rows, curves, x="eval.loss", theme=LIGHT) -> Figure:
    """Accuracy in percent against the loss, which falls to the right, a small panel a task.

    `curves` is what mastery.curves gave: a law with its interval, or none. Tasks that no run has
    above chance are left out. Open marks are runs on fewer tokens than others of their size: where
    they lie on the curve of the filled ones, ability goes by the loss and not by the size.
    """
    asked = [t for t in mastery.tasks(rows) if any(mastery.is_above_chance(r, t) for r in rows)]
    figure, panels = style.panels("Accuracy against held-out loss", len(asked), theme)
    done, colours = marks.points(rows, x, x), style.size_colours(rows, theme)
    fullest = {row["name"] for row in marks.fullest(rows)[0]}
    for axes, task in zip(panels, asked, strict=False):
        y, (fit, _) = mastery.column(task), curves.get(task, (None, ""))
        mine = marks.points(rows, x, y)
        if fit is not None:
            grid = np.linspace(mine[0][x], mine[-1][x], 60)
            said = fit.predict(grid, level=marks.LEVEL, noise=False)
            axes.plot(grid, 100 * said.value, color=theme["ink"], linewidth=1.1, zorder=2)
            axes.fill_between(grid, 100 * said.lo, 100 * said.hi, color=theme["band"], linewidth=0)
        for row in mine:
            value, error = 100 * row[y], 100 * marks.error(row, y)
            tip = f"{marks.short(row)}: loss {style.number(row[x])}, {value:.0f}%"
            at, full = (row[x], value), row["name"] in fullest
            marks.mark(axes, at, colours[row["name"]], theme, tip, error, full=full)
        chance = 100 * max(row[mastery.column(task, "chance")] for row in mine)
        axes.axhline(chance, linestyle=":", color=theme["muted"], linewidth=1)
        name = style.shortened(marks.task_name(task))
        axes.set_title(name, size=8.5, color=theme["ink"], loc="left", parse_math=False)
        axes.locator_params(axis="x", nbins=4)
        axes.set_ylim(-4, 104)
        axes.invert_xaxis()
    others = len(mastery.tasks(rows)) - len(asked)
    caption = f"n = {len(done)} runs. Right answers in percent; across: {style.label(x)}. Line and"
    rest = "band: a sigmoid with its 95% interval; dotted: chance; bars: one standard error; open:"
    last = f"fewer tokens. {others} tasks that no run has above chance are left out."
    return style.end(figure, panels[0], [caption, rest, last], theme)


def foretold(said, target=None, theme=LIGHT) -> Figure:
    """What was said of each task's accuracy in one run, in percent, and what came: a line a task.

    `said` is what mastery.foretell gave: tasks of which nothing could be said are left out.
    `target` is the row of that run, if it is known.
    """
    figure, axes = style.start("Abilities foretold", "Right answers (%)", "", theme)
    told = {task: one for task, one in said.items() if "value" in one}
    bar = {"linewidth": 9, "solid_capstyle": "butt", "color": theme["soft"], "zorder": 1}
    for place, (task, one) in enumerate(reversed(told.items())):
        value, lo, hi = (100 * one[key] for key in ("value", "lo", "hi"))
        words = f"tip:{marks.task_name(task)}: foretold {value:.0f}% [{lo:.0f}, {hi:.0f}]"
        axes.plot([lo, hi], [place, place], gid=words, **bar)
        axes.plot([value], [place], "|", color=theme["accent"], markersize=11, markeredgewidth=1.8)
        came = (target or {}).get(mastery.column(task))
        if marks.finite(came):
            y, at = mastery.column(task), (100 * came, place)
            tip = f"{marks.task_name(task)}: measured {100 * came:.0f}%"
            error = 100 * marks.error(target or {}, y)
            marks.mark(axes, at, theme["ink"], theme, tip, xerr=error, target=True)
    names = [style.shortened(marks.task_name(task)) for task in reversed(told)]
    axes.set_yticks(range(len(told)), names, parse_math=False)
    axes.set_ylim(-0.6, max(len(told), 1) - 0.4)
    axes.set_xlim(-3, 103)
    axes.grid(axis="y", visible=False)
    name = marks.short(target) if target else "a run that is not measured"
    caption = f"{name}: n = {len(told)} tasks of {len(said)}; of the others no law can be fitted."
    rest = "Wide: 95% interval of one measurement, stroke: its value; diamond: what came, with one"
    return style.end(figure, axes, [caption, rest, "standard error."], theme)
