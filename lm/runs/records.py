"""Run directories: write the records of a run, load all runs of a folder as rows.

    rows = records.load_runs("runs/quickstart")      # one flat dict per run

The files of a run:
    runs/quickstart/100K/
        config.json       every field of the config
        facts.json        metadata: status, counts, FLOPs, devices, versions, corpus
        metrics.jsonl     one line per log step: attempt, step, tokens, flops, loss, ...
        evals.jsonl       one line per evaluation: attempt, step, loss, bits_per_byte, ...
        heldout.npz       loss sums per document of the last evaluation
        events.jsonl      one line per incident: damaged, skipped, rewound, spike
        tokenizer.json    the tokenizer; absent for bytes
        checkpoints/      weights and optimizer state
        tensorboard/      a copy of the metrics for TensorBoard
    runs/quickstart/      also contains sweep.json, plan.json, prediction.json and report.html

A sweep consists of the runs that its sweep.json names. Other runs in the folder of a sweep are not
part of it: `load_runs` leaves them out unless include_others=True.

The entry "invalid_results" of facts.json marks results that were measured wrongly, as {result:
reason}. A result is a column without its metric: "task.brackets?depth=2" marks all columns
task.brackets?depth=2.METRIC and task_se.brackets?depth=2.METRIC. evals.jsonl still has the numbers,
and no reader returns them.

The status is running, done, diverged, failed (an error) or lost (killed by a signal or with its
machine). A lost run continues when it is started again.

JSON files are replaced atomically. Files that end in .jsonl are append-only. If two attempts wrote
a line for the same step, readers use the line of the later attempt. Readers skip an incomplete last
line and every other invalid line, see json_lines.py. A run directory may be in a bucket.
Only the primary process of a run writes: see `Writer`.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeGuard

from lm.config import fields, schema, validation
from lm.runs import filesystem, json_lines, lock

# Format of a run directory, the field "format" of facts.json. Version 0.1 did not write it.
FORMAT = 2
# Config fields that affect how a run computes or is stored, not its result.
EXECUTION_FIELDS = fields.fields_with("execution", schema.Run)
TERMINAL_STATUSES = ("done", "diverged")  # final values of the status
APPEND_ONLY = ("metrics.jsonl", "evals.jsonl", "events.jsonl", "checkpoints/proofs.jsonl")

LEFT_OUT = ". The run is left out."  # end of the reason of an unreadable run

# Columns of the rows that `load_runs` returns.
N_PARAMS = "params.non_embedding"
TOKENS = "tokens"
FLOPS = "flops"
LOSS = "eval.loss"


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writer of the records of one run. Its methods do nothing unless is_primary is True."""

    folder: Path
    is_primary: bool = True

    def write_facts(self, **facts) -> None:
        """Add or replace entries of facts.json."""
        if self.is_primary:
            write_facts(self.folder, **facts)

    def append(self, name: str, row: dict) -> None:
        """Append a row to the .jsonl file `name` of the run. Only the primary process writes."""
        if self.is_primary:
            append_record(self.folder / name, row)

    def write_file(self, name: str, data: bytes) -> None:
        """Replace a file of the run."""
        if self.is_primary:
            filesystem.write_file(self.folder / name, data)

    def event(self, attempt: int, step: int, name: str, details: str) -> None:
        """Append an event to events.jsonl, see `log_event`."""
        if self.is_primary:
            log_event(self.folder, attempt, step, name, details)

    def repair(self) -> None:
        """Repair the append-only files, see `repair_records`."""
        if self.is_primary:
            repair_records(self.folder)


def run_dir(run: schema.Run) -> Path:
    """Return the directory of the run: run.dir/run.name."""
    return filesystem.open_path(run.dir) / run.name


