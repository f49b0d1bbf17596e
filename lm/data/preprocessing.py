"""Tokenize, hash, split, filter and decontaminate documents, in this or in worker processes.

    documents = open_source("code")                            # see lm/data/sources/documents.py
    for document in encode_documents(documents, tokenizer, run.data):
        document.split, document.n_tokens, document.rejection

    rejection_reason(text, run.data)             # "short", "symbols", "repeats" or ""
    set(minhash_bands(a)) & set(minhash_bands(b))     # not empty if the texts are nearly equal

Hashes are the same in every process and on every machine.
"""

import collections
import concurrent.futures
import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.config import schema
from lm.data import splits, tokenizers
from lm.data.filters import decontamination, ngrams
from lm.data.sources import documents, readers

SHINGLE_WORDS = 5
# 16 bands of 8 hashes detect 95% of the pairs whose shingles have a Jaccard similarity of 0.8.
N_BANDS, HASHES_PER_BAND = 16, 8
SHINGLES_PER_CHUNK = 4096  # shingles that are hashed at once, which bounds the memory use
_KEYS = np.random.default_rng(0).integers(
    0, 2**64, (2, N_BANDS * HASHES_PER_BAND), np.uint64
) | np.uint64(1)
CHARACTERS_PER_TASK = 1 << 20  # characters of text per task of a worker process


class EncodedDocument(NamedTuple):
    """An encoded document, or the reason of its rejection."""

    name: str
    part: int = 0  # index of the part of the source
    error: str = ""  # error message if the document is not valid text
    rejection: str = ""  # result of rejection_reason, "empty", or "overlap" for blocked n-grams
    digest: bytes = b""  # SHA-256 of the text; b"" for an error or an empty text
    split: str = "train"  # or "heldout"
    group: bytes = b""  # equal for documents that are not independent: see splits.Split.group
    # Cuts of the document, in its first piece; other pieces have None.
    cuts: decontamination.Cuts | None = None
    ids: bytes = b""  # token ids in the format of the token file, including the end token
    n_tokens: int = 0  # including the end token
    n_bytes: int = 0  # UTF-8 bytes of the text
    n_counted: int = 0  # bytes that the tokens represent; equal to n_bytes if encoding is lossless
    bands: tuple[int, ...] = ()  # see minhash_bands; empty unless data.drop_near_duplicates


def rejection_reason(text: str, data: schema.Data) -> str:
    """Return the name of the first filter that rejects the text, or "".

    The filters follow Rae et al. 2021, arXiv:2112.11446, appendix A1.1:

    short    fewer than data.min_words words
    symbols  the fraction of letters among non-space characters is below data.min_letters
    repeats  the fraction of non-empty lines that repeat an earlier line is above data.max_repeats
    """
    if data.min_words and ngrams.count_words(text, data.min_words) < data.min_words:
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


def minhash_bands(text: str) -> list[int]:
    """Return N_BANDS integers of 63 bits. Near-duplicates share at least one, other texts rarely.

    MinHash (Broder 1997) of shingles of 5 words. Two texts whose shingles have Jaccard similarity J
    share an integer with probability 1 - (1 - J^8)^16. This is 0.06 at J = 0.5, 0.95 at 0.8 and
    1 - 1e-4 at 0.9. A text of fewer than 5 words is one shingle.
    """
    shingles = ngrams.ngram_hashes(text, SHINGLE_WORDS)
    if not len(shingles):
        shingles = ngrams.ngram_hashes(text, max(len(ngrams.split_words(text)), 1))
    minima = np.full(N_BANDS * HASHES_PER_BAND, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), SHINGLES_PER_CHUNK):
        mixed = shingles[start : start + SHINGLES_PER_CHUNK, None] * _KEYS[0] + _KEYS[1]
        mixed ^= mixed >> np.uint64(29)
        np.minimum(minima, (mixed * np.uint64(0xBF58476D1CE4E5B9)).min(axis=0), out=minima)
    band_hashes = (minima * _KEYS[0]).reshape(N_BANDS, HASHES_PER_BAND).sum(axis=1)
    band_hashes = band_hashes + _KEYS[1, :N_BANDS]
    return (band_hashes >> np.uint64(1)).tolist()


def read_documents(source: str, data: schema.Data, start: int = 0) -> Iterator[readers.Document]:
    """Yield the documents of a source, beginning with part number `start`.

    With data.on_error="skip", each unreadable input gives a document with an `error`, in order.
    """
    if data.on_error == "stop":
        yield from documents.open_source(source, start=start)
        return
    errors: list[str] = []
    part = start
    for document in documents.open_source(source, errors.append, start):
        # An error may belong to the previous part. The state is then saved one part later, which is
        # safe.
        part = document.part
        while errors:
            yield readers.Document("", "", part=part, error=errors.pop(0))
        yield document
    for error in errors:
        yield readers.Document("", "", part=part, error=error)


