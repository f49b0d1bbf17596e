"""Differences of task accuracy between two recipes at their largest common size."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.runs import task_results


class TaskDifference(NamedTuple):
    """Accuracy of B minus that of A, with its 95% interval and its corrected p-value."""

    task: str
    accuracy_a: float
    accuracy_b: float
    difference: float
    lo: float
    hi: float
    p_value: float  # two-sided, corrected for the number of tasks


def compare_tasks(
    pairs: Sequence[tuple[Mapping, Mapping]], error: float = 0.05
) -> list[TaskDifference]:
    """Return the differences of all tasks that every run has, the smallest p-value first.

    pairs: runs of A and B of one size. Runs store the accuracy and its standard error of a task,
    and no results per example. Therefore the error counts the examples of both recipes as
    independent. Their results on the same examples agree more often, so the interval is wider
    than that of McNemar's test. The p-values are corrected by the method of Holm (1979).
    """
    from scipy import stats  # its import takes a second

    names = set.intersection(*({*task_results.task_results(row)} for pair in pairs for row in pair))
    differences, p_values = [], []
    quantile = stats.norm.ppf(1 - error / 2)
    for task in sorted(names):
        results = [
            [task_results.task_result(row, task) for row in side]
            for side in zip(*pairs, strict=True)
        ]
        sides = [[r for r in side if r is not None] for side in results]
        if not all(len(side) == len(pairs) for side in sides):
            continue
        means = [float(np.mean([r["value"] for r in side])) for side in sides]
        # Seeds are evaluated on the same examples, so they do not reduce the error of examples.
        errors = [float(np.mean([r["se"] for r in side])) for side in sides]
        spread = float(np.hypot(errors[0], errors[1]))
        difference = means[1] - means[0]
        z = abs(difference) / spread if spread else (np.inf if difference else 0.0)
        half_width = float(quantile * spread)
        bounds = (difference - half_width, difference + half_width)
        differences.append((task, *means, difference, *bounds))
        p_values.append(float(2 * stats.norm.sf(z)))
    corrected = _correct_holm(np.array(p_values))
    tasks = [
        TaskDifference._make([*values, float(p)])
        for values, p in zip(differences, corrected, strict=True)
    ]
    return sorted(tasks, key=lambda task: task.p_value)


def _correct_holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected by the step-down method of Holm (1979)."""
    order = np.argsort(p_values, kind="stable")
    n = len(p_values)
    steps = np.maximum.accumulate(np.minimum(p_values[order] * np.arange(n, 0, -1), 1.0))
    corrected = np.empty(n)
    corrected[order] = steps
    return corrected
