"""Train the pending runs of a sweep in jobs of a SLURM cluster.

    options = slurm.JobOptions(sbatch="--partition=gpu --time=4:00:00", setup=["module load cuda"])
    for n_workers, job_id in slurm.submit_slurm(runs, command, 16, options):
        print(job_id, n_workers)

Each task of a job runs the command of the sweep with --worker (lm/sweeps/workers.py). The package
submitit is not used: its jobs unpickle a function, and they catch the signals on which a run saves
its state.

The folder SWEEP/slurm contains the scripts, jobs.json with the ids of all submitted jobs, one log
per job task (JOB_INDEX.log) and one log per task of srun (JOB_INDEX_TASK.log).
"""

import dataclasses
import datetime
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from lm.config import schema
from lm.data import corpus
from lm.parallel import mesh
from lm.runs import filesystem, json_files, lock
from lm.sweeps import launcher, prediction, run_order

# A task that always exceeds its memory would otherwise be requeued without end.
MAX_REQUEUES = 20
# These options of sbatch would break the script. The flag or the reason follows each name.
RESERVED_OPTIONS = {
    "--array": "set --jobs and --slurm_max_running",
    "-a": "set --jobs and --slurm_max_running",
    "--wrap": "the command is that of the sweep",
    "--parsable": "it is always set",
    "--wait": "experiments.status --watch shows the progress",
    "-W": "experiments.status --watch shows the progress",
}
# SLURM sends USR1 90 seconds before the time limit and at preemption, so that a run can save its
# state. A task is requeued if it was interrupted: the exit status is 124 after a stall and 128 + N
# after signal N (experiments/common/cli.py). A shell uses 126 and 127 for a program that is missing
# or not executable, which a new start does not repair. srun does not read --cpus-per-task of the
# job since SLURM 22.05, only the variable.
BATCH_SCRIPT = """#!/bin/bash
{options}
cd {working_directory} || exit 1
{setup}if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then
  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
fi
srun --kill-on-bad-exit=1 --open-mode=append --output={task_log} {srun}{command}
status=$?
if [ $status -ge 124 ] && [ $status -ne 126 ] && [ $status -ne 127 ] &&
  [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_requeues} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $status
"""


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """Options of the jobs of a sweep.

    sbatch: options of sbatch, quoted as for a shell. setup: shell lines that run before the
    command. srun: options of srun, quoted as for a shell. max_running: maximum number of tasks of a
    job that run at the same time; 0 for no limit.
    """

    sbatch: str = ""
    setup: list[str] = dataclasses.field(default_factory=list)
    srun: str = ""
    max_running: int = 0


def submit_slurm(
    runs: list[schema.Run], command: list[str], max_workers: int, options: JobOptions
) -> list[tuple[int, str]]:
    """Submit the pending runs. Return (number of workers, job id) of each job.

    The predicted run and its related runs are a job of their own, which starts when the first job
    has ended. In each job, workers wait for unfinished parents of other runs. command: of one
    worker. Raises ValueError like `validate_options`, and if sbatch refuses a job.
    """
    validate_options(options)
    folder = job_folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[int, str]] = []
    for number, group in enumerate(_job_groups(runs)):
        n_workers = min(run_order.max_parallel_runs(group), max_workers)
        script = folder / f"job-{number}.sh"
        text = batch_script(folder.parent.name, command, n_workers, folder, options)
        script.write_text(text, encoding="utf-8")
        previous_job = jobs[-1][1].partition(";")[0] if jobs else ""
        jobs.append((n_workers, _submit(script, previous_job, options)))
        _record_job(folder, n_workers, jobs[-1][1])
    return [(n_workers, job.partition(";")[0]) for n_workers, job in jobs]


def validate_options(options: JobOptions) -> None:
    """Raise ValueError if sbatch is missing on this machine or an option is invalid."""
    if not shutil.which("sbatch"):
        raise ValueError("--on=slurm: sbatch is not installed on this machine. Use --on=here.")
    parse_options(options.sbatch)
    split_shell("--srun_args", options.srun)


def queued_jobs(runs: list[schema.Run]) -> list[str]:
    """Return the ids of the sweep's jobs that are still queued or running.

    Raises ValueError if squeue fails.
    """
    jobs = _read_jobs(job_folder(runs))
    queued = []
    for cluster in sorted({job["cluster"] for job in jobs}):
        command = ["squeue", "--noheader", "--format=%F"]
        if cluster:
            command.append(f"--clusters={cluster}")
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise ValueError(
                "--on=slurm: squeue is not installed on this machine, so jobs of an earlier"
                " submission may still be queued. Submit from a machine with SLURM."
            ) from None
        if result.returncode:
            raise ValueError(f"--on=slurm: squeue fails: {_one_line(result.stderr)}. Try again.")
        queued_ids = {token.partition("_")[0] for token in result.stdout.split()}
        queued += [
            job["id"] for job in jobs if job["cluster"] == cluster and job["id"] in queued_ids
        ]
    return queued


