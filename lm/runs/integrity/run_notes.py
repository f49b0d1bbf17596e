"""Sentences about all that a reader of a folder leaves out or has not verified.

    notes = run_notes.folder_notes(records.load_folder("runs/quickstart"))

A sentence names a file and the numbers of its damaged lines.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lm.runs import filesystem, json_files, records, run_selection
from lm.runs.integrity import record_checksums, stored_results

MAX_LISTED = 5  # numbers of lines in a sentence


def folder_notes(loaded: records.FolderRuns) -> list[str]:
    """Return sentences about other runs, unreadable runs, missing results and damaged lines."""
    notes = [run_selection.describe_others(loaded.others), *loaded.unreadable.values()]
    notes += [stored_results.describe_missing_result(row) for row in loaded.rows]
    notes += [f"{row['name']}: {row['warning']}" for row in loaded.rows if row.get("warning")]
    for row in loaded.rows:
        notes += describe_damaged_lines(row)
    notes.append(describe_unverified(loaded.rows))
    return [note for note in notes if note]


def describe_damaged_lines(row: Mapping) -> list[str]:
    """Return a sentence for each file of a run with damaged lines or without its last line.

    A cut last line is no damage until the run has ended.
    """
    folder, sentences = filesystem.open_path(Path(row["dir"])), []
    has_ended = row["status"] in records.TERMINAL_STATUSES
    has_checksums = row.get(record_checksums.VERSION) == record_checksums.FORMAT_VERSION
    has_lost_result = bool(stored_results.describe_missing_result(row))
    for name in json_files.FILES:
        if name == "evals.jsonl" and has_lost_result:  # described with its line
            continue
        content = json_files.read_file(folder / name)
        damaged = content.corrupt_lines + [content.truncated_line] * (
            has_ended and content.truncated_line > 0
        )
        if damaged:
            numbers = ", ".join(map(str, damaged[:MAX_LISTED]))
            more = f" and {len(damaged) - MAX_LISTED} more" if len(damaged) > MAX_LISTED else ""
            lines = f"line {numbers} is" if len(damaged) == 1 else f"lines {numbers}{more} are"
            sentences.append(f"{folder / name}: {lines} damaged and not used")
        elif name == "metrics.jsonl" and row["status"] == "done":
            rows = json_files.latest_rows(content.rows.values())
            if has_checksums and (rows[-1] if rows else {}).get("tokens") != row.get("tokens"):
                sentences.append(f"{folder / name} has no row of the last step")
    return sentences


def describe_unverified(rows: Sequence[Mapping]) -> str:
    """Return a sentence about the runs without checksums, "" if there are none."""
    n = sum(row.get(record_checksums.VERSION) == record_checksums.OLDEST_VERSION for row in rows)
    if not n:
        return ""
    runs = "1 run has" if n == 1 else f"{n} runs have"
    return f"{runs} no checksums (written by version 0.2): the records are not verified"
