"""Hash set of documents on disk. Memory does not grow with the number of documents.

    hashes = Seen("work/seen.sqlite")
    hashes.add(digest)               # False if an equal document was added before
    hashes.has_band(bands)           # True if a near-duplicate was added: see filters.bands
    hashes.save({"part": 3})         # commit; a killed process loses only later additions

A document is stored as 64 bits of its SHA-256. Among 10^9 documents, two different ones have the
same bits with a probability of 3%. The set needs about 20 bytes of disk per hash and 64 MB of
memory.
"""

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

CACHE_KIB = 64_000


class Seen:
    """Document hashes in an open file. `before` are files of other sources, opened read-only."""

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
        """Add a document. Return False if an equal document is in this file or in `before`."""
        number = _signed(digest[:8])
        query = "SELECT 1 FROM documents WHERE hash = ?"
        if any(other.execute(query, (number,)).fetchone() for other in self._before):
            return False
        added = self._file.execute("INSERT OR IGNORE INTO documents VALUES (?)", (number,))
        return added.rowcount == 1

    def has_band(self, bands: tuple[int, ...]) -> bool:
        """Return True if one of these bands was added, here or in `before`."""
        if not bands:
            return False
        placeholders = ",".join("?" * len(bands))
        query = f"SELECT 1 FROM bands WHERE hash IN ({placeholders}) LIMIT 1"
        return any(file.execute(query, bands).fetchone() for file in (self._file, *self._before))

    def add_bands(self, bands: tuple[int, ...]) -> None:
        """Add the bands of an accepted document."""
        rows = ((band,) for band in bands)
        self._file.executemany("INSERT OR IGNORE INTO bands VALUES (?)", rows)

    def save(self, facts: dict) -> None:
        """Commit all additions together with `facts`, in one transaction."""
        self._file.execute("DELETE FROM saved")
        self._file.execute("INSERT INTO saved VALUES (?)", (json.dumps(facts),))
        self._file.execute("COMMIT")
        self._file.execute("BEGIN")

    def saved(self) -> dict:
        """Return the facts of the last `save` of any process; {} if there is none."""
        row = self._file.execute("SELECT facts FROM saved").fetchone()
        return json.loads(row[0]) if row else {}

    def close(self) -> None:
        """Close the files. Additions since the last `save` are lost. No journal file remains."""
        if self._file.in_transaction:
            self._file.execute("ROLLBACK")
        self._file.execute("PRAGMA journal_mode=DELETE")
        for file in (self._file, *self._before):
            file.close()


def _signed(raw: bytes) -> int:
    return int.from_bytes(raw, "big", signed=True)
