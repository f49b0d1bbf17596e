"""Encoded documents of a task in a file, from which the corpus is written in order.

    with RecordWriter(Path("task-00000.records")) as writer:
        writer.write(encoded_documents)
    for document in read_records(Path("task-00000.records")):
        document.ids, document.split

A file is a sequence of blocks: the number of bytes of a header (uint64), the header as JSON, and
the token ids of all its documents. The file has its final name when it is complete.
"""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from lm.data import preprocessing

_SIZE = struct.Struct("<Q")


class RecordWriter:
    """Writer of the documents of a task. The file is renamed at the end of the context."""

    def __init__(self, path: Path):
        self._path, self._temporary = path, path.with_name(f"{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> "RecordWriter":
        self._file = open(self._temporary, "wb")
        return self

    def __exit__(self, error_type: type | None, *_) -> None:
        self._file.close()
        if error_type is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink()

    def write(self, documents: list[preprocessing.EncodedDocument]) -> None:
        """Write a block of documents, which have neither cuts nor bands."""
        rows = [
            document._replace(
                digest=document.digest.hex(), group=document.group.hex(), ids=len(document.ids)
            )
            for document in documents
        ]
        header = json.dumps(rows).encode()
        self._file.write(_SIZE.pack(len(header)) + header)
        self._file.writelines(document.ids for document in documents)


def read_records(path: Path) -> Iterator[preprocessing.EncodedDocument]:
    """Yield the documents of a task, in order. Raises ValueError for a damaged file."""
    try:
        with open(path, "rb") as file:
            while size := file.read(_SIZE.size):
                for row in json.loads(file.read(*_SIZE.unpack(size))):
                    document = preprocessing.EncodedDocument(*row)
                    ids = file.read(row[preprocessing.EncodedDocument._fields.index("ids")])
                    yield document._replace(
                        digest=bytes.fromhex(row[4]),
                        group=bytes.fromhex(row[6]),
                        ids=ids,
                        bands=(),
                    )
    except (ValueError, TypeError, struct.error):
        raise ValueError(f"{path}: is damaged: delete {path.parent} to start again") from None
