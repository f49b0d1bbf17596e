"""Write the report of a sweep, archive its records, or verify its prediction or a figure.

    uv run python -m experiments.report --dir=runs/quickstart
    uv run python -m experiments.report --dir=runs/quickstart --dir=runs/my_sweep   # side by side
    uv run python -m experiments.report --dir=runs/quickstart --watch      # until all runs ended
    uv run python -m experiments.report --dir=runs/quickstart \\
        --verify=runs/quickstart/figures/loss.png
    uv run python -m experiments.report --verify=runs/quickstart           # the prediction
    uv run python -m experiments.report --dir=runs/quickstart --archive_to=archive/quickstart

A sweep consists of the runs that its sweep.json names. The report lists other runs in its folder,
unreadable runs and damaged lines. They are in no figure and in no law.

--archive_to copies the small records of a sweep to a folder that can be committed to git. The copy
has no weights and no paths of this machine. Notebooks, laws and reports read it like the original.

With --price_per_device_hour or --watts_per_device, the report states price and energy of all runs.

--verify=FIGURE lists the runs, the law and the code that have changed since a figure was drawn. The
exit status is 1 if there are any.

--verify=FOLDER prints a line per link of the chain from the fitted runs over the prediction to the
result: verified, a contradiction between two named files, or not verifiable. The exit status is 1
if there is a contradiction. A person who rewrites all files and all hashes is not detected, unless
the hash of the prediction was published before the result was known. The last line is a command
that publishes it as an annotated git tag, which it pushes to the remote repository origin.
"""

import os
import time

# Threads of OpenBLAS wait in a loop for each other, which costs more than they gain on the small
# matrices of a report. The library reads the variable when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from absl import flags

from experiments.common import cli, console, flag_checks, next_command
from lm.runs import filesystem

_DIR = flags.DEFINE_multi_string(
    "dir", ["runs/quickstart"], "folder of the sweep; several show their sweeps side by side"
)
_VERIFY = flags.DEFINE_string("verify", None, "figure, or folder of a sweep, to verify")
_WATCH = flags.DEFINE_bool("watch", False, "write the report repeatedly until all runs have ended")
_ARCHIVE_TO = flags.DEFINE_string("archive_to", None, "folder of the archive; writes no report")
_MEGABYTES = flags.DEFINE_float("megabytes", 1.5, "largest size of the archive in MB", 0)
cli.rate_flags()
MIN_WATCH_SECONDS = 10.0
MAX_CPU_FRACTION = 0.05  # of one core, used by --watch while runs are in training


def main() -> int:
    check_flags()
    if _VERIFY.value and filesystem.open_path(_VERIFY.value).is_dir():
        return verify_prediction(_VERIFY.value)
    for folder in _DIR.value:
        cli.check_has_runs(folder)
    if len(_DIR.value) > 1:
        return write_side_by_side(_DIR.value)
    folder = _DIR.value[0]
    if _VERIFY.value:
        return verify_figure(_VERIFY.value, folder)
    if _ARCHIVE_TO.value:
        archive_records(folder, _ARCHIVE_TO.value)
        return 0

    from lm.reports import report, summary

    if _WATCH.value:
        watch(folder)
    sweep = summary.load_summary(folder)
    page = report.write_summary(sweep, rates=cli.device_rates())
    for note in sweep.notes:
        console.print_line(note)
    console.print_line(summary.headline(sweep)[1])
    print_next_command(sweep)
    console.print_line(f"report: {page}")
    return 0


def check_flags() -> None:
    """Raise ValueError for flags that have no effect together."""
    rates = "price_per_device_hour", "watts_per_device"
    if _VERIFY.value and filesystem.open_path(_VERIFY.value).is_dir():
        flag_checks.reject_flags(["dir"], f"has no effect with the folder --verify={_VERIFY.value}")
    if _VERIFY.value:
        names = "watch", "archive_to", *rates
        flag_checks.reject_flags(names, f"has no effect with --verify={_VERIFY.value}")
    if _ARCHIVE_TO.value:
        names = "watch", *rates
        flag_checks.reject_flags(names, f"has no effect with --archive_to={_ARCHIVE_TO.value}")
    else:
        flag_checks.reject_flags(["megabytes"], "has an effect only with --archive_to")


def print_next_command(sweep) -> None:
    """Print the command that verifies the prediction of a sweep, or that shows its status."""
    if sweep.prediction and sweep.measured is not None:
        next_command.print_next("report", f"--verify={sweep.path}")
    else:
        next_command.print_next("status", f"--dir={sweep.path}")


def write_side_by_side(folders: list[str]) -> int:
    """Write the page of several sweeps. Raises ValueError for flags that have no effect on it."""
    from lm.reports.two_sweeps import side_by_side

    for flag in (_VERIFY, _WATCH, _ARCHIVE_TO):
        if flag.value:
            raise ValueError(f"--{flag.name} works on one sweep: pass one --dir")
    page = side_by_side.write_side_by_side(folders, cli.device_rates())
    next_command.print_next("compare", "--help")
    console.print_line(f"side by side: {page}")
    return 0


def verify_figure(figure: str, folder: str) -> int:
    """Print the differences between a figure and the records. Return 1 if there are any, else 0."""
    from lm.reports import figures

    differences = figures.verify_figure(figure, folder)
    for difference in differences:
        console.print_line(difference)
    if not differences:
        console.print_line(f"{figure} agrees with the records of {folder}")
    return int(bool(differences))


def verify_prediction(folder: str) -> int:
    """Print the links of the chain of a prediction. Return 1 for a contradiction, else 0."""
    from lm.reports.audit import prediction_audit, prediction_chain

    links = prediction_audit.audit_prediction(folder)
    for line in prediction_audit.format_links(links):
        console.print_line(line)
    n_contradictions = sum(link.status == prediction_chain.CONTRADICTION for link in links)
    console.print_line(f"contradictions: {n_contradictions} of {len(links)} links")
    if sha256 := prediction_audit.prediction_sha256(folder):
        command = prediction_audit.format_tag_command(sha256)
        console.print_line(f"to publish the prediction: {command}")
    return int(n_contradictions > 0)


def archive_records(folder: str, archive_folder: str) -> None:
    """Copy the small records of a sweep to a folder and print their size."""
    from lm.runs import archive

    n_bytes = archive.archive_sweep(folder, archive_folder, _MEGABYTES.value)
    console.print_line(f"archived records of {folder}: {n_bytes:,} bytes")
    console.print_line(f"archive: {archive_folder}")


def watch(folder: str) -> None:
    """Write a report that reloads itself, repeatedly, while any run is planned or running."""
    from lm.reports import report
    from lm.runs import status

    interval = MIN_WATCH_SECONDS
    while any(
        run["status"] in ("planned", "running", "stuck") for run in status.run_statuses(folder)
    ):
        start_time = time.monotonic()
        page = report.write_report(folder, interval, cli.device_rates())
        seconds = time.monotonic() - start_time
        console.print_line(f"written in {seconds:.0f} s, reloads every {interval:.0f} s: {page}")
        interval = max(MIN_WATCH_SECONDS, seconds / MAX_CPU_FRACTION)
        time.sleep(interval)


if __name__ == "__main__":
    cli.run_main(main)
