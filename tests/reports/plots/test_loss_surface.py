"""Figures of size and tokens, from runs with a known L(N, D)."""

import re

import numpy as np
import pytest
from fixtures import figure_layout
from matplotlib.colors import to_hex

from lm.laws.forms import compute_optimal, isoflop, power_laws
from lm.reports.plots import loss_surface, style
from lm.reports.plots.geometry import inline_svg

E, A, ALPHA, B, BETA = 0.9, 30.0, 0.35, 120.0, 0.37


def flops_per_token(n):
    """Return the FLOPs of a size with an output layer of 256 tokens."""
    return 6 * n + 6 * 256 * np.sqrt(n / 24)


def runs() -> list[dict]:
    """Return runs of five sizes at three budgets, without noise."""
    rows = []
    for n in (1e4, 3e4, 1e5, 3e5, 1e6):
        for c in (1e12, 4e12, 1.6e13):
            d = c / flops_per_token(n)
            row = {"name": f"x/{style.format_si(n)}-{c:g}", "status": "done", "eval.loss_se": 0.006}
            row |= {"params.non_embedding": n, "tokens": d, "flops": c}
            rows.append(row | {"eval.loss": E + A * n**-ALPHA + B * d**-BETA})
    return rows


@pytest.fixture(scope="module")
def toy():
    """Return noisy runs, their L(N, D) and their isoFLOP law."""
    rows = runs()
    noisy = [
        row | {"eval.loss": row["eval.loss"] * (1 + 0.003 * noise)}
        for row, noise in zip(rows, np.random.default_rng(0).standard_normal(99), strict=False)
    ]
    return noisy, power_laws.chinchilla(noisy, bootstrap=100), isoflop.isoflop(noisy, bootstrap=100)


def every_figure(toy, theme=style.LIGHT):
    """Return {name: figure} of all figures of size and tokens."""
    rows, joint, isoflop_law = toy
    return {
        "tokens": loss_surface.loss_vs_tokens(rows, joint, theme=theme),
        "frontier": loss_surface.compute_optimal_frontier(rows, {}, joint, theme=theme),
        "contour": loss_surface.loss_contours(rows, joint, theme=theme),
        "isoflop": loss_surface.isoflop_parabolas(rows, isoflop_law, theme=theme),
        "best": loss_surface.optimal_size(rows, isoflop_law, joint, theme=theme),
    }


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_every_figure_states_n_and_has_log_axes(toy, theme):
    for name, figure in every_figure(toy, theme).items():
        axes = figure.axes[0]
        assert re.search(r"n = [1-9]\d* ", figure.get_supxlabel()), name
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log"), name
        assert axes.get_xlabel() and axes.get_ylabel(), name
        assert to_hex(figure.get_facecolor()) == theme["paper"]
        assert theme is style.DARK or not figure_layout.faults(figure), name


def test_every_color_has_a_counterpart_in_the_dark_theme(toy):
    dark_colors = style.dark_theme_map(toy[0])
    for name, figure in every_figure(toy).items():
        used = set(
            re.findall(r"var\(--c([0-9a-f]{6})", "".join(inline_svg.to_inline_svgs(figure)[0]))
        )
        assert {f"#{code}" for code in used} <= set(dark_colors), name


def test_frontier_is_below_every_run():
    exact = power_laws.chinchilla(runs(), bootstrap=0)
    lines = loss_surface.compute_optimal_frontier(runs(), {}, exact).axes[0].get_lines()
    frontier = next(line for line in lines if line.get_label() == "frontier of L(N, D)")
    budgets, losses = (np.asarray(values, float) for values in frontier.get_data())
    for row in runs():
        least_loss = np.interp(row["flops"], budgets, losses)
        assert least_loss <= row["eval.loss"] * 1.001


def test_best_allocation_equals_a_fine_grid_search():
    fit = power_laws.chinchilla(runs(), bootstrap=0)
    n, d = compute_optimal.best_allocation_grid(fit, runs(), [4e12])
    np.testing.assert_allclose(flops_per_token(n) * d, 4e12, rtol=0.02)
    sizes = np.geomspace(1e4, 1e6, 2000)
    losses = E + A * sizes**-ALPHA + B * (4e12 / flops_per_token(sizes)) ** -BETA
    np.testing.assert_allclose(n, sizes[losses.argmin()], rtol=0.1)


def test_used_minima_are_diamonds_and_rejected_ones_crosses(toy):
    rows, _, _ = toy
    without_large = [
        row for row in rows if row["flops"] > 2e12 or row["params.non_embedding"] < 9e4
    ]
    fourth_budget = [
        row | {"flops": 6.4e13, "name": row["name"] + "x", "eval.loss": row["eval.loss"] * 0.93}
        for row in rows
        if row["flops"] == 1.6e13
    ]
    fit = isoflop.isoflop(without_large + fourth_budget, bootstrap=50)
    figure = loss_surface.isoflop_parabolas(without_large + fourth_budget, fit)
    markers = [line.get_marker() for line in figure.axes[0].get_lines()]
    used = [minimum.is_used for minimum in fit.budgets]
    assert markers.count("D") == sum(used)


def test_loss_against_tokens_can_be_drawn_without_a_law(toy):
    for rows in ([], toy[0][:1]):
        figure = loss_surface.loss_vs_tokens(rows)
        figure.draw_without_rendering()
        assert f"n = {len(rows)} runs" in figure.get_supxlabel()
