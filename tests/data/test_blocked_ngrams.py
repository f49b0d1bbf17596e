"""An n-gram is blocked if held-out text and a few training documents contain it."""

import numpy as np
import pytest
from fixtures.text_corpora import data_config

from lm.data import blocked_ngrams, ngrams, preprocessing, splits
from lm.data.sources import readers

SHARED = "to be or not to be that is the question whether tis nobler"


def write_index(tmp_path, training_texts, workers: int = 1) -> np.ndarray:
    """Return the blocked n-grams if the protected source is SHARED."""
    texts = {"train": training_texts, "protected": [SHARED]}
    data = data_config(
        tmp_path,
        "train",
        heldout_fraction=0.0,
        decontaminate_ngram=13,
        decontaminate_against="protected",
    )

    def read(source):
        return iter([readers.Document(text, source) for text in texts[source]])

    path = tmp_path / "blocked.u64"
    blocked_ngrams.write_blocked_ngrams(path, data, read, workers)
    assert [entry.name for entry in tmp_path.iterdir()] == ["blocked.u64"]
    return ngrams.open_ngram_index(path)


@pytest.mark.parametrize("n_documents, n_blocked", [(0, 0), (1, 1), (10, 1), (11, 0), (300, 0)])
def test_ngram_of_more_than_ten_documents_is_ignored(tmp_path, n_documents, n_blocked):
    texts = ["no quotation", *(f"{SHARED} {i} {SHARED}" for i in range(n_documents))]
    assert len(write_index(tmp_path, texts)) == n_blocked


def test_equal_documents_count_once(tmp_path):
    assert len(write_index(tmp_path, [f"{SHARED} again"] * 20)) == 1


def test_heldout_documents_do_not_count(tmp_path):
    chunk = [readers.Document(f"{SHARED} {i}", "a") for i in range(40)]
    path = tmp_path / "index"
    ngrams.write_ngram_index(path, [ngrams.ngram_hashes(SHARED, 13)])
    split = splits.Split(0.5)
    heldout = [document for document in chunk if split.is_heldout(document)]
    matches = blocked_ngrams.match_ngrams(chunk, split, 13, path)
    assert 0 < len(heldout) < 40 and len(matches) == 40 - len(heldout)
    assert len(blocked_ngrams.hash_heldout(chunk, split, 13)) == 2 * len(heldout)


def test_existing_index_is_not_written_again(tmp_path):
    first = np.array(write_index(tmp_path, [SHARED]))
    np.testing.assert_array_equal(write_index(tmp_path, []), first)


def test_chunks_do_not_change_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocessing, "CHARACTERS_PER_TASK", 100)
    monkeypatch.setattr(blocked_ngrams, "HASHES_PER_WRITE", 1)
    assert len(write_index(tmp_path, [f"{SHARED} {i}" for i in range(10)])) == 1
