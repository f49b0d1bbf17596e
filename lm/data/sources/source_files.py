"""Files of a source: names, compression, encoding and lines.

    files = list_files("jsonl", "wiki/{a,b}/*.jsonl.gz", JSON_SUFFIXES)
    files.paths, files.omitted                     # [Path(...), ...], {".pdf": 3}
    for line in read_lines(files.paths[0]):
        text = decode_text(line, "where")

The first bytes of a file determine its compression (gzip, zstd, bzip2, xz) and its encoding. Text
without a byte order mark is UTF-8. Paths may be addresses of object storage: see storage/.
"""

import codecs
import collections
import glob
import itertools
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import zstandard

from lm.data.storage import decompression, remote_path

TEXT_SUFFIXES = {
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org"),
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".go"),
    *(".rs", ".rb", ".sh", ".sql", ".jl", ".r"),
}
JSON_SUFFIXES = {".jsonl", ".json", ".ndjson", ".jsonlines"}
PARQUET_SUFFIXES = {".parquet", ".parq", ".pq"}
MAX_LINE_BYTES = 1 << 30  # of a line that is read as a whole
KERNEL_FOLDERS = ("/proc", "/sys")
WHOLE_DISK = ("/", "/dev", *KERNEL_FOLDERS)
# First bytes of formats that contain no plain text -> (name, remedy).
OTHER_FORMATS = {
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"\x04\x22\x4d\x18": ("compressed by lz4", "unpack it"),
    b"\x1f\x9d": ("compressed by compress", "unpack it"),
    b"PAR1": ("a Parquet file", "read it as parquet:FILE"),
    b"%PDF-": ("a PDF file", "convert it to text"),
}
_READ_ERRORS = (
    *(OSError, EOFError, UnicodeError, MemoryError),
    *(zlib.error, zstandard.ZstdError, lzma.LZMAError),
)
_GLOB_CHARACTERS = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


class SourceFiles(NamedTuple):
    """The files of a source, and the number of files that are not read."""

    paths: list[remote_path.AnyPath]
    omitted: dict[str, int]  # suffix or reason -> number of files


def list_files(kind: str, pattern: str, suffixes: set[str]) -> SourceFiles:
    """Return the files of a path, a folder or a glob, in a fixed order.

    A path that exists is that file or folder, even if it contains glob characters. A folder means
    all files below it with one of `suffixes`, plain or compressed. Symbolic links are followed. A
    glob may contain `**` and `{a,b}`. kind: prefix of the source, for error messages. Raises
    ValueError if there is no such file.
    """
    source = f"{kind}:{pattern}"
    if remote_path.is_remote_address(pattern):
        return _list_remote_files(source, pattern, suffixes)
    path = Path(os.path.expanduser(pattern))
    omitted: collections.Counter[str] = collections.Counter()
    try:
        _check_not_root(source, path)
        if path.is_dir():
            paths = _files_below(path, suffixes, omitted)
        elif path.exists() or not _GLOB_CHARACTERS.search(pattern):
            if not path.exists():
                is_dangling = path.is_symlink()
                problem = "a link to a missing file" if is_dangling else "no such file or folder"
                raise ValueError(f"{source}: there is {problem}: correct the path")
            paths = [path]
        else:
            paths = _matching_paths(str(path), omitted)
        regular = [path for path in paths if _is_regular(path, omitted)]
    except OSError as error:
        raise_unreadable(error)
    return _checked_files(source, path, regular, omitted, suffixes)


def _checked_files(
    source: str,
    path: remote_path.AnyPath,
    files: Sequence[remote_path.AnyPath],
    omitted: collections.Counter[str],
    suffixes: set[str],
) -> SourceFiles:
    """Return the files of a source. Raises ValueError if there is no file."""
    if not files:
        counts = format_counts(omitted)
        left_out = f" (left out: {counts})" if counts else ""
        if path.is_dir():
            known = ", ".join(sorted(suffixes))
            raise ValueError(
                f"{source}: contains no file with {known}{left_out}: name a file or a glob"
            )
        raise ValueError(f"{source}: no file matches {path}{left_out}: correct the pattern")
    return SourceFiles(list(files), dict(sorted(omitted.items())))


def _list_remote_files(source: str, pattern: str, suffixes: set[str]) -> SourceFiles:
    """Return the objects of an address, a folder or a glob in object storage. See `list_files`."""
    omitted: collections.Counter[str] = collections.Counter()
    try:
        path = _open_address(source, pattern)
        if path.is_file():
            files = [path]
        elif path.is_dir():
            n_folder = len(str(path).rstrip("/")) + 1
            files = [
                file
                for file in path.find_files()
                if _has_suffix(str(file)[n_folder:], suffixes, omitted)
            ]
        elif _GLOB_CHARACTERS.search(pattern):
            globs = _expand_braces(pattern)
            matches = {file for text in globs for file in path.find_matches(text)}
            files = sorted((file for file in matches if file.is_file()), key=str)
            if n_folders := len(matches) - len(files):
                omitted["folder"] = n_folders
        else:
            raise ValueError(f"{source}: there is no such object or folder: correct the address")
    except OSError as error:
        raise_unreadable(error)
    return _checked_files(source, path, files, omitted, suffixes)


