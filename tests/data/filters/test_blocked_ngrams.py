"""An n-gram is blocked if held-out text and a few training documents contain it."""

import numpy as np
import pytest
from fixtures.damaged_files import DAMAGES, damage_file
from fixtures.text_corpora import data_config

from lm.data import preprocessing, splits
from lm.data.filters import blocked_ngrams, ngrams
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
    assert {entry.name for entry in tmp_path.iterdir()} == {"blocked.u64", "blocked.sha256"}
    return ngrams.open_ngram_index(path)


@pytest.mark.parametrize("n_documents, n_blocked", [(0, 0), (1, 1), (10, 1), (11, 0), (300, 0)])
def test_ngram_of_more_than_ten_documents_is_ignored(tmp_path, n_documents, n_blocked):
    texts = ["no quotation", *(f"{SHARED} {i} {SHARED}" for i in range(n_documents))]
    assert len(write_index(tmp_path, texts)) == n_blocked


def test_equal_documents_count_once(tmp_path):
    assert len(write_index(tmp_path, [f"{SHARED} again"] * 20)) == 1


def test_only_training_documents_count(tmp_path):
    texts = [f"{SHARED} {i}" for i in range(40)]
    documents = [readers.Document(text, "a") for text in texts]
    n_heldout = sum(splits.is_heldout(document, 0.8) for document in documents)
    assert 30 <= n_heldout < 40
    data = data_config(tmp_path, "train", heldout_fraction=0.8, decontaminate_ngram=13)
    blocked_ngrams.write_blocked_ngrams(tmp_path / "a", data, lambda source: iter(documents))
    assert len(ngrams.open_ngram_index(tmp_path / "a")) == 1


def test_existing_index_is_not_written_again(tmp_path):
    first = np.array(write_index(tmp_path, [SHARED]))
    np.testing.assert_array_equal(write_index(tmp_path, []), first)


def test_chunks_do_not_change_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocessing, "CHARACTERS_PER_TASK", 100)
    monkeypatch.setattr(blocked_ngrams, "HASHES_PER_WRITE", 1)
    assert len(write_index(tmp_path, [f"{SHARED} {i}" for i in range(10)])) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_index_is_written_again(tmp_path, damage, capsys):
    expected = write_index(tmp_path, [SHARED]).tobytes()
    assert expected
    other = tmp_path / "other"
    other.write_bytes(bytes(len(expected)))
    damage_file(tmp_path / "blocked.u64", damage, other)
    other.unlink()
    assert write_index(tmp_path, [SHARED]).tobytes() == expected
    line = capsys.readouterr().err
    assert damage == "missing" or "blocked.u64 is damaged: its SHA-256 differs" in line
