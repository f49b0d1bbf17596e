"""Run a sweep: estimate its cost, train pending runs, predict the target run, write the report.

    uv run python -m experiments.sweep --sweep=configs/sweeps/quickstart.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/tiny.py --jobs=2
    uv run python -m experiments.sweep --sweep=configs/sweeps/seeds.py:2 --max_vmapped=2
    uv run python -m experiments.sweep --sweep=configs/sweeps/seeds.py --on=slurm --jobs=16 \\
        --slurm="--partition=gpu --gres=gpu:1 --time=4:00:00"
    uv run python -m experiments.sweep --sweep=configs/sweeps/quickstart.py --target_size=4M \\
        --max_error=2% --time_budget=30m

The same command continues an interrupted sweep. With --jobs, each process has an equal share of the
devices. With --max_vmapped, one program trains several runs. With --on=slurm the command submits
jobs and ends; experiments.status --watch shows their progress. It uses no device and reads no
training text. The first worker prepares the text and checks the meshes, unless --target names the
hardware of a worker. With --target_size, the command chooses the sizes, tokens and seeds of the
file that predict the loss of another size in the least time.
"""

import functools
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Literal

from absl import flags

from experiments.common import cli, console, finished_sweep, progress_view, target_plan
from experiments.common.ladder_search import designed_sweep
from lm.config import schema
from lm.runs.integrity import sweep_files

_SWEEP = flags.DEFINE_string("sweep", "", "FILE[:ARG] with get_sweep([ARG]) that yields runs")
cli.host_flags()
_DRY_RUN = target_plan.dry_run_flag()
_DIR = flags.DEFINE_string("dir", None, "folder of all runs, instead of the folders in the configs")
_ON = flags.DEFINE_enum("on", "here", ["here", "slurm"], "train on this machine or in SLURM jobs")
_JOBS = flags.DEFINE_integer("jobs", 1, "largest number of parallel processes", 1, 10_000)
_MAX_VMAPPED = flags.DEFINE_integer(
    "max_vmapped",
    1,
    "largest number of runs per vmapped program; they differ only in seed and rates",
    lower_bound=1,
    upper_bound=1024,
)
_SLURM = flags.DEFINE_string(
    "slurm", "", "options of sbatch, quoted as for a shell: --partition=gpu --time=1:00:00"
)
_SLURM_SETUP = flags.DEFINE_multi_string(
    "slurm_setup", [], "shell line before the command, such as 'module load cuda'; repeatable"
)
_SRUN_ARGS = flags.DEFINE_string(
    "srun_args", "", "options of srun, such as --container-image=IMAGE"
)
_SLURM_MAX_RUNNING = flags.DEFINE_integer(
    "slurm_max_running", 0, "largest number of simultaneous tasks of a job; 0: no limit", 0
)
_TARGET = flags.DEFINE_string(
    "target", "", "hardware of one SLURM worker, such as gpu:h100:8, for checks and hours"
)
_RETRIES = flags.DEFINE_integer("retries", 0, "restarts of a failed run, at most", 0, 10**6)
_ADOPT = flags.DEFINE_bool("adopt", False, "use the stored configs of runs that have started")
_WORKER = flags.DEFINE_string(
    "worker", "", "internal: id of the submission, set for the processes of --jobs and SLURM"
)
_WORKER_DEVICES = flags.DEFINE_string(
    "worker_devices", "", "internal: PLATFORM:NUMBER, the devices of each process of --jobs"
)
_ONLY_PLAN = flags.DEFINE_bool("only_plan", False, "internal: check and plan the sweep, then end")
designed_sweep.define_flags()


