"""Status, progress and remaining cost of every run in a sweep.

    statuses, notes = status.folder_status("runs/quickstart")
    for run in statuses:
        print(run["name"], run["status"], run["step"])
    status.sweep_progress(statuses)["share"]      # fraction of all FLOPs, 0 to 1

The functions read only the records, so other processes can train at the same time. The file
plan.json of each sweep lists the runs that have not started.
"""

import time
from pathlib import Path
from typing import NamedTuple

from lm.config import run_files
from lm.config.schedules import batch_size_schedule
from lm.runs import filesystem, records
from lm.runs.integrity import run_notes, sweep_files

MIN_STUCK_SECONDS = 120.0  # a run is never stuck earlier after its last row of metrics
STUCK_INTERVALS = 10  # a run is stuck after this many intervals between its rows of metrics


class FolderStatus(NamedTuple):
    """Status of all runs of a folder, sorted by sweep."""

    runs: list[dict]  # see `run_statuses`
    notes: list[str]  # runs outside their sweep, unreadable runs, damaged lines


def run_statuses(folder: str | Path) -> list[dict]:
    """Return one dict per run of the sweeps in a folder that JSON can store.

    Unknown values are None. The runs are sorted by sweep, and within a sweep by the size of the
    model. Planned runs are the last of their sweep. The entries of a dict are:

    name, loss (training loss of the last log step), flops (of the whole run), attempts, reason
    heldout_loss      of the last evaluation; of the best checkpoint if the run stopped early
    status            planned, running, stuck, done, diverged, failed, lost or unreadable. A stuck
                      run has a living process and writes no metrics. The records of an unreadable
                      run are damaged
    state             status in more detail: planned, compiling, running, evaluating, stuck, done,
                      stopped (done before its planned steps), diverged, failed (an error),
                      interrupted (a signal stopped it), crashed (killed, or lost with its machine)
                      or unreadable
    step, steps       last logged step, planned number of steps
    share             fraction of the steps that are done, 0 to 1
    tokens_per_second, mfu            speed and model FLOPs utilization at the last log step
    seconds           training time
    seconds_left      remaining time at the speed of the last log step, or as planned
    devices, where    number of devices, host name
    checkpoint        step of the newest checkpoint
    """
    return folder_status(folder).runs


def folder_status(folder: str | Path) -> FolderStatus:
    """Return the status of the runs of a folder, and a line for all that is left out.

    Raises ValueError if there are runs and none of them can be read.
    """
    loaded = records.load_folder(folder)
    notes = run_notes.folder_notes(loaded)
    statuses = {row["name"]: _started_status(row) for row in loaded.rows}
    costs, problems = _planned_costs(filesystem.open_path(folder))
    for run_dir, cost in costs.items():
        planned = "unreadable" if run_dir in loaded.unreadable else "planned"
        statuses.setdefault(
            cost["name"], _planned_status(cost) | dict.fromkeys(("status", "state"), planned)
        )
    by_sweep = sorted(statuses.values(), key=lambda run: run["name"].rpartition("/")[0])
    return FolderStatus(by_sweep, [*notes, *problems])


def _planned_costs(folder: Path) -> tuple[dict[Path, dict], list[str]]:
    """Return {run directory: row of plan.json} of all sweeps below a folder, and problems."""
    costs, problems = {}, []
    names = ("sweep.json", "plan.json")
    files = [file for name in names for file in filesystem.find_files(folder, name)]
    for sweep_dir in sorted({file.parent for file in files}):
        problems += sweep_files.describe_missing_files(sweep_dir)
        try:
            planned = sweep_files.read_plan(sweep_dir)
            members = sweep_files.read_member_names(sweep_dir)
        except ValueError as error:
            problems.append(f"{error}. Its planned runs are not shown.")
            continue
        for cost in planned:
            if members is None or cost["name"] in members:
                costs[sweep_dir / cost["name"].partition("/")[2]] = cost
    return costs, problems


def sweep_progress(statuses: list[dict]) -> dict:
    """Return totals over the dicts of `run_statuses`.

    runs, done: numbers of runs. share: fraction of the FLOPs that are done. device_hours_used.
    device_hours_left: None if the remaining time of any run is unknown.
    """
    flops = sum(run["flops"] or 0 for run in statuses)
    flops_done = sum((run["flops"] or 0) * run["share"] for run in statuses)
    seconds_used = sum((run["seconds"] or 0) * (run["devices"] or 1) for run in statuses)
    return {
        "runs": len(statuses),
        "done": sum(run["status"] == "done" for run in statuses),
        "share": flops_done / flops if flops else 0.0,
        "device_hours_used": seconds_used / 3600,
        "device_hours_left": _device_hours_left(statuses),
    }


def _device_hours_left(statuses: list[dict]) -> float | None:
    """Return the remaining device hours, or None if the remaining time of a run is unknown.

    A run that has not started is assumed to use the largest number of devices so far.
    """
    if any(run["seconds_left"] is None for run in statuses):
        return None
    max_devices = max((run["devices"] or 1 for run in statuses), default=1)
    return sum(run["seconds_left"] * (run["devices"] or max_devices) for run in statuses) / 3600


