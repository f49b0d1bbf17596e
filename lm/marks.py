"""What the figures of plots.py are made of: a run's mark, a law's curve, a training curve, words.

Every part takes the axes to draw on and the theme, and looks a run's colour up by its size. A
`gid` that starts with "tip:" is what a page shows under the mouse.
"""

import math
import re
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
from matplotlib.axes import Axes

from lm import style

LEVEL = 0.95  # of the intervals that are drawn
MOST_NAMES = 12  # beside marks or curves of one figure
FILES = ("text", "jsonl", "parquet", "chat", "file")  # kinds of sources and tasks that are paths
SAME = 0.99  # of a number of tokens is as good as all


def law(axes: Axes, rows, fit, x, y, theme, prediction=None, words_at=(6, 6)) -> None:
    """Runs in front; behind them the law, dashed beyond the runs it saw, and its interval."""
    axes.set(xscale="log", yscale="log")
    done, colours = points(rows, x, y), style.size_colours(rows, theme)
    for row in done:
        tip = f"{short(row)}: {style.number(row[y])} ± {error(row, y):.2g}"
        target = is_target(row, prediction)
        full = fit is None or target or in_fit(row, fit)
        at, colour = (row[x], row[y]), colours[row["name"]]
        mark(axes, at, colour, theme, tip, error(row, y), full=full, target=target)
    name_sizes(axes, done, x, y, theme, words_at)
    if fit is not None:
        targets = [prediction[x]] if prediction and finite(prediction.get(x)) else []
        seen = [row[x] for row in done if in_fit(row, fit)]
        sizes = [row[x] for row in done] + targets
        grid = np.geomspace(min(sizes) / 1.3, max(sizes) * 1.3, 200)
        curve = fit.predict(grid, level=LEVEL, noise=False)
        line = {"color": theme["ink"], "linewidth": 1.3, "zorder": 2}
        inside = (grid > min(seen) * 0.99) & (grid < max(seen) * 1.01)
        axes.plot(grid, curve.value, "--", **line)
        axes.plot(grid[inside], curve.value[inside], label=formula(fit), **line)
        for size in targets:
            interval(axes, size, prediction, theme, width=9)
        if np.isfinite(curve.lo).all():
            axes.set_ylim(axes.get_ylim())  # a law that says little must not flatten the runs
            label = f"{LEVEL:.0%} interval of the law"
            band = {"color": theme["band"], "linewidth": 0, "zorder": 1, "label": label}
            axes.fill_between(grid, curve.lo, curve.hi, **band)
    scales(axes, x, y)


def interval(axes: Axes, x, prediction, theme, width) -> None:
    """What was predicted, at x: the value as a stroke, its interval as a bar."""
    value, lo, hi = predicted(prediction)
    tip = f"tip:predicted {style.number(value)} [{style.number(lo)}, {style.number(hi)}]"
    bar = {"linewidth": width, "solid_capstyle": "butt", "color": theme["soft"], "zorder": 1.2}
    axes.plot([x, x], [lo, hi], gid=tip, **bar)
    axes.plot([x], [value], "_", color=theme["accent"], markersize=1.7 * width, markeredgewidth=1.8)


def inset(axes: Axes, rows, prediction, y, theme) -> None:
    """The lower left, which a falling law leaves free: predicted interval beside measured loss."""
    low, high = np.log(axes.get_ylim())
    axes.set_ylim(bottom=np.exp(low - 0.12 * (high - low)))
    small = axes.inset_axes((0.1, 0.09, 0.3, 0.36), facecolor=theme["paper"])
    interval(small, 0, prediction, theme, width=11)
    words = "not measured"
    for row in points(rows, prediction["x"], y):
        if is_target(row, prediction):
            words, colour = "measured", style.size_colours(rows, theme)[row["name"]]
            tip = f"measured {style.number(row[y])}"
            mark(small, (1, row[y]), colour, theme, tip, error(row, y), target=True)
    name = short({"name": prediction["target"]})
    small.set_title(name, size=8.5, color=theme["ink"], pad=4, parse_math=False)
    small.set_xlim(-0.6, 1.6)
    small.margins(y=0.18)
    small.set_xticks([0, 1], ["predicted", words])
    small.tick_params(colors=theme["muted"], labelsize=7.5, length=2)
    small.locator_params(axis="y", nbins=4)
    small.spines[:].set_color(theme["grid"])


