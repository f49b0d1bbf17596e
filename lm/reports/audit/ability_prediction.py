"""Prediction of the abilities of a run: scores of its tasks, and the tasks above their baseline.

    abilities = ability_prediction.predict_abilities(rows, total, n_params, n_tokens)
    abilities["two_step"]["scores"]["eval.task.pair:x#agreement.accuracy"]    # value, lo, hi
    abilities["two_step"]["above"]["pair:x#agreement/plural"]                 # probability
    abilities["two_step"]["n_above"]                                          # value, lo, hi

There are two methods, each with the regression of lm/laws/abilities/score_regression.py:

    two_step    the law of size predicts the loss, and the loss predicts the scores (Bhagia et al.
                2024, arXiv:2412.04403)
    direct      size and tokens predict the scores

The method two_step is the main one. Draws of the scores contain the uncertainty of the loss and the
differences between runs on these items. Each draw becomes a p-value for each task. The test
statistic is (score - best baseline) / error, where the error of this paired difference is that of
the tests stored in the runs. Then the rule of task_significance.py, which corrects for the number
of tasks, selects the tasks above baseline of the draw. The probability of a task is the fraction of
draws that select the task.

For comparison, the entry contains the outcome of the previous size and the base rate: the fraction
of tasks that the previous size has above baseline. All are later compared by their Brier score, see
prediction_results.py. The functions are deterministic.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.laws import run_table
from lm.laws.abilities import above_baseline, score_regression
from lm.reports import task_significance
from lm.runs import records, run_selection, task_results

LEVEL = 0.9  # of the intervals
N_DRAWS, SEED = 4000, 0
TWO_STEP, DIRECT = "two_step", "direct"
METHODS = (TWO_STEP, DIRECT)
NORMAL_95 = 1.959964  # half the width of a normal 95% interval, in standard deviations
PERCENT_METRICS = ("chrf", "bleu")  # stored as 0 to 100
# Smallest and largest test statistic from which the error of a difference is computed. The p-value
# of a smaller statistic depends on ties, and that of a larger one is rounded.
STATISTIC_RANGE = (0.5, 7.0)


def predict_abilities(
    rows: Sequence[dict], total: Mapping, n_params: float, n_tokens: float
) -> dict[str, Any]:
    """Return the predicted abilities of a run, {} if no row has task results.

    rows: finished runs of smaller sizes with any token budget. total: the predicted loss of the
    run, with value, lo and hi of a 95% interval. n_params: parameters without embeddings.
    """
    scored = [row for row in run_selection.without_trunks(rows) if task_results.task_names([row])]
    if not scored:
        return {}
    entry: dict[str, Any] = {"level": LEVEL, "draws": {"seed": SEED, "n": N_DRAWS}}
    previous = previous_rows(scored, n_tokens)
    outcomes = [task_significance.tasks_above_baseline(row) for row in previous]
    names = task_results.task_names(previous)
    fractions = {task: float(np.mean([task in above for above in outcomes])) for task in names}
    entry["previous_runs"] = [row["name"] for row in previous]
    entry["previous"] = fractions
    entry["base_rate"] = float(np.mean(list(fractions.values())))
    for index, method in enumerate(METHODS):
        rng = np.random.default_rng((SEED, index))
        try:
            run_table.select_columns(scored, [records.LOSS])  # checks that the runs are comparable
            features_RK, target_BK = _features(method, scored, total, n_params, n_tokens, rng)
            entry[method] = _predict_method(scored, features_RK, target_BK, rng)
        except ValueError as error:
            entry[method] = {"refused": str(error)}
    return entry


def previous_rows(rows: Sequence[dict], n_tokens: float) -> list[dict]:
    """Return the rows of the largest size with a token budget, or of the largest budget of all."""
    budgets = [row[records.TOKENS] for row in rows]
    ratios = np.array(budgets, float) / n_tokens
    if not (np.abs(ratios - 1) <= 0.02).any():
        ratios = np.array(budgets, float) / max(budgets)
    same_budget = [row for row, r in zip(rows, ratios, strict=True) if abs(r - 1) <= 0.02]
    largest = max(row[records.N_PARAMS] for row in same_budget)
    return [row for row in same_budget if row[records.N_PARAMS] == largest]


def score_metrics(rows: Sequence[Mapping], task: str) -> list[str]:
    """Return the metrics of a task that are predicted: accuracy, or chrF and BLEU."""
    row = _last_with(rows, task)
    metric = task_results.baseline_metric(row, task)
    if metric == "accuracy":
        return [metric]
    return [name for name in PERCENT_METRICS if task_results.task_result(row, task, name)]


def _last_with(rows: Sequence[Mapping], task: str) -> Mapping:
    """Return the last row with a result of a task, or the last row."""
    return next((row for row in reversed(rows) if task_results.task_result(row, task)), rows[-1])


def _features(
    method: str,
    rows: Sequence[Mapping],
    total: Mapping,
    n_params: float,
    n_tokens: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of the rows [R, K] and draws of those of the predicted run [B, K]."""
    if method == DIRECT:
        columns = (records.N_PARAMS, records.TOKENS)
        features_RK = np.log([[row[column] for column in columns] for row in rows])
        return features_RK, np.tile(np.log([n_params, n_tokens]), (N_DRAWS, 1))
    if not records.is_finite(total.get("value")):
        raise ValueError(f"the loss is not predicted: {total.get('refused', 'no value')}")
    if not (records.is_finite(total.get("lo")) and records.is_finite(total.get("hi"))):
        raise ValueError("the predicted loss has no interval")
    sd = (total["hi"] - total["lo"]) / (2 * NORMAL_95)
    losses_R1 = np.array([[row[records.LOSS]] for row in rows], float)
    return losses_R1, total["value"] + sd * rng.standard_normal((N_DRAWS, 1))


