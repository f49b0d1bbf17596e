"""Hashes of the documents that were seen, on disk: memory does not grow with their number.

    seen = Seen("work/seen.sqlite")
    seen.add(digest)                 # False if an equal document came before
    seen.has_band(bands)             # True if one that is nearly the same did: see filters.bands
    seen.save({"part": 3})           # all up to here at once; what comes after is lost by a kill

A document is 64 bits of its SHA-256: among 10^9 documents one is taken for another with a
probability of 3%. About 20 bytes of disk for each number, 64 MB of memory for any number of them.
"""

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

CACHE_KIB = 64_000


class Seen:
    """Holds a file open. `before` are files of sources prepared earlier, which are only read."""

    def __init__(self, path: str | Path, before: Iterable[str | Path] = ()):
        self.path = Path(path)
        self._file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in (f"cache_size=-{CACHE_KIB}", "journal_mode=WAL", "synchronous=NORMAL"):
            self._file.execute(f"PRAGMA {pragma}")
        for table in ("documents", "bands"):
            self._file.execute(f"CREATE TABLE IF NOT EXISTS {table} (hash INTEGER PRIMARY KEY)")
        self._file.execute("CREATE TABLE IF NOT EXISTS saved (facts TEXT)")
        self._before = [
            sqlite3.connect(f"{Path(other).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            for other in before
        ]
        self._file.execute("BEGIN")

    def add(self, digest: bytes) -> bool:
        """Whether no document of this digest came before; from now on one has."""
        number = _signed(digest[:8])
        query = "SELECT 1 FROM documents WHERE hash = ?"
        if any(other.execute(query, (number,)).fetchone() for other in self._before):
            return False
        added = self._file.execute("INSERT OR IGNORE INTO documents VALUES (?)", (number,))
        return added.rowcount == 1

    def has_band(self, bands: tuple[int, ...]) -> bool:
        """Whether a document that was added with one of these bands came before."""
        if not bands:
            return False
        marks = ",".join("?" * len(bands))
        query = f"SELECT 1 FROM bands WHERE hash IN ({marks}) LIMIT 1"
        found = (file.execute(query, bands).fetchone() for file in (self._file, *self._before))
        return any(found)

    def add_bands(self, bands: tuple[int, ...]) -> None:
        """Those of a document that is kept."""
        rows = ((band,) for band in bands)
        self._file.executemany("INSERT OR IGNORE INTO bands VALUES (?)", rows)

    def save(self, facts: dict) -> None:
        """Makes all that was added, and these facts, lasting: both or neither."""
        self._file.execute("DELETE FROM saved")
        self._file.execute("INSERT INTO saved VALUES (?)", (json.dumps(facts),))
        self._file.execute("COMMIT")
        self._file.execute("BEGIN")

    def saved(self) -> dict:
        """The facts of the last `save`, by any process; {} if there was none."""
        row = self._file.execute("SELECT facts FROM saved").fetchone()
        return json.loads(row[0]) if row else {}

    def close(self) -> None:
        """What was not saved is lost. One file is left, without a journal beside it."""
        if self._file.in_transaction:
            self._file.execute("ROLLBACK")
        self._file.execute("PRAGMA journal_mode=DELETE")
        for file in (self._file, *self._before):
            file.close()


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "big", signed=True)
