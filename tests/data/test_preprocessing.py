"""Quality filters, MinHash bands of near-duplicates, and n-gram hashes for decontamination."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.config import schema
from lm.data import ngrams, preprocessing

VOCABULARY = [f"w{i}" for i in range(5000)]


def random_words(rng: np.random.Generator, n: int) -> list[str]:
    """Return n words of the vocabulary."""
    return list(rng.choice(VOCABULARY, n))


@pytest.mark.parametrize(
    "changes, bad_text, good_text",
    [
        ({"min_words": 3}, "two words", "now three words"),
        ({"min_letters": 0.5}, "1 2 3 ab", "1 2 3 abc"),
        ({"max_repeats": 0.3}, "a\n\na\nb\n a", "a\nb\nc\na"),
    ],
    ids=["short", "symbols", "repeats"],
)
def test_filter_rejects_by_name_and_only_if_enabled(changes, bad_text, good_text, request):
    data = schema.Data(**changes)
    assert preprocessing.rejection_reason(bad_text, data) == request.node.callspec.id
    assert preprocessing.rejection_reason(good_text, data) == ""
    assert preprocessing.rejection_reason(bad_text, schema.Data()) == ""


def similar_words(rng: np.random.Generator, words: list[str], jaccard: float) -> list[str]:
    """Return a copy with changed words, whose shingles have this Jaccard similarity on average."""
    common_fraction = 2 * jaccard / (1 + jaccard)  # of the shingles of one text
    changed = rng.random(len(words)) > common_fraction ** (1 / preprocessing.SHINGLE_WORDS)
    return [
        f"new{rng.integers(10**9)}" if is_changed else word
        for word, is_changed in zip(words, changed, strict=True)
    ]


@pytest.mark.parametrize("jaccard, expected", [(0.9, 0.99), (0.8, 0.93), (0.5, 0.08), (0.2, 0.0)])
def test_near_duplicates_share_a_band_as_often_as_documented(jaccard, expected):
    rng = np.random.default_rng(0)
    n_hits = 0
    for _ in range(300):
        words = random_words(rng, 1000)
        other_words = similar_words(rng, words, jaccard)
        bands = preprocessing.minhash_bands(" ".join(words))
        n_hits += bool(set(bands) & set(preprocessing.minhash_bands(" ".join(other_words))))
    assert n_hits / 300 == pytest.approx(expected, abs=0.07)


def test_short_texts_share_a_band_only_if_words_are_equal():
    bands = preprocessing.minhash_bands("two words")
    assert bands == preprocessing.minhash_bands("Two words!")
    assert not set(bands) & set(preprocessing.minhash_bands("two birds"))
    letter_bands = preprocessing.minhash_bands("a b c d e")
    assert not set(letter_bands) & set(preprocessing.minhash_bands("..."))


def test_bands_do_not_depend_on_the_chunk_size(monkeypatch):
    text = " ".join(random_words(np.random.default_rng(0), 3000))
    bands = preprocessing.minhash_bands(text)
    monkeypatch.setattr(preprocessing, "SHINGLES_PER_CHUNK", 100)
    assert preprocessing.minhash_bands(text) == bands


def test_hashes_are_the_same_in_every_process():
    code = (
        "from lm.data import preprocessing\n"
        "print(preprocessing.minhash_bands('one two three four five six'))\n"
        "print(ngrams.ngram_hashes('one two three', 2).tolist())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    bands = preprocessing.minhash_bands("one two three four five six")
    hashes = ngrams.ngram_hashes("one two three", 2).tolist()
    assert process.stdout == f"{bands}\n{hashes}\n"


def test_ngram_hashes_depend_on_words_and_their_order_only():
    hashes = ngrams.ngram_hashes("One two, three (four) FIVE six", 5)
    assert len(hashes) == 2
    same_words = ngrams.ngram_hashes("one two three four... five six!", 5)
    np.testing.assert_array_equal(same_words, hashes)
    assert ngrams.ngram_hashes("two one three four five", 5)[0] not in hashes
    assert len(ngrams.ngram_hashes("too short", 5)) == 0


def test_different_ngrams_have_different_hashes():
    text = " ".join(random_words(np.random.default_rng(0), 100_000))
    hashes = ngrams.ngram_hashes(text, 3)
    assert len(np.unique(hashes)) > 0.9999 * len(hashes)


@pytest.mark.parametrize("n_in_memory", [1 << 22, 1000])
def test_ngram_index_is_sorted_and_distinct(tmp_path, monkeypatch, n_in_memory):
    rng = np.random.default_rng(0)
    arrays = [
        ngrams.ngram_hashes(" ".join(random_words(rng, n)), 2) for n in (3000, 1, 500, 3000)
    ]
    arrays.append(arrays[0])
    monkeypatch.setattr(preprocessing, "HASHES_IN_MEMORY", n_in_memory)
    preprocessing.write_ngram_index(tmp_path / "index.u64", iter(arrays))
    index = preprocessing.open_ngram_index(tmp_path / "index.u64")
    np.testing.assert_array_equal(index, np.unique(np.concatenate(arrays)))
    assert [path.name for path in tmp_path.iterdir()] == ["index.u64"]


def test_index_without_ngrams_is_empty(tmp_path):
    preprocessing.write_ngram_index(tmp_path / "index.u64", iter([]))
    assert len(preprocessing.open_ngram_index(tmp_path / "index.u64")) == 0


def test_shared_ngram_is_detected_at_any_position():
    text = "to be or not to be that is the question"
    blocked = np.unique(ngrams.ngram_hashes(text, 5))
    assert preprocessing.shares_ngram("he said: To be, or not to... and left", 5, blocked)
    assert not preprocessing.shares_ngram("to be or to be not that is a question", 5, blocked)
    assert not preprocessing.shares_ngram("not to be", 5, blocked)
