"""Intervals: predictions (`Prediction`), their text, and the check of a level."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import option_validation, run_table


def check_level(level: float) -> None:
    """Raise ValueError for a level outside (0, 1)."""
    if not option_validation.is_number(level) or not 0 < level < 1:
        raise ValueError(
            f"level={level!r} must be a probability between 0 and 1: use level=0.95 for 95%"
        )


def format_interval(lo: float, hi: float, digits: int = 4) -> str:
    """Return an interval as text: " [1.2, 3.4]", "" if it is unknown.

    An infinite bound, which a nearly flat objective can give, is shown as "unbounded".
    """
    if np.isnan(lo) or np.isnan(hi):
        return ""
    bounds = (f"{v:.{digits}g}" if np.isfinite(v) else "unbounded" for v in (lo, hi))
    return f" [{', '.join(bounds)}]"


@dataclass
class Prediction:
    """Predicted value with its intervals: floats for one point, arrays for several.

    The interval (lo, hi) includes uncertainty about the form of the law if `includes_form`. The
    interval (lo_if_form_right, hi_if_form_right) assumes the form. `factor` is the distance from
    the fitted rows: 1 inside, 5 for an input five times above the largest or below the smallest.
    `note` is a warning for a factor above the option `reach`, or the reason for a missing interval.
    """

    value: Any
    lo: Any
    hi: Any
    level: float = 0.95
    factor: float = 1.0
    note: str = ""
    lo_if_form_right: Any = float("nan")
    hi_if_form_right: Any = float("nan")
    includes_form: bool = False

    def __str__(self) -> str:
        interval = f"{self.level:.0%} interval"
        if np.isnan(self.lo).all():
            text = f"{_join(map('{:.4g}'.format, np.atleast_1d(self.value)))}  no interval"
        elif self.includes_form:
            text = f"{_join_intervals(self.lo, self.hi, self.value)}  {interval}, form uncertainty"
            text += f" included;{_join_intervals(self.lo_if_form_right, self.hi_if_form_right)}"
            text += " if the form is right"
        else:
            text = f"{_join_intervals(self.lo, self.hi, self.value)}  {interval}"
        return f"{text}; {self.note}" if self.note else text


def _join_intervals(lo: Any, hi: Any, values: Any = None) -> str:
    """Return the text of one interval, or of several in brackets, with their values if given."""
    intervals = map(format_interval, np.atleast_1d(lo), np.atleast_1d(hi))
    if values is None:
        text = _join(interval.strip() or "none" for interval in intervals)
        return f" {text}"
    pairs = zip(np.atleast_1d(values), intervals, strict=True)
    return _join(f"{value:.4g}{interval}" for value, interval in pairs)


def _join(texts: Iterable[str]) -> str:
    texts = list(texts)
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def order_inputs(
    letters: Sequence[str], inputs: Sequence[Any], named: Mapping[str, Any]
) -> Sequence[Any]:
    """Return inputs by position or by name, in the order of the letters of the law.

    Raises ValueError for other names, and for inputs of both kinds.
    """
    if not named:
        return inputs
    if inputs or set(named) != set(letters):
        raise ValueError(
            f"predict accepts {', '.join(f'{letter}=' for letter in letters)} all by name, or all"
            f" by position; got {len(inputs)} by position and {', '.join(named)} by name"
        )
    return [named[letter] for letter in letters]


def read_inputs(inputs: Sequence[Any], columns: Sequence[str]) -> Sequence[Any]:
    """Return the columns of a row or of a table, if it is the only input, else the inputs.

    A table is a DataFrame, a dict of arrays or a list of dicts.
    """
    first = inputs[0] if len(inputs) == 1 else None
    if hasattr(first, "to_dict") and hasattr(first, "columns"):
        first = run_table.to_rows(first)
    elif isinstance(first, Mapping) and any(np.ndim(first.get(column, 0)) for column in columns):
        first = run_table.to_rows({column: first.get(column) for column in columns})
    if isinstance(first, Mapping):
        return [run_table.to_number(first.get(column)) for column in columns]
    if isinstance(first, list) and first and isinstance(first[0], Mapping):
        return [[run_table.to_number(row.get(column)) for row in first] for column in columns]
    return inputs


def read_points(inputs: Sequence[Any], columns: Mapping[str, str]) -> list[np.ndarray]:
    """Convert the inputs of `predict` to float arrays of one shape, in the order of `columns`.

    columns: {letter: column}. Raises ValueError for a wrong number of inputs, for different
    lengths, and for values that are not positive.
    """
    inputs = read_inputs(inputs, list(columns.values()))
    if len(inputs) != len(columns):
        raise ValueError(f"predict needs {', '.join(columns)}, got {len(inputs)} inputs")
    points = []
    for (letter, column), given in zip(columns.items(), inputs, strict=True):
        try:
            point = np.asarray(given, float)
        except (TypeError, ValueError):
            point = np.array(np.nan)
        if not point.size or not (np.isfinite(point).all() and (point > 0).all()):
            raise ValueError(f"{letter} ({column}) must be a positive number, got {given!r}")
        points.append(point)
    try:
        return list(np.broadcast_arrays(*points))
    except ValueError:
        shapes = ", ".join(str(point.shape) for point in points)
        raise ValueError(
            f"predict needs inputs of one shape, got {shapes}: pass numbers, or lists of one length"
        ) from None
