"""Write the HTML report of a sweep: prediction, result, laws, figures and every run.

    path = report.write_report("runs/quickstart")   # report.html, and figures/NAME.png and .svg
    beside it

The page also names what is missing: unfinished runs, laws that could not be fitted, predictions
outside their interval. It reads records only and can be written at any time. With
refresh=SECONDS an open page reloads at this interval, for a sweep that still trains.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from lm.config import schema
from lm.reports import figures, html, summary, task_analysis
from lm.reports.plots import elements, goodput, scaling, style
from lm.runs import provenance, records

load, headline, table = (
    summary.load_summary,
    summary.headline,
    summary.summary_table,
)  # for command lines

NAN_INTERVAL = (float("nan"), float("nan"))
COST_COLUMNS = (records.TOKENS, records.FLOPS, "seconds")


def write_report(sweep_dir, refresh: float = 0.0) -> Path:
    """Write figures/ and report.html into the directory of a sweep. Return the path of the page.

    refresh: interval in seconds at which an open page reloads, 0 for never. With a refresh the
    files in figures/, which take most of the time, are not written.
    """
    sweep = summary.load_summary(sweep_dir)
    drawn_figures = []
    for name, (figure, meta) in figures.all_figures(sweep).items():
        if not refresh:
            scaling.save(figure, sweep.path / "figures" / name, meta)
        drawn_figures.append(html.html_figure(figure, "" if refresh else f"figures/{name}"))
    sections = {"Figures": html.html_figures(drawn_figures)} | _sections(sweep)
    return html.write_page(
        sweep.path / "report.html",
        title=sweep.path.name or sweep.path.resolve().name,
        headline=summary.headline(sweep),
        tiles=_tiles(sweep),
        sections=sections,
        footer=f"lm-scaling {provenance.package_version()}, from the records of {len(sweep.rows)}"
        f" runs.",
        twins=style.dark_theme_map(sweep.rows),
        refresh=refresh,
    )


def _sections(sweep: summary.SweepSummary) -> dict[str, Markup]:
    """Return {heading: HTML} of all sections except the figures."""
    sections = {
        "The law": _law(sweep),
        "Predictions": _predictions(sweep),
        "Other laws": _laws(sweep),
    }
    if task_analysis.task_names(sweep.rows):
        sections["Tasks"] = _tasks(sweep)
    sections |= {
        "Runs": _runs(sweep),
        "Excluded, unfinished and missing runs": _excluded(sweep),
        "Events": _events(sweep),
        "Planned and actual cost": _cost(sweep),
    }
    times = goodput.phase_table(sweep.rows)
    if times:
        formats = dict.fromkeys(goodput.PHASES.values(), "{:.1%}".format)
        sections["Where the time went"] = html.html_table(
            times, formats | {"seconds": "{:.0f}".format}
        )
    return sections | {"How to reproduce": _reproduction(sweep)}


def _tiles(sweep: summary.SweepSummary) -> list[tuple[str, str]]:
    """Return the most important numbers of the sweep as (name, text)."""
    sizes, losses, seconds = (
        [row[key] for row in sweep.rows if records.is_finite(row.get(key))]
        for key in (records.N_PARAMS, records.LOSS, "seconds")
    )
    n_done = sum(row["status"] == "done" for row in sweep.rows)
    tiles = [("runs done", f"{n_done} of {len(sweep.rows) + len(sweep.missing)}")]
    if sizes:
        span = f"{style.format_si(min(sizes))} to {style.format_si(max(sizes))}"
        tiles.append((f"sizes, a factor of {max(sizes) / min(sizes):.0f}", span))
    if losses:
        tiles.append(("lowest loss, nats per token", style.format_number(min(losses))))
    flops = sum(summary.incremental_flops(row) for row in sweep.rows)
    tiles.append(("total FLOPs", style.power_of_ten(flops)))
    return [*tiles, ("training time", summary.format_duration(sum(seconds)))]


def _law(sweep: summary.SweepSummary) -> Markup:
    """Return the formula of the law, its parameters with intervals, and its warnings."""
    fit = sweep.fit
    if fit is None:
        return html.paragraph(f"No law could be fitted: {sweep.refusal}.", "note")
    lines = [
        {"": name, "value": value, "95% interval": fit.intervals.get(name, NAN_INTERVAL)}
        for name, value in fit.params.items()
    ]
    formats = {"value": "{:.4g}".format, "95% interval": _format_interval}
    columns = "; ".join(style.axis_label(column) for column in fit.columns.values())
    warnings = list(fit.warnings)
    stored = (sweep.prediction or {}).get("fit", {}).get("params", {})
    if any(abs(stored.get(k, v) - v) > 1e-4 * abs(v) for k, v in fit.params.items()):
        warnings.append(
            "It differs from the law in prediction.json: runs changed after the prediction."
        )
    return html.join_html(
        [
            html.paragraph(elements.format_formula(fit), "formula"),
            html.paragraph(columns, "muted"),
            html.html_table(lines, formats),
            *(html.paragraph(warning, "note") for warning in warnings),
            html.collapsed_section("Details of the fit", html.code_block(fit)),
        ]
    )


def _format_interval(interval: tuple[float, float]) -> str:
    lo, hi = interval
    return f"{lo:.4g} to {hi:.4g}" if records.is_finite(lo) else "none"


def _laws(sweep: summary.SweepSummary) -> Markup:
    """Return the other laws of the runs with their intervals, or why they cannot be fitted."""
    lines, warnings = [], []
    for name, (fit, refusal) in sweep.laws.items():
        if fit is None:
            line = {"formula": "", "n": None, "95% intervals": f"refused: {refusal}"}
        else:
            values = {**fit.params, **fit.derived}
            texts = [f"{key} {value:.4g}{_interval(fit, key)}" for key, value in values.items()]
            line = {
                "formula": elements.format_formula(fit),
                "n": fit.n,
                "95% intervals": "; ".join(texts),
            }
            warnings += [f"{name}: {warning}" for warning in fit.warnings]
        lines.append({"law": name} | line)
    notes = [html.paragraph(warning, "note") for warning in warnings]
    return html.join_html([html.html_table(lines), *notes])


def _interval(fit, key: str) -> str:
    lo, hi = fit.intervals.get(key, NAN_INTERVAL)
    return f" [{lo:.3g}, {hi:.3g}]" if records.is_finite(lo) else ""


def _predictions(sweep: summary.SweepSummary) -> Markup:
    """Return the predictions of each law for the target beside the measured value."""
    if not sweep.prediction:
        reason = f": {sweep.refused}" if sweep.refused else ""
        return html.paragraph(f"No prediction was stored{reason}.", "muted")
    by_law = {"size alone": sweep.prediction, "size and tokens": sweep.prediction.get("joint", {})}
    lines, notes = [], []
    for law, prediction in by_law.items():
        if "value" in prediction:
            lines.append(_prediction(sweep, law, prediction))
            runs = ", ".join(prediction.get("runs", ()))
            notes.append(f"By {law}: from {runs}.")
        elif prediction:
            notes.append(f"By {law}: none, {prediction.get('refused', '')}.")
    interval_columns = [name for name in lines[0] if name.endswith("interval")]
    formats = {"predicted": style.format_number} | dict.fromkeys(interval_columns, _format_bounds)
    paragraphs = [html.paragraph(note, "muted") for note in notes]
    return html.join_html([html.html_table(lines, formats), *paragraphs])


def _prediction(sweep: summary.SweepSummary, law: str, prediction: dict) -> dict[str, Any]:
    """Return the table row of one prediction for the target, as values."""
    main, measured = sweep.prediction or {}, sweep.measured
    value, lo, hi = elements.predicted_interval(prediction)
    result, deviation, is_inside = "not yet", None, None
    if measured:
        error = records.standard_error(sweep.target or {}, main["y"])
        result = summary.format_measurement(summary.Measurement(measured, error))
        deviation = summary.relative_error(measured, value)
        if records.is_finite(lo):
            is_inside = "yes" if lo <= measured <= hi else "no"
    return {
        "run": main["target"],
        "law": law,
        "of": style.axis_label(main["y"]),
        "predicted": value,
        f"{main['level']:.0%} interval": (lo, hi),
        "measured": result,
        "deviation": deviation,
        "inside": is_inside,
        "stored at": main.get("written", ""),
    }


def _format_bounds(interval: tuple[float, float]) -> str:
    lo, hi = interval
    return f"{style.format_number(lo)} to {style.format_number(hi)}"


def _runs(sweep: summary.SweepSummary) -> Markup:
    """Return a table of all runs with all columns that any run fills."""
    columns = summary.run_columns(sweep.rows)
    lines = [{column.title: column.value(row) for column in columns} for row in sweep.rows]
    formats = {column.title: column.format for column in columns}
    sort_keys = {c.title: [c.sort_key(row) for row in sweep.rows] for c in columns if c.sort_key}
    return html.html_table(lines, formats, sort_keys, is_sortable=True)


def _tasks(sweep: summary.SweepSummary) -> Markup:
    """Return the reliability of each task, and how well each metric follows accuracy."""
    finished = [row for row in sweep.rows if row["status"] == "done"]
    evals = {row["name"]: records.load_evals(row["dir"]) for row in finished}
    lines = [_task(sweep, verdict) for verdict in task_analysis.task_verdicts(finished, evals)]
    three_digits, two_digits = "{:.3g}".format, "{:.2g}".format
    formats = {
        "chance": two_digits,
        "best accuracy": three_digits,
        "predicted for the target": _format_prediction,
        "measured": "{:.2f}".format,
        **dict.fromkeys(
            ("signal", "sampling noise", "checkpoint noise", "seed noise", "signal to noise"),
            two_digits,
        ),
    }
    followers = []
    for metric, by_task in task_analysis.correlations(finished).items():
        values = list(by_task.values())
        followers.append(
            {
                "metric": metric,
                "rank correlation with accuracy, median": task_analysis.median(values),
                "lowest": min(values),
                "tasks": len(values),
            }
        )
    correlations = ("rank correlation with accuracy, median", "lowest")
    correlation_formats: dict[str, html.Format] = dict.fromkeys(correlations, "{:.2f}".format)
    noise = (
        "Noise of one accuracy. Sampling: choice of examples. Checkpoint: deviation of the last "
        "evaluations of a run from a line. Seed: between seeds. Signal to noise combines sampling "
        "noise and the larger of the other two."
    )
    order = "Rank correlation of each metric with accuracy over the runs (1: same order):"
    return html.join_html(
        [
            html.html_table(lines, formats, is_sortable=True),
            html.paragraph(noise, "muted"),
            html.paragraph(order, "muted"),
            html.html_table(followers, correlation_formats),
        ]
    )


def _task(sweep: summary.SweepSummary, verdict: dict) -> dict[str, Any]:
    """Return the table row of one task, as values."""
    line = {
        "task": elements.task_name(verdict["task"]),
        "chance": verdict["chance"],
        "best accuracy": verdict["best"],
    }
    predictions = (sweep.prediction or {}).get("tasks")
    if predictions:
        prediction = predictions.get(verdict["task"], {})
        has_value = "value" in prediction
        bounds = tuple(prediction[key] for key in ("value", "lo", "hi")) if has_value else ()
        measured = records.task_value(sweep.target or {}, verdict["task"])
        line["predicted for the target"] = bounds
        line["measured"] = measured if records.is_finite(measured) else None
    return line | {
        "signal": verdict["signal"],
        "sampling noise": verdict["sampling"],
        "checkpoint noise": verdict["checkpoint"],
        "seed noise": verdict["seed"],
        "signal to noise": verdict["to_noise"],
        "verdict": verdict["verdict"],
    }


def _format_prediction(prediction: tuple[float, ...]) -> str:
    if not prediction:
        return "none"
    value, lo, hi = prediction
    return f"{value:.2f} [{lo:.2f}, {hi:.2f}]"


def _excluded(sweep: summary.SweepSummary) -> Markup:
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
            planned = row["steps"] * row["data.batch_size"] * row["data.seq_len"]
            share = f"trained on {row[records.TOKENS] / planned:.0%} of its tokens"
            lines.append(line | {"reason": f"{row.get('reason') or 'not finished'}; {share}"})
        elif sweep.fit and not elements.is_in_fit(row, sweep.fit) and row is not sweep.target:
            reason = reasons.get(row["name"]) or _reason_outside_fit(sweep, row)
            lines.append(line | {"reason": reason})
    if not lines:
        return html.paragraph("None: every run is done and in the law.", "muted")
    return html.html_table(lines)


def _reason_outside_fit(sweep: summary.SweepSummary, row: dict) -> str:
    """Return why a finished run is not in the law."""
    if row not in sweep.without_trunks:
        return "a trunk run: see its branches"
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


def _cost(sweep: summary.SweepSummary) -> Markup:
    """Return the planned and the actual cost of each run, and the sums over started runs."""
    actual = {
        row["name"]: row | {records.FLOPS: summary.incremental_flops(row)} for row in sweep.rows
    }
    pairs = [(plan, actual.get(plan["name"], {})) for plan in sweep.plan]
    started = [(plan, row) for plan, row in pairs if row]
    if len(started) > 1:
        planned_sum, actual_sum = (
            {key: sum(costs.get(key) or 0 for costs in all_costs) for key in COST_COLUMNS}
            for all_costs in zip(*started, strict=True)
        )
        pairs.append(({"name": f"all {len(started)} started"} | planned_sum, actual_sum))
    formats = {"time over plan": "{:.2f}×".format}
    for column in summary.COSTS:
        formats |= {f"{column.title}, planned": column.format}
        formats |= {f"{column.title}, actual": column.format}
    return html.html_table([_cost_line(plan, row) for plan, row in pairs], formats)


def _cost_line(plan: dict, row: dict) -> dict[str, Any]:
    line: dict[str, Any] = {"run": elements.short_run_name(plan)}
    for column in summary.COSTS:
        line[f"{column.title}, planned"] = column.value(plan)
        line[f"{column.title}, actual"] = column.value(row)
    planned, actual = plan.get("seconds"), row.get("seconds")
    line["time over plan"] = None
    if records.is_finite(planned) and records.is_finite(actual) and planned > 0 and actual > 0:
        line["time over plan"] = actual / planned
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
    shared = "\n".join(f"{f} = {v[0]}" for f, v in values.items() if v and f not in varied)
    commits = {row["code.commit"].strip("+") for row in sweep.rows if row.get("code.commit")}
    checkout = f"git checkout {commits.pop()}\n" if len(commits) == 1 else ""
    return html.join_html(
        [
            html.code_block(checkout + sweep.facts.get("command", "unknown command")),
            html.paragraph(f"Started {sweep.facts.get('created', 'at an unknown time')}.", "muted"),
            html.html_table(facts),
            html.collapsed_section(
                "Config fields that differ between runs", html.html_table(by_run)
            ),
            html.collapsed_section("Config fields that all runs share", html.code_block(shared)),
        ]
    )
