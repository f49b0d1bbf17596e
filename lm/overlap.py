"""Runs of words that training text must not share with held-out or protected text.

    write("data/runs.u64", (runs(text, 13) for text in guarded))
    guarded = open_sorted("data/runs.u64")
    is_shared(text, 13, guarded)

A run is a hash of 64 bits. They lie sorted in a file, which every worker process maps: memory
grows neither with the number of runs nor with that of workers.
"""

import re
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

WORD = re.compile(r"\w+")
NONE = np.zeros(0, np.uint64)
BUCKETS = 256  # by the first byte: each is sorted in memory by itself
HELD = 1 << 22  # runs that are in memory before they are dealt to their buckets


def runs(text: str, n: int) -> np.ndarray:
    """Hashes of all n words in a row, whatever their case and what stands between; uint64 [words].

    Empty for fewer than n words.
    """
    words = " ".join(WORD.findall(text.lower())).encode().split()
    hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    found = np.zeros(max(len(words) - n + 1, 0), np.uint64)
    for i in range(n):
        found = found * np.uint64(0x9E3779B97F4A7C15) + hashes[i : len(found) + i]
    found ^= found >> np.uint64(32)
    return found * np.uint64(0xD6E8FEB86659FD93)


def write(path: Path, found: Iterable[np.ndarray]) -> None:
    """The different runs among these, sorted, as uint64. OSError if it cannot be written."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".runs-") as folder:
        held, n_held = [], 0
        for some in found:
            held.append(some)
            n_held += len(some)
            if n_held >= HELD:
                _deal(np.concatenate(held), Path(folder))
                held, n_held = [], 0
        _deal(np.concatenate([NONE, *held]), Path(folder))
        whole = Path(folder, "sorted")
        with open(whole, "wb") as file:
            for bucket in range(BUCKETS):
                part = Path(folder, str(bucket))
                if part.exists():
                    np.unique(np.fromfile(part, np.uint64)).tofile(file)
        whole.rename(path)


def open_sorted(path: Path) -> np.ndarray:
    """What `write` wrote, mapped."""
    return np.memmap(path, np.uint64, "r") if path.stat().st_size else NONE


def is_shared(text: str, n: int, guarded: np.ndarray) -> bool:
    """Whether a text has a run of n words that is among the sorted hashes."""
    mine = runs(text, n)
    place = np.searchsorted(guarded, mine)
    return bool((guarded[np.minimum(place, len(guarded) - 1)] == mine).any())


def _deal(found: np.ndarray, folder: Path) -> None:
    found = np.unique(found)
    ends = np.searchsorted(found >> np.uint64(56), np.arange(BUCKETS + 1))
    for bucket, (start, stop) in enumerate(zip(ends, ends[1:], strict=False)):
        if stop > start:
            with open(folder / str(bucket), "ab") as file:
                found[start:stop].tofile(file)
