"""Theme, axes, number formats and files of all figures.

    figure, axes = style.new_figure("Loss against parameters", records.N_PARAMS, records.LOSS)
    axes.plot([1e5, 1e6], [3.1, 2.5])
    style.finish_figure(figure, axes, ["n = 6 runs."])
    style.save_figure(figure, "figures/loss", {"figure": "loss"})     # loss.png and loss.svg

Figures are plain matplotlib objects. This module does not use pyplot and has no global state.
"""

import hashlib
import html
import io
import json
import math
import pathlib
import re
import textwrap

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from lm.reports.plots.geometry import inline_svg, label_placement
from lm.runs import filesystem, records

# Theme: name of a color -> hex code. A color has one meaning: "accent", "soft" mark a prediction,
# "good" and "bad" its verdict, "note" a warning, "second" the second of two quantities. "sizes" is
# the range of the colormap viridis that contrasts with the paper: it marks model sizes and is safe
# for color-blind readers.
LIGHT = {
    "paper": "#ffffff", "ink": "#1d2733", "muted": "#5b6775", "grid": "#e6eaef",
    "band": "#dde3ea", "accent": "#c9430b", "soft": "#f6cfbd", "raised": "#f4f6f8",
    "good": "#1a7f4b", "bad": "#b3121d", "note": "#a07c00", "second": "#9b2a86",
    "sizes": (0.02, 0.76),
}  # fmt: skip
DARK = {
    "paper": "#11171e", "ink": "#e8edf2", "muted": "#9aa7b4", "grid": "#25303b",
    "band": "#303d4b", "accent": "#ff9152", "soft": "#6b3a20", "raised": "#1a222b",
    "good": "#4cc38a", "bad": "#ff6b6b", "note": "#d9b441", "second": "#f08fdc",
    "sizes": (0.36, 0.97),
}  # fmt: skip

# Categories, such as task families and phases: (light, dark), none of them a color of a size.
CATEGORIES = (
    ("#8c510a", "#d8a25e"), ("#c2408a", "#f27db8"), ("#3a3f47", "#c9ced6"), ("#c99a2e", "#e8cb6a"),
    ("#7f1d1d", "#e08585"), ("#e38fb4", "#f9c3da"), ("#a89f91", "#8f8779"),
)  # fmt: skip
# Range of the colormap YlOrBr for ordered values that are not sizes, such as budgets and losses.
ORDERED = {"light": (0.45, 0.95), "dark": (0.6, 0.1)}

# Column -> axis label with the unit.
LABELS = {
    records.N_PARAMS: "Parameters without embeddings, N",
    "params.total": "Parameters with embeddings",
    records.TOKENS: "Training tokens, D",
    records.FLOPS: "Training compute, C (FLOPs)",
    records.LOSS: "Held-out loss, L (nats per token)",
    "eval.bits_per_byte": "Held-out loss (bits per byte)",
    "eval.completion": "Held-out words completed exactly (%)",
}

# Column -> axis label of a small panel.
PANEL_LABELS = {
    records.N_PARAMS: "Parameters, N",
    records.TOKENS: "Tokens, D",
    records.FLOPS: "Compute (FLOPs)",
    records.LOSS: "Loss (nats per token)",
    "eval.bits_per_byte": "Loss (bits per byte)",
}

EXPONENT = re.compile(r"(?<=[\w)])\^(-?[0-9]+(?:\.[0-9]+)?)")  # N^-0.25
MAX_LEGEND_LINES = 4  # entries of a legend, from which on it has several columns
MAX_COLORS = 12  # categorical colors in one figure
PANEL_TITLE_LENGTH = 28  # characters of a line from which a title is too long for a small panel


def axis_label(column: str) -> str:
    """Return the axis label of a column with its unit. Return other text unchanged."""
    return LABELS.get(column, column)


