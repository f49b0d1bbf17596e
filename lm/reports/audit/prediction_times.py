"""Order of a prediction and of the runs that share training with its target.

    print(prediction_times.describe_order(prediction, rows))

A cooldown branch shares its training with its trunk run, and with the other branches of that run.
Therefore a prediction of a branch must be older than the start of the first of these runs. The page
and the audit compare times with `is_in_order`, which allows for the clocks of two machines.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lm.runs import run_selection

CLOCK_SECONDS = 5.0  # difference between the clocks of two machines


class RelatedStarts(NamedTuple):
    """Starts of the target and of the runs that share training with it."""

    known: list[tuple[float, Mapping]]  # seconds since 1970 and row, sorted by time
    unknown: list[str]  # names of the runs without a start in the records


def describe_order(prediction: Mapping, rows: Sequence[Mapping]) -> str:
    """Return a sentence that states if the prediction is older than the training of its target.

    prediction: content of prediction.json. rows: all runs of the sweep that have started.
    """
    target = str(prediction.get("target"))
    starts, written = related_starts(target, rows), parse_seconds(prediction.get("written"))
    if not starts.known and not any(row["name"] == target for row in rows):
        return "The prediction was stored, and the run has not started."
    is_after = written is not None and _is_after(written, starts)
    if written is None or (starts.unknown and not is_after):
        return "The records do not show if the prediction was stored before the run started."
    order, first = "after" if is_after else "before", starts.known[0][1]
    if first["name"] == target:
        return f"The prediction was stored {order} the run started."
    return (
        f"The prediction was stored {order} {_short_name(first['name'])} started, the first run"
        f" that shares training with {_short_name(target)}."
    )


def describe_times(prediction: Mapping, rows: Sequence[Mapping]) -> str:
    """Return the time of the prediction and that of the first start, "" if one is unknown."""
    target = str(prediction.get("target"))
    starts, written = related_starts(target, rows), parse_seconds(prediction.get("written"))
    if written is None or not starts.known or (starts.unknown and not _is_after(written, starts)):
        return ""
    started, first = starts.known[0]
    related = "" if first["name"] == target else ", the first related run,"
    text = (
        f"The prediction was stored at {_format_seconds(written)}, and"
        f" {_short_name(first['name'])}{related} started at {_format_seconds(started)}."
    )
    if _is_after(written, starts):
        return text
    if written > started:
        text += f" The clocks of two machines may differ by {CLOCK_SECONDS:g} seconds."
    return (
        f"{text} The sweep stores a prediction before it starts the target, its trunk run, or"
        " another branch of that run."
    )


def related_starts(target: str, rows: Sequence[Mapping]) -> RelatedStarts:
    """Return the starts of the target and of the runs that share training with it.

    rows: all runs of the sweep that have started. A trunk run without a row has an unknown start.
    """
    by_name = {str(row["name"]): row for row in rows}
    starts = {
        name: (str(row.get("start.run") or ""), str(row.get("start.restore") or ""))
        for name, row in by_name.items()
    }
    names = run_selection.related_names(target, starts)
    times = {name: parse_seconds(by_name.get(name, {}).get("started")) for name in sorted(names)}
    known = [(time, by_name[name]) for name, time in times.items() if time is not None]
    known.sort(key=lambda start: start[0])
    return RelatedStarts(known, [name for name, time in times.items() if time is None])


def is_in_order(first: float, second: float) -> bool:
    """Return True if a time is not after a second one, except for the difference of two clocks.

    Both are in seconds since 1970.
    """
    return first <= second + CLOCK_SECONDS


def _is_after(written: float, starts: RelatedStarts) -> bool:
    """Return True if a related run started before the prediction was written."""
    return bool(starts.known) and not is_in_order(written, starts.known[0][0])


def _short_name(name: object) -> str:
    return str(name).rpartition("/")[2]


def _format_seconds(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def parse_seconds(time: object) -> float | None:
    """Return an ISO 8601 time in seconds since 1970, None for another value."""
    try:
        return datetime.datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return None
