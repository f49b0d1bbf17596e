"""Error bars of several points in their colors, drawn with two artists.

error_bars.draw_error_bars(axes, [(1e5, 3.1, 0.02, "#c9430b"), (1e6, 2.5, 0.03, "#1d2733")])
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

CAP_WIDTH = 5  # in points
ErrorBar = tuple[float, float, float, str]  # x, y, error of y, color


def draw_error_bars(axes: Axes, bars: Sequence[ErrorBar]) -> None:
    """Draw vertical error bars with caps, as `Axes.errorbar` does with three artists per color."""
    if not bars:
        return
    xs, ys, errors = np.array([bar[:3] for bar in bars], float).T
    ends, colors = (ys - errors, ys + errors), [bar[3] for bar in bars]
    axes.vlines(xs, ends[0], ends[1], colors=colors, linewidth=1.2, zorder=4)
    axes.scatter(
        np.tile(xs, 2),
        np.concatenate(ends),
        c=colors * 2,
        marker="_",
        s=CAP_WIDTH**2,
        linewidths=1.0,
        zorder=4,
    )