def prepare_in_worker(
    runs: list[schema.Run], submission: str, report: corpus.ProgressCallback
) -> None:
    """Prepare the text of a sweep and validate its runs on the devices of this worker.

    The first worker of a submission prepares the text with all its cores, and the other workers
    wait. Raises ValueError for the first problem that would stop a run.
    """
    folder = job_folder(runs)
    marker = folder / "prepared.json"
    while not (marker.exists() and json_files.read_record(marker)["submission"] == submission):
        try:
            with lock.RunLock(folder / "preparation"):
                launcher.validate_meshes(runs)
                for run in runs:
                    corpus.prepare_corpus(run.data, report, mesh.count_cores())
                json_files.write_record(marker, {"submission": submission})
        except lock.RunLocked:
            time.sleep(launcher.WAIT_SECONDS)
    launcher.validate_sweep(runs, report)


def job_folder(runs: list[schema.Run]) -> Path:
    """Return the folder of scripts, logs and job ids. Raises ValueError if it is in a bucket."""
    folder = launcher.sweep_folder(runs) / "slurm"
    if filesystem.is_remote(folder):
        raise ValueError(
            f"dir={runs[0].dir!r}: SLURM cannot write its logs to a bucket. Set a folder that all"
            " nodes share."
        )
    return Path(folder).absolute()


def batch_script(
    name: str, command: list[str], n_workers: int, log_folder: Path, options: JobOptions
) -> str:
    """Return the text of an array job with n_workers tasks. Raises ValueError: `parse_options`."""
    logs = str(log_folder).replace("%", "%%")
    limit = f"%{options.max_running}" if options.max_running else ""
    lines = [
        f"--job-name={name}",
        f"--array=0-{n_workers - 1}{limit}",
        f"--output={_quote(f'{logs}/%A_%a.log')}",
        "--open-mode=append",
        "--requeue",
        "--signal=USR1@90",
        *parse_options(options.sbatch),
    ]
    srun_options = split_shell("--srun_args", options.srun)
    return BATCH_SCRIPT.format(
        options="\n".join(f"#SBATCH {line}" for line in lines),
        setup="".join(f"{line}\n" for line in options.setup),
        working_directory=shlex.quote(os.getcwd()),
        task_log=shlex.quote(f"{logs}/%A_%a_%t.log"),
        srun="".join(f"{shlex.quote(option)} " for option in srun_options),
        command=shlex.join(command),
        max_requeues=MAX_REQUEUES,
    )


def parse_options(text: str) -> list[str]:
    """Return one line per option of sbatch, quoted for a #SBATCH line: "-p gpu", "-t 4:00:00".

    text: options as in a shell command. Raises ValueError for text that is not an option, and for
    the options in RESERVED_OPTIONS.
    """
    options: list[list[str]] = []
    for word in split_shell("--slurm", text):
        if word.startswith("-"):
            options.append([word])
        elif options:
            options[-1].append(word)
        else:
            raise ValueError(f"--slurm={text!r}: {word!r} is not an option. Write --name=value.")
    for option in options:
        name = option[0].partition("=")[0]
        if name in RESERVED_OPTIONS:
            raise ValueError(
                f"--slurm={text!r}: {name} cannot be set here: {RESERVED_OPTIONS[name]}."
            )
    return [_format_option(*option) for option in options]


def split_shell(flag: str, text: str) -> list[str]:
    """Split text as a shell does. Raises ValueError for unbalanced quotes. flag: its name."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{flag}={text!r}: {error}. Close each quotation mark.") from None


def _format_option(name: str, *values: str) -> str:
    """Return an option with quoted values: --comment='two words' or -J 'two words'."""
    option, equals, value = name.partition("=")
    return " ".join([option + equals + (_quote(value) if value else ""), *map(_quote, values)])


def _quote(text: str) -> str:
    """Quote text for a #SBATCH line, in which a backslash also escapes within quotation marks."""
    return shlex.quote(text.replace("\\", "\\\\"))


def _job_groups(runs: list[schema.Run]) -> list[list[schema.Run]]:
    """Return the pending runs of each job: unrelated runs, then those related to the prediction."""
    related = prediction.related_runs(runs)
    pending_runs = launcher.pending(runs)
    groups = [
        [run for run in pending_runs if (run.name in related) == is_related]
        for is_related in (False, True)
    ]
    return [group for group in groups if group]


def _submit(script: Path, previous_job: str, options: JobOptions) -> str:
    """Submit a script and return its "id" or "id;cluster".

    The job starts after the previous job has ended.
    """
    dependency = [f"--dependency=afterany:{previous_job}"] if previous_job else []
    result = subprocess.run(
        ["sbatch", "--parsable", *dependency, str(script)], capture_output=True, text=True
    )
    job = result.stdout.strip().rpartition("\n")[2]
    if result.returncode or not re.fullmatch(r"\d+(;\S+)?", job):
        message = _one_line(result.stderr or result.stdout)
        raise ValueError(f"--slurm={options.sbatch!r}: sbatch refuses the job: {message}")
    return job


def _one_line(text: str) -> str:
    return text.strip().replace("\n", ", ")


def _record_job(folder: Path, n_workers: int, job: str) -> None:
    """Add a submitted job to jobs.json."""
    job_id, _, cluster = job.partition(";")
    row = {
        "id": job_id,
        "cluster": cluster,
        "workers": n_workers,
        "submitted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    json_files.write_record(folder / "jobs.json", {"jobs": [*_read_jobs(folder), row]})


def _read_jobs(folder: Path) -> list[dict]:
    file = folder / "jobs.json"
    return json_files.read_record(file)["jobs"] if file.exists() else []