def main() -> int:
    check_flags()
    goal = designed_sweep.read_goal()
    runs = cli.load_sweep(_SWEEP.value)
    for run in runs:
        run.dir = _DIR.value or run.dir
    if goal is not None:
        check_single_process("--target_size trains one run at a time")
        results = train_pending, print_results
        return designed_sweep.run_ladder(_SWEEP.value, runs, goal, *results)
    # The law of a prediction is checked before any file is written.
    from lm.sweeps import prediction

    warning = prediction.check_prediction(runs)
    if _DRY_RUN.value:
        return dry_run(adopt_configs(runs))
    cli.make_run_folders(runs)
    is_internal = bool(_WORKER.value or _ONLY_PLAN.value)
    can_end = not (is_internal or _ADOPT.value)
    if can_end and (folder := finished_sweep.find_finished_folder(runs)):
        console.print_line(f"all {len(runs)} runs are done")
        return print_results(folder, finished_sweep.find_current_report(folder))
    if _ON.value == "slurm" and not _WORKER.value:
        return submit_jobs(adopt_configs(runs))
    if _JOBS.value > 1 and not is_internal:
        return run_workers(adopt_configs(runs))
    cli.tune_memory()
    # JAX must be imported after the memory settings.
    from lm.parallel import deterministic, distributed, mesh
    from lm.sweeps import launcher

    runs = adopt_configs(runs)
    launcher.validate_names(runs)
    mesh.initialize_devices()
    deterministic.fix_threads(max(run.mesh.deterministic_shards for run in runs))
    cli.join()
    if _WORKER.value:
        return run_worker(runs)
    distributed.run_on_primary(lambda: launcher.validate_sweep(runs, progress_view.preparing))
    if warning:
        console.print_line(f"warning: {warning}")
    pending = distributed.run_on_primary(lambda: [run.name for run in launcher.pending(runs)])
    costs = print_cost(runs, pending)
    folder = launcher.sweep_folder(runs)
    has_changed = distributed.run_on_primary(
        # The sweep file may name fewer or other runs than before.
        lambda: sweep_files.read_member_names(folder) != {run.name for run in runs}
    )
    if pending or has_changed:
        distributed.run_on_primary(lambda: launcher.write_sweep_files(_SWEEP.value, runs, costs))
    if not pending:
        console.print_line(f"all {len(runs)} runs are done")
    if _ONLY_PLAN.value:
        return 0
    if pending:
        train_pending(runs)
    return distributed.run_on_primary(lambda: print_results(folder))


def dry_run(runs: list[schema.Run]) -> int:
    """Check the sweep on simulated devices and print its plan. Return the exit status."""
    from lm.sweeps import launcher, slurm

    launcher.validate_names(runs)
    target_plan.check_started_runs(runs)
    slurm.parse_options(_SLURM.value)
    slurm.split_shell("--srun_args", _SRUN_ARGS.value)
    if _ON.value == "slurm" or _JOBS.value > 1:
        check_single_process()
    return target_plan.print_dry_run(runs, _DRY_RUN.value)


def check_flags() -> None:
    """Raise ValueError for flags that have no effect together."""
    if _ON.value != "slurm":
        for flag in (_SLURM, _SLURM_SETUP, _SRUN_ARGS, _SLURM_MAX_RUNNING, _TARGET):
            if flag.value:
                raise ValueError(f"--{flag.name} has an effect only on jobs. Add --on=slurm.")


def check_single_process(reason: str = "--jobs and --on=slurm start their own processes") -> None:
    """Raise ValueError if flags or the environment make this process one of several."""
    from lm.parallel import cluster

    values = flags.FLAGS
    processes = (values.coordinator, values.processes, values.process)
    if cluster.find_processes(os.environ, *processes):
        raise ValueError(
            f"{reason}. Use it without --coordinator, --processes and --process, in one process."
        )


def adopt_configs(runs: list[schema.Run]) -> list[schema.Run]:
    """Return the runs, with their stored configs if --adopt is set."""
    from lm.sweeps import launcher

    return launcher.keep_original_configs(runs) if _ADOPT.value else runs


def print_cost(runs: list[schema.Run], pending: list[str]) -> list[dict]:
    """Print the devices, the estimated cost of the sweep and its epochs. Return the estimates.

    pending: names of the runs that are not finished.
    """
    from experiments.common import disk_space, kernel_lines
    from lm.parallel import mesh, peak_flops
    from lm.sweeps import launcher
    from lm.sweeps.planning import cost

    device_mesh = mesh.make_mesh(runs[0].mesh)
    peak = mesh.peak_flops_per_second(device_mesh, runs[0].model.dtype)
    if _JOBS.value > 1:
        console.print_line(f"workers: {_JOBS.value}; devices and times below: of one worker")
    console.print_line(f"devices: {mesh.describe_devices(device_mesh)}")
    kernel_lines.print_kernels(runs)
    console.print_line(peak_flops.describe_peak(mesh.device_kind(device_mesh), peak))
    costs = [cost.estimate_cost(run, peak, mesh.device_platform(device_mesh)) for run in runs]
    finished = {run.name for run in runs} - {*pending}
    console.print_plan(costs, finished)
    disk_space.print_disk_space(runs, finished, has_table=False)
    console.print_epochs(launcher.max_epochs_by_source(runs))
    console.print_text(runs)
    return costs


