"""Columns of a law from rows of runs: selection, exclusion and resampling groups.

A row is a flat dict per run (or per checkpoint) from `records.load_runs` or `csv.DictReader`.
Numbers may be text. A row without a result (a status other than done, an empty or non-finite value)
is excluded, and its name and the reason are stored. An invalid row (a zero or negative value, a
duplicate) raises an error that lists the rows. Rows that no law describes together, such as runs on
different corpora, raise an error too: see `check_comparable`.

A trunk run has a constant learning rate. Its cooldown branches start from its checkpoints and lower
the learning rate to zero.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

FINISHED = ("", "done", "finished", "complete", "completed")
Rows = Iterable[Mapping]
Row = TypeVar("Row", bound=Mapping)
Where = Callable[[Mapping], bool] | Mapping | None
# Letters of a formula, by column. Any other column is called x.
LETTERS = {
    "params": "N",
    "params.active": "N",
    "params.non_embedding": "N",
    "params.total": "N",
    "params_opt": "N",
    "tokens": "D",
    "tokens_opt": "D",
    "unique_tokens": "D",
    "data.transferred": "D",
    "flops": "C",
    "flops_as_printed": "C",
    "isoflop_budget": "C",
}
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
    *("data.batch_size", "batch_size", "lr", "learning_rate", "max_lr", "peak_lr"),
    *("optimizer", "schedule", "warmup", "warmup_steps", "weight_decay", "dropout"),
)
MAX_NAMES = 3  # names per value in a message about different rows


@dataclass
class RunTable:
    """The columns of a fit, arrays of n numbers, with the resampling group of each row."""

    columns: dict[str, np.ndarray]
    names: list[str]
    groups: np.ndarray  # n integers: rows of one group are resampled together
    rows: list[Mapping]  # the included rows, for refits
    excluded: list[tuple[str, str]]  # (name, reason)
    warnings: list[str]
    mixed: bool | Collection[str] = False  # properties in which the rows may differ

    def __len__(self) -> int:
        return len(self.names)

    def replicates(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return a number per row [n]. Rows with equal inputs and equal settings share a number.

        inputs: arrays [n]. Such rows differ only in their seed. Runs with another learning rate
        are no replicates: see `training_settings`.
        """
        points = np.stack(inputs, 1).tolist()
        keys = [
            repr((point, training_settings(row)))
            for point, row in zip(points, self.rows, strict=True)
        ]
        return np.unique(keys, return_inverse=True)[1].ravel()

    def highest_in_group(self, levels: np.ndarray) -> np.ndarray:
        """Return the highest of the integers `levels` in the group of each row, [n].

        A back-test fits only groups without a row above its level: a branch above it shares most
        of its training with its trunk's other branches.
        """
        highest = np.zeros(self.groups.max() + 1, int)
        np.maximum.at(highest, self.groups, levels)
        return highest[self.groups]

    def take(self, index: np.ndarray) -> "RunTable":
        """Return a table of the rows with the numbers in `index`, integers [k]. Rows may repeat."""
        columns = {name: values[index] for name, values in self.columns.items()}
        names, rows = [self.names[i] for i in index], [self.rows[i] for i in index]
        return RunTable(
            columns, names, np.unique(self.groups[index], return_inverse=True)[1], rows, [], []
        )


def to_rows(rows: Any) -> list[Mapping]:
    """Return a list of dicts from an iterable of dicts or from a pandas or polars DataFrame.

    Cells of a DataFrame without a value are None. Raises ValueError for other data.
    """
    if hasattr(rows, "to_dicts"):  # polars
        return rows.to_dicts()
    if hasattr(rows, "to_dict") and hasattr(rows, "notna"):  # pandas
        return rows.astype(object).where(rows.notna(), None).to_dict("records")
    remedy = "pass a list of dicts, one per run, or a DataFrame"
    if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
        raise ValueError(f"rows is of type {type(rows).__name__}: {remedy}")
    rows = list(rows)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {i} is of type {type(row).__name__}: {remedy}")
    return rows


def to_number(value: object) -> float:
    """Convert a value to float. Return NaN for None and for text that is not a number."""
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


def run_name(row: Mapping, index: int) -> str:
    """Return the name of a row in messages: its name, its run, or its index in the list."""
    return str(row.get("name") or row.get("run") or f"row {index}")


def trunk_name(row: Mapping) -> str:
    """Return the name of the trunk run of a cooldown branch, "" for any other run."""
    return _text(row.get("start.run")) if row.get("start.restore") == "full_state" else ""


