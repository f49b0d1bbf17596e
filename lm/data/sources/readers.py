"""Readers of text files, JSON Lines and Parquet.

    for read_shard in jsonl_files("wiki/*.jsonl.gz", "text"):        # one shard per file
        for document in read_shard(raise_error):
            print(document.name, len(document.text))

Each reader calls its error handler with a one-line message for each input that it cannot read: a
line, a row, a piece of text, or the remainder of a file. If the handler returns, the reader
continues after that input. A record without text (null or blank) is a document without text.
"""

import codecs
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, NoReturn

from lm.data.sources import source_files
from lm.data.storage import remote_path

# A text file is split into documents of about this size, so that some can be held out.
PIECE_BYTES = 1 << 14
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


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


def ignore_error(message: str) -> None:
    """Do nothing. With this error handler, a reader skips input that it cannot read."""


def text_files(pattern: str) -> source_files.SourceFiles:
    """Return the text files of a path, folder or glob. Raises ValueError if there is no file."""
    return source_files.list_files("text", pattern, source_files.TEXT_SUFFIXES)


def read_text(pattern: str) -> list[Shard]:
    """Return one shard per file of `text_files`, with documents of about PIECE_BYTES."""
    return [functools.partial(_file_pieces, file) for file in text_files(pattern).paths]


def _file_pieces(path: remote_path.AnyPath, on_error: ErrorHandler) -> Iterator[Document]:
    """Yield the documents of a text file. The first text is the home of all later documents."""
    home = ""
    for document in _text_documents(path, on_error):
        yield document._replace(home=home)
        if not home and document.text.strip():
            home = document.text


def _text_documents(path: remote_path.AnyPath, on_error: ErrorHandler) -> Iterator[Document]:
    """Yield the documents of a text file, split at blank lines and within very long lines.

    A file without text gives one document without text.
    """
    has_text = False
    for start, piece in _text_pieces(path):
        try:
            text = normalize_newlines(source_files.decode_text(piece, str(path), start)).strip("\n")
        except ValueError as error:
            has_text = True
            on_error(str(error))
            continue
        if text.strip():
            has_text = True
            yield Document(text, f"{path} at byte {start}")
    if not has_text:
        yield Document("", str(path))


def _text_pieces(path: remote_path.AnyPath) -> Iterator[tuple[int, bytes]]:
    """Yield (position, content) of the pieces of a text file."""
    start, end, lines = 0, 0, []
    for line in source_files.read_lines(path, PIECE_BYTES):
        lines.append(line)
        end += len(line)
        is_fragment = not line.endswith((b"\n", b"\r"))  # of a long line
        # Otherwise a document ends at the first line end after four times the size.
        min_bytes = PIECE_BYTES // 2 if is_fragment else PIECE_BYTES * (4 if line.strip() else 1)
        if end - start >= min_bytes:
            yield start, b"".join(lines)
            start, lines = end, []
    if lines:
        yield start, b"".join(lines)


def json_files(kind: str, pattern: str) -> source_files.SourceFiles:
    """Return the JSON Lines files of a path, folder or glob.

    kind: prefix of the source, for error messages. Raises ValueError if there is no file.
    """
    return source_files.list_files(kind, pattern, source_files.JSON_SUFFIXES)


def jsonl_files(pattern: str, field: str) -> list[Shard]:
    """Return one shard per file of `json_files`.

    Each record is a document, whose text is the value of `field`.
    """
    return [functools.partial(_jsonl, path, field) for path in json_files("jsonl", pattern).paths]


def _jsonl(path: remote_path.AnyPath, field: str, on_error: ErrorHandler) -> Iterator[Document]:
    for where, row in read_json_lines(path, on_error):
        try:
            yield Document(normalize_newlines(_text_field(row, field, where)), where)
        except ValueError as error:
            on_error(str(error))


