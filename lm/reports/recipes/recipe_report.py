"""Comparison of two recipes with held-out documents, tasks and the cost of a decision.

    report = recipe_report.compare_rows(lm.load_runs("runs/adamw"), lm.load_runs("runs/muon"))
    print(report)                                  # about ten lines
    recipe_report.write_comparison_page(report, "runs/compare")

`lm.compare` is compare_rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm.laws import run_table
from lm.laws.recipe_comparison import decision_cost, paired_runs, recipe_verdict
from lm.reports import html, paired_errors
from lm.reports.plots import recipe_multiplier, style
from lm.reports.plots.geometry import inline_svg
from lm.reports.recipes import task_differences
from lm.runs import filesystem, provenance, records

MAX_TASKS = 3  # in the text
SIGNIFICANT = 0.05  # corrected p-value of a task that the text names


@dataclass(frozen=True)
class RecipeReport:
    """Comparison of two recipes, and the results that depend on other records than the losses."""

    comparison: recipe_verdict.RecipeComparison
    tasks: list[task_differences.TaskDifference]
    plan: decision_cost.DecisionPlan

    def lines(self) -> list[str]:
        """Return the text, one fact per line."""
        facts = recipe_verdict.format_lines(self.comparison)
        n_notes = len(self.comparison.notes)
        facts, notes = (facts[:-n_notes], facts[-n_notes:]) if n_notes else (facts, [])
        facts += [_describe_tasks(self.tasks)] if self.tasks else []
        return [*facts, str(self.plan), *notes]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        return self.comparison.to_dict() | {
            "tasks": [task._asdict() for task in self.tasks],
            "decision": vars(self.plan),
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())


def split_recipe(location: str) -> tuple[str, dict[str, str]]:
    """Return the folder and the selection of FOLDER?FIELD=VALUE&FIELD=VALUE."""
    folder, _, query = location.partition("?")
    fields = [part.partition("=") for part in query.split("&") if part]
    if any(not (name and sign) for name, sign, _ in fields):
        raise ValueError(f"{location}: write the selection as FOLDER?FIELD=VALUE&FIELD=VALUE")
    return folder, {name: value for name, _, value in fields}


def load_recipe(location: str) -> list[dict]:
    """Load the runs of FOLDER or FOLDER?FIELD=VALUE. Raises ValueError if no run has the value."""
    folder, selection = split_recipe(location)
    rows = records.load_runs(folder)
    for name, value in selection.items():
        known = ", ".join(sorted({str(row[name]) for row in rows if name in row})) or "none"
        rows = [row for row in rows if str(row.get(name)) == value]
        if not rows:
            raise ValueError(f"{location}: no run has {name}={value}; its values are {known}")
    return rows


def compare_rows(
    rows_a: run_table.Rows,
    rows_b: run_table.Rows,
    options: recipe_verdict.ComparisonOptions | None = None,
    **changes: Any,
) -> RecipeReport:
    """Compare two recipes. rows_a, rows_b: rows of records.load_runs, one per run.

    changes: options of `recipe_verdict.ComparisonOptions` by name, such as n_candidates=3. With the
    held-out losses per document, the intervals include the error of the held-out text.
    Raises ValueError, in one line that states what to run, for recipes that are not comparable.
    """
    known = recipe_verdict.ComparisonOptions.__dataclass_fields__
    for name in changes:
        if name not in known:
            raise ValueError(
                f"{name}={changes[name]!r} is no option of a comparison; allowed:"
                f" {', '.join(known)}"
            )
    options = replace(options or recipe_verdict.ComparisonOptions(), **changes)
    rows_a, rows_b = run_table.to_rows(rows_a), run_table.to_rows(rows_b)
    if not options.document_error:
        selection = paired_runs.pair_runs(rows_a, rows_b, options.y)
        options = replace(options, document_error=measure_document_error(selection))
    comparison = recipe_verdict.compare_recipes(rows_a, rows_b, options)
    largest = comparison.selection.ordered_names(comparison.cost)[-1]
    pairs = next(s.pairs for s in comparison.selection.sizes if s.name == largest)
    tasks = task_differences.compare_tasks(pairs, options.error)
    return RecipeReport(comparison, tasks, decision_cost.plan_decision(comparison))


def measure_document_error(selection: paired_runs.Selection) -> float:
    """Return the relative error of the difference of losses from the choice of documents.

    It is the paired standard error, clustered by document, over the loss, as a mean over sizes.
    Return 0 if a run has no losses per document.
    """
    if selection.y != records.LOSS:
        return 0.0
    errors = []
    for size in selection.sizes:
        first, second = (list(rows) for rows in zip(*size.pairs, strict=True))
        paired = paired_errors.paired_difference(first, second)
        if paired is None:
            return 0.0
        losses = [run_table.to_number(row.get(records.LOSS)) for row in first]
        errors.append(paired[1] / float(np.mean(losses)))
    return float(np.mean(errors))


def _describe_tasks(tasks: Sequence[task_differences.TaskDifference]) -> str:
    """Return a line about the tasks whose accuracy differs."""
    different = [task for task in tasks if task.p_value < SIGNIFICANT]
    if not different:
        return f"tasks: no difference in accuracy at the largest size among {len(tasks)} tasks"
    texts = [
        f"{task.task} {task.difference:+.3f} [{task.lo:+.3f}, {task.hi:+.3f}]"
        for task in different[:MAX_TASKS]
    ]
    return (
        f"tasks: accuracy of B minus A at the largest size differs in {len(different)} of"
        f" {len(tasks)} tasks: {', '.join(texts)}"
    )


def write_comparison_page(
    report: RecipeReport, folder: str | Path, title: str = "A against B"
) -> Path:
    """Write comparison.html and the figure into a folder. Return the path of the page."""
    folder = filesystem.open_path(folder)
    comparison = report.comparison
    figure = recipe_multiplier.multiplier_vs_compute(comparison)
    rows = [row for size in comparison.selection.sizes for pair in size.pairs for row in pair]
    meta = {
        "figure": "multiplier",
        "runs": {str(row.get("dir") or row.get("name")): style.hash_data(row) for row in rows},
        "comparison": style.hash_data(comparison.to_dict()),
        "code": provenance.code_hash(__name__),
    }
    svg = inline_svg.render_svg(figure, meta)
    style.save_figure(figure, folder / "multiplier", meta, svg)
    lines = report.lines()
    sections = {
        "Comparison": html.join_html(
            [
                html.html_figure(figure, "multiplier", svg=svg),
                *(html.paragraph(line) for line in lines),
                html.html_table([_size_row(comparison, size) for size in comparison.sizes]),
            ]
        )
    }
    if report.tasks:
        table = [
            {
                "task": task.task,
                "accuracy of A": f"{task.accuracy_a:.3f}",
                "accuracy of B": f"{task.accuracy_b:.3f}",
                "difference": f"{task.difference:+.3f} [{task.lo:+.3f}, {task.hi:+.3f}]",
                "corrected p": f"{task.p_value:.2g}",
            }
            for task in report.tasks
        ]
        sections["Tasks at the largest size"] = html.html_table(table)
    return html.write_page(
        folder / "comparison.html",
        title=title,
        headline=("open" if comparison.verdict == "undecided" else "held", lines[0]),
        tiles=[("pairs of runs", str(comparison.selection.n_pairs))],
        sections=sections,
        footer=f"lm-scaling {provenance.package_version()}",
        dark_colors=style.dark_theme_map([]),
    )


def _size_row(
    comparison: recipe_verdict.RecipeComparison, size: recipe_verdict.SizeResult
) -> dict[str, Any]:
    """Return the table row of one size."""
    row = {"size": size.name, "pairs": size.n_pairs}
    row |= {"loss of A": f"{size.loss_a:.4f}", "loss of B": f"{size.loss_b:.4f}"}
    return row | {
        f"m in {paired_runs.COSTS[cost]}": str(value) for cost, value in size.multipliers.items()
    }
