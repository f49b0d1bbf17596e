"""Figures of hyperparameters that transfer: the coordinate check, losses against learning rates.

plots.save(rate_plots.coordinates(rows), "coordinates", {...})      # of coordinates.measured
rate_plots.learning_rates(rows, "model.d_model")                    # of records.rows
"""

import numpy as np
from matplotlib.figure import Figure

from lm import drift, marks, style

DIRECTIONS = (("width", "depth"), (drift.WIDTH, drift.DEPTH))
WORDS = {
    drift.WIDTH: "width",
    drift.DEPTH: "depth",
    "width": "Width, d_model",
    "depth": "Depth, layers",
}


def coordinates(rows, theme=style.LIGHT) -> Figure:
    """Log-log: how far the last step's activations are from the first's, against width and depth.

    A panel a rule and direction, a line a part of the model (a mean over seeds), at its end the
    exponent: 0 where a step does the same at any shape. Rows vary one of width and depth at a time.
    """
    last = max((row["step"] for row in rows), default=0)
    drawn = [
        (rule, along, mine)
        for along in ("width", "depth")
        for rule in dict.fromkeys(row["rule"] for row in rows)
        for mine in [varying([row for row in rows if row["rule"] == rule], along)]
        if mine
    ]
    columns = max(len({rule for rule, _, _ in drawn}), 1)
    figure, panels = style.panels("Coordinate check", len(drawn), theme, columns=columns)
    figure.set_figheight(0.8 + 2.5 * max(-(-len(drawn) // columns), 1))
    parts = list(dict.fromkeys(row["part"] for row in rows))
    colours = dict(zip(parts, style.spread(theme, max(len(parts), 2)), strict=False))
    changes = [row["change"] for row in rows if row["step"] == last]
    for axes, (rule, along, mine) in zip(panels, drawn, strict=False):
        slopes = {(g["step"], g["part"]): g for g in drift.growth(mine, along)}
        at, ends = sorted({row[along] for row in mine}), []
        for part in parts:
            chosen = [row for row in mine if (row["step"], row["part"]) == (last, part)]
            means = [np.mean([r["change"] for r in chosen if r[along] == x]) for x in at]
            for x, mean in zip(at, means, strict=True):
                tip = f"{rule}, {along} {x}, {part}: {style.number(float(mean))}"
                marks.mark(axes, (x, mean), colours[part], theme, tip)
            axes.plot(at, means, color=colours[part], linewidth=1.3)
            words = f"{part} {_exponent(slopes[last, part])}"
            ends.append((words, at[-1], float(means[-1])))
        axes.set_title(rule, size=8.5, color=theme["ink"], loc="left", parse_math=False)
        axes.set_xlabel(WORDS[along], size=8.5, color=theme["ink"])
        _shape_axis(axes, at, right=2.6)
        axes.set_ylim(min(changes) / 1.5, max(changes) * 1.5)
        style.log_y(axes)
        marks.write_ends(axes, ends, theme)
    panels[0].set_ylabel("Change, root mean square", size=8.5, color=theme["ink"])
    seeds = len({row["seed"] for row in rows})
    caption = (
        f"n = {seeds} seed{'s' * (seeds != 1)} a shape. Change of an activation in {last} steps"
    )
    rest = "of one learning rate; beside each part its exponent, ± one standard error over seeds."
    return style.end(figure, panels[0], [caption, rest], theme)


def learning_rates(rows, along, theme=style.LIGHT, found=None) -> Figure:
    """Log-log: loss against learning rate, a panel a rule, a line for each value of `along`.

    along: model.d_model or model.n_layers; the other is held at the value with most of it. A
    diamond is the minimum of a parabola, its bar the interval; under each name the drift, in
    doublings of the best rate per doubling of `along`. found: what drift.best gave, or None.
    """
    rows = drift.shared([row for row in rows if row["status"] == "done"])
    found = drift.best(rows) if found is None else found
    rows, found = varying(rows, along), varying(found, along)
    shapes = {
        one[drift.RULE]: {o[along] for o in found if o[drift.RULE] == one[drift.RULE]}
        for one in found
    }
    rules = [rule for rule in sorted(shapes, key=_order) if len(shapes[rule]) > 1]
    rows, found = ([r for r in some if r[drift.RULE] in rules] for some in (rows, found))
    words = WORDS[along]
    title = f"Loss against learning rate by {words}"
    figure, panels = style.panels(title, len(rules), theme, columns=max(len(rules), 1))
    figure.set_size_inches(max(3.7 * len(rules), 5.4), 3.7)
    values = sorted({one[along] for one in found})
    colours = dict(zip(values, style.spread(theme, max(len(values), 2)), strict=False))
    drifts = {line[drift.RULE]: line for line in drift.moves(found, along)}
    for axes, rule in zip(panels, rules, strict=False):
        ends = []
        for one in (one for one in found if one[drift.RULE] == rule):
            value, colour = one[along], colours[one[along]]
            mine = [r for r in rows if (r[drift.RULE], r[along]) == (rule, value)]
            ends.append(_curve(axes, mine, f"{words} {value}", colour, theme))
            _minimum(axes, one, f"{words} {value}", theme)
        title = f"{rule}: {_drift(drifts.get(rule))}"
        axes.set_title(title, size=8.5, color=theme["ink"], loc="left", parse_math=False)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("Peak learning rate at the base shape", size=8.5, color=theme["ink"])
        rates = sorted({row[drift.RATE] for row in rows})
        axes.set_xticks(rates[::2], [f"{rate:.3g}" for rate in rates[::2]])
        axes.set_xlim(rates[0] / 1.2, rates[-1] * 3)
        losses = [row[drift.LOSS] for row in rows]
        axes.set_ylim(min(losses) / 1.02, min(max(losses), 1.5 * min(losses)) * 1.02)
        style.log_y(axes)
        marks.write_ends(axes, ends, theme)
    panels[0].set_ylabel(style.label(drift.LOSS), size=8.5, color=theme["ink"])
    n_runs = len({row["name"] for row in rows})
    caption = f"n = {n_runs} runs. Small: runs; line: their means; diamond: the minimum of a"
    rest = f"parabola, with its {drift.LEVEL:.0%} interval. Beside each name: doublings of the best"
    return style.end(figure, panels[0], [caption, rest, f"rate per doubling of {words}."], theme)


def _curve(axes, rows, name, colour, theme) -> tuple[str, float, float]:
    """Runs, and the line through their means; returns its name and where it ends."""
    rates = sorted({row[drift.RATE] for row in rows})
    means = [np.mean([r[drift.LOSS] for r in rows if r[drift.RATE] == rate]) for rate in rates]
    axes.plot(rates, means, color=colour, linewidth=1.3, zorder=2)
    for row in rows:
        at = (row[drift.RATE], row[drift.LOSS])
        gid = f"tip:{marks.short(row)}: {style.number(at[1])}"
        axes.plot(*at, "o", color=colour, markersize=3.5, markeredgewidth=0, zorder=4, gid=gid)
    return name, rates[-1], float(means[-1])


def _minimum(axes, one, name, theme) -> None:
    if one["doubt"]:
        return
    bar = {"color": theme["accent"], "linewidth": 2, "zorder": 4.5, "solid_capstyle": "butt"}
    axes.plot([one["lo"], one["hi"]], [one["loss"]] * 2, **bar)
    tip = f"{name}: best {one['lr']:.3g} [{one['lo']:.3g}, {one['hi']:.3g}]"
    marks.mark(axes, (one["lr"], one["loss"]), theme["accent"], theme, tip, target=True)


def _drift(line) -> str:
    if line is None or not np.isfinite(line["slope"]):
        return "no drift can be told"
    return f"drift {line['slope']:+.2f} [{line['lo']:+.2f}, {line['hi']:+.2f}]"


def varying(rows, along) -> list:
    """Rows at the one value of the other of width and depth that has most values of `along`.

    None if it has but one.
    """
    other = next(pair[pair[0] == along] for pair in DIRECTIONS if along in pair)
    values = {row[other]: {r[along] for r in rows if r[other] == row[other]} for row in rows}
    kept = max(values, key=lambda value: (len(values[value]), -value), default=None)
    return [row for row in rows if row[other] == kept] if len(values.get(kept, ())) > 1 else []


def _order(rule: str) -> tuple:
    """The standard parametrization stands first."""
    return rule != "standard", rule


def _exponent(slope) -> str:
    error = f" ± {slope['change_se']:.2f}" if np.isfinite(slope["change_se"]) else ""
    return f"{round(slope['change'], 2) + 0.0:+.2f}{error}"  # no minus before 0.00


def _shape_axis(axes, at, right) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(at[0] / 1.15, at[-1] * (at[-1] / at[0]) ** 0.1 * right)
    axes.set_xticks(at, [str(x) for x in at])
