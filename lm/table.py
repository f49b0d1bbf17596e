"""From rows to the columns that a law needs: what is left out and why, what belongs together.

A row is a flat dict, one a run (or one a checkpoint), from `records.rows` or `csv.DictReader`:
numbers may be text. A row without a result (a status other than done, an empty or not-finite value)
is left out and named. A row that cannot be right (a zero or negative value, a duplicate) is an
error that names the rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FINISHED = ("", "done", "finished", "complete", "completed")
Rows = Iterable[Mapping]
Where = Callable[[Mapping], bool] | Mapping | None


@dataclass
class Table:
    """The columns that a fit uses, arrays of n numbers, and which rows are resampled together."""

    columns: dict[str, np.ndarray]
    names: list[str]
    groups: np.ndarray  # n integers: rows of one group are drawn together
    rows: list[Mapping]  # the rows kept, for refits
    excluded: list[tuple[str, str]]  # (name, reason)
    warnings: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, index: np.ndarray) -> "Table":
        """The same table with only the rows of index."""
        columns = {name: values[index] for name, values in self.columns.items()}
        names, rows = [self.names[i] for i in index], [self.rows[i] for i in index]
        return Table(
            columns, names, np.unique(self.groups[index], return_inverse=True)[1], rows, [], []
        )


def number(value: object) -> float:
    """A float, or NaN for None, empty text, and text that is not a number."""
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


def name_of(row: Mapping, index: int) -> str:
    """What a row is called in messages: its name, its run, or its place in the list."""
    return str(row.get("name") or row.get("run") or f"row {index}")


def trunk_of(row: Mapping) -> str:
    """The run that this one is a branch of (start.keep=state); nothing for all others."""
    return str(row.get("start.run") or "") if row.get("start.keep") == "state" else ""


def read(
    rows: Rows,
    columns: Sequence[str],
    group: str | None = None,
    where: Where = None,
    may_be_zero: Sequence[str] = (),
) -> Table:
    """The named columns of the finished rows.

    `where` keeps the rows for which a function is true or whose columns equal the given value (or
    one of a list): an exclusion rule that is written down, since five runs can move an exponent by
    .09. `group` names the column whose equal values are resampled together (checkpoints of a run);
    without it, rows of one name are, and branches of one trunk, which share most of their training
    and so its luck. A trunk itself is left out: its learning rate never fell. Raises ValueError for
    a column that no row has, for values <= 0 (< 0 in `may_be_zero`), and for duplicates.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("no rows to fit: the list is empty")
    columns = list(dict.fromkeys(columns))
    known = list(dict.fromkeys(key for row in rows for key in row))
    for column in [
        *columns,
        *([group] if group else []),
        *(where if isinstance(where, Mapping) else []),
    ]:
        if column not in known:
            raise ValueError(
                f"no row has a column {column!r}; the rows have {', '.join(map(str, known))}"
            )
    kept, values, excluded = [], [], []
    trunks = {trunk_of(row) for row in rows} - {""}
    for i, row in enumerate(rows):
        is_trunk = name_of(row, i) in trunks
        reason = "a trunk: see its branches" if is_trunk else _reason(row, columns, where)
        if reason:
            excluded.append((name_of(row, i), reason))
        else:
            kept.append(i)
            values.append([number(row[column]) for column in columns])
    if not kept:
        raise ValueError(
            f"no row is left to fit: {len(excluded)} left out, the first ({excluded[0][0]}): "
            f"{excluded[0][1]}"
        )
    array = np.array(values)
    names = [name_of(rows[i], i) for i in kept]
    for j, column in enumerate(columns):
        low = array[:, j] < 0 if column in may_be_zero else array[:, j] <= 0
        if low.any():
            raise ValueError(f"{column} must be above 0: {_list(names, array[:, j], low)}")
    _no_duplicates([rows[i] for i in kept], names)
    shared = [trunk_of(rows[i]) if group is None else str(rows[i].get(group, "")) for i in kept]
    labels = [label or name for label, name in zip(shared, names, strict=True)]
    groups = np.unique(labels, return_inverse=True)[1]
    warnings = []
    if groups.max() + 1 < len(kept):
        what = f"values of {group}" if group else "trunks" if any(shared) else "names"
        warnings.append(
            f"{len(kept)} rows have {groups.max() + 1} {what}: rows that share one are resampled "
            "together"
        )
    return Table(
        dict(zip(columns, array.T, strict=True)),
        names,
        groups,
        [rows[i] for i in kept],
        excluded,
        warnings,
    )


