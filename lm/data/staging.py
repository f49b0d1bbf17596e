"""Hash set of documents on disk. Memory does not grow with the number of documents.

    hashes = Seen("work/seen.sqlite")
    hashes.add(digest)               # False if an equal document was added before
    hashes.has_band(bands)           # True if a near-duplicate was added: see
                                     preprocessing.minhash_bands
    hashes.save({"part": 3})         # commit; a killed process loses only later additions

A document is stored as 64 bits of its SHA-256. Among 10^9 documents, two different ones have the
same bits with a probability of 3%. The set needs about 20 bytes of disk per hash and 64 MB of
memory.
"""

import collections
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import filelock

from lm.config import schema
from lm.data import preprocessing
from lm.runs import filesystem, records

CACHE_KIB = 64_000


class DocumentHashes:
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


# MERGED DOCSTRING of lm.draft:
# """Partially prepared source on disk. An interrupted preparation resumes from it.
#
#     with Draft(Path("data"), "wiki-91c07d44e3b5", fingerprints) as draft:
#         for document in sifted(...):           # from part draft.part on: earlier parts are stored
#             draft.add(document)
#         draft.finish()
#         draft.move(Path("data/wiki-91c07d44e3b5"))
#
# data/.wiki-91c07d44e3b5/
#     train.bin, heldout.bin    token ids; bytes after the last save are truncated on resume
#     digests                   SHA-256 and split of each accepted document, for the content hash
# seen.sqlite document hashes, and counts at the last save: see staging.DocumentHashes
# """

SPLITS = ("train", "heldout")
FILES = ("train.bin", "heldout.bin", "digests")
SAVE_SECONDS = 5.0  # minimum time between saves, which happen at the ends of parts
DIGEST = 40  # bytes per document: SHA-256, then the split, padded
COUNTS = ("documents", "bytes", "tokens", "counted")


class StagedCorpus:
    """Staged corpus, written by one process. A second process gets a separate folder.

    `prints` has a fingerprint per part of the source. A stored draft is valid if the fingerprints
    of its parts are unchanged; otherwise it is rebuilt. `before` are the `seen` files of sources
    whose documents count as duplicates. After an error, the draft stays for the next call if a part
    is saved.
    """

    def __init__(self, cache: Path, name: str, prints: list, before: Iterable[Path] = ()):
        self.prints, self.before = prints, list(before)
        self.folder, self._lock = _claim(cache, name)
        self._is_moved = False
        try:
            try:
                self._open()
            except (ValueError, KeyError, sqlite3.DatabaseError):  # corrupt, or of other parts
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(exist_ok=True)
                self._open()
        except BaseException:
            _release(self._lock)
            raise
        self._saved_at = time.monotonic()

    def _open(self) -> None:
        """Open the files at the state of the last save. Raises ValueError if that is impossible."""
        self._seen = DocumentHashes(self.folder / "seen.sqlite", self.before)
        saved = self._seen.saved()
        self.part = saved.get("part", 0)
        if saved and saved["prints"] != self._prints_hash(self.part):
            raise ValueError("the parts of the source have changed")
        self.counts: dict[str, dict[str, int]] = saved.get("counts") or {
            count: dict.fromkeys(SPLITS, 0) for count in COUNTS
        }
        self.duplicates: int = saved.get("duplicates", 0)
        self.dropped = collections.Counter(saved.get("dropped", {}))
        self._files = {name: open(self.folder / name, "ab") for name in FILES}
        for name, file in self._files.items():
            size = saved.get("sizes", {}).get(name, 0)
            if os.fstat(file.fileno()).st_size < size:
                raise ValueError(f"{name} is shorter than at the last save")
            file.truncate(size)
            file.seek(size)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError, sqlite3.Error):  # a full disk was already reported
            self._close()
        if not self._is_moved and (self._lock is None or not self.part):
            shutil.rmtree(self.folder, ignore_errors=True)
        _release(self._lock)

    def add(self, document: preprocessing.EncodedDocument) -> None:
        """Write a document or count why it is rejected. Save at the end of a part if it is due."""
        if document.part > self.part and time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save(document.part)
        if document.error:
            self.dropped["broken"] += 1
            return
        if not self._seen.add(document.digest):
            self.duplicates += 1
            return
        is_near_duplicate = not document.complaint and self._seen.has_band(document.bands)
        reason = "near_copy" if is_near_duplicate else document.complaint
        if reason:
            self.dropped[reason] += 1
            return
        self._seen.add_bands(document.bands)
        split = document.split
        self._files["digests"].write((document.digest + split.encode()).ljust(DIGEST))
        self._files[f"{split}.bin"].write(document.ids)
        numbers = (1, document.n_bytes, document.n_tokens, document.n_counted)
        for count, number in zip(COUNTS, numbers, strict=True):
            self.counts[count][split] += number

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of accepted documents and of their bytes of text."""
        return sum(self.counts["documents"].values()), sum(self.counts["bytes"].values())

    def finish(self) -> str:
        """Close the files and return the hash over the documents and their splits, in order."""
        self._save(len(self.prints))
        self._close()
        content = hashlib.sha256()
        with open(self.folder / "digests", "rb") as file:
            while row := file.read(DIGEST):
                content.update(row.rstrip())
        (self.folder / "digests").unlink()
        return content.hexdigest()

    def move(self, folder: Path) -> None:
        """Rename the finished draft to `folder`. Raises OSError, and loses it, if that exists."""
        self.part = 0
        self.folder.rename(folder)
        self.folder, self._is_moved = folder, True

    def _save(self, part: int) -> None:
        """Store the state so that a later call resumes with part number `part`."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._seen.save(
            {
                "part": part,
                "prints": self._prints_hash(part),
                "counts": self.counts,
                "duplicates": self.duplicates,
                "dropped": self.dropped,
                "sizes": {name: file.tell() for name, file in self._files.items()},
            }
        )
        self.part, self._saved_at = part, time.monotonic()

    def _prints_hash(self, part: int) -> str:
        """Return the hash of the fingerprints of all parts before `part`."""
        return hashlib.sha256(repr(self.prints[:part]).encode()).hexdigest()

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._seen.close()


