"""Where every run of a folder stands.

    uv run python -m experiments.status --dir=runs/quickstart --watch

--json prints one object for scripts: {"total": {...}, "runs": [...]}, see lm/runs/status.py.
"""

import json
import time

from absl import flags
from rich.live import Live

from experiments.common import cli, console
from lm.runs import status

_DIR = flags.DEFINE_string("dir", "runs", "folder of runs")
_WATCH = flags.DEFINE_bool("watch", False, "show it again every two seconds, until Ctrl-C")
_JSON = flags.DEFINE_bool("json", False, "print JSON")


def main() -> int:
    if not (runs := status.run_statuses(_DIR.value)):
        raise ValueError(f"--dir={_DIR.value} holds no runs")
    if _JSON.value:
        print(json.dumps({"total": status.sweep_progress(runs), "runs": runs}, indent=1))
    elif _WATCH.value:
        with Live(
            console.status_view(runs, status.sweep_progress(runs)), console=console.console
        ) as live:
            while any(run["status"] in ("planned", "running", "stuck") for run in runs):
                time.sleep(2)
                runs = status.run_statuses(_DIR.value)
                live.update(console.status_view(runs, status.sweep_progress(runs)))
    else:
        console.wide().print(console.status_view(runs, status.sweep_progress(runs)))
    return 0


if __name__ == "__main__":
    cli.run_main(main)