def read_config(path: str | Path) -> schema.Run:
    """Load the config of a run directory and set its `dir` to the current location.

    Raises ValueError if the directory contains no run, or a run of another name or format.
    """
    path = filesystem.open_path(path)
    file = path / "config.json"
    if not file.exists():
        raise ValueError(
            f"{path} is not a run directory: config.json is missing. Pass a directory below runs/."
        )
    check_format(path)
    run = validation.parse_stored_run(read_json(file), file)
    if not str(path).endswith(run.name):
        raise ValueError(
            f"{path} contains the run {run.name}: the path must end in the name of the run."
            " Rename the folder."
        )
    run.dir = str(path).removesuffix(run.name) or "."
    return run


def check_format(path: Path) -> None:
    """Raise ValueError if version 0.1 or a later version with another format wrote the run."""
    facts = read_facts(path)
    if facts and facts.get("format") != FORMAT:
        version = facts.get("code.version", "0.1")
        raise ValueError(
            f"{path} was written by version {version}, format={facts.get('format')}: this version"
            f" reads format={FORMAT}. Use that version, or start a run with a new name."
        )


def check_same_config(run: schema.Run) -> None:
    """Check that the run on disk, if any, has the same config. Write nothing.

    Raises ValueError for a nested run, and for changed fields except those in EXECUTION_FIELDS.
    """
    path = run_dir(run) / "config.json"
    filesystem.check_not_nested(path.parent)
    if not path.exists():
        return
    check_format(path.parent)
    new, old = schema.flatten(run), schema.flatten(schema.from_dict(read_json(path)))
    changed = [
        f"{field}={old[field]!r}, now {value!r}"
        for field, value in new.items()
        if field not in EXECUTION_FIELDS and old[field] != value
    ]
    if changed:
        raise ValueError(
            f"{path.parent} was started with {'; '.join(changed)}: choose a new name (start.run="
            f"{run.name} starts from its weights), or pass --adopt to a sweep for the stored values"
        )


def start_run(run: schema.Run, facts: dict) -> int:
    """Prepare the run directory for the next attempt. Return the number of the attempt, from 1.

    Write config.json, repair the append-only files, and add `facts` to facts.json. Raises
    ValueError if the directory has another config or another format.
    """
    check_same_config(run)
    path = run_dir(run)
    path.mkdir(parents=True, exist_ok=True)
    repair_records(path)
    write_json(path / "config.json", schema.to_dict(run))
    attempt = read_facts(path).get("attempts", 0) + 1
    write_facts(path, attempts=attempt, status="running", reason="", **facts)
    return attempt


def result_fields(run: schema.Run) -> dict:
    """Return {field: value} of the config without EXECUTION_FIELDS and without the name."""
    excluded = {*EXECUTION_FIELDS, "name"}
    return {field: value for field, value in schema.flatten(run).items() if field not in excluded}


def sync_records(path: Path) -> None:
    """Flush the append-only files to the disk, which protects their lines from a power cut."""
    for name in APPEND_ONLY:
        filesystem.sync_file(path / name)


def repair_records(path: Path) -> None:
    """Repair the append-only files. Call it before an attempt and at the end of a run."""
    for name in APPEND_ONLY:
        filesystem.repair_append_file(path / name)


def read_facts(path: Path) -> dict:
    """Load facts.json as a flat dict. Return an empty dict before the first start."""
    file = filesystem.open_path(path) / "facts.json"
    return read_json(file) if file.exists() else {}


def write_facts(path: Path, **facts) -> None:
    """Add or replace entries of facts.json. A new file gets the entry "format"."""
    stored = read_facts(path) or {"format": FORMAT}
    write_json(filesystem.open_path(path) / "facts.json", stored | facts)


def append_record(path: Path, row: dict) -> None:
    """Append a row to a .jsonl file, as one line of JSON."""
    filesystem.append_line(path, json_lines.to_json(row))


def log_event(path: Path, attempt: int, step: int, name: str, details: str) -> None:
    """Append an event to events.jsonl, named damaged, nonfinite, skipped, rewound or spike."""
    row = {"attempt": attempt, "step": step, "event": name, "words": details}
    append_record(path / "events.jsonl", row)


