"""Show the status, progress and remaining time of every run of a folder.

    uv run python -m experiments.status --dir=runs/quickstart
    uv run python -m experiments.status --dir=runs/quickstart --watch
    uv run python -m experiments.status --dir=runs/quickstart --json

A sweep consists of the runs that its sweep.json names. The lines below the table list other runs in
its folder, unreadable runs and damaged lines.

An unfinished run has a forecast of its final held-out loss with a 95% interval, if its sweep has
finished runs: see lm/laws/learning_curves. A line below the table names each run that leaves its
expected curve, and each reason for a missing forecast.

--json prints one object for scripts: {"total": {...}, "runs": [...], "notes": [...]}. Its keys are
described in lm/runs/status.py. The key "forecast" of a run is None or {"value", "lo", "hi",
"model", "baseline", "step", "is_flagged"}.
"""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Group
from rich.live import Live
from rich.text import Text

from experiments.common import cli, console, flag_checks, next_command
from lm.runs import filesystem, records, status
from lm.runs.integrity import sweep_files

if TYPE_CHECKING:
    from lm.laws.learning_curves import loss_forecast, sweep_forecasts

_DIR = flags.DEFINE_string("dir", "runs", "folder of a sweep, or of several sweeps")
_WATCH = flags.DEFINE_bool("watch", False, "update every two seconds until all runs have ended")
_JSON = flags.DEFINE_bool("json", False, "print JSON instead of a table")
WATCH_SECONDS = 2


UNFINISHED = ("running", "stuck", "lost", "failed")


def main() -> int:
    if _JSON.value:
        flag_checks.reject_flags(["watch"], "has no effect with --json, which prints once")
    runs, notes = status.folder_status(_DIR.value)
    if not runs and not notes:
        raise ValueError(
            f"--dir={_DIR.value} contains no runs. Name the folder of a sweep, such as"
            " --dir=runs/quickstart"
        )
    open_once = functools.cache(open_forecasts)
    notes = [*notes, *add_forecasts(runs, _DIR.value, open_once)]
    progress = status.sweep_progress(runs)
    if _JSON.value:
        print(json.dumps({"total": progress, "runs": runs, "notes": notes}, indent=1))
    elif _WATCH.value:
        notes = watch(runs, notes, open_once)
    else:
        console.wide_console().print(console.status_view(runs, progress))
    if not _JSON.value:
        for note in notes:
            console.print_line(note)
        print_next_command(runs)
    return 0


def print_next_command(runs: list[dict]) -> None:
    """Print the command that continues the runs that have stopped, or that reports the sweep."""
    folder = filesystem.open_path(_DIR.value)
    stopped = [run for run in runs if run["state"] in ("interrupted", "crashed", "failed")]
    is_active = any(run["status"] in ("running", "stuck") for run in runs)
    unfinished = [run for run in runs if run["status"] not in records.TERMINAL_STATUSES]
    ready = stopped or ([] if is_active else unfinished)
    try:
        arguments = resume_arguments(folder, {run["name"] for run in ready})
    except ValueError:
        return  # a note describes the damaged file
    if arguments:
        next_command.print_next("sweep", *arguments)
    elif is_active:
        next_command.print_next("status", f"--dir={folder}", "--watch")
    else:
        is_one_folder = any((folder / name).exists() for name in ("sweep.json", "config.json"))
        name = runs[0]["name"].partition("/")[0] if runs else ""
        next_command.print_next("report", f"--dir={folder if is_one_folder else folder / name}")


def resume_arguments(folder: Path, names: set[str]) -> list[str]:
    """Return the arguments of the command `sweep` that trains runs with these names.

    folder: of a run, of its sweep, or of several sweeps. The runs are those of the first sweep.
    Return [] if sweep.json names no sweep file. Raises ValueError for a damaged sweep.json.
    """
    if not names:
        return []
    is_run = (folder / "config.json").exists()
    files = [] if is_run else filesystem.find_files(folder, "sweep.json")
    for sweep_dir in [folder.parent] if is_run else [file.parent for file in files]:
        request = sweep_files.read_sweep(sweep_dir)
        if names.isdisjoint(request.get("runs", names)) or not request.get("sweep"):
            continue
        location, *options = str(request["sweep"]).split(" --")  # options of a designed ladder
        options = [f"--{option}" for option in options]
        return [f"--sweep={location}", *options, *sweep_files.folder_arguments(sweep_dir, request)]
    return []


def open_forecasts() -> "sweep_forecasts.SweepForecasts":
    """Return the forecasts of sweeps. Their import takes longer than the status of all runs."""
    from lm.laws.learning_curves import sweep_forecasts

    return sweep_forecasts.SweepForecasts()


def watch(
    runs: list[dict],
    notes: list[str],
    open_once: "Callable[[], sweep_forecasts.SweepForecasts]",
) -> list[str]:
    """Show status and notes until no run is planned, running or stuck. Return the last notes.

    runs, notes: the current statuses, and the lines below their table. open_once: returns the same
    forecasts in each call.
    """
    with Live(watch_view(runs, notes), console=console.console) as live:
        while any(run["status"] in ("planned", "running", "stuck") for run in runs):
            time.sleep(WATCH_SECONDS)
            runs, notes = status.folder_status(_DIR.value)
            notes = [*notes, *add_forecasts(runs, _DIR.value, open_once)]
            live.update(watch_view(runs, notes))
        live.update(console.status_view(runs, status.sweep_progress(runs)))
    if not console.console.is_terminal:
        console.console.line()  # Live ends the last line of terminals only
    return notes


def watch_view(runs: list[dict], notes: list[str]) -> Group:
    """Return the table of the status with the notes below it."""
    table = console.status_view(runs, status.sweep_progress(runs))
    return Group(table, *(Text(note) for note in notes))


def add_forecasts(
    runs: list[dict],
    folder: str | Path,
    open_once: "Callable[[], sweep_forecasts.SweepForecasts]" = open_forecasts,
) -> list[str]:
    """Add the forecasts to the statuses of runs. Return lines about flagged and missing ones."""
    for run in runs:
        run["forecast"] = None
    unfinished = {run["name"]: run for run in runs if run["status"] in UNFINISHED}
    if not unfinished:
        return []
    notes, names_by_reason = [], {}
    results = open_once().forecast_unfinished(records.load_folder(folder).rows)
    for name, run in unfinished.items():
        result = results.get(name, "its records cannot be read")
        if isinstance(result, str):
            names_by_reason.setdefault(result, []).append(name)
            continue
        run["forecast"] = describe_forecast(result)
        if result.check.is_flagged:
            notes.append(f"{name} leaves its expected curve: {result.check}")
    for reason, names in names_by_reason.items():
        others = f" and {len(names) - 1} more runs" if len(names) > 1 else ""
        notes.append(f"no forecast of {names[0]}{others}: {reason}")
    return notes


def describe_forecast(forecast: "loss_forecast.LossForecast") -> dict:
    """Return the entry "forecast" of a status."""
    return {
        "value": forecast.value,
        "lo": forecast.lo,
        "hi": forecast.hi,
        "model": forecast.model,
        "baseline": forecast.baseline.value,
        "step": forecast.step,
        "is_flagged": forecast.check.is_flagged,
    }


if __name__ == "__main__":
    cli.run_main(main)
