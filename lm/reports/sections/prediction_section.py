"""Section of the report about the prediction for the largest run, and its result."""

import shlex
from collections import Counter
from typing import Any

from markupsafe import Markup

from lm.reports import html, summary
from lm.reports.audit import (
    prediction_audit,
    prediction_chain,
    prediction_times,
    target_prediction,
    verdict_rounding,
)
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


def joint_prediction(sweep: summary.SweepSummary) -> dict:
    """Return the stored prediction of the law of size and tokens, {} if none is shown."""
    prediction = (sweep.prediction or {}).get("joint", {})
    fitted = [row for row in sweep.rows if row["name"] in prediction.get("runs", ())]
    is_shown = records.is_finite(prediction.get("value"))
    return prediction if is_shown and not run_selection.refuse_joint_law(fitted) else {}


def _predictions(sweep: summary.SweepSummary) -> Markup:
    """Return the predictions of each law for the target beside the measured value."""
    if not sweep.prediction:
        reason = f": {sweep.refused}" if sweep.refused else ""
        return html.paragraph(f"No prediction was stored{reason}.", "muted")
    by_law = {"size alone": sweep.prediction, "size and tokens": sweep.prediction.get("joint", {})}
    lines, notes = [], [prediction_times.describe_times(sweep.prediction, sweep.rows)]
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
                low, high = (prediction[f"{side}_if_form_right"] for side in ("lo", "hi"))
                bounds = _format_bounds((low, high, verdict_rounding.MIN_DIGITS))
                notes.append(
                    f"The interval of the law of {law} includes uncertainty about its form. If the"
                    f" form is right, the interval is {bounds}."
                )
        elif prediction:
            notes.append(f"The law of {law} gave no prediction: {prediction.get('refused', '')}.")
    interval_columns = [name for name in lines[0] if name.endswith("% interval")]
    formats = {"predicted": style.format_number} | dict.fromkeys(interval_columns, _format_bounds)
    paragraphs = [html.paragraph(note, "muted") for note in notes if note]
    return html.join_html([html.html_table(lines, formats), *paragraphs, _audit(sweep)])


def count_links(sweep: summary.SweepSummary) -> str:
    """Return the numbers of links of the audit by their result as text."""
    n_links = Counter(link.status for link in sweep.audit_links)
    plurals = {prediction_chain.CONTRADICTION: "contradictions"}
    return ", ".join(
        f"{n_links[status]} {status if n_links[status] == 1 else plurals.get(status, status)}"
        for status in prediction_chain.STATUSES
    )


def _audit(sweep: summary.SweepSummary) -> Markup:
    """Return the number of verified links, the hash of the prediction, and contradictions."""
    original = ""
    if sweep.facts.get(prediction_chain.ARCHIVED):
        original = (
            " An archive shortens paths in prediction.json, so the original has another hash, which"
            " the event of the predicted run records."
        )
    text = (
        f"Audit of the records of this prediction. Links: {count_links(sweep)}. A link compares two"
        " records, such as a file and its hash, from the fitted runs over the prediction to the"
        " result. It is not verifiable if a record is missing, if an archive has rounded or"
        " shortened it, or if the code has changed. SHA-256 of prediction.json in this folder:"
        f" {prediction_audit.prediction_sha256(sweep.path)}.{original} This command lists the"
        " links, and fits the laws again:"
    )
    verify = shlex.quote(f"--verify={sweep.path}")
    command = f"uv run python -m experiments.report {verify}"
    contradictions = [
        html.paragraph(f"Contradiction: {link.text}.", "note")
        for link in sweep.audit_links
        if link.status == prediction_chain.CONTRADICTION
    ]
    parts = [html.paragraph(text, "muted"), html.code_block(command), *contradictions]
    return html.join_html(parts)


def _prediction(sweep: summary.SweepSummary, law: str, prediction: dict) -> dict[str, Any]:
    """Return the table row of one prediction for the target, as values."""
    main, measured = sweep.prediction or {}, sweep.measured
    value, lo, hi = elements.predicted_interval(prediction)
    result, deviation, is_inside = "not yet", None, None
    digits = verdict_rounding.MIN_DIGITS
    if measured:
        if records.is_finite(lo):
            digits = verdict_rounding.count_digits(measured, lo, hi)
        error = task_results.standard_error(sweep.target or {}, main["y"])
        result = summary.format_measurement(summary.Measurement(measured, error), digits)
        deviation = summary.relative_error(measured, value)
        if records.is_finite(lo):
            is_inside = "yes" if lo <= measured <= hi else "no"
    return {
        "run": main["target"],
        "law": law,
        "quantity": style.axis_label(main["y"]),
        "predicted": value,
        f"{main['level']:.0%} interval": (lo, hi, digits),
        "measured": result,
        "deviation": deviation,
        "inside the interval": is_inside,
        "stored at": summary.format_time(main.get("written", "")),
    }


def _format_bounds(interval: tuple[float, ...]) -> str:
    """Format the interval of a predicted loss: two bounds, and the number of their digits."""
    lo, hi, digits = interval
    return f"{lo:#.{digits}g} to {hi:#.{digits}g}" if records.is_finite(lo) else "none"
