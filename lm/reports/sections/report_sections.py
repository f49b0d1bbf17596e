"""Sections of the HTML report: laws, predictions, tasks, runs, events, cost, reproduction.

    sections = report_sections.all_sections(summary.load_summary("runs/quickstart"))
    sections["Runs"]                               # HTML of the table of all runs

Each private function returns the HTML of one section, or one row of its table as values.
"""

from collections import Counter
from typing import Any

from markupsafe import Markup

from lm.config import schema
from lm.config.schedules import batch_size_schedule
from lm.laws import fit, prediction_intervals
from lm.reports import html, summary
from lm.reports.audit import prediction_audit, prediction_chain
from lm.reports.plots import elements, goodput, style
from lm.reports.sections import (
    forecast_section,
    next_run_section,
    source_section,
    task_section,
    text_section,
    transfer_section,
)
from lm.runs import records, run_selection, task_results

NO_INTERVAL = (float("nan"), float("nan"))
SUMMED_COSTS = (records.TOKENS, records.FLOPS, "seconds")


def all_sections(sweep: summary.SweepSummary) -> dict[str, Markup]:
    """Return {heading: HTML} of all sections except the figures."""
    sections = {
        "The law": _law(sweep),
        "Predictions": _predictions(sweep),
    }
    if source_section.load_results(sweep):
        sections["Losses of sources"] = source_section.source_losses(sweep)
    sections |= {
        "Other laws": _other_laws(sweep),
        "Next run": next_run_section.next_runs(sweep),
        "Forecasts during training": forecast_section.loss_forecasts(sweep),
    }
    if task_results.task_names(sweep.rows):
        sections["Tasks"] = task_section.task_reliability(sweep)
    if transfer_section.has_transfer(sweep):
        sections["Gain of pre-training"] = transfer_section.transfer_gains(sweep)
    sections |= {
        "Text": text_section.text_documents(sweep),
        "Runs": _runs(sweep),
        "Excluded, unfinished and missing runs": html.join_html(
            [_excluded_runs(sweep), *(html.paragraph(note, "note") for note in sweep.notes)]
        ),
        "Events": _events(sweep),
        "Planned and actual cost": _costs(sweep),
    }
    times = goodput.phase_table(sweep.rows)
    if times:
        formats = dict.fromkeys(goodput.PHASES.values(), "{:.1%}".format)
        formats |= {"seconds": "{:.0f}".format}
        sections["Time by phase"] = html.html_table(times, formats)
    return sections | {"How to reproduce": _reproduction(sweep)}


def _law(sweep: summary.SweepSummary) -> Markup:
    """Return the formula of the law, its parameters with intervals, and its warnings."""
    law_fit = sweep.fit
    if law_fit is None:
        return html.paragraph(f"No law could be fitted: {sweep.refusal}.", "note")
    lines = [
        {
            "parameter": name,
            "value": value,
            "95% interval": law_fit.intervals.get(name, NO_INTERVAL),
        }
        for name, value in law_fit.params.items()
    ]
    formats = {"value": "{:.4g}".format, "95% interval": _format_interval}
    columns = "; ".join(style.axis_label(column) for column in law_fit.columns.values())
    warnings = list(law_fit.warnings)
    stored = (sweep.prediction or {}).get("fit", {}).get("params", {})
    if any(
        records.is_finite(stored.get(k)) and abs(stored[k] - v) > 1e-4 * abs(v)
        for k, v in law_fit.params.items()
    ):
        warnings.append(
            "This law differs from the law in prediction.json: runs changed after the prediction."
        )
    return html.join_html(
        [
            html.paragraph(elements.format_formula(law_fit), "formula"),
            html.paragraph(columns, "muted"),
            html.html_table(lines, formats),
            *(html.paragraph(warning, "note") for warning in warnings),
            html.collapsed_section("Details of the fit", html.code_block(law_fit)),
        ]
    )


