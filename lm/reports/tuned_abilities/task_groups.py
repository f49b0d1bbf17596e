"""Mean scores of groups of tasks, such as tuned and unseen tasks, by size and method.

    points = pretraining_gain.task_scores(rows)
    groups = {"tuned tasks": ["sst2"], "unseen tasks": ["my_nli", "my_facts"]}
    means = task_groups.group_scores(points, groups)
    pretraining_gain.compare_methods(means)           # gain of pre-training in each group

The result has the form of `task_scores`, with the name of the group as the task. Each task has the
same weight (as in Wei et al. 2021, arXiv:2109.01652). The standard error is that of independent
tasks. The baseline of a group is the mean of the best baselines of its tasks.
"""

from collections.abc import Mapping, Sequence

import numpy as np


def group_scores(points: Sequence[Mapping], groups: Mapping[str, Sequence[str]]) -> list[dict]:
    """Return the mean score of each group, size and method that has all tasks of the group.

    points: result of pretraining_gain.task_scores. groups: {name: labels of its tasks}. Raises
    ValueError for a task without scores, and for tasks with different metrics.
    """
    metrics = {point["task"]: point["metric"] for point in points}
    for name, tasks in groups.items():
        if unknown := [task for task in tasks if task not in metrics]:
            raise ValueError(
                f"group {name}: the task {unknown[0]} has no scores: use tasks of"
                f" {', '.join(metrics)}"
            )
        if len(names := sorted({metrics[task] for task in tasks})) > 1:
            raise ValueError(
                f"group {name}: its tasks have the metrics {', '.join(names)}: use tasks with the"
                " same metric"
            )
    by_key = {(point["task"], point["size"], point["method"]): point for point in points}
    keys = dict.fromkeys((point["size"], point["method"]) for point in points)
    means = []
    for name, tasks in groups.items():
        for size, method in keys:
            members = [by_key.get((task, size, method)) for task in tasks]
            complete = [point for point in members if point]
            if complete and len(complete) == len(members):
                means.append(_mean_point(name, complete))
    return means


def _mean_point(name: str, points: Sequence[Mapping]) -> dict:
    """Return the mean of the scores of one size and method, as the score of a task."""
    names = {point["baseline_name"] for point in points}
    return {
        **points[0],
        "task": name,
        "value": float(np.mean([point["value"] for point in points])),
        "se": float(np.sqrt(np.sum([point["se"] ** 2 for point in points])) / len(points)),
        "seed_variance": sum(point["seed_variance"] for point in points) / len(points) ** 2,
        "seed_degrees": min(point["seed_degrees"] for point in points),
        "n_runs": min(point["n_runs"] for point in points),
        "steps": max(point["steps"] for point in points),
        "baseline": float(np.mean([point["baseline"] for point in points])),
        "baseline_name": names.pop() if len(names) == 1 else "best baselines",
    }