def _open_address(source: str, address: str) -> remote_path.RemotePath:
    """Return the path of an address. Raises ValueError, naming the source, for its scheme."""
    try:
        return remote_path.RemotePath(address)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _has_suffix(name: str, suffixes: set[str], omitted: collections.Counter[str]) -> bool:
    """Return True if a file below a folder has one of the suffixes, and count it otherwise."""
    *folders, file_name = name.split("/")
    base, compression = decompression.split_compression(file_name.lower())
    suffix = os.path.splitext(base)[1]
    if any(folder.startswith(".") for folder in folders):
        omitted["in a hidden folder"] += 1
    elif file_name.startswith("."):
        omitted["hidden"] += 1
    elif suffix in suffixes:
        return True
    else:
        omitted[f"{suffix}{compression}" or "without suffix"] += 1
    return False


def _check_not_root(source: str, path: Path) -> None:
    """Raise ValueError for a search of the whole disk, or of the files of the kernel.

    source: for the error message. A search begins at the folder, or before the first `**`.
    """
    parts = path.parts
    if "**" in parts:
        path = Path(*parts[: parts.index("**")])
    elif not path.is_dir():
        return
    real_path = os.path.realpath(path)
    if real_path in WHOLE_DISK or real_path.startswith(tuple(f"{top}/" for top in KERNEL_FOLDERS)):
        raise ValueError(f"{source}: {real_path} is no folder of text: name a folder below it")


def format_counts(counts: dict[str, int]) -> str:
    """Return "3 .pdf, 1 hidden" for counts by reason."""
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items()))


def _files_below(top: Path, suffixes: set[str], omitted: collections.Counter[str]) -> list[Path]:
    """Return the files below a folder that have one of `suffixes`, and count the others.

    Each folder is read once, even if several links lead to it. A link to a folder that contains
    `top` is not followed.
    """
    paths: list[Path] = []
    real_top = os.path.realpath(top)
    visited = {real_top}
    for folder, folders, files in os.walk(top, onerror=raise_unreadable, followlinks=True):
        names = sorted(folders)
        folders.clear()
        for name in names:
            real = os.path.realpath(os.path.join(folder, name))
            if name.startswith("."):
                omitted["hidden folder"] += 1
            elif real in visited or real_top.startswith(os.path.join(real, "")):
                omitted["linked folder that is read elsewhere"] += 1
            else:
                visited.add(real)
                folders.append(name)
        for name in sorted(files):
            if _has_suffix(name, suffixes, omitted):
                paths.append(Path(folder, name))
    return paths


def _matching_paths(pattern: str, omitted: collections.Counter[str]) -> list[Path]:
    """Return the paths that match a glob, each target of links once, and count the others."""
    names = {name for p in _expand_braces(pattern) for name in glob.glob(p, recursive=True)}
    # A link to a parent folder gives each file many names. The shortest is used.
    by_length = sorted(names, key=lambda name: (-len(name), name))
    paths = {os.path.realpath(name): Path(name) for name in by_length}
    if len(names) > len(paths):
        omitted["linked file that is read elsewhere"] = len(names) - len(paths)
    return sorted(paths.values(), key=str)


def _is_regular(path: Path, omitted: collections.Counter[str]) -> bool:
    """Return True if the path is a file that can be opened, and count it otherwise."""
    if path.is_file():
        return True
    if path.is_dir():
        omitted["folder"] += 1
    elif path.is_symlink() and not path.exists():
        omitted["link to a missing file"] += 1
    else:
        omitted["pipe or device"] += 1
    return False