def _format_interval(interval: tuple[float, float]) -> str:
    """Format the interval of a parameter, "none" if it is NaN."""
    lo, hi = interval
    if not (records.is_finite(lo) or records.is_finite(hi)):
        return "none"
    low, high = (f"{v:.4g}" if records.is_finite(v) else "unbounded" for v in interval)
    return f"{low} to {high}"


def _other_laws(sweep: summary.SweepSummary) -> Markup:
    """Return the other laws of the runs with their intervals, or the reason for a missing fit."""
    lines, warnings = [], []
    for name, (law_fit, refusal) in sweep.laws.items():
        if law_fit is None:
            line = {"formula": "", "runs": None, "95% intervals": f"refused: {refusal}"}
        else:
            values = {**law_fit.params, **law_fit.derived}
            texts = [
                f"{key} {value:.4g}{_bounds_text(law_fit, key)}" for key, value in values.items()
            ]
            line = {
                "formula": elements.format_formula(law_fit),
                "runs": law_fit.n,
                "95% intervals": "; ".join(texts),
            }
            warnings += [f"{name}: {warning}" for warning in law_fit.warnings]
            n_finished = len(run_selection.without_trunks(sweep.finished))
            if name == "compute" and law_fit.n < n_finished:
                warnings.append(
                    f"{name}: fitted to the {law_fit.n} runs, of {n_finished}, that have the"
                    " least loss for their compute"
                )
        lines.append({"law": name} | line)
    notes = [html.paragraph(warning, "note") for warning in warnings]
    return html.join_html([html.html_table(lines), *notes])


def _bounds_text(law_fit: fit.Fit, key: str) -> str:
    """Return the interval of a parameter as text, "" if it has none."""
    return prediction_intervals.format_interval(*law_fit.intervals.get(key, NO_INTERVAL), digits=3)


def _predictions(sweep: summary.SweepSummary) -> Markup:
    """Return the predictions of each law for the target beside the measured value."""
    if not sweep.prediction:
        reason = f": {sweep.refused}" if sweep.refused else ""
        return html.paragraph(f"No prediction was stored{reason}.", "muted")
    by_law = {"size alone": sweep.prediction, "size and tokens": sweep.prediction.get("joint", {})}
    lines, notes = [], []
    for law, prediction in by_law.items():
        fitted = [row for row in sweep.rows if row["name"] in prediction.get("runs", ())]
        refusal = run_selection.refuse_joint_law(fitted) if law == "size and tokens" else ""
        if refusal and "value" in prediction:
            notes.append(f"The stored prediction of the law of {law} is not shown: {refusal}.")
        elif records.is_finite(prediction.get("value")):
            lines.append(_prediction(sweep, law, prediction))
            runs = ", ".join(prediction.get("runs", ()))
            notes.append(f"The law of {law} was fitted to {runs}.")
            if records.is_finite(prediction.get("lo_if_form_right")):
                bounds = prediction["lo_if_form_right"], prediction["hi_if_form_right"]
                notes.append(
                    f"The interval of the law of {law} includes uncertainty about its form. If the"
                    f" form is right, the interval is {_format_bounds(bounds)}."
                )
        elif prediction:
            notes.append(f"The law of {law} gave no prediction: {prediction.get('refused', '')}.")
    interval_columns = [name for name in lines[0] if name.endswith("% interval")]
    formats = {"predicted": style.format_number} | dict.fromkeys(interval_columns, _format_bounds)
    paragraphs = [html.paragraph(note, "muted") for note in notes]
    return html.join_html([html.html_table(lines, formats), *paragraphs, _audit(sweep)])


