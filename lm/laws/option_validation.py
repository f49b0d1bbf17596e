"""Checks of the values of options, before any computation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Smallest value of a numeric option, whether that value is allowed, and whether it is an integer.
NUMBERS = {
    "delta": (0.0, False, False),
    "bootstrap": (0, True, True),
    "seed": (0, True, True),
    "reach": (1.0, True, False),
}


def check_option_values(given: Mapping[str, Any]) -> None:
    """Check numbers, fixed parameters and starts. Raises ValueError with field, value and rule."""
    for name, (smallest, is_allowed, is_integer) in NUMBERS.items():
        if name in given:
            value = given[name]
            is_valid = is_number(value) and (value > smallest or (is_allowed and value == smallest))
            if not is_valid or (is_integer and int(value) != value):
                kind = "an integer" if is_integer else "a number"
                rule = f"at least {smallest:g}" if is_allowed else f"above {smallest:g}"
                raise ValueError(f"{name}={value!r} must be {kind} {rule}")
    fixed = given.get("fixed")
    if fixed is not None and not isinstance(fixed, Mapping):
        raise ValueError(f'fixed={fixed!r} must be a dict of parameters: fixed={{"E": 1.69}}')
    for name, value in (fixed or {}).items():
        if not is_number(value):
            raise ValueError(f"fixed={{{name!r}: {value!r}}} must be a finite number")
    if given.get("starts") is not None:
        _check_starts(given["starts"])


def is_number(value: Any) -> bool:
    """Return True for a finite number that is no bool."""
    is_numeric = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return is_numeric and bool(np.isfinite(value))


def _check_starts(starts: Any) -> None:
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
                f"starts[{i}] has the parameters {', '.join(point)}, and starts[0] has "
                f"{', '.join(points[0])}: pass equal parameters in all of them"
            )
        for name, value in point.items():
            values = np.atleast_1d(np.asarray(value, float))
            is_scale = name[0].isupper()
            if not len(values) or not np.isfinite(values).all() or (is_scale and values.min() <= 0):
                rule = "positive" if is_scale else "finite"
                raise ValueError(f"starts contain {name}={value!r}: pass {rule} numbers")


def check_fixed_powers(fixed: Mapping[str, float], exponents: tuple[str, ...], y: Any) -> str:
    """Check the given parameters of a sum of power laws with losses y [n]. Return a warning or "".

    Raises ValueError for a number that is not finite, a floor E that is negative or above all
    losses, and a coefficient that is not positive.
    """
    for name, value in fixed.items():
        if not is_number(value):
            raise ValueError(f"fixed={{{name!r}: {value!r}}} must be a finite number")
        if name != "E" and name not in exponents and value <= 0:
            raise ValueError(f"fixed={{{name!r}: {value!r}}} must be above 0, as a coefficient")
    floor = fixed.get("E", 0.0)
    if floor < 0 or floor >= y.max():
        raise ValueError(
            f"the floor E = {floor:g} must be at least 0 and below the losses, which are "
            f"{y.min():.4g} to {y.max():.4g}: pass a smaller floor, or floor=True to fit it"
        )
    if floor >= y.min():
        n_below = int((y <= floor).sum())
        return f"the floor E = {floor:g} is above {n_below} of {len(y)} losses: pass a smaller one"
    return ""
