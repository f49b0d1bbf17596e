"""Rounded results and intervals whose texts agree with the verdict of the exact numbers.

    digits = verdict_rounding.count_digits(measured, lo, hi)
    f"{measured:#.{digits}g} is outside {lo:#.{digits}g} to {hi:#.{digits}g}"

A result of 100% outside an interval up to 99.97% would be printed as 100.0% outside 6.0% to 100.0%.
"""

from collections.abc import Callable

MAX_EXTRA_DIGITS = 5
MIN_DIGITS = 4  # significant digits of losses


def round_significant(value: float, digits: int) -> float:
    """Return a value rounded to significant digits."""
    return float(f"{value:.{digits}g}")


def count_digits(
    measured: float,
    lo: float,
    hi: float,
    digits: int = MIN_DIGITS,
    round_value: Callable[[float, int], float] = round_significant,
) -> int:
    """Return the smallest number of digits, from `digits` on, that does not change the verdict.

    The verdict is lo <= measured <= hi. round_value: rounds a value to a number of digits; the
    built-in function round for digits after the decimal point.
    """
    is_inside = lo <= measured <= hi
    for n_digits in range(digits, digits + MAX_EXTRA_DIGITS):
        rounded, low, high = (round_value(value, n_digits) for value in (measured, lo, hi))
        if (low <= rounded <= high) == is_inside:
            return n_digits
    return digits + MAX_EXTRA_DIGITS


def format_percentages(measured: float, lo: float, hi: float) -> list[str]:
    """Return shares as percentages with equal decimals: one, or more if the verdict needs them."""
    values = [100 * value for value in (measured, lo, hi)]
    digits = count_digits(*values, digits=1, round_value=round)
    return [f"{value:.{digits}f}" for value in values]
