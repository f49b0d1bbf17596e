"""Arrays of an .npz file of a run. The zip archive verifies the checksum of each array."""

import io
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")  # content of a file
MAX_BYTES = 1 << 28  # of the decompressed arrays of a file


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of a file. A damaged file raises one of many types of exceptions."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        _check_sizes(file, path)
        return {name: file[name] for name in file}


def read_undamaged(path: Path, read: Callable[[Path], T]) -> T | None:
    """Return read(path), or None if there is no file. A damaged file gives None and a warning."""
    if not path.exists():
        return None
    try:
        return read(path)
    except Exception as error:  # zipfile, zlib and NumPy raise many types for a damaged file
        kind = type(error).__name__
        warnings.warn(f"{path} is damaged and not used ({kind}): delete it", stacklevel=3)
        return None


def encode_arrays(arrays: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file of arrays or lists. Equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _check_sizes(file: np.lib.npyio.NpzFile, path: Path) -> None:
    """Raise ValueError if an array is larger than its member of the archive, or all are too large.

    NumPy allocates the memory of an array before it decompresses the array.
    """
    formats = np.lib.format
    readers = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
    n_bytes = 0
    archive = file.zip
    if archive is None:
        raise ValueError(f"{path} is closed")
    for member in archive.infolist():
        with archive.open(member) as stream:
            read_header = readers.get(formats.read_magic(stream))
            shape, _, dtype = (
                read_header(stream) if read_header else ((0,), False, np.dtype(object))
            )
            expected = stream.tell() + math.prod(shape) * dtype.itemsize
        n_bytes += member.file_size
        if dtype.hasobject or expected != member.file_size or n_bytes > MAX_BYTES:
            raise ValueError(
                f"{path}: {member.filename} has {member.file_size:,} bytes, its header describes"
                f" {expected:,}, and at most {MAX_BYTES:,} are read: delete the file"
            )