def training_settings(row: Mapping) -> tuple[tuple[str, str], ...]:
    """Return (column, text) of the model, optimizer and batch size of a row, sorted by column."""
    columns = [
        column
        for column in row
        if isinstance(column, str) and (column.startswith(SETTING_PREFIXES) or column in SETTINGS)
    ]
    return tuple((column, _text(row[column])) for column in sorted(columns) if _text(row[column]))


def select_tuned(rows: Sequence[Row], inputs: Sequence[str], y: str) -> list[Row]:
    """Return, per value of the inputs, the rows with the settings of the lowest mean `y`.

    inputs: columns of a law, such as parameters and tokens. Rows with the same settings differ only
    in their seed (see `training_settings`). A law of tuned runs has no rows with other learning
    rates, whose losses are higher. Rows with values of the inputs at which no row has a finite `y`
    are returned too.
    """
    points = [tuple(to_number(row.get(column)) for column in inputs) for row in rows]
    losses: dict[tuple, dict[tuple, list[float]]] = {}
    for row, point in zip(rows, points, strict=True):
        if np.isfinite(to_number(row.get(y))):
            by_settings = losses.setdefault(point, {})
            by_settings.setdefault(training_settings(row), []).append(to_number(row[y]))
    tuned = {
        point: min(by_settings, key=lambda settings: float(np.mean(by_settings[settings])))
        for point, by_settings in losses.items()
    }
    return [
        row
        for row, point in zip(rows, points, strict=True)
        if point not in tuned or training_settings(row) == tuned[point]
    ]


def select_columns(
    rows: Rows,
    columns: Sequence[str],
    group: str | None = None,
    where: Where = None,
    may_be_zero: Sequence[str] = (),
    mixed: bool | Collection[str] = False,
) -> RunTable:
    """Select the given columns of the finished rows.

    `where` is the inclusion rule: a function of the row, or a mapping from columns to the required
    value or list of values. Report the rule: five runs can change an exponent by 0.09. Rows with
    the same value of the column `group` are resampled together. Without `group`, these are the
    branches of a trunk run, which share its noise, and rows with the same `run` or `name`, such as
    checkpoints. The trunk run is excluded because its learning rate never decays.

    mixed: True, or the names of PROPERTIES in which the rows may differ, see `check_comparable`.
    Raises ValueError for a column that no row has, for values <= 0 (< 0 in `may_be_zero`), for
    duplicates and for rows that are not comparable.
    """
    rows = to_rows(rows)
    columns = list(dict.fromkeys(columns))
    needed = [*columns, *([group] if group else [])]
    _check_columns_exist(rows, [*needed, *(where if isinstance(where, Mapping) else [])])
    included, values, excluded = [], [], []
    trunks = {trunk_name(row) for row in rows} - {""}
    for i, row in enumerate(rows):
        is_trunk = run_name(row, i) in trunks
        reason = "trunk run, represented by its branches" if is_trunk else ""
        reason = reason or _exclusion_reason(row, columns, where)
        if reason:
            excluded.append((run_name(row, i), reason))
        else:
            included.append(i)
            values.append([to_number(row[column]) for column in columns])
    if not included:
        raise ValueError(
            f"no row is left to fit: {len(excluded)} are excluded, the first is {excluded[0][0]} "
            f"({excluded[0][1]})"
        )
    array, names = np.array(values), [run_name(rows[i], i) for i in included]
    for j, column in enumerate(columns):
        is_wrong = array[:, j] < 0 if column in may_be_zero else array[:, j] <= 0
        if is_wrong.any():
            raise ValueError(
                f"{column} must be above 0: {_list_values(names, array[:, j], is_wrong)}"
            )
    included_rows = [rows[i] for i in included]
    _check_no_duplicates(included_rows, names)
    if mixed is not True:
        check_comparable(rows, included, mixed or (), columns)
    groups, warnings = _resampling_groups(included_rows, names, group)
    values_by_column = dict(zip(columns, array.T, strict=True))
    return RunTable(values_by_column, names, groups, included_rows, excluded, warnings, mixed)


