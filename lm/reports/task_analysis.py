"""Statistics of task results over a ladder of models: chance, noise, metrics, predictions, jumps.

    tally(rows)            # one dict per run: tasks above chance, tasks solved, tasks evaluated
    verdicts(rows, evals)  # one dict per task: signal, noise, "predictable from 60K on", ...
    correlations(rows)     # {metric: {task: rank correlation with accuracy over the ladder}}
    curves(rows)           # {task: (law from held-out loss to accuracy or None, reason)}
    foretell(rows, 6e5)    # {task: predicted accuracy of a model of this size, or a reason}

Rows are those of records.load_runs. `evals` is {name of run: records.load_evals(row["dir"])}.

Definitions. A task is above chance if an exact binomial test of its correct answers against chance
accuracy (at least LUCK) gives p < LEVEL, one-sided. A task is solved if it is above chance and its
accuracy has covered at least SHARE of the distance from chance to 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from lm.config import schema
from lm.laws.forms import downstream, power_laws
from lm.runs import records

P_VALUE, MASTERY_FRACTION = 0.01, 0.5
# Least chance accuracy: always giving the most frequent answer is sometimes right, even if the
# stored chance accuracy of a task is 0.
MIN_CHANCE = 0.01
TAIL = 1 / 3  # last fraction of a run, in which accuracy is a linear trend plus noise
# Metrics that improve smoothly -> expected sign of their correlation with accuracy.
CONTINUOUS = {
    "p_right": 1, "bits_per_byte": -1, "brier": -1, "token_accuracy": 1, "token_probability": 1,
    "keystrokes_saved": 1,
}  # fmt: skip


def task_names(rows: Sequence[Mapping]) -> list[str]:
    """Return the names of all tasks with an accuracy, in their order in the rows."""
    names = [
        task
        for row in rows
        for task, metrics in records.task_results(row).items()
        if "accuracy" in metrics
    ]
    return list(dict.fromkeys(names))


def is_above_chance(row: Mapping, task: str) -> bool:
    """Return True if the accuracy is above chance by an exact binomial test with p < LEVEL."""
    accuracy, n = records.task_value(row, task), records.task_value(row, task, "n")
    if not n > 0 or not np.isfinite(accuracy):
        return False
    chance = max(records.task_value(row, task, "chance"), MIN_CHANCE)
    return bool(stats.binom.sf(round(accuracy * n) - 1, int(n), chance) < P_VALUE)


def is_mastered(row: Mapping, task: str) -> bool:
    """Return True if the task is solved: above chance, and SHARE of the way from chance to 1."""
    if not is_above_chance(row, task):
        return False
    accuracy, chance = records.task_value(row, task), records.task_value(row, task, "chance")
    return chance < 1 and (accuracy - chance) / (1 - chance) >= MASTERY_FRACTION


def count_tasks(rows: Sequence[dict]) -> list[dict]:
    """Return the rows with task results, smallest model first, with numbers of tasks added.

    The added columns are tasks.mastered (solved tasks), tasks.above_chance and tasks.n.
    """
    names = task_names(rows)
    evaluated = [row for row in rows if task_names([row])]
    return [
        row
        | {
            "tasks.mastered": sum(is_mastered(row, task) for task in names),
            "tasks.above_chance": sum(is_above_chance(row, task) for task in names),
            "tasks.n": len(task_names([row])),
        }
        for row in sorted(evaluated, key=lambda row: row.get(records.N_PARAMS, 0))
    ]


def task_verdicts(rows: Sequence[dict], evals: Mapping[str, Sequence[dict]] = {}) -> list[dict]:
    """Return, for each task, how reliable its accuracies over the ladder are.

    signal      standard deviation, over sizes, of the mean accuracy of each size
    sampling, checkpoint, seed
                standard deviations of the noise components, see `noises`
    noise       standard deviation of one accuracy: root of the sum of squares of sampling and the
                larger of checkpoint and seed (seed noise includes checkpoint noise)
    to_noise    signal / noise (Heineman et al. 2025, arXiv:2508.13144)
    verdict     "at chance": no size is above chance. "predictable from SIZE on": this size and all
                larger ones, at least three, are above chance, and none is more than 2 noise below
                the best smaller one. "noisy": all other tasks, and signal < 2 noise
    """
    return [_verdict(rows, task, evals) for task in task_names(rows)]


def _verdict(rows: Sequence[dict], task: str, evals: Mapping[str, Sequence[dict]]) -> dict:
    evaluated = [row for row in rows if records.task_value(row, task) >= 0]
    sizes = sorted({row[records.N_PARAMS] for row in evaluated})
    groups = [[row for row in evaluated if row[records.N_PARAMS] == size] for size in sizes]
    means = np.array([np.mean([records.task_value(row, task) for row in g]) for g in groups])
    parts = noise_components(evaluated, task, evals)
    between_checkpoints = max(parts["checkpoint"] or 0.0, parts["seed"] or 0.0)
    noise = max(float(np.hypot(parts["sampling"], between_checkpoints)), 1e-9)
    signal = float(np.std(means))
    chances = [records.task_value(row, task, "chance") for row in evaluated]
    return {
        "task": task,
        "chance": float(np.mean(chances)),
        "best": float(means.max()),
        "signal": signal,
        **parts,
        "noise": noise,
        "to_noise": signal / noise,
        "verdict": _verdict_text(groups, means, task, signal, noise),
    }


def _verdict_text(groups, means, task: str, signal: float, noise: float) -> str:
    above = [all(is_above_chance(row, task) for row in group) for group in groups]
    if not any(above):
        return "at chance"
    best = np.maximum.accumulate(means)
    is_good = [a and m >= b - 2 * noise for a, m, b in zip(above, means, best, strict=True)]
    last_bad = max((i for i, good in enumerate(is_good) if not good), default=-1)
    first = last_bad + 1
    if len(groups) - first < 3 or signal < 2 * noise:
        return "noisy"
    return f"predictable from {groups[first][0]['name'].rsplit('/', 1)[-1]} on"


def noise_components(rows: Sequence[dict], task: str, evals: Mapping[str, Sequence[dict]]) -> dict:
    """Return the standard deviations of the noise components of an accuracy, None if unknown.

    sampling    choice of examples: root mean square of the standard errors
    checkpoint  choice of the checkpoint: deviations from a line through the evaluations in the last
                TAIL of a run, at least three, pooled over runs. The examples are the same, so
                sampling noise is not included
    seed        difference between runs that have the same config except for the seed, pooled
    """
    results = [records.task_result(row, task) for row in rows]
    errors = [result["se"] if result else 0.0 for result in results]
    trends = []
    for row in rows:
        steps, values = _tail(evals.get(row["name"], ()), task)
        if len(steps) > 2:
            trends.append((values - np.polyval(np.polyfit(steps, values, 1), steps), 2))
    replicates: dict[str, list[float]] = {}
    for row in rows:
        replicates.setdefault(_without_seed(row), []).append(records.task_value(row, task))
    groups = [np.array(values) for values in replicates.values() if len(values) > 1]
    return {
        "sampling": float(np.sqrt(np.mean(np.square(errors)))),
        "checkpoint": _pooled(trends),
        "seed": _pooled([(values - np.mean(values), 1) for values in groups]),
    }


def correlations(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Return {metric: {task: Spearman rank correlation with accuracy over the runs}}.

    The sign is such that 1 means that a metric orders the runs as accuracy does. Skip tasks whose
    accuracies are all equal and tasks that no run has above chance.
    """
    by_metric: dict[str, dict[str, float]] = {metric: {} for metric in CONTINUOUS}
    for task in task_names(rows):
        if not any(is_above_chance(row, task) for row in rows):
            continue
        for metric, sign in CONTINUOUS.items():
            results = [
                (records.task_result(row, task), records.task_result(row, task, metric))
                for row in rows
            ]
            pairs = np.array([(a["value"], m["value"]) for a, m in results if a and m])
            if len(pairs) > 2 and np.ptp(pairs, axis=0).all():
                ranks = stats.rankdata(pairs, axis=0)
                by_metric[metric][task] = sign * float(np.corrcoef(ranks.T)[0, 1])
    return {metric: by_task for metric, by_task in by_metric.items() if by_task}


