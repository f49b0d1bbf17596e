"""Section of the report about sources: predicted and measured loss of each source and task."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from lm.reports import html, summary
from lm.reports.audit import target_prediction, verdict_rounding
from lm.reports.plots import elements, style
from lm.runs import records, short_names, task_results

NOTE = (
    "The law of size predicts the total loss. A shifted power law of the total loss then predicts "
    "each source (arXiv:2411.12925). An error of the total is therefore an error of all sources. A "
    "deviation is (measured - predicted) / predicted."
)

GROUP_NOTE = (
    "The standard error of a paradigm is that of its examples. The standard error of a group is"
    " that of its paradigms, which differ more."
)


class SourceResult(NamedTuple):
    """Predicted loss of a source or of a task, and the result of the target."""

    name: str
    is_task: bool  # the loss is in bits per byte
    prediction: dict  # value, lo, hi, or refused
    measured: float | None  # None before the target is done
    standard_error: float

    @property
    def error(self) -> float | None:
        """Deviation of the result, relative to the predicted loss, None without a result."""
        if self.measured is None or "value" not in self.prediction:
            return None
        return self.measured / self.prediction["value"] - 1

    @property
    def is_inside(self) -> bool:
        """True if the result is inside the interval of the prediction."""
        if self.measured is None or "value" not in self.prediction:
            return False
        return self.prediction["lo"] <= self.measured <= self.prediction["hi"]


def load_results(sweep: summary.SweepSummary) -> list[SourceResult]:
    """Return the predicted and measured losses of the sources, then those of the tasks.

    Predictions of earlier versions have none. Tasks that are marked as invalid are left out.
    """
    predictions = (sweep.prediction or {}).get(target_prediction.SOURCE_LOSSES, {})
    target = sweep.target or {}
    sources = [c for c in predictions if c.startswith(f"{records.LOSS}.")]
    names, results = elements.source_names(sources), []
    for column, prediction in predictions.items():
        is_task = column not in names
        task = column.removeprefix("eval.task.").removesuffix(f".{target_prediction.TASK_LOSS}")
        if is_task and f"task.{task}" in sweep.invalid_results:
            continue
        is_done = target.get("status") == "done" and records.is_finite(target.get(column))
        results.append(
            SourceResult(
                name=short_names.shorten_task(task) if is_task else names[column],
                is_task=is_task,
                prediction=prediction,
                measured=target[column] if is_done else None,
                standard_error=task_results.standard_error(target, column),
            )
        )
    return results


def source_losses(sweep: summary.SweepSummary) -> Markup:
    """Return a table of the sources, their mean error, and a table of the tasks to unfold."""
    results = load_results(sweep)
    sources = [result for result in results if not result.is_task]
    tasks = [result for result in results if result.is_task]
    parts = [_table(sources), html.paragraph(NOTE, "muted")]
    parts += [html.paragraph(line, "muted") for line in describe_errors(sweep)]
    if tasks:
        table = [_table(tasks)]
        if task_results.paradigm_means(sweep.rows):
            table.append(html.paragraph(GROUP_NOTE, "muted"))
        parts.append(html.collapsed_section("Bits per byte of the tasks", html.join_html(table)))
    return html.join_html(parts)


def describe_errors(sweep: summary.SweepSummary) -> list[str]:
    """Return a sentence about the errors of the sources, and one about those of the tasks.

    The list is empty before the target is done.
    """
    lines = []
    has_groups = bool(task_results.paradigm_means(sweep.rows))
    tasks = "paradigms and groups" if has_groups else "tasks"
    for kind, plural, is_task in (("source", "sources", False), ("task", tasks, True)):
        results = [r for r in load_results(sweep) if r.is_task == is_task]
        errors = {r.name: abs(r.error) for r in results if r.error is not None}
        if not errors:
            continue
        n_inside = sum(r.is_inside for r in results)
        count = f"1 {kind}" if len(errors) == 1 else f"{len(errors)} {plural}"
        largest = max(errors, key=lambda name: errors[name])
        quantity = "bits per byte" if is_task else "losses"
        lines.append(
            f"Predicted {quantity} of {count}: mean deviation {np.mean(list(errors.values())):.2%},"
            f" largest {errors[largest]:.2%} ({largest}), {n_inside} of {len(errors)} inside their"
            " interval."
        )
    return lines


def _table(results: Sequence[SourceResult]) -> Markup:
    """Return the table of some sources or tasks."""
    formats = {
        "predicted": style.format_number,
        "95% interval": lambda bounds: f"{bounds[0]:#.{bounds[2]}g} to {bounds[1]:#.{bounds[2]}g}",
    }
    return html.html_table([_row(result) for result in results], formats)


def _row(result: SourceResult) -> dict[str, Any]:
    """Return the table row of a source or of a task, as values."""
    prediction, measured = result.prediction, result.measured
    has_value = records.is_finite(prediction.get("value"))
    value, lo, hi = elements.predicted_interval(prediction)
    text, deviation, is_inside = "not yet", None, None
    digits = verdict_rounding.MIN_DIGITS
    if measured is not None:
        if has_value:
            digits = verdict_rounding.count_digits(measured, lo, hi)
        measurement = summary.Measurement(measured, result.standard_error)
        text = summary.format_measurement(measurement, digits)
        if has_value:
            deviation = summary.relative_error(measured, value)
            is_inside = "yes" if result.is_inside else "no"
    return {
        "task" if result.is_task else "source": result.name,
        "predicted": value if has_value else None,
        "95% interval": (lo, hi, digits) if has_value else None,
        "measured": text,
        "deviation": deviation,
        "inside the interval": is_inside,
        "remark": prediction.get("refused"),
    }