def load_events(path: str | Path) -> list[dict]:
    """Load the events of a run in order."""
    return list(json_lines.read_rows(filesystem.open_path(path) / "events.jsonl"))


def load_metrics(path: str | Path) -> list[dict]:
    """Load metrics.jsonl in order of steps, with the row of the last attempt for each step."""
    return parse_json_lines(filesystem.open_path(path) / "metrics.jsonl")


def load_evals(path: str | Path) -> list[dict]:
    """Load evals.jsonl of a run folder by step, with the row of the last attempt for each step.

    Results in the entry "invalid_results" of facts.json are left out.
    """
    rows = parse_json_lines(filesystem.open_path(path) / "evals.jsonl")
    invalid = read_facts(filesystem.open_path(path)).get("invalid_results", {})
    return [_without_invalid(row, invalid) for row in rows] if invalid else rows


def _without_invalid(row: dict, invalid: Iterable[str]) -> dict:
    """Return a row of evals.jsonl without the results named in `invalid`."""

    def is_invalid(column: str) -> bool:
        measure, dot, name = column.partition(".")
        column = f"{measure.removesuffix('_se')}{dot}{name}"
        return any(column == result or column.startswith(f"{result}.") for result in invalid)

    return {key: value for key, value in row.items() if not is_invalid(key)}


def attempt_metrics(path: str | Path, before: int) -> list[dict]:
    """Return the last log step of each attempt whose number is below `before`."""
    last = {
        row["attempt"]: row
        for row in json_lines.read_rows(filesystem.open_path(path) / "metrics.jsonl")
    }
    return [row for number, row in sorted(last.items()) if number < before]


def extend_evals(path: str | Path, step: int, results: dict) -> None:
    """Add results to the evaluation of a step. Append a line that replaces the old line."""
    evaluations = {row["step"]: row for row in load_evals(path)}
    old = evaluations.get(step, {"attempt": 0, "step": step})
    append_record(filesystem.open_path(path) / "evals.jsonl", old | results)


class FolderRuns(NamedTuple):
    """All runs below a folder. Rows are sorted by the size of the model, smallest first."""

    rows: list[dict]  # runs that belong to their sweep, or to no sweep
    others: list[dict]  # runs in the folder of a sweep whose sweep.json does not name them
    unreadable: dict[Path, str]  # directory of a run whose records cannot be read -> reason


def load_runs(path: str | Path, include_others: bool = False) -> list[dict]:
    """Load the runs of the sweeps below `path` as flat dicts, smallest model first.

    The keys are "name", "dir" and all config fields ("optim.lr"). All entries of facts.json are
    keys too ("params.total", "status"). The results of the final evaluation have the prefix "eval."
    ("eval.loss"). With eval.patience, the final evaluation is that of the best checkpoint. Results
    in "invalid_results" are left out.

    include_others: also return runs in the folder of a sweep that its sweep.json does not name.
    "in_sweep" is False for these runs and True for all others. A folder without sweep.json has no
    such runs. Warn of each run whose records cannot be read. Raises ValueError if no run can be
    read.
    """
    runs = load_folder(path)
    for reason in runs.unreadable.values():
        warnings.warn(reason, stacklevel=2)
    rows = [*runs.rows, *runs.others] if include_others else runs.rows
    return sorted(rows, key=_row_order)


def load_folder(path: str | Path) -> FolderRuns:
    """Load all runs below `path`: those of a sweep, the others, and the unreadable ones.

    For the rows see `load_runs`. Raises ValueError if there are runs and none can be read.
    """
    top = filesystem.open_path(path)
    members: dict[Path, set[str] | None] = {}
    rows, unreadable = [], {}
    for file in filesystem.find_files(top, "config.json"):
        try:
            row = _load_row(file.parent)
            row["in_sweep"] = _is_in_sweep(file.parent, row["name"], top, members)
            rows.append(row)
        except ValueError as error:
            unreadable[file.parent] = f"{error}{LEFT_OUT}"
    if unreadable and not rows:
        more = f". {len(unreadable) - 1} more runs cannot be read" if len(unreadable) > 1 else ""
        raise ValueError(next(iter(unreadable.values())).removesuffix(LEFT_OUT) + more)
    rows.sort(key=_row_order)
    return FolderRuns(
        [row for row in rows if row["in_sweep"]],
        [row for row in rows if not row["in_sweep"]],
        unreadable,
    )


