"""Mean scores of groups of tasks with known scores."""

import numpy as np
import pytest

from lm.reports.tuned_abilities import pretraining_gain, task_groups

GROUPS = {"tuned": ["a"], "unseen": ["b", "c"]}


def point(task, size, method, value, **fields):
    """Return a score as that of pretraining_gain.task_scores."""
    return {
        **{"task": task, "size": size, "method": method, "metric": "accuracy", "value": value},
        **{
            "se": 3.0,
            "seed_variance": 0.0,
            "seed_degrees": 0,
            "n_runs": 1,
            "lr": 0.01,
            "steps": 9,
            "baseline": 40.0,
        },
        **{"baseline_name": "chance"},
        **fields,
    }


def scores():
    """Return scores of three tasks. Task c is missing for the size 4000 from scratch."""
    tuned, scratch = pretraining_gain.TUNED_ON_ALL, pretraining_gain.SCRATCH_ON_ALL
    return [
        point("a", 1000, tuned, 80.0),
        point("a", 1000, scratch, 70.0),
        point("b", 1000, tuned, 50.0, baseline=60.0, baseline_name="bigram", seed_degrees=2),
        point("b", 1000, scratch, 45.0),
        point("b", 4000, scratch, 45.0),
        point("c", 1000, tuned, 60.0, se=4.0),
        point("c", 1000, scratch, 55.0),
        point("translation", 1000, tuned, 9.0, metric="bleu"),
    ]


def test_mean_of_a_group():
    means = task_groups.group_scores(scores(), GROUPS)
    by_key = {(p["task"], p["size"], p["method"]): p for p in means}
    unseen = by_key["unseen", 1000, pretraining_gain.TUNED_ON_ALL]
    assert (unseen["value"], unseen["baseline"]) == (55.0, 50.0)
    assert unseen["se"] == pytest.approx(np.hypot(3, 4) / 2)
    assert (unseen["baseline_name"], unseen["seed_degrees"]) == ("best baselines", 0)
    assert by_key["tuned", 1000, pretraining_gain.SCRATCH_ON_ALL]["baseline_name"] == "chance"
    # A size without all tasks of a group has no mean.
    assert {size for _, size, _ in by_key} == {1000}


def test_gain_of_a_group():
    effects = pretraining_gain.compare_methods(task_groups.group_scores(scores(), GROUPS))
    assert [(e["task"], e["gain"]) for e in effects] == [("tuned", 10.0), ("unseen", 5.0)]


def test_no_points():
    assert task_groups.group_scores([], {}) == []


@pytest.mark.parametrize(
    "task, problem",
    [
        ("translation", "its tasks have the metrics accuracy, bleu: use tasks with the same"),
        ("d", "the task d has no scores: use tasks of a, b, c, translation"),
    ],
)
def test_groups_need_tasks_with_one_metric(task, problem):
    with pytest.raises(ValueError, match=f"group g: {problem}"):
        task_groups.group_scores(scores(), {"g": ["a", task]})
