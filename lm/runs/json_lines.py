"""Lines of JSON: write a row, read the valid rows of a file, count its invalid lines.

    rows = list(json_lines.read_rows(run_dir / "metrics.jsonl"))
    json_lines.count_invalid_lines(run_dir)          # {"metrics.jsonl": 1}

A valid line is a JSON object with an integer "step". A line is invalid if a crash cut it, or if it
has bytes that are not UTF-8. Readers skip invalid lines; status and report show their number.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.runs import filesystem

FILES = ("metrics.jsonl", "evals.jsonl", "events.jsonl")


def to_json(value: Any, indent: int | None = None) -> str:
    """Return plain data as JSON. NaN and infinity become text, because JSON has no such numbers."""
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity by their names."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of the valid lines of a file in order."""
    for line in filesystem.read_lines(path):
        row = _parse_line(line)
        if row is not None:
            yield row


def count_invalid_lines(run_dir: str | Path) -> dict[str, int]:
    """Return {file of the run: number of its invalid lines} for the files that have any.

    An unfinished last line is not counted, because a process may be writing it.
    """
    counts = {}
    for name in FILES:
        lines = filesystem.read_lines(filesystem.open_path(run_dir) / name)
        if lines and not lines[-1].endswith("}"):
            lines = lines[:-1]
        n_invalid = sum(_parse_line(line) is None for line in lines if line.strip())
        if n_invalid:
            counts[name] = n_invalid
    return counts


def describe_invalid_lines(run_dir: str | Path) -> list[str]:
    """Return a sentence for each file of the run with invalid lines."""
    folder = filesystem.open_path(run_dir)
    return [
        f"{folder / name}: {n} invalid {'line was' if n == 1 else 'lines were'} skipped"
        for name, n in count_invalid_lines(folder).items()
    ]


def _parse_line(line: str) -> dict | None:
    """Return the row of a line, or None if the line is invalid."""
    try:
        line.encode()  # fails for the surrogates that represent invalid bytes
        row = json.loads(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int
    return row if is_row and type(row.get("attempt", 0)) is int else None
