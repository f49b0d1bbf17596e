"""Figures of what tuning does: rows of runs, or the points of lm/gains.py, in; a Figure out.

    tuning.fine_tuned(records.rows("runs/transfer"))
    tuning.qualities(gains.qualities(records.rows("runs/specialists")))

A size has one colour. Filled marks on solid lines started from pre-trained weights.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lm import gains, marks, style

LIGHT = style.LIGHT
# A way to a skill (see gains.qualities) -> its line.
WAYS = {"alone": "--", "tuned": "-", "alone, same FLOPs": "None"}


def fine_tuned(rows, x="unique_tokens", y="eval.loss", theme=LIGHT) -> Figure:
    """Log-log: held-out loss against the task's own data, tuned (solid) and from scratch (dashed).

    A colour a size. Runs with start.run are tuned; a size or amount without a partner is left out.
    """
    figure, axes = style.start("Fine-tuned and from scratch", "Tokens of the task", y, theme)
    known = {(pair["size"], pair["tokens"]) for pair in gains.pairs(rows, x, y)}
    size, ends = gains.SIZE, []
    done = [row for row in marks.points(rows, x, y) if (row.get(size), row[x]) in known]
    colours = style.size_colours(rows, theme)
    for n in sorted({row[size] for row in done}):
        for way, line in ((False, "--"), (True, "-")):
            mine = [row for row in done if row[size] == n and gains.is_tuned(row) == way]
            colour = colours[mine[0]["name"]]
            axes.plot([r[x] for r in mine], [r[y] for r in mine], line, color=colour, linewidth=1.2)
            for row in mine:
                tip = f"{marks.short(row)}: {style.number(row[y])}"
                at, error = (row[x], row[y]), marks.error(row, y)
                marks.mark(axes, at, colour, theme, tip, error, full=way)
        ends.append((style.count(n), mine[-1][x], mine[-1][y]))
    if done:
        axes.set(xscale="log", yscale="log", xlim=(None, 1.5 * max(row[x] for row in done)))
        style.log_x(axes, style.count)
        style.log_y(axes)
    marks.write_ends(axes, ends, theme)
    caption = f"n = {len(done)} runs. Filled, solid: from pre-trained weights; open, dashed: from"
    return style.end(figure, axes, [caption, "scratch. Bars: one standard error."], theme)


def forgetting(rows, theme=LIGHT) -> Figure:
    """Held-out loss on the text of pre-training, before tuning (dotted) and after, a colour a size.

    Against the task's own tokens, where these differ; else against size.
    """
    points = gains.forgotten(rows)
    by_size = len({point["tokens"] for point in points}) < 2
    x = "size" if by_size else "tokens"
    words = style.label(gains.SIZE) if by_size else "Tokens of the task"
    source = ", ".join(sorted({point["source"] for point in points}))
    title = f"What tuning forgets: {source}" if source else "What tuning forgets"
    figure, axes = style.start(title, words, "eval.loss", theme)
    colours, ends = _colours(points, theme), []
    for n, colour in colours.items():
        mine = sorted((p for p in points if p["size"] == n), key=lambda p: p[x])
        before = {"color": colour, "linewidth": 1.2, "linestyle": ":"}
        axes.plot([p[x] for p in mine], [p["before"] for p in mine], **before)
        axes.plot([p[x] for p in mine], [p["after"] for p in mine], color=colour, linewidth=1.2)
        for point in mine:
            tip = f"{style.count(n)}: {point['before']:.3f} before, {point['after']:.3f} after"
            marks.mark(axes, (point[x], point["after"]), colour, theme, tip, point["after_se"])
            if by_size:
                at = point[x], point["before"]
                marks.mark(axes, at, colour, theme, tip, point["before_se"], full=False)
        ends += [(style.count(n), last[x], last["after"]) for last in mine[-1:]]
    if points:
        axes.set(xscale="log", yscale="log", xlim=(None, 1.5 * max(p[x] for p in points)))
        style.log_x(axes, style.count)
        style.log_y(axes)
    marks.write_ends(axes, ends, theme)
    how = "Open: before" if by_size else "Dotted: before"
    caption = (
        f"n = {len(points)} tuned runs. {how} tuning; filled: after, on the same held-out text."
    )
    return style.end(figure, axes, [caption, "Bars: one standard error."], theme)


def qualities(points, y="Bits per byte of the answer", theme=LIGHT) -> Figure:
    """Quality against a task's examples: a panel a task, a colour a size.

    points: what `gains.qualities` gave. Solid, filled: tuned on the task; dashed, open: alone, for
    as many steps; a diamond: alone, for the FLOPs of generalist and tuning together; dotted: the
    generalist without examples.
    """
    tasks = list(dict.fromkeys(point["task"] for point in points))
    figure, panels = style.panels("Quality against task examples", len(tasks), theme, columns=3)
    colours = _colours(points, theme)
    for axes, task in zip(panels, tasks, strict=False):
        ends = []
        for n, colour in colours.items():
            mine = [p for p in points if (p["task"], p["size"]) == (task, n)]
            for way, line in WAYS.items():
                part = sorted((p for p in mine if p["way"] == way), key=lambda p: p["examples"])
                xs, ys = [p["examples"] for p in part], [p["value"] for p in part]
                axes.plot(xs, ys, line, color=colour, linewidth=1.2)
                for point in part:
                    tip = f"{style.count(n)} {way}: {point['value']:.2f} ± {point['se']:.2f}"
                    look = {"full": way != "alone", "target": way.endswith("FLOPs")}
                    at = point["examples"], point["value"]
                    marks.mark(axes, at, colour, theme, tip, point["se"], **look)
                if way == "tuned" and part:
                    ends.append((style.count(n), xs[-1], ys[-1]))
        axes.set_ylim(axes.get_ylim())  # what is only prompted may lie far above
        for point in points:
            if (point["task"], point["way"]) == (task, "prompted, 0 shots"):
                look = {"color": colours[point["size"]], "linewidth": 1, "linestyle": ":"}
                axes.axhline(point["value"], **look)
        axes.set_title(task, size=8.5, color=theme["ink"], loc="left", parse_math=False)
        axes.set(xscale="log", xlim=(None, 4 * max((x for _, x, _ in ends), default=1)))
        style.log_x(axes, style.count)
        marks.write_ends(axes, ends, theme)
    n_models = len({(p["size"], p["task"], p["way"], p["examples"]) for p in points})
    caption = [
        f"n = {n_models} models and tasks. {y} against the examples learned from. Filled, solid:",
        "tuned from pre-trained weights; open, dashed: alone, as many steps; diamond: alone, FLOPs",
        "of pre-training and tuning; dotted: pre-trained, prompted, where it is as low. Bars: one",
        "standard error.",
    ]
    return style.end(figure, panels[0], caption, theme)


def compute_saved(points, theme=LIGHT) -> Figure:
    """How many times the compute of tuning a model from scratch needs to be as good, by size.

    points: what `gains.saved` gave. Open marks are lower bounds: it never came as far.
    """
    words = "FLOPs from scratch, over those of tuning"
    figure, axes = style.start("Compute that tuning saves", gains.SIZE, words, theme)
    tasks = list(dict.fromkeys(point["task"] for point in points))
    ends = []
    for task, colour in zip(tasks, style.spread(theme, max(len(tasks), 2)), strict=False):
        mine = sorted((p for p in points if p["task"] == task), key=lambda p: p["size"])
        axes.plot([p["size"] for p in mine], [p["saved"] for p in mine], color=colour, linewidth=1)
        for point in mine:
            bound = "" if point["reached"] else "more than "
            tip = f"{task}, {style.count(point['size'])}: {bound}{point['saved']:.1f} times"
            at = point["size"], point["saved"]
            marks.mark(axes, at, colour, theme, tip, full=point["reached"])
        ends += [(task, last["size"], last["saved"]) for last in mine[-1:]]
    axes.axhline(1, color=theme["muted"], linewidth=1, linestyle=":")
    axes.set_yscale("log")
    if points:
        marks.scales(axes, gains.SIZE, "saved", right=0.6)
        style.log_y(axes)
    marks.write_ends(axes, ends, theme)
    caption = f"n = {len(points)} tuned runs. To the tuned run's best held-out loss, pre-training"
    return style.end(
        figure, axes, [caption, "not counted. Open: a lower bound, never reached."], theme
    )


def unseen(points, theme=LIGHT) -> Figure:
    """Shares of right answers against size: a panel a group of tasks, a line a tuning set.

    points: what `gains.abilities` gave. The line of 0 clusters is the model before tuning.
    """
    groups = list(dict.fromkeys(point["group"] for point in points))
    figure, panels = style.panels("Tasks tuned on, and not", len(groups), theme, columns=3)
    numbers = sorted({point["n_clusters"] for point in points})
    colours = dict(zip(numbers, [theme["muted"], *style.spread(theme)], strict=False))
    for axes, group in zip(panels, groups, strict=False):
        ends = []
        for n in numbers:
            mine = [p for p in points if (p["group"], p["n_clusters"]) == (group, n)]
            colour = colours.get(n, theme["ink"])
            at, shares = [p["size"] for p in mine], [100 * p["value"] for p in mine]
            axes.plot(at, shares, "-" if n else ":", color=colour, linewidth=1.2)
            for point, share in zip(mine, shares, strict=True):
                tip = f"{n} clusters, {style.count(point['size'])}: {share:.0f}%"
                marks.mark(axes, (point["size"], share), colour, theme, tip, 100 * point["se"])
            words = f"{n} cluster{'s' * (n > 1)}" if n else "before"
            ends += [(words, last["size"], 100 * last["value"]) for last in mine[-1:]]
        axes.set_title(group, size=8.5, color=theme["ink"], loc="left", parse_math=False)
        if groups:
            marks.scales(axes, gains.SIZE, "tasks", right=0.3)
        axes.set_ylim(-14, 112)
        marks.write_ends(axes, ends, theme)
    n_runs = sum({(p["size"], p["n_clusters"]): p["n_runs"] for p in points}.values())
    caption = f"n = {n_runs} runs. Right answers in percent against parameters without embeddings;"
    return style.end(figure, panels[0], [caption, "bars: one standard error."], theme)


def left_out(points, theme=LIGHT) -> Figure:
    """Right answers on clusters of tasks that tuning left out, against tuning with them, by size.

    points: what `gains.left_out` gave. Small marks are clusters, large ones their means, with one
    standard error over clusters.
    """
    figure, axes = style.start(
        "Each cluster left out in turn", gains.SIZE, "Right answers (%)", theme
    )
    ends = []
    sizes = sorted({point["size"] for point in points})
    lines = (("with", "tuned on", theme["ink"]), ("without", "left out", theme["accent"]))
    for name, words, colour in lines:
        means, errors = [], []
        for n in sizes:
            values = 100 * np.array([p[name] for p in points if p["size"] == n])
            axes.plot([n] * len(values), values, "o", color=colour, alpha=0.35, markersize=4)
            means.append(values.mean())
            errors.append(values.std(ddof=min(1, len(values) - 1)) / len(values) ** 0.5)
            tip = f"{words}, {style.count(n)}: {means[-1]:.0f}% ± {errors[-1]:.0f}"
            marks.mark(axes, (n, means[-1]), colour, theme, tip, errors[-1])
        axes.plot(sizes, means, "-", color=colour, linewidth=1.2)
        ends += [(words, sizes[-1], means[-1])] if sizes else []
    if points:
        marks.scales(axes, gains.SIZE, "tasks", right=0.3)
    axes.set_ylim(-4, 106)
    marks.write_ends(axes, ends, theme)
    caption = (
        f"n = {len(points)} runs, each without one cluster. Small: a cluster; large: their mean"
    )
    return style.end(figure, axes, [caption, "and its standard error over clusters."], theme)


def _colours(points: Sequence[dict], theme) -> dict[float, str]:
    """Size -> its colour, from small to large."""
    rows = [{"name": str(p["size"]), style.SIZE: p["size"]} for p in points]
    found = style.size_colours(rows, theme)
    return {size: found[str(size)] for size in sorted({p["size"] for p in points})}
