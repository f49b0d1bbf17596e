"""Run directories: write the records of a run, load all runs of a folder as rows, select rows.

    rows = records.load_runs("runs/quickstart")      # one flat dict per run

The files of a run:
    runs/quickstart/100K/
        config.json       every field of the config
        facts.json        metadata: status, counts, FLOPs, devices, versions, corpus
        metrics.jsonl     one line per log step: attempt, step, tokens, flops, loss, ...
        evals.jsonl       one line per evaluation: attempt, step, loss, bits_per_byte, ...
        events.jsonl      one line per incident: damaged, skipped, rewound, spike
        tokenizer.json    the tokenizer; absent for bytes
        checkpoints/      weights and optimizer state
        tensorboard/      a copy of the metrics for TensorBoard
    runs/quickstart/      also contains sweep.json, plan.json, prediction.json and report.html

The status is running, done, diverged, failed (an error) or lost (killed by a signal or with its
machine). A lost run continues when it is started again.

JSON files are replaced atomically. Files that end in .jsonl are append-only. If two attempts wrote
a line for the same step, readers use the line of the later attempt. Readers skip an incomplete last
line. A run directory may be in a bucket. Only the primary process of a run writes: see `Writer`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard

from lm.config import fields, schema
from lm.runs import filesystem, lock

# Format of a run directory, the field "format" of facts.json. Version 0.1 did not write it.
FORMAT = 2
# Config fields that affect how a run computes or is stored, not its result.
EXECUTION_FIELDS = fields.fields_with("execution", schema.Run)
TERMINAL_STATUSES = ("done", "diverged")  # final values of the status
APPEND_ONLY = ("metrics.jsonl", "evals.jsonl", "events.jsonl", "checkpoints/proofs.jsonl")

# Columns of the rows that `load_runs` returns.
N_PARAMS = "params.non_embedding"
TOKENS = "tokens"
FLOPS = "flops"
LOSS = "eval.loss"

BUDGET_TOLERANCE = 0.99  # token counts whose ratio is above this belong to one token budget


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
    run = schema.from_dict(read_json(file))
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
    filesystem.append_line(path, _dumps(row))


def log_event(path: Path, attempt: int, step: int, name: str, details: str) -> None:
    """Append an event to events.jsonl, named damaged, nonfinite, skipped, rewound or spike."""
    row = {"attempt": attempt, "step": step, "event": name, "words": details}
    append_record(path / "events.jsonl", row)


def load_events(path: str | Path) -> list[dict]:
    """Load the events of a run in order."""
    return list(_parsed(filesystem.open_path(path) / "events.jsonl"))


def load_metrics(path: str | Path) -> list[dict]:
    """Load metrics.jsonl in order of steps, with the row of the last attempt for each step."""
    return parse_json_lines(filesystem.open_path(path) / "metrics.jsonl")


def load_evals(path: str | Path) -> list[dict]:
    """Load evals.jsonl of a run folder by step, with the row of the last attempt for each step."""
    return parse_json_lines(filesystem.open_path(path) / "evals.jsonl")


def attempt_metrics(path: str | Path, before: int) -> list[dict]:
    """Return the last log step of each attempt whose number is below `before`."""
    last = {row["attempt"]: row for row in _parsed(filesystem.open_path(path) / "metrics.jsonl")}
    return [row for number, row in sorted(last.items()) if number < before]


def extend_evals(path: str | Path, step: int, results: dict) -> None:
    """Add results to the evaluation of a step. Append a line that replaces the old line."""
    evaluations = {row["step"]: row for row in load_evals(path)}
    old = evaluations.get(step, {"attempt": 0, "step": step})
    append_record(filesystem.open_path(path) / "evals.jsonl", old | results)


def load_runs(path: str | Path) -> list[dict]:
    """Load all runs below `path` as flat dicts, smallest model first.

    The keys are "name", "dir" and all config fields ("optim.lr"). All entries of facts.json are
    keys too ("params.total", "status"). The results of the final evaluation have the prefix "eval."
    ("eval.loss"). With eval.patience, the final evaluation is that of the best checkpoint. Raises
    ValueError if another version wrote one of the runs.
    """
    runs = []
    for file in filesystem.find_files(filesystem.open_path(path), "config.json"):
        check_format(file.parent)
        facts, evaluations = read_facts(file.parent), load_evals(file.parent)
        fields = schema.flatten(schema.from_dict(read_json(file)))
        ends_at = facts.get("ends_at")  # other evaluations are those of other weights
        last = [row for row in evaluations if ends_at in (None, row["step"])][-1:]
        results = {f"eval.{key}": value for row in last for key, value in row.items()}
        status = facts.get("status", "lost")
        if status == "running" and not lock.is_alive(file.parent):
            status = "lost"  # a killed process cannot write its status
        runs.append(fields | facts | results | {"status": status, "dir": str(file.parent)})
    return sorted(runs, key=lambda row: (row.get(N_PARAMS, 0), row["name"]))


def is_finite(value: object) -> TypeGuard[float]:
    """Return True if a cell of a row is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def finished_with(runs: Iterable[dict], x: str, y: str) -> list[dict]:
    """Return the finished runs, except trunk runs, with finite columns x and y, sorted by x."""
    finished = [row for row in without_trunks(runs) if row["status"] == "done"]
    complete = [row for row in finished if is_finite(row.get(x)) and is_finite(row.get(y))]
    return sorted(complete, key=lambda row: row[x])


