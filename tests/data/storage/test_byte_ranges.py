"""Ranges are read at the same time, once each, and errors are raised when they are due."""

import pytest
from fixtures import memory_bucket

from lm.data.storage import byte_ranges, range_cache, remote_path


def test_ranges_are_read_once_and_at_the_same_time(tmp_path, monkeypatch):
    content = bytes(range(256)) * 4
    ranges = [(start, start + 7) for start in range(0, 1000, 10)]
    with memory_bucket.open_memory_bucket() as traffic:
        path = remote_path.RemotePath("memory://bucket/a.bin")
        path.write_bytes(content)
        reader = byte_ranges.RangeReader(range_cache.RangeCache(tmp_path, 10_000))
        reader.read_ahead(path, ranges[:50])
        expected = [content[start:stop] for start, stop in ranges]
        assert reader.read(path, ranges) == reader.read(path, ranges) == expected
        assert (traffic.n_requests, traffic.n_bytes) == (100, 700)
        small = byte_ranges.RangeReader(range_cache.RangeCache(tmp_path, 20))
        assert small.read(path, ranges) == small.read(path, ranges) == expected
        monkeypatch.setattr(remote_path, "N_ATTEMPTS", 1)
        traffic.errors = {"a.bin": RuntimeError("lost")}
        small.read_ahead(path, [(0, 5)])  # raises nothing
        with pytest.raises(OSError, match="lost"):
            small.read(path, [(0, 5)])
        traffic.errors = {}
        assert small.read(path, [(0, 5)]) == [content[:5]]
