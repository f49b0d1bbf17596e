"""Report the status, progress and remaining cost of every run in a sweep.

    statuses = status.run_statuses("runs/quickstart")
    for run in statuses: print(run["name"], run["status"], run["step"])
    status.sweep_progress(statuses)["share"]      # fraction of all FLOPs, 0 to 1

The report reads only the records, and other processes can train meanwhile. Runs that were planned
and have not started are known from plan.json.
"""

import time
from pathlib import Path

from lm.runs import filesystem, records

MIN_STUCK_SECONDS = 120.0  # a run is never stuck earlier after its last row of metrics
STUCK_INTERVALS = 10  # a run is stuck after this many intervals between its rows of metrics


def run_statuses(folder: str | Path) -> list[dict]:
    """Return one JSON dict per run. Most values of a run that has not started are None.

    status: planned, running, stuck (running, but without new metrics), done, diverged, failed or
    lost. share: fraction of the steps. seconds: training time. seconds_left: at the speed of the
    last row, or as planned. devices: count. where: host name. checkpoint: step of the newest.
    """
    statuses = {row["name"]: _started_status(row) for row in records.load_runs(folder)}
    plan_file = filesystem.open_path(folder) / "plan.json"
    if plan_file.exists():
        for cost in records.read_json(plan_file)["runs"]:
            statuses.setdefault(cost["name"], _planned_status(cost))
    return list(statuses.values())


def sweep_progress(statuses: list[dict]) -> dict:
    """Return totals over the dicts of `run_statuses`.

    share: fraction of the FLOPs that are done. device_hours_left: None if the remaining time of any
    run is unknown.
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
    unknown = dict.fromkeys(("loss", "tokens_per_second", "peak_share", "devices", "checkpoint"))
    return unknown | {
        "name": cost["name"],
        "status": "planned",
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
    last = metrics[-1] if metrics else {}
    step = last.get("step", 0)
    status = row["status"]
    if status == "running" and metrics and _is_stuck(folder, metrics):
        status = "stuck"
    is_over = status in records.TERMINAL_STATUSES
    tokens_per_second = last.get("tokens_per_second")
    seconds_left = 0.0 if is_over else None
    if not is_over and tokens_per_second:
        tokens_left = (row["steps"] - step) * row["data.batch_size"] * row["data.seq_len"]
        seconds_left = tokens_left / tokens_per_second
    return {
        "name": row["name"],
        "status": status,
        "step": step,
        "steps": row["steps"],
        "share": 1.0 if is_over else step / row["steps"],
        "loss": last.get("loss"),
        "tokens_per_second": tokens_per_second,
        "peak_share": last.get("peak_share"),
        "flops": row.get("flops"),
        "seconds": last.get("seconds", 0.0),
        "seconds_left": seconds_left,
        "devices": row.get("devices"),
        "where": row.get("host", ""),
        "checkpoint": _newest_checkpoint(folder / "checkpoints"),
        "attempts": row.get("attempts", 0),
        "reason": row.get("reason", ""),
    }


def _is_stuck(folder: Path, metrics: list[dict]) -> bool:
    """Return True if the last row of metrics is much older than the interval between rows."""
    interval = metrics[-1]["seconds"] - (metrics[-2]["seconds"] if len(metrics) > 1 else 0.0)
    silence = time.time() - filesystem.last_append_time(folder / "metrics.jsonl")
    return silence > max(MIN_STUCK_SECONDS, STUCK_INTERVALS * interval)


def _newest_checkpoint(folder: Path) -> int | None:
    """Return the step of the newest checkpoint, or None."""
    steps = (int(path.name) for path in filesystem.list_dir(folder) if path.name.isdecimal())
    return max(steps, default=None)
