"""Columns of a law from rows of runs: selection, exclusion and resampling groups.

A row is a flat dict per run (or per checkpoint) from `records.load_runs` or `csv.DictReader`.
Numbers may be text. A row without a result (a status other than done, an empty or non-finite value)
is excluded, and its name and the reason are stored. An invalid row (a zero or negative value, a
duplicate) raises an error that lists the rows. Rows that no law describes together, such as runs on
different corpora, raise an error too: see `comparability.check_comparable`.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lm.laws import comparability, option_validation

FINISHED = ("", "done", "finished", "complete", "completed")
MAX_LISTED_COLUMNS = 12  # in an error; a row of records.load_runs has more than 100 columns
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
        are no replicates: see `comparability.training_settings`.
        """
        points = np.stack(inputs, 1).tolist()
        keys = [
            repr((point, comparability.training_settings(row)))
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


def to_rows(rows: Any) -> list[Mapping]:
    """Return a list of dicts from an iterable of dicts, a DataFrame, or a dict of columns.

    A DataFrame is of pandas or polars; cells without a value become None. The columns of a dict are
    arrays or lists of one length. Raises ValueError for other data.
    """
    if hasattr(rows, "to_dicts"):  # polars
        return rows.to_dicts()
    if hasattr(rows, "to_dict") and hasattr(rows, "notna"):  # pandas
        return rows.astype(object).where(rows.notna(), None).to_dict("records")
    remedy = "pass a list of dicts, one per run, a DataFrame, or a dict of arrays"
    if isinstance(rows, Mapping) and rows and all(np.ndim(v) == 1 for v in rows.values()):
        lengths = {str(name): len(column) for name, column in rows.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of rows have different lengths: {lengths}")
        return [dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)]
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


def select_tuned(
    rows: Sequence[Row], inputs: Sequence[str], y: str, tolerances: Mapping[str, float] = {}
) -> list[Row]:
    """Return, per value of the inputs, the rows with the settings of the lowest mean `y`.

    inputs: columns of a law, such as parameters and tokens. tolerances: {column: relative
    difference up to which neighboring values count as equal}, such as token budgets that are
    rounded to batches. Rows with the same settings differ only
    in their seed (see `comparability`). A law of tuned runs has no rows with other learning
    rates, whose losses are higher. Rows with values of the inputs at which no row has a finite `y`
    are returned too.
    """
    columns = [
        _label_values([to_number(row.get(column)) for row in rows], tolerances.get(column, 0.0))
        for column in inputs
    ]
    points = list(zip(*columns, strict=True))
    losses: dict[tuple, dict[tuple, list[float]]] = {}
    for row, point in zip(rows, points, strict=True):
        if np.isfinite(to_number(row.get(y))):
            by_settings = losses.setdefault(point, {})
            by_settings.setdefault(comparability.training_settings(row), []).append(
                to_number(row[y])
            )
    tuned = {
        point: min(by_settings, key=lambda settings: float(np.mean(by_settings[settings])))
        for point, by_settings in losses.items()
    }
    return [
        row
        for row, point in zip(rows, points, strict=True)
        if point not in tuned or comparability.training_settings(row) == tuned[point]
    ]


def _label_values(values: Sequence[float], tolerance: float) -> list[int]:
    """Return equal integers for values whose neighbors differ by at most a relative tolerance."""
    array = np.asarray(values, float)
    order = np.argsort(array, kind="stable")
    is_new = np.diff(array[order]) > tolerance * np.abs(array[order][:-1])
    labels = np.zeros(len(array), int)
    labels[order[1:]] = np.cumsum(is_new)
    labels[np.isnan(array)] = -1
    return labels.tolist()


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

    mixed: True, or the names of PROPERTIES in which the rows may differ, see `comparability`.
    Raises ValueError for a column that no row has, for values <= 0 (< 0 in `may_be_zero`), for
    duplicates and for rows that are not comparable.
    """
    option_validation.check_selection(where, mixed)
    rows = to_rows(rows)
    columns = list(dict.fromkeys(columns))
    needed = [*columns, *([group] if group else [])]
    check_columns_exist(rows, [*needed, *(where if isinstance(where, Mapping) else [])])
    included, values, excluded = [], [], []
    trunks = {comparability.trunk_name(row) for row in rows} - {""}
    for i, row in enumerate(rows):
        is_trunk = comparability.run_name(row, i) in trunks
        reason = "trunk run, represented by its branches" if is_trunk else ""
        reason = reason or _exclusion_reason(row, columns, where)
        if reason:
            excluded.append((comparability.run_name(row, i), reason))
        else:
            included.append(i)
            values.append([to_number(row[column]) for column in columns])
    if not included:
        raise ValueError(
            f"no row is left to fit: {len(excluded)} are excluded, the first is {excluded[0][0]} "
            f"({excluded[0][1]})"
        )
    array, names = np.array(values), [comparability.run_name(rows[i], i) for i in included]
    for j, column in enumerate(columns):
        is_wrong = array[:, j] < 0 if column in may_be_zero else array[:, j] <= 0
        if is_wrong.any():
            raise ValueError(
                f"{column} must be above 0: {_list_values(names, array[:, j], is_wrong)}"
            )
    included_rows = [rows[i] for i in included]
    _check_no_duplicates(included_rows, names)
    if mixed is not True:
        comparability.check_comparable(rows, included, mixed or (), columns)
    groups, warnings = _resampling_groups(included_rows, names, group)
    warnings += comparability.describe_families(included_rows)
    values_by_column = dict(zip(columns, array.T, strict=True))
    return RunTable(values_by_column, names, groups, included_rows, excluded, warnings, mixed)


def check_columns_exist(rows: list[Mapping], columns: Sequence[str]) -> None:
    """Raise ValueError for no rows, and for a column that no row has."""
    if not rows:
        raise ValueError("no rows to fit: the list is empty")
    known = list(dict.fromkeys(str(key) for row in rows for key in row))
    for column in columns:
        if column in known:
            continue
        if column == "eval.loss" and all(row.get("data.heldout_fraction") == 0 for row in rows):
            raise ValueError(
                "no run has a held-out loss (eval.loss), because data.heldout_fraction=0: hold out"
                " text, or fit another column"
            )
        near = difflib.get_close_matches(column, known, n=5, cutoff=0.3)
        listed = known if len(known) <= MAX_LISTED_COLUMNS else near
        raise ValueError(f"no row has a column {column!r}; the rows have {', '.join(listed)}")


def _resampling_groups(
    rows: list[Mapping], names: list[str], group: str | None
) -> tuple[np.ndarray, list[str]]:
    """Return the group of each row, and a warning if some rows share a group."""
    shared = [
        comparability.trunk_name(row) or comparability.cell_text(row.get("run"))
        if group is None
        else str(row.get(group, ""))
        for row in rows
    ]
    labels = [label or name for label, name in zip(shared, names, strict=True)]
    groups = np.unique(labels, return_inverse=True)[1]
    n_groups = groups.max() + 1
    if n_groups == len(rows):
        return groups, []
    text = f"{len(rows)} rows belong to {n_groups} runs: rows of a run are resampled together"
    if group:
        text = f"{len(rows)} rows have {n_groups} values of {group}: rows with the same value are"
        text += " resampled together"
    elif any(comparability.trunk_name(row) for row in rows):
        text = (
            f"{len(rows)} runs share {n_groups} trunks: branches of a trunk are resampled together"
        )
    return groups, [text]


def _exclusion_reason(row: Mapping, columns: Sequence[str], where: Where) -> str:
    """Return the reason to exclude a row, or ""."""
    status = comparability.cell_text(row.get("status")).lower()
    if status not in FINISHED:
        return f"status is {status}"
    if callable(where):
        try:
            is_included = bool(where(row))
        except Exception as error:
            raise ValueError(
                f"where has raised {type(error).__name__} for a row with the name"
                f" {row.get('name')!r} ({error}): correct the function, or pass a dict"
            ) from error
        if not is_included:
            return "excluded by the function where"
    elif where:
        for column, wanted in where.items():
            value, is_list = row.get(column), isinstance(wanted, list | tuple | set)
            if not any(_is_same(value, allowed) for allowed in (wanted if is_list else [wanted])):
                return f"{column} is {value}, not {wanted}"
    for column in columns:
        if not np.isfinite(to_number(row.get(column))):
            if column in row:
                return f"{column} is {row[column]!r}"
            return f"has no {column}: {row['reason']}" if row.get("reason") else f"has no {column}"
    return ""


def _is_same(value: object, wanted: object) -> bool:
    return str(value) == str(wanted) or to_number(value) == to_number(wanted)


def _check_no_duplicates(rows: list[Mapping], names: list[str]) -> None:
    """Raise ValueError for rows with equal values in all columns; repeats with seeds differ."""
    if len({str(row.get("name")) for row in rows}) == len(rows):
        return  # the rows differ in this column, and a comparison of all columns takes longer
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
