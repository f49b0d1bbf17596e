"""N-gram hashes for decontamination."""

import numpy as np

from lm import overlap

RNG = np.random.default_rng(0)
WORDS = [f"w{i}" for i in range(5000)]


def test_runs_ignore_case_and_marks_but_not_order():
    text = "One two, three (four) FIVE six"
    assert len(overlap.runs(text, 5)) == 2
    np.testing.assert_array_equal(
        overlap.runs("one two three four... five six!", 5), overlap.runs(text, 5)
    )
    assert overlap.runs("two one three four five", 5)[0] not in overlap.runs(text, 5)
    assert len(overlap.runs("too short", 5)) == 0


def test_runs_of_different_words_differ():
    found = overlap.runs(" ".join(RNG.choice(WORDS, 100_000)), 3)
    assert len(np.unique(found)) > 0.9999 * len(found)


def test_ngram_file_is_sorted_and_distinct(tmp_path, monkeypatch):
    parts = [overlap.runs(" ".join(RNG.choice(WORDS, n)), 2) for n in (3000, 1, 500, 3000)]
    parts.append(parts[0])
    wanted = np.unique(np.concatenate(parts))
    for held in (1 << 22, 1000):
        monkeypatch.setattr(overlap, "HELD", held)
        overlap.write(tmp_path / f"{held}.u64", iter(parts))
        np.testing.assert_array_equal(overlap.open_sorted(tmp_path / f"{held}.u64"), wanted)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1000.u64", "4194304.u64"]


def test_no_runs_make_an_empty_file_that_no_text_shares(tmp_path):
    overlap.write(tmp_path / "runs.u64", iter([]))
    assert len(overlap.open_sorted(tmp_path / "runs.u64")) == 0


def test_a_text_shares_a_run_wherever_it_stands():
    guarded = np.unique(overlap.runs("to be or not to be that is the question", 5))
    assert overlap.is_shared("he said: To be, or not to... and left", 5, guarded)
    assert not overlap.is_shared("to be or to be not that is a question", 5, guarded)
    assert not overlap.is_shared("not to be", 5, guarded)
