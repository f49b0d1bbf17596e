"""Split, check and describe the token files of a source, which are read where they are.

    fields = describe_tokens("tokens:my/tokens", tokenizer, 0.01, lambda *progress: None)

The held-out split is the last part of each file, from an end of a document near the requested
position on. A file is read before the first training run that uses it, to compute its checksums and
to count its documents and bytes.
"""

import hashlib
import json
import os
from collections.abc import Callable

import numpy as np

from lm.config import schema
from lm.data import tokenizers
from lm.data.prepared import block_checksums
from lm.data.pretokenized import token_formats

PREFIX = "tokens"
TOKENS_PER_READ = 1 << 22
MAX_EXAMINED_DOCUMENTS = 100_000  # documents of a file whose last token is compared with the end
Report = Callable[[int, int, float], None]  # receives documents, bytes of text and fraction read


def is_token_source(source: str) -> bool:
    """Return True if a source consists of token files."""
    return source.partition(":")[0] == PREFIX


def validate_data(data: schema.Data) -> None:
    """Raise ValueError if a field of the data needs the text of a source that has only tokens."""
    sources = [source for source in data.sources if is_token_source(source)]
    if not sources:
        return
    needs_text = {
        "data.drop_near_duplicates=True": data.drop_near_duplicates,
        f"data.decontaminate_ngram={data.decontaminate_ngram}": data.decontaminate_ngram,
        f"data.min_words={data.min_words}": data.min_words,
        f"data.tokenizer={data.tokenizer!r}": data.tokenizer.startswith("bpe:"),
    }
    for setting, is_used in needs_text.items():
        if is_used:
            remedy = (
                "set data.tokenizer=file:PATH of the tokenizer that wrote the tokens"
                if setting.startswith("data.tokenizer")
                else "set it to its default"
            )
            raise ValueError(f"{setting} needs text, and {sources[0]!r} has tokens only: {remedy}")


def describe_tokens(
    source: str, tokenizer: tokenizers.Tokenizer, heldout_fraction: float, report: Report
) -> dict:
    """Return the fields of the manifest that follow from the token files of a source.

    heldout_fraction: fraction of held-out tokens of each file. report: progress callback. Raises
    ValueError for a damaged file, for token ids that the tokenizer does not have, and for documents
    that end with another token than the end token of the tokenizer.
    """
    layouts = token_formats.read_layouts(source.partition(":")[2])
    if len(types := sorted({layout.dtype for layout in layouts})) > 1:
        raise ValueError(
            f"{source}: the files have tokens of types {', '.join(types)}: use one source per type"
        )
    counts = {name: {"train": 0, "heldout": 0} for name in ("documents", "bytes", "tokens")}
    segments: dict[str, list[list]] = {"train": [], "heldout": []}
    checksums, notes = {}, []
    n_all = sum(layout.n_tokens for layout in layouts)
    n_done = 0
    for layout in layouts:
        notes += _check_document_ends(layout, tokenizer, source)
        path = os.path.abspath(layout.path)
        checksums[path] = block_checksums.block_checksums(layout.path)
        n_train = _first_heldout_token(layout, tokenizer.end, heldout_fraction)
        limits = {"train": (0, n_train), "heldout": (n_train, layout.n_tokens)}
        for split, (start, stop) in limits.items():
            if start == stop:
                continue
            n_documents, n_bytes = _count(layout, start, stop, tokenizer)
            numbers = {"documents": n_documents, "bytes": n_bytes, "tokens": stop - start}
            for name, number in numbers.items():
                counts[name][split] += number
            width = np.dtype(layout.dtype).itemsize
            first_byte = layout.first_byte + start * width
            segments[split].append([path, first_byte, stop - start])
            n_done += stop - start
            n_documents, n_bytes = (sum(counts[name].values()) for name in ("documents", "bytes"))
            report(n_documents, n_bytes, n_done / n_all)
    if not n_all:
        raise ValueError(f"data.sources: {source!r} has no tokens: add files")
    return counts | {
        "counted": dict(counts["bytes"]),
        "groups": dict(counts["documents"]),
        "dtype": types[0],
        "segments": segments,
        "checksums": checksums,
        "hash": _content_hash(segments, types[0], checksums),
        "warning": "; ".join(notes[:1]),
    }


