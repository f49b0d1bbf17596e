"""Run directories: write the records of a run, load all runs of a folder as rows.

    rows = records.load_runs("runs/quickstart")      # one flat dict per run

The files of a run:
    runs/quickstart/100K/
        config.json       every field of the config
        facts.json        metadata: status, counts, FLOPs, devices, versions, corpus
        metrics.jsonl     one line per log step: attempt, step, tokens, flops, loss, ...
        evals.jsonl       one line per evaluation: attempt, step, loss, bits_per_byte, ...
        heldout.npz       loss sums per document of the last evaluation
        tasks.npz         points of each task example, see items/task_items.py
        events.jsonl      one line per event, see log_event
        tokenizer.json    the tokenizer; absent for bytes
        checkpoints/      weights and optimizer state
        tensorboard/      a copy of the metrics for TensorBoard
    runs/quickstart/      also contains sweep.json, plan.json, prediction.json with its log, and
                          report.html

A sweep consists of the runs that its sweep.json names. Other runs in the folder of a sweep are not
part of it: `load_runs` leaves them out unless include_others=True.

The entry "invalid_results" of facts.json marks results that were measured wrongly, as {result:
reason}. A result is a column without its metric: "task.brackets?depth=2" marks all columns
task.brackets?depth=2.METRIC and task_se.brackets?depth=2.METRIC. evals.jsonl still has the numbers,
and no reader returns them. Set it with `write_facts`, because facts.json has a checksum.

The status is running, done, diverged, failed (an error) or lost (ended by a signal or with its
machine). A lost run continues when it is started again. status.py calls it interrupted or crashed.

JSON files are replaced atomically. Files that end in .jsonl are append-only. If two attempts wrote
a line for the same step, readers use the line of the later attempt. Lines of weights that an
attempt discarded are void, see `start_run`. A run directory may be in a bucket. Only the primary
process of a run writes: see `Writer`.

Each JSON file and each line has a checksum, and the format has a version: see
integrity/record_checksums.py. A damaged JSON file raises ValueError. Readers do not use damaged
lines, and status and report name them. A run whose final evaluation is missing or damaged has no
result.
"""

import dataclasses
import datetime
import functools
import math
import os
import secrets
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeGuard

from lm.config import fields, schema
from lm.runs import filesystem, json_files, lock
from lm.runs.integrity import (
    changed_fields,
    record_checksums,
    record_lines,
    restarts,
    stored_config,
    stored_results,
    sweep_files,
)

