"""What a corpus leaves out: poor text, and near copies.

    complaint(text, run.data)              # "short", "symbols", "repeats", or "" for text to keep
    len(seen & {*bands(text)})             # above 0: nearly the same was there before

All hashes are the same in every process and on every machine.
"""

import numpy as np

from lm import config, overlap

SHINGLE = 5  # words
# 16 * 8 hashes: copies alike in 80% of their shingles are found in 95% of cases.
BANDS, ROWS = 16, 8
CHUNK = 4096  # shingles that are hashed at once, so that memory stays small
_KEYS = np.random.default_rng(0).integers(0, 2**64, (2, BANDS * ROWS), np.uint64) | np.uint64(1)


def complaint(text: str, data: config.Data) -> str:
    """The first filter that a text fails, or "" (after J. Rae et al. 2021, appendix A1.1).

    short    fewer than data.min_words words
    symbols  fewer letters than data.min_letters, as a share of characters that are no white space
    repeats  more lines that came before than data.max_repeats, as a share of those not empty
    """
    if data.min_words and len(text.split(None, data.min_words)) < data.min_words:
        return "short"
    if data.min_letters:
        seen = "".join(text.split())
        if sum(map(str.isalpha, seen)) < data.min_letters * len(seen):
            return "symbols"
    if data.max_repeats < 1:
        lines = [line for raw in text.split("\n") if (line := raw.strip())]
        if len(lines) - len(set(lines)) > data.max_repeats * len(lines):
            return "repeats"
    return ""


def bands(text: str) -> list[int]:
    """BANDS whole numbers of 63 bits; texts nearly alike share at least one, others hardly ever.

    MinHash (A. Broder 1997) of the shingles of 5 words: of two texts whose shingles overlap by a
    share J (Jaccard), one of the numbers agrees with probability 1 - (1 - J^8)^16: 0.06 at half,
    0.95 at 0.8, 1 - 1e-4 at 0.9.
    """
    shingles = overlap.runs(text, SHINGLE)
    if not len(shingles):
        shingles = overlap.runs(text, max(len(overlap.WORD.findall(text)), 1))
    low = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), CHUNK):
        mixed = shingles[start : start + CHUNK, None] * _KEYS[0] + _KEYS[1]
        mixed ^= mixed >> np.uint64(29)
        np.minimum(low, (mixed * np.uint64(0xBF58476D1CE4E5B9)).min(axis=0), out=low)
    of_rows = (low * _KEYS[0]).reshape(BANDS, ROWS).sum(axis=1) + _KEYS[1, :BANDS]
    return (of_rows >> np.uint64(1)).tolist()
