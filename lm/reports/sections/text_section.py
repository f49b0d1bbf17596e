"""Section of the report about the text: documents and splits of each source."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from lm.reports import html, summary
from lm.runs import records, short_names

COLUMNS = {
    "documents.train": "training documents",
    "documents.heldout": "held-out documents",
    "duplicates": "duplicates dropped",
}


def text_documents(sweep: summary.SweepSummary) -> Markup:
    """Return a table of the documents of each source, and a warning of few held-out documents.

    The facts of a run record the documents of each split, the duplicates, and the documents that
    were dropped, by reason. Runs of earlier versions do not record them.
    """
    sources = {source for row in sweep.rows for source in row.get("data.sources", ())}
    if not sources:
        return html.paragraph("No run has started.", "muted")
    names = short_names.shorten_sources(sorted(sources))
    facts = {key: row[key] for row in sweep.rows for key in row}
    lines = [_source(facts, source, name) for source, name in names.items()]
    columns = [key for key in lines[0] if any(line[key] is not None for line in lines)]
    if len(columns) == 1:
        shown = ", ".join(names.values())
        text = f"Sources: {shown}. These runs do not record the number of held-out documents."
        return html.paragraph(text, "muted")
    lines = [{key: line[key] for key in columns} for line in lines]
    warnings = [text for row in sweep.rows for text in row.get("corpus.warnings", ())]
    notes = list(dict.fromkeys(warnings))
    formats = dict.fromkeys(columns[1:], "{:,}".format) | {"other documents dropped": str}
    return html.join_html(
        [html.html_table(lines, formats), *(html.paragraph(note, "note") for note in notes)]
    )


def _source(columns: Mapping[str, Any], source: str, name: str) -> dict[str, Any]:
    """Return the table row of one source. Values that no run records are None."""
    facts = {key: value for key, value in columns.items() if key.endswith(f".{source}")}
    line: dict[str, Any] = {"source": name}
    for key, title in COLUMNS.items():
        value = facts.get(f"{key}.{source}")
        line[title] = value if records.is_finite(value) else None
    reasons = {
        key.removeprefix("dropped.").removesuffix(f".{source}"): value
        for key, value in facts.items()
        if key.startswith("dropped.") and value
    }
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items()))
    return line | {"other documents dropped": dropped or None}
