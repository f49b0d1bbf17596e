"""Row selection, smoothing and standard errors of plot elements."""

import math

import numpy as np

from lm.reports.plots import elements, style
from lm.runs import run_selection, task_results


def test_finished_with_skips_incomplete_runs_and_sorts():
    rows = [
        {"name": "c", "status": "done", "x": 3, "y": 1.0},
        {"name": "a", "status": "done", "x": 1, "y": 3.0},
        {"name": "unfinished", "status": "running", "x": 2, "y": 2.0},
        {"name": "nan", "status": "done", "x": 2, "y": math.nan},
        {"name": "text", "status": "done", "x": 2, "y": "nan"},
        {"name": "empty", "status": "done", "x": 2},
    ]
    assert [row["name"] for row in run_selection.finished_with(rows, "x", "y")] == ["a", "c"]


def test_smoothing_preserves_a_power_law_and_reduces_noise():
    xs = np.geomspace(1e3, 1e7, 4000)
    noise = 0.05 * np.random.default_rng(0).standard_normal(len(xs))
    metrics = [{"tokens": x, "loss": 9 * x**-0.1 + e} for x, e in zip(xs, noise, strict=True)]
    mean_xs, mean_losses = elements.smooth_curve(metrics, n_bins=40)
    assert len(mean_xs) == 40
    np.testing.assert_allclose(mean_losses, 9 * mean_xs**-0.1, atol=0.03)


def test_smoothing_skips_non_finite_values():
    finite = [{"tokens": 10.0**i, "loss": 3.0} for i in range(1, 5)]
    invalid = [{"tokens": 100.0, "loss": "nan"}, {"tokens": 200.0, "loss": math.inf}, {"tokens": 0}]
    np.testing.assert_allclose(
        elements.smooth_curve(finite + invalid), elements.smooth_curve(finite)
    )
    assert len(elements.smooth_curve(invalid)[0]) == 0


def test_standard_error_is_read_from_the_matching_column():
    row = {"eval.loss_se": 0.1, "eval.loss_se.code": 0.2, "eval.loss_se.a.b": 0.3}
    columns = ("eval.loss", "eval.loss.code", "eval.loss.a.b", "eval.completion")
    assert [task_results.standard_error(row, column) for column in columns] == [0.1, 0.2, 0.3, 0.0]


def test_source_columns_exclude_standard_errors():
    row = {"eval.loss": 1, "eval.loss_se": 1, "eval.loss.docs": 1, "eval.loss_se.docs": 1}
    assert elements.source_columns([row, {"eval.loss.code": 1}]) == [
        "eval.loss.code",
        "eval.loss.docs",
    ]


def test_many_markers_are_drawn_per_color_at_their_points():
    """A few markers have tooltips. Many have none, and the same positions and errors."""
    points = [
        elements.Point(1.0 + i, 2.0 + i, 0.1, ("#000000", "#ff0000")[i % 2], f"run {i}")
        for i in range(elements.MAX_TOOLTIPS + 1)
    ]
    _, axes = style.new_figure("Loss", "x", "y")
    elements.draw_points(axes, points[:-1], style.LIGHT)
    assert sum(bool(line.get_gid()) for line in axes.lines) == elements.MAX_TOOLTIPS
    _, axes = style.new_figure("Loss", "x", "y")
    elements.draw_points(axes, points, style.LIGHT)
    markers = [line for line in axes.lines if line.get_marker() == "o"]
    positions = {(x, y) for line in markers for x, y in line.get_xydata()}
    assert positions == {(p.x, p.y) for p in points} and len(markers) == 2
    assert {line.get_markerfacecolor() for line in markers} == {"#000000", "#ff0000"}
    assert sum(len(bars.get_segments()) for bars in axes.collections) == len(points)
    assert {line.get_marker() for line in axes.lines} == {"o"}  # no caps


def test_text_names_the_omitted_runs():
    assert elements.describe_shown([{}] * 3, 3) == "3 runs"
    assert elements.describe_shown([{}] * 60, 1000) == "60 runs, the largest of 1000"


def test_size_label_is_a_name_with_a_unit_that_agrees_with_n():
    names = {9_800: "10K", 1_450_000: "1.5M", 300: "0", 400: "2024", 5_000: "10K", 700: "1.2.3K"}
    rows = [{"name": f"s/{name}", "params.non_embedding": n} for n, name in names.items()]
    labels = elements.nominal_sizes(rows)
    assert list(labels.values()) == ["10K", "1.5M", "300", "400", "5K", "700"]
