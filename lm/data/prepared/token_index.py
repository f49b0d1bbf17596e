"""Indices of token files: positions, slices and arrays, over one or several segments."""

from collections.abc import Iterator

import numpy as np

Index = int | slice | np.ndarray


def as_positions(index: Index, n_items: int) -> tuple[np.ndarray, bool]:
    """Return the items that an index selects, int64 [n], and True if it is a single number."""
    if isinstance(index, slice):
        return np.arange(*index.indices(n_items)), False
    numbers = np.atleast_1d(np.asarray(index))
    if numbers.dtype == bool:
        numbers = np.flatnonzero(numbers)
    return np.where(numbers < 0, numbers + n_items, numbers).astype(np.int64), np.ndim(index) == 0


def by_segment(
    starts: np.ndarray, positions: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (segment, mask of the positions in it, their positions relative to its start).

    starts: position of the first item of each segment, and the number of all items.
    """
    segment_of = np.searchsorted(starts, positions, "right") - 1
    for number in np.unique(segment_of):
        is_inside = segment_of == number
        yield int(number), is_inside, positions[is_inside] - starts[number]


def first_and_last(index: Index, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last item of each range that an index selects, int64 [n]."""
    if isinstance(index, slice):
        items = range(n_items)[index]
        ends = sorted((items[0], items[-1])) if items else []
        return np.array(ends[:1], np.int64), np.array(ends[1:], np.int64)
    numbers, _ = as_positions(index, n_items)
    return numbers, numbers