# Config fields that affect how a run computes or is stored, not its result.
EXECUTION_FIELDS = fields.fields_with("execution", schema.Run)
# Fields that change the results of an evaluation. Their rows would not belong to one curve.
EVALUATION_FIELDS = ("eval.n_sequences", "eval.n_completions", "eval.on_overflow")
TERMINAL_STATUSES = ("done", "diverged")  # final values of the status
# Entries of facts.json that are no columns.
PRIVATE_FACTS = ("run_id", "format", record_lines.N_LINES, record_lines.N_MISSING)
LEFT_OUT = ". The run is left out."  # end of the reason of an unreadable run
# Columns of the rows that `load_runs` returns.
N_PARAMS = "params.non_embedding"
TOKENS = "tokens"
FLOPS = "flops"
LOSS, BITS_PER_BYTE = "eval.loss", "eval.bits_per_byte"


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writer of the records of one run. Its methods do nothing unless is_primary is True."""

    folder: Path
    is_primary: bool = True

    @functools.cached_property
    def run_id(self) -> str:
        """Identifier of the run, which is the same for all attempts."""
        return json_files.run_id(self.folder / "evals.jsonl") or ""

    def write_facts(self, **facts) -> None:
        """Add or replace entries of facts.json."""
        if self.is_primary:
            write_facts(self.folder, **facts)

    def append(self, name: str, row: dict) -> None:
        """Append a row to the .jsonl file `name` of the run. Only the primary process writes."""
        if self.is_primary:
            line = record_checksums.add_line_checksum(json_files.to_json(row), self.run_id)
            filesystem.append_line(self.folder / name, line)

    def write_file(self, name: str, data: bytes) -> None:
        """Replace a file of the run."""
        if self.is_primary:
            filesystem.write_file(self.folder / name, data)

    def event(self, attempt: int, step: int, name: str, details: str) -> None:
        """Append an event to events.jsonl, see `log_event`."""
        if self.is_primary:
            log_event(self.folder, attempt, step, name, details)

    def repair(self) -> None:
        """Repair the append-only files, see `record_lines.repair_records`."""
        if self.is_primary:
            record_lines.repair_records(self.folder)


def run_dir(run: schema.Run) -> Path:
    """Return the directory of the run: run.dir/run.name."""
    return filesystem.open_path(run.dir) / run.name


def read_config(path: str | Path) -> schema.Run:
    """Load the config of a run directory, with the `name` and `dir` of the current location.

    Raises ValueError if the directory contains no run, a damaged run, or a run of another format.
    """
    path = filesystem.open_path(path)
    file = path / "config.json"
    if not file.exists():
        raise ValueError(
            f"{path} is not a run directory: config.json is missing. Pass a directory below runs/."
        )
    facts = read_facts(path)
    stored_config.check_format(path, facts)
    run = stored_config.load_config(path, facts)[0]
    names = Path(run.name).parts or (path.name,)
    if path.parts[-len(names) :] != names and not filesystem.is_remote(path):
        path = Path(os.path.abspath(path))  # a renamed folder, a link or a short relative path
    run.name = "/".join(path.parts[-len(names) :])
    run.dir = str(path).removesuffix(run.name) or "."
    return run


def check_same_config(run: schema.Run) -> None:
    """Check that the run on disk, if any, has the same config. Write nothing.

    Raises ValueError for a nested run, and for changed fields except those of changed_fields.py.
    EVALUATION_FIELDS may change until the run has evaluations. Raises ValueError for more steps of
    a run that is done, if it has no checkpoint.
    """
    path = run_dir(run)
    filesystem.check_not_nested(path)
    facts = read_facts(path)
    stored_config.check_format(path, facts)
    if not (path / "config.json").exists():
        return
    stored_run = stored_config.load_config(path, facts, is_used=False)[0]
    new, old = schema.flatten(run), schema.flatten(stored_run)
    n_done = changed_fields.count_completed_steps(path, facts)
    conflicts = changed_fields.describe_conflicts(old, new, n_done)
    if conflicts:
        raise ValueError(
            f"{path} was started with {conflicts}: choose a new name (start.run={run.name} starts"
            " from its weights), or pass --adopt to a sweep for the stored values"
        )
    if facts.get("status") == "done" and not (is_finished(run) or changed_fields.newest_step(path)):
        raise ValueError(changed_fields.describe_lost_weights(path, run.steps, n_done))
    settings = changed_fields.describe_changes(old, new, EVALUATION_FIELDS)
    if settings and not is_finished(run) and load_evals(path):
        raise ValueError(
            f"{path} has evaluations with {settings}: the evaluations of a run must have equal"
            " settings. Restore the value, or choose a new name"
        )


def start_run(run: schema.Run, facts: dict, valid_until: int | None = None) -> int:
    """Prepare the run directory for the next attempt. Return the number of the attempt, from 1.

    Write config.json, repair the append-only files, and add `facts` to facts.json. valid_until:
    step of the restored weights, -1 without any. Metrics and evaluations after it belong to
    weights that no longer exist, and become void. None voids no row. Raises ValueError if the
    directory has another config or another format, or if early stopping needs a damaged evaluation.
    """
    check_same_config(run)
    path = run_dir(run)
    path.mkdir(parents=True, exist_ok=True)
    stored = read_facts(path)
    restarts.check_evaluations(path, run.eval.patience)
    record_lines.repair_records(path)
    record_lines.check_records(path)
    has_config = (path / "config.json").exists()
    run_id = stored.get("run_id")
    if has_config:
        run_id = stored_config.load_config(path, stored, is_used=False)[1]
    if run_id is None:
        run_id = secrets.token_hex(8)
        restarts.add_checksums(path, run_id)
    # facts.json may have been deleted, so that only the lines contain earlier attempts.
    attempt = max(stored.get("attempts", 0), restarts.last_attempt(path)) + 1
    if valid_until is not None:
        restarts.void_rows(path, attempt, valid_until, run_id)
    facts = {"run_id": run_id, "attempts": attempt, "status": "running", "reason": ""} | facts
    facts["started"] = stored.get("started") or current_time()
    write_facts(path, **facts | {name: None for name in ("ends_at", "ended") if name in stored})
    # A config with a run_id requires it in facts.json and in all lines, and is written last.
    json_files.write_record(path / "config.json", {"run_id": run_id} | schema.to_dict(run))
    return attempt


def result_fields(run: schema.Run) -> dict:
    """Return {field: value} of the config without EXECUTION_FIELDS and without the name."""
    excluded = {*EXECUTION_FIELDS, "name"}
    return {field: value for field, value in schema.flatten(run).items() if field not in excluded}


def read_facts(path: Path) -> dict:
    """Load facts.json as a flat dict. Return an empty dict before the first start."""
    return json_files.read_optional_record(filesystem.open_path(path) / "facts.json")


def write_facts(path: Path, **facts) -> None:
    """Add or replace entries of facts.json. A terminal status adds the time "ended"."""
    file = filesystem.open_path(path) / "facts.json"
    run_id = json_files.run_id(file)
    stored = {"run_id": run_id} if run_id else {}  # facts.json may have been deleted
    stored |= {key: value for key, value in read_facts(path).items() if key != "format"}
    if facts.get("status") in TERMINAL_STATUSES:
        facts = {"ended": current_time()} | facts
    json_files.write_record(file, stored | facts)


def current_time() -> str:
    """Return the current time in UTC as ISO 8601, in seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def append_record(path: Path, row: dict) -> None:
    """Append a row to a .jsonl file of a run, as one line of JSON with its checksum."""
    run_id = json_files.run_id(path) or ""
    line = record_checksums.add_line_checksum(json_files.to_json(row), run_id)
    filesystem.append_line(path, line)


