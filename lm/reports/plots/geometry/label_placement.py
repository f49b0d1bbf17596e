"""Positions of labels that cover no marker, no line and no other label.

    axes.annotate("60K", (6e4, 2.1), xytext=(5, 5), textcoords="offset points")
    label_placement.place_labels(axes)                # moves the annotation to a free position

Coordinates are pixels of the figure, except where another unit is named. The axes must have their
final limits and size. The letters BX are a list of areas (x0, y0, x1, y1), and P2 a list of points.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text

STEP = 4.0  # pixels between the points that represent a line
THICK_LINE = 4.0  # width in points from which a line is a bar
GAP = 5.0  # points between a data point and its label
DISTANCES = (1.0, 1.8, 2.8, 4.0)  # multiples of GAP at which positions are tried
MIN_LEADER = 4.0  # points from which a moved label is connected with its point
# Horizontal and vertical position of a label relative to its point: -1 left or below, 1 right or
# above, 0 centered.
DIRECTIONS = ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 0), (-1, 0), (0, 1), (0, -1))
# Costs of a position. A label with a cost of BLOCKED or more is removed.
BLOCKED, LINE_POINT, DISTANCE = 100.0, 0.6, 1.0


def place_labels(axes: Axes) -> None:
    """Move the annotations of a panel to free positions, and remove those that have none.

    Annotations with an arrow are labels of line ends. They move vertically, and the arrow is shown
    if the label is not beside its point. A label of a line end that covers a marker moves like the
    other labels. The label that was added last is placed first.
    """
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    if not labels:
        return
    line_ends = [label for label in labels if label.arrow_patch is not None]
    _separate_line_ends(axes, line_ends)
    markers_BX = np.array(_marker_areas(axes)).reshape(-1, 4)
    fixed = [label for label in line_ends if not _covers(_text_box(label), markers_BX).any()]
    areas_BX = [*markers_BX, *map(_text_box, fixed)]
    line_points_P2 = _line_points(axes)
    for label in reversed([label for label in labels if label not in fixed]):
        if label.arrow_patch is not None:
            label.arrow_patch.set_visible(False)
        box = _place_label(axes, label, np.array(areas_BX).reshape(-1, 4), line_points_P2)
        if box is None:
            label.remove()
        else:
            areas_BX.append(box)


def free_positions(axes: Axes, curves: Sequence[np.ndarray], points_P2, margin=20.0) -> np.ndarray:
    """Return a position on each curve, as data points [curves, 2], that is far from all points.

    curves: data points [n, 2] of each curve. points_P2: data points to avoid. margin: distance from
    the frame of the panel. The positions also avoid each other. Curves outside the frame have none.
    """
    transform = axes.transData
    avoided_P2 = transform.transform(np.asarray(points_P2, float).reshape(-1, 2))
    x0, y0, x1, y1 = axes.bbox.extents
    positions = []
    for curve in curves:
        curve_P2 = transform.transform(curve)
        x, y = curve_P2.T
        is_inside = (x > x0 + margin) & (x < x1 - margin) & (y > y0 + margin) & (y < y1 - margin)
        curve_P2 = curve_P2[is_inside]
        if len(curve_P2):
            distances = np.linalg.norm(curve_P2[:, None] - avoided_P2[None], axis=-1)
            best = curve_P2[distances.min(1, initial=np.inf).argmax()]
            positions.append(best)
            avoided_P2 = np.vstack([avoided_P2, best])
    return transform.inverted().transform(np.array(positions).reshape(-1, 2))


def label_offsets(ys: Sequence[float], height: float, low: float, high: float) -> list[float]:
    """Return vertical offsets that separate the labels at positions ys by their height.

    low, high: range of the centers of the labels. Labels stay in the order of their positions.
    """
    order = np.argsort(ys, kind="stable")
    placed = np.array(ys, float)[order]
    for _ in range(200):
        overlaps = height - np.diff(placed)
        if not (overlaps > 1e-3).any():
            break
        shifts = np.maximum(overlaps, 0) / 2
        placed[:-1] -= shifts
        placed[1:] += shifts
    # Push the labels into the range, first from its lower end, then from its upper end.
    steps = height * np.arange(len(placed))
    placed = np.maximum.accumulate(np.maximum(placed, low) - steps) + steps
    placed = np.minimum.accumulate((np.minimum(placed, high) + steps[::-1])[::-1])[::-1]
    placed -= steps[::-1]
    offsets = np.empty(len(placed))
    offsets[order] = placed
    return [float(offset) for offset in offsets - np.array(ys, float)]


def _separate_line_ends(axes: Axes, labels: Sequence[Annotation]) -> None:
    """Move labels of line ends vertically until none overlap, per group of equal x."""
    points_per_pixel = 72 / axes.figure.dpi
    columns: dict[float, list[Annotation]] = {}
    widths = [_text_box(label)[2] - _text_box(label)[0] for label in labels]
    for label in sorted(labels, key=lambda label: axes.transData.transform(label.xy)[0]):
        x = axes.transData.transform(label.xy)[0]
        near = [start for start in columns if x - start < max(widths)]
        columns.setdefault(near[-1] if near else x, []).append(label)
    for column in columns.values():
        ys = [axes.transData.transform(label.xy)[1] for label in column]
        height = max(box[3] - box[1] for box in map(_text_box, column)) + 1
        low, high = axes.bbox.y0 + height / 2, axes.bbox.y1 - height / 2
        for label, offset in zip(column, label_offsets(ys, height, low, high), strict=True):
            dx, _ = label.xyann
            label.set_verticalalignment("center")
            label.xyann = (dx, points_per_pixel * offset)
            if label.arrow_patch is not None:
                label.arrow_patch.set_visible(abs(points_per_pixel * offset) > MIN_LEADER)


def _place_label(axes: Axes, label: Annotation, areas_BX: np.ndarray, line_points_P2):
    """Move a label to the position of the least cost. Return its box, None if all are blocked."""
    scale = axes.figure.dpi / 72
    anchor = axes.transData.transform(label.xy)
    box = _text_box(label)
    size = box[2:] - box[:2]
    own_corner = box[:2]
    frame = axes.bbox.extents
    candidates = [(0.0, own_corner)]
    for distance in DISTANCES:
        for order, direction in enumerate(DIRECTIONS):
            shift = GAP * scale * distance * np.array(direction, float)
            if all(direction):
                shift *= 0.7
            corner = anchor + shift + (np.array(direction) - 1) / 2 * size
            candidates.append((DISTANCE * distance + 0.05 * order, corner))
    costs = [
        cost + _overlap_cost(np.hstack([corner, corner + size]), areas_BX, line_points_P2, frame)
        for cost, corner in candidates
    ]
    best = int(np.argmin(costs))
    if costs[best] >= BLOCKED:
        return None
    corner = candidates[best][1]
    dx, dy = label.xyann
    moved = (corner - own_corner) / scale
    label.xyann = (dx + float(moved[0]), dy + float(moved[1]))
    return np.hstack([corner, corner + size])


def _overlap_cost(box, areas_BX: np.ndarray, line_points_P2: np.ndarray, frame) -> float:
    """Return the cost of a label at a box: covered markers and labels, points of lines, frame."""
    x0, y0, x1, y1 = box
    covers = _covers(box, areas_BX)
    x, y = line_points_P2.T
    n_points = ((x > x0) & (x < x1) & (y > y0) & (y < y1)).sum()
    is_outside = x0 < frame[0] or y0 < frame[1] or x1 > frame[2] or y1 > frame[3]
    return BLOCKED * (covers.sum() + is_outside) + min(LINE_POINT * n_points, BLOCKED / 2)


def _covers(box, areas_BX: np.ndarray) -> np.ndarray:
    """Return which of the areas a box overlaps, bool [BX]."""
    x0, y0, x1, y1 = box
    covers = (areas_BX[:, 0] < x1) & (areas_BX[:, 2] > x0)
    return covers & (areas_BX[:, 1] < y1) & (areas_BX[:, 3] > y0)


def _text_box(label: Text) -> np.ndarray:
    """Return the box of the text of a label, without its arrow."""
    return np.array(Text.get_window_extent(label).padded(0.5).extents)


def _marker_areas(axes: Axes) -> list[np.ndarray]:
    """Return the areas of all markers of a panel, and of lines that are as thick as bars."""
    scale = axes.figure.dpi / 72
    areas = []
    for line in axes.lines:
        if line.get_marker() not in (None, "None", "", " "):
            radius = scale * (line.get_markersize() / 2 + 0.5)
            areas += [np.hstack([p - radius, p + radius]) for p in _line_pixels(line)]
        elif line.get_linewidth() > THICK_LINE:
            points, radius = _line_pixels(line), scale * line.get_linewidth() / 2
            if len(points):
                areas.append(np.hstack([points.min(0) - radius, points.max(0) + radius]))
    return areas


def _line_points(axes: Axes) -> np.ndarray:
    """Return points [P, 2] on all lines and error bars of a panel, STEP pixels apart."""
    paths = [
        _line_pixels(line)
        for line in axes.lines
        if line.get_linestyle() not in (None, "None", "", " ")
    ]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            transform = collection.get_transform()
            paths += [transform.transform(segment) for segment in collection.get_segments()]
    starts_P2, ends_P2 = (
        np.vstack([np.zeros((0, 2)), *(path[part] for path in paths)])
        for part in (slice(-1), slice(1, None))
    )
    return _divide_segments(starts_P2, ends_P2, axes.bbox.extents)


def _divide_segments(starts_P2: np.ndarray, ends_P2: np.ndarray, frame) -> np.ndarray:
    """Return points [P, 2] on segments inside the frame, at most STEP apart, without the ends."""
    low, high = np.array(frame[:2]) - STEP, np.array(frame[2:]) + STEP
    starts_P2, ends_P2 = np.clip(starts_P2, low, high), np.clip(ends_P2, low, high)
    n_P = (np.linalg.norm(ends_P2 - starts_P2, axis=1) / STEP).astype(int) + 1
    index_P = np.arange(n_P.sum()) - np.repeat(n_P.cumsum() - n_P, n_P)
    fractions_P = index_P * np.repeat(1 / n_P, n_P)
    steps_P2 = np.repeat(ends_P2 - starts_P2, n_P, axis=0)
    return np.repeat(starts_P2, n_P, axis=0) + fractions_P[:, None] * steps_P2


def _line_pixels(line: Line2D) -> np.ndarray:
    """Return the finite points of a line in pixels, [n, 2]."""
    points = line.get_transform().transform(np.asarray(line.get_xydata(), float))
    return points[np.isfinite(points).all(1)]
