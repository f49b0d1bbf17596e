"""Section of the report about abilities: tasks that improve with size, flat tasks, reliability."""

from markupsafe import Markup

from lm.reports import html, summary, task_significance, task_trends
from lm.reports.plots import elements
from lm.reports.sections.abilities import task_section
from lm.runs import records, run_selection, short_names, task_results

MAX_FLAT = 12  # tasks without a trend that the text names


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
    selection = run_selection.largest_token_budget(sweep.finished)
    counted = task_significance.count_tasks(selection.rows)
    lines = []
    if counted:
        row = counted[-1]
        lines.append(
            f"The largest finished model, {elements.short_run_name(row)}, masters"
            f" {row['tasks.mastered']} of {row['tasks.n']} tasks and is above baseline in"
            f" {row['tasks.above_baseline']}."
        )
    if len({row[records.N_PARAMS] for row in selection.rows}) < 2:
        return [*lines, "Which tasks improve with size is unknown: only one size is finished."]
    above = task_significance.tasks_above_baseline(counted[-1]) if counted else set()
    for direction, text in (("improves", "Improve"), ("worsens", "Get worse")):
        names = [
            f"{short_names.shorten_task(t.task)} ({t.smallest:.0%} to {t.largest:.0%}"
            f"{'' if t.task in above else ', not above baseline'})"
            for t in sorted(trends, key=lambda trend: -abs(trend.z))
            if t.direction == direction
        ]
        if names or direction == "improves":
            lines.append(f"{text} with size: {', '.join(names) or 'no task'}.")
    flat = [short_names.shorten_task(t.task) for t in trends if t.direction == "flat"]
    more = f" and {len(flat) - MAX_FLAT} more" if len(flat) > MAX_FLAT else ""
    names = f" ({', '.join(flat[:MAX_FLAT])}{more})" if flat else ""
    lines.append(
        f"No trend: {len(flat)} of {len(trends)} tasks{names}. A trend is a slope of accuracy over"
        f" log size of more than {task_trends.MIN_TREND:g} standard errors."
    )
    return [*lines, *filter(None, [elements.budget_note(selection)])]
