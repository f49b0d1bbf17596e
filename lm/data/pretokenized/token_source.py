"""Split, check and describe the token files of a source, which are read where they are.

    fields = describe_tokens("tokens:my/tokens", tokenizer, 0.01, lambda *progress: None)

The held-out split is the last part of each file, from an end of a document near the requested
position on. A file is read once before the first training run that uses it, to compute its
checksums and to count its documents and bytes.
"""

import hashlib
import json
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lm.config import schema
from lm.data import tokenizers
from lm.data.prepared import block_checksums
from lm.data.pretokenized import token_formats
from lm.data.sources import source_files
from lm.data.storage import byte_ranges, remote_path

PREFIX = "tokens"
TOKENS_PER_READ = 1 << 22
# A multiple of the blocks of checksums and of the width of every token type.
BYTES_PER_READ = 8 * block_checksums.BLOCK_BYTES
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

    def report_layout(n_read: int) -> None:
        n_documents, n_bytes = (sum(counts[name].values()) for name in ("documents", "bytes"))
        report(n_documents, n_bytes, (n_done + n_read) / max(n_all, 1))

    for layout, target in zip(layouts, _split_targets(layouts, heldout_fraction), strict=True):
        address = token_address(layout)
        n_train = _first_heldout_token(layout, tokenizer.end, target)
        scan = _scan_tokens(layout, n_train, tokenizer, report_layout)
        if address not in checksums:
            checksums[address] = scan.checksums or block_checksums.block_checksums(layout.path)
        if not scan.has_ends:
            problem = f"{layout.path.name} has no end token ({tokenizer.end})"
            notes.append(f"{source}: {problem}: all its text is one document")
        limits = {"train": (0, n_train), "heldout": (n_train, layout.n_tokens)}
        for split, (start, stop) in limits.items():
            if start == stop:
                continue
            width = np.dtype(layout.dtype).itemsize
            segments[split].append([address, layout.first_byte + start * width, stop - start])
            counts["tokens"][split] += stop - start
            counts["documents"][split] += scan.documents[split]
            counts["bytes"][split] += scan.bytes[split]
        n_done += layout.n_tokens
        report_layout(0)
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


def token_address(layout: token_formats.TokenLayout) -> str:
    """Return the absolute path of a token file, or its remote address."""
    is_remote = isinstance(layout.path, remote_path.RemotePath)
    return str(layout.path) if is_remote else os.path.abspath(layout.path)


class _FileScan(NamedTuple):
    """Results of reading the tokens of a layout. documents and bytes: {split: number}.

    checksums: those of the file, [] if the layout is one of several parts of it.
    """

    checksums: list[str]
    documents: dict[str, int]
    bytes: dict[str, int]
    has_ends: bool


def _split_targets(layouts: list[token_formats.TokenLayout], heldout_fraction: float) -> list[int]:
    """Return the requested number of training tokens of each layout, the first ones of its file."""
    n_tokens: dict[str, int] = {}
    for layout in layouts:
        n_tokens[str(layout.path)] = n_tokens.get(str(layout.path), 0) + layout.n_tokens
    n_left = {path: round(n * (1 - heldout_fraction)) for path, n in n_tokens.items()}
    targets = []
    for layout in layouts:
        targets.append(min(n_left[str(layout.path)], layout.n_tokens))
        n_left[str(layout.path)] -= targets[-1]
    return targets