def parquet_files(pattern: str) -> source_files.SourceFiles:
    """Return the Parquet files of a path, folder or glob. Raises ValueError without a file."""
    return source_files.list_files("parquet", pattern, source_files.PARQUET_SUFFIXES)


def read_parquet(pattern: str, field: str) -> list[Shard]:
    """Return one shard per file of `parquet_files`. A shard reads its file in batches of rows.

    field: column of the text. Each row is a document.
    """
    return [functools.partial(_parquet, path, field) for path in parquet_files(pattern).paths]


def _parquet(path: remote_path.AnyPath, field: str, on_error: ErrorHandler) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with (
            path.open("rb") as stream,
            pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True) as file,
        ):
            _check_column(file.schema_arrow, field, path)
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0):
                    where = f"{path} row {number}"
                    number += 1
                    try:
                        text = value.as_py() or ""
                    except UnicodeDecodeError as error:
                        on_error(f"{where}: is not UTF-8 at byte {error.start} of {field!r}")
                        continue
                    yield Document(normalize_newlines(text), where)
    except PermissionError as error:
        on_error(f"{path}: cannot be read ({error.strerror})")
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        on_error(
            f"{path}: cannot be read after {number} rows ({first_line(str(error))}): replace the"
            " file"
        )


def _check_column(schema, field: str, path: remote_path.AnyPath) -> None:
    """Raise ValueError unless an Arrow schema has a column of text."""
    import pyarrow

    names = format_names(schema.names)
    if schema.names.count(field) != 1:
        problem = "several fields" if field in schema.names else "no field"
        raise_error(f"{path}: has {problem} {field!r} but {names}: choose with ?field=NAME")
    column = schema.field(field).type
    if pyarrow.types.is_dictionary(column):
        column = column.value_type
    is_text = any(
        is_type(column)
        for is_type in (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_string_view,
            pyarrow.types.is_null,
        )
    )
    if not is_text:
        raise_error(f"{path}: field {field!r} is {column}, not text: choose with ?field=NAME")


def first_line(text: str) -> str:
    """Return the text on one line. Error messages of libraries often have several lines."""
    return " ".join(text.split())


def format_names(names: Iterable[str]) -> str:
    """Return the first names of a record on one line, for an error message."""
    first_names = list(itertools.islice(names, 21))
    text = ", ".join(first_names[:20]) + (", ..." if len(first_names) > 20 else "")
    # Names may contain line ends and half surrogate pairs, which cannot be printed.
    return first_line(text).encode(errors="backslashreplace").decode()[:400] or "nothing"


def read_json_lines(
    path: remote_path.AnyPath, on_error: ErrorHandler = raise_error
) -> Iterator[tuple[str, dict]]:
    """Yield ("FILE line N", object) of each record of a file: JSON Lines or one JSON array.

    `on_error` is called for each line that is not a JSON object in UTF-8, and for a file that
    cannot be read to its end. If it returns, exactly that line, or the remainder of the file, is
    skipped.
    """
    try:
        lines = enumerate(source_files.read_lines(path), 1)
        is_first = True
        for number, line in lines:
            content = line.removeprefix(codecs.BOM_UTF8).strip()
            if not content:
                continue
            if is_first and content.startswith(b"["):
                yield from _array_records(path, itertools.chain([(number, line)], lines), on_error)
            else:
                where = f"{path} line {number}"
                yield from _parse_objects(_decode_line(line, where, on_error), where, on_error)
            is_first = False
    except ValueError as error:
        on_error(str(error))


