"""Lines of the .jsonl files of a run: repair, flush and count them, and describe lost ones.

    record_lines.sync_records(run_dir)                            # at each checkpoint
    record_lines.describe_lost_lines(run_dir, "metrics.jsonl")    # "", or a sentence

facts.json stores the number of lines of each file at every checkpoint and at the end of the run. A
file with fewer lines has lost some of them. The lines of a run in a bucket are not counted.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

from lm.config import run_files
from lm.runs import filesystem, json_files
from lm.runs.integrity import changed_fields

N_LINES = "n_lines"  # entry of facts.json: {file: number of its lines}
N_MISSING = "n_missing_lines"  # {file: number of lines that were missing before N_LINES was stored}
MAX_LISTED = 5  # numbers of lines in a sentence


def repair_records(folder: Path) -> None:
    """Repair the append-only files. Call it before an attempt and at the end of a run."""
    for name in json_files.FILES:
        filesystem.repair_append_file(folder / name)


def sync_records(folder: Path) -> None:
    """Flush the append-only files to the disk, and store their numbers of lines in facts.json.

    The flush protects the lines from a power cut.
    """
    for name in json_files.FILES:
        filesystem.sync_file(folder / name)
    store_counts(folder)


def store_counts(folder: Path) -> None:
    """Store the number of lines of each .jsonl file of a run that has started in facts.json."""
    if filesystem.is_remote(folder):
        return
    facts = json_files.read_optional_record(folder / "facts.json")
    counts = {name: filesystem.count_lines(folder / name) for name in json_files.FILES}
    missing = {name: _n_missing(folder, name, facts, n_lines) for name, n_lines in counts.items()}
    counts, missing = ({k: n for k, n in d.items() if n} for d in (counts, missing))
    new = {N_LINES: counts} | ({N_MISSING: missing} if missing else {})
    if new != {key: facts[key] for key in (N_LINES, N_MISSING) if key in facts}:
        json_files.write_record(folder / "facts.json", facts | new)


def check_records(folder: Path) -> None:
    """Warn of the damaged and the missing lines of a run that continues.

    Call it before the attempt appends lines, because it stores the number of the missing lines.
    """
    for name in json_files.FILES:
        if sentence := describe_lost_lines(folder, name):
            warnings.warn(sentence, stacklevel=2)
    if N_LINES in json_files.read_optional_record(folder / "facts.json"):
        store_counts(folder)


def describe_lost_lines(
    folder: Path,
    name: str,
    has_ended: bool = False,
    content: json_files.JsonLines | None = None,
    facts: Mapping | None = None,
) -> str:
    """Return a sentence about the damaged and the missing lines of a file, "" without any.

    has_ended: True for a run that has ended. Its last line cannot be unfinished. content: of the
    file, None to read it. facts: content of facts.json, None to read it.
    """
    content, problems = content or json_files.read_file(folder / name), []
    damaged = content.corrupt_lines + [content.truncated_line] * (
        has_ended and content.truncated_line > 0
    )
    if damaged:
        numbers = ", ".join(map(str, damaged[:MAX_LISTED]))
        more = f" and {len(damaged) - MAX_LISTED} more" if len(damaged) > MAX_LISTED else ""
        lines = f"line {numbers} is" if len(damaged) == 1 else f"lines {numbers}{more} are"
        problems.append(f"{lines} damaged and not used")
    if facts is None:
        facts = json_files.read_optional_record(folder / "facts.json")
    if n_missing := _n_missing(folder, name, facts):
        problems.append("1 line is missing" if n_missing == 1 else f"{n_missing} lines are missing")
    return f"{folder / name}: {', '.join(problems)}" if problems else ""


def _n_missing(folder: Path, name: str, facts: Mapping, n_lines: int | None = None) -> int:
    """Return the number of lines that a file of a run has lost.

    n_lines: number of its lines, None to count them. A file in checkpoints/ has lost none if it
    was deleted together with all checkpoints.
    """
    is_deletable = Path(name).parts[0] == run_files.CHECKPOINTS
    if is_deletable and not (folder / name).exists() and not changed_fields.newest_step(folder):
        return 0
    n_stored, n_missing = _stored_count(facts, N_LINES, name), _stored_count(facts, N_MISSING, name)
    if n_lines is None:
        n_lines = filesystem.count_lines(folder / name) if n_stored else 0
    return n_missing + max(0, n_stored - n_lines)


def _stored_count(facts: Mapping, key: str, name: str) -> int:
    """Return a number of lines in facts.json, 0 without a valid number."""
    counts = facts.get(key)
    count = counts.get(name) if isinstance(counts, dict) else 0
    return count if type(count) is int else 0
