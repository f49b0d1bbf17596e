"""Documents made ready for a token file: encoded, hashed, assigned to a side, judged; on any cores.

for one in sifted(sources.documents("code"), tokens.Bytes(), run.data):
    one.split, one.n_tokens, one.complaint
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

CHUNK = 1 << 20  # characters that are worked on at once


class Sifted(NamedTuple):
    name: str
    part: int = 0  # of the source, from 0
    error: str = ""  # why it is no text
    complaint: str = ""  # the filter that it failed: see filters.complaint; or "overlap"
    digest: bytes = b""  # SHA-256 of the text
    split: str = "train"  # or "heldout"
    ids: bytes = b""  # as they stand in the token file, the end included
    n_tokens: int = 0  # the end included
    n_bytes: int = 0  # of the text, UTF-8
    n_counted: int = 0  # bytes that the tokens stand for; the same for tokenizers that lose nothing
    bands: tuple[int, ...] = ()  # see filters.bands; empty unless near copies are dropped


def sifted(
    documents: Iterator[files.Document],
    tokenizer: tokens.Tokenizer,
    data: config.Data,
    guarded: Path | None = None,
    workers: int = 1,
) -> Iterator[Sifted]:
    """Each document that is not empty, in order; few of them are in memory at a time.

    guarded: file of the runs of data.overlap words that no training document may hold: see overlap.
    With more workers than one the program must start below `if __name__ == "__main__"`. ValueError
    if the system kills one of them.
    """
    job = (tokenizer, data, guarded)
    if workers == 1:
        runs = _runs(guarded)
        for chunk in _chunks(documents):
            yield from sift(chunk, tokenizer, data, runs)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, job
    )
    ahead = collections.deque()
    try:
        for chunk in _chunks(documents):
            ahead.append(pool.submit(_work, chunk))
            if len(ahead) > 2 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError(
            f"one of {workers} workers was killed, as for want of memory: try fewer"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def sift(
    documents: list[files.Document],
    tokenizer: tokens.Tokenizer,
    data: config.Data,
    guarded: np.ndarray = overlap.NONE,
) -> list[Sifted]:
    """What `sifted` yields for these documents, which are encoded together."""
    found: list[Sifted] = []
    texts: dict[int, str] = {}  # place in found -> text that is kept
    for document in documents:
        blank = Sifted(document.name, document.part, document.error)
        try:
            raw = tokens.utf8(document.text)
        except ValueError as error:
            blank = blank._replace(error=f"{document.name}: {error}")
        if blank.error:
            found.append(blank)
            continue
        digest = hashlib.sha256(raw).digest()
        split = "heldout" if share(document, digest) < data.heldout else "train"
        complaint = filters.complaint(document.text, data)
        if len(guarded) and split == "train" and not complaint:
            complaint = "overlap" if overlap.is_shared(document.text, data.overlap, guarded) else ""
        if not complaint:
            texts[len(found)] = document.text
        found.append(
            blank._replace(complaint=complaint, digest=digest, split=split, n_bytes=len(raw))
        )
    end = np.array([tokenizer.end], tokenizer.dtype).tobytes()
    lengths = tokenizer.byte_lengths()
    encoded = tokenizer.encode_all(list(texts.values()))
    for (place, text), ids in zip(texts.items(), encoded, strict=True):
        found[place] = found[place]._replace(
            ids=ids.astype(tokenizer.dtype, copy=False).tobytes() + end,
            n_tokens=len(ids) + 1,
            n_counted=int(lengths[ids].sum()),
            bands=tuple(filters.bands(text)) if data.drop_copies else (),
        )
    return found


def share(document: files.Document, digest: bytes) -> float:
    """In [0, 1), by hash: the same for the same text in any source, on any machine."""
    if document.home:
        digest = hashlib.sha256(document.home.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _chunks(documents: Iterator[files.Document]) -> Iterator[list[files.Document]]:
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


def _runs(guarded: Path | None) -> np.ndarray:
    return overlap.NONE if guarded is None else overlap.open_sorted(guarded)


_job: tuple = ()  # of a worker process


def _start(tokenizer: tokens.Tokenizer, data: config.Data, guarded: Path | None) -> None:
    global _job
    os.environ["RAYON_NUM_THREADS"] = "1"  # of tokenizers: the processes are the parallel part
    _job = (tokenizer, data, _runs(guarded))


def _work(chunk: list[files.Document]) -> list[Sifted]:
    return sift(chunk, *_job)
