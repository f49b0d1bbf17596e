"""Bounded cache of byte ranges in a temporary file on the local disk.

    cache = RangeCache(Path("data"), n_bytes=1 << 30)
    cache.put(("gs://bucket/a.bin", 10, 20), b"0123456789")
    cache.get(("gs://bucket/a.bin", 10, 20))           # None after its eviction

The file has no name, so a killed process leaves nothing behind.
"""

import collections
import os
import tempfile
import threading
from pathlib import Path

Key = tuple[str, int, int]  # address, first byte, byte after the last


class RangeCache:
    """Ring buffer of byte ranges: new ranges replace the oldest ones. Threads may share it."""

    def __init__(self, folder: Path, n_bytes: int):
        """Create the file. It grows to at most n_bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self.n_bytes = tempfile.TemporaryFile(dir=folder), n_bytes
        self._offsets: collections.OrderedDict[Key, int] = collections.OrderedDict()
        self._next, self._lock = 0, threading.Lock()

    def __contains__(self, key: Key) -> bool:
        return key in self._offsets

    def get(self, key: Key) -> bytes | None:
        """Return the bytes of a range, None if the cache does not contain it."""
        with self._lock:
            offset = self._offsets.get(key)
            if offset is None:
                return None
            return os.pread(self._file.fileno(), key[2] - key[1], offset)

    def put(self, key: Key, content: bytes) -> None:
        """Store the bytes of a range, unless they exceed the cache or the disk is full."""
        with self._lock:
            if key in self._offsets or len(content) > self.n_bytes:
                return
            if self._next + len(content) > self.n_bytes:
                self._evict(self._next, self.n_bytes)
                self._next = 0
            self._evict(self._next, self._next + len(content))
            try:
                n_written = os.pwrite(self._file.fileno(), content, self._next)
            except OSError:
                n_written = 0
            if n_written < len(content):  # a full disk: the range is read from its source again
                return
            self._offsets[key] = self._next
            self._next += len(content)

    def _evict(self, start: int, stop: int) -> None:
        """Remove the oldest ranges while they begin at the bytes start to stop - 1.

        start: position of the next write, behind which the oldest ranges follow in order.
        """
        while self._offsets and start <= next(iter(self._offsets.values())) < stop:
            self._offsets.popitem(last=False)
