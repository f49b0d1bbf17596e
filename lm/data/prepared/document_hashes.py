"""Hash set of documents on disk, by which equal documents and near-duplicates are found."""

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from lm.data.prepared import block_checksums

SQLITE_CACHE_KIB = 64_000
TABLES = ("documents", "bands")
SUMS = "sums"  # entry of the saved state: table -> sum of its rows, which a damaged row changes


class DocumentHashes:
    """Hash set of documents on disk. Memory use does not grow with the number of documents.

        hashes = DocumentHashes("folder/seen.sqlite")
        hashes.add(digest)             # False if an equal document was added before
        hashes.has_band(bands)         # True if a near-duplicate was added
        hashes.save({"part": 3})       # a killed process loses only later additions

    A document is stored as 64 bits of its SHA-256. Among 10^9 documents, two different documents
    have equal bits with a probability of 3%. The set needs about 20 bytes of disk per hash and
    64 MB of memory.
    """

    def __init__(self, path: str | Path, earlier_paths: Iterable[str | Path] = ()):
        """Open or create the file `path`. Open `earlier_paths`, files of other sources, to read."""
        self.path = Path(path)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        settings = (f"cache_size=-{SQLITE_CACHE_KIB}", "journal_mode=WAL", "synchronous=NORMAL")
        for setting in settings:
            self._connection.execute(f"PRAGMA {setting}")
        for table in TABLES:
            create = f"CREATE TABLE IF NOT EXISTS {table} (hash INTEGER PRIMARY KEY)"
            self._connection.execute(create)
        self._connection.execute("CREATE TABLE IF NOT EXISTS saved (facts TEXT)")
        self._earlier_connections = [
            sqlite3.connect(f"{Path(other).absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            for other in earlier_paths
        ]
        self._connection.execute("BEGIN")
        # Table -> sum of its rows, modulo 2^64.
        self._sums: dict[str, int] = dict.fromkeys(TABLES, 0)

    def add(self, digest: bytes) -> bool:
        """Add a document. Return False if this file or an earlier one contains an equal document.

        digest: SHA-256 of the text.
        """
        number = _first_int64(digest)
        query = "SELECT 1 FROM documents WHERE hash = ?"
        if any(other.execute(query, (number,)).fetchone() for other in self._earlier_connections):
            return False
        return self._insert("documents", number)

    def has_band(self, bands: tuple[int, ...]) -> bool:
        """Return True if this file or an earlier one contains one of these bands.

        bands: result of preprocessing.minhash_bands. Near-duplicates have a common band.
        """
        if not bands:
            return False
        placeholders = ",".join("?" * len(bands))
        query = f"SELECT 1 FROM bands WHERE hash IN ({placeholders}) LIMIT 1"
        connections = (self._connection, *self._earlier_connections)
        return any(connection.execute(query, bands).fetchone() for connection in connections)

    def add_bands(self, bands: tuple[int, ...]) -> None:
        """Add the bands of an accepted document."""
        for band in bands:
            self._insert("bands", band)

    def _insert(self, table: str, number: int) -> bool:
        """Insert a number into a table. Return False if it was there before."""
        insert = f"INSERT OR IGNORE INTO {table} VALUES (?)"
        is_new = self._connection.execute(insert, (number,)).rowcount == 1
        self._sums[table] = (self._sums[table] + number * is_new) % 2**64
        return is_new

    def save(self, state: dict) -> None:
        """Commit all additions together with `state`, a JSON object, in one transaction."""
        self._connection.execute("DELETE FROM saved")
        text = json.dumps(state | {SUMS: self._sums})
        checksum = block_checksums.sha256(text.encode())
        self._connection.execute("INSERT INTO saved VALUES (?)", (checksum + text,))
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN")

    def saved_state(self) -> dict:
        """Return the state of the last `save`, by this or another process; {} without a save.

        Raises ValueError if the state differs from its checksum, or a table from its sum.
        """
        row = self._connection.execute("SELECT facts FROM saved").fetchone()
        checksum, brace, rest = row[0].partition("{") if row else ("", "", "")
        text = brace + rest
        # Version 0.2.0 stored no checksum.
        if checksum and checksum != block_checksums.sha256(text.encode()):
            raise ValueError(f"{self.path} is damaged: its state differs from its checksum")
        state = json.loads(text) if text else {}
        if text:
            sums = {table: self._sum_rows(table) for table in TABLES}
            self._sums = state.pop(SUMS, sums)  # an earlier version stored no sums
            for table in TABLES:
                if sums[table] != self._sums.get(table):
                    raise ValueError(f"{self.path} is damaged: the hashes of {table} have changed")
        return state

    def _sum_rows(self, table: str) -> int:
        """Return the sum of the rows of a table, modulo 2^64."""
        # The sum of 64-bit numbers would exceed the integers of SQLite.
        query = f"SELECT sum(hash & {2**32 - 1}), sum(hash >> 32) FROM {table}"
        low, high = (number or 0 for number in self._connection.execute(query).fetchone())
        return (low + (high << 32)) % 2**64

    def close(self) -> None:
        """Close the files and delete the journal. Additions since the last `save` are lost."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._connection.execute("PRAGMA journal_mode=DELETE")
        for connection in (self._connection, *self._earlier_connections):
            connection.close()


def _first_int64(digest: bytes) -> int:
    """Return the first 8 bytes of a digest as a signed integer, the widest type of SQLite."""
    return int.from_bytes(digest[:8], "big", signed=True)