def _check_document_ends(
    layout: token_formats.TokenLayout, tokenizer: tokenizers.Tokenizer, source: str
) -> list[str]:
    """Return a note if no document ends are known.

    Raises ValueError if documents end with another token than the end token of the tokenizer.
    """
    tokens, end = layout.tokens(), tokenizer.end
    if layout.document_ends is None:
        positions = range(0, layout.n_tokens, TOKENS_PER_READ)
        if any((tokens[i : i + TOKENS_PER_READ] == end).any() for i in positions):
            return []
        return [
            f"{source}: {layout.path.name} has no end token ({end}): all its text is one document"
        ]
    ends = layout.document_ends[layout.document_ends > 0]
    step = -(-len(ends) // MAX_EXAMINED_DOCUMENTS) or 1
    last_tokens = tokens[ends[::step] - 1]
    if (last_tokens != end).any():
        other = int(last_tokens[last_tokens != end][0])
        raise ValueError(
            f"{layout.path}: a document ends with token {other}, and the end token of the"
            f" tokenizer is {end}: choose the tokenizer that wrote the tokens, or write them with"
            " an end token after each document"
        )
    return []


def _first_heldout_token(
    layout: token_formats.TokenLayout, end: int, heldout_fraction: float
) -> int:
    """Return the number of training tokens of a file: up to an end of a document, if there is one.

    The split of a file without a document end near the requested position cuts a document.
    """
    target = round(layout.n_tokens * (1 - heldout_fraction))
    if target in (0, layout.n_tokens):
        return target
    if layout.document_ends is not None:
        index = np.searchsorted(layout.document_ends, target)
        return int(layout.document_ends[min(index, len(layout.document_ends) - 1)])
    first = max(0, target - TOKENS_PER_READ)
    before = np.flatnonzero(layout.tokens()[first:target] == end)
    return first + int(before[-1]) + 1 if len(before) else target


def _count(
    layout: token_formats.TokenLayout, start: int, stop: int, tokenizer: tokenizers.Tokenizer
) -> tuple[int, int]:
    """Return the numbers of documents and of text bytes of tokens start to stop - 1."""
    tokens, lengths_V = layout.tokens(), tokenizer.byte_lengths()
    counts_V = np.zeros(len(lengths_V), np.int64)
    for first in range(start, stop, TOKENS_PER_READ):
        ids = tokens[first : min(first + TOKENS_PER_READ, stop)]
        if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
            wrong = ids.max() if ids.max() >= tokenizer.vocab_size else ids.min()
            raise ValueError(
                f"{layout.path}: token id {wrong} is not one of the {tokenizer.vocab_size:,} ids of"
                " data.tokenizer: choose the tokenizer that wrote the tokens, or their type with"
                " ?dtype="
            )
        counts_V += np.bincount(ids, minlength=len(lengths_V))
    n_bytes = int(counts_V @ lengths_V)
    if layout.document_ends is None:
        return max(1, int(counts_V[tokenizer.end])), n_bytes
    ends = layout.document_ends
    return int(np.count_nonzero((ends > start) & (ends <= stop))), n_bytes


def _content_hash(
    segments: dict[str, list[list]], dtype: str, checksums: dict[str, list[str]]
) -> str:
    """Return the SHA-256 of the contents and the split, which does not depend on paths."""
    parts = [
        (split, checksums[path], first_byte, n_tokens)
        for split, parts in segments.items()
        for path, first_byte, n_tokens in parts
    ]
    return hashlib.sha256(json.dumps([dtype, parts]).encode()).hexdigest()
