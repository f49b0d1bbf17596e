"""Folder of compiled programs: one per user, without damaged files, limited in size.

    if folder := program_cache.open_program_folder():
        jax.config.update("jax_compilation_cache_dir", str(folder))

JAX writes a file per program and never replaces a file. A process that is killed during a write
leaves a truncated file, which every later process would report and compile again. Several processes
can use the folder at once. This file does not import JAX.
"""

import contextlib
import importlib
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

from lm.runs import filesystem

SUFFIX = "-cache"  # of the files of JAX
STAMP = ".checked"  # file whose modification time is the start of the last check
WRITE_SECONDS = 10.0  # a file that changed later may be incomplete because it is being written
MAX_BYTES = 4 * 2**30
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def program_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of compiled programs of this user, the same in every working directory."""
    return filesystem.user_cache_folder(environment) / "compiled"


def open_program_folder(folder: Path | None = None, max_bytes: int = MAX_BYTES) -> Path | None:
    """Create and clean the folder of compiled programs. Return None if it cannot be written.

    Truncated files are removed, and the oldest files beyond max_bytes, also those of subfolders. A
    file is checked once, because a complete file does not change. folder: None is `program_folder`.
    """
    try:
        folder = folder or program_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        now, stamp = time.time(), folder / STAMP
        checked = stamp.stat().st_mtime if stamp.exists() else 0.0
        files = _list_files(folder)
        for file, status in files.items():
            is_unchecked = checked - WRITE_SECONDS <= status.st_mtime < now - WRITE_SECONDS
            if is_unchecked and file.parent == folder and file.name.endswith(SUFFIX):
                _remove_if_truncated(file)
        n_bytes = sum(status.st_size for status in files.values())
        for file in sorted(files, key=lambda file: files[file].st_mtime):
            if n_bytes <= max_bytes:
                break
            file.unlink(missing_ok=True)
            n_bytes -= files[file].st_size
        stamp.touch()
        # The next check reads the files that other processes have written during this one.
        os.utime(stamp, (now, now))
    except (OSError, RuntimeError):  # a home folder that is unknown, missing or read-only
        return None
    return folder


def _list_files(folder: Path) -> dict[Path, os.stat_result]:
    """Return all files except the stamp. Another process may remove a file during the call."""
    files = {}
    for parent, _, names in os.walk(folder):
        for file in (Path(parent, name) for name in names if name != STAMP):
            with contextlib.suppress(FileNotFoundError):
                files[file] = file.stat()
    return files


def _remove_if_truncated(file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not is_complete(file.read_bytes()):
            file.unlink()


def is_complete(data: bytes) -> bool:
    """Return True if a file of JAX can be decompressed. JAX uses zstandard or zlib."""
    if data.startswith(ZSTD_MAGIC):
        try:
            zstandard = importlib.import_module("zstandard")
        except ImportError:
            return True  # JAX cannot read the file either
        error, decompressor = zstandard.ZstdError, zstandard.ZstdDecompressor().decompressobj()
    else:
        error, decompressor = zlib.error, zlib.decompressobj()
    try:
        decompressor.decompress(data)
    except error:
        return False
    return decompressor.eof
