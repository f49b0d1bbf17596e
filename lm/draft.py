"""Partially prepared source on disk. An interrupted preparation resumes from it.

    with Draft(Path("data"), "wiki-91c07d44e3b5", fingerprints) as draft:
        for document in sifted(...):           # from part draft.part on: earlier parts are stored
            draft.add(document)
        draft.finish()
        draft.move(Path("data/wiki-91c07d44e3b5"))

data/.wiki-91c07d44e3b5/
    train.bin, heldout.bin    token ids; bytes after the last save are truncated on resume
    digests                   SHA-256 and split of each accepted document, for the content hash
    seen.sqlite               document hashes, and counts at the last save: see seen.Seen
"""

import collections
import contextlib
import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import filelock

from lm import seen, sift

SPLITS = ("train", "heldout")
FILES = ("train.bin", "heldout.bin", "digests")
SAVE_SECONDS = 5.0  # minimum time between saves, which happen at the ends of parts
DIGEST = 40  # bytes per document: SHA-256, then the split, padded
COUNTS = ("documents", "bytes", "tokens", "counted")


class Draft:
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
        self._seen = seen.Seen(self.folder / "seen.sqlite", self.before)
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

    def add(self, document: sift.Sifted) -> None:
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
