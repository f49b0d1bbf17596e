"""Write the HTML report of a sweep: setup, law, prediction, next run, abilities, cost, runs.

    path = report.write_report("runs/quickstart")   # report.html, figures/NAME.png and NAME.svg

The page also lists unfinished runs, laws that could not be fitted, and predictions outside their
interval. The functions read only the records, so a report can be written at any time. With
refresh=SECONDS an open page reloads at this interval, for a sweep that is training.
"""

from pathlib import Path

from lm.config import run_files
from lm.reports import device_cost, figures, html, summary, task_trends
from lm.reports.audit import prediction_chain, prediction_results
from lm.reports.plots import elements, explanations, style
from lm.reports.plots.geometry import inline_svg
from lm.reports.sections import (
    cost_section,
    law_section,
    next_run_section,
    prediction_section,
    report_sections,
    reproduction_section,
    setup_section,
)
from lm.reports.sections.abilities import ability_section
from lm.reports.tables import long_tables
from lm.runs import provenance, records


def write_report(
    sweep_dir: str | Path,
    refresh: float = 0.0,
    rates: device_cost.DeviceRates | None = None,
) -> Path:
    """Write report.html and figures/ into the directory of a sweep. Return the path of the page.

    refresh: interval in seconds at which an open page reloads, 0 for never. With a refresh, no
    figures are written to files, which saves most of the time. rates: price and power of a device.

    Raises ValueError if the directory contains neither runs nor sweep.json, or runs of another
    version.
    """
    return write_summary(summary.load_summary(sweep_dir), refresh, rates)


def write_summary(
    sweep: summary.SweepSummary,
    refresh: float = 0.0,
    rates: device_cost.DeviceRates | None = None,
) -> Path:
    """Write the report of a loaded sweep. Return the path of the page. See `write_report`."""
    rates = rates or device_cost.DeviceRates()
    figure_elements, shared_note = {}, ability_section.budget_sentence(sweep)
    drawn = figures.all_figures(sweep)
    groups = report_sections.FIGURES
    ability_figures = {*groups["abilities"], *groups["flat abilities"]}
    for name, (figure, meta) in drawn.items():
        svg = inline_svg.render_svg(figure, meta)
        if not refresh:
            style.save_figure(figure, sweep.path / run_files.FIGURES / name, meta, svg)
        files = "" if refresh else f"{run_files.FIGURES}/{name}"
        has_interval = sweep.fit is not None and bool(sweep.fit.ensemble)
        text = explanations.explain_figure(name, sweep.fit is not None, has_interval)
        is_large = name == report_sections.main_figure(drawn)
        omitted = shared_note if name in ability_figures else ""
        figure_elements[name] = html.html_figure(figure, files, text, is_large, omitted, svg)
    results = prediction_results.load_prediction_results(sweep.path, sweep.rows)
    prediction_results.write_results(sweep.path, results)
    long_tables.write_runs(sweep.path, sweep.rows)
    footer = _footer(sweep)
    if sweep.fingerprint and not refresh:  # a page that reloads has no files of figures
        footer = html.tag_fingerprint(footer, sweep.fingerprint)
    return html.write_page(
        sweep.path / "report.html",
        title=sweep.path.name or sweep.path.resolve().name,
        headline=(*summary.headline(sweep), *overview_lines(sweep)),
        tiles=[*_tiles(sweep), *_cost_tiles(sweep, rates)],
        sections=report_sections.all_sections(sweep, figure_elements, rates),
        footer=footer,
        dark_colors=style.dark_theme_map(sweep.rows),
        refresh=refresh,
    )


def overview_lines(sweep: summary.SweepSummary) -> list[str]:
    """Return at most four short answers below the headline: test, next size, abilities, effort."""
    lines = [_describe_test(sweep), _describe_next(sweep), _describe_tasks(sweep)]
    if sweep.rows:
        seconds = cost_section.elapsed_seconds(sweep.rows)
        elapsed = ""
        if seconds:
            duration = summary.format_duration(seconds)
            elapsed = f"Elapsed time while a run was training: {duration}. "
        hardware = setup_section.describe_hardware(sweep.rows)
        repetition = reproduction_section.describe_repetition(sweep)
        lines.append(f"{elapsed}{hardware} {repetition}")
    return [line for line in lines if line]


