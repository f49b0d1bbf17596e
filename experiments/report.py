"""Writes the report of a sweep again, from its records alone.

    uv run python -m experiments.report --dir=runs/quickstart
    uv run python -m experiments.report --dir=runs/quickstart --watch      # until all have ended
    uv run python -m experiments.report --dir=runs/quickstart \\
        --verify=runs/quickstart/figures/loss.png
    uv run python -m experiments.report --dir=runs/quickstart --keep=notebooks/data/quickstart

--keep copies the small records, without weights or paths of this machine, to a folder that can be
committed and that notebooks, laws and reports open like the sweep's own.

--verify says which runs, which law and which code are no longer those that the figure was drawn
from, and ends with status 1 if any.
"""

import time

from absl import flags

from experiments import cli, show

_DIR = flags.DEFINE_string("dir", "runs/quickstart", "folder of the sweep")
_VERIFY = flags.DEFINE_string("verify", None, "a figure: does it still show what the records say?")
_WATCH = flags.DEFINE_bool("watch", False, "write it again and again while runs are left")
_KEEP = flags.DEFINE_string("keep", None, "a folder for the small records; no page is written")
_MEGABYTES = flags.DEFINE_float("megabytes", 1.5, "the most that --keep may write")
SHARE = 0.05  # of one core that watching may take from what trains


def main() -> int:
    from lm import drawings, excerpt, report

    if _VERIFY.value:
        changed = drawings.verify(_VERIFY.value, _DIR.value)
        show.say("\n".join(changed) or f"{_VERIFY.value} still holds")
        return int(bool(changed))
    if _KEEP.value:
        n_bytes = excerpt.write(_DIR.value, _KEEP.value, _MEGABYTES.value)
        show.say(f"{_KEEP.value}: the records of {_DIR.value}, {n_bytes:,} bytes")
        return 0
    if _WATCH.value:
        watch(_DIR.value)
    show.say(str(report.write(_DIR.value)))
    return 0


def watch(folder: str) -> None:
    """Writes the page until no run is left that trains or was planned; the page loads itself."""
    from lm import report, standing

    seconds = 10.0
    while any(
        run["status"] in ("planned", "running", "stuck") for run in standing.run_statuses(folder)
    ):
        began = time.monotonic()
        page = report.write(folder, refresh=seconds)
        took = time.monotonic() - began
        show.say(f"{page}, written in {took:.0f} s; loads itself anew each {seconds:.0f} s")
        seconds = max(10.0, took / SHARE)
        time.sleep(seconds)


if __name__ == "__main__":
    cli.start(main)