def _expand_braces(pattern: str) -> list[str]:
    """Return the patterns of all alternatives in braces, as in a shell."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    start, stop = match.span()
    return [
        expanded
        for option in match[1].split(",")
        for expanded in _expand_braces(pattern[:start] + option + pattern[stop:])
    ]


def read_lines(path: remote_path.AnyPath, max_bytes: int = 0) -> Iterator[bytes]:
    r"""Yield the lines of a file in UTF-8, each with its line end \n, \r or \r\n.

    With max_bytes, a line longer than 4 max_bytes is yielded in fragments of at most max_bytes
    until its remainder is shorter. A fragment ends after a space, or after a character if it
    contains no space. Memory use then does not grow with the line. Raises ValueError for a file
    that cannot be read to its end, and without max_bytes for a line beyond MAX_LINE_BYTES.
    """
    pending: list[bytes] = []
    n_pending, carriage_return = 0, b""
    for chunk in _read_utf8(path):
        chunk = carriage_return + chunk
        # A line end may be divided between two chunks.
        carriage_return = b"\r" if chunk.endswith(b"\r") else b""
        for line in chunk[: len(chunk) - len(carriage_return)].splitlines(keepends=True):
            pending.append(line)
            n_pending += len(line)
            is_complete = line.endswith((b"\n", b"\r"))
            if not max_bytes and n_pending > MAX_LINE_BYTES:
                raise ValueError(
                    f"{path}: has a line of more than {MAX_LINE_BYTES:,} bytes: divide the line"
                )
            if is_complete or (max_bytes and n_pending > 4 * max_bytes):
                *fragments, remainder = _cut_line(b"".join(pending), max_bytes)
                yield from fragments
                if is_complete:
                    yield remainder
                pending = [] if is_complete else [remainder]
                n_pending = sum(map(len, pending))
    if pending or carriage_return:
        yield from _cut_line(b"".join(pending) + carriage_return, max_bytes)


def _cut_line(line: bytes, max_bytes: int) -> list[bytes]:
    """Return the fragments of a line; the last one has at most 4 max_bytes."""
    fragments, start = [], 0
    while max_bytes and len(line) - start > 4 * max_bytes:
        stop = line.rfind(b" ", start, start + max_bytes) + 1
        if not stop:
            stop = start + max_bytes
            # The bytes 0x80 to 0xBF continue a character of UTF-8, which has at most 4 bytes.
            while stop > start + max_bytes - 4 and 0x80 <= line[stop] < 0xC0:
                stop -= 1
        fragments.append(line[start:stop])
        start = stop
    return [*fragments, line[start:]]


def decode_text(raw: bytes, where: str, start: int = 0) -> str:
    """Decode UTF-8 and remove a byte order mark. `start` is the position of `raw` in its file.

    Raises ValueError with `where` and the position of NUL or of the first invalid byte.
    """
    if b"\0" in raw:
        position = start + raw.index(0)
        raise ValueError(
            f"{where}: is binary, not text: NUL at byte {position}: convert the file to UTF-8, or"
            " remove it"
        )
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        position = start + error.start
        raise ValueError(
            f"{where}: is not UTF-8 at byte {position}: convert it, such as by"
            " iconv -f CP1252 -t UTF-8"
        ) from None


def _read_utf8(path: remote_path.AnyPath) -> Iterator[bytes]:
    """Yield the decompressed content of a file in UTF-8, in chunks."""
    try:
        with path.open("rb") as file:
            chunks = decompression.decompress(file, path.suffix)
            head = b""
            while len(head) < decompression.HEAD_BYTES and (chunk := next(chunks, b"")):
                head += chunk
            _reject_other_format(head, path)
            chunks = itertools.chain([head], chunks)
            mark = next(
                (mark for mark in decompression.BYTE_ORDER_MARKS if head.startswith(mark)), b""
            )
            yield from _transcode(chunks, mark) if mark else chunks
    except _READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno:  # bzip2 has errors without a number
            raise_unreadable(error, path)
        raise ValueError(f"{path}: cannot be read to its end ({error}): replace the file") from None


def _reject_other_format(head: bytes, path: remote_path.AnyPath) -> None:
    """Raise ValueError if a file begins like a known format that is not plain text."""
    if head[257:262] == b"ustar":
        raise ValueError(f"{path}: is a tar archive, not text: unpack it")
    for magic, (name, remedy) in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise ValueError(f"{path}: is {name}, not text: {remedy}")


def _transcode(chunks: Iterator[bytes], mark: bytes) -> Iterator[bytes]:
    """Yield text after a byte order mark in UTF-8.

    Half a surrogate pair becomes invalid UTF-8, so that `decode_text` rejects only its line. Raises
    UnicodeError if the text ends within a character.
    """
    decoder = codecs.getincrementaldecoder(decompression.BYTE_ORDER_MARKS[mark])("surrogatepass")
    text = decoder.decode(next(chunks).removeprefix(mark))
    for chunk in chunks:
        yield text.encode("utf-8", "surrogatepass")
        text = decoder.decode(chunk)
    yield (text + decoder.decode(b"", final=True)).encode("utf-8", "surrogatepass")


def raise_unreadable(error: OSError, path: remote_path.AnyPath | None = None) -> NoReturn:
    """Raise ValueError with the path and reason of an OSError."""
    reason = error.strerror or error
    raise ValueError(f"{path or error.filename}: cannot be read ({reason})") from None
