"""Results of a prediction: each predicted number beside the measured one, and Brier scores.

    results = prediction_results.describe_results(prediction, row)
    results["quantities"][0]        # name, method, predicted, lo, hi, level, measured, is_inside
    results["brier"]                # {"two_step": 0.08, "direct": 0.1, "previous": 0.2, ...}
    results["errors"]["tasks"]      # mean absolute errors of accuracies, with the same names
    results["wrong"]                # sentences about all results outside their interval
    results["right"]                # sentences about results inside, without single paradigms

The report writes the results to prediction_results.json beside prediction.json. Wrong predictions
are among them. The file follows from the prediction and the records, so an audit can repeat it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.reports import task_significance
from lm.reports.audit import (
    ability_backtest,
    ability_prediction,
    target_prediction,
    verdict_rounding,
)
from lm.runs import json_files, records, short_names, task_results
from lm.runs.integrity import prediction_log, record_checksums, stored_results, sweep_files

FILE = "prediction_results.json"
TOTAL_LEVEL = 0.95  # of intervals without an own level
TOLERANCE = 1e-9  # of equal numbers, relative and absolute
PROBABLE = 0.5  # a task is predicted to be above baseline from this probability on
NUMBER_ABOVE = "number of tasks above baseline"
N_BRIER_TASKS = "n_brier_tasks"  # number of the tasks of all Brier scores; missing in older files
# Methods of the predictions that the sentences describe. The other methods predict the same scores.
LISTED_METHODS = {
    "size": "law of size",
    "size and tokens": "law of size and tokens",
    "loss to loss": "from the total loss",
    ability_prediction.TWO_STEP: "two-step",
}
ERRORS = "errors"  # mean absolute errors of accuracies; missing in older files
SENTENCES = ("right", "wrong")  # entries whose wording may differ between versions


def describe_results(
    prediction: Mapping, row: Mapping, previous: Sequence[Mapping] = ()
) -> dict[str, Any]:
    """Return the results of all predicted quantities, {} before the run is done.

    prediction: content of prediction.json. row: predicted run. previous: rows of the previous size,
    whose accuracies are a forecast for comparison. Results that are marked as invalid are left out.
    """
    if row.get("status") != "done":
        return {}
    row = _without_invalid(row)
    quantities = list(_quantities(prediction, row))
    if not quantities and not records.is_finite(prediction.get("value")):
        return {}  # everything is refused
    abilities = prediction.get(target_prediction.ABILITIES, {})
    scores = ability_backtest.compare_run(abilities, row)
    results: dict[str, Any] = {
        "target": prediction["target"],
        "prediction": prediction_log.content_sha256(
            {key: v for key, v in prediction.items() if key != record_checksums.VERSION}
        ),
        "quantities": quantities,
        "brier": {method: s["brier"] for method, s in scores.items() if "brier" in s},
        N_BRIER_TASKS: max(
            (int(s["n_tasks"]) for s in scores.values() if "n_tasks" in s), default=0
        ),
        "paradigms": list(_paradigms(abilities, row)),
    }
    if errors := _mean_errors(quantities, row, previous):
        results[ERRORS] = errors
    results["right"] = [_describe(q) for q in quantities if q["is_inside"] and _is_summary(q)]
    results["wrong"] = [
        _describe(q) for q in quantities if not q["is_inside"] and q["method"] in LISTED_METHODS
    ]
    return results


def describe_sweep(
    prediction: Mapping, earlier: Sequence[Mapping], rows: Mapping[str, Mapping]
) -> dict[str, Any]:
    """Return the results of the prediction, and those of predictions of earlier targets in it.

    earlier: see sweep_files.read_earlier_predictions. rows: rows by name. The result is {} before
    any predicted run is done.
    """
    results, *by_target = (
        describe_results(
            content, rows.get(str(content.get("target")), {}), _previous_rows(content, rows)
        )
        for content in (prediction, *earlier)
    )
    finished = [content for content in by_target if content]
    return results | ({"earlier": finished} if finished else {})


def load_prediction_results(folder: Path, rows: Sequence[Mapping]) -> dict[str, Any]:
    """Return the results of all predictions in the folder of a sweep: see `describe_sweep`."""
    earlier = sweep_files.read_earlier_predictions(folder)
    by_name = {row["name"]: row for row in rows}
    return describe_sweep(sweep_files.read_prediction(folder), earlier, by_name)


def write_results(folder: Path, results: Mapping) -> None:
    """Write the results to the folder of a sweep, unless there are none."""
    if results:
        json_files.write_record(folder / FILE, dict(results))


def has_equal_numbers(stored: Any, repeated: Any) -> bool:
    """Return True if two results differ at most in their sentences and in rounding."""
    if isinstance(stored, Mapping) and isinstance(repeated, Mapping):
        names = (stored.keys() | repeated.keys()) - {*SENTENCES}
        names -= {N_BRIER_TASKS, ERRORS} - stored.keys()
        return all(
            name in stored and name in repeated and has_equal_numbers(stored[name], repeated[name])
            for name in names
        )
    if isinstance(stored, list) and isinstance(repeated, list):
        pairs = zip(stored, repeated, strict=False)
        return len(stored) == len(repeated) and all(has_equal_numbers(*pair) for pair in pairs)
    if records.is_finite(stored) and records.is_finite(repeated):
        return math.isclose(stored, repeated, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return stored == repeated


def _previous_rows(prediction: Mapping, rows: Mapping[str, Mapping]) -> list[Mapping]:
    """Return the runs of the previous size that a prediction names."""
    names = prediction.get(target_prediction.ABILITIES, {}).get("previous_runs", [])
    return [_without_invalid(rows[name]) for name in names if name in rows]


def _mean_errors(
    quantities: Sequence[Mapping], row: Mapping, previous: Sequence[Mapping]
) -> dict[str, dict[str, float]]:
    """Return {"tasks" or "means": {method: mean absolute error of the accuracies}}.

    Means are those over paradigms, tasks all others. The method "previous" predicts the mean
    accuracy of the previous size. Only accuracies that all methods predict are compared.
    """
    columns = {q["name"]: q["measured"] for q in quantities if q["name"].endswith(".accuracy")}
    forecasts = {
        method: {q["name"]: q["predicted"] for q in quantities if q["method"] == method}
        for method in ability_prediction.METHODS
    }
    forecasts[ability_backtest.PREVIOUS] = {
        column: float(np.mean([row[column] for row in previous]))
        for column in columns
        if previous and all(records.is_finite(row.get(column)) for row in previous)
    }
    forecasts = {method: by_column for method, by_column in forecasts.items() if by_column}
    means = {task_results.task_column(task) for task in task_results.paradigm_means([row])}
    errors: dict[str, dict[str, float]] = {}
    for group, is_mean in (("tasks", False), ("means", True)):
        common = [
            column
            for column in columns
            if (column in means) == is_mean and all(column in f for f in forecasts.values())
        ]
        if common:
            errors[group] = {
                method: float(np.mean([abs(f[column] - columns[column]) for column in common]))
                for method, f in forecasts.items()
            }
    return errors


def _without_invalid(row: Mapping) -> dict[str, Any]:
    """Return a row without the results that are marked as invalid."""
    columns = {column.removeprefix("eval."): column for column in row}
    valid = stored_results.drop_invalid(columns, row.get("invalid_results", {}))
    return {column: row[column] for column in valid.values()}


def _quantities(prediction: Mapping, row: Mapping) -> Iterator[dict[str, Any]]:
    """Yield the predicted and the measured value of each quantity."""
    y, level = prediction["y"], prediction.get("level", TOTAL_LEVEL)
    yield from _quantity(y, "size", prediction, row.get(y), level)
    yield from _quantity(y, "size and tokens", prediction.get("joint", {}), row.get(y), level)
    for column, entry in prediction.get(target_prediction.SOURCE_LOSSES, {}).items():
        yield from _quantity(column, "loss to loss", entry, row.get(column), TOTAL_LEVEL)
    for task, entry in prediction.get("tasks", {}).items():
        column = task_results.task_column(task)
        yield from _quantity(column, "law of each task", entry, row.get(column), TOTAL_LEVEL)
    abilities = prediction.get(target_prediction.ABILITIES, {})
    above = task_significance.tasks_above_baseline(row)
    for method in ability_prediction.METHODS:
        entry = abilities.get(method, {})
        for column, score in entry.get("scores", {}).items():
            yield from _quantity(column, method, score, row.get(column), abilities["level"])
        if "n_above" in entry:
            n_measured = sum(task in above for task in entry["above"])
            interval = entry["n_above"]
            yield from _quantity(NUMBER_ABOVE, method, interval, n_measured, abilities["level"])


def _quantity(
    name: str, method: str, entry: Mapping, measured: Any, level: float
) -> Iterator[dict[str, Any]]:
    """Yield the result of one quantity, if it has an interval and a measured value."""
    bounds = [entry.get(key) for key in ("value", "lo", "hi")]
    if not all(map(records.is_finite, [*bounds, measured])):
        return
    value, lo, hi = bounds
    yield {
        "name": name,
        "method": method,
        "predicted": value,
        "lo": lo,
        "hi": hi,
        "level": entry.get("level", level),
        "measured": measured,
        "is_inside": bool(lo <= measured <= hi),
    }


def _paradigms(abilities: Mapping, row: Mapping) -> Iterator[dict[str, Any]]:
    """Yield the probabilities and the outcome of each task.

    is_right: True if the main method gave the outcome a probability above one half, None without a
    probability of this method.
    """
    above = task_significance.tasks_above_baseline(row)
    below = task_significance.tasks_below_baseline(row)
    measured = set(task_results.task_names([row]))
    main = abilities.get(ability_prediction.TWO_STEP, {}).get("above", {})
    for task, previous in abilities.get(ability_backtest.PREVIOUS, {}).items():
        if task not in measured:
            continue
        is_above, probability = task in above, main.get(task)
        yield {
            "task": task,
            **{
                method: abilities.get(method, {}).get("above", {}).get(task)
                for method in ability_prediction.METHODS
            },
            "previous": previous,
            "is_above": is_above,
            "is_below": task in below,
            "is_right": None if probability is None else (probability >= PROBABLE) == is_above,
        }


def _is_summary(quantity: Mapping) -> bool:
    """Return True for listed methods, except for single paradigms and losses of tasks."""
    name = quantity["name"]
    is_part = name.endswith(f".{target_prediction.TASK_LOSS}") or "/" in name.partition("#")[2]
    return quantity["method"] in LISTED_METHODS and not is_part


def quantity_name(column: str) -> str:
    """Return the name of a quantity in tables and sentences."""
    if column == records.LOSS:
        return "held-out loss"
    if column.startswith(f"{records.LOSS}."):
        source = column.removeprefix(f"{records.LOSS}.")
        return f"held-out loss of {short_names.shorten_sources([source])[source]}"
    if column.startswith("eval.task."):
        task, _, metric = column.removeprefix("eval.task.").rpartition(".")
        return f"{metric.replace('_', ' ')} of {short_names.shorten_task(task)}"
    return column


def _describe(quantity: Mapping) -> str:
    """Return a sentence about a quantity."""
    name = quantity_name(quantity["name"])
    verdict = "inside" if quantity["is_inside"] else "outside"
    measured, lo, hi = _format_values(quantity)
    return (
        f"The {name} was {measured}, {verdict} the {quantity['level']:.0%} interval {lo} to {hi}"
        f" ({LISTED_METHODS[quantity['method']]})."
    )


def _format_values(quantity: Mapping) -> list[str]:
    """Format result and bounds: accuracies in percent, counts as integers, losses in 4 digits."""
    values = [quantity[key] for key in ("measured", "lo", "hi")]
    if quantity["name"] == NUMBER_ABOVE:
        return [f"{value:.0f}" for value in values]
    if not quantity["name"].endswith(".accuracy"):
        digits = verdict_rounding.count_digits(*values)
        return [f"{value:#.{digits}g}" for value in values]
    return [f"{text}%" for text in verdict_rounding.format_percentages(*values)]
