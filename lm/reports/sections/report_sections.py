"""Sections of the HTML report in their order, with the figures of each; runs and reproduction.

    sections = report_sections.all_sections(summary.load_summary("runs/quickstart"), figures={})
    sections["Runs and settings"]                  # HTML of the table of all runs

Each question of a reader has one section: see FIGURES and all_sections.
"""

import dataclasses
import shlex
from collections.abc import Container, Mapping, Sequence, Set

from markupsafe import Markup

from lm.config import schema
from lm.config.schedules import batch_size_schedule
from lm.reports import device_cost, html, summary
from lm.reports.plots import elements, style
from lm.reports.sections import (
    cost_section,
    forecast_section,
    law_section,
    next_run_section,
    prediction_section,
    reproduction_section,
    setup_section,
    text_section,
)
from lm.reports.sections.abilities import ability_section, transfer_section
from lm.reports.tables import long_tables
from lm.runs import records

MAIN_FIGURES = ("loss", "compute", "curves")  # the first available one is the main figure
FIGURES = {
    "law": ("compute", "tokens", "frontier", "contours", "isoflop", "optimal_size"),
    "prediction": ("predicted", "predicted_tasks"),
    "abilities": (
        *("mastered", "abilities", "tasks", "margins", "emergence", "tasks_vs_loss"),
        "completion",
    ),
    "flat abilities": ("tasks_flat",),
    "transfer": ("tuned", "pretraining_gain"),
    "cost": ("goodput",),
    "runs": ("curves", "sources", "rates_by_width", "rates_by_depth"),
}
# Titles in a sweep of cooldown branches. The FLOPs of the laws contain those of the trunk run.
TRUNK_COLUMNS = {"FLOPs": "FLOPs with trunk", "time": "time without trunk"}
SHAPE_COLUMNS = ("width", "depth")  # among the config fields that differ between runs
HIDDEN_FIELDS = ("name", "dir", "is_prediction_target")  # other columns and sections have them
FACT_PREFIXES = ("code.", "corpus.", "devices", "versions.")
# Facts that other sections show, or that only the code reads.
INTERNAL_FACTS = ("corpus.warnings", "devices.cut", "devices.pack")
NO_FIGURE = "No run has data for a figure yet."


def all_sections(
    sweep: summary.SweepSummary,
    figures: Mapping[str, Markup],
    rates: device_cost.DeviceRates | None = None,
) -> dict[str, Markup]:
    """Return {heading: HTML} of all sections, in the order of the page.

    figures: {name: HTML} of the figures of the sweep. rates: price and power of a device.
    """
    main = main_figure(figures)
    shown = {section: [n for n in names if n != main] for section, names in FIGURES.items()}
    grids = {
        section: html.html_figures([figures[name] for name in names if name in figures])
        for section, names in shown.items()
    }
    first_figure = figures[main] if main else html.paragraph(NO_FIGURE, "muted")
    sections = {
        "What was trained": setup_section.training_setup(sweep),
        "The law": law_section.law_section(sweep, first_figure, grids["law"]),
        "Prediction and result": prediction_section.prediction_section(sweep, grids["prediction"]),
        "The next run": next_run_section.next_runs(sweep),
        "Abilities": ability_section.ability_section(
            sweep, grids["abilities"], grids["flat abilities"]
        ),
        **_transfer(sweep, grids["transfer"]),
        "Time and cost": cost_section.cost_section(
            sweep, rates or device_cost.DeviceRates(), grids["cost"]
        ),
        "Runs and settings": _runs_and_settings(sweep, grids["runs"]),
    }
    terms = html.glossary(" ".join(sections.values()))
    return sections | {"How to reproduce it": _reproduction(sweep, terms)}


def main_figure(names: Container[str]) -> str:
    """Return the name of the main figure of the page among the available ones, "" if none is."""
    return next((name for name in MAIN_FIGURES if name in names), "")


def _transfer(sweep: summary.SweepSummary, figures: Markup) -> dict[str, Markup]:
    """Return the section of tuned models, {} without runs that are tuned on prompts."""
    if not transfer_section.has_transfer(sweep):
        return {}
    table = transfer_section.transfer_gains(sweep)
    return {"Gain of pre-training": html.join_html([table, figures])}


