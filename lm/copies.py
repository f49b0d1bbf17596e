"""Remote cache of prepared text, such as data.cache="gs://bucket/data", and its local copy.

    folder = place(data) / "docs-3f2a81c09d7e"
    fetch(data, folder)    # download, if only the remote cache has it
    store(data, folder)    # upload, if the remote cache does not have it

A remote folder has the files of a prepared corpus (see corpus) and LIST, which is written last: a
folder without LIST is incomplete. If data.cache is a local folder, nothing is copied.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

from lm import config, records, storage

LIST = "files.json"  # name of a file -> its SHA-256


def place(data: config.Data) -> Path:
    """Return the local folder of token files: data.cache, or a folder below data.copies."""
    if not storage.is_remote(data.cache):
        return Path(data.cache)
    return Path(data.copies, data.cache.partition("://")[2])


def fetch(data: config.Data, folder: Path) -> None:
    """Download a folder that the remote cache has and this machine does not.

    Raises ValueError if a file differs from its checksum, OSError if the local disk cannot be
    written.
    """
    if not storage.is_remote(data.cache) or folder.exists():
        return
    remote = storage.at(data.cache) / folder.name
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


def store(data: config.Data, folder: Path) -> None:
    """Upload a local folder to the remote cache, unless the remote cache has it."""
    if not storage.is_remote(data.cache):
        return
    remote = storage.at(data.cache) / folder.name
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
