"""Results of minimal pairs per paradigm, per phenomenon and of all pairs."""

import numpy as np
import pytest

from lm.evaluation import tasks
from lm.evaluation.minimal_pairs import pair_metrics

PARADIGMS = ("a/1", "a/2", "b/3")


def task_of(groups, **fields) -> tasks.Task:
    examples = [
        tasks.Example(("", ""), ("good one", "bad"), 0, 0.5, group=group) for group in groups
    ]
    return tasks.Task("pair:set?n=9", examples, is_pairs=True, **fields)


def scores_of(nats, n_tokens=None, is_same=None) -> pair_metrics.PairScores:
    nats_N2 = np.array(nats, float)
    n_tokens_N2 = np.array(n_tokens) if n_tokens else np.full(nats_N2.shape, 4)
    is_same_N = np.zeros(len(nats_N2), bool) if is_same is None else np.array(is_same)
    return pair_metrics.PairScores(nats_N2, n_tokens_N2, is_same_N)


def test_ties_count_half_and_nan_counts_as_wrong():
    nats_N2 = np.array([[1, 2], [2, 1], [3, 3 + 1e-12], [5, 5.1], [np.nan, 1]])
    is_same_N = np.array([False, False, False, True, False])
    points_N = pair_metrics.compare_sentences(nats_N2, is_same_N)
    assert points_N.tolist() == [1, 0, 0.5, 0.5, 0]


def test_metrics_of_a_paradigm_match_their_definitions():
    scores = scores_of([[8, 9], [9, 8], [8, 10]], [[4, 4], [4, 3], [2, 5]])
    (metrics,) = pair_metrics.pair_results(task_of(["a/1"] * 3), scores).values()
    values = {name: numbers["value"] for name, numbers in metrics.items()}
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["accuracy_tokens"] == pytest.approx(2 / 3)  # 2 < 2.25, 2.25 < 2.67, 4 > 2
    assert (values["n"], values["n_equal"], values["accuracy_equal"]) == (3, 1, 1)
    assert values["margin"] == pytest.approx(2 / 3)
    assert values["p_right"] == pytest.approx(np.mean(1 / (1 + np.exp([-1, 1, -2]))))
    assert values["bits_per_byte"] == pytest.approx(np.mean([8, 9, 8]) / np.log(2) / 8)
    assert metrics["accuracy"]["se"] == pytest.approx(np.std([1, 0, 1], ddof=1) / 3**0.5)
    assert values["chance"] == 0.5 and "p_above_baseline" not in values


def test_means_weight_paradigms_equally_and_cluster_errors():
    groups = ["a/1"] * 4 + ["a/2"] * 2 + ["b/3"] * 2
    correct = [1, 1, 1, 0, 0, 0, 1, 0]
    scores = scores_of([[1, 2] if point else [2, 1] for point in correct])
    results = pair_metrics.pair_results(task_of(groups), scores)
    assert list(results) == [
        *("pair:set?n=9", "pair:set?n=9#a", "pair:set?n=9#b"),
        *("pair:set?n=9#a/1", "pair:set?n=9#a/2", "pair:set?n=9#b/3"),
    ]
    accuracy = {name.rpartition("#")[2]: m["accuracy"] for name, m in results.items()}
    assert [accuracy[name]["value"] for name in ("a/1", "a/2", "b/3")] == [0.75, 0, 0.5]
    assert accuracy["a"]["value"] == 0.375 and accuracy["b"]["value"] == 0.5
    assert accuracy["pair:set?n=9"]["value"] == pytest.approx(1.25 / 3)
    expected = np.std([0.75, 0, 0.5], ddof=1) / 3**0.5
    assert accuracy["pair:set?n=9"]["se"] == pytest.approx(expected)
    assert accuracy["b"]["se"] == accuracy["b/3"]["se"]  # a single paradigm: over pairs
    assert results["pair:set?n=9#a"]["n_paradigms"]["value"] == 2
    assert "n_paradigms" not in results["pair:set?n=9#a/1"]


def test_baselines_are_tested_per_paradigm_and_per_mean():
    groups = [name for name in PARADIGMS for _ in range(20)]
    weak = tasks.Baseline("unigram", np.tile([1.0, 0.0], 30))
    strong = tasks.Baseline("bigram", np.concatenate([np.tile([1.0, 0.0], 20), np.ones(20)]))
    scores = scores_of([[1, 2]] * 40 + [[2, 1]] * 20)
    task = task_of(groups, baselines=(weak, strong))
    results = pair_metrics.pair_results(task, scores)
    first, last = results["pair:set?n=9#a/1"], results["pair:set?n=9#b/3"]
    assert first["baseline_unigram"]["value"] == first["baseline_bigram"]["value"] == 0.5
    assert first["p_above_baseline"]["value"] == pytest.approx(0.5**10)
    assert last["p_above_baseline"]["value"] == 1
    assert last["p_below_baseline"]["value"] == pytest.approx(2 * 0.5**20)
    everything = results["pair:set?n=9"]
    assert everything["baseline_bigram"]["value"] == pytest.approx(2 / 3)
    assert 0.05 < everything["p_above_baseline"]["value"] <= 1
