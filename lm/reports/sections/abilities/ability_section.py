"""Section of the report about abilities: tasks that improve with size, flat tasks, reliability."""

import numpy as np
from markupsafe import Markup

from lm.reports import html, summary, task_significance, task_trends
from lm.reports.plots import elements, style
from lm.reports.sections.abilities import task_section
from lm.runs import records, run_selection, short_names, task_results

MAX_FALLING = 6  # paradigms with a falling accuracy that the text names
MAX_FLAT = 24  # tasks without a trend that the text names


def ability_section(sweep: summary.SweepSummary, figures: Markup, flat_figures: Markup) -> Markup:
    """Return the trend of the tasks in words, the figures, and the details to unfold."""
    if not task_results.task_names(sweep.rows):
        lines = ["No finished run has results of tasks: set eval.tasks to measure abilities."]
        if figures:
            lines[0] = "No tasks were evaluated. The figure shows held-out words."
        return html.join_html([html.paragraph(lines[0], "muted"), figures])
    parts = [html.text_list(describe_abilities(sweep)), figures]
    if flat_figures:
        parts.append(html.collapsed_section("Tasks without a trend over size", flat_figures))
    details = task_section.task_reliability(sweep)
    return html.join_html(
        [*parts, html.collapsed_section("Scores, noise and baselines of every task", details)]
    )


def describe_abilities(sweep: summary.SweepSummary) -> list[str]:
    """Return sentences about mastered, improving, worsening and flat tasks."""
    trends = task_trends.fit_trends(sweep.finished)
    selection = run_selection.select_task_runs(sweep.finished)
    counted = task_significance.count_tasks(selection.rows)
    lines = [text for text in [describe_counts(sweep)] if text]
    lines += _describe_means(selection.rows)
    if len({row[records.N_PARAMS] for row in selection.rows}) < 2:
        return [*lines, "Which tasks improve with size is unknown: only one size is finished."]
    above = task_significance.tasks_above_baseline(counted[-1]) if counted else set()
    improving = [t for t in trends if t.direction == "improves"]
    worsening = [t for t in trends if t.direction == "worsens"]
    for text, group in (("Improve with size", improving), ("Get worse with size", worsening)):
        if not group:
            lines.append(f"{text}: none.")
    for text, group in (
        ("Improve with size and are above baseline", [t for t in improving if t.task in above]),
        ("Improve with size, but are not above baseline", _without(improving, above)),
        ("Get worse with size", worsening),
    ):
        if group:
            ranked = sorted(group, key=lambda trend: -abs(trend.z))
            lines.append(f"{text}: {', '.join(map(_describe_trend, ranked))}.")
    flat = [short_names.shorten_task(t.task) for t in trends if t.direction == "flat"]
    more = ""
    if len(flat) > MAX_FLAT:
        more = f" and {len(flat) - MAX_FLAT} more, which the figure of these tasks shows"
    names = f" ({', '.join(flat[:MAX_FLAT])}{more})" if flat else ""
    noun = "scores" if task_results.paradigm_means(selection.rows) else "tasks"
    lines.append(
        f"No trend: {len(flat)} of {len(trends)} {noun}{names}. A trend is a rise or a fall:"
        f" a slope of accuracy over log size of more than {task_trends.MIN_TREND:g} standard"
        " errors."
    )
    lines += _describe_parts(selection.rows)
    if note := budget_sentence(sweep):
        lines.append(f"{note.removesuffix('.')}, in the trends and in the figures against size.")
    return lines


def describe_counts(sweep: summary.SweepSummary) -> str:
    """Return the numbers of tasks above, at and below baseline of the largest size, or "".

    The numbers of several seeds are averaged.
    """
    counted = task_significance.count_tasks(run_selection.select_task_runs(sweep.finished).rows)
    if not counted:
        return ""
    size = counted[-1].get(records.N_PARAMS)
    largest = [row for row in counted if row.get(records.N_PARAMS) == size]
    keys = "tasks.mastered", "tasks.above_baseline", "tasks.below_baseline", "tasks.n"
    mastered, above, below, n = (
        round(float(np.mean([row[key] for row in largest])), 1) for key in keys
    )
    name = elements.short_run_name(largest[0])
    subject = (
        f"The largest finished model, {name},"
        if len(largest) == 1
        else f"The largest size has {len(largest)} finished runs, such as {name}. On average, a run"
    )
    return (
        f"{subject} masters {mastered:g} of {n:g} tasks. It is significantly above baseline in"
        f" {above:g}, significantly below in {below:g}, and neither in {n - above - below:g}."
    )


def _describe_parts(rows: list[dict]) -> list[str]:
    """Return a sentence about rising and falling single paradigms, [] without minimal pairs."""
    shown = set(task_results.summary_tasks(rows))
    parts = [task for task in task_results.task_names(rows) if task not in shown]
    if not parts:
        return []
    trends = task_trends.fit_trends(rows, parts)
    falling = sorted((t for t in trends if t.direction == "worsens"), key=_rise)
    n_rising = sum(trend.direction == "improves" for trend in trends)
    names = f": {', '.join(map(_describe_trend, falling[:MAX_FALLING]))}" if falling else ""
    more = f" and {len(falling) - MAX_FALLING} more" if len(falling) > MAX_FALLING else ""
    return [
        f"Single paradigms: {n_rising} of {len(parts)} improve with size, and {len(falling)} get"
        f" worse{names}{more}."
    ]


def _rise(trend: task_trends.TaskTrend) -> float:
    """Return the difference between the accuracies of the largest and the smallest size."""
    return trend.largest - trend.smallest


def budget_sentence(sweep: summary.SweepSummary) -> str:
    """Return the sentence on the token budget of the trends, which captions of figures repeat."""
    return elements.budget_note(run_selection.select_task_runs(sweep.finished))


def _without(trends: list[task_trends.TaskTrend], tasks: set[str]) -> list[task_trends.TaskTrend]:
    """Return the trends of other tasks."""
    return [trend for trend in trends if trend.task not in tasks]


def _describe_means(rows: list[dict]) -> list[str]:
    """Return a sentence about means over minimal pairs and their number, [] without such tasks."""
    means = task_results.paradigm_means(rows)
    if not means:
        return []
    sets = {mean.partition("#")[0] for mean in means}
    n_tasks = sum(task.partition("#")[0] in sets for task in task_results.task_names(rows))
    n_scores = len(task_results.summary_tasks(rows))
    n_groups = sum("#" in mean for mean in means)
    total = "the mean of all pairs" if len(sets) == 1 else "the mean of each set of pairs"
    scores = [f"{n_groups} means of groups", total]
    if n_scores > len(means):
        scores.append(f"{n_scores - len(means)} other tasks")
    return [
        f"{n_tasks} of the tasks are sets of minimal pairs (paradigms) in {n_groups} groups"
        f" (phenomena). The trends below are those of {n_scores} scores:"
        f" {', '.join(scores[:-1])} and {scores[-1]}."
    ]


def _describe_trend(trend: task_trends.TaskTrend) -> str:
    """Return the scores of the smallest and the largest size, and a best score between them."""
    text = f"{trend.smallest:.0%} to {trend.largest:.0%}"
    if trend.is_past_its_best and trend.best > trend.smallest:
        text += f", after {trend.best:.0%} at {style.format_si(trend.best_size)} parameters"
    return f"{short_names.shorten_task(trend.task)} ({text})"
