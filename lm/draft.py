"""A prepared source that is not whole yet: what a killed call leaves, the next one goes on with.

    with Draft(Path("data"), "wiki-91c07d44e3b5", prints) as draft:
        for one in sifted(...):                # from the part draft.part on: the others are in it
            draft.add(one)
        draft.finish()
        draft.move(Path("data/wiki-91c07d44e3b5"))

data/.wiki-91c07d44e3b5/
    train.bin, heldout.bin    token ids up to here; what is longer than was saved is cut off
    digests                   SHA-256 and side of each document that is kept, for the hash of all
    seen.sqlite               what was seen, and the counts: see seen.Seen
"""

import collections
import contextlib
import fcntl
import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from lm import seen, sift

SPLITS = ("train", "heldout")
FILES = ("train.bin", "heldout.bin", "digests")
SAVE_SECONDS = 5.0  # between two savings, which are at the ends of parts
DIGEST = 40  # bytes: SHA-256, then the side
COUNTS = ("documents", "bytes", "tokens", "counted")


class Draft:
    """Open for writing by one process; a second one at the same time gets a folder of its own.

    prints: a fingerprint of each part of the source. What was saved counts as long as the parts up
    to there are the same; else all begins anew. before: the `seen` files of sources whose documents
    are not to come again. Left without `move`, a draft stays for the next call if a part is saved.
    """

    def __init__(self, cache: Path, name: str, prints: list, before: Iterable[Path] = ()):
        self.prints, self.before = prints, list(before)
        self.folder, self._lock = _claimed(cache, name)
        try:
            self._open()
        except (ValueError, KeyError, sqlite3.DatabaseError):  # damaged, or of other parts
            if self._lock is not None:
                os.close(self._lock)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder, self._lock = _claimed(cache, name)
            self._open()
        self._saved_at = time.monotonic()

    def _open(self) -> None:
        self._seen = seen.Seen(self.folder / "seen.sqlite", self.before)
        saved = self._seen.saved()
        self.part = saved.get("part", 0)
        if saved and saved["prints"] != self._prints_of(self.part):
            raise ValueError("other parts")
        self.counts: dict[str, dict[str, int]] = saved.get("counts") or {
            what: dict.fromkeys(SPLITS, 0) for what in COUNTS
        }
        self.duplicates: int = saved.get("duplicates", 0)
        self.dropped = collections.Counter(saved.get("dropped", {}))
        self._files = {name: open(self.folder / name, "ab") for name in FILES}
        for name, file in self._files.items():
            size = saved.get("sizes", {}).get(name, 0)
            if os.fstat(file.fileno()).st_size < size:
                raise ValueError("shorter than was saved")
            file.truncate(size)
            file.seek(size)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError, sqlite3.Error):  # of a full disk: it was told before
            self._close()
        if self.folder.name.startswith(".") and (self._lock is None or not self.part):
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def add(self, one: sift.Sifted) -> None:
        """Writes a document, or counts why it is left out; saves at the end of a part, at times."""
        if one.part > self.part and time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save(one.part)
        if one.error:
            self.dropped["broken"] += 1
            return
        if not self._seen.add(one.digest):
            self.duplicates += 1
            return
        complaint = one.complaint or ("near_copy" if self._seen.has_band(one.bands) else "")
        if complaint:
            self.dropped[complaint] += 1
            return
        self._seen.add_bands(one.bands)
        self._files["digests"].write((one.digest + one.split.encode()).ljust(DIGEST))
        self._files[f"{one.split}.bin"].write(one.ids)
        for what, n in zip(COUNTS, (1, one.n_bytes, one.n_tokens, one.n_counted), strict=True):
            self.counts[what][one.split] += n

    @property
    def size(self) -> tuple[int, int]:
        """Documents and bytes of text that are in it."""
        return sum(self.counts["documents"].values()), sum(self.counts["bytes"].values())

    def finish(self) -> str:
        """Closes the files and returns the hash over the documents and their sides, in order."""
        self._save(len(self.prints))
        self._close()
        content = hashlib.sha256()
        with open(self.folder / "digests", "rb") as file:
            while row := file.read(DIGEST):
                content.update(row.rstrip())
        (self.folder / "digests").unlink()
        return content.hexdigest()

    def move(self, folder: Path) -> None:
        """Gives the whole its name. OSError if there is something of that name; then it is lost."""
        self.part = 0
        self.folder.rename(folder)
        self.folder = folder

    def _save(self, part: int) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._seen.save(
            {
                "part": part,
                "prints": self._prints_of(part),
                "counts": self.counts,
                "duplicates": self.duplicates,
                "dropped": self.dropped,
                "sizes": {name: file.tell() for name, file in self._files.items()},
            }
        )
        self.part, self._saved_at = part, time.monotonic()

    def _prints_of(self, part: int) -> str:
        return hashlib.sha256(repr(self.prints[:part]).encode()).hexdigest()

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._seen.close()


def _claimed(cache: Path, name: str) -> tuple[Path, int | None]:
    """The folder of a draft and the lock on it; where that is taken, a new one without a lock.

    The lock is on the folder itself, so it goes with the process that holds it, however it ends.
    """
    folder = cache / f".{name}"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process has it, or this file system knows no locks
            os.close(lock)
            return Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache)), None
        if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
            return folder, lock
        os.close(lock)  # it was finished, and renamed, in between
