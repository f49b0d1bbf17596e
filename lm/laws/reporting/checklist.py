"""Answers of a fit to a reporting checklist for scaling laws.

The questions follow the checklist of Li, Kudugunta and Zettlemoyer (2025, arXiv:2502.18969) in
other words. They are about the form of the law, the training of the models, the collected data, and
the fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit, run_table

UNKNOWN = "not recorded: state it in the text"
SOURCES = {
    "chinchilla": "Hoffmann et al. 2022, approach 3",
    "overtrained": "Gadre et al. 2024",
    "data_constrained": "Muennighoff et al. 2023",
    "isoflop": "Hoffmann et al. 2022, approach 2",
    "envelope": "Hoffmann et al. 2022, approach 1",
    "accuracy_from_loss": "Bhagia et al. 2024, Gadre et al. 2024",
    "two_step": "Bhagia et al. 2024",
    "one_step": "Krajewski et al. 2025",
    "transfer": "Hernandez et al. 2021",
    "broken_power": "Caballero et al. 2022",
    "kaplan": "Kaplan et al. 2020",
}
# Columns of the rows that answer a question, with the question.
RECORDED = {
    "training": {
        "Which data, tokenizer and context length": (
            *("data.sources", "corpus.hash", "data.tokenizer", "data.seq_len"),
        ),
        "Are data repeated": ("data.unique_tokens", "unique_tokens"),
        "Which optimizer, schedule and batch size": (
            *("optim.name", "optim.lr", "optim.schedule", "optim.warmup", "optim.warmup_steps"),
            *("optim.warmup_tokens", "optim.weight_decay", "optim.independent_weight_decay"),
            *("data.batch_size", "model.parametrization"),
        ),
        "Which shape of the models": ("model.d_model", "model.n_layers", "model.n_heads"),
        "Which code": ("code.version", "code.commit"),
    },
    "data": {
        "Which rows are held out": ("data.heldout_fraction", "eval.n_sequences", "data.loss_on"),
    },
}
RECORDED_COLUMNS = [
    column for table in RECORDED.values() for columns in table.values() for column in columns
]
MAX_VALUES = 3  # values of a column that an answer lists
COUNTING = {
    "params.non_embedding": "parameters without embeddings",
    "params.total": "all parameters",
    "params.active": "parameters that process a token",
    "tokens": "training tokens, repeats included",
    "flops": "training FLOPs by the convention 'full' of lm/config/flops.py",
}


@dataclass(frozen=True)
class ChecklistItem:
    """Question of the checklist with its answer."""

    section: str  # form, training, data or fit
    question: str
    answer: str

    @property
    def is_answered(self) -> bool:
        """Return True if the fit or its rows contain the answer."""
        return self.answer != UNKNOWN


@dataclass(frozen=True)
class Checklist:
    """All questions with their answers."""

    items: list[ChecklistItem]

    def __str__(self) -> str:
        lines, section = [], ""
        for item in self.items:
            if item.section != section:
                section = item.section
                lines.append(section)
            mark = "x" if item.is_answered else " "
            lines.append(f"  [{mark}] {item.question}: {item.answer}")
        n_answered = sum(item.is_answered for item in self.items)
        return "\n".join([*lines, f"{n_answered} of {len(self.items)} questions are answered"])


def fill_checklist(law_fit: fit.Fit) -> Checklist:
    """Return the answers of a fit and of its rows to the questions of the checklist.

    Raises ValueError for a law with given coefficients, which has no rows.
    """
    if law_fit.loss == "none":
        raise ValueError("a law with given coefficients has no rows: see the paper of its source")
    answers = [
        *(("form", *pair) for pair in _form(law_fit)),
        *(("training", *pair) for pair in _training(law_fit)),
        *(("data", *pair) for pair in _data(law_fit)),
        *(("fit", *pair) for pair in _fitting(law_fit)),
    ]
    return Checklist([ChecklistItem(*answer) for answer in answers])


def _form(law_fit: fit.Fit) -> list[tuple[str, str]]:
    names = {name: name for name in (*law_fit.params, *law_fit.derived)}
    fixed = ", ".join(f"{name} = {value:g}" for name, value in law_fit.fixed.items())
    columns = ", ".join(f"{letter} = {column}" for letter, column in law_fit.columns.items())
    return [
        ("Which form", law_fit.formula.format(**names)),
        ("On which work is the form based", SOURCES.get(law_fit.law, UNKNOWN)),
        ("Which variables", columns),
        ("Which parameters are fitted", ", ".join(law_fit.free) or UNKNOWN),
        ("Which parameters are fixed", fixed or "none"),
    ]


def _training(law_fit: fit.Fit) -> list[tuple[str, str]]:
    ranges = ", ".join(
        f"{letter} from {x.min():.3g} to {x.max():.3g}"
        for letter, x in zip(law_fit.inputs, law_fit.x, strict=True)
        if len(x)
    )
    counted = [
        f"{letter} = {COUNTING[column]}"
        for letter, column in law_fit.columns.items()
        if column in COUNTING
    ]
    return [
        ("How many models, in which range", f"{law_fit.n_runs} runs, {ranges}"),
        ("How are N, D and C counted", "; ".join(counted) or UNKNOWN),
        *_recorded(law_fit, "training"),
    ]


def _data(law_fit: fit.Fit) -> list[tuple[str, str]]:
    n_excluded = len(law_fit.excluded)
    return [
        ("How many rows per run", f"{law_fit.n} rows of {law_fit.n_runs} runs"),
        ("Which metric", law_fit.columns[law_fit.output]),
        *_recorded(law_fit, "data"),
        ("Is the metric smoothed or transformed", UNKNOWN),
        ("Are checkpoints and evaluations public", UNKNOWN),
        ("Which rows are excluded", _list_excluded(law_fit) if n_excluded else "none"),
    ]


def _fitting(law_fit: fit.Fit) -> list[tuple[str, str]]:
    delta = f", delta {law_fit.delta:g}" if law_fit.loss == "huber" else ""
    quality = f"mean error {law_fit.mare:.2%} at the fitted rows"
    if law_fit.r_squared is not None:
        quality += f", R^2 {law_fit.r_squared:.4f}"
    intervals = f"{law_fit.resampling}, seed {law_fit.seed}" if law_fit.ensemble else "none"
    return [
        ("Which objective", f"sum of {law_fit.loss}{delta} over rows: {law_fit.objective:.6g}"),
        (
            "Which algorithm",
            "damped Newton with exact or Gauss-Newton Hessians (lm/laws/solver.py)",
        ),
        (
            "How is it initialized",
            f"{law_fit.n_starts:,} starting points, of which"
            f" {round(law_fit.start_agreement * law_fit.n_starts):,} reach the reported minimum",
        ),
        ("How are intervals computed", intervals),
        ("How good is the fit", quality),
        ("How good is the extrapolation", str(law_fit.score or UNKNOWN)),
        ("Which warnings", "; ".join(law_fit.warnings) or "none"),
    ]


def _list_excluded(law_fit: fit.Fit) -> str:
    shown = "; ".join(f"{name}: {reason}" for name, reason in law_fit.excluded[:MAX_VALUES])
    n_more = len(law_fit.excluded) - MAX_VALUES
    return shown + (f"; and {n_more} more" if n_more > 0 else "")


def _recorded(law_fit: fit.Fit, section: str) -> list[tuple[str, str]]:
    """Return the questions that columns of the rows answer."""
    pairs = []
    for question, columns in RECORDED[section].items():
        texts = [_describe_column(law_fit.data.rows, column) for column in columns]
        pairs.append((question, "; ".join(text for text in texts if text) or UNKNOWN))
    return pairs


def _describe_column(rows: list[Mapping[str, Any]], column: str) -> str:
    """Return the values of a column, a range of many numbers; "" if no row has the column."""
    values = list(dict.fromkeys(str(row[column]) for row in rows if row.get(column) is not None))
    if not values:
        return ""
    if len(values) <= MAX_VALUES:
        return f"{column} = {', '.join(values)}"
    numbers = np.array([run_table.to_number(value) for value in values])
    if np.isfinite(numbers).all():
        return f"{column} from {numbers.min():.4g} to {numbers.max():.4g}"
    return f"{column} has {len(values)} values"
