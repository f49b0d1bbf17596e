"""Results of a row: standard errors, the metrics of each task, and its best baseline.

    task_results.task_value(row, "copy?length=4")            # accuracy, NaN if it is missing
    task_results.task_results(row)["copy?length=4"]["n"]     # {"value": 100.0, "se": 0.0}
    task_results.best_baseline(row, "copy?length=4")         # ("bigram", 0.02)

The metric baseline_NAME is the accuracy of a baseline, and METRIC_baseline_NAME another metric of a
baseline. Records of earlier versions have no baselines. The metric chance is the accuracy of the
best answer without the question, constant or random. The metric n_paradigms marks a mean over the
paradigms of minimal pairs, whose results are also stored.

A row is a dict of records.load_runs or of records.load_evals.
"""

import functools
import math
from collections.abc import Mapping, Sequence

from lm.runs import records, short_names

CHANCE = "chance"
ACCURACY = ".accuracy"
# See lm/evaluation/baselines.
BASELINES = ("unigram", "bigram", "bag_of_words", "copy", "nearest", "word_by_word")


def standard_error(row: Mapping, column: str) -> float:
    """Return the standard error of a result, 0 if the row does not contain it.

    The error of eval.loss is stored in eval.loss_se, that of eval.loss.code in eval.loss_se.code.
    """
    group, _, rest = column.partition(".")
    measure, dot, name = rest.partition(".")
    value = row.get(f"{group}.{measure}_se{dot}{name}")
    return value if records.is_finite(value) else 0.0


def task_column(task: str, metric: str = "accuracy") -> str:
    """Return the column of a task result in the rows of `load_runs`."""
    return f"eval.task.{task}.{metric}"


def task_results(row: Mapping) -> dict[str, dict[str, dict[str, float]]]:
    """Return {task: {metric: {"value": value, "se": standard error}}} of a row or an evaluation.

    The stored columns are task.NAME.METRIC and task_se.NAME.METRIC; rows have the prefix "eval.".
    A task name may contain dots, a metric name may not. "se" is 0 if no error is stored.
    """
    results: dict[str, dict[str, dict[str, float]]] = {}
    for column in row:
        key = column.removeprefix("eval.")
        if key.startswith("task."):
            task, _, metric = key.removeprefix("task.").rpartition(".")
            result = task_result(row, task, metric)
            if result is not None:
                results.setdefault(task, {})[metric] = result
    return results


def task_names(rows: Sequence[Mapping]) -> list[str]:
    """Return the names of all tasks with an accuracy, in their order in the rows.

    Means over paradigms of minimal pairs are not tasks: see `paradigm_means`.
    """
    return _names_with_accuracy(rows, are_means=False)


def paradigm_means(rows: Sequence[Mapping]) -> list[str]:
    """Return the names of the means over paradigms: of all minimal pairs and of each phenomenon."""
    return _names_with_accuracy(rows, are_means=True)


def summary_tasks(rows: Sequence[Mapping]) -> list[str]:
    """Return the means over paradigms, and the tasks that are no paradigm of such a mean."""
    means = paradigm_means(rows)
    sets = {mean.partition("#")[0] for mean in means}
    others = [task for task in task_names(rows) if task.partition("#")[0] not in sets]
    return [*means, *others]


def _names_with_accuracy(rows: Sequence[Mapping], are_means: bool) -> list[str]:
    """Return the names of results with an accuracy, in their order in the rows."""
    names: dict[str, None] = {}
    for row in rows:
        for column, task, markers in _accuracy_columns(tuple(row)):
            if row[column] is not None:
                if any(row[marker] is not None for marker in markers) == are_means:
                    names[task] = None
    return list(names)


# A row has hundreds of columns, and the runs of a sweep have few different sets of columns.
@functools.lru_cache(maxsize=2**8)
def _accuracy_columns(columns: tuple[str, ...]) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Return (column, task, its columns of the metric n_paradigms) of each accuracy of a row."""
    known, parsed = set(columns), []
    for column in columns:
        key = column.removeprefix("eval.")
        if key.startswith("task.") and key.endswith(ACCURACY):
            task = key.removeprefix("task.").removesuffix(ACCURACY)
            markers = (f"{prefix}task.{task}.n_paradigms" for prefix in ("eval.", ""))
            parsed.append((column, task, tuple(filter(known.__contains__, markers))))
    return tuple(parsed)


@functools.lru_cache(maxsize=2**8)
def result_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of task results and of their standard errors among those of a row."""
    prefixes = ("task.", "task_se.")
    return tuple(key for key in columns if key.removeprefix("eval.").startswith(prefixes))


def task_result(row: Mapping, task: str, metric: str = "accuracy") -> dict[str, float] | None:
    """Return {"value", "se"} of a task in a row or an evaluation, None if it is missing."""
    for prefix in ("eval.", ""):
        value = row.get(f"{prefix}task.{task}.{metric}")
        if value is not None:
            error = row.get(f"{prefix}task_se.{task}.{metric}", 0.0)
            return {"value": float(value), "se": float(error)}
    return None


def best_baseline(row: Mapping, task: str, metric: str = "accuracy") -> tuple[str, float]:
    """Return the name and the score of the best baseline of a task; ("chance", 0) without any.

    The name of the best answer without the question is "chance".
    """
    names = [*baseline_columns(metric), CHANCE]
    results = {name: task_result(row, task, name) for name in names}
    return select_baseline({name: result for name, result in results.items() if result}, metric)


def select_baseline(
    metrics: Mapping[str, Mapping[str, float]], metric: str = "accuracy"
) -> tuple[str, float]:
    """Return the name and the score of the best baseline among the metrics of a task."""
    columns = baseline_columns(metric)
    scores = {columns[name]: metrics[name]["value"] for name in columns if name in metrics}
    if metric == "accuracy":
        scores = {CHANCE: metrics.get(CHANCE, {"value": 0.0})["value"]} | scores
    return max(scores.items(), key=lambda item: item[1], default=(CHANCE, 0.0))


def baseline_columns(metric: str = "accuracy") -> dict[str, str]:
    """Return {name of the metric of a baseline: name of the baseline}."""
    prefix = "baseline_" if metric == "accuracy" else f"{metric}_baseline_"
    return {f"{prefix}{name}": name.replace("_", " ") for name in BASELINES}


def baseline_metric(row: Mapping, task: str) -> str:
    """Return the metric that is compared with the baselines: chrf of translations, or accuracy."""
    columns = baseline_columns("chrf")
    return "chrf" if any(task_result(row, task, name) for name in columns) else "accuracy"


@functools.lru_cache(maxsize=2**14)
def task_family(task: str) -> str:
    """Return the family of a task: the phenomenon of minimal pairs, or the name without options.

    For example, brackets?depth=2 and brackets?depth=3 are of the family brackets.
    """
    if task.startswith("pair:") and "#" in task:
        phenomenon, slash, _ = task.partition("#")[2].partition("/")
        if slash:
            return phenomenon
    source = task.partition("#")[0].partition("?")[0]
    return short_names.shorten_task(source)


def task_value(row: Mapping, task: str, metric: str = "accuracy") -> float:
    """Return the value of a metric of a task, NaN if it is missing. row: see `task_result`."""
    result = task_result(row, task, metric)
    return math.nan if result is None else result["value"]
