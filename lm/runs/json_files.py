"""JSON files of a run: objects and lines with their checksums.

    json_files.write_record(run_dir / "facts.json", facts)
    facts = json_files.read_record(run_dir / "facts.json")
    rows = json_files.read_rows(run_dir / "metrics.jsonl")
    json_files.read_file(run_dir / "metrics.jsonl").corrupt_lines    # [3]: number of the third line

A valid line is a JSON object with an integer "step" and the checksum of its run: see
integrity/record_checksums.py. Other lines are damaged, and readers do not use them. Status and
report list their numbers. A crash can cut the last line of a run, which is no damage until the run
has ended.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.runs import filesystem
from lm.runs.integrity import record_checksums

FILES = ("metrics.jsonl", "evals.jsonl", "events.jsonl", "checkpoints/proofs.jsonl")
MAX_READS, APPEND_SECONDS = 3, 0.05  # reads of a file with an unfinished last line
RESTART = "restart"  # entry of a row that voids the rows after its step


class JsonLines(NamedTuple):
    """Content of a .jsonl file."""

    rows: dict[int, dict]  # number of a valid line, from 1 -> its row without its checksum
    corrupt_lines: list[int]  # their numbers
    truncated_line: int  # number of an unfinished last line, else 0


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


def read_object(path: Path) -> dict:
    """Load a JSON object. Raises ValueError that names the file if it contains none."""
    try:
        value = json.loads(filesystem.read_limited_text(filesystem.open_path(path)))
    except (ValueError, RecursionError) as error:
        remedy = record_checksums.describe_remedy(path)
        raise ValueError(f"{path} is not valid JSON: {error}: {remedy}") from error
    if not isinstance(value, dict):
        kind, remedy = type(value).__name__, record_checksums.describe_remedy(path)
        raise ValueError(f"{path} must be a JSON object, not {kind}: {remedy}")
    return value


def write_object(path: Path, value: dict) -> None:
    """Replace a JSON file atomically. It has no checksum, see `write_record`."""
    filesystem.write_file(filesystem.open_path(path), to_json(value, indent=1) + "\n")


def read_optional_record(file: Path) -> dict:
    """Load a file as `read_record`. Return an empty dict if it does not exist."""
    return read_record(file) if file.exists() else {}


def read_record(path: Path) -> dict:
    """Load a file of `write_record`, without its checksum. Raises ValueError if it is damaged."""
    return record_checksums.verify_object(path, read_object(path))


def write_record(path: Path, value: dict) -> None:
    """Replace a JSON file atomically, with a checksum and the version of the format."""
    content = record_checksums.add_checksum(json.loads(to_json(value)))
    filesystem.write_file(filesystem.open_path(path), to_json(content, indent=1) + "\n")


def run_id(path: Path) -> str | None:
    """Return the run_id in config.json, or in facts.json, of the run that contains a file.

    Return None for a run of version 0.2, which has no run_id and no checksums. Raises ValueError if
    the file is damaged.
    """
    for folder in (path.parent, path.parent.parent):
        for file in (folder / "config.json", folder / "facts.json"):
            if file.exists():
                return read_record(file).get("run_id")
    return None


def read_file(path: Path) -> JsonLines:
    """Load a .jsonl file, and verify the checksum of each line."""
    lines = filesystem.read_lines(path)
    return parse_lines(lines, run_id(path) if lines else None)


def parse_lines(lines: Sequence[str], expected_run_id: str | None) -> JsonLines:
    """Return the content of the lines of a .jsonl file. expected_run_id: see `run_id`."""
    rows, corrupt_lines, truncated_line = {}, [], 0
    for number, line in enumerate(lines, 1):
        row = _parse_line(line, expected_run_id)
        if row is not None:
            rows[number] = row
        elif number == len(lines) and not line.endswith("}"):
            truncated_line = number
        elif line.strip():
            corrupt_lines.append(number)
    return JsonLines(rows, corrupt_lines, truncated_line)


def read_rows(path: Path) -> list[dict]:
    """Return the rows of the valid lines of a file in order."""
    return list(read_file(path).rows.values())


def find_missing_step(path: Path, step: int, content: JsonLines | None = None) -> str:
    """Return the reason why a .jsonl file has no intact row of a step, "" if it has one.

    A damaged line after the row may have replaced the row. path: file of a run that has ended.
    content: of the file, None to read it.
    """
    if content is None or content.truncated_line:
        content = _read_complete_file(path)
    rows = latest_rows(content.rows.values())
    numbers = {id(row): number for number, row in content.rows.items()}
    final_line = max((numbers[id(row)] for row in rows if row["step"] == step), default=0)
    damaged = max([*content.corrupt_lines, content.truncated_line])
    if not final_line:
        cause = f": line {damaged} is damaged" if damaged else ""
        return f"{path.name} has no evaluation of the final step {step}{cause}"
    if damaged > final_line:
        return f"line {damaged} of {path.name} is damaged and may replace the final evaluation"
    return ""


def _read_complete_file(path: Path) -> JsonLines:
    """Load a .jsonl file of a run that has ended, and wait while a line is being appended.

    `experiments.evaluate --keep` appends a line, and a reader may see only its first part.
    """
    content = read_file(path)
    for _ in range(MAX_READS - 1):
        if not content.truncated_line:
            break
        time.sleep(APPEND_SECONDS)
        content = read_file(path)
    return content


def read_latest_rows(path: Path) -> list[dict]:
    """Load a .jsonl file in order of steps, with the last row of the last attempt for each step."""
    return latest_rows(read_rows(path))


def latest_rows(rows: Iterable[dict]) -> list[dict]:
    """Return the row of the last attempt for each step, in order of steps.

    rows: rows of a file in order. Rows that a later attempt has voided are left out: see
    records.start_run.
    """
    by_step: dict[int, dict] = {}
    restarts: list[dict] = []
    for row in rows:
        if RESTART in row:
            restarts.append(row)
            by_step = {step: old for step, old in by_step.items() if not _is_voided(old, row, 0)}
        elif not any(_is_voided(row, restart, restart["attempt"]) for restart in restarts):
            previous = by_step.get(row["step"], row)
            if row.get("attempt", 0) >= previous.get("attempt", 0):
                by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]


def _is_voided(row: dict, restart: dict, attempt: int) -> bool:
    """Return True if a row belongs to weights that do not exist since a restart.

    attempt: number for a row without an attempt.
    """
    return row.get("attempt", attempt) < restart["attempt"] and row["step"] > restart["step"]


def _parse_line(line: str, expected_run_id: str | None) -> dict | None:
    """Return the row of a line without its checksum, or None if the line is damaged."""
    try:
        line.encode()  # fails for the surrogates that represent invalid bytes
        content = record_checksums.verify_line(line, expected_run_id)
        row = json.loads(content) if content else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row if type(row.get("attempt", 0)) is int else None
