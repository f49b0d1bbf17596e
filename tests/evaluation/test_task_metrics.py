"""Task metrics from known log-likelihoods."""

import importlib.util

import numpy as np
import pytest

from lm.evaluation import task_metrics, tasks


def token_scores(nats, hits=None):
    return task_metrics.TokenScores(
        np.array(nats, float), np.array(hits if hits else [False] * len(nats))
    )


def values(metrics):
    """Return metric -> value, and metric_se -> standard error."""
    errors = {f"{name}_se": m["se"] for name, m in metrics.items() if "se" in m}
    return {name: m["value"] for name, m in metrics.items()} | errors


def test_choices_are_compared_by_nats_and_nats_per_byte():
    example = tasks.Example(("q", "q"), ("ab", "abcdefgh"), right=1, chance=0.5)
    scores = [[token_scores([2.0]), token_scores([3.0])]]
    row = values(task_metrics.likelihood_metrics([example], scores, [[b"abcdefgh"]]))
    assert row["accuracy"] == 0 and row["accuracy_bytes"] == 1  # 3 nats for four times the bytes
    p = 1 / (1 + np.e)
    assert row["p_right"] == pytest.approx(p)
    assert row["brier"] == pytest.approx(2 * (1 - p) ** 2)
    assert row["bits_per_byte"] == pytest.approx(3 / np.log(2) / 8)
    assert row["chance"] == 0.5 and row["n"] == 1


def test_single_answer_needs_every_token_most_likely():
    example = tasks.Example(("q",), ("xyz",))
    pieces = [b"x", b"y", b"z"]
    scores = token_scores([0.1, 0.2, 0.3], [True, False, True])
    row = values(task_metrics.likelihood_metrics([example], [[scores]], [pieces]))
    assert row["accuracy"] == row["exact"] == 0 and row["token_accuracy"] == pytest.approx(2 / 3)
    assert row["token_probability"] == pytest.approx(np.exp(-0.2)) and row["tokens"] == 3
    assert row["p_right"] == pytest.approx(np.exp(-0.6))
    assert row["token_probability"] ** 3 == pytest.approx(row["p_right"])
    assert "accuracy_bytes" not in row
    scores = token_scores([0.1, 0.2, 0.3], [True] * 3)
    row = values(task_metrics.likelihood_metrics([example], [[scores]], [pieces]))
    assert row["accuracy"] == 1


def test_standard_errors_match_repeated_sampling():
    rng, example = np.random.default_rng(0), tasks.Example(("q",), ("x",))
    rows = []
    for _ in range(200):
        hits = rng.random(60) < 0.3
        scores = [[token_scores([0.5], [bool(hit)])] for hit in hits]
        rows.append(values(task_metrics.likelihood_metrics([example] * 60, scores, [[b"x"]] * 60)))
    deviation = np.std([row["accuracy"] for row in rows])
    assert deviation == pytest.approx(np.mean([row["accuracy_se"] for row in rows]), rel=0.15)


def test_keystrokes_are_saved_when_a_word_ends_correctly():
    pieces = [bytes([b]) for b in b" music x"]
    no_hits, all_hits = np.zeros(8, bool), np.ones(8, bool)
    assert task_metrics.keystrokes_saved(no_hits, pieces) == 0
    per_word = task_metrics.keystrokes_saved(all_hits, pieces)  # one key press per word
    assert per_word == pytest.approx(1 - 2 / 8)
    hits = np.array([0, 0, 1, 1, 1, 1, 0, 0], bool)
    assert task_metrics.keystrokes_saved(hits, pieces) == pytest.approx(1 - (2 + 1 + 2) / 8)


def test_edit_distance_counts_letters_to_change():
    task = tasks.Task("t", [tasks.Example(("q",), ("sitting",)), tasks.Example(("q",), (" a",))])
    row = values(task_metrics.text_metrics(task, ["kitten", "a"]))
    assert row["edit_distance"] == pytest.approx(3 / 7 / 2) and row["said_exactly"] == 0.5


def test_answer_may_match_any_reference():
    task = tasks.Task("t", [tasks.Example(("q",), ("vier",), others=("4",))])
    assert values(task_metrics.text_metrics(task, [" 4"]))["said_exactly"] == 1


def test_translation_metrics_need_sacrebleu():
    task = tasks.Task("t", [tasks.Example(("q",), ("ein Haus am See",))] * 3, True, True)
    if importlib.util.find_spec("sacrebleu"):
        assert values(task_metrics.text_metrics(task, ["ein Haus am See"] * 3))[
            "chrf"
        ] == pytest.approx(100)
    else:
        with pytest.raises(ValueError, match="lm-scaling\\[translation\\]"):
            task_metrics.text_metrics(task, ["ein Haus am See"] * 3)
