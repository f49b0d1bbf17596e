"""Section of the report about time and cost: totals against the plan, and every run."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lm.reports import device_cost, html, summary
from lm.reports.audit import prediction_times
from lm.reports.plots import elements, goodput, style
from lm.reports.sections import setup_section
from lm.runs import records

ENDED = ("done", "diverged")  # status of runs that no command continues
SUMMED_COSTS = (records.TOKENS, records.FLOPS, "seconds")


def cost_section(
    sweep: summary.SweepSummary, rates: device_cost.DeviceRates, figures: Markup
) -> Markup:
    """Return sentences about the whole cost, the figures, and the tables of the runs to unfold."""
    sentences = html.text_list(describe_cost(sweep, rates))
    parts = [sentences, figures]
    if sweep.plan:
        table = _costs(sweep)
        parts.append(html.collapsed_section("Planned and actual cost of every run", table))
    times = goodput.phase_table(sweep.rows)
    if times:
        formats: dict[str, html.Format] = dict.fromkeys(goodput.PHASES.values(), "{:.1%}".format)
        formats["seconds"] = "{:.0f}".format
        parts.append(html.collapsed_section("Time by phase", html.html_table(times, formats)))
    return html.join_html(parts)


def describe_cost(sweep: summary.SweepSummary, rates: device_cost.DeviceRates) -> list[str]:
    """Return sentences about FLOPs, time, device-hours, price, the plan and utilization."""
    if not sweep.rows:
        return ["No run has started, so nothing was spent."]
    seconds = sum(row["seconds"] for row in sweep.rows if records.is_finite(row.get("seconds")))
    flops, tokens = (
        sum(device_cost.incremental_cost(row, column) for row in sweep.rows)
        for column in (records.FLOPS, records.TOKENS)
    )
    hours = sum(map(device_cost.used_device_hours, sweep.rows))
    elapsed = elapsed_seconds(sweep.rows)
    between = ""
    if elapsed:
        duration = summary.format_duration(elapsed)
        between = f" Elapsed time while a run was training: {duration}."
    lines = [
        f"Spent: {style.power_of_ten(flops)} training FLOPs on {style.format_si(tokens)} tokens,"
        f" {summary.format_duration(seconds)} of training (the sum over the runs, not elapsed"
        f" time), {hours:,.2f} device-hours (hours times devices) with compilation and evaluation."
        f"{between} {setup_section.describe_hardware(sweep.rows)}"
    ]
    lines += [f"{name}: {value}." for name, value in rates.describe(hours).items()]
    ratio, n_runs = time_ratio(sweep)
    if ratio:
        runs = elements.count_label(range(n_runs))
        lines.append(
            f"Against the plan: {runs} took {ratio:.2f} times the planned training time"
            f"{_ratios_by_devices(sweep)}."
        )
    n_left = len(sweep.missing) + sum(row["status"] not in ENDED for row in sweep.rows)
    if n_left:
        lines.append(f"Not finished: {elements.count_label(range(n_left))}.")
    return lines


def elapsed_seconds(rows: Sequence[Mapping]) -> float:
    """Return the time during which at least one run was training, 0.0 if a time is unknown.

    It is the length of the union of the intervals from the start to the end of each run. Time
    between two sessions of a sweep is not counted, and time of parallel runs is counted once.
    """
    intervals = []
    for row in rows:
        started, ended = (prediction_times.parse_seconds(row.get(k)) for k in ("started", "ended"))
        if started is None or ended is None:
            return 0.0
        intervals.append((started, ended))
    total, last = 0.0, -math.inf
    for started, ended in sorted(intervals):
        total += max(0.0, ended - max(started, last))
        last = max(last, ended)
    return total


def _ratios_by_devices(sweep: summary.SweepSummary) -> str:
    """Return the ratio of each number of devices as text, "" if all runs have the same number."""
    values = {row.get("devices") for row in sweep.rows}
    numbers = sorted(value for value in values if records.is_finite(value))
    if len(numbers) < 2:
        return ""
    texts = []
    for number in numbers:
        rows = [row for row in sweep.rows if row.get("devices") == number]
        ratio, n_runs = time_ratio(dataclasses.replace(sweep, rows=rows))
        if ratio:
            runs = elements.count_label(range(n_runs))
            texts.append(f"{runs} on {number} device{'s' if number > 1 else ''} {ratio:.2f} times")
    return f": {', '.join(texts)}" if texts else ""


def time_ratio(sweep: summary.SweepSummary) -> tuple[float, int]:
    """Return actual over planned time of the finished runs, and their number; 0.0 if unknown."""
    actual = {row["name"]: row.get("seconds") for row in sweep.rows if row["status"] == "done"}
    pairs = [
        (float(plan["seconds"]), float(actual[plan["name"]] or 0.0))
        for plan in sweep.plan
        if records.is_finite(plan.get("seconds")) and records.is_finite(actual.get(plan["name"]))
    ]
    planned = sum(seconds for seconds, _ in pairs)
    return (sum(seconds for _, seconds in pairs) / planned if planned else 0.0), len(pairs)


def _costs(sweep: summary.SweepSummary) -> Markup:
    """Return the planned and the actual cost of each run, and the sums over started runs."""
    columns = (records.TOKENS, records.FLOPS)
    actual = {
        row["name"]: row | {key: device_cost.incremental_cost(row, key) for key in columns}
        for row in sweep.rows
    }
    planned = map(_without_shared_tokens, sweep.plan)
    pairs = [(plan, actual.get(plan["name"], {})) for plan in planned]
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
    table = html.html_table([_cost(plan, row) for plan, row in pairs], formats)
    if len(sweep.without_trunks) == len(sweep.rows):
        return table
    note = "Tokens, FLOPs and time of a cooldown branch do not contain those of its trunk."
    return html.join_html([table, html.paragraph(note, "muted")])


def _without_shared_tokens(plan: Mapping) -> dict:
    """Return a planned cost whose tokens, like its FLOPs, do not contain those of a trunk run."""
    flops, shared = plan.get(records.FLOPS), plan.get("flops_shared")
    if not (flops and shared and plan.get(records.TOKENS)):
        return dict(plan)
    # All tokens of a run cost the same.
    return dict(plan) | {records.TOKENS: round(plan[records.TOKENS] * flops / (flops + shared))}


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
