"""Tick labels of small panels do not overlap."""

import itertools

import pytest

from lm.reports.plots import elements, style
from lm.reports.plots.geometry import tick_labels


@pytest.mark.parametrize("sizes", [(31e3, 63e3), (1e4, 9e4), (1e4, 4e6), (5e4, 5.2e4), (1e3, 1e9)])
def test_labels_of_small_panels_do_not_overlap(sizes):
    figure, panels = style.new_panels("Title", 5)
    for axes in panels:
        axes.plot(sizes, (0, 1), "o")
        elements.set_scales(axes, "params.non_embedding", "tasks")
        tick_labels.thin_ticks(axes)
    style.finish_figure(figure, panels[0], [])
    labels = [label for label in panels[0].get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) >= 2
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
