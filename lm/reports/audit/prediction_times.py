"""Order of a prediction and of the runs that share training with its target.

    print(prediction_times.describe_order(prediction, rows))

A cooldown branch shares its training with its trunk run, and with the other branches of that run.
Therefore a prediction of a branch must be older than the start of the first of these runs. Recorded
times have a resolution of one second. A sweep stores the prediction before it starts the first of
these runs, so equal times are in this order.
"""

import datetime
from collections.abc import Mapping, Sequence


def describe_order(prediction: Mapping, rows: Sequence[Mapping]) -> str:
    """Return a sentence: was the prediction stored before the training of its target started?

    prediction: content of prediction.json. rows: all runs of the sweep that have started.
    """
    if not related_rows(str(prediction.get("target")), rows):
        return "It was stored, and the run has not started."
    first, written = _first_row(prediction, rows), parse_seconds(prediction.get("written"))
    if first is None or written is None:
        return "The records do not show if it was stored before the run started."
    is_before = written <= (parse_seconds(first["started"]) or 0.0)
    order = "before" if is_before else "after"
    if first["name"] == prediction.get("target"):
        return f"It was stored {order} the run started."
    name = str(first["name"]).rpartition("/")[2]
    return f"It was stored {order} {name} started, the first run that shares training with it."


def describe_times(prediction: Mapping, rows: Sequence[Mapping]) -> str:
    """Return the time of the prediction and that of the first start, "" if one is unknown."""
    first, written = _first_row(prediction, rows), parse_seconds(prediction.get("written"))
    if first is None or written is None:
        return ""
    name = str(first["name"]).rpartition("/")[2]
    stored, started = map(_format_seconds, (written, parse_seconds(first["started"]) or 0.0))
    related = "" if first["name"] == prediction.get("target") else ", the first related run,"
    return (
        f"The prediction was stored at {stored}, and {name}{related} started at {started}. The"
        " sweep stores a prediction before it starts the target, its trunk run, or another branch"
        " of that run."
    )


def _first_row(prediction: Mapping, rows: Sequence[Mapping]) -> Mapping | None:
    """Return the related row with the first start, None if a start is unknown."""
    related = related_rows(str(prediction.get("target")), rows)
    times = [parse_seconds(row.get("started")) for row in related]
    known = [time for time in times if time is not None]
    return related[times.index(min(known))] if related and len(known) == len(times) else None


def _format_seconds(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def related_rows(target: str, rows: Sequence[Mapping]) -> list[Mapping]:
    """Return the rows of the target, of the runs that it starts from, and of all their branches."""
    by_name = {str(row["name"]): row for row in rows}
    related, name = set(), target
    while name in by_name and name not in related:
        related.add(name)
        name = str(by_name[name].get("start.run"))
    n_related = 0
    while len(related) > n_related:
        n_related = len(related)
        related |= {name for name, row in by_name.items() if row.get("start.run") in related}
    return [by_name[name] for name in by_name if name in related]


def parse_seconds(time: object) -> float | None:
    """Return an ISO 8601 time in seconds since 1970, None if it is none."""
    try:
        return datetime.datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return None
