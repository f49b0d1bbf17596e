"""Colors, number formats and metadata of figures."""

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


def test_finished_figure_has_no_layout_engine():
    assert toy_figure().get_layout_engine() is None


def test_size_has_one_color_in_all_figures_of_a_sweep():
    theme = style.theme_of_sweep(ROWS)
    large = style.size_colors(ROWS[1:2], theme)["a/large"]
    assert large == style.size_colors(ROWS)["a/large"] in style.dark_theme_map(ROWS)
    assert style.size_colors(ROWS[1:2])["a/large"] != large


def test_legend_is_between_title_and_panel():
    figure, axes = style.new_figure("Title", "x", "y")
    axes.plot([1, 2], [3, 4], label="L(N) = 1 + 2 N^-0.25")
    style.finish_figure(figure, axes, ["One line."])
    legend = axes.get_legend().get_window_extent()
    title = next(text for text in figure.findobj() if getattr(text, "_text", "") == "Title")
    assert axes.bbox.y1 <= legend.y0 and legend.y1 <= title.get_window_extent().y0


def test_powers_of_ten_are_rounded_to_the_wanted_digits():
    assert style.power_of_ten(2.79e13, 2) == "2.8×10^13"
    assert style.power_of_ten(1.96e12, 1) == "2×10^12"


def test_truncated_names_of_tasks_differ():
    """Tasks of one file differ in their last option."""
    tasks = [f"test_unseen_task?template=chat&only={name}" for name in ("nli", "fact_checking")]
    names = {style.truncate_label(task, 32) for task in tasks}
    assert len(names) == 2 and max(map(len, names)) == 32
    assert style.truncate_label("x" * 24) == "x" * 24
