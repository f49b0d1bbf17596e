"""Write a page that shows several sweeps side by side: setup, law, prediction, abilities, cost.

    page = side_by_side.write_side_by_side(["runs/quickstart", "runs/branches"])

Each line of the table answers one question for all sweeps. The figure shows the runs and the law of
each sweep, a color per sweep. It tests no difference: see lm/reports/recipes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.reports import device_cost, html, summary
from lm.reports.plots import elements, style
from lm.reports.sections import (
    certainty_section,
    cost_section,
    next_run_section,
    setup_section,
)
from lm.reports.sections.abilities import ability_section
from lm.runs import provenance, records, run_selection, task_results

MAX_SWEEPS = 4


def write_side_by_side(
    folders: Sequence[str | Path], rates: device_cost.DeviceRates | None = None
) -> Path:
    """Write side_by_side.html into the first folder. Return its path.

    Raises ValueError for fewer than two and more than MAX_SWEEPS folders, for equal folders, and
    for a folder without runs.
    """
    if not 2 <= len(folders) <= MAX_SWEEPS:
        raise ValueError(f"{len(folders)} sweeps: pass 2 to {MAX_SWEEPS} folders")
    resolved = [Path(folder).resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"a folder is given twice: {', '.join(map(str, folders))}")
    sweeps = [summary.load_summary(folder) for folder in folders]
    names = sweep_names(sweeps)
    rates = rates or device_cost.DeviceRates()
    figure = html.html_figure(
        losses_of_sweeps(sweeps, names),
        text="The held-out loss of the finished runs of each sweep against their size. A lower line"
        " is a better recipe only if text, tokenizer and tokens are the same.",
        is_large=True,
    )
    columns = {name: _answers(sweep, rates) for name, sweep in zip(names, sweeps, strict=True)}
    questions = next(iter(columns.values()))
    lines = [
        {"": question} | {name: answers[question] for name, answers in columns.items()}
        for question in questions
    ]
    notes = [html.paragraph(note, "note") for note in comparability_notes(sweeps, names)]
    return html.write_page(
        sweeps[0].path / "side_by_side.html",
        title=" and ".join(names),
        headline=("open", f"{len(sweeps)} sweeps side by side. No difference is tested."),
        tiles=[(f"runs of {n}", str(len(s.rows))) for n, s in zip(names, sweeps, strict=True)],
        sections={
            "Losses": html.join_html([*notes, figure]),
            "Side by side": html.html_table(lines),
            "How to reproduce it": _commands(folders),
        },
        footer=f"lm-scaling {provenance.package_version()}",
        dark_colors=style.dark_theme_map([row for sweep in sweeps for row in sweep.rows]),
    )


def sweep_names(sweeps: Sequence[summary.SweepSummary]) -> list[str]:
    """Return the shortest ends of the paths of the sweeps that are all different."""
    parts = [Path(sweep.path).resolve().parts[1:] for sweep in sweeps]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-n:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [str(sweep.path) for sweep in sweeps]


def comparability_notes(sweeps: Sequence[summary.SweepSummary], names: Sequence[str]) -> list[str]:
    """Return sentences about different texts, tokenizers and token counts."""
    notes = []
    for key, text in (("corpus.hash", "texts"), ("data.tokenizer", "tokenizers")):
        values = [{row[key] for row in sweep.rows if row.get(key)} for sweep in sweeps]
        if any(values) and any(value != values[0] for value in values):
            notes.append(f"The sweeps have different {text}: their losses are not comparable.")
    budgets = [
        {style.format_si(row[records.TOKENS]) for row in sweep.finished if row.get(records.TOKENS)}
        for sweep in sweeps
    ]
    if any(budget != budgets[0] for budget in budgets):
        texts = [
            f"{name} {', '.join(sorted(b)) or 'unknown'}"
            for name, b in zip(names, budgets, strict=True)
        ]
        notes.append(f"The sweeps have different tokens per run: {'; '.join(texts)}.")
    return notes


def _answers(sweep: summary.SweepSummary, rates: device_cost.DeviceRates) -> dict[str, str]:
    """Return {question: answer} of a sweep."""
    law = f"none: {sweep.refusal}"
    certainty = "unknown"
    if sweep.fit is not None:
        law = elements.format_formula(sweep.fit)
        certainty = " ".join(certainty_section.describe_certainty(sweep))
    rows = sweep.rows
    has_tasks = bool(task_results.task_names(rows))
    return {
        "models": setup_section.describe_models(sweep) if rows else "no run has started",
        "text": setup_section.describe_text(rows) if rows else "",
        "recipe": setup_section.describe_recipe(rows) if rows else "",
        "hardware": setup_section.describe_hardware(rows) if rows else "",
        "law": law,
        "how sure": certainty,
        "prediction": summary.headline(sweep)[1],
        "with 10 times the compute": next_run_section.describe_size(sweep),
        "abilities": " ".join(ability_section.describe_abilities(sweep)) if has_tasks else "none",
        "cost": " ".join(cost_section.describe_cost(sweep, rates)),
    }


def losses_of_sweeps(
    sweeps: Sequence[summary.SweepSummary], names: Sequence[str], theme=style.LIGHT
) -> Figure:
    """Plot the runs and the laws of several sweeps, a color per sweep, on log axes."""
    x, y = records.N_PARAMS, records.LOSS
    figure, axes = style.new_figure("Loss against parameters", x, y, theme)
    axes.set(xscale="log", yscale="log")
    colors = style.categorical_colors(theme, len(sweeps))
    for sweep, name, color in zip(sweeps, names, colors, strict=True):
        _draw_sweep(axes, sweep, name, color, theme)
    if any(sweep.finished for sweep in sweeps):
        elements.set_scales(axes, x, y)
    counts = [
        f"{n}: {elements.count_label(s.finished)}" for n, s in zip(names, sweeps, strict=True)
    ]
    caption = [f"{'; '.join(counts)}. Bars: one standard error. Bands: 95% interval of the law."]
    return style.finish_figure(figure, axes, caption, theme)


def _draw_sweep(axes: Axes, sweep: summary.SweepSummary, name: str, color: str, theme) -> None:
    """Draw the finished runs of one sweep, its law and the interval of the law."""
    x, y, law_fit = records.N_PARAMS, records.LOSS, sweep.fit
    for row in run_selection.finished_with(sweep.rows, x, y):
        error = task_results.standard_error(row, y)
        tip = f"{name}, {elements.describe_point(row, y)} ± {error:.2g}"
        kind = elements.fit_kind(row, law_fit)
        elements.draw_point(axes, (row[x], row[y]), color, theme, tip, error, kind=kind)
    if law_fit is None or [law_fit.columns[letter] for letter in law_fit.inputs] != [x]:
        axes.plot([], [], "o", color=color, label=f"{name}: no law")
        return
    sizes = [row[x] for row in sweep.finished]
    grid = np.geomspace(min(sizes), max(sizes), 100)
    curve = law_fit.predict(grid, level=elements.LEVEL, noise=False)
    label = f"{name}: {elements.format_formula(law_fit)}"
    axes.plot(grid, curve.value, color=color, linewidth=1.4, zorder=2, label=label)
    if np.isfinite(curve.lo).all():
        axes.fill_between(grid, curve.lo, curve.hi, color=color, alpha=0.15, linewidth=0)


def _commands(folders: Sequence[str | Path]) -> Markup:
    """Return the commands that write this page and the report of each sweep."""
    report = "uv run python -m experiments.report"
    lines = [" ".join([report, *(f"--dir={folder}" for folder in folders)])]
    lines += [f"{report} --dir={folder}" for folder in folders]
    return html.code_block("\n".join(lines))
