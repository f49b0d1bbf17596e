"""Error bars of several points in one drawing."""

import numpy as np
from matplotlib.colors import to_hex

from lm.reports.plots import style
from lm.reports.plots.markers import error_bars


def test_bars_of_all_points_are_two_artists_in_their_colors():
    _, axes = style.new_figure("Title", "x", "y")
    error_bars.draw_error_bars(axes, [(1, 3, 0.5, "#c9430b"), (2, 4, 0.25, "#1d2733")])
    lines, caps = axes.collections
    np.testing.assert_allclose(np.array(lines.get_segments())[:, :, 1], [[2.5, 3.5], [3.75, 4.25]])
    assert sorted(np.asarray(caps.get_offsets())[:, 1]) == [2.5, 3.5, 3.75, 4.25]
    assert [to_hex(color) for color in lines.get_colors()] == ["#c9430b", "#1d2733"]
    low, high = axes.get_ylim()
    assert low < 2.5 and high > 4.25


def test_no_bars_add_no_artist():
    _, axes = style.new_figure("Title", "x", "y")
    error_bars.draw_error_bars(axes, [])
    assert not axes.collections
