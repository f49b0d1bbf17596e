"""Tokenize, hash, split, filter and decontaminate documents, in this or in worker processes.

    documents = open_source("code")                            # see lm/data/sources/documents.py
    for document in encode_documents(documents, tokenizer, run.data):
        document.split, document.n_tokens, document.rejection

    rejection_reason(text, run.data)             # "short", "symbols", "repeats" or ""
    set(minhash_bands(a)) & set(minhash_bands(b))     # not empty if the texts are nearly equal

    write_ngram_index(path, (ngram_hashes(text, 13) for text in heldout_texts))
    shares_ngram(text, 13, open_ngram_index(path))

Hashes are the same in every process and on every machine. The n-gram index is a sorted file of
64-bit hashes that all worker processes map into memory. Its memory use grows neither with the
number of n-grams nor with the number of workers.
"""

import collections
import concurrent.futures
import hashlib
import multiprocessing
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.config import schema
from lm.data import splits, tokenizers
from lm.data.sources import readers

SHINGLE_WORDS = 5
# 16 bands of 8 hashes detect 95% of the pairs whose shingles have a Jaccard similarity of 0.8.
N_BANDS, HASHES_PER_BAND = 16, 8
SHINGLES_PER_CHUNK = 4096  # shingles that are hashed at once, which bounds the memory use
_KEYS = np.random.default_rng(0).integers(
    0, 2**64, (2, N_BANDS * HASHES_PER_BAND), np.uint64
) | np.uint64(1)
WORD_PATTERN = re.compile(r"\w+")
NONE = np.zeros(0, np.uint64)  # empty n-gram index
N_BUCKETS = 256  # buckets by the first byte of the hash; one bucket is sorted in memory at a time
HASHES_IN_MEMORY = 1 << 22  # hashes in memory before they are written to the buckets
CHARACTERS_PER_TASK = 1 << 20  # characters of text per task of a worker process


class EncodedDocument(NamedTuple):
    """An encoded document, or the reason of its rejection."""

    name: str
    part: int = 0  # index of the part of the source
    error: str = ""  # error message if the document is not valid text
    rejection: str = ""  # result of rejection_reason, "empty", or "overlap" for a blocked n-gram
    digest: bytes = b""  # SHA-256 of the text; b"" for an error or an empty text
    split: str = "train"  # or "heldout"
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
    if data.min_words and len(text.split(None, data.min_words)) < data.min_words:
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
    shingles = ngram_hashes(text, SHINGLE_WORDS)
    if not len(shingles):
        shingles = ngram_hashes(text, max(len(WORD_PATTERN.findall(text)), 1))
    minima = np.full(N_BANDS * HASHES_PER_BAND, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), SHINGLES_PER_CHUNK):
        mixed = shingles[start : start + SHINGLES_PER_CHUNK, None] * _KEYS[0] + _KEYS[1]
        mixed ^= mixed >> np.uint64(29)
        np.minimum(minima, (mixed * np.uint64(0xBF58476D1CE4E5B9)).min(axis=0), out=minima)
    band_hashes = (minima * _KEYS[0]).reshape(N_BANDS, HASHES_PER_BAND).sum(axis=1)
    band_hashes = band_hashes + _KEYS[1, :N_BANDS]
    return (band_hashes >> np.uint64(1)).tolist()


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """Return the hashes of all sequences of n consecutive words, uint64 [n_words - n + 1].

    Case and the characters between words do not matter. The result is empty for fewer than n words.
    """
    words = " ".join(WORD_PATTERN.findall(text.lower())).encode().split()
    word_hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    hashes = np.zeros(max(len(words) - n + 1, 0), np.uint64)
    for i in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + word_hashes[i : len(hashes) + i]
    hashes ^= hashes >> np.uint64(32)
    return hashes * np.uint64(0xD6E8FEB86659FD93)


