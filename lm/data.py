"""Rows of tokens for any step of training, from nothing but the config, the seed and the step.

    text = load(run.data, run.seed)
    text.batch(7)["tokens"]              # int32 [B, T+1]: the rows of step 7; inputs [:, :-1]
    text.rows_of(7)                      # which rows of which source these are, in which epoch

Training row g = step * B + b. A pattern of 4096 rows, repeated, says from which source row g comes;
the row is thus the i-th of its source, and a permutation keyed by (seed, source, epoch) says which
window of the token file the i-th is. B batch, T seq_len; row r is tokens r*T to r*T + T inclusive.
"""

import collections
import concurrent.futures
import functools
import hashlib
import json
from collections.abc import Callable, Generator
from fractions import Fraction
from pathlib import Path

import numpy as np

from lm import config, corpus, tokens

PATTERN = 4096  # rows after which the order of sources repeats: weights are multiples of 1 / 4096
ROUNDS = 8  # of the Feistel network; 4 do for long halves (Luby and Rackoff 1988), ours are short


class Text:
    """The token files of a mixture, open for reading. Every method is a pure function."""

    def __init__(self, data: config.Data, seed: int, manifests: dict[str, corpus.Manifest]):
        self.data, self.seed, self.manifests = data, seed, manifests
        self.tokenizer = tokens.Bytes()
        self.sources = sorted(name for name, weight in data.sources.items() if weight)
        self.weights = quantised({name: data.sources[name] for name in self.sources})
        self._pattern = pattern(list(self.weights.values()))
        one_hot = self._pattern[:, None] == np.arange(len(self.sources))
        self._before = np.cumsum(one_hot, axis=0) - one_hot  # [PATTERN, n_sources]
        self._train = [_windows(manifests[name], "train", data.seq_len) for name in self.sources]
        self._heldout = {n: _windows(m, "heldout", data.seq_len) for n, m in manifests.items()}
        self._block = functools.lru_cache(maxsize=2)(self._rows_of_block)

    @property
    def n_rows(self) -> dict[str, int]:
        """Source -> rows that an epoch of it has."""
        return {name: len(rows) for name, rows in zip(self.sources, self._train, strict=True)}

    @property
    def hash(self) -> str:
        """Over sources, weights and what was prepared from them: equal hashes, equal batches."""
        facts = [(n, w, m.hash, m.tokenizer) for n, w, m in self._facts()]
        return hashlib.sha256(json.dumps([facts, self.data.seq_len]).encode()).hexdigest()

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token of the training mixture stands for, on average."""
        shares = ((w / PATTERN, m) for _, w, m in self._facts())
        return sum(share * m.bytes["train"] / m.tokens["train"] for share, m in shares)

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> dict[str, np.ndarray]:
        """{"tokens": int32 [B, T+1]} of a step; `rows` selects those that this host feeds."""
        source, _, row = (values[rows] for values in self._rows(step))
        batch_BS = np.empty((len(row), self.data.seq_len + 1), np.int32)
        for index, windows in enumerate(self._train):
            mine = np.flatnonzero(source == index)
            if len(mine):
                batch_BS[mine] = windows[row[mine]]
        return {"tokens": batch_BS}

    def rows_of(self, step: int) -> dict[str, np.ndarray]:
        """For audit: source, epoch from 0, and row of the token file, of each row of a step [B]."""
        source, epoch, row = self._rows(step)
        return {"source": np.array(self.sources)[source], "epoch": epoch, "row": row}

    def epochs(self, step: int) -> dict[str, float]:
        """Source -> how often its training rows have been seen once `step` steps are done."""
        blocks, within = divmod(step * self.data.batch_size, PATTERN)
        seen = blocks * np.array(list(self.weights.values())) + self._before[within]
        return {
            n: float(s / len(w)) for n, s, w in zip(self.sources, seen, self._train, strict=True)
        }

    def heldout(self, source: str, n: int) -> np.ndarray:
        """Up to n held-out rows of a source, int32 [n', T+1]: the same for every seed and step."""
        if source not in self._heldout:
            raise ValueError(config.unknown(source, list(self._heldout)))
        windows = self._heldout[source]
        order = permuted(np.arange(min(n, len(windows))), len(windows), ("heldout", source))
        return windows[order].astype(np.int32)

    def _facts(self) -> list[tuple[str, int, corpus.Manifest]]:
        return [(name, weight, self.manifests[name]) for name, weight in self.weights.items()]

    def _rows(self, step: int) -> tuple[np.ndarray, ...]:
        start = step * self.data.batch_size
        stop = start + self.data.batch_size
        parts = []
        for block in range(start // PATTERN, (stop - 1) // PATTERN + 1):
            inside = slice(max(start - block * PATTERN, 0), stop - block * PATTERN)
            parts.append([values[inside] for values in self._block(block)])
        return tuple(np.concatenate(values) for values in zip(*parts, strict=True))

    def _rows_of_block(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, epoch and row [PATTERN] of the rows from block * PATTERN on."""
        epoch, row = np.empty(PATTERN, np.int64), np.empty(PATTERN, np.int64)
        for index, (name, weight) in enumerate(self.weights.items()):
            mine = np.flatnonzero(self._pattern == index)
            n_rows = len(self._train[index])
            epoch[mine], place = np.divmod(block * weight + np.arange(weight), n_rows)
            for e in range(block * weight // n_rows, (block * weight + weight - 1) // n_rows + 1):
                now = epoch[mine] == e
                row[mine[now]] = permuted(place[now], n_rows, (self.seed, name, e))
        return self._pattern, epoch, row


def load(data: config.Data, seed: int, report: corpus.Report | None = None) -> Text:
    """Prepares what data.cache does not hold yet, then opens it.

    A source of weight 0 is there for its held-out rows only. ValueError as of `corpus.prepare`, and
    for fewer tokens than one row, to train on or (unless data.heldout is 0) held out.
    """
    manifests = corpus.prepare(data, report)
    row = f"one row of data.seq_len={data.seq_len} + 1"
    for name, manifest in manifests.items():
        n_train, n_heldout = (manifest.tokens[split] for split in corpus.SPLITS)
        if data.sources[name] and n_train <= data.seq_len:
            raise ValueError(f"{name}: {n_train} training tokens are fewer than {row}: add text")
        if data.heldout and n_heldout <= data.seq_len:
            n = sum(manifest.documents.values())
            raise ValueError(
                f"{name}: data.heldout={data.heldout} of {n} documents keeps {n_heldout} tokens, "
                f"fewer than {row}: raise data.heldout, or add text"
            )
    return Text(data, seed, manifests)


def prefetch(make: Callable, start: int, stop: int, depth: int = 2) -> Generator:
    """Yields make(start) to make(stop - 1), made in order by one thread up to `depth` ahead.

    What `make` raises is raised here, in its turn. Closing the generator ends the thread.
    """
    thread = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
    try:
        ahead = collections.deque(
            thread.submit(make, i) for i in range(start, min(start + depth, stop))
        )
        for step in range(start, stop):
            made = ahead.popleft().result()
            if step + depth < stop:
                ahead.append(thread.submit(make, step + depth))
            yield made
    finally:
        thread.shutdown(cancel_futures=True)


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


def _windows(manifest: corpus.Manifest, split: str, seq_len: int) -> np.ndarray:
    """The rows of a token file, [n_rows, T+1], as a view: nothing is read before a row is."""
    if manifest.tokens[split] <= seq_len:
        return np.zeros((0, seq_len + 1), manifest.dtype)
    file = np.memmap(Path(manifest.folder, f"{split}.bin"), manifest.dtype, "r")
    return np.lib.stride_tricks.sliding_window_view(np.asarray(file), seq_len + 1)[::seq_len]
