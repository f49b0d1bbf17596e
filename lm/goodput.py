"""Goodput: the share of a run's wall time in steps that count, and what took the rest.

figure = goodput.figure(rows)          # a bar a run, of parts of its seconds (see lm/clock.py)
lines = goodput.table(rows)
"""

from matplotlib.figure import Figure

from lm import clock, marks, style
from lm.marks import finite

ORDER = ("steps", "input", "log", "save", "evaluate", "compile", "start", "lost", "other")
WORDS = {
    "steps": "steps",
    "input": "waits for input",
    "log": "log",
    "save": "checkpoints",
    "evaluate": "evaluation",
    "compile": "compilation",
    "start": "start",
    "lost": "steps lost",
    "other": "rest",
}


def timed(rows) -> list[dict]:
    """Those whose seconds are known by part."""
    return [row for row in rows if finite(row.get("clock.goodput"))]


def shares(row: dict) -> dict[str, float]:
    """Part -> its share of the run's seconds, over all attempts."""
    seconds = {part: row.get(f"clock.{part}", 0.0) for part in (*clock.PARTS, "lost")}
    whole = sum(seconds.values()) or 1.0
    return {part: seconds[part] / whole for part in ORDER}


def table(rows) -> list[dict[str, tuple[str, float | str]]]:
    """A line a run: its seconds, and the share of each part."""
    lines = []
    for row in timed(rows):
        seconds = sum(row.get(f"clock.{part}", 0.0) for part in (*clock.PARTS, "lost"))
        line = {"run": (marks.short(row), ""), "seconds": (f"{seconds:.0f}", seconds)}
        parts = shares(row).items()
        lines.append(line | {WORDS[part]: (f"{100 * share:.1f}%", share) for part, share in parts})
    return lines


def figure(rows, theme=style.LIGHT) -> Figure:
    """A bar a run, smallest model at the top."""
    rows = timed(rows)
    figure, axes = style.start("Where the time went", "Share of wall time (%)", "", theme)
    figure.set_figheight(1.7 + 0.27 * len(rows))
    at, left, bars = list(range(len(rows))), [0.0] * len(rows), {}
    for part, colour in zip(ORDER, style.spread(theme, len(ORDER)), strict=True):
        wide = [100 * shares(row)[part] for row in rows]
        if max(wide, default=0.0) >= 0.05:
            bars[WORDS[part]] = axes.barh(at, wide, left=left, height=0.72, color=colour)
        left = [start + width for start, width in zip(left, wide, strict=True)]
    for place, row in zip(at, rows, strict=True):
        style.write(axes, 1.0, place, f"{100 * row['clock.goodput']:.0f}%", theme, (0, -3))
    axes.set_yticks(at, [marks.short(row) for row in rows], parse_math=False)
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.grid(visible=False)
    look = {"fontsize": 7.5, "labelcolor": theme["ink"], "frameon": False}
    figure.legend([*bars.values()], [*bars], loc="outside right center", **look)
    caption = f"n = {len(rows)} runs, all their attempts. In numbers: goodput, the share in steps."
    return style.end(figure, axes, [caption], theme)