def log_event(path: Path, attempt: int, step: int, name: str, details: str) -> None:
    """Append an event, such as damaged, nonfinite, skipped, rewound, spike or no improvement."""
    row = {"attempt": attempt, "step": step, "event": name, "words": details}
    append_record(path / "events.jsonl", row)


def load_events(path: str | Path) -> list[dict]:
    """Load the events of a run in order."""
    return json_files.read_rows(filesystem.open_path(path) / "events.jsonl")


def load_metrics(path: str | Path) -> list[dict]:
    """Load metrics.jsonl in order of steps, with the row of the last attempt for each step."""
    return json_files.read_latest_rows(filesystem.open_path(path) / "metrics.jsonl")


def load_evals(path: str | Path) -> list[dict]:
    """Load evals.jsonl of a run folder by step, with the row of the last attempt for each step.

    Results in the entry "invalid_results" of facts.json are left out.
    """
    rows = json_files.read_latest_rows(filesystem.open_path(path) / "evals.jsonl")
    return stored_results.valid_rows(rows, read_facts(filesystem.open_path(path)))


def attempt_metrics(path: str | Path, before: int) -> list[dict]:
    """Return the last log step of each attempt whose number is below `before`."""
    last = {
        row["attempt"]: row
        for row in json_files.read_rows(filesystem.open_path(path) / "metrics.jsonl")
        if json_files.RESTART not in row
    }
    return [row for number, row in sorted(last.items()) if number < before]