def train_pending(
    runs: list[schema.Run],
    submission: str = "",
    wait: Literal["never", "children", "always"] = "never",
) -> None:
    """Train the pending runs in this process. submission, wait: see launcher.WorkerOptions."""
    from lm.sweeps import launcher

    options = launcher.WorkerOptions(
        submission or secrets.token_hex(4), _RETRIES.value, _MAX_VMAPPED.value, wait
    )
    with progress_view.ProgressBars() as bars:
        launcher.run_pending(
            runs,
            on_start=functools.partial(start_run, bars),
            on_metrics=bars.stepped,
            on_end=bars.ended,
            on_evaluation=bars.evaluated,
            options=options,
        )


def start_run(bars: progress_view.ProgressBars, run: schema.Run) -> None:
    """Show that a run begins, and the hash of its prediction if it is the predicted run."""
    from lm.reports.audit import prediction_audit
    from lm.sweeps import launcher

    bars.started(run)
    if run.is_prediction_target:
        sha256 = prediction_audit.prediction_sha256(launcher.sweep_folder([run]))
        console.print_line(f"{run.name}: prediction with SHA-256 {sha256}")


def run_worker(runs: list[schema.Run]) -> int:
    """Train runs until no run is ready, then write the report. Return the exit status."""
    from lm.parallel import distributed
    from lm.sweeps import slurm, workers
    from lm.sweeps.planning import hardware

    submission, is_local = _WORKER.value, _ON.value == "here"
    if _WORKER_DEVICES.value:
        platform, _, number = _WORKER_DEVICES.value.partition(":")
        workers.check_devices(workers.Devices(platform, int(number)))
    elif _TARGET.value:
        target = hardware.parse_target(_TARGET.value)
        workers.check_devices(workers.Devices(target.platform, target.n_devices))
    else:
        workers.check_visible_devices()
    if not is_local:
        distributed.run_on_primary(
            lambda: slurm.prepare_in_worker(runs, submission, progress_view.preparing)
        )
    train_pending(runs, submission, "always" if is_local else "children")
    distributed.run_on_primary(lambda: write_report_at_end(runs, submission))
    return 0


def submit_jobs(runs: list[schema.Run]) -> int:
    """Submit SLURM jobs, print their ids and return the exit status. Use no device."""
    from experiments.common import next_command
    from lm.sweeps import launcher, slurm
    from lm.sweeps.planning import hardware

    check_single_process()
    target = hardware.parse_target(_TARGET.value) if _TARGET.value else None
    launcher.validate_configs(runs, target.n_devices if target else 0)
    folder = launcher.sweep_folder(runs)
    if not (pending := launcher.pending(runs)):
        console.print_line(f"all {len(runs)} runs are done")
        return print_results(folder)
    options = slurm.JobOptions(
        _SLURM.value, _SLURM_SETUP.value or [], _SRUN_ARGS.value, _SLURM_MAX_RUNNING.value
    )
    slurm.validate_options(options)
    queued = slurm.queued_jobs(runs)
    if queued:
        console.print_line(
            f"nothing submitted: SLURM job {', '.join(queued)} of this sweep is queued or running."
            f" Wait until it ends, or cancel it: scancel {' '.join(queued)}"
        )
        return 0
    costs = print_target_cost(runs, {run.name for run in pending}, target)
    launcher.write_sweep_files(_SWEEP.value, runs, costs)
    command = [sys.executable, *sys.orig_argv[1:], f"--worker={secrets.token_hex(4)}"]
    for n_workers, job_id in slurm.submit_slurm(runs, command, _JOBS.value, options):
        console.print_line(f"SLURM job {job_id}: {n_workers} workers")
    next_command.print_next("status", f"--dir={folder}", "--watch")
    console.print_line(f"scripts and logs: {folder / 'slurm'}")
    return 0


