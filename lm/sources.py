"""Sources of text: a name becomes documents, in an order that is the same everywhere.

    for document in documents("jsonl:wiki/*.jsonl.gz?field=body"):
        print(document.name, len(document.text))

    code                     Python's standard library, a file a document (8 MB)
    docs                     the English of docstrings, a file a document (5 MB)
    text:PATH                a text file, or all below a folder, cut at blank lines every 16 KB
    jsonl:GLOB[?field=NAME]  JSON Lines, plain, .gz or .zst: a line a document; the field is "text"

A new kind of source is a function here and a row in each of the tables at the end.
"""

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import zstandard

from lm import config, embedded

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


def documents(source: str) -> Iterator[Document]:
    """All documents of a source, newlines as \\n, duplicates included, one at a time.

    ValueError naming the file and the place for what is missing, binary, not UTF-8 or malformed.
    """
    prefix, rest = _parse(source)
    return READERS[prefix](rest)


def fingerprint(source: str) -> list:
    """Differs when the documents of a source do, and takes milliseconds: nothing is read.

    Versions for what is embedded; path, size and time of each file for the user's own text.
    """
    prefix, rest = _parse(source)
    if prefix in VERSIONS:
        return list(VERSIONS[prefix]().items())
    stats = [(path, path.stat()) for path in FILES[prefix](rest)]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def versions(source: str) -> dict[str, str]:
    """Of what an embedded source is taken from; {} for the user's own text."""
    return VERSIONS.get(_parse(source)[0], dict)()


def _parse(source: str) -> tuple[str, str]:
    prefix, _, rest = source.partition(":")
    if prefix not in USAGE:
        raise ValueError("data.sources: " + config.unknown(prefix, list(USAGE)))
    if bool(rest) != (":" in USAGE[prefix]) or source.endswith("?field="):
        raise ValueError(f"data.sources: {source!r} must read {USAGE[prefix]}")
    return prefix, rest


def _code(_: str) -> Iterator[Document]:
    # The home is the file for code and docs alike: what one holds out, the other must not train on.
    return (Document(text, name, home=name) for name, text in embedded.code())


def _docs(_: str) -> Iterator[Document]:
    return (Document(text, name, home=name) for name, text in embedded.docs())


def _text_files(rest: str) -> list[Path]:
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


def _text(rest: str) -> Iterator[Document]:
    for path in _text_files(rest):
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


def _jsonl_files(rest: str) -> list[Path]:
    pattern = os.path.expanduser(rest.partition("?field=")[0])
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    found = [path for path in found if path.is_file()]
    if not found:
        raise ValueError(f"jsonl:{rest}: no file matches {pattern}")
    return found


def _jsonl(rest: str) -> Iterator[Document]:
    field = rest.partition("?field=")[2] or "text"
    for path in _jsonl_files(rest):
        for number, line in enumerate(_lines(path), 1):
            where = f"{path} line {number}"
            text = _decoded(line, where)
            if text.strip():
                yield Document(_newlines(_field(text, field, where)), where)


def _field(text: str, field: str, where: str) -> str:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be a JSON object with a field {field!r}")
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
        return _newlines(raw.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        at = start + error.start
        raise ValueError(f"{where}: is not UTF-8 at byte {at}: convert it") from None


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


USAGE = {"code": "code", "docs": "docs", "text": "text:PATH", "jsonl": "jsonl:GLOB[?field=NAME]"}
READERS = {"code": _code, "docs": _docs, "text": _text, "jsonl": _jsonl}
VERSIONS = {"code": embedded.code_versions, "docs": embedded.docs_versions}
FILES = {"text": _text_files, "jsonl": _jsonl_files}
