"""Checks of the values of options and arguments, before any computation.

Each check raises ValueError in one line with the name, the value, the rule and a remedy.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.laws import solver


class NumberRule(NamedTuple):
    """Allowed values of a numeric option."""

    smallest: float
    may_be_smallest: bool = True
    is_integer: bool = False
    may_be_none: bool = False
    limit: float = float("inf")  # the number must be below it

    @property
    def text(self) -> str:
        """Rule as text: "an integer at least 0"."""
        kind = "an integer" if self.is_integer else "a number"
        low = f"at least {self.smallest:g}" if self.may_be_smallest else f"above {self.smallest:g}"
        high = f" and below {self.limit:g}" if np.isfinite(self.limit) else ""
        return f"{kind} {low}{high}" + (", or None" if self.may_be_none else "")

    def allows(self, value: Any) -> bool:
        """Return True for an allowed value."""
        if value is None or not is_number(value):
            return value is None and self.may_be_none
        is_high = value > self.smallest or (self.may_be_smallest and value == self.smallest)
        return bool(is_high and value < self.limit and (not self.is_integer or value == int(value)))


COUNT = NumberRule(0, is_integer=True)
NUMBERS = {
    "delta": NumberRule(0, may_be_smallest=False),
    "bootstrap": COUNT,
    "seed": COUNT,
    "reach": NumberRule(1),
    "max_starts": NumberRule(1, is_integer=True, may_be_none=True),
    "tolerance": NumberRule(0, limit=1),
    "nearest": NumberRule(3, is_integer=True, may_be_none=True),
    "points": NumberRule(2, is_integer=True),
    "noise": NumberRule(0, may_be_none=True),
    "drop": NumberRule(0, limit=1),
    "window": NumberRule(1, is_integer=True),
    "chance": NumberRule(0, may_be_none=True, limit=1),
    "origins": NumberRule(1, is_integer=True),
    "last": NumberRule(1, is_integer=True),
    "n_runs": NumberRule(1, is_integer=True),
    "min_gain": NumberRule(0),
}
FLAGS = ("tied", "median", "weighted", "excess", "falling")
CHOICES: dict[str, Collection[str]] = {
    "loss": solver.LOSSES,
    "resample": ("auto", "runs", "noise"),
    "method": ("auto", "parabola", "akima"),
    "edges": ("drop", "keep"),
    "hull": ("lower", "convex"),
}
COLUMNS = ("weights", "group")


def check_option_values(given: Mapping[str, Any]) -> None:
    """Check the options of a law: numbers, flags, choices, columns, fixed parameters and starts."""
    for name, rule in NUMBERS.items():
        if name in given and not rule.allows(given[name]):
            raise ValueError(f"{name}={given[name]!r} must be {rule.text}")
    for name in FLAGS:
        if name in given and not isinstance(given[name], bool | np.bool_):
            raise ValueError(f"{name}={given[name]!r} must be True or False")
    if not isinstance(given.get("log_loss"), bool | None):
        raise ValueError(f"log_loss={given['log_loss']!r} must be True, False or None")
    for name, allowed in CHOICES.items():
        if name in given:
            check_choice(name, given[name], allowed)
    check_optional_columns(**{name: given.get(name) for name in COLUMNS})
    check_columns(**{name: given[name] for name in ("order",) if name in given})
    check_selection(given.get("where"), given.get("mixed", False))
    _check_fixed(given.get("fixed"))
    if given.get("starts") is not None:
        check_starts(given["starts"])
    if given.get("budgets") is not None:
        _check_budgets(given["budgets"])


def is_number(value: Any) -> bool:
    """Return True for a finite number that is no bool."""
    is_numeric = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_numeric and bool(np.isfinite(value))


def check_choice(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise ValueError for a value that is none of the allowed texts."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; allowed: {', '.join(allowed)}")


def check_columns(**columns: Any) -> None:
    """Raise ValueError for an argument that is not the name of a column."""
    for name, value in columns.items():
        if not isinstance(value, str) or not value:
            raise ValueError(
                f"{name}={value!r} must be the name of a column of the rows, such as 'eval.loss'"
            )


def check_optional_columns(**columns: Any) -> None:
    """Raise ValueError for an argument that is neither None nor the name of a column."""
    check_columns(**{name: value for name, value in columns.items() if value is not None})


def check_selection(where: Any, mixed: Any) -> None:
    """Raise ValueError for an inclusion rule or for names of properties of another type."""
    if where is not None and not callable(where) and not isinstance(where, Mapping):
        raise ValueError(
            f"where={where!r} must be a dict from columns to values, a function of a row, or None"
        )
    is_list = isinstance(mixed, Collection) and not isinstance(mixed, str | bytes)
    if mixed is not None and not isinstance(mixed, bool) and not is_list:
        raise ValueError(f"mixed={mixed!r} must be True, False or a list, such as ['corpus']")


def check_starts(starts: Any) -> None:
    """Raise ValueError for starts that are empty, have different names, or are not finite."""
    remedy = (
        'pass a dict of lists, {"E": [1.5], "A": [400.0], "alpha": [0.3]}, a list of dicts, or None'
    )
    points = [starts] if isinstance(starts, Mapping) else starts
    is_list = isinstance(points, list | tuple) and all(isinstance(p, Mapping) for p in points)
    if not is_list or not points or not all(points):
        raise ValueError(f"starts={starts!r} must not be empty: {remedy}")
    for i, point in enumerate(points):
        if set(point) != set(points[0]):
            raise ValueError(
                f"starts[{i}] has the parameters {', '.join(map(str, point))}, and starts[0] has "
                f"{', '.join(map(str, points[0]))}: pass equal parameters in all of them"
            )
        for name, value in point.items():
            values = value if isinstance(value, list | tuple | np.ndarray) else [value]
            is_valid = len(values) > 0 and all(map(is_number, values))
            if not isinstance(name, str) or not is_valid:
                raise ValueError(f"starts contain {name}={value!r}: pass finite numbers")


def _check_fixed(fixed: Any) -> None:
    """Raise ValueError for fixed parameters that are no dict of names and finite numbers."""
    if fixed is not None and not isinstance(fixed, Mapping):
        raise ValueError(f'fixed={fixed!r} must be a dict of parameters: fixed={{"E": 1.69}}')
    for name, value in (fixed or {}).items():
        if not isinstance(name, str) or not is_number(value):
            raise ValueError(
                f"fixed={{{name!r}: {value!r}}} must be a finite number of a parameter: pass"
                ' fixed={"E": 1.69}'
            )


def _check_budgets(budgets: Any) -> None:
    """Raise ValueError for budgets that are no list of positive numbers."""
    is_list = isinstance(budgets, list | tuple | np.ndarray) and len(budgets) > 0
    if not is_list or not all(is_number(budget) and budget > 0 for budget in budgets):
        raise ValueError(
            f"budgets={budgets!r} must be a list of positive FLOPs, such as [1e18, 1e19], or None"
        )


def check_fixed_powers(fixed: Mapping[str, float], exponents: Collection[str], y: Any) -> str:
    """Check the given parameters of a sum of power laws with losses y [n]. Return a warning or "".

    Raises ValueError for a number that is not finite, a floor E that is negative or above all
    losses, and a coefficient that is not positive.
    """
    _check_fixed(fixed)
    for name, value in fixed.items():
        if name != "E" and name not in exponents and value <= 0:
            raise ValueError(
                f"fixed={{{name!r}: {value!r}}} must be above 0, as a coefficient: pass a positive"
                " number, or fit it"
            )
    return check_floor("E", fixed.get("E", 0.0), y)


def check_anchor(anchor: Any) -> None:
    """Raise ValueError for an anchor that is no pair of a loss and an accuracy."""
    if anchor is None:
        return
    is_pair = isinstance(anchor, list | tuple | np.ndarray) and len(anchor) == 2
    if not is_pair or not all(map(is_number, anchor)) or not 0 <= anchor[1] <= 1:
        raise ValueError(
            f"anchor={anchor!r} must be a loss and an accuracy between 0 and 1: anchor=(0, 1)"
        )


def check_fractions(y: str, values: np.ndarray, names: Sequence[str]) -> None:
    """Raise ValueError that lists the rows whose accuracy is no fraction."""
    is_wrong = (values > 1) | (values < 0)
    if is_wrong.any():
        shown = ", ".join(f"{names[i]} ({values[i]:g})" for i in np.flatnonzero(is_wrong)[:5])
        raise ValueError(f"{y} must be between 0 and 1 (a fraction, not percent): {shown}")


def check_above_chance(
    y: str, accuracies: np.ndarray, losses: np.ndarray, chance: float | None
) -> None:
    """Raise ValueError for a task with accuracies that are noise around chance."""
    if chance is not None and np.quantile(accuracies, 0.9) < chance + 0.02:
        raise ValueError(
            f"{y} is at chance: nine tenths of the rows are below {chance + 0.02:.2f} where "
            f"guessing gives {chance:g}; "
            "use larger models, an easier task, or its loss"
        )
    if np.ptp(accuracies) < 1e-9 or np.ptp(losses) < 1e-9:
        raise ValueError(f"{y} or its loss is the same in every row: no curve can be fitted")


def check_positive(**values: Any) -> None:
    """Raise ValueError for an argument that is not a positive number."""
    for name, value in values.items():
        if not is_number(value) or value <= 0:
            raise ValueError(f"{name}={value!r} must be a positive number, such as {name}=1e20")


def check_coefficients(
    law: Any, argument: str = "law", required: Sequence[str] = ("A", "B", "alpha")
) -> None:
    """Raise ValueError for a dict that lacks coefficients, or has invalid E, A, B, alpha, beta."""
    if not isinstance(law, Mapping):
        raise ValueError(f"{argument}={law!r} must be a fit, or a dict of E, A, B, alpha and beta")
    missing = [name for name in required if name not in law]
    if missing:
        raise ValueError(
            f"{argument} lacks {', '.join(missing)}: pass a fit of chinchilla or overtrained, or a"
            " dict of E, A, B, alpha and beta"
        )
    for name in ("E", "A", "B", "alpha", "beta"):
        value = law.get(name, 1.0)
        if not is_number(value) or value < 0 or (name != "E" and value == 0):
            rule = "at least 0" if name == "E" else "positive"
            raise ValueError(f"{argument}[{name!r}]={value!r} must be a finite number, {rule}")


def check_floor(name: str, floor: float, y: np.ndarray) -> str:
    """Check a given floor of losses y [n]. Return a warning if it is above some of them, or "".

    Raises ValueError for a floor that is negative or above all losses.
    """
    if floor < 0 or floor >= y.max():
        raise ValueError(
            f"the floor {name} = {floor:g} must be at least 0 and below the losses, which are "
            f"{y.min():.4g} to {y.max():.4g}: pass a smaller floor, or fit {name}"
        )
    if floor >= y.min():
        n_below = int((y <= floor).sum())
        return (
            f"the floor {name} = {floor:g} is above {n_below} of {len(y)} losses: pass a smaller"
            " floor"
        )
    return ""