def _runs_and_settings(sweep: summary.SweepSummary, figures: Markup) -> Markup:
    """Return all runs, the unfinished and excluded ones, events, forecasts and texts."""
    forecasts = forecast_section.loss_forecasts(sweep)
    return html.join_html(
        [
            _runs(sweep),
            html.subheading("Excluded, unfinished and missing runs"),
            _excluded_runs(sweep),
            *(html.paragraph(note, "note") for note in sweep.notes),
            html.subheading("Events"),
            _events(sweep),
            figures,
            html.collapsed_section("Forecasts of the loss during training", forecasts),
            html.collapsed_section("Documents of each source", text_section.text_documents(sweep)),
            *_settings(sweep),
        ]
    )


def _runs(sweep: summary.SweepSummary) -> Markup:
    """Return a table of all runs. Columns with the same value in all runs are a line of text."""
    columns = summary.run_columns(sweep.rows)
    by_source = [column for column in columns if column not in summary.RUN_COLUMNS]
    columns = [c for c in columns if c in summary.RUN_COLUMNS and c.title not in SHAPE_COLUMNS]
    shared = []
    if len(sweep.rows) > 1:
        texts = {c.title: {c.text(row) for row in sweep.rows} for c in columns[1:]}
        shared = [c for c in columns[1:] if len(texts[c.title]) == 1]
    columns = [column for column in columns if column not in shared]
    if len(sweep.without_trunks) < len(sweep.rows):
        columns = [
            dataclasses.replace(c, title=TRUNK_COLUMNS.get(c.title, c.title)) for c in columns
        ]
    parts = [_run_table(sweep.rows, columns)]
    if by_source:
        table = _run_table(sweep.rows, [summary.RUN_COLUMNS[0], *by_source])
        parts.append(html.collapsed_section("Held-out loss of each source", table))
    if shared:
        values = ", ".join(f"{c.title} {c.text(sweep.rows[0])}" for c in shared)
        parts.append(html.paragraph(f"The same in all runs: {values}.", "muted"))
    return html.join_html(parts)


def _run_table(rows: Sequence[dict], columns: Sequence[summary.Column]) -> Markup:
    """Return a table of runs that a reader can sort."""
    shown = long_tables.shown_rows(rows)
    lines = [{column.title: column.value(row) for column in columns} for row in shown]
    formats = {column.title: column.format for column in columns}
    sort_keys = {c.title: [c.sort_key(row) for row in shown] for c in columns if c.sort_key}
    table = html.html_table(lines, formats, sort_keys, is_sortable=True)
    return html.join_html([table, long_tables.describe_omitted(rows)])


def _excluded_runs(sweep: summary.SweepSummary) -> Markup:
    """Return the runs that are not done or not in the law, with the reason."""
    reasons = dict(sweep.fit.excluded) if sweep.fit else {}
    fitted = set(sweep.fit.data.names) if sweep.fit else set()
    regular = {row["name"] for row in sweep.without_trunks}
    tokens = [row.get(records.TOKENS) for row in sweep.rows if row["name"] in fitted]
    budgets = {style.format_si(count) for count in tokens if records.is_finite(count)}
    excluded: dict[str, list[str]] = {}  # reason -> names of finished runs
    lines = [
        {
            "run": elements.short_run_name({"name": name}),
            "status": "missing",
            "reason": "not started",
        }
        for name in sweep.missing
    ]
    for row in sweep.rows:
        line = {"run": elements.short_run_name(row), "status": summary.status_name(row)}
        if row["status"] != "done":
            schedule = batch_size_schedule.BatchSizeSchedule.from_row(row)
            planned_tokens = schedule.count_tokens(row["steps"])
            share = f"trained on {row[records.TOKENS] / planned_tokens:.0%} of its tokens"
            lines.append(line | {"reason": f"{row.get('reason') or 'not finished'}; {share}"})
        elif sweep.fit and row["name"] not in fitted and row is not sweep.target:
            reason = reasons.get(row["name"])
            if not reason and row["name"] not in regular:
                reason = "trunk run, represented by its cooldown branches"
            reason = reason or _reason_outside_fit(row, budgets)
            excluded.setdefault(reason, []).append(elements.short_run_name(row))
    lines += [
        {"run": ", ".join(names), "status": "done", "reason": reason}
        for reason, names in excluded.items()
    ]
    if lines:
        if sweep.fit and sweep.measured is not None and sweep.target:
            if not elements.is_in_fit(sweep.target, sweep.fit):
                name = elements.short_run_name(sweep.target)
                lines.append({"run": name, "status": "done", "reason": "predicted by the law"})
        return html.html_table(lines)
    text = "None: every run is done" + (" and in the law" if sweep.fit else "")
    if sweep.fit and sweep.target and not elements.is_in_fit(sweep.target, sweep.fit):
        text += f", except {elements.short_run_name(sweep.target)}, which the law predicts"
    return html.paragraph(f"{text}.", "muted")


