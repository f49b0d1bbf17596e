"""Tick labels of small panels with a logarithmic x axis."""

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

MAX_TICKS = 4  # labels that do not overlap in a small panel


def thin_ticks(axes: Axes) -> None:
    """Label powers of ten, or up to MAX_TICKS round values of a smaller range of x."""
    low, high = sorted(axes.get_xlim())
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    candidates = [np.outer(decades, factors).ravel() for factors in ((1,), (1, 3), (1, 2, 5))]
    values = np.zeros(0)
    for ticks in (*candidates, np.asarray(ticker.MaxNLocator(3).tick_values(low, high))):
        values = np.sort(ticks[(ticks >= low) & (ticks <= high)])
        if len(values) > 1:
            break
    step = -(-len(values) // MAX_TICKS) or 1
    axes.xaxis.set_major_locator(ticker.FixedLocator(values[::step].tolist()))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
