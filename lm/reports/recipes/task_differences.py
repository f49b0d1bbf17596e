"""Differences of task accuracy between two recipes at their largest common size.

Runs store the points of each example of a task. With them, the difference is paired: McNemar's
exact test (1947) for one pair of runs, and a randomization test otherwise, which changes the signs
of the differences of whole documents. The interval is a paired bootstrap, clustered by document.
Runs of earlier versions have only the accuracy and its standard error. Their test counts the
examples of both recipes as independent, so it finds fewer differences.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.runs import task_results
from lm.runs.items import task_items

N_RESAMPLES = 2000  # of the documents of a task
N_SIGNS = 10_000  # of a randomization test
MAX_CELLS = 1 << 24  # numbers of an array of resamples


class TaskDifference(NamedTuple):
    """Accuracy of B minus that of A, with its interval and its corrected p-value."""

    task: str
    accuracy_a: float
    accuracy_b: float
    difference: float
    lo: float
    hi: float
    p_value: float  # two-sided, corrected for the number of tasks
    test: str = "unpaired"  # McNemar, paired or unpaired


def compare_tasks(
    pairs: Sequence[tuple[Mapping, Mapping]], error: float = 0.05
) -> list[TaskDifference]:
    """Return the differences of all tasks that every run has, the smallest p-value first.

    pairs: runs of A and B of one size. The intervals contain the difference of these runs on other
    examples with probability 1 - error. They do not contain the variance between seeds. The
    p-values are corrected by the method of Holm (1979).
    """
    names = set.intersection(*({*task_results.task_results(row)} for pair in pairs for row in pair))
    loaded = [[task_items.load_items(row) for row in side] for side in zip(*pairs, strict=True)]
    differences = []
    for task in sorted(names):
        items = [[run_items.get(task) for run_items in side] for side in loaded]
        present = [item for side in items for item in side if item is not None]
        is_paired = len(present) == 2 * len(pairs) and all(
            _has_same_examples(present[0], item) for item in present
        )
        if is_paired:
            n = len(pairs)
            differences.append(_compare_items(task, present[:n], present[n:], error))
        elif (result := _compare_accuracies(task, pairs, error)) is not None:
            differences.append(result)
    corrected = _correct_holm(np.array([result.p_value for result in differences]))
    tasks = [
        result._replace(p_value=float(p)) for result, p in zip(differences, corrected, strict=True)
    ]
    return sorted(tasks, key=lambda task: task.p_value)


def _has_same_examples(first: task_items.TaskItems, second: task_items.TaskItems) -> bool:
    return first.digest == second.digest and len(first.points) == len(second.points)


def _compare_items(
    task: str,
    items_a: Sequence[task_items.TaskItems],
    items_b: Sequence[task_items.TaskItems],
    error: float,
) -> TaskDifference:
    """Return the paired difference. items_a, items_b: of each run of A and of B, n examples."""
    points_a, points_b = (np.mean([i.points for i in side], 0) for side in (items_a, items_b))
    weights = items_a[0].weights
    improvements = weights * (points_b - points_a)
    n_documents = int(items_a[0].documents.max(initial=0)) + 1
    documents = np.unique(items_a[0].documents, return_inverse=True)[1]
    sums = np.bincount(documents, improvements, minlength=1)
    totals = np.bincount(documents, weights, minlength=1)
    is_binary = np.isin(points_a, (0, 1)).all() and np.isin(points_b, (0, 1)).all()
    has_one_group = len(items_a[0].group_names) == 1
    if is_binary and has_one_group and n_documents == len(improvements):
        test, p_value = (
            "McNemar",
            _mcnemar(int((improvements > 0).sum()), int((improvements < 0).sum())),
        )
    else:
        test, p_value = "paired", _randomize_signs(sums)
    lo, hi = _bootstrap(sums, totals, error)
    means = float(weights @ points_a), float(weights @ points_b)
    return TaskDifference(task, *means, float(improvements.sum()), lo, hi, p_value, test)


def _mcnemar(n_better: int, n_worse: int) -> float:
    """Return the exact two-sided p-value: both kinds of different answers are equally likely."""
    from scipy import special  # its import takes longer than that of the reports

    n = n_better + n_worse
    return min(1.0, 2 * float(special.bdtr(min(n_better, n_worse), n, 0.5))) if n else 1.0


def _randomize_signs(sums: np.ndarray) -> float:
    """Return the p-value of the sum of the differences of documents, under random signs."""
    rng = np.random.default_rng(0)
    observed, n_larger = abs(sums.sum()) * (1 - 1e-9), 0
    for n in _batches(N_SIGNS, len(sums)):
        signs = rng.integers(0, 2, (n, len(sums)), dtype=np.int8) * 2 - 1
        n_larger += int((np.abs(signs @ sums) >= observed).sum())
    return (1 + n_larger) / (1 + N_SIGNS)


def _bootstrap(sums: np.ndarray, totals: np.ndarray, error: float) -> tuple[float, float]:
    """Return the percentile interval of the difference over resamples of the documents."""
    rng, n_documents = np.random.default_rng(1), len(sums)
    draws = []
    for n in _batches(N_RESAMPLES, n_documents):
        counts = rng.multinomial(n_documents, np.full(n_documents, 1 / n_documents), n)
        draws.append((counts @ sums) / (counts @ totals))
    lo, hi = np.percentile(np.concatenate(draws), [50 * error, 100 - 50 * error])
    return float(lo), float(hi)


def _batches(n: int, n_columns: int) -> list[int]:
    """Return numbers of rows that add up to n, each of at most MAX_CELLS numbers."""
    size = max(1, min(n, MAX_CELLS // max(n_columns, 1)))
    return [size] * (n // size) + [n % size] * (n % size > 0)


def _compare_accuracies(
    task: str, pairs: Sequence[tuple[Mapping, Mapping]], error: float
) -> TaskDifference | None:
    """Return the difference of independent accuracies, None if a run has no accuracy."""
    from scipy import stats  # its import takes a second

    results = [
        [task_results.task_result(row, task) for row in side] for side in zip(*pairs, strict=True)
    ]
    sides = [[r for r in side if r is not None] for side in results]
    if not all(len(side) == len(pairs) for side in sides):
        return None
    first, second = (float(np.mean([r["value"] for r in side])) for side in sides)
    # Seeds are evaluated on the same examples, so they do not reduce the error of examples.
    spread = math.hypot(*(float(np.mean([r["se"] for r in side])) for side in sides))
    difference = second - first
    z = abs(difference) / spread if spread else (np.inf if difference else 0.0)
    half_width = float(stats.norm.ppf(1 - error / 2)) * spread
    return TaskDifference(
        task,
        first,
        second,
        difference,
        difference - half_width,
        difference + half_width,
        float(2 * stats.norm.sf(z)),
    )


def _correct_holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected by the step-down method of Holm (1979)."""
    order = np.argsort(p_values, kind="stable")
    n = len(p_values)
    steps = np.maximum.accumulate(np.minimum(p_values[order] * np.arange(n, 0, -1), 1.0))
    corrected = np.empty(n)
    corrected[order] = steps
    return corrected
