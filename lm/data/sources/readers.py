"""Readers of text files, JSON Lines and Parquet, plain or compressed.

    for read_shard in jsonl_files("wiki/*.jsonl.gz", "text"):        # one shard per file
        for document in read_shard(raise_error):
            print(document.name, len(document.text))

Each reader calls its error handler with a one-line message for each input that it cannot read.
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

# A text file is split into documents of about this size, so that some can be held out.
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
    home: str = ""  # documents of one home are held out together; "": the text decides
    part: int = 0  # index of the shard
    error: str = ""  # one-line message if the input could not be read


# Handler of one-line error messages. It raises to stop reading, or returns to skip the input.
ErrorHandler = Callable[[str], None]
# Reader of one shard of a source, such as a file. A ValueError ends the reading of the shard.
Shard = Callable[[ErrorHandler], Iterable[Document]]


def raise_error(message: str) -> NoReturn:
    """Raise ValueError with the message.

    With this error handler, a reader stops at the first error.
    """
    raise ValueError(message) from None


def text_files(path: str) -> list[Path]:
    """Return a file, or all text files below a folder, in a fixed order.

    Text files are recognized by TEXT_SUFFIXES. Names that begin with a dot are skipped. Raises
    ValueError if the path does not exist or has no text file.
    """
    top = Path(path).expanduser()
    if top.is_file():
        return [top]
    if not top.exists():
        raise ValueError(f"text:{path}: there is no such file or folder: correct the path")
    paths = []
    for folder, folders, files in os.walk(top, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if not name.startswith("."))
        candidates = (Path(folder, name) for name in names)
        paths += [p for p in candidates if p.suffix.lower() in TEXT_SUFFIXES and p.is_file()]
    if not paths:
        suffixes = ", ".join(sorted(TEXT_SUFFIXES))
        raise ValueError(f"text:{path}: contains no file with {suffixes}: rename the text files")
    return paths


def read_text(path: str) -> list[Shard]:
    """Return one shard per file of `text_files`, with documents of about PIECE_BYTES."""
    return [functools.partial(_file_pieces, file) for file in text_files(path)]


def _file_pieces(path: Path, on_error: ErrorHandler) -> Iterator[Document]:
    """Yield the documents of a text file. The first text is the home of all later documents."""
    home = ""
    for document in _text_documents(path, on_error):
        yield document._replace(home=home)
        if not home and document.text.strip():
            home = document.text


def _text_documents(path: Path, on_error: ErrorHandler) -> Iterator[Document]:
    """Yield the documents of a text file, split at blank lines."""
    start, end, lines = 0, 0, []
    for line in _read_lines(path):
        lines.append(line)
        end += len(line)
        # Without a blank line, a document ends at the first line end after four times the size.
        if end - start >= PIECE_BYTES * (1 if not line.strip() else 4):
            yield _text_document(path, lines, start)
            start, lines = end, []
    yield _text_document(path, lines, start)


def _text_document(path: Path, lines: list[bytes], start: int) -> Document:
    text = _decode(b"".join(lines), str(path), start).strip("\n")
    return Document(text, f"{path} at byte {start}")


def expand_glob(pattern: str) -> list[Path]:
    """Return the files of a glob (** is recursive), sorted.

    Raises ValueError if no file matches.
    """
    pattern = os.path.expanduser(pattern)
    matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    paths = [path for path in matches if path.is_file()]
    if not paths:
        raise ValueError(f"data.sources: no file matches {pattern}: correct the pattern")
    return paths


def jsonl_files(pattern: str, field: str) -> list[Shard]:
    """Return one shard per JSON Lines file (plain, .gz or .zst).

    pattern: glob of the files. Each non-empty line is a document, whose text is the value of
    `field`. Raises ValueError if no file matches.
    """
    return [functools.partial(_jsonl, path, field) for path in expand_glob(pattern)]


def _jsonl(path: Path, field: str, on_error: ErrorHandler) -> Iterator[Document]:
    for number, line in enumerate(_read_lines(path), 1):
        document = _line_document(line, field, f"{path} line {number}", on_error)
        if document:
            yield document


def _line_document(line: bytes, field: str, where: str, on_error: ErrorHandler) -> Document | None:
    """Return the document of a JSON line; None if the line is empty or `on_error` returns."""
    try:
        text = _decode(line, where)
        if not text.strip():
            return None
        return Document(normalize_newlines(_text_field(text, field, where)), where)
    except ValueError as error:
        on_error(str(error))


def parquet_files(pattern: str, field: str) -> list[Shard]:
    """Return one shard per Parquet file. A shard reads its file in batches of rows.

    pattern: glob of the files. field: column of the text. Each row with text is a document. Raises
    ValueError if no file matches.
    """
    return [functools.partial(_parquet, path, field) for path in expand_glob(pattern)]


def _parquet(path: Path, field: str, on_error: ErrorHandler) -> Iterator[Document]:
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
    """Return the text on one line. Error messages of libraries often have several lines."""
    return " ".join(text.split())


def read_json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield ("FILE line N", object) of each non-empty line of a JSON Lines file.

    Raises ValueError for a line that is not a JSON object in UTF-8.
    """
    for number, line in enumerate(_read_lines(path), 1):
        where = f"{path} line {number}"
        if line.strip():
            yield where, _parse_object(_decode(line, where), where)


def _parse_object(text: str, where: str) -> dict:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be a JSON object")
    return row


def _text_field(text: str, field: str, where: str) -> str:
    """Return the string `field` of a JSON object."""
    row = _parse_object(text, where)
    if field not in row:
        names = ", ".join(row) or "nothing"
        raise ValueError(f"{where}: has no field {field!r} but {names}: choose with ?field=NAME")
    if not isinstance(row[field], str):
        raise ValueError(f"{where}: field {field!r} is {type(row[field]).__name__}, not text")
    return row[field]


def _read_lines(path: Path) -> Iterator[bytes]:
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
        _raise_unreadable(error, path)
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{path}: cannot be read to its end ({error})") from None


def _raise_unreadable(error: OSError, path: Path | None = None) -> NoReturn:
    """Raise ValueError with the path and reason of an OSError."""
    reason = error.strerror or error
    raise ValueError(f"{path or error.filename}: cannot be read ({reason})") from None


def _zst_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of all zstd frames. Raises EOFError if the last frame is truncated.

    The file reader of the zstandard library does not report a truncated file.
    """
    frame, partial_line = zstandard.ZstdDecompressor().decompressobj(), b""
    for chunk in iter(lambda: file.read(1 << 17), b""):
        while chunk:
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            *lines, partial_line = (partial_line + frame.decompress(chunk)).split(b"\n")
            yield from (line + b"\n" for line in lines)
            chunk = frame.unused_data
    if not frame.eof:
        raise EOFError("the file ends within a zstd frame")
    yield partial_line


def _decode(raw: bytes, where: str, start: int = 0) -> str:
    """Decode UTF-8 and normalize newlines. `start` is the position of `raw` in its file.

    Raises ValueError with `where` and the position of the first invalid byte.
    """
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
