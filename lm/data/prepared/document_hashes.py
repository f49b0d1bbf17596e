"""Hash set of documents on disk, by which equal documents and near-duplicates are found."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lm.data.filters import ngrams
from lm.data.prepared import hash_runs
from lm.runs import json_files

STATE_FILE = "state.json"
ROWS_PER_READ = 1 << 16


class DocumentHashes:
    """Hash set of documents in a folder. Memory use is bounded, see hash_runs.py.

        hashes = DocumentHashes(Path("folder/hashes"))
        hashes.add(digest)             # False if an equal document was added before
        hashes.has_band(bands)         # True if a near-duplicate was added
        hashes.save({"part": 3})       # a killed process loses only later additions

    A document is stored as 63 bits of its SHA-256. Among 10^9 documents, two different documents
    have equal bits with a probability of 5%. The set has 8 bytes of disk per hash, and twice as
    many while runs are merged. A document has 1 hash, and 16 more if near-duplicates are dropped.
    """

    def __init__(self, folder: Path, earlier_paths: Iterable[Path] = ()):
        """Open or create the folder. Open `earlier_paths`, files of other sources, to read.

        earlier_paths: files of `write`, or SQLite files of earlier versions. Raises
        ValueError if a file is damaged.
        """
        folder.mkdir(exist_ok=True)
        self._state_path = folder / STATE_FILE
        saved = json_files.read_optional_record(self._state_path)
        records = [hash_runs.RunRecord(*record) for record in saved.get("runs", [])]
        self._state = saved.get("state", {})
        paths = [
            _convert_sqlite(path, folder / f"earlier-{i}") if path.suffix == ".sqlite" else path
            for i, path in enumerate(earlier_paths)
        ]
        self._runs = hash_runs.HashRuns(folder, records, paths)
        self._runs.remove_unused(records)

    def add(self, digest: bytes) -> bool:
        """Add a document. Return False if this set or an earlier one has an equal document.

        digest: SHA-256 of the text.
        """
        hashes = (int.from_bytes(digest[:8], "big") & ~1,)
        if self._runs.has_any(hashes):
            return False
        self._runs.add(hashes)
        return True

    def has_band(self, bands: Sequence[int]) -> bool:
        """Return True if this set or an earlier one contains one of these bands.

        bands: result of preprocessing.minhash_bands. Near-duplicates have a common band.
        """
        return self._runs.has_any([_band_hash(band) for band in bands])

    def add_bands(self, bands: Sequence[int]) -> None:
        """Add the bands of an accepted document."""
        self._runs.add([_band_hash(band) for band in bands])

    def save(self, state: dict) -> None:
        """Store all additions together with `state`, a JSON object."""
        records = self._runs.flush()
        json_files.write_record(self._state_path, {"runs": records, "state": state})
        self._runs.remove_unused(records)
        self._state = state

    def saved_state(self) -> dict:
        """Return the state of the last `save`, by this or another process; {} without a save."""
        return self._state

    def write(self, path: Path) -> None:
        """Write all hashes, without those of other sources, to a file."""
        self._runs.merge_all(path)

    def close(self) -> None:
        """Close the files. Additions since the last `save` are lost."""
        self._runs.close()


def _band_hash(band: int) -> int:
    """Return the hash of a band of 63 bits, which is odd. The hashes of documents are even."""
    return band << 1 | 1


def _convert_sqlite(path: Path, converted: Path) -> Path:
    """Write the hashes of a SQLite file as sorted uint64. Raises ValueError if it is damaged."""
    import sqlite3  # its import takes 2 MiB, and only files of earlier versions need it

    try:
        ngrams.write_ngram_index(converted, _read_sqlite(path))
    except sqlite3.Error as error:
        raise ValueError(f"{path} is damaged: {error}: delete its folder") from None
    return converted


def _read_sqlite(path: Path) -> Iterator[np.ndarray]:
    """Yield the hashes of documents and bands in a SQLite file."""
    import sqlite3

    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
        for table, shift, lowest_bit in (("documents", 0, 0), ("bands", 1, 1)):
            rows = connection.execute(f"SELECT hash FROM {table}")
            while block := rows.fetchmany(ROWS_PER_READ):
                hashes = np.array(block, np.int64).ravel().view(np.uint64) << np.uint64(shift)
                yield hashes & ~np.uint64(1) | np.uint64(lowest_bit)
