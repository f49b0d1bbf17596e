"""Show the status, progress and remaining time of every run of a folder.

    uv run python -m experiments.status --dir=runs/quickstart
    uv run python -m experiments.status --dir=runs/quickstart --watch
    uv run python -m experiments.status --dir=runs/quickstart --json

A sweep consists of the runs that its sweep.json names. The lines below the table list other runs in
its folder, unreadable runs and damaged lines.

--json prints one object for scripts: {"total": {...}, "runs": [...], "notes": [...]}. Its keys are
described in lm/runs/status.py.
"""

import json
import time

from absl import flags
from rich.live import Live

from experiments.common import cli, console
from lm.runs import status

_DIR = flags.DEFINE_string("dir", "runs", "folder of a sweep, or of several sweeps")
_WATCH = flags.DEFINE_bool("watch", False, "update every two seconds until all runs have ended")
_JSON = flags.DEFINE_bool("json", False, "print JSON instead of a table")
WATCH_SECONDS = 2


def main() -> int:
    runs, notes = status.folder_status(_DIR.value)
    if not runs and not notes:
        raise ValueError(
            f"--dir={_DIR.value} contains no runs. Name the folder of a sweep, such as"
            " --dir=runs/quickstart"
        )
    progress = status.sweep_progress(runs)
    if _JSON.value:
        print(json.dumps({"total": progress, "runs": runs, "notes": notes}, indent=1))
    elif _WATCH.value:
        watch(runs)
    else:
        console.wide_console().print(console.status_view(runs, progress))
    if not _JSON.value:
        for note in notes:
            console.print_line(note)
    return 0


def watch(runs: list[dict]) -> None:
    """Show the status until no run is planned, running or stuck. runs: the current statuses."""
    view = console.status_view(runs, status.sweep_progress(runs))
    with Live(view, console=console.console) as live:
        while any(run["status"] in ("planned", "running", "stuck") for run in runs):
            time.sleep(WATCH_SECONDS)
            runs = status.run_statuses(_DIR.value)
            live.update(console.status_view(runs, status.sweep_progress(runs)))


if __name__ == "__main__":
    cli.run_main(main)
