"""Back-test of predicted abilities: leave out the largest sizes, predict them, compare.

    scores = ability_backtest.backtest_abilities(rows, predict_total, n_tokens)
    scores["two_step"]["brier"], scores["previous"]["brier"]

A prediction of a run is only as good as its method was at smaller sizes. For each of the N_LARGEST
largest sizes, the method uses the smaller sizes alone, also for the law of the loss. Outcomes are
those of the runs with the token budget of the predicted run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.laws.abilities import above_baseline
from lm.reports import task_significance
from lm.reports.audit import ability_prediction
from lm.runs import records, task_results

N_LARGEST = 2  # sizes that are left out
MIN_SMALLER = 4  # sizes from which a left-out size is predicted
PREVIOUS, BASE_RATE = "previous", "base_rate"

# Predicts the loss of a number of parameters from rows: a dict with value, lo and hi, or refused.
PredictTotal = Callable[[Sequence[dict], float], Mapping]


def backtest_abilities(
    rows: Sequence[dict], predict_total: PredictTotal, n_tokens: float
) -> dict[str, Any]:
    """Return {method: mean scores over the left-out runs}, {} with too few sizes.

    Only runs that all methods predict are scored. A method that predicts none is left out.

    rows, n_tokens: see ability_prediction.predict_abilities. The methods are those of the
    prediction, the outcome of the previous size, and the base rate. The scores are those of
    `compare_run`.
    """
    scored = [row for row in rows if task_results.task_names([row])]
    compared: list[dict[str, dict[str, float]]] = []
    sizes = sorted({row[records.N_PARAMS] for row in scored})
    for index in range(max(MIN_SMALLER, len(sizes) - N_LARGEST), len(sizes)):
        size = sizes[index]
        smaller = [row for row in scored if row[records.N_PARAMS] < size]
        outcomes = ability_prediction.previous_rows(
            [row for row in scored if row[records.N_PARAMS] == size], n_tokens
        )
        budget = outcomes[0][records.TOKENS]
        total = predict_total(smaller, size)
        abilities = ability_prediction.predict_abilities(smaller, total, size, budget)
        for row in outcomes:
            compared.append(compare_run(abilities, row))
    # Runs differ in difficulty, so only runs that all methods predict are comparable.
    methods = dict.fromkeys(method for by_method in compared for method in by_method)
    common = [by_method for by_method in compared if by_method.keys() == methods.keys()]
    return {method: _mean_scores([run[method] for run in common]) for method in methods if common}


def _mean_scores(by_run: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the number of runs, and the means of the scores that all runs have."""
    means = {
        name: float(np.mean([scores[name] for scores in by_run]))
        for name in by_run[0]
        if all(np.isfinite(scores.get(name, np.nan)) for scores in by_run)
    }
    return {"n_runs": len(by_run), **means}


def compare_run(abilities: Mapping, row: Mapping) -> dict[str, dict[str, float]]:
    """Return {method: scores} of predicted abilities and the results of a run.

    brier       Brier score of the probabilities that tasks are above baseline, over the tasks for
                which all methods have a probability
    n_tasks     number of these tasks
    coverage    fraction of the scores inside their interval
    coverage_means
                fraction of the means over paradigms inside their interval
    n_error     predicted minus measured number of tasks above baseline

    The outcome of the previous size and the base rate have only the first two.
    """
    above = task_significance.tasks_above_baseline(row)
    outcomes = {task: task in above for task in task_results.task_names([row])}
    compared: dict[str, dict[str, float]] = {}
    for method in ability_prediction.METHODS:
        predicted = abilities.get(method, {})
        if "scores" not in predicted:
            continue
        scores = {"coverage": _coverage(predicted["scores"], row, outcomes)}
        means = task_results.paradigm_means([row])
        if means:
            scores["coverage_means"] = _coverage(predicted["scores"], row, means)
        if "above" in predicted:
            names = predicted["above"]
            n_measured = sum(outcomes.get(name, False) for name in names)
            scores["n_error"] = predicted["n_above"]["value"] - n_measured
        compared[method] = scores
    for method, scores in _brier_scores(abilities, outcomes).items():
        compared.setdefault(method, {}).update(scores)
    return compared


def _brier_scores(abilities: Mapping, outcomes: Mapping[str, bool]) -> dict[str, dict[str, float]]:
    """Return {method: brier and n_tasks} over the tasks that all methods and the run have."""
    probabilities = {
        method: abilities[method]["above"]
        for method in ability_prediction.METHODS
        if "above" in abilities.get(method, {})
    }
    if abilities.get(PREVIOUS):
        probabilities[PREVIOUS] = abilities[PREVIOUS]
        probabilities[BASE_RATE] = dict.fromkeys(abilities[PREVIOUS], abilities[BASE_RATE])
    common = {
        task: outcome
        for task, outcome in outcomes.items()
        if all(task in by_task for by_task in probabilities.values())
    }
    if not common:
        return {}
    return {
        method: {"brier": above_baseline.brier_score(by_task, common), "n_tasks": len(common)}
        for method, by_task in probabilities.items()
    }


def _coverage(scores: Mapping[str, Mapping], row: Mapping, tasks) -> float:
    """Return the fraction of the scores of tasks that are inside their interval."""
    columns = {
        task_results.task_column(task, metric)
        for task in tasks
        for metric in ability_prediction.score_metrics([row], task)
    }
    is_inside = [
        interval["lo"] <= row[column] <= interval["hi"]
        for column, interval in scores.items()
        if column in columns and records.is_finite(row.get(column))
    ]
    return float(np.mean(is_inside)) if is_inside else float("nan")
