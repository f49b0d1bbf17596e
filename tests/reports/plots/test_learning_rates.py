"""Figures of hyperparameter transfer, from synthetic rows."""

import numpy as np
import pytest
from fixtures import made_up_sweep
from matplotlib.colors import to_hex
from reports import test_lr_analysis

from lm.reports import figures, lr_analysis, summary
from lm.reports.plots import learning_rates, style

ROWS = [*test_lr_analysis.sweep(), *test_lr_analysis.sweep(0.0, "mup", widths=(32, 64))]


def activation_rows(width_exponent=1.0) -> list[dict]:
    """Return rows of measure_activations whose change grows with width under "standard" only."""
    return [
        {"rule": rule, "width": width, "depth": depth, "seed": seed, "step": step}
        | {
            "part": part,
            "rms": 1.0,
            "change": step * width ** (width_exponent * (rule == "standard")),
        }
        for rule in ("standard", "mup")
        for width, depth in ((16, 2), (32, 2), (16, 4))
        for seed in (0, 1)
        for step in range(3)
        for part in ("mlp", "logits")
    ]


def label_text(axes) -> str:
    return " ".join(artist.get_text() for artist in axes.texts)


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_learning_rate_panels_mark_the_optimum_and_its_interval(theme):
    figure = learning_rates.loss_vs_learning_rate(ROWS, lr_analysis.WIDTH, theme)
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes] == ["standard", "mup"]
    assert "n = 60 runs" in figure.get_supxlabel()  # runs of the base shape count once
    assert to_hex(figure.get_facecolor()) == theme["paper"]
    for axes, slope in zip(figure.axes, (-1, 0), strict=True):
        bars = [line for line in axes.get_lines() if line.get_color() == theme["ink"]]
        intervals = [line.get_xdata() for line in bars if len(line.get_xdata()) == 2]
        known_rates = [2 ** (-5 + slope * i) for i in range(3)]
        assert all(lo < rate < hi for (lo, hi), rate in zip(intervals, known_rates, strict=True))
        assert "width 64" in label_text(axes)


def test_optimum_at_the_edge_is_not_marked():
    rows = [row for row in ROWS if row[lr_analysis.RATE] <= 2.0**-5]
    figure = learning_rates.loss_vs_learning_rate(rows, lr_analysis.WIDTH)
    tips = [str(artist.get_gid()) for artist in figure.axes[1].get_lines()]
    assert not [tip for tip in tips if "best" in tip]
    assert "exponent not determined" in figure.axes[1].get_title(loc="left")


def test_coordinate_check_labels_lines_with_exponents():
    figure = learning_rates.activation_changes(activation_rows())
    standard, mup, standard_by_depth, _ = figure.axes
    assert "mlp +1.00" in label_text(standard) and "mlp +0.00" in label_text(mup)
    assert "mlp +0.00" in label_text(standard_by_depth)
    assert standard_by_depth.get_xlabel() == "Depth, layers"
    assert "n = 2 seeds" in figure.get_supxlabel() and "in 2 steps" in figure.get_supxlabel()
    lines = [line for line in standard.get_lines() if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(lines[0].get_ydata(), [2 * 16, 2 * 32])


def test_rate_figures_need_several_rates_at_several_shapes(tmp_path):
    available = figures._learning_rate_figures(summary.load_summary(made_up_sweep.rates(tmp_path)))
    assert list(available) == ["rates_by_width", "rates_by_depth"]
    assert len(available["rates_by_depth"].draw().axes) == 2
    sweep = summary.load_summary(made_up_sweep.sweep(tmp_path))
    assert not figures._learning_rate_figures(sweep)


def test_rate_figures_of_no_runs_can_be_drawn():
    for figure in (
        learning_rates.activation_changes([]),
        learning_rates.loss_vs_learning_rate([], lr_analysis.WIDTH),
    ):
        figure.draw_without_rendering()
        assert "n = 0" in figure.get_supxlabel()