def without_trunks(runs: Iterable[dict]) -> list[dict]:
    """Return all runs except trunk runs.

    A trunk run has a constant learning rate, and cooldown branches start from its checkpoints. A
    scaling law does not describe its final loss, which is higher than the loss after a cooldown.
    """
    runs = list(runs)
    trunks = {row.get("start.run") for row in runs if row.get("start.restore") == "full_state"}
    return [row for row in runs if row["name"] not in trunks]


class BudgetSelection(NamedTuple):
    """Runs with comparable numbers of training tokens."""

    rows: list[dict]
    is_complete: bool  # True if no run was removed for its token budget
    n_tokens: float | None  # the budget of all selected runs; None if it depends on the size


def largest_token_budget(runs: Sequence[dict], x: str = N_PARAMS) -> BudgetSelection:
    """Select runs with comparable token budgets, which a plot against x may join with a line.

    If every size has a single token budget, select all runs. Otherwise select the finished runs of
    the largest budget. If fewer than half of the sizes have a run of this budget, select the runs
    of the largest budget of each size.
    """
    finished = [row for row in finished_with(runs, x, x) if is_finite(row.get(TOKENS))]
    largest = {row[x]: row[TOKENS] for row in sorted(finished, key=lambda row: row[TOKENS])}
    if all(row[TOKENS] >= BUDGET_TOLERANCE * largest[row[x]] for row in finished):
        return BudgetSelection(list(runs), True, None)
    n_tokens = max(largest.values())
    sizes = [size for size in largest if largest[size] >= BUDGET_TOLERANCE * n_tokens]
    if 2 * len(sizes) >= len(largest):
        selected = [row for row in finished if row[TOKENS] >= BUDGET_TOLERANCE * n_tokens]
        return BudgetSelection(selected, False, n_tokens)
    selected = [row for row in finished if row[TOKENS] >= BUDGET_TOLERANCE * largest[row[x]]]
    return BudgetSelection(selected, False, None)


def standard_error(row: Mapping, column: str) -> float:
    """Return the standard error of a result, 0 if the row does not contain it.

    The error of eval.loss is stored in eval.loss_se, that of eval.loss.code in eval.loss_se.code.
    """
    group, _, rest = column.partition(".")
    measure, dot, name = rest.partition(".")
    value = row.get(f"{group}.{measure}_se{dot}{name}")
    return value if is_finite(value) else 0.0


def task_column(task: str, metric: str = "accuracy") -> str:
    """Return the column of a task result in the rows of `load_runs`."""
    return f"eval.task.{task}.{metric}"


def task_results(row: Mapping) -> dict[str, dict[str, dict[str, float]]]:
    """Return {task: {metric: {"value": value, "se": standard error}}} of a row or an evaluation.

    The stored columns are task.NAME.METRIC and task_se.NAME.METRIC; rows have the prefix "eval.".
    A task name may contain dots, a metric name may not. "se" is 0 if no error is stored.
    """
    results: dict[str, dict[str, dict[str, float]]] = {}
    for column in row:
        key = column.removeprefix("eval.")
        if key.startswith("task."):
            task, _, metric = key.removeprefix("task.").rpartition(".")
            result = task_result(row, task, metric)
            if result is not None:
                results.setdefault(task, {})[metric] = result
    return results


def task_result(row: Mapping, task: str, metric: str = "accuracy") -> dict[str, float] | None:
    """Return {"value", "se"} of a task in a row or an evaluation, None if it is missing."""
    for prefix in ("eval.", ""):
        value = row.get(f"{prefix}task.{task}.{metric}")
        if value is not None:
            error = row.get(f"{prefix}task_se.{task}.{metric}", 0.0)
            return {"value": float(value), "se": float(error)}
    return None


def task_value(row: Mapping, task: str, metric: str = "accuracy") -> float:
    """Return the value of a metric of a task, NaN if it is missing. row: see `task_result`."""
    result = task_result(row, task, metric)
    return math.nan if result is None else result["value"]


def is_finished(run: schema.Run) -> bool:
    """Return True if the run is done or has diverged."""
    return read_facts(run_dir(run)).get("status") in TERMINAL_STATUSES


def read_json(path: Path) -> dict:
    """Load a JSON file. Raises ValueError that names the file if it is not JSON."""
    try:
        return json.loads(filesystem.open_path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def write_json(path: Path, value: dict) -> None:
    """Replace a JSON file atomically: readers see the old or the new content."""
    filesystem.write_file(filesystem.open_path(path), _dumps(value, indent=1) + "\n")


def _dumps(value, indent=None) -> str:
    return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


def _without_nan(value):
    """Replace NaN and infinity by their names, because JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def parse_json_lines(path: Path) -> list[dict]:
    """Load a .jsonl file in order of steps, with the last row of the last attempt for each step."""
    by_step: dict[int, dict] = {}
    for row in _parsed(path):
        previous = by_step.get(row["step"], row)
        if row.get("attempt", 0) >= previous.get("attempt", 0):
            by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]


def _parsed(path: Path) -> Iterator[dict]:
    """Yield the rows of a .jsonl file.

    Skip lines that are not JSON objects with an integer step, such as a line cut by a crash.
    """
    for line in filesystem.read_lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row
