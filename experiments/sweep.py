"""Runs a sweep: plan, train what is left, predict the largest before it starts, report.

    uv run python -m experiments.sweep --sweep=configs/sweeps/quickstart.py
    uv run python -m experiments.sweep --sweep=FILE --jobs=4           # processes, a device each
    uv run python -m experiments.sweep --sweep=FILE --pack=4           # seeds, rates: one program
    uv run python -m experiments.sweep --sweep=FILE --on=slurm --jobs=16 \\
        --slurm="--partition=gpu --gres=gpu:1 --time=4:00:00"

The same command goes on after any end, and says so when nothing is left. On a cluster it queues
jobs and returns; experiments.status --watch shows what they do.
"""

import signal
import sys
import time

from absl import flags

from experiments.common import cli, console

_SWEEP = flags.DEFINE_string("sweep", "", "FILE[:ARG] with get_sweep([ARG]) that yields runs")
cli.host_flags()
_DIR = flags.DEFINE_string("dir", None, "folder of all runs, in place of each run's own")
_ON = flags.DEFINE_enum("on", "here", ["here", "slurm"], "where to train")
_JOBS = flags.DEFINE_integer("jobs", 1, "processes that train at once, at most", lower_bound=1)
_PACK = flags.DEFINE_integer(
    "pack", 1, "runs that differ in seed or rates alone, trained in one program", lower_bound=1
)
_SLURM = flags.DEFINE_string(
    "slurm", "", "options of sbatch, such as --partition=gpu --time=1:00:00"
)
_RETRIES = flags.DEFINE_integer("retries", 0, "times to try a failed run again", lower_bound=0)
_ADOPT = flags.DEFINE_bool("adopt", False, "go on with begun runs as they were, not as edited")
_WORKER = flags.DEFINE_float("worker", 0.0, "set for the processes of --jobs and --on=slurm")


def main() -> int:
    runs = cli.load_sweep(_SWEEP.value)
    cli.tune_memory()
    from lm.parallel import deterministic, distributed, mesh
    from lm.reports import report
    from lm.sweeps import launcher, slurm, workers
    from lm.sweeps.planning import cost  # JAX comes after memory settings
    from lm.training import preemption

    for run in runs:
        run.dir = _DIR.value or run.dir
    if _ADOPT.value:
        runs = launcher.keep_original_configs(runs)
    mesh.initialize_devices()
    deterministic.fix_threads(max(run.mesh.deterministic_shards for run in runs))
    cli.join()
    if _WORKER.value:
        with console.ProgressBars() as bars:
            launcher.run_pending(
                *(runs, bars.started, bars.stepped, bars.ended),
                retries=_RETRIES.value,
                since=_WORKER.value,
                max_vmapped=_PACK.value,
            )
        if not any(launcher.ready(runs, _RETRIES.value, _WORKER.value)):
            distributed.run_on_primary(
                lambda: report.write_report(launcher.sweep_folder(runs)) and None
            )
        return 0
    if distributed.is_multiprocess() and (_JOBS.value > 1 or _ON.value != "here"):
        raise ValueError("--jobs and --on=slurm start processes of their own: leave out the others")

    distributed.run_on_primary(lambda: launcher.validate_sweep(runs, console.preparing))
    left = launcher.pending(runs)
    device_mesh = mesh.make_mesh(runs[0].mesh)
    peak = mesh.peak_flops_per_second(device_mesh, runs[0].model.dtype)
    console.print_line(
        f"{mesh.describe_devices(device_mesh)}, {peak / 1e9:.0f} GFLOP/s in matrix products"
    )
    costs = [cost.estimate_cost(run, peak, mesh.device_platform(device_mesh)) for run in runs]
    console.plan(costs, {run.name for run in runs} - {run.name for run in left})
    console.epochs(launcher.max_epochs_by_source(runs))

    folder = launcher.sweep_folder(runs)
    command = [sys.executable, *sys.orig_argv[1:], f"--worker={time.time()}"]
    if left:
        launcher.write_sweep_files(_SWEEP.value, runs, costs)
    else:
        console.print_line(f"all {len(runs)} runs are done")
    if left and _ON.value == "slurm":
        for n, job in slurm.submit_slurm(runs, command, _JOBS.value, _SLURM.value.split()):
            console.print_line(f"SLURM job {job}: {n} workers")
        console.print_line(
            f"watch them: uv run python -m experiments.status --dir={folder} --watch"
        )
        return 0
    if left and _JOBS.value > 1:
        with console.LiveStatus(folder) as standing:
            statuses = workers.run_local(command, _JOBS.value, folder / "workers", standing.beat)
        if stopped := [status for status in statuses if status >= 128]:
            name = signal.Signals(stopped[0] - 128).name
            raise preemption.Interrupted(f"stopped by {name}", name)
    elif left:
        with console.ProgressBars() as bars:
            launcher.run_pending(
                *(runs, bars.started, bars.stepped, bars.ended),
                retries=_RETRIES.value,
                max_vmapped=_PACK.value,
            )
    return distributed.run_on_primary(lambda: finish(folder))


def finish(folder) -> int:
    """The page, and what it says; the exit status."""
    from lm.reports import report

    page = report.write_report(folder)
    found = report.load(folder)
    console.table(report.table(found.rows, found.prediction))
    console.print_line(str(found.fit or f"no law: {found.refusal}"))
    console.print_line(report.headline(found)[1])
    console.print_line(f"report: {page}")
    return int(any(row["status"] != "done" for row in found.rows))


if __name__ == "__main__":
    cli.run_main(main)
