"""Words of a text, hashes of their n-grams, and sorted files of such hashes.

    count_words("two words", limit=50)           # 2
    split_words("日本語 text")                    # ["日", "本", "語", "text"]
    ngram_hashes(text, 13)                       # uint64, one hash per 13 consecutive words

    write_ngram_index(path, (ngram_hashes(text, 13) for text in heldout_texts))
    positions_in_index(ngram_hashes(text, 13), open_ngram_index(path))

Some scripts have no spaces between words: Chinese, Japanese, Thai, Lao, Khmer and Myanmar. In them
each character counts as one word. Hashes are the same in every process and on every machine. An
index is a sorted file of 64-bit hashes that all worker processes map into memory. Its memory use
grows neither with the number of n-grams nor with the number of workers.
"""

import re
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# Letters, marks and digits of scripts without spaces, as ranges of a character class.
UNSPACED_CHARACTERS = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59"  # Thai
    "\u0e81-\u0edf"  # Lao
    "\u1000-\u1049\u1050-\u109d\ua9e0-\ua9fe\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17d3\u17d7\u17dc\u17dd\u17e0-\u17e9"  # Khmer
    "\u3005-\u3007\u3021-\u3029\u3038-\u303b"  # iteration marks and numerals
    "\u3041-\u3096\u3099\u309a\u309d-\u309f"  # Hiragana
    "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Katakana
    "\u3105-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
UNSPACED_PATTERN = re.compile(f"[{UNSPACED_CHARACTERS}]")
WORD_PATTERN = re.compile(r"\w+")
MIXED_WORD_PATTERN = re.compile(rf"[{UNSPACED_CHARACTERS}]|[^\W{UNSPACED_CHARACTERS}]+")
EMPTY_INDEX = np.zeros(0, np.uint64)
N_BUCKETS = 256  # buckets by the first byte of the hash; one bucket is sorted in memory at a time
HASHES_IN_MEMORY = 1 << 22  # hashes in memory before they are written to the buckets


def split_words(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits, or single unspaced characters."""
    return _word_pattern(text).findall(text)


def word_spans(text: str) -> np.ndarray:
    """Return the first character of each word and the one after its last, int64 [n_words, 2]."""
    spans = [match.span() for match in _word_pattern(text).finditer(text)]
    return np.array(spans, np.int64).reshape(-1, 2)


def _word_pattern(text: str) -> re.Pattern[str]:
    # The pattern of mixed scripts is several times slower, and most texts do not need it.
    return MIXED_WORD_PATTERN if UNSPACED_PATTERN.search(text) else WORD_PATTERN


def count_words(text: str, limit: int) -> int:
    """Return the number of words between spaces, or a number of at least `limit`.

    A word that contains unspaced characters counts as the words of `split_words`.
    """
    if not UNSPACED_PATTERN.search(text):
        return len(text.split(None, limit))
    n_words = 0
    for word in text.split():
        n_words += len(split_words(word)) if UNSPACED_PATTERN.search(word) else 1
        if n_words >= limit:
            break
    return n_words


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """Return the hashes of all sequences of n consecutive words, uint64 [n_words - n + 1].

    Case and the characters between words do not matter. The result is empty for fewer than n words.
    """
    words = " ".join(split_words(text)).lower().encode().split()
    if len(words) < n:
        return EMPTY_INDEX
    word_hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    hashes = np.zeros(len(words) - n + 1, np.uint64)
    for i in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + word_hashes[i : len(hashes) + i]
    hashes ^= hashes >> np.uint64(32)
    return hashes * np.uint64(0xD6E8FEB86659FD93)


def write_ngram_index(path: Path, hashes: Iterable[np.ndarray]) -> None:
    """Write the distinct hashes of all arrays to a file as sorted uint64.

    hashes: uint64 arrays [n], which may repeat values. Raises OSError if a write fails.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".runs-") as folder:
        pending, n_pending = [], 0
        for array in hashes:
            pending.append(array)
            n_pending += len(array)
            if n_pending >= HASHES_IN_MEMORY:
                _append_to_buckets(np.concatenate(pending), Path(folder))
                pending, n_pending = [], 0
        _append_to_buckets(np.concatenate([EMPTY_INDEX, *pending]), Path(folder))
        complete = Path(folder, "sorted")
        with open(complete, "wb") as file:
            for bucket in range(N_BUCKETS):
                part = Path(folder, str(bucket))
                if part.exists():
                    np.unique(np.fromfile(part, np.uint64)).tofile(file)
        complete.rename(path)


def _append_to_buckets(hashes: np.ndarray, folder: Path) -> None:
    """Append the distinct hashes to one file per first byte, named by the byte."""
    hashes = np.unique(hashes)
    edges = np.searchsorted(hashes >> np.uint64(56), np.arange(N_BUCKETS + 1))
    for bucket, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        if stop > start:
            with open(folder / str(bucket), "ab") as file:
                hashes[start:stop].tofile(file)


def open_ngram_index(path: Path | None) -> np.ndarray:
    """Map a file of write_ngram_index into memory and return its hashes, uint64 [n], sorted.

    path: None gives an empty index.
    """
    return np.memmap(path, np.uint64, "r") if path and path.stat().st_size else EMPTY_INDEX


def positions_in_index(hashes: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the position of each hash in a sorted index, int64 [n], or -1 if it is absent."""
    if not len(index):
        return np.full(len(hashes), -1)
    positions = np.minimum(np.searchsorted(index, hashes), len(index) - 1)
    return np.where(index[positions] == hashes, positions, -1)