def run_workers(runs: list[schema.Run]) -> int:
    """Train the pending runs in several processes on this machine. Return the exit status.

    The plan is made in a process that ends before the workers start, because a GPU or TPU that it
    uses is not free for them. Raises preemption.Interrupted if a signal stopped a worker.
    """
    from lm.sweeps import launcher, run_order, workers
    from lm.training import preemption

    check_single_process()
    launcher.validate_names(runs)
    pending = launcher.pending(runs)
    n_workers = max(1, min(_JOBS.value, run_order.max_parallel_runs(pending)))
    devices = workers.count_devices()
    environments = workers.split_devices(devices, n_workers, os.environ)
    command = [sys.executable, *sys.orig_argv[1:], f"--jobs={n_workers}"]
    if status := workers.run_planner([*command, "--only_plan"], environments):
        return status
    folder = launcher.sweep_folder(runs)
    if not pending:
        return print_results(folder)
    command.append(f"--worker={secrets.token_hex(4)}")
    if devices.platform != "cpu":
        command.append(f"--worker_devices={devices.platform}:{devices.number // n_workers}")
    with progress_view.LiveStatus(folder) as live_status:
        statuses = workers.run_local(command, environments, folder / "workers", live_status.update)
    for index, status in enumerate(statuses):
        if status:
            log = folder / "workers" / f"{index}.log"
            console.print_line(f"worker {index} ended with status {status}: {last_line(log)}")
    stopped_by = [status - 128 for status in statuses if status >= 128]
    if stopped_by:
        name = signal.Signals(stopped_by[0]).name
        raise preemption.Interrupted(f"stopped by {name}", name)
    return max(print_results(folder), int(any(statuses)))


def print_target_cost(runs: list[schema.Run], pending: set[str], target) -> list[dict]:
    """Print the cost of a sweep in SLURM jobs. Return rows of cost.estimate_cost.

    target: hardware.Target of one worker. Without it the seconds are None, because they depend on
    the hardware. pending: names of the runs that are not finished.
    """
    from experiments.common import disk_space
    from lm.sweeps.planning import cost, hardware

    costs = []
    for run in runs:
        row = cost.estimate_cost(run, target.peak(run.model.dtype) if target else 1.0)
        row["seconds"] = None
        if target:
            estimate = cost.plan_run(run, target, should_compile=False)
            if estimate["bytes_over"]:
                console.print_line(
                    f"{run.name} exceeds the memory of {target.name} by"
                    f" {estimate['bytes_over'] / hardware.GIB:.2f} GiB per device (estimate)"
                )
            else:
                row["seconds"] = 3600 * estimate["hours"]
        costs.append(row)
    finished = {run.name for run in runs} - pending
    console.print_plan(costs, finished)
    disk_space.print_disk_space(runs, finished, has_table=False)
    if not target:
        console.print_line("times are unknown: name the hardware with --target")
    return costs


def write_report_at_end(runs: list[schema.Run], submission: str) -> None:
    """Write the report unless another run can start."""
    from lm.reports import report
    from lm.sweeps import launcher

    options = launcher.WorkerOptions(submission, _RETRIES.value)
    if not any(launcher.ready(runs, options)):
        report.write_report(launcher.sweep_folder(runs))


def last_line(log: Path) -> str:
    """Return the last line of a log and its path."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1]} ({log})" if lines else str(log)


def print_results(folder: Path, page: Path | None = None) -> int:
    """Print the results of a sweep. Return 1 if a run failed, diverged or was lost.

    page: report of these results; None writes it. A run that another process is training has not
    failed.
    """
    from experiments.common import next_command
    from lm.reports import report, summary
    from lm.reports.sections import source_section
    from lm.runs import run_selection

    sweep = summary.load_summary(folder)
    page = page or report.write_summary(sweep)
    console.table(summary.summary_table(sweep.rows, sweep.prediction))
    console.print_line(str(sweep.fit or f"no law: {sweep.refusal}"))
    console.print_line(summary.headline(sweep)[1])
    for note in [*source_section.describe_errors(sweep), *sweep.notes]:
        console.print_line(note)
    if sweep.finished:
        largest = run_selection.largest_run(sweep.finished)
        next_command.print_next("sample", f"--run={largest['dir']}")
    console.print_line(f"report: {page}")
    return int(any(row["status"] not in ("done", "running") for row in sweep.rows))


if __name__ == "__main__":
    cli.run_main(main)
