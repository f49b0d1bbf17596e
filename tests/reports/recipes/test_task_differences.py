"""Tests of the differences of task accuracy."""

import numpy as np
import pytest

from lm.reports.recipes import task_differences
from lm.runs import records
from lm.runs.items import task_items


def make_pair(accuracies_a, accuracies_b, se=0.03):
    """Return a pair of rows with tasks t0, t1, ... of these accuracies."""
    return tuple(
        {f"eval.task.t{i}.accuracy": value for i, value in enumerate(values)}
        | {f"eval.task_se.t{i}.accuracy": se for i in range(len(values))}
        for values in (accuracies_a, accuracies_b)
    )


def test_difference_has_an_interval_and_a_corrected_p_value():
    pairs = [make_pair([0.5, 0.2], [0.7, 0.2]), make_pair([0.5, 0.3], [0.7, 0.3])]
    first, second = task_differences.compare_tasks(pairs)
    assert (first.task, second.task) == ("t0", "t1")
    assert first.difference == pytest.approx(0.2)
    assert first.hi - first.lo == pytest.approx(2 * 1.96 * 0.03 * 2**0.5, rel=1e-3)
    assert first.p_value < 1e-4 and second.p_value == 1.0


def test_one_of_many_equal_tasks_differs_rarely():
    rng = np.random.default_rng(0)
    n_different = 0
    for _ in range(200):
        pair = make_pair(*(0.5 + 0.03 * rng.standard_normal((2, 20))))
        n_different += task_differences.compare_tasks([pair])[0].p_value < 0.05
    assert n_different < 20


def test_tasks_of_one_recipe_are_left_out():
    assert task_differences.compare_tasks([make_pair([0.1, 0.2], [])]) == []


def write_items(folder, accuracy, n=400, seed=0, groups=None, documents=None, shared=None):
    """Write the points of a run, and return its row. shared: difficulty of each example."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).random(n) if shared is None else shared
    points = (0.9 * shared + 0.1 * rng.random(n) < accuracy).astype(float)
    items = task_items.make_items(
        "t", points, documents or [str(i) for i in range(n)], groups or [""] * n, "digest"
    )
    records.Writer(folder).write_file(task_items.FILE, task_items.encode_items([items]))
    se = float(np.sqrt(items.accuracy * (1 - items.accuracy) / n))
    return {
        "dir": str(folder),
        "eval.task.t.accuracy": items.accuracy,
        "eval.task_se.t.accuracy": se,
    }


def test_paired_points_find_what_independent_errors_miss(tmp_path):
    pair = write_items(tmp_path / "a", 0.5), write_items(tmp_path / "b", 0.55, seed=1)
    (paired,) = task_differences.compare_tasks([pair])
    without = [{k: v for k, v in row.items() if k != "dir"} for row in pair]
    (unpaired,) = task_differences.compare_tasks([tuple(without)])
    assert paired.test == "McNemar" and unpaired.test == "unpaired"
    assert paired.difference == pytest.approx(unpaired.difference)
    assert paired.p_value < 0.01 < 0.05 < unpaired.p_value
    assert 0 < paired.lo < paired.difference < paired.hi
    assert paired.hi - paired.lo < 0.6 * (unpaired.hi - unpaired.lo)


def test_mcnemar_counts_only_examples_with_different_answers():
    """Stated values: 2 * P(X <= 2 | 12 fair coins), and 1 without a different answer."""
    assert task_differences._mcnemar(10, 2) == pytest.approx(2 * 79 / 4096)
    assert task_differences._mcnemar(0, 0) == task_differences._mcnemar(5, 5) == 1.0


def test_examples_of_one_document_count_once(tmp_path):
    """The interval of 20 documents of equal examples is that of 20 examples."""
    n, rng = 400, np.random.default_rng(5)
    shared = np.repeat(rng.random(20), 20)
    documents = np.repeat([f"d{i}" for i in range(20)], 20).tolist()
    intervals = []
    for names in (documents, None):
        pair = tuple(
            write_items(tmp_path / f"{side}{names is None}", p, n, 7, None, names, shared)
            for side, p in (("a", 0.4), ("b", 0.6))
        )
        (result,) = task_differences.compare_tasks([pair])
        intervals.append(result.hi - result.lo)
    assert result.test == "McNemar" and intervals[0] > 2 * intervals[1]


def test_seeds_and_groups_have_a_paired_test(tmp_path):
    groups = ["g"] * 300 + ["h"] * 100
    pairs = [
        tuple(
            write_items(tmp_path / f"{side}{seed}", p, 400, 10 * seed + k, groups)
            for k, (side, p) in enumerate((("a", 0.5), ("b", 0.56)))
        )
        for seed in range(2)
    ]
    (result,) = task_differences.compare_tasks(pairs)
    assert result.test == "paired" and result.p_value < 0.01 and result.lo > 0
    means = [
        np.mean([row["eval.task.t.accuracy"] for row in side]) for side in zip(*pairs, strict=True)
    ]
    assert (result.accuracy_a, result.accuracy_b) == pytest.approx(means)


def test_other_examples_are_compared_without_pairs(tmp_path):
    pair = write_items(tmp_path / "a", 0.5), write_items(tmp_path / "b", 0.5, n=300)
    assert task_differences.compare_tasks([pair])[0].test == "unpaired"
