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
from pathlib import Path

import numpy as np

from lm import chat, config, corpus, fields, languages, order, sources, tokens, whole


class Text:
    """The token files of a mixture, open for reading. Every method is a pure function."""

    def __init__(self, data: config.Data, seed: int, manifests: dict[str, corpus.Manifest]):
        self.data, self.seed, self.manifests = data, seed, manifests
        self.tokenizer = tokens.load(next(iter(manifests.values())).folder)
        self.sources = sorted(name for name, weight in data.sources.items() if weight)
        self.weights = order.quantised({name: data.sources[name] for name in self.sources})
        self._pattern = order.pattern(list(self.weights.values()))
        one_hot = self._pattern[:, None] == np.arange(len(self.sources))
        self._before = np.cumsum(one_hot, axis=0) - one_hot  # [PATTERN, n_sources]
        self._train: list = [self._open(name, "train") for name in self.sources]
        self._n_rows = self._rows_to_see()
        self._heldout = {name: self._open(name, "heldout") for name in manifests}
        self._block = functools.lru_cache(maxsize=2)(self._rows_of_block)

    @property
    def shares(self) -> dict[str, float]:
        """Source -> share of the training rows."""
        return {name: weight / order.PATTERN for name, weight in self.weights.items()}

    @property
    def n_rows(self) -> dict[str, int]:
        """Source -> rows that an epoch of it has."""
        return dict(zip(self.sources, self._n_rows, strict=True))

    @property
    def unique_tokens(self) -> int:
        """Training tokens that an epoch of all sources has, those left by data.unique_tokens."""
        return sum(self._n_rows) * self.data.seq_len

    @property
    def hash(self) -> str:
        """Over sources, weights and what was prepared from them: equal hashes, equal batches."""
        facts = [(n, w, m.hash, m.tokenizer) for n, w, m in self._facts()]
        knobs = fields.changed_for_hash(self.data, "batch")
        facts = [facts, self.data.seq_len, *([knobs] if knobs else [])]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token of the training mixture stands for, on average."""
        return sum(
            share * self.manifests[name].bytes["train"] / self.manifests[name].tokens["train"]
            for name, share in self.shares.items()
        )

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> dict[str, np.ndarray]:
        """{"tokens": int32 [B, T+1]} of a step; `rows` selects those that this host feeds.

        With data.across=False, and in whole rows, also {"segments": int32 [B, T]}, the number of
        each input's document in its row: attention must stay within equal numbers. With
        data.rows="continued" also {"weights": float32 [B, T]} of the targets: 0 up to a random
        place, then 1. Those of whole rows are 0 for what fills them up and, with
        data.score="answers", for what is no answer: see `chat.weights`.
        """
        source, epoch, row = (values[rows] for values in self._rows(step))
        batch_BS = np.empty((len(row), self.data.seq_len + 1), np.int32)
        for index, windows in enumerate(self._train):
            mine = np.flatnonzero(source == index)
            if len(mine):
                batch_BS[mine] = windows[row[mine]]
        batch = self.marked(batch_BS)
        if self.data.rows == "continued":
            cut_B = order.cuts(source, epoch, row, self.data.seq_len, self.seed)
            batch["weights"] = (np.arange(self.data.seq_len) >= cut_B[:, None]).astype(np.float32)
        return batch

    def marked(self, tokens_BS: np.ndarray) -> dict[str, np.ndarray]:
        """Rows with what is known from their tokens alone: segments and weights, as in `batch`."""
        batch, end = {"tokens": tokens_BS}, self.tokenizer.end
        if self.data.rows == "whole":
            batch["segments"] = whole.segments(tokens_BS, end)
            is_all = self.data.score == "all"
            batch["weights"] = (
                whole.weights(tokens_BS, end) if is_all else chat.weights(tokens_BS, self.tokenizer)
            )
        elif not self.data.across:
            batch["segments"] = segments(tokens_BS, end)
        return batch

    @property
    def fit(self) -> dict[str, dict[str, float]]:
        """Of each source in whole rows: documents, n_cut, n_left_out, fill; {} in others."""
        names = ("n_documents", "n_cut", "n_left_out", "fill")
        return {
            source: {name: getattr(rows, name) for name in names}
            for source, rows in zip(self.sources, self._train, strict=True)
            if isinstance(rows, whole.Rows)
        }

    def rows_of(self, step: int) -> dict[str, np.ndarray]:
        """For audit: source, epoch from 0, and row of the token file, of each row of a step [B]."""
        source, epoch, row = self._rows(step)
        return {"source": np.array(self.sources)[source], "epoch": epoch, "row": row}

    def epochs(self, step: int) -> dict[str, float]:
        """Source -> how often its training rows have been seen once `step` steps are done."""
        blocks, within = divmod(step * self.data.batch_size, order.PATTERN)
        seen = blocks * np.array(list(self.weights.values())) + self._before[within]
        return {
            name: float(s / n) for name, s, n in zip(self.sources, seen, self._n_rows, strict=True)
        }

    def check(self, steps: int) -> None:
        """ValueError for less text than one batch, or a source seen more than data.max_epochs."""
        size, rows, most = self.data.batch_size, sum(self._n_rows), self.data.max_epochs
        if rows < size:
            raise ValueError(
                f"data.batch_size={size} is more than the {rows} rows of {self.data.seq_len} "
                f"tokens that there are to train on: add text, or take a smaller batch"
            )
        for source, times in self.epochs(steps).items():
            if most and times > most * (1 + 1e-9):
                raise ValueError(
                    f"data.max_epochs={most}: steps={steps} would see {source} {times:.3g} times: "
                    f"take fewer steps, a smaller weight or more text, or raise data.max_epochs"
                )

    def floors(self) -> dict[str, tuple[float, float]]:
        """Synthetic source -> nats a token below which no model can get on its rows, and error."""
        return {name: languages.floor(it, self.data.seq_len) for name, it in self._languages()}

    def own_nats(self, source: str, tokens_NS: np.ndarray) -> np.ndarray | None:
        """Nats of each token but the first of these rows for who knows the language, [N, T].

        None for text whose source has no known probabilities.
        """
        language = dict(self._languages()).get(source)
        return None if language is None else languages.nats(language, tokens_NS)

    def _languages(self) -> list[tuple[str, languages.Language]]:
        if not isinstance(self.tokenizer, tokens.Bytes) or self.data.rows == "whole":
            return []
        names = [name for name in self.sources if name.startswith("synthetic:")]
        return [(name, languages.parse(name.removeprefix("synthetic:"))) for name in names]

    def byte_lengths(self, source: str) -> np.ndarray:
        """Bytes of held-out text for each token of the vocabulary, float64 [vocab_size].

        Whole numbers, but for a tokenizer that changes text: there the bytes of its tokens are
        scaled to add up to those of the text.
        """
        n_bytes, counted = self.manifests[source].bytes, self.manifests[source].counted
        scale = n_bytes["heldout"] / counted["heldout"] if counted.get("heldout") else 1.0
        return self.tokenizer.byte_lengths() * scale

    def documents(self, source: str, row: int) -> np.ndarray:
        """The training documents of a source, numbered from 0, of which a row has text.

        Their order is that in which the source was read, without those that were left out. Reads
        the token file up to the row.
        """
        rows = self._train[self.sources.index(source)]
        if isinstance(rows, whole.Rows):
            return rows.document[rows.items(row)]
        start = row * self.data.seq_len
        file = np.memmap(_path(self.manifests[source], "train"), self.manifests[source].dtype, "r")
        first = 0
        for begin in range(0, start, 1 << 24):  # 16 M tokens at once
            part = file[begin : min(begin + (1 << 24), start)]
            first += int(np.count_nonzero(part == self.tokenizer.end))
        inside = np.count_nonzero(file[start : start + self.data.seq_len] == self.tokenizer.end)
        return np.arange(first, first + int(inside) + 1)

    def heldout(self, source: str, n: int) -> np.ndarray:
        """Up to n held-out rows of a source, int32 [n', T+1]: the same for every seed and step."""
        if source not in self._heldout:
            raise ValueError(config.unknown(source, list(self._heldout)))
        windows = self._heldout[source]
        if not len(windows):
            return np.zeros((0, self.data.seq_len + 1), np.int32)
        first = np.arange(min(n, len(windows)))
        chosen = order.permuted(first, len(windows), ("heldout", source))
        return windows[chosen].astype(np.int32)

    def _open(self, source: str, split: str) -> "np.ndarray | whole.Rows":
        """The rows of a token file."""
        manifest, data = self.manifests[source], self.data
        if data.rows != "whole":
            return _windows(manifest, split, data.seq_len)
        empty = np.zeros(0, manifest.dtype)
        path = _path(manifest, split)
        file = np.memmap(path, manifest.dtype, "r") if manifest.tokens[split] else empty
        return whole.Rows(file, data.seq_len, self.tokenizer, data.too_long, source)

    def _facts(self) -> list[tuple[str, int, corpus.Manifest]]:
        return [(name, weight, self.manifests[name]) for name, weight in self.weights.items()]

    def _rows(self, step: int) -> tuple[np.ndarray, ...]:
        start = step * self.data.batch_size
        stop = start + self.data.batch_size
        parts = []
        for block in range(start // order.PATTERN, (stop - 1) // order.PATTERN + 1):
            inside = slice(max(start - block * order.PATTERN, 0), stop - block * order.PATTERN)
            parts.append([values[inside] for values in self._block(block)])
        return tuple(np.concatenate(values) for values in zip(*parts, strict=True))

    def _rows_of_block(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, epoch and row [PATTERN] of the rows from block * PATTERN on."""
        epoch, row = np.empty(order.PATTERN, np.int64), np.empty(order.PATTERN, np.int64)
        for index, (name, weight) in enumerate(self.weights.items()):
            mine = np.flatnonzero(self._pattern == index)
            n_rows = self._n_rows[index]
            epoch[mine], place = np.divmod(block * weight + np.arange(weight), n_rows)
            for e in range(block * weight // n_rows, (block * weight + weight - 1) // n_rows + 1):
                now = epoch[mine] == e
                row[mine[now]] = order.permuted(place[now], n_rows, (self.seed, name, e))
            if n_rows < len(self._train[index]):
                row[mine] = order.permuted(row[mine], len(self._train[index]), ("unique", name))
        return self._pattern, epoch, row

    def _rows_to_see(self) -> list[int]:
        """Rows of each source that an epoch has: all, or its share of data.unique_tokens.

        Which rows these are is the same for every seed, and fewer are always among more.
        """
        there = [len(rows) for rows in self._train]
        if not self.data.unique_tokens:
            return there
        asked = self.data.unique_tokens / self.data.seq_len / order.PATTERN
        n_rows = [max(1, int(asked * weight)) for weight in self.weights.values()]
        for name, n, most in zip(self.sources, n_rows, there, strict=True):
            if n > most:
                raise ValueError(
                    f"data.unique_tokens={self.data.unique_tokens} asks {name} for {n} rows of "
                    f"data.seq_len={self.data.seq_len} and it has {most}: lower it, or add text"
                )
        return n_rows


def load(data: config.Data, seed: int, report: corpus.Report | None = None) -> Text:
    """Prepares what data.cache does not hold yet, then opens it.

    A source of weight 0 is there for its held-out rows only. ValueError as of `corpus.prepare`, and
    for fewer tokens than one row, to train on or (unless data.heldout is 0) held out.
    """
    for source, weight in data.sources.items():
        if weight:
            sources.check_unseen(source, data.unseen)
    manifests = corpus.prepare(data, report)
    if data.rows == "whole":
        return _whole(Text(data, seed, manifests))
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


def _whole(text: Text) -> Text:
    """The same text; ValueError where no document of a source has room in a row."""
    if text.data.score == "answers" and text.tokenizer.marks is None:
        raise ValueError(
            f"data.tokenizer={text.data.tokenizer!r} has no tokens for the marks of a conversation,"
            " U+0001 to U+0003: take bytes, bpe:SIZE, or a vocabulary that falls back on bytes"
        )
    for source, rows in text.n_rows.items():
        if not rows:
            raise ValueError(
                f"{source}: no conversation has room in data.seq_len={text.data.seq_len} tokens"
            )
        if text.data.heldout and not len(text.heldout(source, 1)):
            n = sum(text.manifests[source].documents.values())
            raise ValueError(
                f"{source}: data.heldout={text.data.heldout} of {n} documents keeps none: raise it,"
                " or add text"
            )
    return text


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


def segments(tokens_BS: np.ndarray, end: int) -> np.ndarray:
    """The number of each input's document in its row, int32 [B, T]; an end belongs to its own."""
    is_end_BT = tokens_BS[:, :-1] == end
    return (is_end_BT.cumsum(axis=1) - is_end_BT).astype(np.int32)


def _path(manifest: corpus.Manifest, split: str) -> Path:
    return Path(manifest.folder, f"{split}.bin")


def _windows(manifest: corpus.Manifest, split: str, seq_len: int) -> np.ndarray:
    """The rows of a token file, [n_rows, T+1], as a view: nothing is read before a row is."""
    if manifest.tokens[split] <= seq_len:
        return np.zeros((0, seq_len + 1), manifest.dtype)
    file = np.memmap(_path(manifest, split), manifest.dtype, "r")
    return np.lib.stride_tricks.sliding_window_view(np.asarray(file), seq_len + 1)[::seq_len]
