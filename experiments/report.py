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

from experiments.common import cli, console

_DIR = flags.DEFINE_string("dir", "runs/quickstart", "folder of the sweep")
_VERIFY = flags.DEFINE_string("verify", None, "a figure: does it still show what the records say?")
_WATCH = flags.DEFINE_bool("watch", False, "write it again and again while runs are left")
_KEEP = flags.DEFINE_string("keep", None, "a folder for the small records; no page is written")
_MEGABYTES = flags.DEFINE_float("megabytes", 1.5, "the most that --keep may write")
SHARE = 0.05  # of one core that watching may take from what trains


def main() -> int:
    from lm.reports import figures, report
    from lm.runs import archive

    if _VERIFY.value:
        changed = figures.verify_figure(_VERIFY.value, _DIR.value)
        console.print_line("\n".join(changed) or f"{_VERIFY.value} still holds")
        return int(bool(changed))
    if _KEEP.value:
        n_bytes = archive.archive_sweep(_DIR.value, _KEEP.value, _MEGABYTES.value)
        console.print_line(f"{_KEEP.value}: the records of {_DIR.value}, {n_bytes:,} bytes")
        return 0
    if _WATCH.value:
        watch(_DIR.value)
    console.print_line(str(report.write_report(_DIR.value)))
    return 0


def watch(folder: str) -> None:
    """Writes the page until no run is left that trains or was planned; the page loads itself."""
    from lm.reports import report
    from lm.runs import status

    seconds = 10.0
    while any(
        run["status"] in ("planned", "running", "stuck") for run in status.run_statuses(folder)
    ):
        began = time.monotonic()
        page = report.write_report(folder, refresh=seconds)
        took = time.monotonic() - began
        console.print_line(
            f"{page}, written in {took:.0f} s; loads itself anew each {seconds:.0f} s"
        )
        seconds = max(10.0, took / SHARE)
        time.sleep(seconds)


if __name__ == "__main__":
    cli.run_main(main)
