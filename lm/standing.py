"""Where the runs of a folder stand: which go on, which are stuck, and what is left to pay.

    for run in standing.runs("runs/quickstart"): print(run["name"], run["status"], run["step"])
    standing.total(standing.runs("runs/quickstart"))["share"]      # of all FLOPs, 0 to 1

Read from the records alone, while other processes train. Runs that were planned and have not begun
are known from plan.json.
"""

import time
from pathlib import Path

from lm import records, storage

STUCK_SECONDS = 120.0  # without a row of metrics, at least
STUCK_ROWS = 10  # and at least so many times what a row took


def runs(folder: str | Path) -> list[dict]:
    """A dict a run, plain JSON. Of a run that has not begun most values are None.

    status: planned, running, stuck (running, with no metrics for far longer than they took), done,
    diverged, failed or lost; seconds: of training; seconds_left: at the speed of the last row, or
    as planned; devices; where: the machine; checkpoint: the newest step saved.
    """
    found = {row["name"]: _begun(row) for row in records.rows(folder)}
    file = storage.at(folder) / "plan.json"
    for cost in records.read_json(file)["runs"] if file.exists() else []:
        found.setdefault(cost["name"], _planned(cost))
    return list(found.values())


def total(runs: list[dict]) -> dict:
    """Of a sweep: share of its FLOPs that are done, device-hours used and left (None: unknown)."""
    flops = sum(run["flops"] or 0 for run in runs)
    done = sum((run["flops"] or 0) * run["share"] for run in runs)
    known = [run for run in runs if run["seconds_left"] is not None]
    used = sum((run["seconds"] or 0) * (run["devices"] or 1) for run in runs)
    devices = max((run["devices"] or 1 for run in runs), default=1)
    left = sum(run["seconds_left"] * (run["devices"] or devices) for run in known)
    return {
        "runs": len(runs),
        "done": sum(run["status"] == "done" for run in runs),
        "share": done / flops if flops else 0.0,
        "device_hours_used": used / 3600,
        "device_hours_left": left / 3600 if len(known) == len(runs) else None,
    }


def _planned(cost: dict) -> dict:
    empty = dict.fromkeys(("loss", "tokens_per_second", "peak_share", "devices", "checkpoint"))
    return empty | {
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


def _begun(row: dict) -> dict:
    place = storage.at(row["dir"])
    metrics = records.metrics(row["dir"])
    last = metrics[-1] if metrics else {}
    step, steps, status = last.get("step", 0), row["steps"], row["status"]
    if status == "running" and last:
        silent = time.time() - storage.grown_at(place / "metrics.jsonl")
        status = "stuck" if silent > _patience(metrics) else status
    over = status in records.OVER
    tokens_left = (steps - step) * row["data.batch_size"] * row["data.seq_len"]
    speed = last.get("tokens_per_second")
    return {
        "name": row["name"],
        "status": status,
        "step": step,
        "steps": steps,
        "share": 1.0 if over else step / steps,
        "loss": last.get("loss"),
        "tokens_per_second": speed,
        "peak_share": last.get("peak_share"),
        "flops": row.get("flops"),
        "seconds": last.get("seconds", 0.0),
        "seconds_left": 0.0 if over else tokens_left / speed if speed else None,
        "devices": row.get("devices"),
        "where": row.get("host", ""),
        "checkpoint": _newest(place / "checkpoints"),
        "attempts": row.get("attempts", 0),
        "reason": row.get("reason", ""),
    }


def _patience(metrics: list[dict]) -> float:
    """Seconds after which a run without a new row is stuck."""
    took = metrics[-1]["seconds"] - (metrics[-2]["seconds"] if len(metrics) > 1 else 0.0)
    return max(STUCK_SECONDS, STUCK_ROWS * took)


def _newest(folder: Path) -> int | None:
    steps = (int(path.name) for path in storage.listed(folder) if path.name.isdecimal())
    return max(steps, default=None)