def _reason(row: Mapping, columns: Sequence[str], where: Where) -> str:
    """Why a row is left out, or nothing."""
    status = str(row.get("status") or "").lower()
    if status not in FINISHED:
        return f"status is {status}"
    if callable(where):
        if not where(row):
            return "left out by the rule given as where"
    elif where:
        for column, wanted in where.items():
            value, several = row.get(column), isinstance(wanted, list | tuple | set)
            if not any(_same(value, one) for one in (wanted if several else [wanted])):
                return f"{column} is {value}, not {wanted}"
    for column in columns:
        if not np.isfinite(number(row.get(column))):
            return f"{column} is {row.get(column)!r}" if column in row else f"has no {column}"
    return ""


def _same(value: object, wanted: object) -> bool:
    return str(value) == str(wanted) or number(value) == number(wanted)


def _no_duplicates(rows: list[Mapping], names: list[str]) -> None:
    """One run twice: rows that are the same in every column. Repeats (seeds) differ somewhere."""
    seen: dict[tuple, str] = {}
    for row, name in zip(rows, names, strict=True):
        key = tuple(sorted((str(k), str(v)) for k, v in row.items()))
        if key in seen:
            raise ValueError(
                f"duplicate run: {seen[key]} and {name} are the same in every column; remove one"
            )
        seen[key] = name


def _list(names: list[str], values: np.ndarray, chosen: np.ndarray, most: int = 5) -> str:
    found = [f"{names[i]} ({values[i]:g})" for i in np.flatnonzero(chosen)]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def finals(
    rows: Rows, columns: Sequence[str], run: str = "run", order: str = "tokens", last: int = 5
) -> list[dict]:
    """One row a run: its last evaluation, with `columns` as means over the last `last` ones.

    The step-1 recipe of Bhagia et al. 2024 (arXiv:2412.04403): averaging takes noise away, but
    across the decay of a learning rate it biases the last point. Rows of a run are sorted by
    `order`.
    """
    result = []
    for curve in curves(rows, run, order):
        row = dict(curve[-1])
        for column in columns:
            row[column] = float(np.mean([number(r.get(column)) for r in curve[-last:]]))
        result.append(row)
    return result


def smooth(
    rows: Rows,
    columns: Sequence[str],
    run: str = "run",
    order: str = "tokens",
    drop: float = 0.1,
    window: int = 5,
) -> list[dict]:
    """Evaluations after the first share `drop` of their run (rounded up), as trailing means.

    The mean of each of `columns` is over the last `window` evaluations, fewer at the start of what
    is kept (the step-2 recipe of Bhagia et al. 2024).
    """
    result = []
    for curve in curves(rows, run, order):
        kept = curve[int(np.ceil(drop * len(curve))) :]
        for i, row in enumerate(kept):
            recent = kept[max(0, i + 1 - window) : i + 1]
            means = {
                column: float(np.mean([number(r.get(column)) for r in recent]))
                for column in columns
            }
            result.append({**row, **means})
    return result


def curves(rows: Rows, run: str, order: str) -> list[list[Mapping]]:
    """The rows of each run, sorted by `order`; runs in the order of their first row."""
    groups: dict[str, list[Mapping]] = {}
    for i, row in enumerate(rows):
        if run not in row:
            raise ValueError(
                f"row {i} has no column {run!r}; give run= the column that names the run"
            )
        groups.setdefault(str(row[run]), []).append(row)
    return [sorted(group, key=lambda row: number(row.get(order))) for group in groups.values()]


def letter(column: str, i: int, columns: Sequence[str]) -> str:
    """What a formula calls a column: N, D or C where its name alone says so, else x."""
    known = {"N": ("param", "size"), "D": ("token", "data"), "C": ("flop", "compute")}
    for name, words in known.items():
        said = [c for c in columns if any(word in c.lower() for word in words)]
        if said == [column]:
            return name
    return "x" if len(columns) == 1 else f"x{i + 1}"
