"""Quality filters and MinHash of near-duplicates.

    complaint(text, run.data)              # "short", "symbols", "repeats", or "" for good text
    set(bands(a)) & set(bands(b))          # not empty if the texts are nearly equal

All hashes are the same in every process and on every machine.
"""

import numpy as np

from lm import config, overlap

SHINGLE = 5  # words per shingle
# 16 bands of 8 hashes detect 95% of the pairs whose shingles have a Jaccard similarity of 0.8.
BANDS, ROWS = 16, 8
CHUNK = 4096  # shingles hashed at once, to bound memory
_KEYS = np.random.default_rng(0).integers(0, 2**64, (2, BANDS * ROWS), np.uint64) | np.uint64(1)


def complaint(text: str, data: config.Data) -> str:
    """Return the first filter that rejects the text, or "" (after J. Rae et al. 2021, A1.1).

    short    fewer than data.min_words words
    symbols  the fraction of letters among non-space characters is below data.min_letters
    repeats  the fraction of non-empty lines that repeat an earlier line is above data.max_repeats
    """
    if data.min_words and len(text.split(None, data.min_words)) < data.min_words:
        return "short"
    if data.min_letters:
        characters = "".join(text.split())
        if sum(map(str.isalpha, characters)) < data.min_letters * len(characters):
            return "symbols"
    if data.max_repeats < 1:
        lines = [line for raw in text.split("\n") if (line := raw.strip())]
        if len(lines) - len(set(lines)) > data.max_repeats * len(lines):
            return "repeats"
    return ""


def bands(text: str) -> list[int]:
    """Return BANDS integers of 63 bits. Near-duplicates share at least one, other texts rarely do.

    MinHash (A. Broder 1997) of shingles of 5 words. Two texts whose shingles have Jaccard
    similarity J share an integer with probability 1 - (1 - J^8)^16. This is 0.06 at J = 0.5, 0.95
    at 0.8 and 1 - 1e-4 at 0.9.
    """
    shingles = overlap.runs(text, SHINGLE)
    if not len(shingles):
        shingles = overlap.runs(text, max(len(overlap.WORD.findall(text)), 1))
    minima = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), CHUNK):
        mixed = shingles[start : start + CHUNK, None] * _KEYS[0] + _KEYS[1]
        mixed ^= mixed >> np.uint64(29)
        np.minimum(minima, (mixed * np.uint64(0xBF58476D1CE4E5B9)).min(axis=0), out=minima)
    band_hashes = (minima * _KEYS[0]).reshape(BANDS, ROWS).sum(axis=1) + _KEYS[1, :BANDS]
    return (band_hashes >> np.uint64(1)).tolist()
