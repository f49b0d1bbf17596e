"""Token ids in the .arrow files of `datasets`, read where they are.

    for tokens in read_arrow_tokens(Path("saved/data-00000-of-00001.arrow"), "input_ids"):
        tokens.first_byte, tokens.n_tokens, tokens.document_ends

Dataset.save_to_disk writes a stream of record batches. The ids of all rows of a batch are
consecutive bytes of the file, so a batch is a segment of tokens and a row is a document.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.data.sources import source_files
from lm.data.storage import remote_path

COLUMN = "input_ids"
TYPES = ("uint8", "uint16", "uint32", "int32", "int64")
STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"


class ArrowTokens(NamedTuple):
    """Tokens of a record batch. document_ends: see token_formats.TokenLayout."""

    first_byte: int
    dtype: str
    n_tokens: int
    document_ends: np.ndarray


def select_arrow_files(
    paths: list[remote_path.AnyPath], omitted: dict[str, int]
) -> list[remote_path.AnyPath]:
    """Return the files that belong to saved datasets, in the order of their rows.

    omitted: receives the number of other .arrow files, such as those of a cache. Raises ValueError
    for a folder of several splits, and for a dataset whose rows are selected by indices.
    """
    arrow_files = [path for path in paths if path.suffix == ".arrow"]
    selected = [path for path in paths if path.suffix != ".arrow"]
    for folder in dict.fromkeys(path.parent for path in arrow_files):
        splits_file = folder.parent / SPLITS_FILE
        if splits_file.exists() and len({path.parent for path in arrow_files}) > 1:
            raise ValueError(
                f"{folder.parent}: has several splits: name one, such as tokens:{folder}"
            )
        names = _saved_names(folder / STATE_FILE)
        present = {path.name: path for path in arrow_files if path.parent == folder}
        for name in present if names is None else names:
            if name not in present:
                raise ValueError(f"{folder / name}: is missing, but listed in {STATE_FILE}")
            selected.append(present.pop(name))
        if n_others := len(present) if names is not None else 0:
            omitted["unlisted .arrow"] = omitted.get("unlisted .arrow", 0) + n_others
    return selected


def _saved_names(file: remote_path.AnyPath) -> list[str] | None:
    """Return the names of the data files that a saved dataset lists, None without the list."""
    if not file.exists():
        return None
    try:
        state = json.loads(file.read_bytes())
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except OSError as error:
        source_files.raise_unreadable(error)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: is not the state of a saved dataset: save it again") from None
    if state.get("_indices_data_files"):
        raise ValueError(f"{file}: rows are selected by indices: save flatten_indices() instead")
    return names


def read_arrow_tokens(path: remote_path.AnyPath, column: str = "") -> Iterator[ArrowTokens]:
    """Yield the tokens of each record batch of a file.

    column: column of lists of token ids; "" is COLUMN. Raises ValueError for a file that is
    damaged or compressed, and for a missing column or another type.
    """
    import pyarrow

    try:
        with _open_file(path) as file:
            schema = pyarrow.ipc.read_schema(file)
            dtype = _token_type(schema, column or COLUMN, path)
            while True:
                try:
                    message = pyarrow.ipc.read_message(file)
                except EOFError:
                    return
                if message.type != "record batch":
                    raise ValueError(f"{path}: has a {message.type}: save plain lists of ids")
                body_start = file.tell() - message.body.size
                batch = pyarrow.ipc.read_record_batch(message, schema)
                array = batch.column(schema.names.index(column or COLUMN))
                yield _locate_tokens(array, message.body, body_start, dtype, path)
    except PermissionError as error:  # the message of Arrow for a local file repeats its path
        reason = "Permission denied" if isinstance(path, Path) else error.strerror
        raise ValueError(f"{path}: cannot be read ({reason})") from None
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as a stream of Arrow ({reason})") from None


def _open_file(path: remote_path.AnyPath) -> Any:
    """Open a file for Arrow. A local file is mapped into memory."""
    import pyarrow

    if isinstance(path, Path):
        return pyarrow.memory_map(str(path))
    return pyarrow.PythonFile(path.open("rb"), "r")


def _token_type(schema: Any, column: str, path: remote_path.AnyPath) -> str:
    """Return the type of the ids of a column of lists."""
    import pyarrow

    if schema.names.count(column) != 1:
        names = ", ".join(schema.names)
        raise ValueError(f"{path}: has no column {column!r} but {names}: choose with ?field=NAME")
    kind = schema.field(column).type
    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    if not is_list or str(kind.value_type) not in TYPES:
        raise ValueError(
            f"{path}: column {column!r} is {kind}, not a list of {', '.join(TYPES)}: choose another"
            " with ?field=NAME"
        )
    return str(kind.value_type)


def _locate_tokens(
    array: Any, body: Any, body_start: int, dtype: str, path: remote_path.AnyPath
) -> ArrowTokens:
    """Return the position in the file of the ids of an array of lists.

    body: bytes of the record batch, which begin at the byte body_start of the file.
    """
    offsets, values = array.offsets.to_numpy().astype(np.int64), array.values
    if array.null_count or values.null_count:
        raise ValueError(f"{path}: has rows or tokens that are null: remove these rows")
    data, width = values.buffers()[1], np.dtype(dtype).itemsize
    ends = np.unique(offsets[1:] - offsets[0])
    ends = ends[ends > 0]
    if not len(ends):
        return ArrowTokens(body_start, dtype, 0, ends)
    start = data.address - body.address
    if not 0 <= start <= body.size - data.size:
        raise ValueError(f"{path}: is compressed: save it without compression")
    first_byte = body_start + start + (values.offset + int(offsets[0])) * width
    return ArrowTokens(first_byte, dtype, int(ends[-1]), ends)
