"""Write the index of the n-grams that decontamination cuts out of training documents.

    inputs = decontamination_sources(data)
    write_blocked_ngrams(path, data, read)          # read(source) yields documents
    ngrams.open_ngram_index(path)                   # uint64, sorted

An n-gram is blocked if it occurs in held-out text or in data.decontaminate_against, and in at least
one but not in more than decontamination.MAX_NGRAM_DOCUMENTS different training documents.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lm.config import schema
from lm.data import decontamination, ngrams, preprocessing, splits, staging
from lm.data.sources import readers

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
    """Write the sorted hashes of the blocked n-grams to `path`, unless the file exists.

    read: yields the documents of a source. Each source is read twice. workers: number of processes.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source_splits = {name: splits.plan_split(name, data.heldout_fraction) for name in data.sources}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".blocked-") as folder:
        candidates = Path(folder, "candidates")
        heldout_hashes = _heldout_hashes(data, read, source_splits, workers)
        ngrams.write_ngram_index(candidates, heldout_hashes)
        index = ngrams.open_ngram_index(candidates)
        n_documents = _count_documents(index, candidates, data, read, source_splits, workers)
        blocked = Path(folder, "blocked")
        with open(blocked, "wb") as file:
            for start in range(0, len(index), HASHES_PER_WRITE):
                counts = n_documents[start : start + HASHES_PER_WRITE]
                is_blocked = (counts > 0) & (counts <= decontamination.MAX_NGRAM_DOCUMENTS)
                index[start : start + HASHES_PER_WRITE][is_blocked].tofile(file)
        blocked.rename(path)


def _heldout_hashes(
    data: schema.Data, read: ReadSource, source_splits: dict[str, splits.Split], workers: int
) -> Iterator[np.ndarray]:
    """Yield the n-gram hashes of held-out documents and of data.decontaminate_against."""
    everything = splits.Split(1.0)
    for source in decontamination_sources(data):
        is_protected = source == data.decontaminate_against
        split = everything if is_protected else source_splits[source]
        arguments = (split, data.decontaminate_ngram)
        yield from preprocessing.map_chunks(hash_heldout, read(source), arguments, workers)


def hash_heldout(chunk: list[readers.Document], split: splits.Split, n: int) -> np.ndarray:
    """Return the hashes of the n-grams of the held-out documents of a chunk, uint64."""
    texts = [document.text for document in chunk if split.is_heldout(document)]
    return np.concatenate([ngrams.EMPTY_INDEX, *(ngrams.ngram_hashes(text, n) for text in texts)])


def _count_documents(
    index: np.ndarray,
    path: Path,
    data: schema.Data,
    read: ReadSource,
    source_splits: dict[str, splits.Split],
    workers: int,
) -> np.ndarray:
    """Return the number of different training documents with each n-gram, uint8, at most 255.

    index: content of the n-gram index at `path`. The numbers are mapped from a file, so that they
    need no memory.
    """
    if not len(index):
        return np.zeros(0, np.uint8)
    counts = np.memmap(path.with_suffix(".counts"), np.uint8, "w+", shape=(len(index),))
    counted_documents = staging.DocumentHashes(path.with_suffix(".sqlite"))
    for source in sorted(data.sources):
        arguments = (source_splits[source], data.decontaminate_ngram, path)
        for matches in preprocessing.map_chunks(match_ngrams, read(source), arguments, workers):
            for digest, positions in matches:
                if counted_documents.add(digest):
                    counts[positions] = np.minimum(counts[positions], 254) + 1
    counted_documents.close()
    return counts


def match_ngrams(
    chunk: list[readers.Document], split: splits.Split, n: int, index_path: Path
) -> list[tuple[bytes, np.ndarray]]:
    """Return the key and the positions in the index of each training document with a match."""
    index, matches = ngrams.open_ngram_index(index_path), []
    for document in chunk:
        if not split.is_heldout(document):
            positions = ngrams.positions_in_index(ngrams.ngram_hashes(document.text, n), index)
            if (positions >= 0).any():
                digest = splits.text_key(document.text)
                matches.append((digest, np.unique(positions[positions >= 0])))
    return matches
