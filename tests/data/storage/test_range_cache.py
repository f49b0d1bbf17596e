"""The cache is bounded, and never returns other bytes than those of the range."""

import numpy as np

from lm.data.storage import range_cache


def test_cache_returns_the_bytes_of_its_ranges_or_none(tmp_path):
    rng = np.random.default_rng(0)
    content = rng.bytes(2000)
    cache = range_cache.RangeCache(tmp_path, n_bytes=300)
    n_hits = 0
    for _ in range(3000):
        start, size = 7 * int(rng.integers(0, 30)), 13 * int(rng.integers(1, 5))
        key = ("a", start, start + size)
        stored = cache.get(key)
        n_hits += stored is not None
        assert stored in (None, content[start : start + size])
        cache.put(key, content[start : start + size])
        assert cache.get(key) == content[start : start + size]
    assert n_hits
    cache.put(("b", 0, 301), content[:301])
    assert ("b", 0, 301) not in cache
    assert cache._file.seek(0, 2) <= 300 and not list(tmp_path.iterdir())


def test_full_disk_only_costs_the_cached_range(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    cache = range_cache.RangeCache(tmp_path, n_bytes=100)
    monkeypatch.setattr(range_cache.os, "pwrite", fail)
    cache.put(("a", 0, 3), b"abc")
    assert cache.get(("a", 0, 3)) is None


def test_incomplete_write_is_not_a_cached_range(tmp_path, monkeypatch):
    pwrite = range_cache.os.pwrite
    cache = range_cache.RangeCache(tmp_path, n_bytes=100)
    monkeypatch.setattr(
        range_cache.os, "pwrite", lambda file, content, offset: pwrite(file, content[:2], offset)
    )
    cache.put(("a", 0, 3), b"abc")
    assert ("a", 0, 3) not in cache and cache.get(("a", 0, 3)) is None