def check_comparable(
    rows: Sequence[Mapping],
    included: Sequence[int],
    may_differ: Collection[str] = (),
    columns: Sequence[str] = (),
) -> None:
    """Raise ValueError that names the rows and their values if the rows differ in PROPERTIES.

    A law describes rows of one corpus, one tokenizer, one evaluation and one kind of start. A run
    starts from random weights, as its cooldown branches do, or from the weights of another model.
    Rows without a column, such as published results, are not compared in it.

    rows: all rows, which contain the trunk runs. included: indices of the rows of the law.
    may_differ: names of PROPERTIES that are not compared. columns: columns of the law, which are
    not compared either.
    """
    unknown = set(may_differ) - set(PROPERTIES)
    if unknown:
        raise ValueError(
            f"mixed={', '.join(sorted(unknown))} is unknown; allowed: True, {', '.join(PROPERTIES)}"
        )
    by_name = {run_name(row, i): row for i, row in enumerate(rows)}
    skipped = {column for name in may_differ for column in PROPERTIES[name]} | set(columns)
    if any(column in CORPUS_INPUTS for column in columns):
        skipped.add("corpus.hash")
    differences = []
    for column in [column for group in PROPERTIES.values() for column in group]:
        if column in skipped:
            continue
        names_by_value: dict[str, list[str]] = {}
        for i in included:
            text = _text(rows[i].get(column))
            text = _start_kind(rows[i], by_name) if column == "start" else text
            if text:
                names_by_value.setdefault(text, []).append(run_name(rows[i], i))
        if len(names_by_value) > 1:
            differences.append(f"{column} is {_list_rows_by_value(names_by_value)}")
    if differences:
        raise ValueError(
            f"the rows are not comparable: {'; '.join(differences)}. Select rows with"
            " where={column: value}, or pass mixed=True to fit them together"
        )


def _text(value: object) -> str:
    """Return a cell as text, "" for None and NaN. Equal numbers have equal texts."""
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
    return "weights of another model" if _text(row.get("start.run")) else "random weights"


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


def _check_columns_exist(rows: list[Mapping], columns: Sequence[str]) -> None:
    if not rows:
        raise ValueError("no rows to fit: the list is empty")
    known = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        if column not in known:
            raise ValueError(
                f"no row has a column {column!r}; the rows have {', '.join(map(str, known))}"
            )


def _resampling_groups(
    rows: list[Mapping], names: list[str], group: str | None
) -> tuple[np.ndarray, list[str]]:
    """Return the group of each row, and a warning if some rows share a group."""
    shared = [
        trunk_name(row) or _text(row.get("run")) if group is None else str(row.get(group, ""))
        for row in rows
    ]
    labels = [label or name for label, name in zip(shared, names, strict=True)]
    groups = np.unique(labels, return_inverse=True)[1]
    n_groups = groups.max() + 1
    if n_groups == len(rows):
        return groups, []
    kind = "trunks" if any(trunk_name(row) for row in rows) else "run names"
    kind = f"values of {group}" if group else kind
    return groups, [
        f"{len(rows)} rows have {n_groups} {kind}: rows with the same value are resampled together"
    ]


def _exclusion_reason(row: Mapping, columns: Sequence[str], where: Where) -> str:
    """Return the reason to exclude a row, or ""."""
    status = _text(row.get("status")).lower()
    if status not in FINISHED:
        return f"status is {status}"
    if callable(where):
        if not where(row):
            return "excluded by the function where"
    elif where:
        for column, wanted in where.items():
            value, is_list = row.get(column), isinstance(wanted, list | tuple | set)
            if not any(_is_same(value, allowed) for allowed in (wanted if is_list else [wanted])):
                return f"{column} is {value}, not {wanted}"
    for column in columns:
        if not np.isfinite(to_number(row.get(column))):
            return f"{column} is {row.get(column)!r}" if column in row else f"has no {column}"
    return ""


def _is_same(value: object, wanted: object) -> bool:
    return str(value) == str(wanted) or to_number(value) == to_number(wanted)


def _check_no_duplicates(rows: list[Mapping], names: list[str]) -> None:
    """Raise ValueError for rows with equal values in all columns; repeats with seeds differ."""
    first_names: dict[tuple, str] = {}
    for row, name in zip(rows, names, strict=True):
        key = tuple(sorted((str(k), str(v)) for k, v in row.items()))
        if key in first_names:
            raise ValueError(
                f"duplicate run: {first_names[key]} and {name} have equal values in all columns; "
                "remove one of them"
            )
        first_names[key] = name


def _list_values(
    names: list[str], values: np.ndarray, is_wrong: np.ndarray, n_shown: int = 5
) -> str:
    items = [f"{names[i]} ({values[i]:g})" for i in np.flatnonzero(is_wrong)]
    more = f" and {len(items) - n_shown} more" if len(items) > n_shown else ""
    return ", ".join(items[:n_shown]) + more


def column_letter(column: str, i: int, columns: Sequence[str]) -> str:
    """Return the letter of column i in a formula: N, D or C if it is the only one, else x."""
    same = [name for name in columns if LETTERS.get(name) == LETTERS.get(column)]
    if column in LETTERS and same == [column]:
        return LETTERS[column]
    return "x" if len(columns) == 1 else f"x{i + 1}"
