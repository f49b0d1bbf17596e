"""SHA-256 checksums of files in blocks, and the damage of a file.

    checksums = block_checksums(path)            # one checksum per BLOCK_BYTES bytes
    file_damage(path, checksums)                 # "" if the file agrees with them

SHA-256 processes 1.7 GB/s per core on a processor with SHA instructions. A file is verified once
per process, and again after a change of its size, inode or time.
"""

import functools
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lm.data.storage import byte_ranges, remote_path

BLOCK_BYTES = 1 << 20  # a multiple of the width of every token type
# Time stamps of some file systems have a resolution of milliseconds. A file that changed this
# shortly before its verification may change again without a new time stamp.
RECENT_SECONDS = 2.0


class DamagedText(ValueError):
    """Prepared text that differs from its checksums or from its counts."""


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def section_sha256(path: Path, start: int, size: int) -> str:
    """Return the SHA-256 of `size` bytes of a file, from the byte `start` on."""
    content = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        while size and (block := file.read(min(size, BLOCK_BYTES))):
            content.update(block)
            size -= len(block)
    return content.hexdigest()


def block_checksums(path: remote_path.AnyPath) -> list[str]:
    """Return the SHA-256 of each block of BLOCK_BYTES bytes of a file. The last may be shorter."""
    return [sha256(block) for block in _read_blocks(path)]


def content_checksums(content: bytes) -> list[str]:
    """Return the block checksums of a file with this content."""
    starts = range(0, len(content), BLOCK_BYTES)
    return [sha256(content[start : start + BLOCK_BYTES]) for start in starts]


def file_damage(
    path: remote_path.AnyPath, checksums: Iterable[str] | None, dtype: str = "", vocab_size: int = 0
) -> str:
    """Return the first difference between a file and its checksums, "" without any.

    checksums: SHA-256 of each block; None verifies the token ids only. dtype and vocab_size: type
    of the token ids and number of different ids, for a token file. Raises OSError if the file
    cannot be read.
    """
    stored = None if checksums is None else tuple(checksums)
    return _damage(str(path), file_state(path), stored, dtype, vocab_size)


def file_state(path: remote_path.AnyPath) -> tuple:
    """Return values that change with the content of a file, as a key of cached results.

    Two calls return different values if the file changed in the last RECENT_SECONDS.
    """
    if isinstance(path, remote_path.RemotePath):
        return tuple(path.stat())
    stat = os.stat(path)
    changed_at = max(stat.st_mtime, stat.st_ctime)
    is_recent = abs(time.time() - changed_at) < RECENT_SECONDS
    nonce = time.monotonic_ns() if is_recent else 0
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, nonce


@functools.lru_cache(maxsize=512)
def _damage(
    path: str, state: tuple, checksums: tuple[str, ...] | None, dtype: str, vocab_size: int
) -> str:
    """Compute `file_damage`. state: identity of the content, by which results are cached."""
    n_blocks = 0
    for number, block in enumerate(_read_blocks(remote_path.open_address(path))):
        expected = None if checksums is None else "".join(checksums[number : number + 1])
        ids = np.frombuffer(block, dtype) if dtype else None
        if damage := block_damage(block, number, expected, ids, vocab_size):
            return damage
        n_blocks += 1
    if checksums is not None and n_blocks < len(checksums):
        return f"bytes {n_blocks * BLOCK_BYTES:,} and later are missing"
    return ""


def block_damage(
    block: bytes | memoryview, number: int, expected: str | None, ids: np.ndarray | None, vocab: int
) -> str:
    """Return the difference between a block and its checksum, or an invalid token id, or "".

    expected: SHA-256 of the block; None without a checksum. ids: token ids of the block, if it has
    token ids. vocab: number of different token ids.
    """
    first = number * BLOCK_BYTES
    last = first + memoryview(block).nbytes - 1
    if expected is not None and hashlib.sha256(block).hexdigest() != expected:
        return f"the SHA-256 of bytes {first:,} to {last:,} differs"
    if ids is not None and len(ids) and ids.max() >= vocab:
        return f"token id {ids.max()} in bytes {first:,} to {last:,} is not below {vocab}"
    return ""


def _read_blocks(path: remote_path.AnyPath) -> Iterator[bytes]:
    """Yield the blocks of a file. Only the last may be shorter than BLOCK_BYTES."""
    return byte_ranges.stream_chunks(path, BLOCK_BYTES)


@functools.cache
def print_note(line: str) -> None:
    """Print a line to stderr. An equal line is printed once per process."""
    print(line, file=sys.stderr, flush=True)
