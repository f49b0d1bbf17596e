"""Decompress files by their first bytes: gzip, zstd, bzip2 and xz, of one or several streams.

with open("a.jsonl.zst", "rb") as file:
    for content in decompress(file, ".zst"):
        ...
"""

import bz2
import codecs
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import zstandard

CHUNK_BYTES = 1 << 14  # bytes of plain text that are read at once
# Compressed bytes that are read at once. They become at most 128 MiB: zstd has the highest ratio,
# with 128 KiB of equal bytes in a block of 4 bytes.
COMPRESSED_CHUNK_BYTES = 1 << 12
HEAD_BYTES = 512  # bytes at the start of a file that identify its format
MAX_ZSTD_WINDOW = 1 << 31  # bytes; zstd --long=31, the largest window of the format


# Byte order mark -> codec. The mark of UTF-32 begins with the mark of UTF-16, so it is first.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class Compression(NamedTuple):
    """A compression format."""

    suffixes: tuple[str, ...]
    magic: bytes  # first bytes of a file, as a regular expression
    n_magic: int  # number of these bytes
    open: Callable[[], Any]  # returns a new decompressor of one stream


COMPRESSIONS = (
    Compression((".gz", ".gzip"), rb"\x1f\x8b", 2, lambda: zlib.decompressobj(wbits=31)),
    Compression(
        (".zst", ".zstd"),
        rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",  # a frame, or a frame of metadata
        4,
        lambda: zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompressobj(),
    ),
    Compression(
        (".bz2",),
        rb"BZh[1-9](?:\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)",
        10,
        bz2.BZ2Decompressor,
    ),
    Compression((".xz",), rb"\xfd7zXZ\x00", 6, lzma.LZMADecompressor),
)


def split_compression(name: str) -> tuple[str, str]:
    """Return a file name without the suffix of its compression, and that suffix or ""."""
    base, suffix = os.path.splitext(name)
    is_compressed = any(suffix in compression.suffixes for compression in COMPRESSIONS)
    return (base, suffix) if is_compressed else (name, "")


def decompress(file: IO[bytes], suffix: str) -> Iterator[bytes]:
    """Yield the non-empty decompressed chunks of all streams of a file, or of a plain file.

    suffix: of the file name. Raises EOFError if the last stream is truncated.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    suffix = suffix.lower()
    for compression in COMPRESSIONS:
        if re.match(compression.magic, head):
            break
        # A compressed file is never empty. Another file with its suffix may be plain text.
        if suffix in compression.suffixes and len(head) < compression.n_magic:
            raise EOFError(f"the {suffix} file has only {len(head)} bytes")
        if suffix in compression.suffixes and not _is_text(head):
            raise EOFError(f"it begins neither like a {suffix} file nor like text")
    else:
        yield from iter(lambda: file.read(CHUNK_BYTES), b"")
        return
    decompressor = compression.open()
    for chunk in iter(lambda: file.read(COMPRESSED_CHUNK_BYTES), b""):
        while chunk:
            if decompressor.eof:
                chunk = chunk.lstrip(b"\0")  # padding after a stream
                if not chunk:
                    break
                decompressor = compression.open()
            if content := decompressor.decompress(chunk):
                yield content
            chunk = decompressor.unused_data if decompressor.eof else b""
    if not decompressor.eof:
        raise EOFError(f"the file ends within a {compression.suffixes[0]} stream")


def _is_text(head: bytes) -> bool:
    """Return True if the first bytes of a file may be text in a supported encoding."""
    if head.startswith(tuple(BYTE_ORDER_MARKS)):
        return True
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return "\0" not in text
