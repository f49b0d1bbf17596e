"""Statistics of task results over a ladder of models: noise, metrics, predictions, jumps.

    task_analysis.task_verdicts(rows, evals)        # signal, noise and reliability, per task
    task_analysis.correlations(rows)                # metrics that order the models as accuracy does
    task_analysis.accuracy_curves(rows)             # laws from held-out loss to accuracy
    task_analysis.predict_task_accuracy(rows, 6e5)  # predicted accuracies of a model of this size

`rows` are those of records.load_runs. `evals` is {name of run: records.load_evals(row["dir"])}.
task_significance.py defines when a task is above baseline.
"""

import functools
import math
from collections.abc import Container, Mapping, Sequence

import numpy as np

from lm.config import schema
from lm.laws import run_table
from lm.laws.forms import downstream, power_laws
from lm.reports import task_significance
from lm.runs import records, run_selection, task_results

TAIL_FRACTION = 1 / 3  # last part of a run, in which accuracy is a linear trend plus noise
# Metrics that improve smoothly -> expected sign of their correlation with accuracy.
CONTINUOUS_METRICS = {
    "p_right": 1, "bits_per_byte": -1, "brier": -1, "token_accuracy": 1, "token_probability": 1,
    "keystrokes_saved": 1,
}  # fmt: skip


def task_verdicts(rows: Sequence[dict], evals: Mapping[str, Sequence[dict]] = {}) -> list[dict]:
    """Return the signal, noise and reliability of the accuracy of each task, a dict per task.

    Only the runs of run_selection.select_task_runs are used, as in the figures, because runs of
    a size on different token budgets are not comparable. evals: {name of run: rows of
    records.load_evals}. The entries of a dict are:

    task, chance     name, and mean chance accuracy over the runs
    baseline, baseline_name
                     score and name of the best baseline of the last row
    best_score       highest mean score of a size, in the metric of the baseline: accuracy, or chrF
                     of translations
    signal           standard deviation, over sizes, of the mean accuracy of each size
    sampling, checkpoint, seed
                     standard deviations of the noise components, see `noise_components`
    noise            standard deviation of one accuracy: root of the sum of squares of sampling and
                     the larger of checkpoint and seed (seed noise includes checkpoint noise)
    signal_to_noise  signal / noise (Heineman et al. 2025, arXiv:2508.13144)
    verdict          "below baseline": the largest size is below baseline, and no size is above it.
                     "not above baseline": no size is above it. "above baseline": any is, and there
                     are fewer than three sizes. "predictable from SIZE on": SIZE and
                     all larger sizes, at least three, are above baseline. Also, no accuracy is more
                     than 2 noise below that of a smaller size. "noisy": signal < 2 noise. "not
                     stable": all other tasks, which are above baseline at some size
    """
    rows = run_selection.select_task_runs(run_selection.without_trunks(rows)).rows
    above = task_significance.above_baseline_by_run(rows)
    tasks = [*task_results.paradigm_means(rows), *task_results.task_names(rows)]
    return [_verdict(rows, task, evals, above) for task in tasks]


def _verdict(
    rows: Sequence[dict],
    task: str,
    evals: Mapping[str, Sequence[dict]],
    above: Mapping[str, set[str]],
) -> dict:
    """Return the dict of `task_verdicts` for one task. above: {name of run: tasks}."""
    evaluated = [row for row in rows if task_results.task_value(row, task) >= 0]
    sizes = sorted({row[records.N_PARAMS] for row in evaluated})
    groups = [[row for row in evaluated if row[records.N_PARAMS] == size] for size in sizes]
    means = _means(groups, task)
    components = noise_components(evaluated, task, evals)
    training_noise = max(components["checkpoint"] or 0.0, components["seed"] or 0.0)
    noise = max(float(np.hypot(components["sampling"], training_noise)), 1e-9)
    signal = float(np.std(means)) if np.ptp(means) else 0.0  # without an error of rounding
    metric = task_results.baseline_metric(evaluated[-1], task)
    baseline_name, baseline = task_results.best_baseline(evaluated[-1], task, metric)
    scores = _means(groups, task, metric)
    are_above = [all(task in above[row["name"]] for row in group) for group in groups]
    chances = [task_significance.chance_accuracy_of([row], task) for row in evaluated]
    return {
        "task": task,
        "chance": float(np.mean(chances)),
        "baseline": baseline,
        "baseline_name": baseline_name if metric == "accuracy" else f"{baseline_name} ({metric})",
        "best_score": max(filter(np.isfinite, scores.tolist()), default=math.nan),
        "signal": signal,
        **components,
        "noise": noise,
        "signal_to_noise": signal / noise,
        "verdict": _verdict_text(groups, means, are_above, signal, noise)
        if any(are_above) or not _is_below(groups, task)
        else "below baseline",
    }


