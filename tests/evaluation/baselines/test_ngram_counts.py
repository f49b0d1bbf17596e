"""Counts of the training text: correct, bounded, cached and verified."""

import numpy as np
import pytest

from lm.data import dataset
from lm.data.prepared import recorded_text
from lm.evaluation.baselines import ngram_counts


@pytest.fixture
def text(tiny, tmp_path) -> dataset.TokenDataset:
    tiny.data.cache_dir = str(tmp_path / "cache")
    return dataset.open_dataset(tiny.data, 0)


def test_counts_are_those_of_the_token_file(text):
    counts = ngram_counts.count_ngrams(text)
    (manifest,) = text.manifests.values()
    ids = np.fromfile(f"{manifest.folder}/train.bin", manifest.dtype).astype(int)
    assert counts.n_tokens == len(ids) == manifest.tokens["train"]
    assert (counts.tokens == np.bincount(ids, minlength=256)).all()
    first = (ids[:-1] == ord("q")) & (ids[1:] == ord("u"))
    index = np.searchsorted(counts.bigrams, ord("q") * 256 + ord("u"))
    assert counts.bigram_counts[index] == first.sum() > 0
    assert counts.bigram_counts.sum() == len(ids) - 1


def test_each_source_contributes_its_share_up_to_the_limit(text, monkeypatch):
    monkeypatch.setattr(ngram_counts, "MAX_TOKENS", 100)
    assert ngram_counts.count_ngrams(text).n_tokens == 100
    text.data.unique_tokens = 64
    assert ngram_counts.count_ngrams(text).n_tokens == 64


def test_cache_is_used_and_a_damaged_file_is_replaced(text, tiny, capsys, monkeypatch):
    counts = ngram_counts.count_ngrams(text)
    (path,) = ngram_counts.staging.local_folder(tiny.data).glob("ngrams-*.npz")
    facts = recorded_text.text_facts(text)
    recorded = ngram_counts.load_recorded_counts(tiny, facts)
    assert recorded is not None and (recorded.tokens == counts.tokens).all()
    assert ngram_counts.load_recorded_counts(tiny, {}) is None
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert (ngram_counts.count_ngrams(text).bigram_counts == counts.bigram_counts).all()
    assert "is damaged: the n-grams are counted again" in capsys.readouterr().err
    monkeypatch.setattr(ngram_counts, "_count", lambda text: pytest.fail("the cache is not used"))
    ngram_counts.count_ngrams(text)