def new_figure(title: str, x: str, y: str, theme=LIGHT) -> tuple[Figure, Axes]:
    """Create a figure with one panel, half a page wide. Return the figure and its axes.

    x, y: columns of a row, or axis labels with a unit. The titles have a fixed height: otherwise
    each drawing measures all tick labels to place them.
    """
    figure = Figure(figsize=(5.4, 3.9), layout="constrained", facecolor=theme["paper"])
    axes = figure.add_subplot(facecolor=theme["paper"])
    _figure_title(axes, title, theme)
    axes.set_xlabel(axis_label(x), size=9.5, color=theme["ink"], parse_math=False)
    axes.set_ylabel(axis_label(y), size=9.5, color=theme["ink"], parse_math=False)
    axes.tick_params(colors=theme["muted"], labelsize=9, length=3, width=0.8)
    axes.grid(color=theme["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme["muted"])
    return figure, axes


def new_panels(title: str, n: int, theme=LIGHT, columns=5) -> tuple[Figure, list[Axes]]:
    """Create a figure with n small panels. Return the figure and the list of its axes.

    title: title of the figure. n: number of panels; 0 gives one panel. theme: LIGHT or DARK.
    columns: largest number of panels per line, which fill 11 inches. A figure with fewer panels is
    narrower, but has space for its title.
    """
    n_lines = max(-(-n // columns), 1)
    size = (11, 0.7 + 1.9 * n_lines)
    if 0 < n < columns:
        size, columns = (max(11 * n / columns, 3.8), size[1]), n
    figure = Figure(figsize=size, layout="constrained", facecolor=theme["paper"])
    figure.suptitle(title, x=0.012, ha="left", weight="bold", size=11, color=theme["ink"])
    all_axes = [figure.add_subplot(n_lines, columns, i + 1) for i in range(max(n, 1))]
    for axes in all_axes:
        axes.set_facecolor(theme["paper"])
        axes.tick_params(colors=theme["muted"], labelsize=7.8, length=2, width=0.8)
        axes.grid(color=theme["grid"], linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(theme["muted"])
    return figure, all_axes


def _figure_title(axes: Axes, title: str, theme, pad=9.0) -> None:
    """Set the title of a figure with one panel. pad: distance from the panel in points."""
    axes.set_title(title, loc="left", weight="bold", size=11, color=theme["ink"], pad=pad, y=1)


def panel_title(axes: Axes, title: str, theme, pad=6.0) -> None:
    """Set the title of a small panel, which may have several lines. pad: distance in points."""
    longest = max(map(len, title.split("\n")))
    size = 8.5 if longest < 0.85 * PANEL_TITLE_LENGTH else 7.8
    axes.set_title(title, size=size, color=theme["ink"], loc="left", parse_math=False, pad=pad, y=1)


def label_panels(all_axes: list[Axes], x: str, y: str, theme) -> None:
    """Write the axis labels of small panels. x, y: columns, or short labels with a unit."""
    for axes in all_axes:
        axes.set_xlabel(PANEL_LABELS.get(x, x), size=8, color=theme["ink"], parse_math=False)
        axes.set_ylabel(PANEL_LABELS.get(y, y), size=8, color=theme["ink"], parse_math=False)


def finish_figure(figure: Figure, axes: Axes, caption: list[str], theme=LIGHT) -> Figure:
    """Add legend and caption, compute the layout and place all labels. Return the figure.

    axes: the panel with the legend. caption: sentences.
    """
    add_legend(axes, theme)
    add_caption(figure, caption, theme)
    compute_layout(figure)
    for panel in figure.axes:
        label_placement.place_labels(panel)
    freeze_layout(figure)
    return figure


def add_legend(axes: Axes, theme=LIGHT) -> None:
    """Add a legend between title and panel, where it covers no data, if any artist has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    legend = axes.legend(
        handles,
        [math_text(label) for label in labels],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3 if len(handles) > MAX_LEGEND_LINES else 1,
        columnspacing=1.2,
        fontsize=8.7,
        labelcolor=theme["ink"],
        handlelength=1.8,
        borderpad=0.3,
        borderaxespad=0,
        frameon=False,
    )
    pad = 72 / axes.figure.dpi * legend.get_window_extent().height + 6
    is_panel = bool(axes.figure.get_figure(root=True).get_suptitle())
    (panel_title if is_panel else _figure_title)(axes, axes.get_title(loc="left"), theme, pad)


def add_caption(figure: Figure, sentences: list[str], theme=LIGHT) -> None:
    """Write the caption below a figure, wrapped to its width. Skip empty sentences."""
    text = textwrap.fill(" ".join(filter(None, sentences)), round(17 * figure.get_figwidth()))
    look = {"x": 0.012, "ha": "left", "size": 7.5, "color": theme["muted"], "parse_math": False}
    figure.supxlabel(text, **look)


def compute_layout(figure: Figure) -> None:
    """Run the layout engine of a figure once."""
    layout = figure.get_layout_engine()
    assert layout, "new_figure and new_panels set a layout engine"
    layout.execute(figure)


def freeze_layout(figure: Figure) -> None:
    """Keep the positions of panels and axis labels, which each drawing would compute again."""
    figure.set_layout_engine(None)  # the engine "none" would make savefig draw the figure twice
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            position = axis.label.get_transform().transform(axis.label.get_position())
            axis.set_label_coords(*axes.transAxes.inverted().transform(position))


def log_x(axes: Axes, format_tick) -> None:
    """Make the x axis logarithmic, with round ticks. format_tick: format_si or power_of_ten."""
    axes.set_xscale("log")
    low, high = np.log10(axes.get_xlim())
    steps = (1, 2, 5) if high - low < 1.7 else (1, 3) if high - low < 3.4 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: math_text(format_tick(value))))
    axes.xaxis.set_minor_locator(NullLocator())


def log_y(axes: Axes, format_tick="{:.4g}".format) -> None:
    """Make the y axis logarithmic.

    If the axis spans less than a factor of ten, the values of the ticks are evenly spaced.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high > 10 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: math_text(format_tick(value)))
        )
        return axes.yaxis.set_minor_locator(NullLocator())
    ticks = MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: math_text(format_tick(value))))
    axes.yaxis.set_minor_locator(NullLocator())


def annotate(axes: Axes, x: float, y: float, text: str, theme, offset=(5, 5), **look) -> None:
    """Write text beside the data point (x, y), with exponents as `math_text`.

    theme: LIGHT or DARK. offset: (right, up) in points. look: further arguments of matplotlib's
    annotate, such as ha="right".
    """
    look |= {"color": theme["ink"], "size": 8.5, "textcoords": "offset points"}
    background = {"facecolor": theme["paper"], "alpha": 0.75, "edgecolor": "none", "pad": 0.5}
    axes.annotate(math_text(text), (x, y), xytext=offset, bbox=background, **look)


def theme_of_sweep(rows, theme=LIGHT) -> dict:
    """Return a theme in which a size has the same color in the figures of all subsets of rows."""
    return theme | {"all_sizes": tuple(sorted(_known_sizes(rows)))}


def _known_sizes(rows) -> set[float]:
    return {row[records.N_PARAMS] for row in rows if row.get(records.N_PARAMS)}


def size_colors(rows, theme=LIGHT) -> dict[str, str]:
    """Return {name of run: color}. Larger models have lighter colors.

    Runs of the same size share a color. Runs of unknown size have the theme's color "muted". The
    colors span the sizes of the rows, or those of `theme_of_sweep`.
    """
    sizes = sorted(_known_sizes(rows).union(theme.get("all_sizes", ())))
    viridis, (first, last) = matplotlib.colormaps["viridis"], theme["sizes"]
    shades = np.linspace(first, last, len(sizes)) if len(sizes) > 1 else [(first + last) / 2]
    by_size = {n: str(colors.to_hex(viridis(s))) for n, s in zip(sizes, shades, strict=False)}
    return {
        row["name"]: by_size[row[records.N_PARAMS]] if row.get(records.N_PARAMS) else theme["muted"]
        for row in rows
    }


def _is_dark(theme) -> bool:
    return theme["paper"] == DARK["paper"]


def categorical_colors(theme=LIGHT, n=4) -> list[str]:
    """Return n colors for categories. They repeat after len(CATEGORIES)."""
    return [CATEGORIES[i % len(CATEGORIES)][int(_is_dark(theme))] for i in range(n)]


def ordered_colors(theme=LIGHT, n=4) -> list[str]:
    """Return n colors for increasing values that are not model sizes."""
    first, last = ORDERED["dark" if _is_dark(theme) else "light"]
    colormap = matplotlib.colormaps["YlOrBr"]
    return [str(colors.to_hex(colormap(shade))) for shade in np.linspace(first, last, n)]


def dark_theme_map(rows) -> dict[str, str]:
    """Return {color in the LIGHT theme: color in the DARK theme} for all figures of these rows."""
    light, dark = size_colors(rows, LIGHT), size_colors(rows, DARK)
    pairs = {LIGHT[name]: DARK[name] for name in LIGHT if name != "sizes"}
    pairs |= dict(CATEGORIES)
    for n in range(2, MAX_COLORS + 1):
        pairs |= dict(zip(ordered_colors(LIGHT, n), ordered_colors(DARK, n), strict=True))
    return {light[name]: dark[name] for name in light} | pairs


# Number formats.


def format_si(value: float) -> str:
    """Format a count with three digits: 12_345 -> 12.3K (K, M, B, T), or else a power of ten."""
    for unit, size in (("", 1), ("K", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12)):
        if value == 0 or 1 <= abs(value) < 999.5 * size:
            return f"{value / size:.3g}{unit}"
    return power_of_ten(value)


def power_of_ten(value: float, digits: int = 3) -> str:
    """Format a number as a power of ten in plain characters: 2.5e15 -> 2.5×10^15.

    digits: significant digits.
    Figures and pages typeset the exponent: see `math_text` and html.superscripts.
    """
    if not value or not math.isfinite(value):
        return str(value)
    factor, exponent = f"{value:.{digits - 1}e}".split("e")
    factor = factor.rstrip("0").rstrip(".") if digits > 1 else factor
    if int(exponent) == 0:
        return factor
    return f"10^{int(exponent)}" if factor == "1" else f"{factor}×10^{int(exponent)}"


def format_parameter(value: float) -> str:
    """Format a fitted parameter with three digits: 0.144, 25.0, 2.55×10^3."""
    is_plain = 1e-3 < abs(value) < 999.5 or value == 0
    return f"{value:#.3g}".rstrip(".") if is_plain else power_of_ten(value)


def math_text(text: str) -> str:
    """Return a text for matplotlib, with exponents as mathtext: 2 N^-0.25 -> 2 N$^{-0.25}$.

    Other dollar signs are escaped.
    """
    return EXPONENT.sub(r"$^{\1}$", text.replace("$", r"\$"))


def truncate_label(text: str, max_length=24) -> str:
    """Remove the middle of a label longer than max_length. Options at its end distinguish tasks."""
    if len(text) <= max_length:
        return text
    n_last = (max_length - 1) // 2
    return f"{text[: max_length - 1 - n_last]}…{text[-n_last:]}"


def format_number(value: float) -> str:
    """Format a number with four significant digits."""
    return f"{value:#.4g}"


def format_prediction(value: float, lo: float, hi: float) -> str:
    """Format a prediction with its interval: 1.099 [1.025, 1.166], or 1.810 (no interval)."""
    if not (math.isfinite(lo) and math.isfinite(hi)):
        return f"{format_number(value)} (no interval)"
    return f"{format_number(value)} [{format_number(lo)}, {format_number(hi)}]"


def hash_data(value) -> str:
    """Return 16 hex digits of a SHA-256 hash of plain data, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_figure(figure: Figure, stem, meta: dict, svg: str = "") -> list[pathlib.Path]:
    """Write STEM.png and STEM.svg. Return their two paths.

    meta: plain data that is stored in both files. The files contain no dates and no random ids, so
    the same figure always gives the same bytes. svg: result of `inline_svg.render_svg` with this
    metadata, if the figure is already drawn.
    """
    stem = filesystem.open_path(stem)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    file = io.BytesIO()
    figure.savefig(file, dpi=200, format="png", metadata=inline_svg.file_metadata(meta))
    filesystem.write_file(paths[0], file.getvalue())
    filesystem.write_file(paths[1], svg or inline_svg.render_svg(figure, meta))
    return paths


def read_figure_metadata(path) -> dict:
    """Read the metadata that `save_figure` stored in a PNG or SVG.

    Raises ValueError if the file contains no metadata.
    """
    path = filesystem.open_path(path)
    try:
        if path.suffix == ".svg":
            text = path.read_text()
            match = re.search(r"<dc:description>(.*?)</dc:description>", text, re.DOTALL)
            return json.loads(html.unescape(match[1]) if match else "")
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return json.loads(image.info.get("Description", ""))
    except ValueError as error:
        raise ValueError(
            f"{path} contains no metadata of its runs. Save the figure again with save_figure."
        ) from error
