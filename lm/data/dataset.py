"""Token dataset: the batch of any training step as a pure function of config, seed and step.

    text = load(run.data, run.seed)
    text.batch(7)["tokens"]              # int32 [B, T+1]: the rows of step 7; inputs [:, :-1]
    text.rows_of(7)                      # source, epoch and row of each of them

Row b of step s is training row g = s * B + b. mixture.RowOrder maps g to a row of a token file. Row
r of a file has the tokens r*T to r*T + T inclusive. Axes: B batch, S = T + 1 tokens, T seq_len.
"""

import collections
import concurrent.futures
import hashlib
import json
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np

from lm.config import fields, schema
from lm.data import corpus, mixture, packing, tokenizers
from lm.data.sources import chat, documents, synthetic_languages

_CHUNK = 1 << 24  # tokens that are read at once


class TokenDataset:
    """Open token files of a mixture. Every method is a pure function of its arguments."""

    def __init__(self, data: schema.Data, seed: int, manifests: dict[str, corpus.Manifest]):
        self.data, self.seed, self.manifests = data, seed, manifests
        self.tokenizer = tokenizers.load_tokenizer(next(iter(manifests.values())).folder)
        self.sources = sorted(name for name, weight in data.sources.items() if weight)
        self.weights = mixture.quantize_weights({name: data.sources[name] for name in self.sources})
        self.train_files: dict[str, np.ndarray | packing.PackedDocuments] = {
            name: open_rows(data, manifests[name], "train", self.tokenizer) for name in self.sources
        }
        self._heldout_files = {
            name: open_rows(data, manifest, "heldout", self.tokenizer)
            for name, manifest in manifests.items()
        }
        n_in_file = [len(rows) for rows in self.train_files.values()]
        n_rows = _rows_per_epoch(data, self.weights, n_in_file)
        self._order = mixture.RowOrder(self.weights, seed, n_rows, n_in_file)

    @property
    def shares(self) -> dict[str, float]:
        """Source -> fraction of the training rows."""
        return {name: weight / mixture.PATTERN for name, weight in self.weights.items()}

    @property
    def n_rows(self) -> dict[str, int]:
        """Source -> rows per epoch."""
        return dict(zip(self.sources, self._order.n_rows, strict=True))

    @property
    def unique_tokens(self) -> int:
        """Training tokens in one epoch of all sources, after the limit data.unique_tokens."""
        return sum(self._order.n_rows) * self.data.seq_len

    @property
    def hash(self) -> str:
        """Hash over sources, weights and prepared text. Equal hashes and seeds: equal batches."""
        facts: list = []
        for name, weight in self.weights.items():
            manifest = self.manifests[name]
            facts.append((name, weight, manifest.hash, manifest.tokenizer))
        changed = fields.changed_for_hash(self.data, "batch")
        facts = [facts, self.data.seq_len, *([changed] if changed else [])]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def bytes_per_token(self) -> float:
        """Mean bytes of text per token of the training mixture."""
        return sum(
            share * self.manifests[name].bytes["train"] / self.manifests[name].tokens["train"]
            for name, share in self.shares.items()
        )

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> dict[str, np.ndarray]:
        """Return {"tokens": int32 [B, T+1]} of a step. `rows` selects the rows of this process.

        With data.attend_across_documents=False, and with whole documents, the batch also has the
        "segments" of `with_segments_and_weights`. With data.packing="continuation" it has
        {"weights": float32 [B, T]} of the targets: 0 up to a random position, then 1.
        """
        source, epoch, row = (values[rows] for values in self._rows(step))
        tokens_BS = np.empty((len(row), self.data.seq_len + 1), np.int32)
        for index, file_rows in enumerate(self.train_files.values()):
            in_source = np.flatnonzero(source == index)
            if len(in_source):
                tokens_BS[in_source] = file_rows[row[in_source]]
        batch = add_segments_and_weights(self.data, self.tokenizer, tokens_BS)
        if self.data.packing == "continuation":
            cut_B = mixture.random_cuts(source, epoch, row, self.data.seq_len, self.seed)
            batch["weights"] = (np.arange(self.data.seq_len) >= cut_B[:, None]).astype(np.float32)
        return batch

    def rows_of(self, step: int) -> dict[str, np.ndarray]:
        """Return source, epoch (from 0) and row of the token file of each row of a step [B]."""
        source, epoch, row = self._rows(step)
        return {"source": np.array(self.sources)[source], "epoch": epoch, "row": row}

    def epochs(self, step: int) -> dict[str, float]:
        """Return source -> epochs of it in the first `step` steps."""
        return self._order.epochs(step * self.data.batch_size)

    def heldout(self, source: str, n: int) -> np.ndarray:
        """Return up to n held-out rows of a source, int32 [n', T+1]: equal for all seeds, steps."""
        if source not in self._heldout_files:
            raise ValueError(schema.suggest_names(source, list(self._heldout_files)))
        rows = self._heldout_files[source]
        if not len(rows):
            return np.zeros((0, self.data.seq_len + 1), np.int32)
        first = np.arange(min(n, len(rows)))
        chosen = mixture.keyed_permutation(first, len(rows), ("heldout", source))
        return rows[chosen].astype(np.int32)

    def _rows(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = step * self.data.batch_size
        return self._order.rows(start, start + self.data.batch_size)


def open_dataset(data: schema.Data, seed: int, report: corpus.Report | None = None) -> TokenDataset:
    """Prepare the sources that data.cache_dir does not have yet, and open the dataset.

    Only held-out rows of a source of weight 0 are used. Raises ValueError like
    corpus.prepare_corpus, and for a source with fewer tokens than one row, in the training split or
    (unless data.heldout_fraction is 0) in the held-out split.
    """
    for source, weight in data.sources.items():
        if weight:
            documents.validate_forbidden_tasks(source, data.forbidden_tasks)
    manifests = corpus.prepare_corpus(data, report)
    if data.packing == "documents":
        text = TokenDataset(data, seed, manifests)
        _check_whole_documents(text)
        return text
    row = f"one row of data.seq_len={data.seq_len} + 1"
    for name, manifest in manifests.items():
        n_train, n_heldout = (manifest.tokens[split] for split in corpus.SPLITS)
        if data.sources[name] and n_train <= data.seq_len:
            raise ValueError(f"{name}: {n_train} training tokens are fewer than {row}: add text")
        if data.heldout_fraction and n_heldout <= data.seq_len:
            n = sum(manifest.documents.values())
            raise ValueError(
                f"{name}: data.heldout_fraction={data.heldout_fraction} of {n} documents gives"
                f" {n_heldout} tokens, "
                f"fewer than {row}: raise data.heldout_fraction, or add text"
            )
    return TokenDataset(data, seed, manifests)


def validate_steps(text: TokenDataset, steps: int) -> None:
    """Raise ValueError for less text than one batch, or more epochs than data.max_epochs."""
    size, n_rows, limit = text.data.batch_size, sum(text.n_rows.values()), text.data.max_epochs
    if n_rows < size:
        raise ValueError(
            f"data.batch_size={size} is more than the {n_rows} training rows of "
            f"{text.data.seq_len} tokens: add text, or use a smaller batch"
        )
    for source, n_epochs in text.epochs(steps).items():
        if limit and n_epochs > limit * (1 + 1e-9):
            raise ValueError(
                f"data.max_epochs={limit}: steps={steps} would see {source} {n_epochs:.3g} times: "
                f"use fewer steps, a smaller weight or more text, or raise data.max_epochs"
            )


def add_segments_and_weights(
    data: schema.Data, tokenizer: tokenizers.Tokenizer, tokens_BS: np.ndarray
) -> dict[str, np.ndarray]:
    """Return rows with the segments and weights that follow from their tokens.

    "segments", int32 [B, T], numbers the documents of a row: attention stays within equal numbers.
    It is present for whole documents and with data.attend_across_documents=False. "weights",
    float32 [B, T], is present for whole documents: 0 for padding and, with data.loss_on="answers",
    for targets outside answers (see chat.answer_weights).
    """
    batch, end = {"tokens": tokens_BS}, tokenizer.end
    if data.packing == "documents":
        batch["segments"] = packing.packed_segment_ids(tokens_BS, end)
        if data.loss_on == "all":
            batch["weights"] = packing.packed_loss_weights(tokens_BS, end)
        else:
            batch["weights"] = chat.answer_weights(tokens_BS, tokenizer)
    elif not data.attend_across_documents:
        batch["segments"] = segment_ids(tokens_BS, end)
    return batch


def segment_ids(tokens_BS: np.ndarray, end: int) -> np.ndarray:
    """Return the document number of each input in its row, int32 [B, T].

    An `end` token belongs to the document before it.
    """
    is_end_BT = tokens_BS[:, :-1] == end
    return (is_end_BT.cumsum(axis=1) - is_end_BT).astype(np.int32)


def packing_stats(text: TokenDataset) -> dict[str, dict[str, float]]:
    """Return n_documents, n_cut, n_left_out and fill of each source; {} without whole documents."""
    names = ("n_documents", "n_cut", "n_left_out", "fill")
    return {
        source: {name: getattr(rows, name) for name in names}
        for source, rows in text.train_files.items()
        if isinstance(rows, packing.PackedDocuments)
    }


def entropy_bounds(text: TokenDataset) -> dict[str, tuple[float, float]]:
    """Return, for each synthetic source, the lowest possible loss on its rows and its error.

    Both are in nats per token: see synthetic_languages.entropy_bound.
    """
    return {
        source: synthetic_languages.entropy_bound(language, text.data.seq_len)
        for source, language in _languages(text).items()
    }


def source_nats(text: TokenDataset, source: str, tokens_NS: np.ndarray) -> np.ndarray | None:
    """Return the nats of each token but the first for the best possible reader, [N, T].

    None if the probabilities of the source are unknown: see synthetic_languages.token_nats.
    """
    language = _languages(text).get(source)
    return None if language is None else synthetic_languages.token_nats(language, tokens_NS)


def _languages(text: TokenDataset) -> dict[str, synthetic_languages.Language]:
    """Return the synthetic languages of the mixture whose rows have known probabilities."""
    if not isinstance(text.tokenizer, tokenizers.ByteTokenizer) or text.data.packing == "documents":
        return {}
    prefix = "synthetic:"
    names = [name for name in text.sources if name.startswith(prefix)]
    return {name: synthetic_languages.parse_language(name.removeprefix(prefix)) for name in names}


def byte_lengths(text: TokenDataset, source: str) -> np.ndarray:
    """Return the bytes of held-out text per token of the vocabulary, float64 [vocab_size].

    If the tokenizer changes text, the values are scaled so that they add up to the bytes of the
    text.
    """
    n_bytes, counted = text.manifests[source].bytes, text.manifests[source].counted
    scale = n_bytes["heldout"] / counted["heldout"] if counted.get("heldout") else 1.0
    return text.tokenizer.byte_lengths() * scale


def row_documents(text: TokenDataset, source: str, row: int) -> np.ndarray:
    """Return the numbers of the training documents in a row of a source, from 0.

    Documents are numbered in the order of reading, without rejected ones. This reads the token file
    up to the row.
    """
    rows = text.train_files[source]
    if isinstance(rows, packing.PackedDocuments):
        return rows.document[rows.items(row)]
    seq_len, end = text.data.seq_len, text.tokenizer.end
    file = _open_file(text.manifests[source], "train")
    start = row * seq_len
    first = 0
    for chunk_start in range(0, start, _CHUNK):
        chunk = file[chunk_start : min(chunk_start + _CHUNK, start)]
        first += int(np.count_nonzero(chunk == end))
    n_ends = int(np.count_nonzero(file[start : start + seq_len] == end))
    return np.arange(first, first + n_ends + 1)


def prefetch_batches(make: Callable, start: int, stop: int, depth: int = 2) -> Generator:
    """Yield make(start) to make(stop - 1), computed by one thread up to `depth` values ahead.

    An exception of `make` is raised at its position. Closing the generator ends the thread.
    """
    thread = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
    try:
        pending = collections.deque(
            thread.submit(make, i) for i in range(start, min(start + depth, stop))
        )
        for step in range(start, stop):
            value = pending.popleft().result()
            if step + depth < stop:
                pending.append(thread.submit(make, step + depth))
            yield value
    finally:
        thread.shutdown(cancel_futures=True)


def open_rows(
    data: schema.Data, manifest: corpus.Manifest, split: str, tokenizer: tokenizers.Tokenizer
) -> np.ndarray | packing.PackedDocuments:
    """Open the rows of a token file, [n_rows, T+1]. No row is read before it is used."""
    if data.packing == "documents":
        file = _open_file(manifest, split)
        return packing.PackedDocuments(
            file, data.seq_len, tokenizer, data.on_overflow, manifest.source
        )
    if manifest.tokens[split] <= data.seq_len:
        return np.zeros((0, data.seq_len + 1), manifest.dtype)
    file = np.asarray(_open_file(manifest, split))
    return np.lib.stride_tricks.sliding_window_view(file, data.seq_len + 1)[:: data.seq_len]


def _open_file(manifest: corpus.Manifest, split: str) -> np.ndarray:
    if not manifest.tokens[split]:
        return np.zeros(0, manifest.dtype)  # an empty file cannot be mapped
    return np.memmap(Path(manifest.folder, f"{split}.bin"), manifest.dtype, "r")


def _rows_per_epoch(
    data: schema.Data, weights: dict[str, int], n_rows_in_file: list[int]
) -> list[int]:
    """Return the rows of each source per epoch: all, or its share of data.unique_tokens."""
    if not data.unique_tokens:
        return n_rows_in_file
    n_blocks = data.unique_tokens / data.seq_len / mixture.PATTERN
    n_rows = [max(1, int(n_blocks * weight)) for weight in weights.values()]
    for name, n, available in zip(weights, n_rows, n_rows_in_file, strict=True):
        if n > available:
            raise ValueError(
                f"data.unique_tokens={data.unique_tokens} needs {n} rows of data.seq_len="
                f"{data.seq_len} of {name}, which has {available}: lower it, or add text"
            )
    return n_rows


def _check_whole_documents(text: TokenDataset) -> None:
    """Raise ValueError if no document of a source fits into a row, or answers have no tokens."""
    if text.data.loss_on == "answers" and text.tokenizer.marks is None:
        raise ValueError(
            f"data.tokenizer={text.data.tokenizer!r} has no tokens for the special characters of a"
            " conversation, U+0001 to U+0003: use bytes, bpe:SIZE, or a vocabulary with byte"
            " fallback"
        )
    for source, n_rows in text.n_rows.items():
        if not n_rows:
            raise ValueError(
                f"{source}: no conversation fits into data.seq_len={text.data.seq_len} tokens:"
                " raise it"
            )
        if text.data.heldout_fraction and not len(text.heldout(source, 1)):
            n = sum(text.manifests[source].documents.values())
            raise ValueError(
                f"{source}: data.heldout_fraction={text.data.heldout_fraction} of {n} documents"
                f" gives no row: raise"
                " it, or add text"
            )