def encode_documents(
    documents: Iterator[readers.Document],
    tokenizer: tokenizers.Tokenizer,
    data: schema.Data,
    split: splits.Split | None = None,
    blocked_ngrams: Path | None = None,
    workers: int = 1,
) -> Iterator[EncodedDocument]:
    """Yield each document and each error, in order.

    split: rule of the source, by default the hash of each document. blocked_ngrams: index of
    n-grams of data.decontaminate_ngram words that are cut out of training documents. workers:
    number of processes, see map_chunks.
    """
    split = split or splits.Split(data.heldout_fraction)
    arguments = (tokenizer, data, split, blocked_ngrams)
    for results in map_chunks(encode_chunk, documents, arguments, workers):
        yield from results


def map_chunks(
    function: Callable,
    documents: Iterator[readers.Document],
    arguments: tuple,
    workers: int = 1,
) -> Iterator[Any]:
    """Yield function(chunk, *arguments) for lists of documents and errors, in order.

    workers: number of processes; with more than 1, the main module must protect its code by
    `if __name__ == "__main__"`. Memory use does not grow with the number of documents. Raises
    ValueError if the operating system kills a worker process.
    """
    if workers == 1:
        for chunk in split_into_chunks(documents):
            yield function(chunk, *arguments)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (function, arguments)
    )
    pending = collections.deque()
    try:
        for chunk in split_into_chunks(documents):
            pending.append(pool.submit(_call_in_worker, chunk))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError(
            f"workers={workers}: the operating system killed a worker process, probably for lack of"
            " memory: use fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def encode_chunk(
    documents: list[readers.Document],
    tokenizer: tokenizers.Tokenizer,
    data: schema.Data,
    split: splits.Split,
    blocked_ngrams: Path | None = None,
) -> list[EncodedDocument]:
    """Return the encoded documents of a chunk, in order. One call of the tokenizer encodes all.

    A document from which blocked n-grams are cut gives one result per remaining piece.
    """
    blocked = ngrams.open_ngram_index(blocked_ngrams)
    results: list[EncodedDocument] = []
    accepted: dict[int, str] = {}  # index in results -> text
    for document in documents:
        result = EncodedDocument(document.name, document.part, document.error)
        try:
            raw = tokenizers.utf8(document.text)
        except ValueError as error:
            result = result._replace(error=f"{document.name}: {error}")
        if not result.error and not document.text.strip():
            result = result._replace(rejection="empty")
        if result.error or result.rejection:
            results.append(result)
            continue
        digest = hashlib.sha256(raw).digest()
        result = result._replace(
            split="heldout" if split.is_heldout(document, digest) else "train",
            group=split.group(document, digest),
            rejection=rejection_reason(document.text, data),
            digest=digest,
            n_bytes=len(raw),
        )
        for text, piece in _cut_pieces(document.text, result, data.decontaminate_ngram, blocked):
            if not piece.rejection:
                accepted[len(results)] = text
            results.append(piece)
    _encode_accepted(results, accepted, tokenizer, data)
    return results


def _cut_pieces(
    text: str, result: EncodedDocument, n: int, blocked: np.ndarray
) -> Iterator[tuple[str, EncodedDocument]]:
    """Yield the text and the result of each piece of a document without its blocked n-grams.

    n: words per n-gram. A held-out or rejected document is one piece.
    """
    cuts = None
    if len(blocked) and result.split == "train" and not result.rejection:
        cuts = decontamination.cut_blocked_ngrams(text, n, blocked)
    if cuts is None:
        yield text, result
    elif not cuts.pieces:
        yield text, result._replace(rejection="overlap", cuts=cuts)
    else:
        for number, piece in enumerate(cuts.pieces):
            raw = piece.encode()
            yield (
                piece,
                result._replace(
                    digest=hashlib.sha256(raw).digest(),
                    n_bytes=len(raw),
                    cuts=None if number else cuts._replace(pieces=()),
                ),
            )


def _encode_accepted(
    results: list[EncodedDocument],
    accepted: dict[int, str],
    tokenizer: tokenizers.Tokenizer,
    data: schema.Data,
) -> None:
    """Add the tokens to the accepted results. accepted: {index in results: text}."""
    end = np.array([tokenizer.end], tokenizer.dtype).tobytes()
    lengths = tokenizer.byte_lengths()
    encoded = tokenizer.encode_all(list(accepted.values()))
    for (i, text), ids in zip(accepted.items(), encoded, strict=True):
        results[i] = results[i]._replace(
            ids=ids.astype(tokenizer.dtype, copy=False).tobytes() + end,
            n_tokens=len(ids) + 1,
            n_counted=int(lengths[ids].sum()),
            bands=tuple(minhash_bands(text)) if data.drop_near_duplicates else (),
        )


def split_into_chunks(documents: Iterator[readers.Document]) -> Iterator[list[readers.Document]]:
    """Yield lists of documents and errors with about CHARACTERS_PER_TASK characters."""
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document.text) + 1
        if size >= CHARACTERS_PER_TASK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


_worker_call: tuple = ()  # function and arguments of map_chunks, in a worker process


def _start_worker(function: Callable, arguments: tuple) -> None:
    """Store the function of map_chunks and its arguments in a new worker process."""
    global _worker_call
    # The processes already use all cores, so the tokenizers library must not start threads.
    os.environ["RAYON_NUM_THREADS"] = "1"
    _worker_call = (function, arguments)


def _call_in_worker(chunk: list[readers.Document]) -> Any:
    function, arguments = _worker_call
    return function(chunk, *arguments)
