"""N-gram hashes of words, to remove training text that shares them with held-out text.

    write("data/runs.u64", (runs(text, 13) for text in heldout_texts))
    blocked = open_sorted("data/runs.u64")
    is_shared(text, 13, blocked)

A hash has 64 bits. The hashes are sorted in a file that all worker processes map into memory.
Memory use grows neither with the number of n-grams nor with the number of workers.
"""

import re
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

WORD = re.compile(r"\w+")
NONE = np.zeros(0, np.uint64)
BUCKETS = 256  # buckets by the first byte of the hash; one bucket is sorted in memory at a time
HELD = 1 << 22  # hashes in memory before they are written to the buckets


def runs(text: str, n: int) -> np.ndarray:
    """Return the hashes of all n consecutive words, uint64 [n_words - n + 1].

    Case and the characters between words do not matter. Empty for fewer than n words.
    """
    words = " ".join(WORD.findall(text.lower())).encode().split()
    word_hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    hashes = np.zeros(max(len(words) - n + 1, 0), np.uint64)
    for i in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + word_hashes[i : len(hashes) + i]
    hashes ^= hashes >> np.uint64(32)
    return hashes * np.uint64(0xD6E8FEB86659FD93)


def write(path: Path, hashes: Iterable[np.ndarray]) -> None:
    """Write the distinct hashes to a file, sorted, as uint64. Raises OSError if a write fails."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".runs-") as folder:
        pending, n_pending = [], 0
        for array in hashes:
            pending.append(array)
            n_pending += len(array)
            if n_pending >= HELD:
                _append_to_buckets(np.concatenate(pending), Path(folder))
                pending, n_pending = [], 0
        _append_to_buckets(np.concatenate([NONE, *pending]), Path(folder))
        complete = Path(folder, "sorted")
        with open(complete, "wb") as file:
            for bucket in range(BUCKETS):
                part = Path(folder, str(bucket))
                if part.exists():
                    np.unique(np.fromfile(part, np.uint64)).tofile(file)
        complete.rename(path)


def open_sorted(path: Path) -> np.ndarray:
    """Map the file of `write` into memory."""
    return np.memmap(path, np.uint64, "r") if path.stat().st_size else NONE


def is_shared(text: str, n: int, blocked: np.ndarray) -> bool:
    """Return True if n consecutive words of the text have a hash in the sorted array `blocked`."""
    hashes = runs(text, n)
    index = np.searchsorted(blocked, hashes)
    return bool((blocked[np.minimum(index, len(blocked) - 1)] == hashes).any())


def _append_to_buckets(hashes: np.ndarray, folder: Path) -> None:
    hashes = np.unique(hashes)
    edges = np.searchsorted(hashes >> np.uint64(56), np.arange(BUCKETS + 1))
    for bucket, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        if stop > start:
            with open(folder / str(bucket), "ab") as file:
                hashes[start:stop].tofile(file)
