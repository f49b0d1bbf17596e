"""How every figure looks and what it carries: colours, axes, words for numbers, files.

    figure, axes = style.start("Loss against parameters", "params.non_embedding", "eval.loss")
    axes.plot(...)
    style.save(style.end(figure, axes, ["n = 6 runs."]), "figures/loss", {"runs": {...}})

Figures are plain matplotlib objects: nothing here touches pyplot or shares state.
"""

import hashlib
import html
import io
import itertools
import json
import math
import pathlib
import re
import textwrap
from typing import Literal

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from lm import storage

# `sizes` is the stretch of viridis (even in lightness, safe for the colour-blind) that stands out
# on that ground.
LIGHT = {
    "paper": "#ffffff", "ink": "#1d2733", "muted": "#5b6775", "grid": "#e6eaef",
    "band": "#dde3ea", "accent": "#c9430b", "soft": "#f6cfbd", "raised": "#f4f6f8",
    "good": "#1a7f4b", "sizes": (0.02, 0.76),
}  # fmt: skip
DARK = {
    "paper": "#11171e", "ink": "#e8edf2", "muted": "#9aa7b4", "grid": "#25303b",
    "band": "#303d4b", "accent": "#ff9152", "soft": "#6b3a20", "raised": "#1a222b",
    "good": "#4cc38a", "sizes": (0.36, 0.97),
}  # fmt: skip

# What stands on an axis, with its unit.
LABELS = {
    "params.non_embedding": "Parameters without embeddings, N",
    "params.total": "Parameters with embeddings",
    "tokens": "Training tokens, D",
    "flops": "Training compute, C (FLOPs)",
    "eval.loss": "Held-out loss, L (nats per token)",
    "eval.bits_per_byte": "Held-out loss (bits per byte)",
    "eval.completion": "Held-out words completed exactly (%)",
}

Corner = Literal["upper left", "upper right"]
SIZE = "params.non_embedding"  # what colours go by
MOST = 12  # things of one figure that are no sizes and have a colour each


def label(column: str) -> str:
    """The words for a column; other words stand as they are."""
    return LABELS.get(column, column)


