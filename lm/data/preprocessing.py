"""Quality filters and MinHash of near-duplicates.

    complaint(text, run.data)              # "short", "symbols", "repeats", or "" for good text
    set(bands(a)) & set(bands(b))          # not empty if the texts are nearly equal

All hashes are the same in every process and on every machine.
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
from lm.data import tokenizers
from lm.data.sources import readers

SHINGLE = 5  # words per shingle
# 16 bands of 8 hashes detect 95% of the pairs whose shingles have a Jaccard similarity of 0.8.
BANDS, ROWS = 16, 8
SHINGLES_PER_CHUNK = 4096  # shingles hashed at once, to bound memory
_KEYS = np.random.default_rng(0).integers(0, 2**64, (2, BANDS * ROWS), np.uint64) | np.uint64(1)


def rejection_reason(text: str, data: schema.Data) -> str:
    """Return the first filter that rejects the text, or "" (after J. Rae et al. 2021, A1.1).

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
    """Return BANDS integers of 63 bits. Near-duplicates share at least one, other texts rarely do.

    MinHash (A. Broder 1997) of shingles of 5 words. Two texts whose shingles have Jaccard
    similarity J share an integer with probability 1 - (1 - J^8)^16. This is 0.06 at J = 0.5, 0.95
    at 0.8 and 1 - 1e-4 at 0.9.
    """
    shingles = ngram_hashes(text, SHINGLE)
    if not len(shingles):
        shingles = ngram_hashes(text, max(len(WORD.findall(text)), 1))
    minima = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), SHINGLES_PER_CHUNK):
        mixed = shingles[start : start + SHINGLES_PER_CHUNK, None] * _KEYS[0] + _KEYS[1]
        mixed ^= mixed >> np.uint64(29)
        np.minimum(minima, (mixed * np.uint64(0xBF58476D1CE4E5B9)).min(axis=0), out=minima)
    band_hashes = (minima * _KEYS[0]).reshape(BANDS, ROWS).sum(axis=1) + _KEYS[1, :BANDS]
    return (band_hashes >> np.uint64(1)).tolist()


# MERGED DOCSTRING of lm.overlap:
# """N-gram hashes of words, to remove training text that shares them with held-out text.
#
#     write("data/runs.u64", (runs(text, 13) for text in heldout_texts))
#     blocked = open_sorted("data/runs.u64")
#     is_shared(text, 13, blocked)
#
# A hash has 64 bits. The hashes are sorted in a file that all worker processes map into memory.
# Memory use grows neither with the number of n-grams nor with the number of workers.
# """

WORD = re.compile(r"\w+")
NONE = np.zeros(0, np.uint64)
BUCKETS = 256  # buckets by the first byte of the hash; one bucket is sorted in memory at a time
HELD = 1 << 22  # hashes in memory before they are written to the buckets


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """Return the hashes of all n consecutive words, uint64 [n_words - n + 1].

    Case and the characters between words do not matter. Empty for fewer than n words.
    """
    words = " ".join(WORD.findall(text.lower())).encode().split()
    word_hashes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    hashes = np.zeros(max(len(words) - n + 1, 0), np.uint64)
    for i in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + word_hashes[i : len(hashes) + i]
    hashes ^= hashes >> np.uint64(32)
    return hashes * np.uint64(0xD6E8FEB86659FD93)


def write_ngram_index(path: Path, hashes: Iterable[np.ndarray]) -> None:
    """Write the distinct hashes to a file, sorted, as uint64. Raises OSError if a write fails."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".runs-") as folder:
        pending, n_pending = [], 0
        for array in hashes:
            pending.append(array)
            n_pending += len(array)
            if n_pending >= HELD:
                _append_to_buckets(np.concatenate(pending), Path(folder))
                pending, n_pending = [], 0
        _append_to_buckets(np.concatenate([NONE, *pending]), Path(folder))
        complete = Path(folder, "sorted")
        with open(complete, "wb") as file:
            for bucket in range(BUCKETS):
                part = Path(folder, str(bucket))
                if part.exists():
                    np.unique(np.fromfile(part, np.uint64)).tofile(file)
        complete.rename(path)


def open_ngram_index(path: Path) -> np.ndarray:
    """Map the file of `write` into memory."""
    return np.memmap(path, np.uint64, "r") if path.stat().st_size else NONE


def shares_ngram(text: str, n: int, blocked: np.ndarray) -> bool:
    """Return True if n consecutive words of the text have a hash in the sorted array `blocked`."""
    hashes = ngram_hashes(text, n)
    index = np.searchsorted(blocked, hashes)
    return bool((blocked[np.minimum(index, len(blocked) - 1)] == hashes).any())


def _append_to_buckets(hashes: np.ndarray, folder: Path) -> None:
    hashes = np.unique(hashes)
    edges = np.searchsorted(hashes >> np.uint64(56), np.arange(BUCKETS + 1))
    for bucket, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        if stop > start:
            with open(folder / str(bucket), "ab") as file:
                hashes[start:stop].tofile(file)


# MERGED DOCSTRING of lm.sift:
# """Tokenize, hash, split and filter documents in worker processes.
#
# for document in sifted(documents.open_source("code"), tokenizers.ByteTokenizer(), run.data):
#     document.split, document.n_tokens, document.complaint
# """

