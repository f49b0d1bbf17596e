"""Prepared text in a bucket: data.cache="gs://bucket/data", and its copy on this machine.

    copies.fetch(data, place(data) / "docs-3f2a81c09d7e")    # from the bucket, if it is there alone
    copies.store(data, place(data) / "docs-3f2a81c09d7e")    # into the bucket, if it is here alone

A folder in the bucket is that of lm/corpus.py with LIST, written last: without it, it is not whole.
Where data.cache is on this machine, it is the place, and nothing is copied.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

from lm import config, records, storage

LIST = "files.json"  # name of a file -> its SHA-256


def place(data: config.Data) -> Path:
    """Where token files are read from on this machine: data.cache, or below data.copies."""
    if not storage.is_remote(data.cache):
        return Path(data.cache)
    return Path(data.copies, data.cache.partition("://")[2])


def fetch(data: config.Data, folder: Path) -> None:
    """Copies a folder that the bucket has and this machine has not.

    ValueError for a file that is not what was prepared; OSError for a disk that cannot be written.
    """
    if not storage.is_remote(data.cache) or folder.exists():
        return
    far = storage.at(data.cache) / folder.name
    if not (far / LIST).exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, digest in records.read_json(far / LIST).items():
            if Path(name).name != name:
                raise ValueError(f"{far / LIST}: {name!r} is no plain name: delete {far}")
            with (far / name).open("rb") as file, open(temporary / name, "wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 24)
            if _digest(temporary / name) != digest:
                rule = "is not what was prepared: its SHA-256 differs"
                raise ValueError(f"{far / name} {rule}; delete {far}, and it is prepared again")
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def store(data: config.Data, folder: Path) -> None:
    """Copies a folder that was prepared here into the bucket, unless it has it."""
    if not storage.is_remote(data.cache):
        return
    far = storage.at(data.cache) / folder.name
    if (far / LIST).exists():
        return
    here = sorted(folder.iterdir())
    for path in here:
        with open(path, "rb") as file, (far / path.name).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 24)
    records.write_json(far / LIST, {path.name: _digest(path) for path in here})


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