def _means(groups: Sequence[Sequence[dict]], task: str, metric: str = "accuracy") -> np.ndarray:
    """Return the mean score of each size. groups: the rows of each size."""
    return np.array(
        [np.mean([task_results.task_value(row, task, metric) for row in group]) for group in groups]
    )


def _is_below(groups: Sequence[Sequence[dict]], task: str) -> bool:
    """Return True if all runs of the largest size are below the baseline of a task."""
    return all(task in task_significance.tasks_below_baseline(row) for row in groups[-1])


def _verdict_text(groups, means, are_above: list[bool], signal: float, noise: float) -> str:
    """Return the verdict of `task_verdicts`.

    groups, means, are_above: for each size, its rows, their mean accuracy, and True if all of them
    are above baseline.
    """
    if not any(are_above):
        return "not above baseline"
    best_means = np.maximum.accumulate(means)
    are_reliable = [
        is_above and mean >= best - 2 * noise
        for is_above, mean, best in zip(are_above, means, best_means, strict=True)
    ]
    first = 1 + max(
        (i for i, is_reliable in enumerate(are_reliable) if not is_reliable), default=-1
    )
    if len(groups) < 3:
        return "above baseline"  # too few sizes for a trend
    if signal < 2 * noise:
        return "noisy"
    if len(groups) - first < 3:
        return "not stable"
    return f"predictable from {groups[first][0]['name'].rsplit('/', 1)[-1]} on"


def noise_components(rows: Sequence[dict], task: str, evals: Mapping[str, Sequence[dict]]) -> dict:
    """Estimate the standard deviations of the noise components of an accuracy, None if unknown.

    sampling    choice of examples: root mean square of the standard errors
    checkpoint  choice of the checkpoint: deviations of at least three evaluations in the last
                TAIL_FRACTION of a run from a line, pooled over runs. The examples are the same, and
                therefore sampling noise is not included
    seed        difference between runs that have the same config except for the seed, pooled
    """
    results = [task_results.task_result(row, task) for row in rows]
    errors = [result["se"] if result else 0.0 for result in results]
    deviations = []
    for row in rows:
        steps, values = _last_accuracies(evals.get(row["name"], ()), task)
        if len(steps) > 2:
            deviations.append((values - np.polyval(np.polyfit(steps, values, 1), steps), 2))
    replicates: dict[str, list[dict]] = {}
    for row in rows:
        replicates.setdefault(_without_seed(row), []).append(row)
    # Two runs with one seed differ in something else, such as the text of their parents.
    groups = [
        np.array([task_results.task_value(row, task) for row in runs])
        for runs in replicates.values()
        if len({row.get("seed") for row in runs}) == len(runs) > 1
    ]
    return {
        "sampling": float(np.sqrt(np.mean(np.square(errors)))),
        "checkpoint": _pooled_sd(deviations),
        "seed": _pooled_sd([(values - np.mean(values), 1) for values in groups]),
    }


