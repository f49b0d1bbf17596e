"""Results of a row: standard errors, and the metrics of each task.

    task_results.task_value(row, "copy?length=4")            # accuracy, NaN if it is missing
    task_results.task_results(row)["copy?length=4"]["n"]     # {"value": 100.0, "se": 0.0}

A row is a dict of records.load_runs or of records.load_evals.
"""

import math
from collections.abc import Mapping

from lm.runs import records


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


def task_result(row: Mapping, task: str, metric: str = "accuracy") -> dict[str, float] | None:
    """Return {"value", "se"} of a task in a row or an evaluation, None if it is missing."""
    for prefix in ("eval.", ""):
        value = row.get(f"{prefix}task.{task}.{metric}")
        if value is not None:
            error = row.get(f"{prefix}task_se.{task}.{metric}", 0.0)
            return {"value": float(value), "se": float(error)}
    return None


def task_value(row: Mapping, task: str, metric: str = "accuracy") -> float:
    """Return the value of a metric of a task, NaN if it is missing. row: see `task_result`."""
    result = task_result(row, task, metric)
    return math.nan if result is None else result["value"]
