"""Evaluations during runs as rows of a law: the last, or smoothed ones, of each run.

The steps are those of Bhagia et al. 2024 (arXiv:2412.04403).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.laws import option_validation, run_table


def final_evaluations(
    rows: run_table.Rows,
    columns: Sequence[str],
    run: str = "run",
    order: str = "tokens",
    last: int = 5,
) -> list[dict]:
    """Return one row per run: its last evaluation, with means of `columns` over the last `last`.

    This is step 1 of Bhagia et al. 2024 (arXiv:2412.04403). The mean reduces noise, but it has a
    bias if the loss still falls. Rows of a run are sorted by `order`.
    """
    rows = run_table.to_rows(rows)
    _check_columns(columns, rows)
    option_validation.check_option_values({"last": last})
    result = []
    for curve in learning_curves(rows, run, order):
        row = dict(curve[-1])
        for column in columns:
            row[column] = float(
                np.mean([run_table.to_number(r.get(column)) for r in curve[-last:]])
            )
        result.append(row)
    return result


def smooth_evaluations(
    rows: run_table.Rows,
    columns: Sequence[str],
    run: str = "run",
    order: str = "tokens",
    drop: float = 0.1,
    window: int = 5,
) -> list[dict]:
    """Return the evaluations after the first fraction `drop` of each run, as trailing means.

    The number of dropped evaluations is rounded up. The mean of each of `columns` is over the last
    `window` evaluations, fewer at the start of a run (step 2 of Bhagia et al. 2024).
    """
    rows = run_table.to_rows(rows)
    _check_columns(columns, rows)
    option_validation.check_option_values({"drop": drop, "window": window})
    result = []
    for curve in learning_curves(rows, run, order):
        late = curve[int(np.ceil(drop * len(curve))) :]
        for i, row in enumerate(late):
            recent = late[max(0, i + 1 - window) : i + 1]
            means = {
                column: float(np.mean([run_table.to_number(r.get(column)) for r in recent]))
                for column in columns
            }
            result.append({**row, **means})
    return result


def _check_columns(columns: Any, rows: list[Mapping]) -> None:
    """Raise ValueError for columns that are no list of columns of the rows."""
    if not isinstance(columns, list | tuple):
        raise ValueError(f"columns={columns!r} must be a list of columns: columns=['eval.loss']")
    for column in columns:
        option_validation.check_columns(columns=column)
    run_table.check_columns_exist(rows, columns)


def learning_curves(rows: run_table.Rows, run: str, order: str) -> list[list[Mapping]]:
    """Group rows by run, sorted by `order`; runs are in the order of their first row."""
    option_validation.check_columns(run=run, order=order)
    groups: dict[str, list[Mapping]] = {}
    for i, row in enumerate(run_table.to_rows(rows)):
        if run not in row:
            raise ValueError(
                f"row {i} has no column {run!r}: set run= to the column with the name of the run"
            )
        if not np.isfinite(run_table.to_number(row.get(order))):
            raise ValueError(
                f"row {i} has no number in the column {order!r}: set order= to a column that"
                " increases during a run"
            )
        groups.setdefault(str(row[run]), []).append(row)
    return [
        sorted(group, key=lambda row: run_table.to_number(row.get(order)))
        for group in groups.values()
    ]