def _planned_status(cost: dict) -> dict:
    """Return the status of a run that has not started, from its row in plan.json."""
    names = ("loss", "heldout_loss", "tokens_per_second", "mfu", "devices", "checkpoint")
    return dict.fromkeys(names) | {
        "name": cost["name"],
        "status": "planned",
        "state": "planned",
        "step": 0,
        "steps": cost.get("steps"),
        "share": 0.0,
        "flops": cost["flops"],
        "seconds": 0.0,
        "seconds_left": cost["seconds"],
        "where": "",
        "attempts": 0,
        "reason": "",
    }


def _started_status(row: dict) -> dict:
    """Return the status of a run from its record and its metrics."""
    folder = filesystem.open_path(row["dir"])
    metrics = records.load_metrics(row["dir"])
    last, status = metrics[-1] if metrics else {}, row["status"]
    schedule = batch_size_schedule.BatchSizeSchedule.from_row(row)
    if status == "done" and records.is_finite(row.get(records.TOKENS)):
        n_steps = schedule.find_step(row[records.TOKENS])
        if last.get("step") != n_steps:  # the row of the last step is lost
            last = {"step": n_steps, "seconds": row.get("seconds", 0.0)}
    step = last.get("step", 0)
    is_evaluating = status == "running" and _is_evaluating(row, folder, step)
    if status == "running" and metrics and not is_evaluating and _is_stuck(folder, metrics):
        status = "stuck"
    is_over = status in records.TERMINAL_STATUSES
    tokens_per_second = _finite(last.get("tokens_per_second"))
    seconds_left = 0.0 if is_over else None
    if not is_over and tokens_per_second:
        tokens_left = schedule.count_tokens(row["steps"]) - schedule.count_tokens(step)
        seconds_left = tokens_left / tokens_per_second
    return {
        "name": row["name"],
        "status": status,
        "state": "evaluating" if is_evaluating else _state(row, status, metrics, step),
        "step": step,
        "steps": row["steps"],
        "share": 1.0 if is_over else step / row["steps"],
        "loss": _finite(last.get("loss")),
        "heldout_loss": _finite(row.get(records.LOSS)),
        "tokens_per_second": tokens_per_second,
        "mfu": _finite(last.get("mfu", last.get("peak_share"))),  # version 0.2
        "flops": row.get("flops"),
        "seconds": last.get("seconds", 0.0),
        "seconds_left": seconds_left,
        "devices": row.get("devices"),
        "where": row.get("host", ""),
        "checkpoint": _newest_checkpoint(folder / run_files.CHECKPOINTS),
        "attempts": row.get("attempts", 0),
        "reason": row.get("reason", ""),
    }


def lost_state(row: dict) -> str:
    """Return the state of a run with the status lost: interrupted or crashed."""
    # A process that is stopped by a signal records it. A killed process cannot.
    recorded = records.read_facts(filesystem.open_path(row["dir"])).get("status")
    return "interrupted" if recorded == "lost" else "crashed"


def _state(row: dict, status: str, metrics: list[dict], step: int) -> str:
    """Return the status in more detail: see `run_statuses`."""
    if status == "running":
        attempt = row.get("attempts", 0)
        has_steps = metrics and metrics[-1].get("attempt", attempt) >= attempt
        return "running" if has_steps else "compiling"
    if status == "lost":
        return lost_state(row)
    if status == "done" and step < row["steps"]:
        return "stopped"
    return status


def _finite(value: object) -> float | None:
    """Return a finite number, or None for other values such as the loss of a diverged run."""
    return value if records.is_finite(value) else None


def _is_evaluating(row: dict, folder: Path, step: int) -> bool:
    """Return True if an evaluation is due before the next log step and has no row yet.

    With early stopping, the evaluation of the best weights is the last one. An evaluation has no
    limit of time, because evaluations of many tasks take minutes and log no step.
    """
    if not step or not (row.get("data.heldout_fraction") or row.get("eval.tasks")):
        return False
    evaluations = {evaluation["step"]: evaluation for evaluation in records.load_evals(folder)}
    intervals = [row.get(name) for name in ("eval.interval", "eval.task_interval")]
    due_steps = [-(-step // n) * n for n in intervals if n]
    due_steps = [due for due in due_steps if due < step + row["log_interval"]]
    if step == row["steps"]:
        due_steps.append(step)
    if any(due not in evaluations for due in due_steps):
        return True
    has_tasks = any(name.startswith("task.") for e in evaluations.values() for name in e)
    return bool(due_steps and row["eval.patience"] and row["eval.tasks"] and not has_tasks)


def _is_stuck(folder: Path, metrics: list[dict]) -> bool:
    """Return True if the last row is much older than the interval between rows of metrics."""
    interval = metrics[-1]["seconds"] - (metrics[-2]["seconds"] if len(metrics) > 1 else 0.0)
    names = "metrics.jsonl", "evals.jsonl"
    last_append = max(filesystem.last_append_time(folder / name) for name in names)
    return time.time() - last_append > max(MIN_STUCK_SECONDS, STUCK_INTERVALS * interval)


def _newest_checkpoint(folder: Path) -> int | None:
    """Return the step of the newest checkpoint, or None if there is no checkpoint."""
    steps = (int(path.name) for path in filesystem.list_dir(folder) if path.name.isdecimal())
    return max(steps, default=None)