def extend_evals(path: str | Path, step: int, results: dict) -> None:
    """Append a line that adds results to the evaluation of a step. Repair an unfinished line."""
    path = filesystem.open_path(path)
    if not lock.is_alive(path):
        filesystem.repair_append_file(path / "evals.jsonl")
    evaluations = {row["step"]: row for row in load_evals(path)}
    old = evaluations.get(step, {"attempt": read_facts(path).get("attempts", 0), "step": step})
    append_record(path / "evals.jsonl", old | results)


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
    such runs. Warn of unreadable runs and lost results. Raises ValueError if no run can be read.
    """
    runs = load_folder(path)
    rows = [*runs.rows, *runs.others] if include_others else runs.rows
    missing = filter(None, map(stored_results.describe_missing_result, rows))
    for reason in (*runs.unreadable.values(), *missing):
        warnings.warn(reason, stacklevel=2)
    return sorted(rows, key=_row_order)


def load_folder(path: str | Path) -> FolderRuns:
    """Load all runs below `path`: those of a sweep, the others, and the unreadable ones.

    For the rows see `load_runs`. Raises ValueError if there are runs and none can be read.
    """
    top = filesystem.open_path(path)
    members: dict[Path, set[str] | None] = {}
    rows, unreadable = [], {}
    for folder in sweep_files.find_run_dirs(top):
        try:
            row = _load_row(folder)
            row["in_sweep"] = sweep_files.is_in_sweep(folder, row["name"], top, members)
            rows.append(row)
        except (ValueError, OSError) as error:
            unreadable[folder] = f"{error}{LEFT_OUT}"
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
    n_params = row.get(N_PARAMS)
    return n_params if is_finite(n_params) else 0, row["name"]


def _load_row(folder: Path) -> dict:
    """Return the row of one run. Raises ValueError if its records cannot be read."""
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json: restore it, or delete the folder")
    facts = read_facts(folder)
    stored_config.check_format(folder, facts)
    run, run_id = stored_config.load_config(folder, facts, is_used=False)
    content = json_files.parse_lines(filesystem.read_lines(folder / "evals.jsonl"), run_id)
    evaluations = stored_results.valid_rows(json_files.latest_rows(content.rows.values()), facts)
    if run_id and not facts and (evaluations or load_metrics(folder)):
        raise ValueError(f"{folder} has no facts.json: restore it, or start the run again")
    stored_results.check_counts(folder, run, facts)
    reason, ends_at = facts.get("reason", ""), facts.get("ends_at")
    last = [row for row in evaluations if row["step"] == ends_at or ends_at is None][-1:]
    fields = schema.flatten(run)
    if ends_at is not None and stored_results.has_final_evaluation(fields | facts):
        problem = json_files.find_missing_step(folder / "evals.jsonl", ends_at, content)
        reason, last = "; ".join(filter(None, (reason, problem))), [] if problem else last
    # The rows of a sweep share the names of their columns, which take most of the memory.
    results = {sys.intern(f"eval.{key}"): value for row in last for key, value in row.items()}
    status = facts.pop("status", "lost")
    if status == "running" and not lock.is_alive(folder):
        status = "lost"  # a killed process cannot write its status
    version = record_checksums.FORMAT_VERSION if run_id else record_checksums.OLDEST_VERSION
    facts = {sys.intern(key): facts[key] for key in facts if key not in PRIVATE_FACTS}
    row = fields | facts | results | {"status": status, "dir": str(folder)}
    row[record_checksums.VERSION] = version
    return row | {"reason": reason} if reason else row


def is_finite(value: object) -> TypeGuard[float]:
    """Return True if a cell of a row is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_finished(run: schema.Run) -> bool:
    """Return True if the run has diverged, or if it is done and `run` has no further steps.

    If the final evaluation is lost and a checkpoint exists, the next attempt evaluates it. With
    eval.patience that checkpoint may be another one, and the run is done.
    """
    facts = read_facts(folder := run_dir(run))
    status, ends_at = facts.get("status"), facts.get("ends_at")
    is_evaluated = stored_results.has_final_evaluation(schema.flatten(run) | facts)
    if status != "done" or ends_at is None or run.eval.patience:
        return status in TERMINAL_STATUSES
    if run.steps > ends_at:
        return False
    is_lost = is_evaluated and json_files.find_missing_step(folder / "evals.jsonl", ends_at)
    return not (is_lost and changed_fields.newest_step(folder))
