"""Section of the report about tasks: baselines, reliability, truncated prompts, invalid results."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lm.reports import html, summary, task_analysis, task_significance
from lm.reports.audit import target_prediction
from lm.reports.plots import elements
from lm.runs import records, run_selection, short_names, task_results

MAX_BELOW = 8  # tasks below baseline that the text names
METRIC_TITLES = {
    "p_right": "probability of the correct answer",
    "bits_per_byte": "bits per byte of the correct answer",
    "brier": "Brier score",
    "token_accuracy": "share of correct tokens",
    "token_probability": "probability per token",
    "keystrokes_saved": "keystrokes saved by completion",
}


def task_reliability(sweep: summary.SweepSummary) -> Markup:
    """Return the reliability of each task, and the rank correlation of metrics with accuracy."""
    finished = [row for row in sweep.rows if row["status"] == "done"]
    evals = {row["name"]: records.load_evals(row["dir"]) for row in finished}
    selection = run_selection.select_task_runs(run_selection.without_trunks(finished))
    lines = [_task(sweep, verdict) for verdict in task_analysis.task_verdicts(finished, evals)]
    two_digits = "{:.2g}".format
    formats = {
        "best score": "{:.3f}".format,
        "baseline score": "{:.3f}".format,
        "predicted for the target": _format_prediction,
        "measured": "{:.3f}".format,
        **dict.fromkeys(("signal", "sampling noise", "checkpoint noise", "seed noise"), two_digits),
        "signal to noise": two_digits,
    }
    median_title = "rank correlation with accuracy, median"
    correlations = [
        {
            "metric": METRIC_TITLES.get(metric, metric),
            median_title: task_analysis.median(by_task.values()),
            "lowest": min(by_task.values()),
            "tasks": len(by_task),
        }
        for metric, by_task in task_analysis.correlations(finished).items()
    ]
    correlation_formats: dict[str, html.Format]
    correlation_formats = dict.fromkeys((median_title, "lowest"), "{:.2f}".format)
    noise_note = (
        "Signal: standard deviation of the accuracy between sizes. Noise: that of one accuracy."
        " Sampling: choice of examples. Checkpoint: deviation of the last evaluations of a run from"
        " a line. Seed: difference between seeds. Signal to noise combines sampling noise with the"
        " larger of checkpoint and seed noise. Verdict: predictable if at least three sizes in a"
        " row to the largest are above baseline, none of them clearly below a smaller size, and the"
        " signal is twice the noise. Not above baseline: no size is significantly above. Below"
        " baseline: the largest size is significantly below as well. Noisy: the signal is less than"
        " twice the noise. Not stable: fewer than three sizes in a row to the largest are above"
        " baseline without a clear fall. Above baseline: there are fewer than three sizes. Chance:"
        " accuracy of the best guess without the question."
    )
    order_note = "Rank correlation of each metric with accuracy over the runs (1: same order):"
    correlation_parts = []
    if correlations:
        table = html.html_table(correlations, correlation_formats)
        body = html.join_html([html.paragraph(order_note, "muted"), table])
        correlation_parts = [html.collapsed_section("Rank correlation of metrics", body)]
    return html.join_html(
        [
            html.html_table(lines, formats, is_sortable=True),
            html.paragraph(elements.budget_note(selection), "muted"),
            *(html.paragraph(note, "note") for note in _baseline_notes(selection.rows)),
            *(html.paragraph(note, "note") for note in _overflow_notes(finished)),
            *(html.paragraph(note, "note") for note in _invalid_notes(sweep)),
            html.paragraph(noise_note, "muted"),
            *correlation_parts,
        ]
    )


def _task(sweep: summary.SweepSummary, verdict: dict) -> dict[str, Any]:
    """Return the table row of one task, as values."""
    line = {
        "task": short_names.shorten_task(verdict["task"]),
        "best baseline": verdict["baseline_name"],
        "baseline score": verdict["baseline"],
        "best score": verdict["best_score"],
    }
    prediction = sweep.prediction or {}
    predictions = prediction.get("tasks")
    # Abilities replace these predictions, which have another method.
    if predictions and target_prediction.ABILITIES not in prediction:
        prediction = predictions.get(verdict["task"], {})
        has_value = records.is_finite(prediction.get("value"))
        bounds = elements.predicted_interval(prediction) if has_value else ()
        measured = task_results.task_value(sweep.target or {}, verdict["task"])
        line["predicted for the target"] = bounds
        line["measured"] = measured if records.is_finite(measured) else None
    return line | {
        "signal": verdict["signal"],
        "sampling noise": verdict["sampling"],
        "checkpoint noise": verdict["checkpoint"],
        "seed noise": verdict["seed"],
        "signal to noise": verdict["signal_to_noise"],
        "verdict": verdict["verdict"],
    }


def _format_prediction(prediction: tuple[float, ...]) -> str:
    """Format (value, lo, hi), or an empty tuple for a missing prediction."""
    if not prediction:
        return "none"
    value, lo, hi = prediction
    return f"{value:.3f} [{lo:.3f}, {hi:.3f}]" if records.is_finite(lo) else f"{value:.3f}"


def _baseline_notes(rows: Sequence[dict]) -> list[str]:
    """Return sentences about the tasks of the largest run above and below their baseline."""
    counted = task_significance.count_tasks(rows)
    if not counted:
        return []
    row = counted[-1]
    rate = f"{task_significance.FALSE_DISCOVERY_RATE:.0%}"
    notes = [
        f"Above baseline: better than every baseline of the task on the same examples, with a false"
        f" discovery rate of {rate} over the tasks of a run (Benjamini-Hochberg)."
        f" {elements.short_run_name(row)}: {row['tasks.above_baseline']} of {row['tasks.n']} tasks."
    ]
    names = task_results.task_names([row])
    if any(task_results.baseline_metric(row, task) == "chrf" for task in names):
        notes.append(
            "Generated translations are compared with their baselines by chrF (0 to 100). All other"
            " columns are of their accuracy, the fraction of exact answers."
        )
    below = task_significance.tasks_below_baseline(row)
    if len(below) > MAX_BELOW:
        text = "see the verdicts of the table"
    else:
        text = elements.format_tasks(below)
    count = f"{len(below)} tasks and groups" if len(below) > 1 else "1 task"
    name = elements.short_run_name(row)
    return notes + (
        [f"{name} is significantly below baseline in {count}: {text}."] if below else []
    )


def _overflow_notes(rows: Sequence[Mapping]) -> list[str]:
    """Return sentences about prompts that were truncated and examples that were skipped.

    The numbers are the largest of all runs.
    """
    notes = []
    for metric, event in (("n_truncated", "lost their beginning"), ("n_skipped", "were skipped")):
        counts = []
        for task in task_results.task_names(rows):
            n_affected, n = (
                max((task_results.task_value(row, task, name) for row in rows), key=_nan_last)
                for name in (metric, "n")
            )
            if n_affected > 0:
                # "n" does not contain the skipped examples.
                n_all = n + n_affected if metric == "n_skipped" else n
                counts.append(f"{short_names.shorten_task(task)} {n_affected:.0f} of {n_all:.0f}")
        if counts:
            notes.append(
                f"Prompts that {event}, because they exceed the context: {', '.join(counts)}."
            )
    return notes


def _nan_last(value: float) -> float:
    """Return the value as the key of a maximum that ignores NaN."""
    return value if records.is_finite(value) else -1.0


def _invalid_notes(sweep: summary.SweepSummary) -> list[str]:
    """Return a sentence for each reason for which results are marked as invalid."""
    by_reason: dict[str, list[str]] = {}
    for result, reason in sweep.invalid_results.items():
        by_reason.setdefault(reason, []).append(result.removeprefix("task."))
    return [
        f"Marked as invalid and not shown: {', '.join(results)}. {reason}"
        for reason, results in by_reason.items()
    ]
