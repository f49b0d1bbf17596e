"""Counts of tokens and bigrams in the training text of a run, cached with a checksum.

    counts = ngram_counts.count_ngrams(text)      # text: dataset.TokenDataset
    counts.tokens[7], counts.n_tokens             # occurrences of token 7, tokens counted

At most MAX_TOKENS tokens are counted. Each source contributes its fraction of the training rows, as
far as its text suffices, from the beginning of its token file. All runs on a mixture therefore have
the same baselines, whatever their number of steps. The counts are stored in the folder of the
prepared text as ngrams-KEY.npz. KEY depends on the sources, their weights, their text and the
tokenizer.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lm.config import schema
from lm.data import dataset, mixture, staging
from lm.data.prepared import block_checksums, token_file
from lm.runs import filesystem

MAX_TOKENS = 20_000_000
FORMAT = 1  # part of the key; increase it if the counts of equal text change


@dataclasses.dataclass(frozen=True)
class NgramCounts:
    """Numbers of occurrences. V is the number of tokens of the tokenizer."""

    tokens: np.ndarray  # int64 [V]: occurrences of each token
    bigrams: np.ndarray  # int64 [K], sorted: first token * V + second token
    bigram_counts: np.ndarray  # int64 [K]

    @property
    def n_tokens(self) -> int:
        """Return the number of counted tokens."""
        return int(self.tokens.sum())


def count_ngrams(text: dataset.TokenDataset) -> NgramCounts:
    """Return the counts of the training text, from the cache if it contains them.

    A damaged file is replaced, after a line on stderr.
    """
    hashes = {name: manifest.hash for name, manifest in text.manifests.items()}
    path = _cache_path(text.data, hashes, text.tokenizer.hash)
    counts = _load(path)
    if counts is None:
        counts = _count(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.write_file(path, _encode(counts))
    return counts


def load_recorded_counts(run: schema.Run, facts: Mapping) -> NgramCounts | None:
    """Return the cached counts of the text that a run recorded, None if there is no such file.

    facts: those of the run, see recorded_text.text_facts. The text itself is not read.
    """
    hashes = {name: facts.get(f"corpus.hash.{name}", "") for name in run.data.sources}
    return _load(_cache_path(run.data, hashes, facts.get("tokenizer.hash", "")))


def _cache_path(data: schema.Data, hashes: Mapping[str, str], tokenizer_hash: str) -> Path:
    """Return the file of the counts. hashes: {source: hash of its prepared text}."""
    weights = _weights(data)
    facts = [(name, weight, hashes[name]) for name, weight in weights.items()]
    key = json.dumps([FORMAT, MAX_TOKENS, facts, tokenizer_hash, data.unique_tokens])
    name = f"ngrams-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
    return Path(staging.local_folder(data), name)


def _weights(data: schema.Data) -> dict[str, int]:
    """Return {source: training rows per mixture.PATTERN rows}, sorted by name."""
    names = sorted(name for name, weight in data.sources.items() if weight)
    return mixture.quantize_weights({name: data.sources[name] for name in names})


def _count(text: dataset.TokenDataset) -> NgramCounts:
    """Count the tokens and bigrams of the training files."""
    n_vocab = text.tokenizer.vocab_size
    limit = min(MAX_TOKENS, text.data.unique_tokens or MAX_TOKENS)
    tokens = np.zeros(n_vocab, np.int64)
    bigrams, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for source, weight in _weights(text.data).items():
        n = max(round(limit * weight / mixture.PATTERN), 1)
        ids = token_file.TokenFile(text.manifests[source], "train")[:n].astype(np.int64)
        tokens += np.bincount(ids, minlength=n_vocab)
        new, new_counts = np.unique(ids[:-1] * n_vocab + ids[1:], return_counts=True)
        merged, inverse = np.unique(np.concatenate([bigrams, new]), return_inverse=True)
        sums = np.bincount(inverse, np.concatenate([counts, new_counts]), len(merged))
        bigrams, counts = merged, sums.astype(np.int64)
    return NgramCounts(tokens, bigrams, counts)


def _encode(counts: NgramCounts) -> bytes:
    """Return the bytes of the file of the counts."""
    arrays = dataclasses.asdict(counts)
    stream = io.BytesIO()
    np.savez(stream, **arrays, checksum=np.array(_checksum(arrays)))
    return stream.getvalue()


def _load(path: Path) -> NgramCounts | None:
    """Return the counts in a file, None if it does not exist or is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {field.name: file[field.name] for field in dataclasses.fields(NgramCounts)}
            if str(file["checksum"]) == _checksum(arrays):
                return NgramCounts(**arrays)
    except Exception:  # zipfile, zlib and NumPy raise many types for a damaged file
        pass
    block_checksums.print_note(f"note: {path} is damaged: the n-grams are counted again")
    return None


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
