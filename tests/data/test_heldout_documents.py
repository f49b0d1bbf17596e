"""Tests of the documents of held-out rows and of their selection."""

import types
from typing import Any

import numpy as np
import pytest

from lm.data import heldout_documents, packing, tokenizers

SEQ_LEN, END = 8, 0


def make_text(sizes) -> Any:
    """Return a data set of documents of these sizes. Document k has the tokens k + 1 and END."""
    file = np.concatenate([np.r_[np.full(size - 1, i + 1), END] for i, size in enumerate(sizes)])
    rows = np.lib.stride_tricks.sliding_window_view(file, SEQ_LEN + 1)[::SEQ_LEN]
    return types.SimpleNamespace(
        heldout_files={"a": rows},
        data=types.SimpleNamespace(seq_len=SEQ_LEN),
        tokenizer=types.SimpleNamespace(end=END),
    )


def n_documents(text, rows):
    return len(np.unique(heldout_documents.target_documents(text, "a", rows)))


def test_documents_of_targets_start_after_end_tokens():
    sizes = [3, 20, 1, 2, 30, 5, 9, 40]
    text, starts = make_text(sizes), np.r_[0, np.cumsum(sizes)[:-1]]
    rows = np.random.default_rng(0).permutation(len(text.heldout_files["a"]))
    document_NT = heldout_documents.target_documents(text, "a", rows)
    positions_NT = rows[:, None] * SEQ_LEN + np.arange(SEQ_LEN) + 1
    expected_NT = starts[np.searchsorted(starts, positions_NT, "right") - 1]
    assert (document_NT == expected_NT).all()
    some = heldout_documents.target_documents(text, "a", rows[:3])
    assert (some == document_NT[:3]).all()


def test_documents_of_packed_rows_exclude_padding():
    tokenizer = tokenizers.ByteTokenizer()
    file = np.frombuffer(b"ab\0cdefg\0h\0", np.uint8)
    packed = packing.PackedDocuments(file, SEQ_LEN, tokenizer)
    text: Any = make_text([20])
    text.heldout_files = {"a": packed}
    rows = np.arange(len(packed))
    document_NT = heldout_documents.target_documents(text, "a", rows)
    tokens_NT = packed[rows][:, 1:]
    for document, letters in enumerate((b"ab", b"cdefg", b"h")):
        assert (document_NT[np.isin(tokens_NT, list(letters))] == document).all()
    weights_NT = packing.packed_loss_weights(packed[rows], tokenizer.end)
    assert ((document_NT >= 0) == (weights_NT > 0)).all()


def test_rows_of_long_documents_are_capped():
    """Four documents of 5000 rows and 400 of two rows: 200 documents are used."""
    text = make_text([40_000] * 4 + [16] * 4000)
    rows = heldout_documents.select_rows(text, "a", 256)
    assert len(rows) == len(np.unique(rows)) == 256
    assert n_documents(text, rows) >= heldout_documents.MIN_DOCUMENTS
    middle = heldout_documents.target_documents(text, "a", rows)[:, SEQ_LEN // 2]
    assert np.unique_counts(middle).counts.max() < 20
    assert (rows == heldout_documents.select_rows(text, "a", 256)).all()


def test_rows_with_enough_documents_are_unchanged():
    text = make_text([8] * 3000)
    rows = heldout_documents.select_rows(text, "a", 256)
    assert (rows == heldout_documents.select_rows(text, "a", 300)[:256]).all()
    assert n_documents(text, rows) >= heldout_documents.MIN_DOCUMENTS
    assert len(heldout_documents.select_rows(text, "a", 10**6)) == len(text.heldout_files["a"])


def test_few_available_documents_share_the_rows():
    text = make_text([40_000] + [4_000] * 9)
    rows = heldout_documents.select_rows(text, "a", 400)
    assert len(rows) == 400 and n_documents(text, rows) == 10


def test_sums_by_document_exclude_padding():
    document_NT = np.array([[5, 5, 7], [7, -1, -1]])
    documents, sums, ones = heldout_documents.sum_by_document(
        document_NT, np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    )
    assert documents.tolist() == [5, 7]
    assert sums.tolist() == [1, 5] and ones.tolist() == [2, 2]


@pytest.mark.parametrize("n", [5, 500])
def test_source_without_rows_has_no_selection(n):
    text = make_text([20])
    text.heldout_files["a"] = text.heldout_files["a"][:0]
    assert heldout_documents.select_rows(text, "a", n).shape == (0,)