def _array_records(
    path: remote_path.AnyPath, lines: Iterator[tuple[int, bytes]], on_error: ErrorHandler
) -> Iterator[tuple[str, dict]]:
    """Yield the objects of a JSON array up to the line of its end.

    Lines are collected until all brackets within the array are closed. A JSON string never
    continues on the next line, so the number of open brackets after each line is exact.
    """
    group: list[tuple[int, str]] = []
    depth, last_text = 0, ""  # number of open brackets, last line that is not blank
    for number, raw in lines:
        text = _decode_line(raw, f"{path} line {number}", on_error)
        brackets = _JSON_STRING.sub("", raw.decode(errors="replace"))
        if not depth:
            text = text.lstrip().removeprefix("[")
        depth += sum(map(brackets.count, "[{")) - sum(map(brackets.count, "]}"))
        if depth <= 0 and brackets.rstrip().endswith("]"):
            group.append((number, text.rstrip()[:-1]))
            yield from _parse_group(path, group, on_error)
            return
        last_text = text.strip() or last_text
        depth = max(depth, 1)  # an invalid element may have too many closing brackets
        group.append((number, text))
        if depth == 1:
            yield from _parse_group(path, group, on_error)
            group = []
    yield from _parse_group(path, group, on_error)
    if last_text != "]":  # otherwise an invalid element has too few closing brackets
        on_error(f"{path}: its JSON array has no end: replace the file")


def _parse_group(
    path: remote_path.AnyPath, group: list[tuple[int, str]], on_error: ErrorHandler
) -> Iterator[tuple[str, dict]]:
    """Yield the objects in lines of an array, which contain complete elements if they are valid.

    Invalid lines are divided before each line that begins with an object at the same indentation as
    the first line, so that only the invalid element is lost.
    """
    text = "".join(line for _, line in group).strip().removeprefix(",").removesuffix(",")
    if not group or not text.strip():
        return
    indent = re.match(r"\s*", group[0][1])
    starts = [i for i, (_, line) in enumerate(group) if indent and line.startswith(indent[0] + "{")]
    where = f"{path} line {group[0][0]}"
    if len(starts) > 1:
        try:
            json.loads(f"[{text}]")
        except (ValueError, RecursionError):
            if group[-1][1].strip() == "]":  # the end of the array
                group = group[:-1]
            edges = sorted({0, *starts, len(group)})
            for start, stop in itertools.pairwise(edges):
                yield from _parse_group(path, group[start:stop], on_error)
            return
    yield from _parse_objects(f"[{text}]", where, on_error, is_array=True)


def _decode_line(line: bytes, where: str, on_error: ErrorHandler) -> str:
    """Return the text of a line, or "" if it is not UTF-8 and `on_error` returns."""
    try:
        return source_files.decode_text(line, where)
    except ValueError as error:
        on_error(str(error))
        return ""


def _parse_objects(
    text: str, where: str, on_error: ErrorHandler, is_array: bool = False
) -> Iterator[tuple[str, dict]]:
    """Yield the object of a line, or the objects of an array; nothing if the text is blank.

    `on_error` is called for text that is not JSON and for each value that is not an object.
    """
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        on_error(f"{where}: is not JSON ({_json_problem(error)}): write one object per line")
        return
    rows = value if is_array else [value]
    for item, row in enumerate(rows, 1):
        item_name = f"{where} item {item}" if len(rows) > 1 else where
        if isinstance(row, dict):
            yield item_name, row
        else:
            on_error(f"{item_name}: must be a JSON object, not {type(row).__name__}")


def _json_problem(error: Exception) -> str:
    """Return the reason why text is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "a number has too many digits"


def _text_field(row: dict, field: str, where: str) -> str:
    """Return the string `field` of a JSON object, "" for null.

    If there is no such field, a name with dots is a path: the field "a.b" is that of {"a": {"b"}}.
    """
    value = row
    for name in [field] if field in row else field.split("."):
        if not isinstance(value, dict) or name not in value:
            names = format_names(value if isinstance(value, dict) else row)
            raise ValueError(
                f"{where}: has no field {field!r} but {names}: choose with ?field=NAME"
            )
        value = value[name]
    if not isinstance(value, str | None):
        raise ValueError(f"{where}: field {field!r} is {type(value).__name__}, not text")
    return value or ""


def normalize_newlines(text: str) -> str:
    """Return the text with the line ends of all systems replaced by \\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