def correlations(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Return {metric: {task: Spearman rank correlation with accuracy over the runs}}.

    The correlation is 1 if a metric orders the runs as accuracy does: it is multiplied by the
    sign in CONTINUOUS_METRICS. Skip runs without both finite values, tasks whose accuracies are all
    equal, and tasks that no run has above baseline.
    """
    above = task_significance.above_baseline_in_any(rows)
    by_metric: dict[str, dict[str, float]] = {metric: {} for metric in CONTINUOUS_METRICS}
    for task in task_results.task_names(rows):
        if task not in above:
            continue
        for metric, sign in CONTINUOUS_METRICS.items():
            results = [
                (task_results.task_result(row, task), task_results.task_result(row, task, metric))
                for row in rows
            ]
            values = [(a["value"], m["value"]) for a, m in results if a and m]
            pairs = np.array([pair for pair in values if np.isfinite(pair).all()])
            if len(pairs) > 2 and np.ptp(pairs, axis=0).all():
                ranks = [_average_ranks(column) for column in pairs.T]
                by_metric[metric][task] = sign * float(np.corrcoef(ranks)[0, 1])
    return {metric: by_task for metric, by_task in by_metric.items() if by_task}


def _average_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values from 1. Equal values share the mean of their ranks.

    An import of scipy.stats, which has the same function, takes half a second.
    """
    ordered = np.sort(values)
    first, last = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (first + last + 1) / 2


def accuracy_curves(
    rows: Sequence[dict],
    x: str = records.LOSS,
    bootstrap: int = 200,
    tasks: Container[str] | None = None,
) -> dict[str, tuple]:
    """Fit the accuracy of each task and of each phenomenon of minimal pairs against the column x.

    bootstrap: number of resamples. tasks: names of the fitted tasks, None for all. Return {task:
    (fit, "")} with fits of laws.accuracy_from_loss, or {task: (None, reason)} if the law cannot be
    fitted, or is a step.
    """
    fits: dict[str, tuple] = {}
    for task in task_results.summary_tasks(rows):
        if tasks is not None and task not in tasks:
            continue
        y, chance = task_results.task_column(task), task_significance.chance_accuracy_of(rows, task)
        try:
            curve = downstream.accuracy_from_loss(rows, x, y, chance=chance, bootstrap=bootstrap)
        except ValueError as error:
            fits[task] = None, str(error)
            continue
        reason = _describe_step(curve, [row for row in rows if records.is_finite(row.get(y))], x)
        fits[task] = (None, reason) if reason else (curve, "")
    return fits


def _describe_step(curve: downstream.AccuracyFit, rows: Sequence[dict], x: str) -> str:
    """Return a sentence if a sigmoid rises from 10% to 90% within one size of model, else "".

    Such a curve is determined by its sides and not by its slope, also if several seeds of one size
    and token budget are on its rise. A rise that continues beyond the losses of the runs is no
    step. rows: the fitted runs.
    """
    losses, midpoint = np.unique(curve.x[0]), curve.params["x0"]
    half_width = math.log(9) / max(curve.params["k"], 1e-12)
    lo, hi = midpoint - half_width, midpoint + half_width
    on_rise = [row for row in rows if lo < run_table.to_number(row.get(x)) < hi]
    n_on_rise = len({(row.get(records.N_PARAMS), row.get(records.TOKENS)) for row in on_rise})
    if lo < losses[0] or hi > losses[-1] or n_on_rise > 1:
        return ""
    runs = "only one size is" if on_rise else "no run is"
    return (
        f"the fitted curve is a step: {runs} on its rise between the losses {lo:.4g} and {hi:.4g},"
        " so its slope is not determined"
    )


def predict_task_accuracy(
    rows: Sequence[dict], size: float, bootstrap: int = 200
) -> dict[str, dict]:
    """Predict the accuracy of each task for a model size.

    size: number of parameters without embeddings. bootstrap: number of resamples. Return {task:
    {"value", "lo", "hi"}}, or {task: {"refused": reason}}.

    The prediction has two steps (Bhagia et al. 2024, arXiv:2412.04403). A power law predicts the
    bits per byte of the task from size, and a sigmoid predicts accuracy from bits per byte. The 95%
    intervals contain the uncertainty of both steps. A task is refused if no run of the two largest
    sizes is above chance. A sigmoid fitted to noise may rise at any size. Minimal pairs are
    predicted as means over paradigms: a single paradigm has too few runs for a law of its own, see
    audit/ability_prediction.py.
    """
    tasks = task_results.summary_tasks(rows)
    sizes = sorted({row[records.N_PARAMS] for row in rows})
    largest = [row for row in rows if row[records.N_PARAMS] in sizes[-2:]]
    return {task: _predict(rows, largest, task, size, bootstrap) for task in tasks}


def _predict(rows, largest, task: str, size: float, bootstrap: int) -> dict:
    """Predict one task. largest: the runs of the two largest sizes."""
    if not any(task_significance.is_above_chance(row, task) for row in largest):
        p_value = task_significance.P_VALUE
        reason = f"{task}: no run of the two largest sizes is above chance (p < {p_value:g})"
        return {"refused": f"{reason}; use more questions or larger models"}
    bits, accuracy = task_results.task_column(task, "bits_per_byte"), task_results.task_column(task)
    chance = task_significance.chance_accuracy_of(rows, task)
    try:
        bits_from_size = power_laws.power(rows, x=records.N_PARAMS, y=bits, bootstrap=bootstrap)
        accuracy_from_bits = downstream.accuracy_from_loss(
            rows, bits, accuracy, chance=chance, bootstrap=bootstrap
        )
        estimate = downstream.two_step(bits_from_size, accuracy_from_bits).predict(size)
    except ValueError as error:
        return {"refused": str(error)}
    numbers = {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi}
    return {key: float(number) if np.isfinite(number) else None for key, number in numbers.items()}


def median(values) -> float:
    """Return the median of an iterable of numbers."""
    return float(np.median(list(values)))


def fastest_improving(rows: Sequence[dict], n: int = 3) -> list[str]:
    """Return the n tasks with the largest increase of exact match over the rows.

    Only tasks whose answers have at least three tokens are considered.
    """
    growth = {}
    for task in task_results.task_names(rows):
        long_answers = [row for row in rows if task_results.task_value(row, task, "tokens") >= 3]
        exact = [task_results.task_value(row, task, "exact") for row in long_answers]
        exact = [value for value in exact if records.is_finite(value)]  # none for minimal pairs
        if exact:
            growth[task] = max(exact) - min(exact)
    return sorted(growth, key=lambda task: -growth[task])[:n]


def largest_jumps(rows: Sequence[dict], n: int = 3) -> list[dict]:
    """Return the largest rise of exact match between neighboring sizes for the n fastest tasks.

    Return a dict per task of `fastest_improving`: {"task", "k" (tokens per answer), "from", "to"
    (names of the two runs)}. The other entries are pairs of values before and after the rise:
    "exact", "exact_lo", "exact_hi" (exact match with its 95% Wilson interval),
    "p" (probability of a token, geometric mean), "p_power_k" (p^k), and
    "p_right" (probability of the complete answer, mean over examples).

    If exact match follows p^k and p rises less, the jump comes from the metric (Schaeffer et al.
    2023, arXiv:2304.15004). If p_right is far above p^k, the tokens of an answer are correct
    together. If exact match is far above p_right, the most likely token becomes correct before it
    has a high probability.
    """
    return [
        _largest_jump(rows, task)
        for task in fastest_improving(rows, n)
        if sum(task_results.task_result(row, task, "exact") is not None for row in rows) > 1
    ]


def _largest_jump(rows: Sequence[dict], task: str) -> dict:
    """Return the dict of `largest_jumps` for one task."""
    from scipy import stats

    evaluated = [row for row in rows if task_results.task_result(row, task, "exact")]
    evaluated = sorted(evaluated, key=lambda row: row[records.N_PARAMS])
    rises = np.diff([task_results.task_value(row, task, "exact") for row in evaluated])
    before = int(np.argmax(rises))
    pair = evaluated[before : before + 2]
    values = {
        name: [task_results.task_value(row, task, name) for row in pair]
        for name in ("exact", "token_probability", "p_right", "tokens", "n")
    }
    intervals = [
        stats.binomtest(round(share * n), int(n)).proportion_ci(method="wilson")
        for share, n in zip(values["exact"], values["n"], strict=True)
    ]
    k = values["tokens"][0]
    return {
        "task": task,
        "k": k,
        "from": pair[0]["name"],
        "to": pair[1]["name"],
        "exact_lo": [float(interval.low) for interval in intervals],
        "exact_hi": [float(interval.high) for interval in intervals],
        "exact": values["exact"],
        "p": values["token_probability"],
        "p_power_k": [p**k for p in values["token_probability"]],
        "p_right": values["p_right"],
    }


def _last_accuracies(evaluations: Sequence[dict], task: str) -> tuple[list[float], list[float]]:
    """Return steps and accuracies of the evaluations in the last TAIL_FRACTION of a run."""
    results = [(row["step"], task_results.task_result(row, task)) for row in evaluations]
    points = [(step, result["value"]) for step, result in results if result]
    last = [(step, value) for step, value in points if step >= (1 - TAIL_FRACTION) * points[-1][0]]
    return [step for step, _ in last], [value for _, value in last]


@functools.cache
def _config_fields() -> list[str]:
    """Return the config fields that are equal in runs that differ only in their seed."""
    by_seed = {"name", "seed", "start.run", "data.tokenizer"}  # the last two may be the parent's
    return sorted(schema.field_types(schema.Run).keys() - records.EXECUTION_FIELDS - by_seed)


def _without_seed(row: dict) -> str:
    """Return a key that is equal for runs that differ only in their seed.

    Such runs may start from different seeds of one parent, which have equal FLOPs.
    """
    names = *_config_fields(), records.N_PARAMS, "tokenizer.hash", "parent.flops"
    return repr([row.get(name) for name in names])


def _pooled_sd(residuals: list) -> float | None:
    """Return the pooled standard deviation of pairs (residuals, number of fitted parameters).

    Return None for an empty list.
    """
    if not residuals:
        return None
    degrees = sum(len(values) - n_fitted for values, n_fitted in residuals)
    return float(np.sqrt(sum(float(values @ values) for values, _ in residuals) / degrees))
