"""Order of training rows: mixture of sources, keyed permutation of rows, random cuts.

    source_pattern((3, 1))                              # source of each of 4 rows, for two sources
    keyed_permutation(np.arange(5), 1000, (0, "docs"))  # first 5 of 1000 rows, in a random order
    RowOrder(weights, seed, ...).rows(0, 16)            # source, epoch and row of the rows 0-15

Every result depends on the arguments alone, for any position. No state is saved.
"""

import functools
import hashlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

PATTERN = 4096  # The order of sources repeats after 4096 rows: weights are multiples of 1 / 4096.
# Rounds of the Feistel network. 4 are sufficient for long halves (Luby and Rackoff 1988), but not
# for short halves.
ROUNDS = 8


class RowOrder:
    """Source, epoch and row of each training row of a mixture.

    Training row g belongs to the source at position g of a repeated pattern of PATTERN rows. It is
    the i-th row of that source. A permutation keyed by (seed, source, epoch) maps i to a row of the
    token file.
    """

    def __init__(
        self,
        weights: dict[str, int],
        seed: int,
        n_rows: Sequence[int],
        n_rows_in_file: Sequence[int],
    ):
        """Compute the pattern of sources.

        weights: rows per PATTERN rows, see quantize_weights. n_rows: rows per epoch of each source.
        n_rows_in_file: rows of each token file. If an epoch has fewer rows than the file, its rows
        are a random subset, the same for every seed. A smaller subset is part of a larger subset.
        """
        self.weights, self.seed, self.sources = weights, seed, list(weights)
        self.n_rows, self._n_rows_in_file = list(n_rows), list(n_rows_in_file)
        self._pattern = source_pattern(tuple(self.weights.values()))
        one_hot = self._pattern[:, None] == np.arange(len(self.sources))
        # Rows of each source before each position of the pattern, [PATTERN, n_sources].
        self._n_earlier = np.cumsum(one_hot, axis=0) - one_hot
        self._block = functools.lru_cache(maxsize=2)(self._compute_block)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return source index, epoch and row of the training rows start to stop - 1, each [B]."""
        parts = []
        for block in range(start // PATTERN, (stop - 1) // PATTERN + 1):
            in_range = slice(max(start - block * PATTERN, 0), stop - block * PATTERN)
            parts.append([values[in_range] for values in self._block(block)])
        source, epoch, row = (np.concatenate(values) for values in zip(*parts, strict=True))
        return source, epoch, row

    def epochs(self, n_training_rows: int) -> dict[str, float]:
        """Return {source: epochs over it in the first n_training_rows training rows}."""
        n_blocks, n_in_block = divmod(n_training_rows, PATTERN)
        counts = n_blocks * np.array(list(self.weights.values())) + self._n_earlier[n_in_block]
        return {
            name: float(count / n)
            for name, count, n in zip(self.sources, counts, self.n_rows, strict=True)
        }

    def _compute_block(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return source, epoch and row of the training rows of a block, each [PATTERN].

        Block number b consists of the training rows b * PATTERN to (b + 1) * PATTERN - 1.
        """
        epoch, row = np.empty(PATTERN, np.int64), np.empty(PATTERN, np.int64)
        for source, (name, weight) in enumerate(self.weights.items()):
            in_source = np.flatnonzero(self._pattern == source)
            n_rows, first = self.n_rows[source], block * weight
            epoch[in_source], index = np.divmod(first + np.arange(weight), n_rows)
            for e in range(first // n_rows, (first + weight - 1) // n_rows + 1):
                in_epoch = epoch[in_source] == e
                row[in_source[in_epoch]] = keyed_permutation(
                    index[in_epoch], n_rows, (self.seed, name, e)
                )
            n_in_file = self._n_rows_in_file[source]
            if n_rows < n_in_file:
                row[in_source] = keyed_permutation(row[in_source], n_in_file, ("unique", name))
        return self._pattern, epoch, row


def quantize_weights(weights: dict[str, float]) -> dict[str, int]:
    """Return {source: rows per PATTERN rows}, by the largest remainder method.

    Raises ValueError for a weight that is too small for one row.
    """
    total = sum(Fraction(w) for w in weights.values())
    exact = {name: PATTERN * Fraction(w) / total for name, w in weights.items()}
    rows = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(rows, key=lambda name: rows[name] - exact[name])
    for name in by_remainder[: PATTERN - sum(rows.values())]:
        rows[name] += 1
    for name, count in rows.items():
        if not count:
            raise ValueError(
                f"data.sources[{name!r}]={weights[name]} is too small a fraction of all weights,"
                f" {float(exact[name] / PATTERN):.1e}: raise that to 1/{PATTERN}, or set weight 0"
            )
    return rows


@functools.lru_cache(maxsize=8)
def source_pattern(counts: tuple[int, ...]) -> np.ndarray:
    """Return the index of the source of each row, [sum(counts)], read-only.

    counts: rows of each source. In every prefix, the rows of a source deviate from its fraction by
    less than one row.

    The method is chairman assignment (Tijdeman 1980, Discrete Mathematics 32). A source of n is a
    candidate if it lacks at least 1 / (2n - 2) of a row. The next row goes to the candidate that
    would lack a full row first.
    """
    rates = np.array(counts) / sum(counts)
    slack = 1 / max(2 * len(counts) - 2, 1)
    n_assigned = np.zeros(len(counts), np.int64)
    sources = np.empty(sum(counts), np.int64)
    for i in range(len(sources)):
        lacking = rates * (i + 1) - n_assigned
        # 1e-9 is larger than the rounding error and smaller than any real difference.
        deadline = np.where(lacking >= slack - 1e-9, (1 - slack - lacking) / rates, np.inf)
        sources[i] = deadline.argmin()
        n_assigned[sources[i]] += 1
    sources.flags.writeable = False  # later calls return the same array
    return sources


def keyed_permutation(positions: np.ndarray, n: int, key: tuple) -> np.ndarray:
    """Return the images of `positions` under a random permutation of range(n), int64.

    key: determines the permutation by its repr. Different keys give unrelated permutations. The
    permutation is not stored. It is a Feistel network over the fewest bits that represent n - 1. It
    is applied again while the value is not below n (Black and Rogaway 2002, Ciphers with Arbitrary
    Finite Domains).
    """
    bits = max(2, (n - 1).bit_length())
    n_high, n_low = bits // 2, bits - bits // 2
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8")
    result = np.array(positions, np.uint64)
    pending = np.arange(len(result))  # indices of values that may not be below n
    while len(pending):
        result[pending] = _feistel(result[pending], n_high, n_low, keys)
        pending = pending[result[pending] >= n]
    return result.astype(np.int64)


def _feistel(x: np.ndarray, n_high: int, n_low: int, keys: np.ndarray) -> np.ndarray:
    """Permute numbers of n_high + n_low bits. Each round mixes one half into the other."""
    high, low = x >> np.uint64(n_low), x & np.uint64((1 << n_low) - 1)
    for i in range(0, len(keys), 2):
        high = high ^ (_mix_bits(low ^ keys[i]) >> np.uint64(64 - n_high))
        low = low ^ (_mix_bits(high ^ keys[i + 1]) >> np.uint64(64 - n_low))
    return high << np.uint64(n_low) | low


def _mix_bits(x: np.ndarray) -> np.ndarray:
    """Mix 64 bits: each result bit depends on all (SplitMix64 finalizer, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_cuts(
    source: np.ndarray, epoch: np.ndarray, row: np.ndarray, n: int, seed: int
) -> np.ndarray:
    """Return a random position in range(n) for each row, int64 [B].

    source, epoch, row: integers [B], as returned by RowOrder.rows. They and the seed determine the
    position.
    """
    digest = hashlib.blake2b(repr((seed, "cut")).encode(), digest_size=24).digest()
    mixed = np.zeros(len(row), np.uint64)
    for value, key in zip((source, epoch, row), np.frombuffer(digest, "<u8"), strict=True):
        mixed = _mix_bits(mixed ^ _mix_bits(np.asarray(value, np.uint64) + key))
    return (mixed % np.uint64(n)).astype(np.int64)
