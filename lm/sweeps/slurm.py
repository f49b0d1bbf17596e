"""Train the pending runs of a sweep in jobs of a SLURM cluster.

    for n_workers, job_id in slurm.submit_slurm(runs, command, 16, ["--partition=gpu"]):
        print(job_id, n_workers)

Each task of a job runs the command of the sweep with --worker (lm/sweeps/workers.py). The package
submitit is not used: its jobs unpickle a function, and they catch the signals on which a run saves
its state.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from lm.config import schema
from lm.sweeps import launcher, prediction

# A task that always exceeds its memory would otherwise be requeued without end.
MAX_REQUEUES = 20
# SLURM sends USR1 90 seconds before the time limit and at preemption, so that a run can save its
# state. A task is requeued if it was interrupted: the exit status is 124 after a stall and 128 + N
# after signal N (experiments/common/cli.py).
BATCH_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last_index}
#SBATCH --output={log_folder}/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@90
{options}
cd {working_directory} || exit 1
srun --kill-on-bad-exit=1 {command}
status=$?
if [ $status -ge 124 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_requeues} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $status
"""


def submit_slurm(
    runs: list[schema.Run], command: list[str], max_workers: int, options: list[str]
) -> list[tuple[int, str]]:
    """Submit one job per dependency level. Return (number of workers, job id) of each job.

    A job starts when the previous job has ended. command: of one worker. options: of sbatch, such
    as --partition=gpu. Scripts and logs are written to SWEEP/slurm. Raises ValueError if sbatch is
    missing or refuses a job.
    """
    if not shutil.which("sbatch"):
        raise ValueError("--on=slurm: sbatch is not installed on this machine. Use --on=here.")
    folder = (launcher.sweep_folder(runs) / "slurm").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[int, str]] = []
    for number, level in enumerate(dependency_levels(runs)):
        n_workers = min(len(level), max_workers)
        script = folder / f"generation-{number}.sh"
        text = batch_script(folder.parent.name, command, n_workers, folder, options)
        script.write_text(text, encoding="utf-8")
        previous_job = jobs[-1][1] if jobs else ""
        jobs.append((n_workers, _submit(script, previous_job, options)))
    return jobs


def dependency_levels(runs: list[schema.Run]) -> list[list[schema.Run]]:
    """Return the pending runs by level: a run depends only on runs of earlier levels.

    The predicted run and its related runs come after all other runs.
    """
    related = prediction.related_runs(runs)
    level_of: dict[str, int] = {}
    pending_runs = launcher.pending(runs)
    first_level = 0
    for is_related in (False, True):
        for run in pending_runs:
            if (run.name in related) == is_related:
                level_of[run.name] = max(level_of.get(run.start.run, -1) + 1, first_level)
        first_level = max(level_of.values(), default=-1) + 1
    levels: list[list[schema.Run]] = [[] for _ in range(first_level)]
    for run in pending_runs:
        levels[level_of[run.name]].append(run)
    return levels


def batch_script(
    name: str, command: list[str], n_workers: int, log_folder: Path, options: list[str]
) -> str:
    """Return the text of an array job with n_workers tasks. options: see `submit_slurm`."""
    return BATCH_SCRIPT.format(
        name=name,
        last_index=n_workers - 1,
        log_folder=log_folder,
        options="".join(f"#SBATCH {option}\n" for option in options),
        working_directory=shlex.quote(os.getcwd()),
        command=shlex.join(command),
        max_requeues=MAX_REQUEUES,
    )


def _submit(script: Path, previous_job: str, options: list[str]) -> str:
    """Submit a script and return its job id. The job waits for the end of the previous job."""
    dependency = [f"--dependency=afterany:{previous_job}"] if previous_job else []
    result = subprocess.run(
        ["sbatch", "--parsable", *dependency, str(script)], capture_output=True, text=True
    )
    if result.returncode:
        message = result.stderr.strip().replace("\n", ", ")
        raise ValueError(f"--slurm={' '.join(options)!r}: sbatch refuses the job: {message}")
    return result.stdout.strip().partition(";")[0]
