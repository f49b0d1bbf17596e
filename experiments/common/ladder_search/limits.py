"""Limits of a search on the command line: durations and fractions."""

import re

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(text: str, flag: str = "time_budget") -> float:
    """Return the seconds of a duration such as 45s, 30m or 2h. Raises ValueError for others."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"--{flag}={text} must be a duration such as 45s, 30m or 2h")
    return float(match[1]) * UNIT_SECONDS[match[2]]


def parse_fraction(text: str, flag: str) -> float:
    """Return the number of 1% or 0.01. Raises ValueError unless it is above 0 and below 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise ValueError(f"--{flag}={text} must be a fraction such as 1% or 0.01")
    return value
