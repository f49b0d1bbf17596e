"""Byte ranges of remote files, read by many threads at once and ahead of their use.

    reader = shared_reader(Path("data"))
    reader.read_ahead(path, [(0, 100), (900, 1000)])        # returns at once
    reader.read(path, [(900, 1000)])                        # [bytes]

A request of a few kB takes as long as the latency of the storage, so the number of requests at a
time determines the speed: N_THREADS / latency ranges per second, 2,560 at 50 ms.
"""

import collections
import concurrent.futures
import functools
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from lm.data.storage import range_cache, remote_path

N_THREADS = 128  # requests at a time
CACHE_BYTES = 1 << 32  # largest size of the cache on the local disk
FREE_FRACTION = 0.5  # of the free disk space that the cache may fill
N_STREAMED = 16  # requests at a time of a sequential reader
Range = tuple[int, int]  # first byte, byte after the last


class RangeReader:
    """Reader of byte ranges with a cache. Threads may share it."""

    def __init__(self, cache: range_cache.RangeCache):
        self._cache = cache
        self._threads = concurrent.futures.ThreadPoolExecutor(N_THREADS, "byte-ranges")
        self._pending: dict[range_cache.Key, concurrent.futures.Future[bytes]] = {}
        self._lock = threading.Lock()

    def read(self, path: remote_path.RemotePath, ranges: Iterable[Range]) -> list[bytes]:
        """Return the bytes of each range. Raises OSError if a range cannot be read."""
        keys = [(str(path), start, stop) for start, stop in ranges]
        futures = self._submit(path, keys)
        contents = []
        for key in keys:
            content = futures[key].result() if key in futures else self._cache.get(key)
            # Newer ranges may have replaced a range since the call of _submit.
            contents.append(content if content is not None else path.read_range(key[1], key[2]))
        return contents

    def read_ahead(self, path: remote_path.RemotePath, ranges: Iterable[Range]) -> None:
        """Start to read the ranges that are not in the cache. `read` raises their errors."""
        self._submit(path, [(str(path), start, stop) for start, stop in ranges])

    def _submit(
        self, path: remote_path.RemotePath, keys: list[range_cache.Key]
    ) -> dict[range_cache.Key, concurrent.futures.Future[bytes]]:
        """Return the requests of all ranges that are not in the cache, after starting them."""
        futures = {}
        with self._lock:
            for key in keys:
                if key not in self._cache:
                    if key not in self._pending:
                        self._pending[key] = self._threads.submit(self._load, path, key)
                    futures[key] = self._pending[key]
        return futures

    def _load(self, path: remote_path.RemotePath, key: range_cache.Key) -> bytes:
        """Read a range and store it in the cache."""
        try:
            content = path.read_range(key[1], key[2])
            self._cache.put(key, content)
            return content
        finally:
            with self._lock:
                self._pending.pop(key, None)


@functools.cache
def shared_reader(folder: Path) -> RangeReader:
    """Return the reader of this process whose cache is in a local folder."""
    folder.mkdir(parents=True, exist_ok=True)
    n_bytes = int(min(CACHE_BYTES, FREE_FRACTION * shutil.disk_usage(folder).free))
    return RangeReader(range_cache.RangeCache(folder, n_bytes))


def stream_chunks(
    path: remote_path.AnyPath, n_bytes: int, start: int = 0, stop: int | None = None
) -> Iterator[bytes]:
    """Yield the bytes start to stop - 1 of a file in chunks of n_bytes; the last may be shorter.

    stop: None is the end of the file. N_STREAMED chunks of a remote file are read at a time.
    """
    stop = path.stat().st_size if stop is None else stop
    if not isinstance(path, remote_path.RemotePath):
        with open(path, "rb") as file:
            file.seek(start)
            while start < stop and (chunk := file.read(min(n_bytes, stop - start))):
                start += len(chunk)
                yield chunk
        return
    with concurrent.futures.ThreadPoolExecutor(N_STREAMED, "stream") as threads:
        pending: collections.deque[concurrent.futures.Future[bytes]] = collections.deque()
        try:
            for first in range(start, stop, n_bytes):
                pending.append(threads.submit(path.read_range, first, min(first + n_bytes, stop)))
                if len(pending) == N_STREAMED:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
