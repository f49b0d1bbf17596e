"""Prepare batches before they are needed, and read the rows of remote files ahead of their use."""

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Sequence

import numpy as np

from lm.data import packing
from lm.data.prepared import token_file

# The number of steps ahead grows, so that the first steps do not wait for the rows of later ones.
FIRST_STEPS_AHEAD, MAX_STEPS_AHEAD = 8, 64
MAX_BYTES_AHEAD = 1 << 26  # of the rows that are read ahead
TOKEN_BYTES = 4  # largest width of a token


def prefetch_batches(make: Callable, start: int, stop: int, depth: int = 2) -> Generator:
    """Yield make(start) to make(stop - 1), computed by a thread up to `depth` values ahead.

    An exception of `make` is raised when its value is due. Closing the generator ends the thread.
    """
    thread = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
    try:
        pending = collections.deque(
            thread.submit(make, i) for i in range(start, min(start + depth, stop))
        )
        for step in range(start, stop):
            value = pending.popleft().result()
            if step + depth < stop:
                pending.append(thread.submit(make, step + depth))
            yield value
    finally:
        thread.shutdown(cancel_futures=True)


class RowReadAhead:
    """Read-ahead of the rows of later steps. Batches do not depend on it.

    A request to a bucket takes tens of milliseconds, so the rows of many steps are requested at
    the same time. Local files need no read-ahead.
    """

    def __init__(
        self,
        files: Sequence[token_file.TokenRows | packing.PackedDocuments],
        rows_of_step: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]],
        seq_len: int,
    ):
        """Store the files of the sources, and the function of the rows of a step.

        rows_of_step: returns source index, epoch and row of each row of a step, each [B].
        """
        self._files = {i: rows for i, rows in enumerate(files) if rows.is_remote}
        self._rows_of_step, self._row_bytes = rows_of_step, TOKEN_BYTES * (seq_len + 1)
        self._steps, self._max_steps = range(0), FIRST_STEPS_AHEAD  # requested steps, and its limit

    def start(self, step: int, selected: slice | np.ndarray) -> None:
        """Request the rows of a step and of the steps after it.

        selected: indices of the rows of this process within the batch.
        """
        if not self._files:
            return
        n_rows, n_selected = self._n_rows(step, selected)
        n_steps = MAX_BYTES_AHEAD // max(n_selected * self._row_bytes, 1)
        stop = step + 1 + min(max(n_steps, 1), self._max_steps)
        self._max_steps = min(self._max_steps + 2, MAX_STEPS_AHEAD)
        first = self._steps.stop if step in self._steps else step
        self._steps = range(step, first)
        for later in range(first, stop):
            source, _, row = self._rows_of_step(later)
            if len(row) != n_rows:  # a larger batch has other rows of this process
                return
            self._steps = range(step, later + 1)
            for index, rows in self._files.items():
                rows.read_ahead(row[selected][source[selected] == index])

    def _n_rows(self, step: int, selected: slice | np.ndarray) -> tuple[int, int]:
        """Return the numbers of all rows and of the selected rows of a step."""
        row = self._rows_of_step(step)[2]
        return len(row), len(row[selected])
