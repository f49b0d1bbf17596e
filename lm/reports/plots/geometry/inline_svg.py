"""Figures as SVG files, and as SVG elements of an HTML page.

    svg = inline_svg.render_svg(figure, {"figure": "loss"})    # text of a file
    svgs, caption = inline_svg.to_inline_svgs(figure, svg)     # one element per panel

Text is stored as text. In a page it has the font of the page, and figures have no background.
Colors become CSS variables, --c and six hex digits, so that the page can switch to the dark theme.
The id "tip:TEXT" of a marker becomes its <title>. All text is escaped. Coordinates have two
decimals. Markers and lines of one look that follow each other share their style.
"""

import io
import json
import re

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

PADDING = 0.04  # inches around a figure or panel
# Parts of a file that its page does not show: the background of figure and panels, the caption.
OMITTED = re.compile(r'\n *<g id="(?:background_\d+|caption)">.*?</g>', re.DOTALL)
AXES_GROUP = re.compile(r'\n  <g id="(axes_\d+)">.*?\n  </g>', re.DOTALL)
COORDINATES = re.compile(r'<(?:path d|use xlink:href="[^"]*" x)="[^"]*"(?: y="[^"]*")?')
LONG_DECIMALS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is invisible
# Markers of one shape and style, and lines of one style. The "opacity" of a group differs from that
# of its markers, and transparent lines that overlap are darker than one path: they are not merged.
MARKERS = re.compile(
    r'\n *<use (xlink:href="[^"]*") x="[^"]*" y="[^"]*" style="(?!(?:[^"]* )?opacity)([^"]*)"/>'
    r'(?:\n *<use \1 x="[^"]*" y="[^"]*" style="\2"/>)+'
)
LINES = re.compile(
    r'\n *<path d="[^"]*"( clip-path="[^"]*" style="fill: none;(?![^"]*opacity)[^"]*"/>)'
    r'(?:\n *<path d="[^"]*"\1)+'
)


def render_svg(figure: Figure, meta: dict) -> str:
    """Return a figure as SVG. meta: plain data that it stores. Equal figures give equal text."""
    figure.patch.set_gid("background_0")
    for i, axes in enumerate(figure.axes):
        axes.patch.set_gid(f"background_{i + 1}")
    for text in figure.texts:
        if text.get_text() == figure.get_supxlabel():
            text.set_gid("caption")
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lm"}):
        figure.savefig(file, format="svg", metadata=file_metadata(meta) | {"Date": None})
    return file.getvalue()


def file_metadata(meta: dict) -> dict[str, str | None]:
    """Return the metadata of a file for savefig. meta: plain data."""
    return {"Description": json.dumps(meta, sort_keys=True)}


def to_inline_svgs(figure: Figure, svg: str = "") -> tuple[list[str], str]:
    """Return (SVG elements for an HTML page, caption). Remove the caption from the figure.

    A figure with a title above its panels gives an element per panel, all of the same size, so that
    the page can arrange them. Other figures give one element. svg: result of `render_svg`, if the
    figure is already drawn.
    """
    svg = OMITTED.sub("", svg or render_svg(figure, {}))
    caption = " ".join(figure.get_supxlabel().split())
    figure.supxlabel("")
    svg = _compact_svg(svg[svg.index("<svg") :])
    if not figure.get_suptitle():
        return [_clean_svg(_crop(svg, figure, figure.get_tightbbox().padded(PADDING)))], caption
    head = svg[: svg.index(">") + 1]
    panels = panel_axes(figure)
    groups = {match[1]: match[0] for match in AXES_GROUP.finditer(svg)}
    definitions = "".join(re.findall(r"\n <defs>.*?</defs>", svg, re.DOTALL))
    names = {axes: f"axes_{i + 1}" for i, axes in enumerate(figure.axes)}
    svgs = []
    for i, (panel, box) in enumerate(zip(panels, _panel_boxes(panels), strict=True)):
        body = "".join(groups[names[axes]] for axes in panel)
        # An id is valid in the whole page, so that one panel has the definitions of all.
        body += definitions if i == 0 else ""
        svgs.append(_clean_svg(_crop(f"{head}{body}</svg>", figure, box)))
    return svgs, caption


def panel_axes(figure: Figure) -> list[list[Axes]]:
    """Return the axes of each panel. Axes at the same position, such as twins, are one panel."""
    panels: dict[tuple, list[Axes]] = {}
    for axes in figure.axes:
        panels.setdefault(tuple(np.round(axes.get_position().bounds, 4)), []).append(axes)
    return list(panels.values())


def _panel_boxes(panels: list[list[Axes]]) -> list[Bbox]:
    """Return boxes of panels in inches with equal margins around the axes of each panel."""
    inner = [panel[0].get_window_extent() for panel in panels]
    outer = [
        Bbox.union([box for axes in panel if (box := axes.get_tightbbox())]) for panel in panels
    ]
    edges = np.array([box.extents for box in inner])
    margins = np.abs(np.array([box.extents for box in outer]) - edges).max(0)
    dpi = panels[0][0].figure.dpi
    signs = np.array([-1, -1, 1, 1])
    return [Bbox.from_extents((edge + signs * margins) / dpi).padded(PADDING) for edge in edges]


def _crop(svg: str, figure: Figure, box: Bbox) -> str:
    """Return an SVG that shows a box, which is given in inches from the lower left corner."""
    bottom = 72 * figure.get_figheight()
    view = f"{72 * box.x0:g} {bottom - 72 * box.y1:g} {72 * box.width:g} {72 * box.height:g}"
    size = f'viewBox="{view}" role="img"'
    return re.sub(r'width="[^"]*" height="[^"]*" viewBox="[^"]*"', size, svg, count=1)


def _compact_svg(svg: str) -> str:
    """Return an SVG with two decimals per coordinate, and one style per row of equal elements."""
    svg = COORDINATES.sub(lambda match: LONG_DECIMALS.sub(r"\1", match[0]), svg)
    return LINES.sub(_merge_lines, MARKERS.sub(_merge_markers, svg))


def _merge_markers(match: re.Match) -> str:
    """Return markers of equal shape and style as a group with that style."""
    markers = re.findall(r"<use [^>]*?(?= style=)", match[0])
    return "\n".join([f'\n<g style="{match[2]}">', *(f"{marker}/>" for marker in markers), "</g>"])


def _merge_lines(match: re.Match) -> str:
    """Return lines of equal style as one path."""
    data = "".join(re.findall(r'<path d="([^"]*)"', match[0]))
    return f'\n<path d="{data}"{match[1]}'


def _clean_svg(svg: str) -> str:
    """Return an SVG with tooltips and CSS variables, without metadata and fonts."""
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    # Matplotlib writes an attribute that contains double quotes between single quotes.
    tip = r'<g class="tip"><title>\2</title>'
    svg = re.sub(r"""<g id=(["'])tip:(.*?)\1>""", tip, svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_[0-9]+"', "", svg)
    return re.sub(r": #([0-9a-f]{6})\b", r": var(--c\1, #\1)", svg)
