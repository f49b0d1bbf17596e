"""Change the .jsonl files of a run before its next attempt: add checksums, void discarded rows.

records.start_run calls these functions. `folder` is the directory of the run.
"""

from pathlib import Path

from lm.runs import filesystem, json_files
from lm.runs.integrity import record_checksums

STEP_FILES = ("metrics.jsonl", "evals.jsonl", "checkpoints/proofs.jsonl")


def check_evaluations(folder: Path, patience: int) -> None:
    """Raise ValueError if an evaluation is damaged and early stopping depends on it.

    patience: eval.patience of the run, 0 without early stopping.
    """
    file = folder / "evals.jsonl"
    damaged = json_files.read_file(file).corrupt_lines if patience else []
    if damaged:
        raise ValueError(
            f"{file}: line {damaged[0]} is damaged, and eval.patience={patience} needs all"
            " evaluations: start the run with a new name"
        )


def add_checksums(folder: Path, run_id: str) -> None:
    """Add checksums to the valid lines of a run of version 0.2."""
    for name in json_files.FILES:
        lines = filesystem.read_lines(folder / name)
        rows = json_files.read_file(folder / name).rows
        for number, row in rows.items():
            line = json_files.to_json(row)
            lines[number - 1] = record_checksums.add_line_checksum(line, run_id)
        if rows:
            filesystem.replace_lines(folder / name, lines)


def last_attempt(folder: Path) -> int:
    """Return the largest number of an attempt in the files of a run, 0 without any line."""
    rows = [row for name in json_files.FILES for row in json_files.read_rows(folder / name)]
    return max((row.get("attempt", 0) for row in rows), default=0)


def void_rows(folder: Path, attempt: int, step: int, run_id: str) -> None:
    """Append a row that voids the rows of earlier attempts after a step, and remove the arrays of
    the last evaluation.

    step: step of the restored weights. Files without such rows do not change.
    """
    for name in STEP_FILES:
        rows = json_files.latest_rows(json_files.read_rows(folder / name))
        if rows and rows[-1]["step"] > step:
            row = {"attempt": attempt, "step": step, json_files.RESTART: True}
            line = record_checksums.add_line_checksum(json_files.to_json(row), run_id)
            filesystem.append_line(folder / name, line)
            if name == "evals.jsonl":
                for arrays in ("heldout.npz", "tasks.npz"):
                    (folder / arrays).unlink(missing_ok=True)
