"""Quality filters and MinHash bands."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.config import schema
from lm.data import preprocessing

RNG = np.random.default_rng(0)
WORDS = [f"w{i}" for i in range(5000)]


def a_text(n=400):
    return list(RNG.choice(WORDS, n))


@pytest.mark.parametrize(
    "knobs, bad, good",
    [
        ({"min_words": 3}, "two words", "now three words"),
        ({"min_letters": 0.5}, "1 2 3 ab", "1 2 3 abc"),
        ({"max_repeats": 0.3}, "a\n\na\nb\n a", "a\nb\nc\na"),
    ],
    ids=["short", "symbols", "repeats"],
)
def test_a_filter_drops_what_it_names_and_only_where_asked(knobs, bad, good, request):
    data = schema.Data(**knobs)
    assert preprocessing.rejection_reason(bad, data) in request.node.callspec.id
    assert preprocessing.rejection_reason(bad, data) and not preprocessing.rejection_reason(
        good, data
    )
    assert not preprocessing.rejection_reason(bad, schema.Data())


def near(words, share):
    """Words of which some are changed, so that `share` of the shingles of both agree (Jaccard)."""
    kept = 2 * share / (1 + share)  # of the shingles of one that are in the other
    words = list(words)
    for i in np.flatnonzero(RNG.random(len(words)) > kept ** (1 / preprocessing.SHINGLE)):
        words[i] = f"new{RNG.integers(10**9)}"
    return words


@pytest.mark.parametrize("share, wanted", [(0.9, 0.99), (0.8, 0.93), (0.5, 0.08), (0.2, 0.0)])
def test_near_copies_share_a_band_as_often_as_is_said(share, wanted):
    hits = 0
    for _ in range(300):
        words = a_text(1000)
        mine, other = (
            preprocessing.minhash_bands(" ".join(words)),
            preprocessing.minhash_bands(" ".join(near(words, share))),
        )
        hits += bool(set(mine) & set(other))
    assert hits / 300 == pytest.approx(wanted, abs=0.07)


def test_texts_of_few_words_are_near_copies_only_if_equal():
    assert preprocessing.minhash_bands("two words") == preprocessing.minhash_bands("Two words!")
    assert not set(preprocessing.minhash_bands("two words")) & set(
        preprocessing.minhash_bands("two birds")
    )
    assert not set(preprocessing.minhash_bands("a b c d e")) & set(
        preprocessing.minhash_bands("...")
    )


def test_long_texts_are_hashed_in_parts_and_give_the_same(monkeypatch):
    text = " ".join(a_text(3000))
    whole = preprocessing.minhash_bands(text)
    monkeypatch.setattr(preprocessing, "SHINGLES_PER_CHUNK", 100)
    assert preprocessing.minhash_bands(text) == whole


def test_hashes_are_the_same_in_every_process():
    code = (
        "from lm.data import preprocessing\nprint(preprocessing.minhash_bands('one two three four"
        " five six'))\n"
        "print(preprocessing.ngram_hashes('one two three', 2).tolist())"
    )
    root = Path(__file__).parent.parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    bands = preprocessing.minhash_bands("one two three four five six")
    assert done.stdout == f"{bands}\n{preprocessing.ngram_hashes('one two three', 2).tolist()}\n"


# MERGED DOCSTRING of tests.test_overlap:
# """N-gram hashes for decontamination."""

RNG_OVERLAP = np.random.default_rng(0)
WORDS_OVERLAP = [f"w{i}" for i in range(5000)]


def test_runs_ignore_case_and_marks_but_not_order():
    text = "One two, three (four) FIVE six"
    assert len(preprocessing.ngram_hashes(text, 5)) == 2
    np.testing.assert_array_equal(
        preprocessing.ngram_hashes("one two three four... five six!", 5),
        preprocessing.ngram_hashes(text, 5),
    )
    assert preprocessing.ngram_hashes("two one three four five", 5)[
        0
    ] not in preprocessing.ngram_hashes(text, 5)
    assert len(preprocessing.ngram_hashes("too short", 5)) == 0


def test_runs_of_different_words_differ():
    found = preprocessing.ngram_hashes(" ".join(RNG_OVERLAP.choice(WORDS_OVERLAP, 100_000)), 3)
    assert len(np.unique(found)) > 0.9999 * len(found)


def test_ngram_file_is_sorted_and_distinct(tmp_path, monkeypatch):
    parts = [
        preprocessing.ngram_hashes(" ".join(RNG_OVERLAP.choice(WORDS_OVERLAP, n)), 2)
        for n in (3000, 1, 500, 3000)
    ]
    parts.append(parts[0])
    wanted = np.unique(np.concatenate(parts))
    for held in (1 << 22, 1000):
        monkeypatch.setattr(preprocessing, "HELD", held)
        preprocessing.write_ngram_index(tmp_path / f"{held}.u64", iter(parts))
        np.testing.assert_array_equal(
            preprocessing.open_ngram_index(tmp_path / f"{held}.u64"), wanted
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1000.u64", "4194304.u64"]


def test_no_runs_make_an_empty_file_that_no_text_shares(tmp_path):
    preprocessing.write_ngram_index(tmp_path / "runs.u64", iter([]))
    assert len(preprocessing.open_ngram_index(tmp_path / "runs.u64")) == 0


def test_a_text_shares_a_run_wherever_it_stands():
    guarded = np.unique(preprocessing.ngram_hashes("to be or not to be that is the question", 5))
    assert preprocessing.shares_ngram("he said: To be, or not to... and left", 5, guarded)
    assert not preprocessing.shares_ngram("to be or to be not that is a question", 5, guarded)
    assert not preprocessing.shares_ngram("not to be", 5, guarded)