def accuracy_curves(
    rows: Sequence[dict], x: str = records.LOSS, bootstrap: int = 200
) -> dict[str, tuple]:
    """Fit the accuracy of each task against the column x.

    Return {task: (laws.ability fit, "")}, or {task: (None, reason)} if no law can be fitted.
    """
    fits: dict[str, tuple] = {}
    for task in task_names(rows):
        y, chance = records.task_column(task), _chance(rows, task)
        try:
            fits[task] = (
                downstream.accuracy_from_loss(rows, x, y, chance=chance, bootstrap=bootstrap),
                "",
            )
        except ValueError as refusal:
            fits[task] = None, str(refusal)
    return fits


def predict_task_accuracy(
    rows: Sequence[dict], size: float, bootstrap: int = 200
) -> dict[str, dict]:
    """Predict the accuracy of each task for a model size.

    Return {task: {"value", "lo", "hi"}}, or {task: {"refused": reason}}. Two steps (Bhagia et al.
    2024, arXiv:2412.04403): a power law from size to the bits per byte of the task, and a sigmoid
    from bits per byte to accuracy. The 95% intervals contain the uncertainty of both. A task is
    refused if no run of the two largest sizes is above chance, because a sigmoid through noise may
    rise anywhere.
    """
    sizes = sorted({row[records.N_PARAMS] for row in rows})
    largest = [row for row in rows if row[records.N_PARAMS] in sizes[-2:]]
    return {task: _predict(rows, largest, task, size, bootstrap) for task in task_names(rows)}


