"""Tests of task results against baselines: tasks above and below their baseline, mastered tasks.

    task_significance.tasks_above_baseline(row)     # names, corrected for the number of tasks
    task_significance.count_tasks(rows)             # numbers of these tasks, per run
    task_significance.has_mastery_accuracy(row, task)    # without the tests

Definitions. The baselines of a task are those of lm/evaluation/baselines and the best answer
without the question ("chance"). A run is above baseline in a task if it is better than each of
them: the p-value is the largest of an exact binomial test against chance and of the stored tests on
the same examples (p_above_baseline). Generated translations have the stored test of chrF alone.
The tasks of a run are corrected together by the step-up rule of Benjamini and Hochberg (1995) with
FALSE_DISCOVERY_RATE. Means over paradigms of minimal pairs are corrected among themselves. Results
of earlier versions have no other baseline than chance. Results of lm-evaluation-harness without
a stored chance accuracy are not tested. A task is mastered if it is above baseline
and its accuracy covers at least MASTERY_FRACTION of the distance from the best baseline to 1
(has_mastery_accuracy).
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lm.laws.abilities import above_baseline
from lm.runs import records, task_results

P_VALUE, MASTERY_FRACTION = 0.01, 0.5
FALSE_DISCOVERY_RATE = 0.05
# Smallest chance accuracy of the test. A model that always gives the most frequent answer is
# sometimes correct, even if the stored chance accuracy of a task is 0.
MIN_CHANCE = 0.01
HARNESS_PREFIX = "harness:"  # of the names of tasks of lm-evaluation-harness
PValue = Callable[[Mapping, str], float]


def is_above_chance(row: Mapping, task: str) -> bool:
    """Return True if an uncorrected test against chance gives p < P_VALUE.

    A law of accuracy needs a signal above chance, but not above the other baselines.
    """
    return _chance_p_value(row, task) < P_VALUE


def p_above_baseline(row: Mapping, task: str) -> float:
    """Return the p-value of the hypothesis that a run is not better than all baselines."""
    stored = task_results.task_value(row, task, "p_above_baseline")
    if np.isfinite(stored) and task_results.baseline_metric(row, task) != "accuracy":
        return stored
    p_chance = _chance_p_value(row, task)
    return max(p_chance, stored) if np.isfinite(stored) else p_chance


def p_below_baseline(row: Mapping, task: str) -> float:
    """Return the p-value of the hypothesis that a run is not worse than any baseline.

    The smaller of the p-values against chance and the other baselines is doubled (Bonferroni).
    """
    stored = task_results.task_value(row, task, "p_below_baseline")
    if np.isfinite(stored) and task_results.baseline_metric(row, task) != "accuracy":
        return stored
    p_chance = _chance_p_value(row, task, is_below=True)
    return min(1.0, 2 * min(p_chance, stored)) if np.isfinite(stored) else p_chance


def tasks_above_baseline(row: Mapping) -> set[str]:
    """Return the tasks in which a run is better than all baselines: see the module docstring."""
    return _discoveries(row, p_above_baseline)


def tasks_below_baseline(row: Mapping) -> set[str]:
    """Return the tasks in which a run is worse than a baseline, corrected in the same way."""
    return _discoveries(row, p_below_baseline)


def above_baseline_by_run(rows: Sequence[Mapping]) -> dict[str, set[str]]:
    """Return {name of run: tasks_above_baseline}."""
    return {row["name"]: tasks_above_baseline(row) for row in rows}


def above_baseline_in_any(rows: Sequence[Mapping]) -> set[str]:
    """Return the tasks in which at least one run is above baseline."""
    return set().union(*above_baseline_by_run(rows).values())


def has_mastery_accuracy(row: Mapping, task: str) -> bool:
    """Return True if the accuracy covers MASTERY_FRACTION of the distance from the best baseline
    to 1. The result is False if the chance accuracy is unknown.
    """
    if _has_unknown_chance(row, task):
        return False
    accuracy = task_results.task_value(row, task)
    baseline = task_results.best_baseline(row, task)[1]
    return baseline < 1 and (accuracy - baseline) / (1 - baseline) >= MASTERY_FRACTION


def count_tasks(rows: Sequence[dict]) -> list[dict]:
    """Return the rows with task results, smallest model first, with counts of tasks added.

    The added columns are tasks.mastered, tasks.above_baseline, tasks.below_baseline and tasks.n
    (evaluated tasks). tasks.above_baseline.FAMILY and tasks.mastered.FAMILY are the numbers of each
    family of tasks, see task_results.task_family. Means over paradigms are not counted.
    """
    counted = []
    for row in sorted(rows, key=lambda row: row.get(records.N_PARAMS, 0)):
        names = task_results.task_names([row])
        if not names:
            continue
        above, below = tasks_above_baseline(row), tasks_below_baseline(row)
        counts = {"tasks.mastered": 0, "tasks.above_baseline": 0}
        for task in names:
            family = task_results.task_family(task)
            is_above = task in above
            is_mastered = is_above and has_mastery_accuracy(row, task)
            values = {"above_baseline": is_above, "mastered": is_mastered}
            for name, value in values.items():
                counts[f"tasks.{name}"] += value
                key = f"tasks.{name}.{family}"
                counts[key] = counts.get(key, 0) + value
        counts |= {"tasks.below_baseline": len(below & set(names)), "tasks.n": len(names)}
        counted.append(row | counts)
    return counted


def chance_accuracy_of(rows: Sequence[Mapping], task: str) -> float:
    """Return the largest finite chance accuracy of a task over the rows, 0 if none is stored."""
    results = [task_results.task_result(row, task, "chance") for row in rows]
    values = [result["value"] for result in results if result]
    return max((value for value in values if np.isfinite(value)), default=0.0)


def _has_unknown_chance(row: Mapping, task: str) -> bool:
    """Return True if the stored chance accuracy is not finite, or if a harness task has none."""
    result = task_results.task_result(row, task, "chance")
    return task.startswith(HARNESS_PREFIX) if result is None else not np.isfinite(result["value"])


def _chance_p_value(row: Mapping, task: str, is_below: bool = False) -> float:
    """Return the p-value of the test against chance, 1 without a result.

    A mean over paradigms has a test of its clustered standard error, other tasks an exact binomial
    test of the number of correct answers.
    """
    from scipy import special  # a third of the time of an import of scipy.stats

    result, n = task_results.task_result(row, task), task_results.task_value(row, task, "n")
    if result is None or not n > 0 or not np.isfinite(result["value"]):
        return 1.0
    if _has_unknown_chance(row, task):
        return 1.0
    accuracy, chance = result["value"], max(chance_accuracy_of([row], task), MIN_CHANCE)
    n_paradigms = task_results.task_value(row, task, "n_paradigms")
    if n_paradigms > 1 and result["se"] > 0:
        t = (accuracy - chance) / result["se"]
        return float(special.stdtr(n_paradigms - 1, t if is_below else -t))
    n_correct = round(accuracy * n)
    return _binomial_p_value(n_correct, int(n), chance, is_below)


@functools.lru_cache(maxsize=2**14)
def _binomial_p_value(n_correct: int, n: int, chance: float, is_below: bool) -> float:
    """Return the p-value of an exact test. Many runs of a sweep have equal numbers.

    The tails of the binomial distribution are incomplete beta functions (Abramowitz and Stegun
    1964, 26.5.24).
    """
    from scipy import special

    if is_below:
        return (
            1.0 if n_correct >= n else float(special.betaincc(n_correct + 1, n - n_correct, chance))
        )
    return 1.0 if n_correct <= 0 else float(special.betainc(n_correct, n - n_correct + 1, chance))


def _discoveries(row: Mapping, p_value: PValue) -> set[str]:
    """Return the tasks and the means over paradigms with a corrected p-value, each family alone."""
    columns = task_results.result_columns(tuple(row))
    return set(_test_tasks(columns, tuple(row[column] for column in columns), p_value))


# The figures and tables of a report test the same results repeatedly.
@functools.lru_cache(maxsize=2**12)
def _test_tasks(columns: tuple[str, ...], values: tuple, p_value: PValue) -> frozenset[str]:
    """Return the result of `_discoveries` for the columns and values of the task results."""
    row = dict(zip(columns, values, strict=True))
    return frozenset(
        name
        for names in (task_results.task_names([row]), task_results.paradigm_means([row]))
        for name in _step_up(names, [p_value(row, task) for task in names])
    )


def _step_up(names: Sequence[str], p_values: Sequence[float]) -> list[str]:
    """Return the names that the rule of Benjamini and Hochberg (1995) selects."""
    p_values_BT = np.array([p_values], float)
    (mask_T,) = above_baseline.select_discoveries(p_values_BT, FALSE_DISCOVERY_RATE)
    return [name for name, is_selected in zip(names, mask_T, strict=True) if is_selected]
