"""Hash of the next batch, by which a restart verifies that the text has not changed.

Each process reads and hashes the rows of its own devices. The hash of the batch follows from the
hashes of its rows in order, so it does not depend on the number of processes.
"""

import hashlib
from collections.abc import Callable

import numpy as np

from lm.parallel import distributed

ROWS = "rows-"  # prefix of a hash of row hashes; version 0.2 hashed the arrays of the whole batch


def hash_batch(load_rows: Callable[[np.ndarray | slice], dict], local_rows: np.ndarray) -> str:
    """Return the hash of a batch. Call in all processes at the same point.

    load_rows: function that returns the arrays of some rows of the batch. local_rows: indices of
    the rows on the devices of this process.
    """
    batch = load_rows(local_rows)
    digests = [_digest([batch[name][i] for name in sorted(batch)]) for i in range(len(local_rows))]
    by_row: dict[int, str] = {}
    for indices, row_digests in distributed.all_gather_objects([local_rows.tolist(), digests]):
        by_row |= dict(zip(indices, row_digests, strict=True))
    text = "".join(by_row[row] for row in sorted(by_row))
    return ROWS + hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_again(
    expected: str, load_rows: Callable[[np.ndarray | slice], dict], local_rows: np.ndarray
) -> str:
    """Return the hash of a batch by the method of an expected hash. Arguments: see hash_batch."""
    if expected.startswith(ROWS):
        return hash_batch(load_rows, local_rows)
    batch = load_rows(slice(None))
    return _digest([batch[name] for name in sorted(batch)])


def _digest(arrays: list[np.ndarray]) -> str:
    """Return a hash of the bytes of arrays, 16 hexadecimal digits."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]
