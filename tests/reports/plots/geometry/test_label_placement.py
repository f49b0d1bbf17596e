"""Placement of labels beside points, lines and other labels."""

import matplotlib.text
import numpy as np
import pytest
from matplotlib.text import Annotation

from lm.reports.plots import elements, style
from lm.reports.plots.geometry import label_placement


def boxes_of_labels(axes) -> dict:
    """Return {text: box in pixels} of the annotations of a panel."""
    return {t.get_text(): matplotlib.text.Text.get_window_extent(t) for t in axes.texts}


def test_label_covers_no_marker_line_or_label():
    """Fixed offsets of 5 points put each label on its neighbor or on the line."""
    figure, axes = style.new_figure("Title", "x", "y")
    xs, ys = [0.45, 0.5, 0.53, 0.58], [0.5, 0.52, 0.53, 0.56]
    axes.plot(xs, ys, "o-", markersize=7, color="black")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for x, y in zip(xs, ys, strict=True):
        style.annotate(axes, x, y, f"{x:g}", style.LIGHT)
    style.finish_figure(figure, axes, [])
    boxes = list(boxes_of_labels(axes).values())
    assert len(boxes) == 4
    points = axes.transData.transform(np.column_stack([xs, ys]))
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(x, y) for x, y in points)


def test_label_without_a_free_position_is_removed():
    figure, axes = style.new_figure("Title", "x", "y")
    grid = np.linspace(0, 1, 30)
    axes.plot(*map(np.ravel, np.meshgrid(grid, grid)), "o", markersize=7)
    style.annotate(axes, 0.5, 0.5, "hidden", style.LIGHT)
    style.finish_figure(figure, axes, [])
    assert not axes.texts


def test_labels_of_line_ends_are_separated_and_connected():
    figure, axes = style.new_figure("Title", "x", "y")
    axes.set(xscale="log", yscale="log", xlim=(1, 1e4), ylim=(1, 1e4))
    labels = [("a", 100, 50.0), ("b", 100, 50.1), ("c", 100, 5000), ("d", 100, 49.0)]
    elements.label_line_ends(axes, labels, style.LIGHT)
    style.finish_figure(figure, axes, [])
    boxes = boxes_of_labels(axes)
    order = sorted(boxes, key=lambda name: boxes[name].y0)
    assert order == ["d", "a", "b", "c"]
    assert all(boxes[a].y1 <= boxes[b].y0 for a, b in zip(order[:-1], order[1:], strict=True))
    visible = {
        t.get_text(): t.arrow_patch.get_visible()
        for t in axes.texts
        if isinstance(t, Annotation) and t.arrow_patch
    }
    assert visible["d"] and visible["b"] and not visible["c"]


def test_label_of_a_line_end_does_not_cover_the_next_marker():
    figure, axes = style.new_figure("Title", "x", "y")
    axes.plot([0.1, 0.5, 0.54], [0.5, 0.5, 0.5], "o", markersize=7)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    elements.label_line_ends(axes, [("size", 0.5, 0.5)], style.LIGHT)
    style.finish_figure(figure, axes, [])
    (box,) = boxes_of_labels(axes).values()
    assert not box.contains(*axes.transData.transform((0.54, 0.5)))


def test_label_offsets_stay_in_their_range():
    offsets = label_placement.label_offsets([0.0, 1.0, 50.0], 10, low=5, high=100)
    assert offsets == pytest.approx([5, 14, 0], abs=0.1)


def test_labels_of_contours_avoid_points_and_each_other():
    _, axes = style.new_figure("Title", "x", "y")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    ys = np.linspace(0, 1, 101)
    curves = [np.column_stack([np.full(101, x), ys]) for x in (0.4, 0.42)]
    first, second = label_placement.free_positions(axes, curves, [[0.4, 0.2], [0.4, 0.4]])
    assert first[0] == pytest.approx(0.4) and first[1] > 0.8
    assert abs(second[1] - first[1]) > 0.1 and second[1] > 0.45
