"""Run a sweep: estimate its cost, train pending runs, predict the target run, write the report.

    uv run python -m experiments.sweep --sweep=configs/sweeps/quickstart.py
    uv run python -m experiments.sweep --sweep=FILE --jobs=4           # 4 processes, a device each
    uv run python -m experiments.sweep --sweep=FILE --max_vmapped=4    # 4 runs in one program
    uv run python -m experiments.sweep --sweep=FILE --on=slurm --jobs=16 \\
        --slurm="--partition=gpu --gres=gpu:1 --time=4:00:00"

The same command continues an interrupted sweep. With --on=slurm the command submits jobs and ends;
experiments.status --watch shows their progress.
"""

import signal
import sys
import time
from pathlib import Path

from absl import flags

from experiments.common import cli, console
from lm.config import schema
from lm.runs import records

_SWEEP = flags.DEFINE_string("sweep", "", "FILE[:ARG] with get_sweep([ARG]) that yields runs")
cli.host_flags()
_DIR = flags.DEFINE_string("dir", None, "folder of all runs, instead of the folders in the configs")
_ON = flags.DEFINE_enum("on", "here", ["here", "slurm"], "train on this machine or in SLURM jobs")
_JOBS = flags.DEFINE_integer("jobs", 1, "largest number of parallel processes", lower_bound=1)
_MAX_VMAPPED = flags.DEFINE_integer(
    "max_vmapped",
    1,
    "largest number of runs per vmapped program; they differ only in seed and rates",
    lower_bound=1,
)
_SLURM = flags.DEFINE_string(
    "slurm", "", "options of sbatch, such as --partition=gpu --time=1:00:00"
)
_RETRIES = flags.DEFINE_integer("retries", 0, "restarts of a failed run, at most", lower_bound=0)
_ADOPT = flags.DEFINE_bool("adopt", False, "use the stored configs of runs that have started")
_WORKER = flags.DEFINE_float(
    "worker", 0.0, "internal: start time of the sweep, set for the processes of --jobs and SLURM"
)


def main() -> int:
    runs = cli.load_sweep(_SWEEP.value)
    cli.tune_memory()
    # JAX must be imported after the memory settings.
    from lm.parallel import deterministic, distributed, mesh
    from lm.sweeps import launcher, prediction

    for run in runs:
        run.dir = _DIR.value or run.dir
    if _ADOPT.value:
        runs = launcher.keep_original_configs(runs)
    mesh.initialize_devices()
    deterministic.fix_threads(max(run.mesh.deterministic_shards for run in runs))
    cli.join()
    if _WORKER.value:
        return run_worker(runs, _WORKER.value)
    if distributed.is_multiprocess() and (_JOBS.value > 1 or _ON.value != "here"):
        raise ValueError(
            "--jobs and --on=slurm start their own processes. Use them without --coordinator,"
            " --processes and --process."
        )
    distributed.run_on_primary(lambda: launcher.validate_sweep(runs, console.preparing))
    warning = prediction.check_prediction(runs)
    if warning:
        console.print_line(f"warning: {warning}")
    pending = launcher.pending(runs)
    costs = print_cost(runs, pending)
    folder = launcher.sweep_folder(runs)
    if not pending:
        # The sweep file may name fewer or other runs than before.
        if records.read_member_names(folder) != {run.name for run in runs}:
            launcher.write_sweep_files(_SWEEP.value, runs, costs)
        console.print_line(f"all {len(runs)} runs are done")
    else:
        launcher.write_sweep_files(_SWEEP.value, runs, costs)
        command = [sys.executable, *sys.orig_argv[1:], f"--worker={time.time()}"]
        if _ON.value == "slurm":
            return submit_jobs(runs, command, folder)
        if _JOBS.value > 1:
            run_workers(command, folder)
        else:
            train_pending(runs, since=None)
    return distributed.run_on_primary(lambda: print_results(folder))


def print_cost(runs: list[schema.Run], pending: list[schema.Run]) -> list[dict]:
    """Print the devices, the estimated cost of the sweep and its epochs. Return the estimates."""
    from lm.parallel import mesh
    from lm.sweeps import launcher
    from lm.sweeps.planning import cost

    device_mesh = mesh.make_mesh(runs[0].mesh)
    peak = mesh.peak_flops_per_second(device_mesh, runs[0].model.dtype)
    console.print_line(f"devices: {mesh.describe_devices(device_mesh)}")
    console.print_line(f"measured peak of matrix products: {peak / 1e9:.0f} GFLOP/s")
    costs = [cost.estimate_cost(run, peak, mesh.device_platform(device_mesh)) for run in runs]
    console.print_plan(costs, {run.name for run in runs} - {run.name for run in pending})
    console.print_epochs(launcher.max_epochs_by_source(runs))
    return costs


def train_pending(runs: list[schema.Run], since: float | None) -> None:
    """Train the pending runs in this process. since: see launcher.run_pending."""
    from lm.sweeps import launcher

    with console.ProgressBars() as bars:
        launcher.run_pending(
            runs,
            on_start=bars.started,
            on_metrics=bars.stepped,
            on_end=bars.ended,
            retries=_RETRIES.value,
            since=since,
            max_vmapped=_MAX_VMAPPED.value,
        )


def run_worker(runs: list[schema.Run], since: float) -> int:
    """Train runs until none is ready. The last worker writes the report. Return the exit status."""
    from lm.parallel import distributed
    from lm.reports import report
    from lm.sweeps import launcher

    def write_report() -> None:
        report.write_report(launcher.sweep_folder(runs))

    train_pending(runs, since)
    if not any(launcher.ready(runs, _RETRIES.value, since)):
        distributed.run_on_primary(write_report)
    return 0


def submit_jobs(runs: list[schema.Run], command: list[str], folder: Path) -> int:
    """Submit SLURM jobs, print their ids and return the exit status."""
    from lm.sweeps import slurm

    for n_workers, job_id in slurm.submit_slurm(runs, command, _JOBS.value, _SLURM.value.split()):
        console.print_line(f"SLURM job {job_id}: {n_workers} workers")
    console.print_line(f"progress: uv run python -m experiments.status --dir={folder} --watch")
    console.print_line(f"scripts and logs: {folder / 'slurm'}")
    return 0


def run_workers(command: list[str], folder: Path) -> None:
    """Train the pending runs in several processes on this machine.

    Raises preemption.Interrupted if a signal stopped a worker.
    """
    from lm.sweeps import workers
    from lm.training import preemption

    with console.LiveStatus(folder) as live_status:
        statuses = workers.run_local(command, _JOBS.value, folder / "workers", live_status.update)
    stopped_by = [status - 128 for status in statuses if status >= 128]
    if stopped_by:
        name = signal.Signals(stopped_by[0]).name
        raise preemption.Interrupted(f"stopped by {name}", name)


def print_results(folder: Path) -> int:
    """Write the report and print its results. Return 1 unless all started runs are done."""
    from lm.reports import report, summary

    page = report.write_report(folder)
    sweep = summary.load_summary(folder)
    console.table(summary.summary_table(sweep.rows, sweep.prediction))
    console.print_line(str(sweep.fit or f"no law: {sweep.refusal}"))
    console.print_line(summary.headline(sweep)[1])
    for note in sweep.notes:
        console.print_line(note)
    console.print_line(f"report: {page}")
    return int(any(row["status"] != "done" for row in sweep.rows))


if __name__ == "__main__":
    cli.run_main(main)
