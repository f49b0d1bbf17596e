"""Hash of the next batch, computed from the rows of each process."""

import hashlib

import numpy as np
import pytest

from lm.parallel import distributed
from lm.training.checkpointing import batch_hash

N_ROWS = 8


def example_batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 256, (N_ROWS, 5)).astype(np.int32)
    return {"tokens": tokens, "weights": rng.random((N_ROWS, 4)).astype(np.float32)}


def hash_on_processes(local_rows: list[list[int]], monkeypatch, seed: int = 0) -> list[str]:
    """Return the hashes of simulated processes, which can read their own rows only."""
    batch, sent = example_batch(seed), []

    def load_rows(own: list[int]):
        def load(rows):
            assert set(np.arange(N_ROWS)[rows]) <= set(own), "a row of another process is read"
            return {name: array[rows] for name, array in batch.items()}

        return load

    monkeypatch.setattr(distributed, "all_gather_objects", lambda value: sent.append(value))
    for own in local_rows:  # the first pass collects what each process sends
        with pytest.raises(TypeError):
            batch_hash.hash_batch(load_rows(own), np.array(own))
    monkeypatch.setattr(distributed, "all_gather_objects", lambda _: sent)
    return [batch_hash.hash_batch(load_rows(own), np.array(own)) for own in local_rows]


@pytest.mark.parametrize(
    "local_rows",
    [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[4, 5, 6, 7], [0, 1, 2, 3]],
        [list(range(8)), list(range(8))],  # processes that split weights only
        [[0, 1, 6, 7], [2, 3], [4, 5], [4, 5]],
    ],
    ids=str,
)
def test_processes_read_own_rows_and_hash_the_same_batch(local_rows, monkeypatch):
    (single,) = hash_on_processes([list(range(8))], monkeypatch)
    assert set(hash_on_processes(local_rows, monkeypatch)) == {single}
    assert single.startswith(batch_hash.ROWS)


def test_hash_depends_on_each_row_and_on_their_order():
    rows, batch = np.arange(N_ROWS), example_batch()

    def value(batch):
        return batch_hash.hash_batch(lambda rows: {k: v[rows] for k, v in batch.items()}, rows)

    changed = {name: array.copy() for name, array in batch.items()}
    changed["weights"][6, 1] += 1
    swapped = {name: array[[1, 0, *range(2, N_ROWS)]] for name, array in batch.items()}
    assert len({value(batch), value(changed), value(swapped)}) == 3


def test_hash_of_an_older_checkpoint_is_computed_as_before():
    """Version 0.2 hashed the arrays of the whole batch in alphabetical order."""
    batch = example_batch()
    content = batch["tokens"].tobytes() + batch["weights"].tobytes()
    expected = hashlib.sha256(content).hexdigest()[:16]

    def load(rows):
        return {name: array[rows] for name, array in batch.items()}

    assert batch_hash.hash_again(expected, load, np.arange(2)) == expected
    by_rows = batch_hash.hash_batch(load, np.arange(N_ROWS))
    assert batch_hash.hash_again(by_rows, load, np.arange(N_ROWS)) == by_rows