def _reason_outside_fit(row: dict, budgets: Set[str]) -> str:
    """Return the reason why a finished run is not in the law. budgets: tokens of its runs."""
    tokens = row.get(records.TOKENS)
    if records.is_finite(tokens) and len(budgets) == 1 and style.format_si(tokens) not in budgets:
        budget = next(iter(budgets))
        return f"trained on {style.format_si(tokens)} tokens; the law is for {budget}"
    return "not among the runs that the law was fitted to"


def _events(sweep: summary.SweepSummary) -> Markup:
    """Return the events of all runs: corrupt checkpoints, skipped updates, rewinds, spikes."""
    lines = [
        {"run": elements.short_run_name(row)}
        | {key: event[key] for key in ("attempt", "step", "event")}
        | {"details": event["words"]}
        for row in sweep.rows
        for event in records.load_events(row["dir"])
    ]
    return html.html_table(lines) if lines else html.paragraph("No events.", "muted")


def _settings(sweep: summary.SweepSummary) -> list[Markup]:
    """Return the config fields that differ between runs, and those that all runs share."""
    fields = [field for field in schema.field_types(schema.Run) if field not in HIDDEN_FIELDS]
    values = {field: [str(row.get(field)) for row in sweep.rows] for field in fields}
    varied = [field for field in fields if len(set(values[field])) > 1]
    by_run = [
        {"run": elements.short_run_name(row)}
        | {field: _setting_text(row[field]) for field in varied}
        for row in long_tables.shown_rows(sweep.rows)
        if varied
    ]
    defaults = {field: str(value) for field, value in schema.flatten(schema.Run()).items()}
    shared = {field: texts[0] for field, texts in values.items() if texts and field not in varied}
    changed = {field: text for field, text in shared.items() if text != defaults.get(field)}
    unchanged = {field: text for field, text in shared.items() if field not in changed}
    table = html.join_html([html.html_table(by_run), long_tables.describe_omitted(sweep.rows)])
    sections = {"Config fields that differ between runs": table} if by_run else {}
    owner = "Config fields that all runs share" if by_run else "Config fields"
    for title, fields_of_title in (
        (f"{owner}, other than the defaults", changed),
        (f"{owner}, equal to the defaults", unchanged),
    ):
        lines = "\n".join(f"{field} = {text}" for field, text in fields_of_title.items())
        sections[title] = html.code_block(lines or "none")
    return [html.collapsed_section(name, body) for name, body in sections.items()]


def _reproduction(sweep: summary.SweepSummary, terms: Markup) -> Markup:
    """Return commit, commands, corpus, devices and versions, and the terms of the report.

    terms: definitions of the terms.
    """
    facts = []
    for key in sorted(set().union(*sweep.rows)):
        if not key.startswith(FACT_PREFIXES) or key in INTERNAL_FACTS:
            continue
        values = sorted({_fact_text(row[key]) for row in sweep.rows if row.get(key) is not None})
        if values:
            note = " (differs between runs)" if len(values) > 1 else ""
            facts.append({"fact": key, "value": ", ".join(values) + note})
    report = f"uv run python -m experiments.report {shlex.quote(f'--dir={sweep.path}')}"
    return html.join_html(
        [
            reproduction_section.training_commands(sweep, report),
            html.collapsed_section("Versions, devices and text", html.html_table(facts)),
            html.collapsed_section("Terms of this report", terms),
        ]
    )


def _setting_text(value) -> str:
    """Return a config field as text, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fact_text(value) -> str:
    """Return a recorded fact as text: numbers with four digits, dictionaries as lists."""
    if isinstance(value, float):
        return style.power_of_ten(value) if abs(value) >= 1e6 else style.format_number(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {number}" for key, number in value.items())
    return str(value)
