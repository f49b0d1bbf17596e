"""The order of training rows: which source comes next, which of its rows, where a row is cut.

    pattern([3, 1])                              which of two sources each of 4 rows comes from
    permuted(np.arange(5), 1000, (0, "docs"))    the first five of 1000 rows in a keyed order

Everything is computed from its arguments alone, for any place at once: there is no state to save.
"""

import hashlib
from fractions import Fraction

import numpy as np

PATTERN = 4096  # rows after which the order of sources repeats: weights are multiples of 1 / 4096
ROUNDS = 8  # of the Feistel network; 4 do for long halves (Luby and Rackoff 1988), ours are short


def quantised(weights: dict[str, float]) -> dict[str, int]:
    """Rows of PATTERN for each weight, by largest remainder. ValueError for one without any."""
    total = sum(Fraction(w) for w in weights.values())
    exact = {name: PATTERN * Fraction(w) / total for name, w in weights.items()}
    rows = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(rows, key=lambda name: rows[name] - exact[name])
    for name in by_remainder[: PATTERN - sum(rows.values())]:
        rows[name] += 1
    for name, count in rows.items():
        if not count:
            raise ValueError(
                f"data.sources[{name!r}]={weights[name]} is too small a share of all weights, "
                f"{float(exact[name] / PATTERN):.1e}: raise it to 1/{PATTERN}, or set it to 0"
            )
    return rows


def pattern(counts: list[int]) -> np.ndarray:
    """Source of each row [sum(counts)]; any prefix, repeated or not, holds the shares to a row.

    The chairman assignment of R. Tijdeman (1980), Discrete Mathematics 32: of the sources that are
    owed at least 1 / (2n - 2) of a row, take the one that would soonest be owed too much.
    """
    rates = np.array(counts) / sum(counts)
    slack = 1 / max(2 * len(counts) - 2, 1)
    given = np.zeros(len(counts), np.int64)
    chosen = np.empty(sum(counts), np.int64)
    for i in range(len(chosen)):
        owed = rates * (i + 1) - given
        # 1e-9 is above the rounding error and below any real difference.
        deadline = np.where(owed >= slack - 1e-9, (1 - slack - owed) / rates, np.inf)
        chosen[i] = deadline.argmin()
        given[chosen[i]] += 1
    return chosen


def permuted(places: np.ndarray, n: int, key: tuple) -> np.ndarray:
    """Where a permutation of range(n) sends `places`, int64, without holding the permutation.

    A Feistel network over the fewest bits that hold n, walked along its cycle until below n
    (J. Black and P. Rogaway 2002, Ciphers with Arbitrary Finite Domains). `key` is anything with a
    repr: other keys give unrelated permutations.
    """
    bits = max(2, (n - 1).bit_length())
    left, right = bits // 2, bits - bits // 2
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8")
    result = np.array(places, np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        result[outside] = _feistel(result[outside], left, right, keys)
        outside = outside[result[outside] >= n]
    return result.astype(np.int64)


def _feistel(x: np.ndarray, left: int, right: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of numbers of left + right bits: a round mixes one half into the other."""
    high, low = x >> np.uint64(right), x & np.uint64((1 << right) - 1)
    for i in range(0, len(keys), 2):
        high = high ^ (_mixed(low ^ keys[i]) >> np.uint64(64 - left))
        low = low ^ (_mixed(high ^ keys[i + 1]) >> np.uint64(64 - right))
    return high << np.uint64(right) | low


def _mixed(x: np.ndarray) -> np.ndarray:
    """Every bit depends on all of x (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def cuts(source, epoch, row, n: int, seed: int) -> np.ndarray:
    """A random place in range(n) for each row [B], which a row keeps for an epoch; int64."""
    digest = hashlib.blake2b(repr((seed, "cut")).encode(), digest_size=24).digest()
    mixed = np.zeros(len(row), np.uint64)
    for value, key in zip((source, epoch, row), np.frombuffer(digest, "<u8"), strict=True):
        mixed = _mixed(mixed ^ _mixed(np.asarray(value, np.uint64) + key))
    return (mixed % np.uint64(n)).astype(np.int64)
