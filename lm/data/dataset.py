"""Token dataset: the batch of any training step as a pure function of config, seed and step.

    dataset = open_dataset(run.data, run.seed)
    dataset.batch(7)["tokens"]     # int32 [B, T+1], the rows of step 7; inputs are [:, :-1]
    dataset.rows_of(7)             # source, epoch and row number of each row of step 7

Row b of step s is training row g = s * B + b if B is constant, see data.batch_size_warmup.
mixture.RowOrder maps g to a row of a token file. Row r of a file contains the tokens r*T to
r*T + T inclusive. Legend: B batch, T seq_len, S = T + 1 tokens, N rows.
"""

import hashlib
import json

import numpy as np

from lm.config import field_names, fields, schema
from lm.config.schedules import batch_size_schedule
from lm.data import corpus, mixture, packing, prefetch, tokenizers
from lm.data.prepared import corpus_manifest, token_file
from lm.data.pretokenized import token_source
from lm.data.sources import chat, documents, synthetic_languages

TOKENS_PER_READ = 1 << 24


class TokenDataset:
    """Batches of a mixture of token files. Every method is a pure function of its arguments.

    Attributes: data, the config; schedule, the batch size of each step; sources, the sources with
    training rows, sorted; weights, {source: rows per mixture.PATTERN rows}; manifests, {source:
    manifest}; train_files and heldout_files, {source: rows}.
    """

    def __init__(
        self, data: schema.Data, seed: int, manifests: dict[str, corpus_manifest.Manifest]
    ):
        self.data, self.seed, self.manifests = data, seed, manifests
        self.schedule = batch_size_schedule.BatchSizeSchedule.from_config(data)
        first = next(iter(manifests.values()))
        self.tokenizer = tokenizers.load_tokenizer(first.folder, first.tokenizer)
        self.sources = sorted(name for name, weight in data.sources.items() if weight)
        self.weights = mixture.quantize_weights({name: data.sources[name] for name in self.sources})
        self.train_files: dict[str, token_file.TokenRows | packing.PackedDocuments] = {
            name: open_rows(data, manifests[name], "train", self.tokenizer) for name in self.sources
        }
        self.heldout_files = {
            name: open_rows(data, manifest, "heldout", self.tokenizer)
            for name, manifest in manifests.items()
        }
        n_in_file = [len(rows) for rows in self.train_files.values()]
        n_rows = _rows_per_epoch(data, self.weights, n_in_file)
        self._order = mixture.RowOrder(self.weights, seed, n_rows, n_in_file)
        files = list(self.train_files.values())
        self._read_ahead = prefetch.RowReadAhead(files, self._rows, data.seq_len)

    @property
    def shares(self) -> dict[str, float]:
        """Fractions of the training rows, {source: fraction}."""
        return {name: weight / mixture.PATTERN for name, weight in self.weights.items()}

    @property
    def n_rows(self) -> dict[str, int]:
        """Training rows per epoch, {source: number}."""
        return dict(zip(self.sources, self._order.n_rows, strict=True))

    @property
    def unique_tokens(self) -> int:
        """Number of training tokens in one epoch of all sources, limited by data.unique_tokens."""
        return sum(self._order.n_rows) * self.data.seq_len

    @property
    def hash(self) -> str:
        """Hash of sources, weights and prepared text. Equal hash and seed mean equal batches."""
        return text_hash(self.data, self.manifests)

    @property
    def bytes_per_token(self) -> float:
        """Mean number of text bytes per training token, weighted by the share of each source."""
        return sum(
            share * self.manifests[name].bytes["train"] / self.manifests[name].tokens["train"]
            for name, share in self.shares.items()
        )

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> dict[str, np.ndarray]:
        """Return the batch of a step, {"tokens": int32 [B, T+1], ...}.

        rows: the rows of the global batch that this process needs.

        add_segments_and_weights describes the entries "segments" and "weights". In addition,
        data.packing="continuation" adds "weights", float32 [B, T]: 0 for the targets before a
        random position, 1 from there on.
        """
        source, epoch, row = (values[rows] for values in self._rows(step))
        self._read_ahead.start(step, rows)
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
        """Return the origin of each row of the batch of a step.

        The result has three arrays [B]: "source" (name), "epoch" (from 0) and "row" (index of the
        row in the token file).
        """
        source, epoch, row = self._rows(step)
        return {"source": np.array(self.sources)[source], "epoch": epoch, "row": row}

    def epochs(self, step: int) -> dict[str, float]:
        """Return {source: epochs over the source in the first `step` steps}, as fractions."""
        return self._order.epochs(self.schedule.count_rows(step))

    def heldout(self, source: str, n: int) -> np.ndarray:
        """Return up to n held-out rows of a source, int32 [N, T+1], the same for all seeds.

        Raises ValueError for an unknown source.
        """
        if source not in self.heldout_files:
            raise ValueError(field_names.suggest_names(source, list(self.heldout_files)))
        rows = self.heldout_files[source]
        if not len(rows):
            return np.zeros((0, self.data.seq_len + 1), np.int32)
        positions = np.arange(min(n, len(rows)))
        selected = mixture.keyed_permutation(positions, len(rows), ("heldout", source))
        return rows[selected].astype(np.int32)

    def _rows(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return source index, epoch and row of each row of a step [B]."""
        return self._order.rows(self.schedule.count_rows(step), self.schedule.count_rows(step + 1))


def open_dataset(
    data: schema.Data, seed: int, report: corpus.ProgressCallback | None = None
) -> TokenDataset:
    """Prepare the sources that data.cache_dir does not contain yet, and open the dataset.

    A source of weight 0 has held-out rows only. Raises ValueError like corpus.prepare_corpus, and
    for a source with fewer tokens than one row in the training split. The same applies to the
    held-out split, unless data.heldout_fraction is 0: such a dataset has no held-out rows.
    """
    token_source.validate_data(data)
    for source, weight in data.sources.items():
        if weight:
            documents.validate_forbidden_tasks(source, data.forbidden_tasks)
    manifests = corpus.prepare_corpus(data, report)
    if data.packing == "documents":
        dataset = TokenDataset(data, seed, manifests)
        _check_packed_documents(dataset)
        return dataset
    row = f"one row of data.seq_len={data.seq_len} + 1"
    for name, manifest in manifests.items():
        n_train, n_heldout = (manifest.tokens[split] for split in corpus.SPLITS)
        if data.sources[name] and n_train <= data.seq_len:
            problem = f"{n_train} training tokens are fewer than {row}"
            raise _split_error(data, manifest, problem, "lower")
        if data.heldout_fraction and n_heldout <= data.seq_len:
            problem = f"{n_heldout} held-out tokens are fewer than {row}"
            raise _split_error(data, manifest, problem, "raise")
    return TokenDataset(data, seed, manifests)


def text_hash(data: schema.Data, manifests: dict[str, corpus_manifest.Manifest]) -> str:
    """Return the hash of the sources of a config, their weights and their prepared text."""
    facts: list = []
    names = sorted(name for name, weight in data.sources.items() if weight)
    weights = mixture.quantize_weights({name: data.sources[name] for name in names})
    for name, weight in weights.items():
        facts.append((name, weight, manifests[name].hash, manifests[name].tokenizer))
    changed = fields.changed_for_hash(data, "batch")
    facts = [facts, data.seq_len, *([changed] if changed else [])]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def validate_steps(dataset: TokenDataset, steps: int) -> None:
    """Raise ValueError if the text is less than one batch, or repeated above data.max_epochs."""
    data, n_rows = dataset.data, sum(dataset.n_rows.values())
    if n_rows < data.batch_size:
        raise ValueError(
            f"data.batch_size={data.batch_size} is more than the {n_rows} training rows of"
            f" {data.seq_len} tokens: add text, or use a smaller batch"
        )
    for source, n_epochs in dataset.epochs(steps).items():
        if data.max_epochs and n_epochs > data.max_epochs * (1 + 1e-9):
            raise ValueError(
                f"data.max_epochs={data.max_epochs}: steps={steps} give {n_epochs:.3g} epochs of"
                f" {source}: use fewer steps, a smaller weight or more text, or raise"
                " data.max_epochs"
            )


def add_segments_and_weights(
    data: schema.Data, tokenizer: tokenizers.Tokenizer, tokens_BS: np.ndarray
) -> dict[str, np.ndarray]:
    """Return a batch: the tokens, and the segments and weights that follow from them.

    "segments", int32 [B, T], numbers the documents of a row. Attention is restricted to equal
    numbers. The entry exists with data.packing="documents" and with
    data.attend_across_documents=False.

    "weights", float32 [B, T], are the loss weights of the targets: 0 for padding and, with
    data.loss_on="answers", for targets outside answers (see chat.answer_weights), else 1. The entry
    exists with data.packing="documents".
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


def packing_stats(dataset: TokenDataset) -> dict[str, dict[str, float]]:
    """Return {source: {"n_documents", "n_cut", "n_left_out", "fill": number}}.

    packing.PackedDocuments describes the numbers. The result is {} unless data.packing is
    "documents".
    """
    names = ("n_documents", "n_cut", "n_left_out", "fill")
    return {
        source: {name: getattr(rows, name) for name in names}
        for source, rows in dataset.train_files.items()
        if isinstance(rows, packing.PackedDocuments)
    }


def entropy_bounds(dataset: TokenDataset) -> dict[str, tuple[float, float]]:
    """Return {source: (entropy bound, standard error)} of the synthetic languages.

    The entropy bound is the lowest possible loss on rows of the source. Both numbers are in nats
    per token: see synthetic_languages.entropy_bound.
    """
    return {
        source: synthetic_languages.entropy_bound(language, dataset.data.seq_len)
        for source, language in _languages(dataset).items()
    }


def source_nats(dataset: TokenDataset, source: str, tokens_NS: np.ndarray) -> np.ndarray | None:
    """Return the loss of the best possible model for each target, float64 [N, T] in nats.

    source: name of a source in the mixture. tokens_NS: rows of that source, [N, T+1]. Return None
    if the probabilities of the source are unknown. See synthetic_languages.token_nats.
    """
    language = _languages(dataset).get(source)
    return None if language is None else synthetic_languages.token_nats(language, tokens_NS)


def _languages(dataset: TokenDataset) -> dict[str, synthetic_languages.Language]:
    """Return the synthetic languages of the mixture whose rows have known probabilities."""
    if (
        not isinstance(dataset.tokenizer, tokenizers.ByteTokenizer)
        or dataset.data.packing == "documents"
    ):
        return {}
    prefix = "synthetic:"
    names = [name for name in dataset.sources if name.startswith(prefix)]
    return {name: synthetic_languages.parse_language(name.removeprefix(prefix)) for name in names}


def byte_lengths(dataset: TokenDataset, source: str) -> np.ndarray:
    """Return the bytes of held-out text that each token represents, float64 [vocab_size].

    If the tokenizer changes text, the values are scaled. Their sum over the held-out tokens is then
    the number of bytes of the original text.
    """
    n_bytes, counted = dataset.manifests[source].bytes, dataset.manifests[source].counted
    scale = n_bytes["heldout"] / counted["heldout"] if counted.get("heldout") else 1.0
    return dataset.tokenizer.byte_lengths() * scale


def row_documents(dataset: TokenDataset, source: str, row: int, split: str = "train") -> np.ndarray:
    """Return the numbers of the documents of a split in a row of a source, from 0.

    Accepted documents are numbered in the order of reading. The token file is read up to the row.
    """
    files = dataset.train_files if split == "train" else dataset.heldout_files
    rows = files[source]
    if isinstance(rows, packing.PackedDocuments):
        return rows.document[rows.items(row)]
    seq_len, end = dataset.data.seq_len, dataset.tokenizer.end
    file = token_file.TokenFile(dataset.manifests[source], split)
    start = rows.first_token(row)
    n_earlier_ends = 0
    for chunk_start in range(0, start, TOKENS_PER_READ):
        chunk = file[chunk_start : min(chunk_start + TOKENS_PER_READ, start)]
        n_earlier_ends += int(np.count_nonzero(chunk == end))
    n_ends = int(np.count_nonzero(file[start : start + seq_len] == end))
    return n_earlier_ends + np.arange(n_ends + 1)


def open_rows(
    data: schema.Data,
    manifest: corpus_manifest.Manifest,
    split: str,
    tokenizer: tokenizers.Tokenizer,
) -> token_file.TokenRows | packing.PackedDocuments:
    """Return the rows of a token file, [N, T+1]. A row is read from disk when it is indexed."""
    file = token_file.TokenFile(manifest, split)
    if data.packing == "documents":
        return packing.PackedDocuments(
            file, data.seq_len, tokenizer, data.on_overflow, manifest.source
        )
    return token_file.TokenRows(file, data.seq_len)


def _rows_per_epoch(
    data: schema.Data, weights: dict[str, int], n_rows_in_file: list[int]
) -> list[int]:
    """Return the rows of each source per epoch: all, or its fraction of data.unique_tokens.

    weights: {source: rows per mixture.PATTERN rows}. Raises ValueError if a file has too few rows.
    """
    if not data.unique_tokens:
        return n_rows_in_file
    n_blocks = data.unique_tokens / data.seq_len / mixture.PATTERN
    n_rows = [max(1, int(n_blocks * weight)) for weight in weights.values()]
    for name, n, available in zip(weights, n_rows, n_rows_in_file, strict=True):
        if n > available:
            raise ValueError(
                f"data.unique_tokens={data.unique_tokens} needs {n} rows of data.seq_len="
                f"{data.seq_len} of {name}, which has {available}: lower data.unique_tokens, or add"
                " text"
            )
    return n_rows


def _check_packed_documents(dataset: TokenDataset) -> None:
    """Raise ValueError if a split has no row, or if the tokenizer cannot mark answers."""
    data = dataset.data
    if data.loss_on == "answers" and dataset.tokenizer.marks is None:
        raise ValueError(
            f"data.tokenizer={data.tokenizer!r} has no tokens for the special characters of a"
            " conversation, U+0001 to U+0003: use bytes, bpe:SIZE, or a vocabulary with byte"
            " fallback"
        )
    for source, n_rows in dataset.n_rows.items():
        if not n_rows:
            raise ValueError(
                f"{source}: no conversation fits into data.seq_len={data.seq_len} tokens: raise"
                " data.seq_len"
            )
        if data.heldout_fraction and not len(dataset.heldout(source, 1)):
            raise _split_error(data, dataset.manifests[source], "no held-out row", "raise")


def _split_error(
    data: schema.Data, manifest: corpus_manifest.Manifest, problem: str, change: str
) -> ValueError:
    """Return the error that one side of a source has too little text.

    change: raise or lower the fraction, which has no effect on a source of one document.
    """
    n_documents = sum(manifest.documents.values())
    noun = "document" if n_documents == 1 else "documents"
    remedy = f"{change} data.heldout_fraction, add text" if n_documents > 1 else "add documents"
    remedy += ", or set data.heldout_fraction=0 to train without held-out text"
    return ValueError(
        f"{manifest.source}: data.heldout_fraction={data.heldout_fraction} of {n_documents} {noun}:"
        f" {problem}: {remedy if 0 < data.heldout_fraction < 1 else 'add text'}"
    )
