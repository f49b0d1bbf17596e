"""Inline SVG of figures: escaped text, crop, colors, and one element per panel."""

import re
import xml.etree.ElementTree as ElementTree

from matplotlib.backends.backend_agg import FigureCanvasAgg

from lm.reports.plots import style
from lm.reports.plots.geometry import inline_svg

ROWS = [
    {"name": "a/small", "params.non_embedding": 10},
    {"name": "a/large", "params.non_embedding": 1000},
]


def toy_figure(label="a name", tip="a tip"):
    """Return a figure with two markers that have a tooltip, a label and a caption."""
    figure, axes = style.new_figure("Title", "eval.loss", "nats")
    axes.plot([1, 2], [3, 4], "o", color=style.LIGHT["accent"], gid=f"tip:{tip}")
    style.annotate(axes, 1, 3, label, style.LIGHT)
    return style.finish_figure(figure, axes, [f"n = 1 run of {label}."])


def test_inline_figure_is_valid_xml_and_escapes_text():
    hostile = "<script>alert('1')</script> $x^ & \"--> ]]>"
    (svg,), caption = inline_svg.to_inline_svgs(toy_figure(hostile, hostile))
    root = ElementTree.fromstring(svg)
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert hostile in texts and titles == [hostile]
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert caption == f"n = 1 run of {hostile}." and caption not in texts


def test_page_and_file_show_the_same_drawing():
    figure = toy_figure()
    file = inline_svg.render_svg(figure, {"runs": 1})
    paper = f"fill: {style.LIGHT['paper']}"
    assert file.count(paper) > 1 and "n = 1 run of a name." in file  # a label has a background too
    (from_file,), caption = inline_svg.to_inline_svgs(figure, file)
    (drawn_again,), _ = inline_svg.to_inline_svgs(toy_figure())
    assert from_file == drawn_again and caption == "n = 1 run of a name."
    assert from_file.count(f"--c{style.LIGHT['paper'][1:]}") == file.count(paper) - 2
    assert caption not in from_file


def test_axis_labels_have_the_same_distance_at_every_resolution():
    figure = toy_figure()
    gaps = []
    for dpi in (72, 100, 300):
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).draw()
        axis = figure.axes[0].yaxis
        left = min(tick.get_window_extent().x0 for tick in axis.get_ticklabels())
        gaps.append((left - axis.label.get_window_extent().x1) / dpi)
    assert 0.02 < min(gaps) and max(gaps) - min(gaps) < 0.02  # inches


def test_many_markers_and_lines_are_short_in_a_page():
    """Merging changes no position and no style; transparent lines and texts are unchanged."""
    figure, axes = style.new_figure('x="1.2345"', "x", "y")
    xs = [i + 1 / 3 for i in range(500)]
    axes.errorbar(xs, xs, [1.0] * 500, fmt="o", color=style.LIGHT["accent"])
    axes.vlines(xs[:70], 1, 2, colors=style.LIGHT["ink"], alpha=0.5)
    style.finish_figure(figure, axes, ["Caption."])
    (svg,), _ = inline_svg.to_inline_svgs(figure)
    assert svg.count("<use") > 500 and len(svg) < 70_000
    assert 70 < svg.count("<path") < 130 and not re.search(r'<(path d|use.* x)="[^"]*\.\d{3}', svg)
    assert svg.count(f"stroke: var(--c{style.LIGHT['accent'][1:]}") == 3  # bars and two of markers
    assert 'x="1.2345"</text>' in svg
    ElementTree.fromstring(svg)


def test_inline_figure_is_cropped_above_its_caption():
    figure = toy_figure()
    axis_label = figure.axes[0].xaxis.label.get_window_extent()
    (svg,), _ = inline_svg.to_inline_svgs(figure)
    view_box = map(float, ElementTree.fromstring(svg).attrib["viewBox"].split())
    left, top, width, height = (points * figure.dpi / 72 for points in view_box)
    bottom = figure.bbox.height - top - height
    assert bottom < axis_label.y0 < bottom + 12
    assert left < axis_label.x0 and axis_label.x1 < left + width


def test_every_color_of_an_inline_figure_has_a_dark_value():
    figure = toy_figure()
    for color in style.size_colors(ROWS).values():
        figure.axes[0].plot([1, 2], [3, 4], color=color)
    (svg,), _ = inline_svg.to_inline_svgs(figure)
    assert ": #" not in svg
    used = {part[:6] for part in svg.split("var(--c")[1:]}
    assert used <= {light[1:] for light in style.dark_theme_map(ROWS)}


def test_panels_are_elements_of_equal_size_with_their_own_texts():
    figure, panels = style.new_panels("Title", 3)
    for number, axes in enumerate(panels):
        axes.plot([1, 2], [3, 10**number], "o-", gid=f"tip:marker {number}")
        style.panel_title(axes, f"panel {number}", style.LIGHT)
    panels[0].twinx().set_ylabel("second axis")
    style.finish_figure(figure, panels[0], ["Caption."])
    svgs, caption = inline_svg.to_inline_svgs(figure)
    sizes = {tuple(ElementTree.fromstring(svg).attrib["viewBox"].split()[2:]) for svg in svgs}
    assert len(svgs) == 3 and len(sizes) == 1 and caption == "Caption."
    for number, svg in enumerate(svgs):
        others = {0, 1, 2} - {number}
        assert f"panel {number}" in svg and f"<title>marker {number}</title>" in svg
        assert not any(f"panel {other}" in svg for other in others)
        assert ("second axis" in svg) == (number == 0)


def test_quotes_and_line_ends_do_not_remove_a_tooltip():
    for tip in ('a "quoted" name', "a name's mark", "two\nlines", "both \" and '\nin two lines"):
        (svg,), _ = inline_svg.to_inline_svgs(toy_figure(tip=tip))
        root = ElementTree.fromstring(svg)
        titles = [element.text for element in root.iter() if element.tag.endswith("title")]
        assert titles == [tip]
