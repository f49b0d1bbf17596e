"""Quality filters and MinHash bands."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm import config, filters, overlap

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
    data = config.Data(**knobs)
    assert filters.complaint(bad, data) in request.node.callspec.id
    assert filters.complaint(bad, data) and not filters.complaint(good, data)
    assert not filters.complaint(bad, config.Data())


def near(words, share):
    """Words of which some are changed, so that `share` of the shingles of both agree (Jaccard)."""
    kept = 2 * share / (1 + share)  # of the shingles of one that are in the other
    words = list(words)
    for i in np.flatnonzero(RNG.random(len(words)) > kept ** (1 / filters.SHINGLE)):
        words[i] = f"new{RNG.integers(10**9)}"
    return words


@pytest.mark.parametrize("share, wanted", [(0.9, 0.99), (0.8, 0.93), (0.5, 0.08), (0.2, 0.0)])
def test_near_copies_share_a_band_as_often_as_is_said(share, wanted):
    hits = 0
    for _ in range(300):
        words = a_text(1000)
        mine, other = filters.bands(" ".join(words)), filters.bands(" ".join(near(words, share)))
        hits += bool(set(mine) & set(other))
    assert hits / 300 == pytest.approx(wanted, abs=0.07)


def test_texts_of_few_words_are_near_copies_only_if_equal():
    assert filters.bands("two words") == filters.bands("Two words!")
    assert not set(filters.bands("two words")) & set(filters.bands("two birds"))
    assert not set(filters.bands("a b c d e")) & set(filters.bands("..."))


def test_long_texts_are_hashed_in_parts_and_give_the_same(monkeypatch):
    text = " ".join(a_text(3000))
    whole = filters.bands(text)
    monkeypatch.setattr(filters, "CHUNK", 100)
    assert filters.bands(text) == whole


def test_hashes_are_the_same_in_every_process():
    code = (
        "from lm import filters, overlap\nprint(filters.bands('one two three four five six'))\n"
        "print(overlap.runs('one two three', 2).tolist())"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    bands = filters.bands("one two three four five six")
    assert done.stdout == f"{bands}\n{overlap.runs('one two three', 2).tolist()}\n"