def mark(axes: Axes, at, colour, theme, tip, yerr=None, xerr=None, full=True, target=False) -> None:
    """One run with its standard error: a dot, open if no law saw it; a diamond for the target."""
    x, y = at
    bars = {
        "fmt": "none",
        "color": colour,
        "ecolor": colour,
        "elinewidth": 1.2,
        "capsize": 2.5,
        "zorder": 4,
    }
    axes.errorbar([x], [y], yerr, xerr, **bars)
    shape, size = ("D", 6.5) if target else ("o", 7)
    face, edge, width = (colour, theme["paper"], 0.8) if full else (theme["paper"], colour, 1.5)
    look = {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": width, "zorder": 5}
    axes.plot([x], [y], shape, markersize=size, gid=f"tip:{tip}", **look)


def curves(axes: Axes, rows, metrics, x, theme, alpha=1.0) -> list[tuple[dict, float, float]]:
    """Training curves; returns (row, x, loss) where each ends, for the runs that have one."""
    colours, ends = style.size_colours(rows, theme), []
    for row in rows:
        xs, losses = smooth(metrics.get(row["name"], ()), x)
        if len(xs):
            look = {"color": colours[row["name"]], "linewidth": 1.3, "alpha": alpha, "zorder": 1.5}
            axes.plot(xs, losses, gid=f"tip:{short(row)}, {row['status']}", **look)
            ends.append((row, xs[-1], losses[-1]))
    return ends


def smooth(metrics, x="tokens", y="loss", n=80) -> tuple[np.ndarray, np.ndarray]:
    """Means of x and y over at most n equal stretches of log x; what is not finite is left out."""
    lines = [
        line for line in metrics if finite(line.get(x)) and finite(line.get(y)) and line[x] > 0
    ]
    if len(lines) < 2:
        return np.zeros(0), np.zeros(0)
    columns = np.array([[line[x] for line in lines], [line[y] for line in lines]], float)
    logs = np.log(columns[0]) - np.log(columns[0].min())
    place = np.minimum((n * logs / max(logs.max(), 1e-9)).astype(int), n - 1)
    size = np.bincount(place, minlength=n)
    xs, ys = (np.bincount(place, column, n)[size > 0] / size[size > 0] for column in columns)
    return xs, ys


def steps(axes: Axes, rows, x, y, theme, scale=1.0, line="-", words_at=(6, 6)) -> list[dict]:
    """Marks with their errors, the means of each size joined; returns the rows that are shown."""
    done, colours = points(rows, x, y), style.size_colours(rows, theme)
    joint = {"color": theme["muted"], "linewidth": 1.1, "zorder": 1}
    axes.plot(*means(done, x, y, scale), line, **joint)
    for row in done:
        value, se = scale * row[y], scale * error(row, y)
        tip = f"{short(row)}: {style.number(value)} ± {se:.2g}"
        mark(axes, (row[x], value), colours[row["name"]], theme, tip, se)
    name_sizes(axes, done, x, y, theme, words_at, scale)
    return done


def means(done, x, y, scale=1.0) -> tuple[list[float], list[float]]:
    """Of runs in the order of x: every x, and the mean of y there."""
    found: dict[float, list[float]] = {}
    for row in done:
        found.setdefault(row[x], []).append(scale * row[y])
    return list(found), [sum(values) / len(values) for values in found.values()]


def name_sizes(axes: Axes, done, x, y, theme, words_at, scale=1.0) -> None:
    """Writes every size beside its first run, unless there are too many to read."""
    first = {row.get(style.SIZE, row[x]): row for row in reversed(done)}
    names = names_at(done)
    for n, row in sorted(first.items()) if words_at and len(first) <= MOST_NAMES else ():
        side, words = ("right" if words_at[0] < 0 else "left"), names.get(n, short(row))
        style.write(axes, row[x], scale * row[y], words, theme, words_at, ha=side)


def names_at(rows) -> dict[float, str]:
    """{size: shortest name of a run of it}, without the last parts that all of these share.

    60K-2.5M, 60K-seed1-2.5M and 100K-2.5M are runs of 60K and of 100K.
    """
    parts: dict[float, list[str]] = {}
    for row in rows:
        n, mine = row.get(style.SIZE, 0), short(row).split("-")
        parts[n] = min(parts.get(n, mine), mine, key=len)
    while len(parts) > 1 and min(map(len, parts.values())) > 1:
        if len({one[-1] for one in parts.values()}) > 1:
            break
        parts = {n: one[:-1] for n, one in parts.items()}
    return {n: "-".join(one) for n, one in parts.items()}


def scales(axes: Axes, x, y, right=0.07) -> None:
    """Log axes where laws are lines, with room for words on the right (a share of the width)."""
    axes.set_xscale("log")
    low, high = np.log10(axes.get_xlim())
    axes.set_xlim(right=10 ** (high + right * (high - low)))
    style.log_x(axes, style.power_of_ten if x == "flops" else style.count)
    if y.startswith(("eval.loss", "eval.bits")):
        style.log_y(axes)


def write_ends(axes, ends: list[tuple[str, float, float]], theme) -> None:
    """Words beside the last mark of each line, none over another; the axes have their limits."""
    lifts = style.lifts(axes, [(x, y) for _, x, y in ends])
    for (words, x, y), lift in zip(ends, lifts, strict=True):
        style.write(axes, x, y, words, theme, (8, lift - 3))


# Questions to rows, fits and predictions.


def points(rows, x, y) -> list[dict]:
    """Finished runs that have both numbers, from small to large; no trunks."""
    done = [row for row in ends(rows) if row["status"] == "done"]
    return sorted((r for r in done if finite(r.get(x)) and finite(r.get(y))), key=lambda r: r[x])


def ends(rows) -> list[dict]:
    """All rows but trunks: their learning rate never fell, so that no law holds their losses."""
    trunks = {row.get("start.run") for row in rows if row.get("start.keep") == "state"}
    return [row for row in rows if row["name"] not in trunks]


def fullest(rows, x=style.SIZE) -> tuple[list[dict], str]:
    """(runs that a figure against size may join, words for a caption if that is not all of them).

    Where a size has several token budgets these are the runs of the largest budget of all, or,
    where fewer than half of the sizes have come to it, of the largest of each size.
    """
    done = [row for row in points(rows, x, x) if finite(row.get("tokens"))]
    most = {row[x]: row["tokens"] for row in sorted(done, key=lambda row: row["tokens"])}
    if all(row["tokens"] >= SAME * most[row[x]] for row in done):
        return list(rows), ""
    shared = [n for n, tokens in most.items() if tokens >= SAME * max(most.values())]
    if 2 * len(shared) >= len(most):
        kept = [row for row in done if row["tokens"] >= SAME * max(most.values())]
        return kept, f"Runs on {style.count(max(most.values()))} tokens."
    kept = [row for row in done if row["tokens"] >= SAME * most[row[x]]]
    return kept, "Of each size the runs on most tokens."


def finite(value) -> TypeGuard[float]:
    """Whether a cell of a row holds a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def short(row: dict) -> str:
    """The last part of a run's name: quickstart/100K -> 100K."""
    return row["name"].rsplit("/", 1)[-1]


def source_columns(rows, y="eval.loss") -> list[str]:
    """Columns that hold y of one source each: eval.loss.code, eval.loss.docs."""
    return sorted({key for row in rows for key in row if key.startswith(y + ".")})


def source_names(columns: Sequence[str], y="eval.loss") -> dict[str, str]:
    """{column of a source: its name}: of files only the last, unless two would be called alike."""
    full = {column: column.removeprefix(y + ".") for column in columns}
    brief = {column: _file_name(source) for column, source in full.items()}
    return brief if len(set(brief.values())) == len(brief) else full


def task_name(task: str) -> str:
    """file:my/tasks/piqa?shots=2&n=100 -> piqa?shots=2; copy?length=4&n=200 -> copy?length=4."""
    kind, _, dials = task.partition("?")
    kept = "&".join(dial for dial in dials.split("&") if not dial.startswith(("n=", "seed=")))
    return (_file_name(kind) if kind.startswith("file:") else kind) + f"?{kept}" * bool(kept)


def _file_name(source: str) -> str:
    """jsonl:my/text/wikipedia/*.jsonl.gz?field=body -> wikipedia; what is no file stays."""
    kind, _, path = source.partition(":")
    names = [name for name in path.partition("?")[0].split("/") if name and "*" not in name]
    if kind not in FILES or not names:
        return source
    return re.sub(r"([.](txt|md|jsonl|parquet|gz|zst))+$", "", names[-1]) or source


def error(row, y) -> float:
    """The standard error beside a result: eval.loss_se, and eval.loss_se.code of eval.loss.code."""
    value = row.get(re.sub(r"^([^.]+[.][^.]+)", r"\1_se", y))
    return value if finite(value) else 0.0


def in_fit(row, fit) -> bool:
    return row["name"] in fit.data.names


def is_target(row, prediction) -> bool:
    return bool(prediction) and row["name"] == prediction["target"]


def predicted(prediction: dict) -> tuple[float, float, float]:
    """(value, lo, hi) of prediction.json; bounds that could not be had are NaN."""
    return float(prediction["value"]), float(prediction["lo"]), float(prediction["hi"])


def formula(fit) -> str:
    """A fitted law in one line: L(N) = 0.9 + 18 N⁻⁰·²⁵."""
    values = {
        name: f"{value:#.3g}".rstrip(".") if 1e-3 < abs(value) < 1e4 else style.power_of_ten(value)
        for name, value in fit.params.items()
    }
    return style.raised(fit.formula.format(**values))
