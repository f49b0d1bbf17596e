"""Section of the report about time and cost: totals against the plan, and every run."""

from typing import Any

from markupsafe import Markup

from lm.reports import device_cost, html, summary
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
    flops = sum(map(summary.incremental_flops, sweep.rows))
    hours = sum(map(device_cost.used_device_hours, sweep.rows))
    lines = [
        f"Spent: {style.power_of_ten(flops)} training FLOPs,"
        f" {summary.format_duration(seconds)} of training (the sum over the runs, not elapsed"
        f" time), {hours:,.2f} device-hours (hours times devices) with compilation and evaluation."
        f" {setup_section.describe_hardware(sweep.rows)}"
    ]
    lines += [f"{name}: {value}." for name, value in rates.describe(hours).items()]
    ratio, n_runs = time_ratio(sweep)
    if ratio:
        runs = elements.count_label(range(n_runs))
        lines.append(f"Against the plan: {runs} took {ratio:.2f} times the planned training time.")
    n_left = len(sweep.missing) + sum(row["status"] not in ENDED for row in sweep.rows)
    if n_left:
        lines.append(f"Not finished: {elements.count_label(range(n_left))}.")
    return lines


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
    table = html.html_table([_cost(plan, row) for plan, row in pairs], formats)
    if len(sweep.without_trunks) == len(sweep.rows):
        return table
    note = "The FLOPs and the time of a cooldown branch do not contain those of its trunk."
    return html.join_html([table, html.paragraph(note, "muted")])


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