def _describe_test(sweep: summary.SweepSummary) -> str:
    """Return the audit, a simple forecast and the other law of the prediction, "" without one."""
    prediction, measured = sweep.prediction, sweep.measured
    if not prediction:
        return ""
    statuses = {link.status for link in sweep.audit_links}
    is_archive = bool(sweep.facts.get(prediction_chain.ARCHIVED))
    has_reason = is_archive and prediction_chain.UNVERIFIABLE in statuses
    reason = " (an archive rounds and shortens records)" if has_reason else ""
    sentences = [f"Audit links: {prediction_section.count_links(sweep)}{reason}."]
    y = prediction["y"]
    fitted = [
        row
        for row in sweep.finished
        if row["name"] in prediction["runs"] and records.is_finite(row.get(y))
    ]
    if measured is not None and fitted:
        largest = fitted[-1]
        deviation = summary.relative_error(measured, largest[y])
        name = elements.short_run_name(largest)
        sentences.append(
            f"For comparison: the result is {deviation} the loss of {name}, the largest fitted run."
        )
    joint = prediction_section.joint_prediction(sweep)
    if measured is not None and joint:
        text = summary.relative_error(measured, joint["value"])
        sentences.append(f"The result is {text} the prediction of the law of size and tokens.")
    if sweep.fit and not law_section.is_limit_determined(sweep.fit):
        sentences.append("These runs do not determine the limit E of the law.")
    return " ".join(sentences)


def _describe_tasks(sweep: summary.SweepSummary) -> str:
    """Return the numbers of tasks by baseline and of scores by trend, "" without tasks."""
    counts = ability_section.describe_counts(sweep)
    directions = [trend.direction for trend in task_trends.fit_trends(sweep.finished)]
    if not counts or not directions:
        return counts
    return (
        f"{counts} Of {len(directions)} scores, {directions.count('improves')} improve with size"
        f" and {directions.count('worsens')} get worse."
    )


def _describe_next(sweep: summary.SweepSummary) -> str:
    """Return the size for ten times the compute and its caution, "" without a law."""
    if sweep.fit is None:
        return ""
    advice = next_run_section.advise_size(sweep)
    factor = f"{next_run_section.COMPUTE_FACTOR:g}"
    return f"With {factor} times the compute: {advice.size} {advice.caution}".rstrip()


def _footer(sweep: summary.SweepSummary) -> str:
    """Return the version that wrote the page, and other versions that trained the runs."""
    current = provenance.package_version()
    text = f"Written by lm-scaling {current} from the records of"
    text += f" {elements.count_label(sweep.rows)}."
    versions = {str(row["code.version"]) for row in sweep.rows if row.get("code.version")}
    if versions - {current}:
        text += f" The runs were trained with version {', '.join(sorted(versions))}."
    return text


def _tiles(sweep: summary.SweepSummary) -> list[tuple[str, str]]:
    """Return the most important numbers of the sweep as (name, text)."""
    sizes, losses, seconds = (
        [row[key] for row in sweep.rows if records.is_finite(row.get(key))]
        for key in (records.N_PARAMS, sweep.loss_column, "seconds")
    )
    n_done = sum(row["status"] == "done" for row in sweep.rows)
    tiles = [("runs done", f"{n_done} of {len(sweep.rows) + len(sweep.missing)}")]
    if sizes:
        size_range = f"{style.format_si(min(sizes))} to {style.format_si(max(sizes))}"
        size_range += f" ({max(sizes) / min(sizes):.0f}×)"
        if len(set(sizes)) == 1:
            size_range = style.format_si(sizes[0])
        tiles.append(("parameters without embeddings", size_range))
    if losses:
        unit = "nats per token" if sweep.loss_column == records.LOSS else "bits per byte"
        tiles.append((f"lowest loss, {unit}", style.format_number(min(losses))))
    flops = sum(device_cost.incremental_cost(row, records.FLOPS) for row in sweep.rows)
    tiles.append(("total FLOPs", style.power_of_ten(flops)))
    return [*tiles, ("training time, sum over the runs", summary.format_duration(sum(seconds)))]


def _cost_tiles(
    sweep: summary.SweepSummary, rates: device_cost.DeviceRates
) -> list[tuple[str, str]]:
    """Return device-hours, price and energy of all runs; nothing without rates."""
    device_hours = sum(map(device_cost.used_device_hours, sweep.rows))
    costs = list(rates.describe(device_hours).items())
    return [("device-hours", f"{device_hours:,.2f}"), *costs] if costs else []
