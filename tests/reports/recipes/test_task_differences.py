"""Tests of the differences of task accuracy."""

import numpy as np
import pytest

from lm.reports.recipes import task_differences


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
