"""Section of the report about models that are tuned on prompts: gain of pre-training by size."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lm.reports import html, summary
from lm.reports.plots import style
from lm.reports.tuned_abilities import pretraining_gain


def has_transfer(sweep: summary.SweepSummary) -> bool:
    """Return True if a sweep has tuned runs and runs from scratch of the same size and task."""
    return bool(pretraining_gain.compare_methods(pretraining_gain.task_scores(sweep.rows)))


def transfer_gains(sweep: summary.SweepSummary) -> Markup:
    """Return the size from which pre-training pays in each task, and the scores of all methods."""
    points = pretraining_gain.task_scores(sweep.rows)
    effects = pretraining_gain.compare_methods(points)
    sentences = pretraining_gain.describe_gains(effects, style.format_si)
    formats: dict[str, html.Format] = {"parameters": style.format_si}
    formats |= dict.fromkeys(pretraining_gain.METHODS, _format_score)
    note = (
        "BLEU of generated translations, else accuracy in percent, with one standard error over"
        " test items and seeds. The learning rate is that with the lowest mean held-out"
        " loss over seeds. A"
        " gain pays from the smallest size at which it and the gain of each larger size are"
        " significant at 5%, corrected for the number of comparisons (a task and two methods)."
        " Seeds of any size determine the variance between seeds; without them, nothing is tested."
    )
    return html.join_html(
        [
            *(html.paragraph(f"{sentence}.") for sentence in sentences),
            html.html_table(_score_lines(points), formats, is_sortable=True),
            html.paragraph(note, "muted"),
        ]
    )


def _score_lines(points: Sequence[Mapping]) -> list[dict[str, Any]]:
    """Return the table rows of each task and size, as values."""
    by_key = {(point["task"], point["size"], point["method"]): point for point in points}
    methods = [m for m in pretraining_gain.METHODS if any(p["method"] == m for p in points)]
    lines = []
    for task, size in dict.fromkeys((point["task"], point["size"]) for point in points):
        cells = {method: by_key.get((task, size, method)) for method in methods}
        any_point = next(point for point in cells.values() if point)
        lines.append(
            {
                "task": task,
                "parameters": size,
                "metric": any_point["metric"],
                "best baseline": f"{any_point['baseline_name']} {any_point['baseline']:.1f}",
                **{m: point and (point["value"], point["se"]) for m, point in cells.items()},
            }
        )
    return lines


def _format_score(score: tuple[float, float]) -> str:
    """Format a score and its standard error."""
    return f"{score[0]:.1f} ± {score[1]:.1f}"
