"""Readers of text files, JSON Lines and Parquet, plain or compressed.

for read in jsonl("wiki/*.jsonl.gz", "text"):        # one part per file
    for document in read(stop):
        print(document.name, len(document.text))
"""

import functools
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

import zstandard

# A text file becomes many documents, so that a part of it can be held out.
PIECE_BYTES = 1 << 14
TEXT_SUFFIXES = {
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org"),
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".go"),
    *(".rs", ".rb", ".sh", ".sql", ".jl", ".r"),
}


class Document(NamedTuple):
    """A document of a source, or the error of an input that could not be read."""

    text: str
    name: str  # origin: a file, or a file and a position in it
    home: str = ""  # documents of one home are held out together; "": decided by the text
    part: int = 0  # index of the part of the source
    error: str = ""  # one-line message if the input could not be read


# Handler of one-line error messages. It raises to stop reading, or returns to skip the input.
ErrorHandler = Callable[[str], None]
# Reader of one part of a source, such as a file. A ValueError ends the reading of the part.
Shard = Callable[[ErrorHandler], Iterable[Document]]


def raise_error(message: str) -> NoReturn:
    """Raise ValueError: the error handler that stops at the first error."""
    raise ValueError(message) from None


def text_files(rest: str) -> list[Path]:
    """Return the file, or all text files below the folder by suffix, in a fixed order."""
    top = Path(rest).expanduser()
    if top.is_file():
        return [top]
    if not top.exists():
        raise ValueError(f"text:{rest}: there is no such file or folder: correct the path")
    paths = []
    for folder, folders, files in os.walk(top, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if not name.startswith("."))
        candidates = (Path(folder, name) for name in names)
        paths += [p for p in candidates if p.suffix.lower() in TEXT_SUFFIXES and p.is_file()]
    if not paths:
        suffixes = ", ".join(sorted(TEXT_SUFFIXES))
        raise ValueError(f"text:{rest}: holds no file with {suffixes}: rename the text files")
    return paths


def read_text(rest: str) -> list[Shard]:
    """Return one part per file of `of_text`, read in pieces of about PIECE_BYTES."""
    return [functools.partial(_pieces, path) for path in text_files(rest)]


def _pieces(path: Path, refuse: ErrorHandler) -> Iterator[Document]:
    start, end, lines = 0, 0, []
    for line in _lines(path):
        lines.append(line)
        end += len(line)
        # Without a blank line the piece ends at the next line after four times the size.
        if end - start >= PIECE_BYTES * (1 if not line.strip() else 4):
            yield _piece(path, lines, start)
            start, lines = end, []
    yield _piece(path, lines, start)


def _piece(path: Path, lines: list[bytes], start: int) -> Document:
    text = _decoded(b"".join(lines), str(path), start).strip("\n")
    return Document(text, f"{path} at byte {start}")


def expand_glob(pattern: str) -> list[Path]:
    """Return the files of a glob (** is recursive), sorted. Raises ValueError if none match."""
    pattern = os.path.expanduser(pattern)
    matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    paths = [path for path in matches if path.is_file()]
    if not paths:
        raise ValueError(f"data.sources: no file matches {pattern}: correct the pattern")
    return paths


def jsonl_files(pattern: str, field: str) -> list[Shard]:
    """Return one part per JSON Lines file (plain, .gz or .zst), one document per non-empty line."""
    return [functools.partial(_jsonl, path, field) for path in expand_glob(pattern)]


def _jsonl(path: Path, field: str, refuse: ErrorHandler) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        document = _line(line, field, f"{path} line {number}", refuse)
        if document:
            yield document


def _line(line: bytes, field: str, where: str, refuse: ErrorHandler) -> Document | None:
    try:
        text = _decoded(line, where)
        return (
            Document(normalize_newlines(_field(text, field, where)), where)
            if text.strip()
            else None
        )
    except ValueError as error:
        refuse(str(error))


def parquet_files(pattern: str, field: str) -> list[Shard]:
    """Return one part per Parquet file, one document per row with text, read in batches."""
    return [functools.partial(_parquet, path, field) for path in expand_glob(pattern)]


def _parquet(path: Path, field: str, refuse: ErrorHandler) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise_error(f"{path}: has no field {field!r} but {names}: choose with ?field=NAME")
            rows = (
                row
                for batch in file.iter_batches(batch_size=1024, columns=[field])
                for row in batch.column(0).to_pylist()
            )
            for number, text in enumerate(rows):
                if text is not None and not isinstance(text, str):
                    raise_error(f"{path}: field {field!r} is {type(text).__name__}, not text")
                if text and text.strip():
                    yield Document(normalize_newlines(text), f"{path} row {number}")
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise_error(f"{path}: cannot be read ({first_line(str(error))}): replace the file")


def first_line(text: str) -> str:
    """Return the text on one line. Error messages of libraries often have several."""
    return " ".join(text.split())


def read_json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (file and line number, object) of JSON Lines. Raises ValueError for a bad line."""
    for number, line in enumerate(_lines(path), 1):
        where = f"{path} line {number}"
        if line.strip():
            yield where, _object(_decoded(line, where), where)


def _object(text: str, where: str) -> dict:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be a JSON object")
    return row


def _field(text: str, field: str, where: str) -> str:
    row = _object(text, where)
    if field not in row:
        names = ", ".join(row) or "nothing"
        raise ValueError(f"{where}: has no field {field!r} but {names}: choose with ?field=NAME")
    if not isinstance(row[field], str):
        raise ValueError(f"{where}: field {field!r} is {type(row[field]).__name__}, not text")
    return row[field]


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a plain, .gz or .zst file. Raises ValueError if it ends too early."""
    try:
        with open(path, "rb") as file:
            if path.suffix == ".gz":
                yield from gzip.GzipFile(fileobj=file)
            elif path.suffix == ".zst":
                yield from _zst_lines(file)
            else:
                yield from file
    except OSError as error:
        _unreadable(error, path)
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{path}: cannot be read to its end ({error})") from None


def _unreadable(error: OSError, path: Path | None = None):
    reason = error.strerror or error
    raise ValueError(f"{path or error.filename}: cannot be read ({reason})") from None


def _zst_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of all frames.

    The reader of the zstandard library does not report a truncated file.
    """
    frame, rest = zstandard.ZstdDecompressor().decompressobj(), b""
    for chunk in iter(lambda: file.read(1 << 17), b""):
        while chunk:
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            *lines, rest = (rest + frame.decompress(chunk)).split(b"\n")
            yield from (line + b"\n" for line in lines)
            chunk = frame.unused_data
    if not frame.eof:
        raise EOFError("the file ends within a zstd frame")
    yield rest


def _decoded(raw: bytes, where: str, start: int = 0) -> str:
    if b"\0" in raw:
        raise ValueError(f"{where}: is binary, not text: NUL at byte {start + raw.index(0)}")
    try:
        return normalize_newlines(raw.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        position = start + error.start
        raise ValueError(f"{where}: is not UTF-8 at byte {position}: convert it") from None


def normalize_newlines(text: str) -> str:
    """Return the text with the line ends of all systems replaced by \\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
