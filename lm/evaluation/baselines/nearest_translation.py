"""Translation by the most similar training sentence: its translation is the answer.

    nearest_translation.find_nearest(train_sources, ["Two dogs run ."])       # [17]

The similarity of two sentences is the Dice coefficient of their sets of word n-grams, of one to
MAX_NGRAM words in lower case. The first of equally similar sentences is used.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lm.evaluation.baselines import word_translation

if TYPE_CHECKING:
    from scipy import sparse

MAX_NGRAM = 4
MAX_SENTENCES = 100_000  # training sentences, which bounds time and memory
BLOCK_ROWS = 64  # texts per block of the matrix of similarities


def find_nearest(train_texts: Sequence[str], texts: Sequence[str]) -> list[int]:
    """Return the index of the most similar training text for each text.

    The first MAX_SENTENCES training texts are searched. Raises ValueError without training texts.
    """
    if not train_texts:
        raise ValueError("train_texts is empty: the nearest sentence needs training sentences")
    ids: dict[tuple[str, ...], int] = {}
    train_rows = [
        [ids.setdefault(ngram, len(ids)) for ngram in _ngrams(text)]
        for text in train_texts[:MAX_SENTENCES]
    ]
    # The n-grams that are in no training text count in the size of the set only.
    all_ngrams = [_ngrams(text) for text in texts]
    rows = [[ids[ngram] for ngram in ngrams if ngram in ids] for ngrams in all_ngrams]
    train_matrix = _indicator_matrix(train_rows, len(ids)).T.tocsc()
    matrix = _indicator_matrix(rows, len(ids))
    train_sizes = np.array([len(row) for row in train_rows])
    sizes = np.array([len(ngrams) for ngrams in all_ngrams])
    nearest: list[int] = []
    for start in range(0, len(texts), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        shared = (matrix[block] @ train_matrix).toarray()
        total = np.maximum(sizes[block, None] + train_sizes[None], 1)
        nearest += (2 * shared / total).argmax(axis=1).tolist()
    return nearest


def _ngrams(text: str) -> dict[tuple[str, ...], None]:
    """Return the set of n-grams of a text, in their order."""
    words = [word.lower() for word in word_translation.split_words(text)]
    return {
        tuple(words[i : i + n]): None
        for n in range(1, MAX_NGRAM + 1)
        for i in range(len(words) - n + 1)
    }


def _indicator_matrix(rows: Sequence[Sequence[int]], n_columns: int) -> "sparse.csr_array":
    """Return a matrix of ones at the given columns of each row."""
    from scipy import sparse  # its import is slow, and training does not need it

    counts = [len(row) for row in rows]
    columns = np.array([column for row in rows for column in row], np.int64)
    row_index = np.repeat(np.arange(len(rows)), counts)
    shape = len(rows), max(n_columns, 1)
    return sparse.csr_array((np.ones(len(columns), np.float32), (row_index, columns)), shape=shape)