def _predict_method(
    rows: Sequence[dict],
    features_RK: np.ndarray,
    target_BK: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return the scores, the probabilities and the number of tasks above baseline of a method."""
    tasks, means = task_results.task_names(rows), task_results.paradigm_means(rows)
    draws: dict[str, np.ndarray] = {}
    reasons: dict[str, str] = {}
    for names in (tasks, means):  # means have less noise, so they have an own regression
        columns = [(task, metric) for task in names for metric in score_metrics(rows, task)]
        drawn, refused = _draw_scores(rows, columns, features_RK, target_BK, rng)
        draws |= drawn
        reasons |= refused
    if not draws:
        raise ValueError(next(iter(reasons.values())))
    return {
        "scores": {name: _interval(draws_B) for name, draws_B in draws.items()},
        **_above_baseline(rows, tasks, draws),
        **({"refused_scores": reasons} if reasons else {}),
    }


def _draw_scores(
    rows: Sequence[dict],
    columns: Sequence[tuple[str, str]],
    features_RK: np.ndarray,
    target_BK: np.ndarray,
    rng: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return draws of scores by column, and reasons by column. columns: tasks and metrics.

    Tasks with results of the same runs are fitted together.
    """
    patterns: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for task, metric in columns:
        values = [task_results.task_value(row, task, metric) for row in rows]
        patterns.setdefault(tuple(np.flatnonzero(np.isfinite(values)).tolist()), []).append(
            (task, metric)
        )
    draws, reasons = {}, {}
    for indices, members in patterns.items():
        used = [rows[i] for i in indices]
        names = [task_results.task_column(task, metric) for task, metric in members]
        scale_T = np.array([score_scale(metric) for _, metric in members])
        scores_RT = np.array(
            [[task_results.task_value(row, task, m) for task, m in members] for row in used]
        )
        trunks = [str(row.get("start.run") or row["name"]) for row in used]
        families = [task_results.task_family(task) for task, _ in members]
        try:
            fit = score_regression.fit_scores(
                features_RK[list(indices)],
                scores_RT / scale_T,
                trunks,
                families,
                groups=[(row[records.N_PARAMS], row[records.TOKENS]) for row in used],
            )
        except ValueError as error:
            reasons |= dict.fromkeys(names, str(error))
            continue
        draws_BT = scale_T * fit.draw(target_BK, rng)
        draws |= {name: draws_BT[:, i] for i, name in enumerate(names)}
    return draws, reasons


def score_scale(metric: str) -> float:
    """Return the largest value of a metric."""
    return 100.0 if metric in PERCENT_METRICS else 1.0


def _above_baseline(
    rows: Sequence[dict], tasks: Sequence[str], draws: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the probability of each task, and the interval of the number of tasks."""
    from scipy import special  # its import takes longer than that of all laws

    names, p_values = [], []
    for task in tasks:
        metric = task_results.baseline_metric(_last_with(rows, task), task)
        column = task_results.task_column(task, metric)
        if column in draws:
            results = [row for row in rows if task_results.task_result(row, task, metric)]
            baseline = task_results.best_baseline(results[-1], task, metric)[1]
            gain_B = draws[column] - baseline
            names.append(task)
            p_values.append(special.ndtr(-gain_B / _difference_error(results, task, metric)))
    if not names:
        return {}
    rate = task_significance.FALSE_DISCOVERY_RATE
    is_above_BT = above_baseline.select_discoveries(np.stack(p_values, 1), rate)
    counts_B = is_above_BT.sum(axis=1)
    low, high = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    bounds = np.quantile(counts_B, [low, high], method="inverted_cdf")
    n_above = {"value": float(counts_B.mean()), "lo": float(bounds[0]), "hi": float(bounds[1])}
    probabilities = is_above_BT.mean(axis=0)
    return {
        "above": {name: float(p) for name, p in zip(names, probabilities, strict=True)},
        "n_above": n_above | {"n_tasks": len(names)},
    }


def _difference_error(rows: Sequence[dict], task: str, metric: str) -> float:
    """Return the standard error of a score minus the best baseline, the median of the rows.

    The p-value of a stored test gives the test statistic, and the difference divided by this
    statistic is the error. Without a usable p-value, the error is that of a comparison of
    independent answers.
    """
    from scipy import special  # its import takes longer than that of all laws

    errors = []
    for row in rows:
        gain = task_results.task_value(row, task, metric)
        gain -= task_results.best_baseline(row, task, metric)[1]
        statistic = -special.ndtri(task_significance.p_above_baseline(row, task))
        if STATISTIC_RANGE[0] < abs(statistic) < STATISTIC_RANGE[1] and gain * statistic > 0:
            errors.append(gain / statistic)
    if errors:
        return float(np.median(errors))
    n_items = max(task_results.task_value(rows[-1], task, "n"), 1.0)
    return score_scale(metric) * (0.5 / n_items) ** 0.5


def _interval(draws_B: np.ndarray) -> dict[str, float]:
    """Return the median and the bounds of the interval of draws."""
    lo, value, hi = np.quantile(draws_B, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return {"value": float(value), "lo": float(lo), "hi": float(hi)}
