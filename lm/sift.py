"""Tokenize, hash, split and filter documents in worker processes.

for document in sifted(sources.documents("code"), tokens.Bytes(), run.data):
    document.split, document.n_tokens, document.complaint
"""

import collections
import concurrent.futures
import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm import config, files, filters, overlap, tokens

CHUNK = 1 << 20  # characters per task of a worker


class Sifted(NamedTuple):
    """An encoded document, or the reason why it is rejected."""

    name: str
    part: int = 0  # index of the part of the source
    error: str = ""  # message if the document is not valid text
    complaint: str = ""  # filter that rejects it: see filters.complaint; or "overlap"
    digest: bytes = b""  # SHA-256 of the text
    split: str = "train"  # or "heldout"
    ids: bytes = b""  # token ids in the format of the token file, including the end token
    n_tokens: int = 0  # including the end token
    n_bytes: int = 0  # UTF-8 bytes of the text
    n_counted: int = 0  # bytes that the tokens represent; equal to n_bytes if encoding is lossless
    bands: tuple[int, ...] = ()  # see filters.bands; empty unless near-duplicates are dropped


def sifted(
    documents: Iterator[files.Document],
    tokenizer: tokens.Tokenizer,
    data: config.Data,
    blocked_ngrams: Path | None = None,
    workers: int = 1,
) -> Iterator[Sifted]:
    """Yield each non-empty document in order. Only a few are in memory at a time.

    `blocked_ngrams` is a file of hashes of data.overlap words that training documents must not
    contain: see overlap. With several workers, the program must be guarded by
    `if __name__ == "__main__"`. Raises ValueError if the system kills a worker.
    """
    if workers == 1:
        blocked = _open_blocked(blocked_ngrams)
        for chunk in _chunks(documents):
            yield from sift(chunk, tokenizer, data, blocked)
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


def sift(
    documents: list[files.Document],
    tokenizer: tokens.Tokenizer,
    data: config.Data,
    blocked: np.ndarray = overlap.NONE,
) -> list[Sifted]:
    """Encode a chunk of documents together. `blocked` are sorted hashes of n-grams."""
    results: list[Sifted] = []
    accepted: dict[int, str] = {}  # index in results -> text
    for document in documents:
        result = Sifted(document.name, document.part, document.error)
        try:
            raw = tokens.utf8(document.text)
        except ValueError as error:
            result = result._replace(error=f"{document.name}: {error}")
        if result.error:
            results.append(result)
            continue
        digest = hashlib.sha256(raw).digest()
        split = "heldout" if is_heldout(document, data.heldout, digest) else "train"
        complaint = filters.complaint(document.text, data)
        if len(blocked) and split == "train" and not complaint:
            complaint = "overlap" if overlap.is_shared(document.text, data.overlap, blocked) else ""
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
            bands=tuple(filters.bands(text)) if data.drop_copies else (),
        )
    return results


def is_heldout(document: files.Document, fraction: float, digest: bytes | None = None) -> bool:
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


def _chunks(documents: Iterator[files.Document]) -> Iterator[list[files.Document]]:
    """Group non-empty documents and errors into lists of about CHUNK characters."""
    chunk, size = [], 0
    for document in documents:
        if document.error or document.text.strip():
            chunk.append(document)
            size += len(document.text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _open_blocked(path: Path | None) -> np.ndarray:
    return overlap.NONE if path is None else overlap.open_sorted(path)


_worker_arguments: tuple = ()  # arguments of `sift` in a worker process


def _start_worker(tokenizer: tokens.Tokenizer, data: config.Data, blocked: Path | None) -> None:
    global _worker_arguments
    # The processes already use all cores, so the tokenizers library must not start threads.
    os.environ["RAYON_NUM_THREADS"] = "1"
    _worker_arguments = (tokenizer, data, _open_blocked(blocked))


def _sift_in_worker(chunk: list[files.Document]) -> list[Sifted]:
    return sift(chunk, *_worker_arguments)
