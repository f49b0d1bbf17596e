"""Colors, number formats and metadata of figures."""

import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lm.reports.plots import style

ROWS = [
    {"name": "a/small", "params.non_embedding": 10},
    {"name": "a/large", "params.non_embedding": 1000},
    {"name": "b/small", "params.non_embedding": 10},
    {"name": "a/unknown"},
]


def toy_figure(label="a name", tip="a tip"):
    """Return a figure with two markers that have a tooltip, a label and a caption."""
    figure, axes = style.new_figure("Title", "eval.loss", "nats")
    axes.plot([1, 2], [3, 4], "o", color=style.LIGHT["accent"], gid=f"tip:{tip}")
    style.annotate(axes, 1, 3, label, style.LIGHT)
    return style.finish_figure(figure, axes, [f"n = 1 run of {label}."])


def lightness(color) -> float:
    return sum(w * c for w, c in zip((0.299, 0.587, 0.114), to_rgb(color), strict=True))


def test_counts_have_three_digits_and_a_suffix():
    numbers = (0, 7, 999, 999.6, 12_345, 1e6, 2.5e9, 1e12, 3e17)
    texts = ["0", "7", "999", "1K", "12.3K", "1M", "2.5B", "1T", "3×10^17"]
    assert [style.format_si(number) for number in numbers] == texts


def test_numbers_have_one_format():
    powers = [style.power_of_ten(n) for n in (1e15, 2.5e15, 1e-3, 3.0)]
    assert powers == ["10^15", "2.5×10^15", "10^-3", "3"]
    parameters = [style.format_parameter(v) for v in (0.14391, 25.0, 2551, 1e-5, 0.0)]
    assert parameters == ["0.144", "25.0", "2.55×10^3", "10^-5", "0.00"]
    assert style.math_text("L = 1 + 2 N^-0.25") == "L = 1 + 2 N$^{-0.25}$"
    assert style.math_text("$x^ p^k") == r"\$x^ p^k"


def test_categories_and_budgets_have_no_color_of_a_size():
    sizes = set(style.size_colors(ROWS).values())
    for theme in (style.LIGHT, style.DARK):
        colors = {*style.categorical_colors(theme, 7), *style.ordered_colors(theme, 7)}
        assert len(colors) == 14 and not colors & {*sizes, theme["accent"], theme["soft"]}


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_larger_sizes_have_lighter_colors(theme):
    colors = style.size_colors(ROWS, theme)
    assert lightness(colors["a/small"]) < lightness(colors["a/large"])
    assert colors["a/small"] == colors["b/small"]
    assert colors["a/unknown"] == theme["muted"]


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_text_and_markers_contrast_with_the_paper(theme):
    paper = lightness(theme["paper"])
    assert min(abs(lightness(theme[name]) - paper) for name in ("ink", "muted", "accent")) > 0.35
    assert min(abs(lightness(c) - paper) for c in style.size_colors(ROWS, theme).values()) > 0.2


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_saved_figure_has_metadata_and_reproducible_bytes(tmp_path, kind):
    meta = {"runs": {"a/<b>&\"c'": "0123"}, "fit": None}
    first = style.save_figure(toy_figure(), tmp_path / "x" / "first", meta)
    second = style.save_figure(toy_figure(), tmp_path / "second", meta)
    files = [next(p for p in paths if p.suffix == f".{kind}") for paths in (first, second)]
    assert style.read_figure_metadata(files[0]) == meta
    assert files[0].read_bytes() == files[1].read_bytes()


def test_image_without_metadata_is_named(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "foreign.png")
    (tmp_path / "foreign.svg").write_text("<svg></svg>")
    for name in ("foreign.png", "foreign.svg"):
        with pytest.raises(ValueError, match=f"{name} contains no metadata"):
            style.read_figure_metadata(tmp_path / name)


def test_data_hash_ignores_the_order_of_keys():
    assert style.hash_data({"a": 1, "b": 2}) == style.hash_data({"b": 2, "a": 1})
    assert style.hash_data({"a": 1}) != style.hash_data({"a": 1.0000001})


def test_inline_figure_is_valid_xml_and_escapes_text():
    hostile = "<script>alert('1')</script> $x^ & \"--> ]]>"
    svg, caption = style.to_inline_svg(toy_figure(hostile, hostile))
    root = ElementTree.fromstring(svg)
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert hostile in texts and titles == [hostile]
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert caption == f"n = 1 run of {hostile}." and caption not in texts


def test_inline_figure_is_cropped_above_its_caption():
    figure = toy_figure()
    axis_label = figure.axes[0].xaxis.label.get_window_extent()
    svg, _ = style.to_inline_svg(figure)
    view_box = map(float, ElementTree.fromstring(svg).attrib["viewBox"].split())
    left, top, width, height = (points * figure.dpi / 72 for points in view_box)
    bottom = figure.bbox.height - top - height
    assert bottom < axis_label.y0 < bottom + 12
    assert left < axis_label.x0 and axis_label.x1 < left + width


def test_finished_figure_has_no_layout_engine():
    assert toy_figure().get_layout_engine() is None


def test_every_color_of_an_inline_figure_has_a_dark_value():
    figure = toy_figure()
    for color in style.size_colors(ROWS).values():
        figure.axes[0].plot([1, 2], [3, 4], color=color)
    svg, _ = style.to_inline_svg(figure)
    assert ": #" not in svg
    used = {part[:6] for part in svg.split("var(--c")[1:]}
    assert used <= {light[1:] for light in style.dark_theme_map(ROWS)}


def test_overlapping_labels_are_separated():
    _, axes = style.new_figure("Title", "x", "y")
    axes.set(xscale="log", yscale="log", xlim=(1, 1e4), ylim=(1, 1e4))
    points = [(100, 50), (100, 50.1), (100, 5000), (1, 50)]
    offsets = style.label_offsets(axes, points, height=10, width=20)
    assert offsets[1] - offsets[0] == pytest.approx(10, abs=0.2)
    assert offsets[2:] == [0, 0]


def test_later_label_replaces_an_overlapping_label():
    figure, axes = style.new_figure("Title", "x", "y")
    for label, x in (("small", 0.5), ("large", 0.501), ("far", 0.1)):
        style.annotate(axes, x, 0.5, label, style.LIGHT)
    style.finish_figure(figure, axes, [])
    assert {text.get_text() for text in axes.texts} == {"large", "far"}