def start(title: str, x: str, y: str, theme=LIGHT) -> tuple[Figure, Axes]:
    """An empty figure of one panel, half a page wide; x and y are columns, or words with a unit."""
    figure = Figure(figsize=(5.4, 3.9), layout="constrained", facecolor=theme["paper"])
    axes = figure.add_subplot(facecolor=theme["paper"])
    axes.set_title(title, loc="left", weight="bold", size=11, color=theme["ink"], pad=9)
    axes.set_xlabel(label(x), size=9.5, color=theme["ink"], parse_math=False)
    axes.set_ylabel(label(y), size=9.5, color=theme["ink"], parse_math=False)
    axes.tick_params(colors=theme["muted"], labelsize=9, length=3, width=0.8)
    axes.grid(color=theme["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme["muted"])
    return figure, axes


def panels(title: str, n: int, theme=LIGHT, columns=5) -> tuple[Figure, list[Axes]]:
    """An empty figure of n small panels, a page wide; the title stands over the first."""
    lines = max(-(-n // columns), 1)
    figure = Figure(figsize=(11, 0.7 + 1.9 * lines), layout="constrained", facecolor=theme["paper"])
    figure.suptitle(title, x=0.012, ha="left", weight="bold", size=11, color=theme["ink"])
    found = [figure.add_subplot(lines, columns, i + 1) for i in range(max(n, 1))]
    for axes in found:
        axes.set_facecolor(theme["paper"])
        axes.tick_params(colors=theme["muted"], labelsize=7.5, length=2, width=0.8)
        axes.grid(color=theme["grid"], linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(theme["muted"])
    return figure, found


def end(
    figure: Figure, axes: Axes, caption: list[str], theme=LIGHT, legend: Corner = "upper right"
) -> Figure:
    """Adds the legend, where something has a label, and the caption, where n is said.

    Words beside marks that would cover later ones are dropped: the largest sizes keep theirs.
    From here on everything stays where it is: to lay it out again, or to draw it for that, costs
    as much as the drawing that is kept.
    """
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        look = {"fontsize": 8.5, "labelcolor": theme["ink"], "handlelength": 1.8}
        frame = {"facecolor": theme["paper"], "edgecolor": "none", "framealpha": 0.75}
        axes.legend(handles, labels, loc=legend, **look, **frame)  # upper right: losses fall
    text = textwrap.fill(" ".join(filter(None, caption)), round(17 * figure.get_figwidth()))
    look = {"x": 0.012, "ha": "left", "size": 7.5, "color": theme["muted"], "parse_math": False}
    figure.supxlabel(text, **look)
    layout = figure.get_layout_engine()
    assert layout  # of start and panels
    layout.execute(figure)
    taken = []
    for words in reversed(list(axes.texts)):
        box = words.get_window_extent().padded(1, -1)
        if any(box.overlaps(other) for other in taken):
            words.remove()
        else:
            taken.append(box)
    figure.set_layout_engine(None)  # "none" leaves one behind, for which savefig draws twice
    return figure


def log_x(axes: Axes, words) -> None:
    """A log axis with round ticks, written by `words` (count or power_of_ten)."""
    axes.set_xscale("log")
    low, high = np.log10(axes.get_xlim())
    steps = (1, 2, 5) if high - low < 1.7 else (1, 3) if high - low < 3.4 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def log_y(axes: Axes, words="{:.4g}".format) -> None:
    """A log axis. Losses span less than a decade, so that their ticks are even, not powers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high > 10 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
        return axes.yaxis.set_minor_locator(NullLocator())
    ticks = MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def write(axes: Axes, x: float, y: float, text: str, theme, offset=(5, 5), **look) -> None:
    """Puts plain text, `offset` points beside the data point (x, y), on a wash of paper."""
    look |= {"color": theme["ink"], "size": 8.5, "parse_math": False, "textcoords": "offset points"}
    wash = {"facecolor": theme["paper"], "alpha": 0.75, "edgecolor": "none", "pad": 0.5}
    axes.annotate(text, (x, y), xytext=offset, bbox=wash, **look)


def lifts(axes: Axes, points, height=10.5, width=40.0) -> list[float]:
    """How many points up or down words must move from each (x, y) so that none covers another.

    `height` and `width` are those of the words. The axes must have their final limits.
    """
    if not points:
        return []
    page = np.array(axes.bbox.size) * 72 / axes.figure.dpi
    places = (axes.transScale + axes.transLimits).transform(np.array(points)) * page
    at, order = places[:, 1].copy(), np.argsort(places[:, 1], kind="stable")
    for _ in range(50):
        for low, high in itertools.combinations(order, 2):
            lack = height - (at[high] - at[low])
            if lack > 0 and abs(places[high, 0] - places[low, 0]) < width:
                at[low], at[high] = at[low] - lack / 2, at[high] + lack / 2
    return [float(lift) for lift in at - places[:, 1]]


def size_colours(rows, theme=LIGHT) -> dict[str, str]:
    """{name of run: colour}, ordered by size; runs of one size share it, unknown ones are muted."""
    sizes = sorted({row[SIZE] for row in rows if row.get(SIZE)})
    viridis, (first, last) = matplotlib.colormaps["viridis"], theme["sizes"]
    places = np.linspace(first, last, len(sizes)) if len(sizes) > 1 else [(first + last) / 2]
    shades = {n: str(colors.to_hex(viridis(p))) for n, p in zip(sizes, places, strict=False)}
    return {r["name"]: shades[r[SIZE]] if r.get(SIZE) else theme["muted"] for r in rows}


def spread(theme=LIGHT, n=4) -> list[str]:
    """n colours for things that are no sizes, from end to end of those of sizes."""
    viridis, (first, last) = matplotlib.colormaps["viridis"], theme["sizes"]
    return [str(colors.to_hex(viridis(place))) for place in np.linspace(first, last, n)]


def twins(rows) -> dict[str, str]:
    """{colour in LIGHT: the same thing's in DARK}, for all that figures of these rows draw."""
    light, dark = size_colours(rows, LIGHT), size_colours(rows, DARK)
    pairs = {LIGHT[name]: DARK[name] for name in LIGHT if name != "sizes"}
    for n in range(2, MOST + 1):
        pairs |= dict(zip(spread(LIGHT, n), spread(DARK, n), strict=True))
    return {light[name]: dark[name] for name in light} | pairs


# Words for numbers.


def count(value: float) -> str:
    """12_345 -> 12.3K: three digits and K, M, B or T; powers of ten where these do not reach."""
    for unit, size in (("", 1), ("K", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12)):
        if value == 0 or 1 <= abs(value) < 999.5 * size:
            return f"{value / size:.3g}{unit}"
    return power_of_ten(value)


def power_of_ten(value: float) -> str:
    """2.5e15 -> 2.5·10¹⁵, in plain characters."""
    if not value or not math.isfinite(value):
        return str(value)
    digits, exponent = f"{value:.2e}".split("e")
    digits = digits.rstrip("0").rstrip(".")
    return raised(f"10^{int(exponent)}" if digits == "1" else f"{digits}·10^{int(exponent)}")


def raised(text: str) -> str:
    """N^-0.25 -> N⁻⁰·²⁵: exponents in plain characters, for there is no raised full stop."""
    table = str.maketrans("-.0123456789", "⁻·⁰¹²³⁴⁵⁶⁷⁸⁹")
    return re.sub(r"\^(-?[0-9.]+)", lambda hit: hit[1].translate(table), text)


def shortened(words: str, most=24) -> str:
    """The beginning of what is too long to stand beside a mark."""
    return words if len(words) <= most else f"{words[: most - 1]}…"


def number(value: float) -> str:
    """A loss or its like, to four significant digits."""
    return f"{value:#.4g}"


# What a figure says of itself, and its ways out.


def fingerprint(value) -> str:
    """16 hex digits of plain data; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(figure: Figure, stem, meta: dict) -> list[pathlib.Path]:
    """Writes STEM.png and STEM.svg with `meta` (plain data) inside; returns the two paths.

    The same figure gives the same bytes: no dates, no random ids.
    """
    stem = storage.at(stem)
    png, svg = (stem.with_name(stem.name + ending) for ending in (".png", ".svg"))
    about = {"Description": json.dumps(meta, sort_keys=True)}
    file = io.BytesIO()
    figure.savefig(file, dpi=200, format="png", metadata=about)
    storage.write(png, file.getvalue())
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lm"}):
        figure.savefig(text, format="svg", metadata=about | {"Date": None})
    storage.write(svg, text.getvalue())
    return [png, svg]


def read_meta(path) -> dict:
    """What `save` was given as `meta`, read from its PNG or SVG; ValueError if there is none."""
    path = storage.at(path)
    try:
        if path.suffix == ".svg":
            found = re.search(
                r"<dc:description>(.*?)</dc:description>", path.read_text(), re.DOTALL
            )
            return json.loads(html.unescape(found[1]) if found else "")
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return json.loads(image.info.get("Description", ""))
    except ValueError as error:
        raise ValueError(f"{path} holds no record of its runs: draw it with plots.save") from error


def inline(figure: Figure) -> tuple[str, str]:
    """(SVG for the inside of a page, caption). The caption leaves the figure: the page sets it.

    Text stays text in the page's font, colours become CSS variables named --c and six hex digits,
    for the page to turn dark, and a mark's `tip:` id becomes its <title>. All text comes escaped.
    """
    caption = " ".join(figure.get_supxlabel().split())
    under = figure.supxlabel(figure.get_supxlabel())
    cut = under.get_window_extent().y1 * 72 / figure.dpi  # points, from the bottom
    under.set_text("")
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lm"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for clutter in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        svg = re.sub(clutter, "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'<g id="tip:([^"]*)">', r'<g class="tip"><title>\1</title>', svg)
    svg = re.sub(r' id="[A-Za-z0-9.]+_[0-9]+"', "", svg)
    svg = re.sub(r": #([0-9a-f]{6})\b", r": var(--c\1, #\1)", svg)
    width, height = figure.get_size_inches() * 72
    size = f'viewBox="0 0 {width:g} {height - cut:g}" role="img"'
    return re.sub(r'width="[^"]*" height="[^"]*" viewBox="[^"]*"', size, svg, count=1), caption
