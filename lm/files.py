"""Documents from the user's own files: text, JSON Lines, Parquet; plain or packed.

for read in jsonl("wiki/*.jsonl.gz", "text"):        # a part for each file
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

PIECE_BYTES = 1 << 14  # a file becomes many documents: of one, no part could be held out
TEXT_SUFFIXES = {
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org"),
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".go"),
    *(".rs", ".rb", ".sh", ".sql", ".jl", ".r"),
}


class Document(NamedTuple):
    text: str
    name: str  # where it comes from: a file, or a file and a place in it
    home: str = ""  # documents of one home are held out together; "": each goes by its own text
    part: int = 0  # of the source, from 0
    error: str = ""  # what stood in its place could not be read


Refuse = Callable[[str], None]  # told in one line what cannot be read; raises, or lets it be left
# What a source is read in, such as a file. ValueError for what ends the reading of this part.
Part = Callable[[Refuse], Iterable[Document]]


def stop(what: str) -> NoReturn:
    """The Refuse that ends the reading."""
    raise ValueError(what) from None


def of_text(rest: str) -> list[Path]:
    """A file, or all below a folder whose names end as those of text do, in one order."""
    top = Path(rest).expanduser()
    if top.is_file():
        return [top]
    if not top.exists():
        raise ValueError(f"text:{rest}: there is no such file or folder")
    found = []
    for folder, folders, files in os.walk(top, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in files if not name.startswith("."))
        paths = (Path(folder, name) for name in names)
        found += [p for p in paths if p.suffix.lower() in TEXT_SUFFIXES and p.is_file()]
    if not found:
        raise ValueError(f"text:{rest}: holds no file with {', '.join(sorted(TEXT_SUFFIXES))}")
    return found


def text(rest: str) -> list[Part]:
    """Of each file of `of_text`, pieces of about PIECE_BYTES."""
    return [functools.partial(_pieces, path) for path in of_text(rest)]


def _pieces(path: Path, refuse: Refuse) -> Iterator[Document]:
    start, end, lines = 0, 0, []
    for line in _lines(path):
        lines.append(line)
        end += len(line)
        # A text without blank lines is cut too, at the end of a line.
        if end - start >= PIECE_BYTES * (1 if not line.strip() else 4):
            yield _piece(path, lines, start)
            start, lines = end, []
    yield _piece(path, lines, start)


def _piece(path: Path, lines: list[bytes], start: int) -> Document:
    text = _decoded(b"".join(lines), str(path), start).strip("\n")
    return Document(text, f"{path} at byte {start}")


def matching(pattern: str) -> list[Path]:
    """The files of a glob, ** included, in one order; ValueError if there are none."""
    pattern = os.path.expanduser(pattern)
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    found = [path for path in found if path.is_file()]
    if not found:
        raise ValueError(f"data.sources: no file matches {pattern}")
    return found


def jsonl(pattern: str, field: str) -> list[Part]:
    """A line a document, of plain, .gz and .zst files; lines without text are left out."""
    return [functools.partial(_jsonl, path, field) for path in matching(pattern)]


def _jsonl(path: Path, field: str, refuse: Refuse) -> Iterator[Document]:
    for number, line in enumerate(_lines(path), 1):
        document = _line(line, field, f"{path} line {number}", refuse)
        if document:
            yield document


def _line(line: bytes, field: str, where: str, refuse: Refuse) -> Document | None:
    try:
        text = _decoded(line, where)
        return Document(newlines(_field(text, field, where)), where) if text.strip() else None
    except ValueError as error:
        refuse(str(error))


def parquet(pattern: str, field: str) -> list[Part]:
    """A row a document, a few at a time; rows without text are left out."""
    return [functools.partial(_parquet, path, field) for path in matching(pattern)]


def _parquet(path: Path, field: str, refuse: Refuse) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                stop(f"{path}: has no field {field!r} but {names}: choose with ?field=NAME")
            rows = (
                row
                for batch in file.iter_batches(batch_size=1024, columns=[field])
                for row in batch.column(0).to_pylist()
            )
            for number, text in enumerate(rows):
                if text is not None and not isinstance(text, str):
                    stop(f"{path}: field {field!r} is {type(text).__name__}, not text")
                if text and text.strip():
                    yield Document(newlines(text), f"{path} row {number}")
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        why = str(error)
        stop(why if why.startswith(str(path)) else f"{path}: cannot be read ({one_line(why)})")


def one_line(text: str) -> str:
    """Other people's errors often take more."""
    return " ".join(text.split())


def objects(path: Path) -> Iterator[tuple[str, dict]]:
    """(where, object) of each line of JSON Lines; ValueError naming file and line."""
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
    """Of a plain, .gz or .zst file; ValueError naming the file that cannot be read to its end."""
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
    why = error.strerror or error
    raise ValueError(f"{path or error.filename}: cannot be read ({why})") from None


def _zst_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Over all frames. zstandard's own reader takes a file that was cut off for a whole one."""
    frame, rest = zstandard.ZstdDecompressor().decompressobj(), b""
    for chunk in iter(lambda: file.read(1 << 17), b""):
        while chunk:
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            *lines, rest = (rest + frame.decompress(chunk)).split(b"\n")
            yield from (line + b"\n" for line in lines)
            chunk = frame.unused_data
    if not frame.eof:
        raise EOFError("it ends within a zstd frame")
    yield rest


def _decoded(raw: bytes, where: str, start: int = 0) -> str:
    if b"\0" in raw:
        raise ValueError(f"{where}: is binary, not text: NUL at byte {start + raw.index(0)}")
    try:
        return newlines(raw.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        at = start + error.start
        raise ValueError(f"{where}: is not UTF-8 at byte {at}: convert it") from None


def newlines(text: str) -> str:
    """Those of all systems as \\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
