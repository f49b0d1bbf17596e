"""Batches are prepared in order by one thread, and rows of remote files are read ahead."""

import itertools
import threading
import time

import numpy as np
import pytest

from lm.data import prefetch


def test_prefetch_yields_every_step_in_order():
    assert list(prefetch.prefetch_batches(lambda step: step * step, 3, 8)) == [9, 16, 25, 36, 49]
    assert list(prefetch.prefetch_batches(abs, 3, 3)) == []
    assert list(prefetch.prefetch_batches(abs, 0, 2, depth=9)) == [0, 1]


def test_prefetch_computes_no_more_than_depth_values_ahead():
    computed = []
    batches = prefetch.prefetch_batches(computed.append, 0, 100, depth=3)
    next(batches)
    deadline = time.monotonic() + 5
    while len(computed) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert computed == [0, 1, 2, 3]
    batches.close()


def test_prefetch_raises_at_the_failing_step():
    batches = prefetch.prefetch_batches(lambda step: 1 // (2 - step), 0, 5)
    assert list(itertools.islice(batches, 2)) == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(batches)


def test_prefetch_thread_ends_with_its_generator():
    batches = prefetch.prefetch_batches(abs, 0, 1000)
    next(batches)
    assert any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


class RemoteRows:
    """Rows of a remote file, which record the requested numbers."""

    is_remote = True

    def __init__(self):
        self.requested = []

    def read_ahead(self, rows):
        self.requested += rows.tolist()


def test_rows_of_larger_batches_are_read_ahead_once():
    """Steps 0 to 19 have two rows, later ones four."""

    def rows_of_step(step):
        n_rows = 2 if step < 20 else 4
        row = np.full(n_rows, step)
        return np.zeros(n_rows, int), row, row

    file = RemoteRows()
    ahead = prefetch.RowReadAhead([file], rows_of_step, seq_len=8)
    for step in range(30):
        ahead.start(step, slice(0, len(rows_of_step(step)[0])))
        assert step in file.requested
    expected = [step for step in range(max(file.requested) + 1) for _ in rows_of_step(step)[1]]
    assert file.requested == expected and max(file.requested) > 30
