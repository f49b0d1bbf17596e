"""Sentences about all that a reader of a folder leaves out or has not verified.

    notes = run_notes.folder_notes(records.load_folder("runs/quickstart"))

A sentence names a file and the numbers of its damaged lines.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lm.runs import filesystem, json_files, records, run_selection
from lm.runs.integrity import record_checksums, record_lines, stored_results

HELDOUT_FILE = "heldout.npz"  # see records.py


def folder_notes(loaded: records.FolderRuns) -> list[str]:
    """Return sentences about other runs, unreadable runs, missing results and damaged lines."""
    notes = [run_selection.describe_others(loaded.others), *loaded.unreadable.values()]
    notes += [stored_results.describe_missing_result(row) for row in loaded.rows]
    notes += [f"{row['name']}: {row['warning']}" for row in loaded.rows if row.get("warning")]
    for row in loaded.rows:
        notes += describe_files(row)
    notes.append(describe_unverified(loaded.rows))
    return [note for note in notes if note]


def describe_files(row: Mapping) -> list[str]:
    """Return a sentence for each file of a run that is missing or has lost lines."""
    folder, sentences = filesystem.open_path(Path(row["dir"])), []
    has_ended = row["status"] in records.TERMINAL_STATUSES
    has_checksums = row.get(record_checksums.VERSION) == record_checksums.FORMAT_VERSION
    has_lost_result = bool(stored_results.describe_missing_result(row))
    run_id, facts = json_files.run_id(folder / "metrics.jsonl"), records.read_facts(folder)
    for name in json_files.FILES:
        if name == "evals.jsonl" and has_lost_result:  # described with its line
            continue
        content = json_files.parse_lines(filesystem.read_lines(folder / name), run_id)
        if lost := record_lines.describe_lost_lines(folder, name, has_ended, content, facts):
            sentences.append(lost)
        elif name == "metrics.jsonl" and "imported.from" in row:
            continue  # a published model was not trained here
        elif name == "metrics.jsonl" and row["status"] == "done" and has_checksums:
            rows = json_files.latest_rows(content.rows.values())
            if (rows[-1] if rows else {}).get("tokens") != row.get("tokens"):
                sentences.append(f"{folder / name} has no row of the last step")
    if row["status"] == "done" and has_checksums and records.LOSS in row:
        if not (folder / HELDOUT_FILE).exists():
            sentences.append(f"{folder / HELDOUT_FILE} is missing: no paired errors with this run")
    return sentences


def describe_unverified(rows: Sequence[Mapping]) -> str:
    """Return a sentence about the runs without checksums, "" if there are none."""
    n = sum(row.get(record_checksums.VERSION) == record_checksums.OLDEST_VERSION for row in rows)
    if not n:
        return ""
    runs = "1 run has" if n == 1 else f"{n} runs have"
    return f"{runs} no checksums (written by version 0.2): the records are not verified"
