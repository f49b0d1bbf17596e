"""Kinds of markers.

    shape, size = marker_shapes.SHAPES["open square"]     # matplotlib's marker, size in points

In figures of laws, a run is "filled" if the fit used it, "open" if not, and a "diamond" if it is
predicted. Other figures explain their markers in the caption.
"""

from typing import Literal

Kind = Literal["filled", "open", "diamond", "square", "open square"]
SHAPES: dict[Kind, tuple[str, float]] = {
    "filled": ("o", 7),
    "open": ("o", 7),
    "diamond": ("D", 6.5),
    "square": ("s", 6.5),
    "open square": ("s", 6.5),
}