def _predict(rows, largest, task: str, size: float, bootstrap: int) -> dict:
    if not any(is_above_chance(row, task) for row in largest):
        reason = f"{task}: no run of the two largest sizes is above chance (p < {P_VALUE:g})"
        return {"refused": f"{reason}; use more questions or larger models"}
    bits, accuracy = records.task_column(task, "bits_per_byte"), records.task_column(task)
    chance = _chance(rows, task)
    try:
        step1 = power_laws.power(rows, x=records.N_PARAMS, y=bits, bootstrap=bootstrap)
        step2 = downstream.accuracy_from_loss(
            rows, bits, accuracy, chance=chance, bootstrap=bootstrap
        )
        estimate = downstream.two_step(step1, step2).predict(size)
    except ValueError as refusal:
        return {"refused": str(refusal)}
    return {"value": float(estimate.value), "lo": float(estimate.lo), "hi": float(estimate.hi)}


def median(values) -> float:
    """Return the median of any collection of numbers."""
    return float(np.median(list(values)))


def fastest_improving(rows: Sequence[dict], n: int = 3) -> list[str]:
    """Return the n tasks whose exact match grows most over the rows.

    Only tasks whose answers have at least three tokens are considered.
    """
    growth = {}
    for task in task_names(rows):
        long = [row for row in rows if records.task_value(row, task, "tokens") >= 3]
        exact = [records.task_value(row, task, "exact") for row in long]
        if exact:
            growth[task] = max(exact) - min(exact)
    return sorted(growth, key=lambda task: -growth[task])[:n]


def largest_jumps(rows: Sequence[dict], n: int = 3) -> list[dict]:
    """Return the largest rise of exact match between neighboring sizes for the steepest tasks.

    {"task", "tokens" (k, tokens per answer), "from", "to" (names of runs)} and, each as a pair of
    values before and after: "exact", "exact_lo", "exact_hi" (95% Wilson interval), "p" (of a
    token), "power" (p^k) and "p_right" (probability of a whole answer, mean over examples).

    If exact match follows p^k and p rises less, the jump comes from the metric (arXiv:2304.15004).
    If p_right is far above p^k, the tokens of an answer are correct together. If exact match is far
    above p_right, the most likely token becomes correct before it has a high probability.
    """
    return [_jump(rows, task) for task in fastest_improving(rows, n)]


def _jump(rows: Sequence[dict], task: str) -> dict:
    evaluated = [row for row in rows if records.task_result(row, task, "exact")]
    evaluated = sorted(evaluated, key=lambda row: row[records.N_PARAMS])
    rises = np.diff([records.task_value(row, task, "exact") for row in evaluated])
    before = int(np.argmax(rises))
    pair = evaluated[before : before + 2]
    values = {
        name: [records.task_value(row, task, name) for row in pair]
        for name in ("exact", "token_probability", "p_right", "tokens", "n")
    }
    intervals = [
        stats.binomtest(round(share * n), int(n)).proportion_ci(method="wilson")
        for share, n in zip(values["exact"], values["n"], strict=True)
    ]
    k = values["tokens"][0]
    return {
        "task": task,
        "tokens": k,
        "from": pair[0]["name"],
        "to": pair[1]["name"],
        "exact_lo": [float(interval.low) for interval in intervals],
        "exact_hi": [float(interval.high) for interval in intervals],
        "exact": values["exact"],
        "p": values["token_probability"],
        "power": [p**k for p in values["token_probability"]],
        "p_right": values["p_right"],
    }


def _chance(rows: Sequence[Mapping], task: str) -> float:
    """Return the largest chance accuracy of a task over the rows, 0 if none is stored."""
    results = [records.task_result(row, task, "chance") for row in rows]
    return max((result["value"] for result in results if result), default=0.0)


def _tail(evaluations: Sequence[dict], task: str) -> tuple[list[float], list[float]]:
    """Return steps and accuracies of the evaluations in the last TAIL of a run."""
    results = [(row["step"], records.task_result(row, task)) for row in evaluations]
    points = [(step, result["value"]) for step, result in results if result]
    last = [(step, value) for step, value in points if step >= (1 - TAIL) * points[-1][0]]
    return [step for step, _ in last], [value for _, value in last]


def _without_seed(row: dict) -> str:
    """Return a key that is equal for runs that differ only in their seed."""
    fields = schema.flatten(schema.Run()).keys() - records.EXECUTION_FIELDS - {"name", "seed"}
    return repr([row.get(records.N_PARAMS), *((name, row.get(name)) for name in sorted(fields))])


def _pooled(residuals: list) -> float | None:
    """Return the pooled standard deviation of pairs (residuals, number of fitted parameters)."""
    if not residuals:
        return None
    degrees = sum(len(values) - n_fitted for values, n_fitted in residuals)
    return float(np.sqrt(sum(float(values @ values) for values, _ in residuals) / degrees))
