"""Trends of task accuracies over model size: tasks that improve, get worse or are flat.

    for trend in task_trends.fit_trends(rows):
        print(trend.task, trend.direction)

`rows` are those of records.load_runs. The error of an accuracy contains the sampling error of its
items and RUN_NOISE. It is increased if the runs differ more from a monotone curve. A monotone curve
also describes abilities that appear suddenly. All runs have the same items, so the choice of
paradigms, which is part of the stored error of a mean, does not change a trend.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.reports import task_significance
from lm.runs import records, run_selection, task_results

MIN_TREND = 3.0  # standard errors between the slope over log size of an improving task and 0
MIN_FALL = 2.0  # standard errors between the best size and a largest size that is worse
RUN_NOISE = 0.01  # assumed standard deviation of an accuracy between seeds


class TaskTrend(NamedTuple):
    """Change of the accuracy of a task over the sizes."""

    task: str
    smallest: float  # mean accuracy of the smallest size
    largest: float  # mean accuracy of the largest size
    z: float  # slope of accuracy over log size, in standard errors
    best: float  # highest mean accuracy of a size
    best_size: float  # number of parameters of this size
    fall_error: float  # standard error of the difference between the best and the largest size

    @property
    def direction(self) -> str:
        """Return improves, worsens or flat."""
        if abs(self.z) < MIN_TREND:
            return "flat"
        return "improves" if self.z > 0 else "worsens"

    @property
    def is_past_its_best(self) -> bool:
        """Return True if the largest size is clearly worse than a smaller one."""
        return self.best - self.largest > MIN_FALL * self.fall_error


def fit_trends(rows: Sequence[dict], tasks: Sequence[str] | None = None) -> list[TaskTrend]:
    """Return the trend over size of each task, from the runs of the largest token budget.

    tasks: names of tasks; None for those of task_results.summary_tasks.
    """
    rows = run_selection.select_task_runs(rows).rows
    trends = []
    for task in task_results.summary_tasks(rows) if tasks is None else tasks:
        points = [
            (row[records.N_PARAMS], task_results.task_value(row, task), _run_error(row, task))
            for row in run_selection.finished_with(
                rows, records.N_PARAMS, task_results.task_column(task)
            )
        ]
        if points:
            trends.append(_trend(task, np.array(points, float)))
    return trends


def _run_error(row: dict, task: str) -> float:
    """Return the standard error of an accuracy from its items and RUN_NOISE."""
    return math.hypot(_sampling_error(row, task), RUN_NOISE)


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
    slope_sum = float(np.sum(weights * x * accuracies))
    z = 0.0
    if spread > 1e-9:
        z = slope_sum / math.sqrt(spread) / _excess(sizes, accuracies, weights, slope_sum > 0)
    levels = np.unique(sizes)
    means = [float(accuracies[sizes == size].mean()) for size in levels]
    mean_errors = [float(np.hypot.reduce(errors[sizes == s]) / np.sum(sizes == s)) for s in levels]
    i = int(np.argmax(means))
    fall_error = math.hypot(mean_errors[i], mean_errors[-1])
    return TaskTrend(task, means[0], means[-1], z, means[i], float(levels[i]), fall_error)


def _excess(sizes: np.ndarray, accuracies: np.ndarray, weights: np.ndarray, rises: bool) -> float:
    """Return the factor between the scatter of runs and their errors, at least 1.

    The scatter is that around the best monotone curve over size. The degrees of freedom are the
    number of runs minus the number of levels of the curve (Meyer and Woodroofe 2000).
    """
    _, indices = np.unique(sizes, return_inverse=True)
    totals = np.bincount(indices, weights)
    means = np.bincount(indices, weights * accuracies) / totals
    sign = 1 if rises else -1
    curve, n_levels = _rising_curve(sign * means, totals)
    degrees = len(sizes) - n_levels
    chi_square = float(np.sum(weights * (accuracies - sign * curve[indices]) ** 2))
    return max(1.0, math.sqrt(chi_square / degrees)) if degrees else 1.0


def _rising_curve(means: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the nearest curve that does not fall [n], and the number of its levels.

    Neighbors that fall are pooled repeatedly (Ayer et al. 1955). The function of SciPy gives the
    same, but its import takes half a second.
    """
    levels: list[tuple[float, float, int]] = []  # mean, weight, number of values
    for mean, weight in zip(means.tolist(), weights.tolist(), strict=True):
        level = mean, weight, 1
        while levels and levels[-1][0] >= level[0]:
            (mean_1, weight_1, n_1), (mean_2, weight_2, n_2) = levels.pop(), level
            total = weight_1 + weight_2
            level = (mean_1 * weight_1 + mean_2 * weight_2) / total, total, n_1 + n_2
        levels.append(level)
    values, _, counts = zip(*levels, strict=True)
    return np.repeat(values, counts), len(levels)


def tasks_with_trend(rows: Sequence[dict]) -> list[str]:
    """Return the tasks that a figure shows: with a trend, or above baseline in any run."""
    above = task_significance.above_baseline_in_any(rows)
    return [t.task for t in fit_trends(rows) if t.direction != "flat" or t.task in above]