def write_ngram_index(path: Path, hashes: Iterable[np.ndarray]) -> None:
    """Write the distinct hashes of all arrays to a file as sorted uint64.

    hashes: uint64 arrays [n], which may repeat values. Raises OSError if a write fails.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".runs-") as folder:
        pending, n_pending = [], 0
        for array in hashes:
            pending.append(array)
            n_pending += len(array)
            if n_pending >= HASHES_IN_MEMORY:
                _append_to_buckets(np.concatenate(pending), Path(folder))
                pending, n_pending = [], 0
        _append_to_buckets(np.concatenate([NONE, *pending]), Path(folder))
        complete = Path(folder, "sorted")
        with open(complete, "wb") as file:
            for bucket in range(N_BUCKETS):
                part = Path(folder, str(bucket))
                if part.exists():
                    np.unique(np.fromfile(part, np.uint64)).tofile(file)
        complete.rename(path)


def open_ngram_index(path: Path) -> np.ndarray:
    """Map a file of write_ngram_index into memory and return its hashes, uint64 [n], sorted."""
    return np.memmap(path, np.uint64, "r") if path.stat().st_size else NONE


def shares_ngram(text: str, n: int, blocked: np.ndarray) -> bool:
    """Return True if n consecutive words of the text have a hash in `blocked`.

    blocked: sorted hashes of n-grams, uint64, not empty.
    """
    hashes = ngram_hashes(text, n)
    index = np.searchsorted(blocked, hashes)
    return bool((blocked[np.minimum(index, len(blocked) - 1)] == hashes).any())


def _append_to_buckets(hashes: np.ndarray, folder: Path) -> None:
    """Append the distinct hashes to one file per first byte, named by the byte."""
    hashes = np.unique(hashes)
    edges = np.searchsorted(hashes >> np.uint64(56), np.arange(N_BUCKETS + 1))
    for bucket, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        if stop > start:
            with open(folder / str(bucket), "ab") as file:
                hashes[start:stop].tofile(file)


def encode_documents(
    documents: Iterator[readers.Document],
    tokenizer: tokenizers.Tokenizer,
    data: schema.Data,
    blocked_ngrams: Path | None = None,
    workers: int = 1,
) -> Iterator[EncodedDocument]:
    """Yield each document and each error, in order.

    blocked_ngrams: n-gram index of data.decontaminate_ngram words that training documents must not
    contain. workers: number of processes; with more than 1, the main module must protect its code
    by `if __name__ == "__main__"`. Memory use does not grow with the number of documents. Raises
    ValueError if the operating system kills a worker process.
    """
    if workers == 1:
        blocked = _open_optional_index(blocked_ngrams)
        for chunk in _split_into_chunks(documents):
            yield from encode_chunk(chunk, tokenizer, data, blocked)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _start_worker,
        (tokenizer, data, blocked_ngrams),
    )
    pending = collections.deque()
    try:
        for chunk in _split_into_chunks(documents):
            pending.append(pool.submit(_encode_chunk_in_worker, chunk))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
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
    blocked: np.ndarray = NONE,
) -> list[EncodedDocument]:
    """Return the encoded documents of a chunk, in order. One call of the tokenizer encodes all.

    blocked: sorted hashes of n-grams that training documents must not contain, uint64.
    """
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
        split = "heldout" if splits.is_heldout(document, data.heldout_fraction, digest) else "train"
        rejection = rejection_reason(document.text, data)
        is_checked = len(blocked) and split == "train" and not rejection
        if is_checked and shares_ngram(document.text, data.decontaminate_ngram, blocked):
            rejection = "overlap"
        if not rejection:
            accepted[len(results)] = document.text
        results.append(
            result._replace(rejection=rejection, digest=digest, split=split, n_bytes=len(raw))
        )
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
    return results


def _split_into_chunks(documents: Iterator[readers.Document]) -> Iterator[list[readers.Document]]:
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


def _open_optional_index(path: Path | None) -> np.ndarray:
    return NONE if path is None else open_ngram_index(path)


_worker_arguments: tuple = ()  # arguments of encode_chunk after the first, in a worker process


def _start_worker(tokenizer: tokenizers.Tokenizer, data: schema.Data, blocked: Path | None) -> None:
    """Open the n-gram index once in a new worker process."""
    global _worker_arguments
    # The processes already use all cores, so the tokenizers library must not start threads.
    os.environ["RAYON_NUM_THREADS"] = "1"
    _worker_arguments = (tokenizer, data, _open_optional_index(blocked))


def _encode_chunk_in_worker(chunk: list[readers.Document]) -> list[EncodedDocument]:
    return encode_chunk(chunk, *_worker_arguments)
