"""Write the index of the n-grams that decontamination cuts out of training documents.

    inputs = decontamination_sources(data)
    write_blocked_ngrams(path, data, read)          # read(source) yields documents
    ngrams.open_ngram_index(path)                   # uint64, sorted

An n-gram is blocked if it occurs in held-out text or in data.decontaminate_against, and in at least
one but not in more than decontamination.MAX_NGRAM_DOCUMENTS different training documents.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lm.config import schema
from lm.data import preprocessing, splits
from lm.data.filters import decontamination, ngrams
from lm.data.prepared import block_checksums, document_hashes, temporary_folders
from lm.data.sources import readers
from lm.runs import filesystem

HASHES_PER_WRITE = 1 << 22
ReadSource = Callable[[str], Iterator[readers.Document]]


def decontamination_sources(data: schema.Data) -> list[str]:
    """Return the sources that may contain blocked n-grams; [] without data.decontaminate_ngram."""
    if not data.decontaminate_ngram:
        return []
    return sorted(data.sources) + (
        [data.decontaminate_against] if data.decontaminate_against else []
    )


def write_blocked_ngrams(path: Path, data: schema.Data, read: ReadSource, workers: int = 1) -> None:
    """Write the sorted hashes of the blocked n-grams to `path`, unless the file is intact.

    read: yields the documents of a source. Each source of data.sources is read
    twice. workers: number of processes. The SHA-256 of the file is in a file of the suffix .sha256.
    """
    if _is_intact(path):
        return
    with temporary_folders.temporary_folder(path.parent, path.stem) as folder:
        candidates = Path(folder, "candidates")
        ngrams.write_ngram_index(candidates, _heldout_hashes(data, read))
        index = ngrams.open_ngram_index(candidates)
        n_documents = _count_documents(index, candidates, data, read, workers)
        blocked = Path(folder, "blocked")
        with open(blocked, "wb") as file:
            for start in range(0, len(index), HASHES_PER_WRITE):
                counts = n_documents[start : start + HASHES_PER_WRITE]
                is_blocked = (counts > 0) & (counts <= decontamination.MAX_NGRAM_DOCUMENTS)
                index[start : start + HASHES_PER_WRITE][is_blocked].tofile(file)
        checksum = block_checksums.file_sha256(blocked)
        filesystem.write_file(path.with_suffix(".sha256"), f"{checksum}\n")
        blocked.rename(path)


def _is_intact(path: Path) -> bool:
    """Return True if the index exists and agrees with its SHA-256. Print a line if it is damaged.

    Version 0.2.0 stored no SHA-256; such an index is used after a note.
    """
    if not path.exists():
        return False
    stored = path.with_suffix(".sha256")
    if not stored.exists():
        block_checksums.print_note(f"note: {path} has no checksum, because version 0.2.0 wrote it")
        return path.stat().st_size % np.dtype(np.uint64).itemsize == 0
    if block_checksums.file_sha256(path) == stored.read_text(errors="replace").strip():
        return True
    print(f"{path} is damaged: its SHA-256 differs: written again", file=sys.stderr, flush=True)
    return False


def _heldout_hashes(data: schema.Data, read: ReadSource) -> Iterator[np.ndarray]:
    """Yield the n-gram hashes of held-out documents and of data.decontaminate_against."""
    for document in _documents_of_split(data, read, is_heldout=True):
        yield ngrams.ngram_hashes(document.text, data.decontaminate_ngram)
    for document in read(data.decontaminate_against) if data.decontaminate_against else ():
        yield ngrams.ngram_hashes(document.text, data.decontaminate_ngram)


def _documents_of_split(
    data: schema.Data, read: ReadSource, is_heldout: bool
) -> Iterator[readers.Document]:
    """Yield the held-out or the training documents of all sources."""
    for source in sorted(data.sources):
        split = splits.plan_split(source, data.heldout_fraction)
        for document in read(source):
            if split.is_heldout(document) == is_heldout:
                yield document


def _count_documents(
    index: np.ndarray, path: Path, data: schema.Data, read: ReadSource, workers: int
) -> np.ndarray:
    """Return the number of different training documents with each n-gram, uint8, at most 255.

    index: content of the n-gram index at `path`. The numbers are mapped from a file, so that they
    need no memory.
    """
    if not len(index):
        return np.zeros(0, np.uint8)
    counts = np.memmap(path.with_suffix(".counts"), np.uint8, "w+", shape=(len(index),))
    counted_documents = document_hashes.DocumentHashes(path.with_suffix(".hashes"))
    training_documents = _documents_of_split(data, read, is_heldout=False)
    arguments = (data.decontaminate_ngram, path)
    for matches in preprocessing.map_chunks(match_ngrams, training_documents, arguments, workers):
        for digest, positions in matches:
            if counted_documents.add(digest):
                counts[positions] = np.minimum(counts[positions], 254) + 1
    counted_documents.close()
    return counts


def match_ngrams(
    chunk: list[readers.Document], n: int, index_path: Path
) -> list[tuple[bytes, np.ndarray]]:
    """Return the hash of each document of a chunk with a match, and its positions in the index."""
    index, matches = ngrams.open_ngram_index(index_path), []
    for document in chunk:
        positions = ngrams.positions_in_index(ngrams.ngram_hashes(document.text, n), index)
        if (positions >= 0).any():
            digest = splits.text_key(document.text)
            matches.append((digest, np.unique(positions[positions >= 0])))
    return matches