def _audit(sweep: summary.SweepSummary) -> Markup:
    """Return the hash of the prediction, the number of its verified links, and contradictions."""
    links = prediction_audit.audit_prediction(sweep.path, should_refit=False)
    n_links = Counter(link.status for link in links)
    counts = ", ".join(f"{n_links[status]} {status}" for status in prediction_chain.STATUSES)
    text = (
        f"Audit of the records behind this prediction: {counts}. "
        f"SHA-256 of the prediction: {prediction_audit.prediction_sha256(sweep.path)}."
    )
    contradictions = [link.text for link in links if link.status == prediction_chain.CONTRADICTION]
    notes = [html.paragraph(f"Contradiction: {text}.", "note") for text in contradictions]
    return html.join_html([html.paragraph(text, "muted"), *notes])


def _prediction(sweep: summary.SweepSummary, law: str, prediction: dict) -> dict[str, Any]:
    """Return the table row of one prediction for the target, as values."""
    main, measured = sweep.prediction or {}, sweep.measured
    value, lo, hi = elements.predicted_interval(prediction)
    result, deviation, is_inside = "not yet", None, None
    if measured:
        error = task_results.standard_error(sweep.target or {}, main["y"])
        result = summary.format_measurement(summary.Measurement(measured, error))
        deviation = summary.relative_error(measured, value)
        if records.is_finite(lo):
            is_inside = "yes" if lo <= measured <= hi else "no"
    return {
        "run": main["target"],
        "law": law,
        "quantity": style.axis_label(main["y"]),
        "predicted": value,
        f"{main['level']:.0%} interval": (lo, hi),
        "measured": result,
        "deviation": deviation,
        "inside the interval": is_inside,
        "stored at": main.get("written", ""),
    }


def _format_bounds(interval: tuple[float, float]) -> str:
    """Format the interval of a predicted loss."""
    lo, hi = interval
    if not records.is_finite(lo):
        return "none"
    return f"{style.format_number(lo)} to {style.format_number(hi)}"


def _runs(sweep: summary.SweepSummary) -> Markup:
    """Return a table of all runs with all columns that have a value in any run."""
    columns = summary.run_columns(sweep.rows)
    lines = [{column.title: column.value(row) for column in columns} for row in sweep.rows]
    formats = {column.title: column.format for column in columns}
    sort_keys = {c.title: [c.sort_key(row) for row in sweep.rows] for c in columns if c.sort_key}
    return html.html_table(lines, formats, sort_keys, is_sortable=True)


def _excluded_runs(sweep: summary.SweepSummary) -> Markup:
    """Return the runs that are not done or not in the law, with the reason."""
    reasons = dict(sweep.fit.excluded) if sweep.fit else {}
    lines = [
        {
            "run": elements.short_run_name({"name": name}),
            "status": "missing",
            "reason": "not started",
        }
        for name in sweep.missing
    ]
    for row in sweep.rows:
        line = {"run": elements.short_run_name(row), "status": row["status"]}
        if row["status"] != "done":
            schedule = batch_size_schedule.BatchSizeSchedule.from_row(row)
            planned_tokens = schedule.count_tokens(row["steps"])
            share = f"trained on {row[records.TOKENS] / planned_tokens:.0%} of its tokens"
            lines.append(line | {"reason": f"{row.get('reason') or 'not finished'}; {share}"})
        elif sweep.fit and not elements.is_in_fit(row, sweep.fit) and row is not sweep.target:
            reason = reasons.get(row["name"]) or _reason_outside_fit(sweep, row)
            lines.append(line | {"reason": reason})
    if not lines:
        return html.paragraph("None: every run is done and in the law.", "muted")
    return html.html_table(lines)


def _reason_outside_fit(sweep: summary.SweepSummary, row: dict) -> str:
    """Return the reason why a finished run is not in the law."""
    if row not in sweep.without_trunks:
        return "trunk run, represented by its cooldown branches"
    fitted = [r for r in sweep.rows if elements.is_in_fit(r, sweep.fit)]
    budgets = {style.format_si(r[records.TOKENS]) for r in fitted}
    tokens = row.get(records.TOKENS)
    if records.is_finite(tokens) and len(budgets) == 1 and style.format_si(tokens) not in budgets:
        return f"trained on {style.format_si(tokens)} tokens; the law is for {budgets.pop()}"
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


