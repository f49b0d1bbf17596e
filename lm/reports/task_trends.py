"""Trends of task accuracies over model size: tasks that improve, get worse or are flat.

    for trend in task_trends.fit_trends(rows):
        print(trend.task, trend.direction)

`rows` are those of records.load_runs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.reports import task_significance
from lm.runs import records, run_selection, task_results

MIN_TREND = 3.0  # standard errors between the slope over log size of an improving task and 0


class TaskTrend(NamedTuple):
    """Change of the accuracy of a task over the sizes."""

    task: str
    smallest: float  # mean accuracy of the smallest size
    largest: float  # mean accuracy of the largest size
    z: float  # slope of accuracy over log size, in standard errors

    @property
    def direction(self) -> str:
        """Return improves, worsens or flat."""
        if abs(self.z) < MIN_TREND:
            return "flat"
        return "improves" if self.z > 0 else "worsens"


def fit_trends(rows: Sequence[dict]) -> list[TaskTrend]:
    """Return the trend over size of each task, from the runs of the largest token budget."""
    rows = run_selection.largest_token_budget(rows).rows
    trends = []
    for task in task_results.summary_tasks(rows):
        points = [
            (row[records.N_PARAMS], task_results.task_value(row, task), _sampling_error(row, task))
            for row in run_selection.finished_with(
                rows, records.N_PARAMS, task_results.task_column(task)
            )
        ]
        if points:
            trends.append(_trend(task, np.array(points, float)))
    return trends


def _sampling_error(row: dict, task: str) -> float:
    """Return the standard error of an accuracy. It is above 0 for an accuracy of 0 or 1.

    Two examples are added, one of them correct (Agresti and Coull 1998).
    """
    accuracy, n = task_results.task_value(row, task), task_results.task_value(row, task, "n")
    if not math.isfinite(n):
        result = task_results.task_result(row, task)
        return max(result["se"] if result else 0.0, 0.01)
    share = (accuracy * n + 1) / (n + 2)
    return math.sqrt(share * (1 - share) / (n + 2))


def _trend(task: str, points: np.ndarray) -> TaskTrend:
    """Fit a line to accuracy over log size by weighted least squares. points: [n, 3]."""
    sizes, accuracies, errors = points.T
    weights = 1 / errors**2
    x = np.log(sizes) - np.average(np.log(sizes), weights=weights)
    spread = float(np.sum(weights * x**2))
    z = float(np.sum(weights * x * accuracies)) / math.sqrt(spread) if spread > 1e-9 else 0.0
    smallest, largest = (float(accuracies[sizes == s].mean()) for s in (sizes.min(), sizes.max()))
    return TaskTrend(task, smallest, largest, z)


def tasks_with_trend(rows: Sequence[dict]) -> list[str]:
    """Return the tasks that a figure shows: with a trend, or above baseline in any run."""
    above = set().union(*task_significance.above_baseline_by_run(rows).values())
    return [t.task for t in fit_trends(rows) if t.direction != "flat" or t.task in above]