def _row_order(row: Mapping) -> tuple:
    return row.get(N_PARAMS, 0), row["name"]


def _load_row(folder: Path) -> dict:
    """Return the row of one run. Raises ValueError if its records cannot be read."""
    check_format(folder)
    facts, evaluations = read_facts(folder), load_evals(folder)
    file = folder / "config.json"
    fields = schema.flatten(validation.parse_stored_run(read_json(file), file, is_used=False))
    reason, ends_at = facts.get("reason", ""), facts.get("ends_at")
    last = [row for row in evaluations if row["step"] == ends_at][-1:]
    if ends_at is None:
        last = evaluations[-1:]
    elif not last and evaluations:
        reason = reason or f"evals.jsonl has no valid evaluation of the final step {ends_at}"
    results = {f"eval.{key}": value for row in last for key, value in row.items()}
    status = facts.get("status", "lost")
    if status == "running" and not lock.is_alive(folder):
        status = "lost"  # a killed process cannot write its status
    row = fields | facts | results | {"status": status, "dir": str(folder)}
    return row | {"reason": reason} if reason else row


def _is_in_sweep(folder: Path, name: str, top: Path, members: dict[Path, set[str] | None]) -> bool:
    """Return False if the nearest sweep.json between the run and `top` does not name the run.

    The folder of the run must also agree with its name, so that a copy of a run does not count.
    members: names of the runs of each folder that was examined, which this function extends.
    """
    sweep_dir = folder.parent
    while len(sweep_dir.parts) >= len(top.parts):
        if sweep_dir not in members:
            members[sweep_dir] = read_member_names(sweep_dir)
        names = members[sweep_dir]
        if names is not None:
            return name in names and name.endswith(f"/{folder.relative_to(sweep_dir).as_posix()}")
        if sweep_dir == sweep_dir.parent:
            break
        sweep_dir = sweep_dir.parent
    return True


def read_member_names(sweep_dir: Path) -> set[str] | None:
    """Return the names of the runs in sweep.json, None if there is no such file or entry.

    Raises ValueError that names the file if it is not JSON.
    """
    file = filesystem.open_path(sweep_dir) / "sweep.json"
    names = read_json(file).get("runs") if file.exists() else None
    return {str(name) for name in names} if isinstance(names, list) else None


def is_finite(value: object) -> TypeGuard[float]:
    """Return True if a cell of a row is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_finished(run: schema.Run) -> bool:
    """Return True if the run is done or has diverged."""
    return read_facts(run_dir(run)).get("status") in TERMINAL_STATUSES


def read_json(path: Path) -> dict:
    """Load a JSON object. Raises ValueError that names the file if it contains none."""
    try:
        value = json.loads(filesystem.read_limited_text(filesystem.open_path(path)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}: restore or delete it") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, not {type(value).__name__}: restore it")
    return value


def write_json(path: Path, value: dict) -> None:
    """Replace a JSON file atomically: readers see the old or the new content."""
    filesystem.write_file(filesystem.open_path(path), json_lines.to_json(value, indent=1) + "\n")


def parse_json_lines(path: Path) -> list[dict]:
    """Load a .jsonl file in order of steps, with the last row of the last attempt for each step."""
    by_step: dict[int, dict] = {}
    for row in json_lines.read_rows(path):
        previous = by_step.get(row["step"], row)
        if row.get("attempt", 0) >= previous.get("attempt", 0):
            by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]