CHARACTERS_PER_TASK = 1 << 20  # characters per task of a worker


class EncodedDocument(NamedTuple):
    """An encoded document, or the reason why it is rejected."""

    name: str
    part: int = 0  # index of the part of the source
    error: str = ""  # message if the document is not valid text
    complaint: str = ""  # filter that rejects it: see preprocessing.rejection_reason; or "overlap"
    digest: bytes = b""  # SHA-256 of the text
    split: str = "train"  # or "heldout"
    ids: bytes = b""  # token ids in the format of the token file, including the end token
    n_tokens: int = 0  # including the end token
    n_bytes: int = 0  # UTF-8 bytes of the text
    n_counted: int = 0  # bytes that the tokens represent; equal to n_bytes if encoding is lossless
    bands: tuple[
        int, ...
    ] = ()  # see preprocessing.minhash_bands; empty unless near-duplicates are dropped


def encode_documents(
    documents: Iterator[readers.Document],
    tokenizer: tokenizers.Tokenizer,
    data: schema.Data,
    blocked_ngrams: Path | None = None,
    workers: int = 1,
) -> Iterator[EncodedDocument]:
    """Yield each non-empty document in order. Only a few are in memory at a time.

    `blocked_ngrams` is a file of hashes of data.decontaminate_ngram words that training documents
    must not contain: see overlap. With several workers, the program must be guarded by `if __name__
    == "__main__"`. Raises ValueError if the system kills a worker.
    """
    if workers == 1:
        blocked = _open_blocked(blocked_ngrams)
        for chunk in _chunks(documents):
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
        for chunk in _chunks(documents):
            pending.append(pool.submit(_sift_in_worker, chunk))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError(
            f"workers={workers}: one of the processes was killed, probably for lack of memory:"
            " use fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def encode_chunk(
    documents: list[readers.Document],
    tokenizer: tokenizers.Tokenizer,
    data: schema.Data,
    blocked: np.ndarray = NONE,
) -> list[EncodedDocument]:
    """Encode a chunk of documents together. `blocked` are sorted hashes of n-grams."""
    results: list[EncodedDocument] = []
    accepted: dict[int, str] = {}  # index in results -> text
    for document in documents:
        result = EncodedDocument(document.name, document.part, document.error)
        try:
            raw = tokenizers.utf8(document.text)
        except ValueError as error:
            result = result._replace(error=f"{document.name}: {error}")
        if result.error:
            results.append(result)
            continue
        digest = hashlib.sha256(raw).digest()
        split = "heldout" if is_heldout(document, data.heldout_fraction, digest) else "train"
        complaint = rejection_reason(document.text, data)
        if len(blocked) and split == "train" and not complaint:
            complaint = (
                "overlap" if shares_ngram(document.text, data.decontaminate_ngram, blocked) else ""
            )
        if not complaint:
            accepted[len(results)] = document.text
        results.append(
            result._replace(complaint=complaint, digest=digest, split=split, n_bytes=len(raw))
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


def is_heldout(document: readers.Document, fraction: float, digest: bytes | None = None) -> bool:
    """Return True if a document belongs to the held-out split of this fraction.

    The decision depends on the hash of the document's home, or of its text if it has no home. It is
    the same in every source and on every machine, and a larger fraction holds out a superset.
    `digest` is the SHA-256 of the text, if the caller has computed it.
    """
    if document.home:
        digest = hashlib.sha256(document.home.encode()).digest()
    elif digest is None:
        digest = hashlib.sha256(document.text.encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def _chunks(documents: Iterator[readers.Document]) -> Iterator[list[readers.Document]]:
    """Group non-empty documents and errors into lists of about CHUNK characters."""
    chunk, size = [], 0
    for document in documents:
        if document.error or document.text.strip():
            chunk.append(document)
            size += len(document.text)
        if size >= CHARACTERS_PER_TASK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _open_blocked(path: Path | None) -> np.ndarray:
    return NONE if path is None else open_ngram_index(path)


_worker_arguments: tuple = ()  # arguments of `sift` in a worker process


def _start_worker(tokenizer: tokenizers.Tokenizer, data: schema.Data, blocked: Path | None) -> None:
    global _worker_arguments
    # The processes already use all cores, so the tokenizers library must not start threads.
    os.environ["RAYON_NUM_THREADS"] = "1"
    _worker_arguments = (tokenizer, data, _open_blocked(blocked))


def _sift_in_worker(chunk: list[readers.Document]) -> list[EncodedDocument]:
    return encode_chunk(chunk, *_worker_arguments)
