"""Section of the report about the prediction for the largest run, and its result."""

from collections import Counter
from typing import Any

from markupsafe import Markup

from lm.reports import html, summary
from lm.reports.audit import prediction_audit, prediction_chain, target_prediction
from lm.reports.plots import elements, style
from lm.reports.sections import source_section
from lm.reports.sections.abilities import ability_prediction_section
from lm.runs import records, run_selection, task_results


def prediction_section(sweep: summary.SweepSummary, figures: Markup) -> Markup:
    """Return predictions and results of losses and abilities, and the figures."""
    parts = [_predictions(sweep), figures]
    if source_section.load_results(sweep):
        losses = source_section.source_losses(sweep)
        parts.append(html.collapsed_section("Predicted losses of the sources", losses))
    if (sweep.prediction or {}).get(target_prediction.ABILITIES):
        abilities = ability_prediction_section.predicted_abilities(sweep)
        parts += [html.subheading("Predicted abilities"), abilities]
    return html.join_html(parts)


def _predictions(sweep: summary.SweepSummary) -> Markup:
    """Return the predictions of each law for the target beside the measured value."""
    if not sweep.prediction:
        reason = f": {sweep.refused}" if sweep.refused else ""
        return html.paragraph(f"No prediction was stored{reason}.", "muted")
    by_law = {"size alone": sweep.prediction, "size and tokens": sweep.prediction.get("joint", {})}
    lines, notes = [], []
    sizes = {row["name"]: row.get(records.N_PARAMS) or 0.0 for row in sweep.rows}
    for law, prediction in by_law.items():
        fitted = [row for row in sweep.rows if row["name"] in prediction.get("runs", ())]
        refusal = run_selection.refuse_joint_law(fitted) if law == "size and tokens" else ""
        if refusal and "value" in prediction:
            notes.append(f"The stored prediction of the law of {law} is not shown: {refusal}.")
        elif records.is_finite(prediction.get("value")):
            lines.append(_prediction(sweep, law, prediction))
            names = sorted(prediction.get("runs", ()), key=lambda name: sizes.get(name, 0.0))
            runs = ", ".join(elements.short_run_name({"name": name}) for name in names)
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
    plurals = {prediction_chain.CONTRADICTION: "contradictions"}
    counts = ", ".join(
        f"{n_links[status]} {status if n_links[status] == 1 else plurals.get(status, status)}"
        for status in prediction_chain.STATUSES
    )
    original = ""
    if sweep.facts.get(prediction_chain.ARCHIVED):
        original = (
            " An archive shortens paths in prediction.json, so the original has another hash, which"
            " the event of the predicted run records."
        )
    text = (
        "Audit of the records from the fitted runs over the prediction to the result, in links. A"
        f" link compares two records, such as a file and its hash. Links: {counts}. A link is not"
        " verifiable if a record is missing, if an archive has rounded or shortened it, or if the"
        " code has changed. SHA-256 of prediction.json in this folder:"
        f" {prediction_audit.prediction_sha256(sweep.path)}."
        f"{original} This command lists the links: uv run python -m"
        f" experiments.report --verify={sweep.path}."
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
        "stored at": summary.format_time(main.get("written", "")),
    }


def _format_bounds(interval: tuple[float, float]) -> str:
    """Format the interval of a predicted loss."""
    lo, hi = interval
    if not records.is_finite(lo):
        return "none"
    return f"{style.format_number(lo)} to {style.format_number(hi)}"