def _costs(sweep: summary.SweepSummary) -> Markup:
    """Return the planned and the actual cost of each run, and the sums over started runs."""
    actual = {
        row["name"]: row | {records.FLOPS: summary.incremental_flops(row)} for row in sweep.rows
    }
    pairs = [(plan, actual.get(plan["name"], {})) for plan in sweep.plan]
    started = [(plan, row) for plan, row in pairs if row]
    if len(started) > 1:
        planned_sum, actual_sum = (
            {key: sum(costs.get(key) or 0 for costs in all_costs) for key in SUMMED_COSTS}
            for all_costs in zip(*started, strict=True)
        )
        pairs.append(({"name": f"all {len(started)} started"} | planned_sum, actual_sum))
    formats = {"actual / planned time": "{:.2f}×".format}
    for column in summary.COST_COLUMNS:
        formats |= {f"{column.title}, planned": column.format}
        formats |= {f"{column.title}, actual": column.format}
    return html.html_table([_cost(plan, row) for plan, row in pairs], formats)


def _cost(plan: dict, row: dict) -> dict[str, Any]:
    """Return the table row of one run: planned cost, actual cost, ratio of the times."""
    line: dict[str, Any] = {"run": elements.short_run_name(plan)}
    for column in summary.COST_COLUMNS:
        line[f"{column.title}, planned"] = column.value(plan)
        line[f"{column.title}, actual"] = column.value(row)
    planned, actual = plan.get("seconds"), row.get("seconds")
    line["actual / planned time"] = None
    if records.is_finite(planned) and records.is_finite(actual) and planned > 0 and actual > 0:
        line["actual / planned time"] = actual / planned
    return line


def _reproduction(sweep: summary.SweepSummary) -> Markup:
    """Return commit, command, corpus, devices, versions, and the config fields of the runs."""
    keys = sorted({key for row in sweep.rows for key in row})
    facts = []
    for key in keys:
        values = sorted({str(row[key]) for row in sweep.rows if row.get(key) is not None})
        if values and key.startswith(("code.", "corpus.", "devices", "versions.")):
            note = " (differs between runs)" if len(values) > 1 else ""
            facts.append({"fact": key, "value": ", ".join(values) + note})
    fields = [field for field in schema.field_types(schema.Run) if field not in ("name", "dir")]
    values = {field: [str(row.get(field)) for row in sweep.rows] for field in fields}
    varied = [field for field in fields if len(set(values[field])) > 1]
    by_run = [
        {"run": elements.short_run_name(row)} | {field: str(row[field]) for field in varied}
        for row in sweep.rows
    ]
    shared = "\n".join(
        f"{field} = {texts[0]}" for field, texts in values.items() if texts and field not in varied
    )
    commits = {row["code.commit"] for row in sweep.rows if row.get("code.commit")}
    checkout = ""
    if len({commit.rstrip("+") for commit in commits}) == 1:
        checkout = f"git checkout {min(commits).rstrip('+')}\n"
    commit_note = (
        "The commit does not contain files that git does not track, such as a new sweep file."
    )
    if any(commit.endswith("+") for commit in commits):
        commit_note = f"Tracked files had uncommitted changes. {commit_note}"
    differing = html.html_table(by_run)
    return html.join_html(
        [
            html.code_block(checkout + sweep.facts.get("command", "unknown command")),
            html.paragraph(commit_note if checkout else "", "muted"),
            html.paragraph(f"Started {sweep.facts.get('created', 'at an unknown time')}.", "muted"),
            html.html_table(facts),
            html.collapsed_section("Config fields that differ between runs", differing),
            html.collapsed_section("Config fields that all runs share", html.code_block(shared)),
        ]
    )