def _scan_tokens(
    layout: token_formats.TokenLayout,
    n_train: int,
    tokenizer: tokenizers.Tokenizer,
    report: Callable[[int], None],
) -> _FileScan:
    """Read tokens once: checksums, documents, bytes of text, and validity of all tokens.

    n_train: number of training tokens, which are the first ones. report: receives the number of
    tokens that are read. Raises ValueError for a token id outside the vocabulary, and for a
    document that ends with another token than the end token of the tokenizer.
    """
    lengths_V, width = tokenizer.byte_lengths(), np.dtype(layout.dtype).itemsize
    counts = {split: np.zeros(len(lengths_V), np.int64) for split in ("train", "heldout")}
    checksums: list[str] = []
    is_whole_file = layout.path.suffix != ".arrow"
    first_byte = 0 if is_whole_file else layout.first_byte
    last_byte = None if is_whole_file else layout.first_byte + layout.n_tokens * width
    position = (first_byte - layout.first_byte) // width  # of the first token of a chunk
    try:
        for chunk in byte_ranges.stream_chunks(layout.path, BYTES_PER_READ, first_byte, last_byte):
            checksums += block_checksums.content_checksums(chunk) if is_whole_file else []
            skipped = max(-position, 0)  # the header of the file
            ids = np.frombuffer(chunk, layout.dtype, len(chunk) // width - skipped, skipped * width)
            start = max(position, 0)
            ids = ids[: layout.n_tokens - start]
            _check_ids(layout, ids, start, tokenizer)
            n_in_train = max(n_train - start, 0)
            for split, part in (("train", ids[:n_in_train]), ("heldout", ids[n_in_train:])):
                counts[split] += np.bincount(part, minlength=len(lengths_V))
            position += len(chunk) // width
            report(start + len(ids))
    except OSError as error:
        source_files.raise_unreadable(error)
    n_bytes = {split: int(counts_V @ lengths_V) for split, counts_V in counts.items()}
    has_ends = layout.document_ends is not None
    if layout.document_ends is not None:
        ends = layout.document_ends
        n_train_ends = int(np.count_nonzero((ends > 0) & (ends <= n_train)))
        n_heldout_ends = int(np.count_nonzero(ends > n_train))
        documents = {"train": n_train_ends, "heldout": n_heldout_ends}
    else:
        n_ends = {split: int(counts_V[tokenizer.end]) for split, counts_V in counts.items()}
        has_ends = any(n_ends.values())
        documents = {split: max(1, number) for split, number in n_ends.items()}
    return _FileScan(checksums, documents, n_bytes, has_ends)


def _check_ids(
    layout: token_formats.TokenLayout, ids: np.ndarray, start: int, tokenizer: tokenizers.Tokenizer
) -> None:
    """Check that tokens are in the vocabulary, and that documents end with the end token.

    start: position of the first of these tokens in the file.
    """
    if layout.document_ends is not None and len(ids):
        first, stop = np.searchsorted(layout.document_ends, [start + 1, start + len(ids) + 1])
        last_tokens = ids[layout.document_ends[first:stop] - 1 - start]
        if (last_tokens != tokenizer.end).any():
            other = int(last_tokens[last_tokens != tokenizer.end][0])
            raise ValueError(
                f"{layout.path}: a document ends with token {other}, and the end token of the"
                f" tokenizer is {tokenizer.end}: choose the tokenizer that wrote the tokens, or"
                " write them with an end token after each document"
            )
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        wrong = ids.max() if ids.max() >= tokenizer.vocab_size else ids.min()
        raise ValueError(
            f"{layout.path}: token id {wrong} is not one of the {tokenizer.vocab_size:,} ids of"
            " data.tokenizer: choose the tokenizer that wrote the tokens, or their type with"
            " ?dtype="
        )


def _first_heldout_token(layout: token_formats.TokenLayout, end: int, target: int) -> int:
    """Return the number of training tokens: up to an end of a document, if there is one.

    target: the requested number. Without a document end near it, the split cuts a document.
    """
    if target in (0, layout.n_tokens):
        return target
    if layout.document_ends is not None:
        index = np.searchsorted(layout.document_ends, target)
        return int(layout.document_ends[min(index, len(layout.document_ends) - 1)])
    first = max(0, target - TOKENS_PER_READ)
    before = np.flatnonzero(layout.tokens(first, target) == end)
    return first + int(before[-1]) + 1 if len(before) else target


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