def _claim(cache: Path, name: str) -> tuple[Path, filelock.BaseFileLock | None]:
    """Return the folder of a draft and its lock.

    If another process has the lock, or the file system has no locks, return a new folder and None.
    The system releases the lock when its process ends, however it ends.
    """
    cache.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(cache / f".{name}.lock", timeout=0)
    try:
        lock.acquire()
    except OSError:
        return Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache)), None
    folder = cache / f".{name}"
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        _release(lock)
        raise
    return folder, lock


def _release(lock: filelock.BaseFileLock | None) -> None:
    """Delete the lock file and release the lock.

    The file is deleted first. A process that opens the path later creates a new file. A process
    that already opened it detects the deletion when it gets the lock (filelock checks this).
    """
    if lock is not None:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


# MERGED DOCSTRING of lm.copies:
# """Remote cache of prepared text, such as data.cache_dir="gs://bucket/data", and its local copy.
#
#     folder = place(data) / "docs-3f2a81c09d7e"
#     fetch(data, folder)    # download, if only the remote cache has it
#     store(data, folder)    # upload, if the remote cache does not have it
#
# A remote folder has the files of a prepared corpus (see corpus) and LIST, which is written last: a
# folder without LIST is incomplete. If data.cache_dir is a local folder, nothing is copied.
# """

LIST = "files.json"  # name of a file -> its SHA-256


def local_folder(data: schema.Data) -> Path:
    """Return the local folder of token files: data.cache_dir, or a folder below
    data.local_cache_dir."""
    if not filesystem.is_remote(data.cache_dir):
        return Path(data.cache_dir)
    return Path(data.local_cache_dir, data.cache_dir.partition("://")[2])


def download(data: schema.Data, folder: Path) -> None:
    """Download a folder that the remote cache has and this machine does not.

    Raises ValueError if a file differs from its checksum, OSError if the local disk cannot be
    written.
    """
    if not filesystem.is_remote(data.cache_dir) or folder.exists():
        return
    remote = filesystem.open_path(data.cache_dir) / folder.name
    if not (remote / LIST).exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, digest in records.read_json(remote / LIST).items():
            if Path(name).name != name:
                raise ValueError(f"{remote / LIST}: {name!r} is not a file name: delete {remote}")
            with (remote / name).open("rb") as file, open(temporary / name, "wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 24)
            if _digest(temporary / name) != digest:
                problem = f"is not what was prepared: its SHA-256 differs from that in {LIST}"
                raise ValueError(f"{remote / name} {problem}: delete {remote} to prepare it again")
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process has downloaded it
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def upload(data: schema.Data, folder: Path) -> None:
    """Upload a local folder to the remote cache, unless the remote cache has it."""
    if not filesystem.is_remote(data.cache_dir):
        return
    remote = filesystem.open_path(data.cache_dir) / folder.name
    if (remote / LIST).exists():
        return
    paths = sorted(folder.iterdir())
    for path in paths:
        with open(path, "rb") as file, (remote / path.name).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 24)
    records.write_json(remote / LIST, {path.name: _digest(path) for path in paths})


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
