"""Comparison of rows of runs: their trunk runs, settings and shared properties.

A trunk run has a constant learning rate. Its cooldown branches start from its checkpoints and lower
the learning rate to zero.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

# Properties that the rows of a law must share -> columns that record them.
PROPERTIES = {
    "corpus": ("corpus.hash",),
    "tokenizer": ("data.tokenizer",),
    "evaluation": (
        "data.heldout_fraction", "data.seq_len", "data.loss_on", "eval.n_sequences"
    ),
    "start": ("start",),
}  # fmt: skip
# Columns that change corpus.hash. If a law has one of them as an input, the rows differ on purpose.
CORPUS_INPUTS = ("unique_tokens", "data.unique_tokens", "data.seq_len")
# Columns of the training settings, and names that published tables use. Replicates have equal ones.
SETTING_PREFIXES = ("model.", "optim.")
SETTINGS = (
    *("data.batch_size", "data.batch_size_warmup", "batch_size"),
    *("lr", "learning_rate", "max_lr", "peak_lr"),
    *("optimizer", "schedule", "warmup", "warmup_steps", "weight_decay", "dropout"),
)
LOSS, BITS_PER_BYTE = "eval.loss", "eval.bits_per_byte"
FAMILY = "imported.family"  # column of published models
MAX_NAMES = 3  # names per value in a message about different rows


def run_name(row: Mapping, index: int) -> str:
    """Return the name of a row in messages: its name, its run, or its index in the list."""
    return str(row.get("name") or row.get("run") or f"row {index}")


def trunk_name(row: Mapping) -> str:
    """Return the name of the trunk run of a cooldown branch, "" for any other run."""
    return cell_text(row.get("start.run")) if row.get("start.restore") == "full_state" else ""


def is_setting(column: str) -> bool:
    """Return True for a column of the model, the optimizer or the batch size."""
    return column.startswith(SETTING_PREFIXES) or column in SETTINGS


def training_settings(row: Mapping) -> tuple[tuple[str, str], ...]:
    """Return (column, text) of the model, optimizer and batch size of a row, sorted by column."""
    columns = [column for column in row if isinstance(column, str) and is_setting(column)]
    texts = [(column, cell_text(row[column])) for column in sorted(columns)]
    return tuple((column, text) for column, text in texts if text)


def check_comparable(
    rows: Sequence[Mapping],
    included: Sequence[int],
    may_differ: Collection[str] = (),
    columns: Sequence[str] = (),
) -> None:
    """Raise ValueError that names the rows and their values if the rows differ in PROPERTIES.

    A law describes rows of one corpus, one tokenizer, one evaluation and one kind of start. A run
    starts from random weights, as its cooldown branches do, or from the weights of another model.
    Rows without a column, such as published results, are not compared in it. Bits per byte are
    compared between tokenizers, losses per token are not.

    rows: all rows, which contain the trunk runs. included: indices of the rows of the law.
    may_differ: names of PROPERTIES that are not compared. columns: columns of the law, which are
    not compared either.
    """
    differences = find_differences(rows, included, may_differ, columns)
    if differences:
        has_tokenizers = any(text.startswith(PROPERTIES["tokenizer"]) for text in differences)
        is_loss = any(column.startswith(LOSS) for column in columns)
        remedy = f", fit y={BITS_PER_BYTE!r}" if has_tokenizers and is_loss else ""
        raise ValueError(
            f"the rows are not comparable: {'; '.join(differences)}. Select rows with"
            f" where={{column: value}}{remedy}, or pass mixed=True to fit them together"
        )


def find_differences(
    rows: Sequence[Mapping],
    included: Sequence[int],
    may_differ: Collection[str] = (),
    columns: Sequence[str] = (),
) -> list[str]:
    """Return a text per column of PROPERTIES in which the rows differ: see check_comparable."""
    unknown = set(may_differ) - set(PROPERTIES)
    if unknown:
        raise ValueError(
            f"mixed={', '.join(sorted(unknown))} is unknown; allowed: True, {', '.join(PROPERTIES)}"
        )
    by_name = {run_name(row, i): row for i, row in enumerate(rows)}
    skipped = {column for name in may_differ for column in PROPERTIES[name]} | set(columns)
    if any(column in CORPUS_INPUTS for column in columns):
        skipped.add("corpus.hash")
    if any("bits_per_byte" in column for column in columns):
        skipped |= {*PROPERTIES["tokenizer"]}
    tokenizer_names = _tokenizer_names([rows[i] for i in included])
    differences = []
    for column in [column for group in PROPERTIES.values() for column in group]:
        if column in skipped:
            continue
        names_by_value: dict[str, list[str]] = {}
        for i in included:
            text = cell_text(rows[i].get(column))
            text = _start_kind(rows[i], by_name) if column == "start" else text
            text = tokenizer_names.get(text, text) if column in PROPERTIES["tokenizer"] else text
            if text:
                names_by_value.setdefault(text, []).append(run_name(rows[i], i))
        if len(names_by_value) > 1:
            differences.append(f"{column} is {_list_rows_by_value(names_by_value)}")
    return differences


def loss_column(rows: Sequence[Mapping]) -> str:
    """Return the column of the loss that is comparable between the rows that have a loss.

    It is the loss per token if all rows have one tokenizer, and the bits per byte otherwise.
    """
    rows = [row for row in rows if cell_text(row.get(LOSS))]
    texts = {cell_text(row.get(column)) for row in rows for column in PROPERTIES["tokenizer"]}
    names = _tokenizer_names(rows)
    has_bits = all(cell_text(row.get(BITS_PER_BYTE)) for row in rows)
    n_tokenizers = len({names.get(text, text) for text in texts if text})
    return BITS_PER_BYTE if n_tokenizers > 1 and has_bits else LOSS


def describe_families(rows: Sequence[Mapping]) -> list[str]:
    """Return a warning if the rows are published models of several families, else no warning."""
    families = sorted({cell_text(row.get(FAMILY)) or "runs of this project" for row in rows})
    if len(families) < 2:
        return []
    return [f"{len(families)} families ({', '.join(families)}) may have different training text"]


def _tokenizer_names(rows: Sequence[Mapping]) -> dict[str, str]:
    """Return {data.tokenizer: the first data.tokenizer with the same tokens}.

    The files of one tokenizer have several paths. Rows without the hash of their tokenizer are
    compared by data.tokenizer alone: the result is then {}.
    """
    first_names: dict[str, str] = {}
    names: dict[str, str] = {}
    for row in rows:
        name, tokens = cell_text(row.get("data.tokenizer")), cell_text(row.get("tokenizer.hash"))
        if not name or not tokens:
            return {}
        names[name] = first_names.setdefault(tokens, name)
    return names


def cell_text(value: object) -> str:
    """Return a cell as text, "" for None and NaN. Equal numbers have equal texts."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _start_kind(row: Mapping, by_name: Mapping[str, Mapping]) -> str:
    """Return the kind of weights that a run starts from, "" if the row does not record it.

    A cooldown branch starts like its trunk run. A trunk run of the same sweep that is not among the
    rows counts as a run from random weights.
    """
    if "start.run" not in row:
        return ""
    visited: set[str] = set()
    while trunk := trunk_name(row):
        parent = by_name.get(trunk)
        if parent is None or trunk in visited:
            sweep = str(row.get("name", "")).rpartition("/")[0]
            is_same_sweep = bool(sweep) and trunk.rpartition("/")[0] == sweep
            return "random weights" if is_same_sweep else "weights of another model"
        visited.add(trunk)
        row = parent
    return "weights of another model" if cell_text(row.get("start.run")) else "random weights"


def _list_rows_by_value(names_by_value: Mapping[str, list[str]]) -> str:
    """Return the values and the rows that have them, the most frequent value first."""
    texts = []
    for value, names in sorted(names_by_value.items(), key=lambda item: -len(item[1])):
        n_more = len(names) - MAX_NAMES
        more = f" and {n_more} more" if n_more > 0 else ""
        texts.append(f"{_shorten(value)} for {', '.join(names[:MAX_NAMES])}{more}")
    return ", ".join(texts)


def _shorten(value: str) -> str:
    """Return the first characters of a hash, and other values unchanged."""
    is_hash = len(value) > 16 and all(letter in "0123456789abcdef" for letter in value)
    return value[:12] if is_hash else value
