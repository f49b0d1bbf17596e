"""Where every run of a folder stands.

    uv run python -m experiments.status --dir=runs/quickstart --watch

--json prints one object for scripts: {"total": {...}, "runs": [...]}, see lm/standing.py.
"""

import json
import time

from absl import flags
from rich.live import Live

from experiments import cli, show
from lm import standing

_DIR = flags.DEFINE_string("dir", "runs", "folder of runs")
_WATCH = flags.DEFINE_bool("watch", False, "show it again every two seconds, until Ctrl-C")
_JSON = flags.DEFINE_bool("json", False, "print JSON")


def main() -> int:
    if not (runs := standing.run_statuses(_DIR.value)):
        raise ValueError(f"--dir={_DIR.value} holds no runs")
    if _JSON.value:
        print(json.dumps({"total": standing.sweep_progress(runs), "runs": runs}, indent=1))
    elif _WATCH.value:
        with Live(
            show.status_view(runs, standing.sweep_progress(runs)), console=show.console
        ) as live:
            while any(run["status"] in ("planned", "running", "stuck") for run in runs):
                time.sleep(2)
                runs = standing.run_statuses(_DIR.value)
                live.update(show.status_view(runs, standing.sweep_progress(runs)))
    else:
        show.wide().print(show.status_view(runs, standing.sweep_progress(runs)))
    return 0


if __name__ == "__main__":
    cli.start(main)
