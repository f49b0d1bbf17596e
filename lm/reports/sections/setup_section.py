"""First section of the report: models, text, recipe and hardware of a sweep, in three lines."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from lm.config.schedules import batch_size_schedule
from lm.reports import html, summary
from lm.reports.plots import elements, style
from lm.runs import records, run_selection, short_names

MAX_SOURCES = 8  # sources that the line of the text names
ORIGINS = {
    "code": "source code of Python's standard library",
    "docs": "docstrings of Python and of its packages",
}


def training_setup(sweep: summary.SweepSummary) -> Markup:
    """Return three lines: the models, the text, and the recipe with its hardware."""
    if not sweep.rows:
        planned = elements.count_label(sweep.missing)
        return html.paragraph(f"No run has started. Planned: {planned}.", "muted")
    lines = {
        "Models": describe_models(sweep),
        "Text": describe_text(sweep.rows),
        "Recipe": f"{describe_recipe(sweep.rows)} {describe_hardware(sweep.rows)}",
    }
    items = [Markup("<dt>{}</dt><dd>{}</dd>").format(name, text) for name, text in lines.items()]
    return Markup('<dl class="facts">{}</dl>').format(html.join_html(items))


def describe_models(sweep: summary.SweepSummary) -> str:
    """Return a sentence about the number of runs, the model family, its sizes and its seeds."""
    rows = sweep.rows
    n_trunks = len(rows) - len(run_selection.without_trunks(rows))
    n_runs = len(rows) + len(sweep.missing)
    n_done = sum(row["status"] == "done" for row in rows)
    counts = f"{elements.count_label(range(n_runs))}, {n_done} done"
    if n_trunks:
        counts += f" ({n_trunks} of them trunk runs, from which cooldown branches start; laws and"
        counts += f" figures use the other {len(rows) - n_trunks})"
    sizes = sorted({row[records.N_PARAMS] for row in rows if row.get(records.N_PARAMS)})
    text = f"{counts}, of {_family(rows)}"
    if sizes:
        number = f"{len(sizes)} sizes, " if len(sizes) > 1 else ""
        text += f": {number}{_range(sizes, style.format_si)} parameters without embeddings"
    seeds = _values(rows, "seed")
    return f"{text}; {f'{len(seeds)} seeds' if len(seeds) > 1 else '1 seed'}."


def _family(rows: Sequence[dict]) -> str:
    """Return the model family of the rows as text."""
    n_experts = _values(rows, "model.n_experts")
    kind = "decoder-only transformers"
    if n_experts and max(n_experts) > 0:
        kind += f" with {_range(n_experts)} experts per layer"
    details = [f"{_join(rows, 'model.mlp')} MLP", f"{_join(rows, 'model.norm')} norm"]
    details.append(f"{_join(rows, 'model.parametrization')} parametrization")
    return f"{kind} ({', '.join(text for text in details if not text.startswith(' '))})"


def describe_text(rows: Sequence[dict]) -> str:
    """Return a sentence about tokens per run, tokens per parameter, sources and tokenizer."""
    budgets = [_planned_tokens(row) for row in rows]
    ratios = [
        tokens / row[records.N_PARAMS]
        for tokens, row in zip(budgets, rows, strict=True)
        if tokens and row.get(records.N_PARAMS)
    ]
    text = f"{_range([b for b in budgets if b], style.format_si)} tokens per run"
    if ratios:
        text += f" ({_range(ratios, '{:.3g}'.format)} per parameter)"
    sources = sorted({source for row in rows for source in row.get("data.sources") or ()})
    names = short_names.shorten_sources(sources)
    more = f" and {len(names) - MAX_SOURCES} more" if len(names) > MAX_SOURCES else ""
    if names:
        shown = [f"{name}{_describe_origin(source)}" for source, name in names.items()]
        text += f" from {', '.join(shown[:MAX_SOURCES])}{more}"
    if tokenizer := _join(rows, "data.tokenizer"):
        text += f"; tokenizer {tokenizer}"
    return f"{text}{_describe_passes(rows)}."


def _describe_origin(source: str) -> str:
    """Return the origin of a source in parentheses, "" for a source of the user.

    source: full name, because a file may have the short name of a built-in source: text:my/docs.
    """
    origin = "generated" if source.startswith("tasks:") else ORIGINS.get(source, "")
    return f" ({origin})" if origin else ""


def _describe_passes(rows: Sequence[dict]) -> str:
    """Return the unique tokens and the most passes over a source as text, "" if unknown."""
    unique = _values(rows, "unique_tokens")
    passes = [
        row[key]
        for row in rows
        for key in row
        if key.startswith("epochs.") and records.is_finite(row[key])
    ]
    if not unique or not passes:
        return ""
    text = f"; {_range(unique, style.format_si)} unique tokens, of which a run"
    return f"{text} passes over a source at most {max(passes):.2g} times"


def _planned_tokens(row: dict) -> float:
    """Return the tokens of a whole run, 0 if its schedule is unknown."""
    if row["status"] == "done" and records.is_finite(row.get(records.TOKENS)):
        return row[records.TOKENS]
    if not (row.get("steps") and row.get("data.batch_size") and row.get("data.seq_len")):
        return 0
    return batch_size_schedule.BatchSizeSchedule.from_row(row).count_tokens(row["steps"])


def describe_recipe(rows: Sequence[dict]) -> str:
    """Return a sentence about optimizer, schedule, learning rate and batch."""
    schedules = _join(rows, "optim.schedule").replace("wsd", "warmup-stable-decay (wsd)")
    text = f"{_join(rows, 'optim.name')}, {schedules} schedule"
    rates = _values(rows, "optim.lr")
    if rates:
        text += f", learning rate {_range(rates, '{:.3g}'.format)}"
    batches, lengths = _values(rows, "data.batch_size"), _values(rows, "data.seq_len")
    if batches and lengths:
        text += f", batches of {_range(batches)} sequences of {_range(lengths)} tokens"
    return f"{text}, {_join(rows, 'model.dtype')}."


def describe_hardware(rows: Sequence[dict]) -> str:
    """Return a sentence about the devices of the runs."""
    devices = sorted({(row.get("devices"), row.get("devices.kind")) for row in rows}, key=str)
    texts = [f"{n} {kind}" for n, kind in devices if n and kind]
    if not texts:
        return "The records do not name the devices."
    processors = {_processor(row) for row in rows} - {""}
    names = f" ({', '.join(sorted(processors))})" if processors else ""
    return f"Devices per run: {' or '.join(texts)}{names}."


def _processor(row: dict) -> str:
    """Return the name of the CPU of a run without its numbers and instruction sets."""
    words = str(row.get("devices.cpu_model") or "").split()
    return " ".join(itertools.takewhile(lambda word: not word.isdigit(), words))


def _values(rows: Sequence[dict], key: str) -> list[Any]:
    """Return the sorted distinct finite values of a column."""
    return sorted({row[key] for row in rows if records.is_finite(row.get(key))})


def _join(rows: Sequence[dict], key: str) -> str:
    """Return the distinct values of a text column, joined by "or"."""
    return " or ".join(sorted({str(row[key]) for row in rows if row.get(key)}))


def _range(values: Sequence[float], format_value: Callable[[float], str] = str) -> str:
    """Return "SMALLEST to LARGEST", the only value, or "unknown" for no values."""
    if not values:
        return "unknown"
    texts = list(dict.fromkeys(format_value(value) for value in (min(values), max(values))))
    return " to ".join(texts)
