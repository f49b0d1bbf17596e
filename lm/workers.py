"""Processes that share the runs of a sweep: several on this machine, or jobs of a SLURM cluster.

A worker is the sweep's own command once more (experiments.sweep --worker): it trains what is ready
until nothing is, and any number of them may work on one folder (launch.here). Nothing else drives a
sweep: a worker that dies is replaced by the next, wherever that starts.

The batch script is our own and not submitit's, whose jobs unpickle a function and catch the signals
by which a run saves itself.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from lm import config, launch, prediction

MAX_REQUEUES = 20  # of one job; a run that is killed for its memory would go on for ever
# Asked to save 90 seconds before the time is up, and at preemption; what was lost is queued again:
# 124 is a stall, 128 + N the end by signal N (see experiments/cli.py).
SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --output={logs}/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@90
{options}
cd {here} || exit 1
srun --kill-on-bad-exit=1 {command}
status=$?
if [ $status -ge 124 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $status
"""


def generations(runs: list[config.Run]) -> list[list[config.Run]]:
    """What is left, those first that wait for none, then those that wait only for them, ..."""
    found: list[list[config.Run]] = []
    place: dict[str, int] = {}
    left, late = launch.left(runs), prediction.family(runs)
    for is_late in (False, True):  # the family of what is predicted waits for all others
        first = len(found)
        for run in left:
            if (run.name in late) == is_late:
                place[run.name] = max(place.get(run.start.run, -1) + 1, first * is_late)
                found += [[] for _ in range(place[run.name] + 1 - len(found))]
                found[place[run.name]].append(run)
    return found


def script(name: str, command: list[str], n: int, logs: Path, options: list[str]) -> str:
    """The text of a batch job of n workers. options: of sbatch, such as --partition=gpu."""
    return SCRIPT.format(
        name=name,
        last=n - 1,
        logs=logs,
        options="".join(f"#SBATCH {option}\n" for option in options),
        here=shlex.quote(os.getcwd()),
        command=shlex.join(command),
        requeues=MAX_REQUEUES,
    )


def submit(
    runs: list[config.Run], command: list[str], most: int, options: list[str]
) -> list[tuple[int, str]]:
    """Queues workers for what is left; (number of workers, job id) of each generation.

    A generation starts when the one before has ended. The scripts and logs stay in SWEEP/slurm.
    ValueError if there is no SLURM here, or if it refuses a job.
    """
    if not shutil.which("sbatch"):
        raise ValueError("--on=slurm: there is no sbatch on this machine; use --on=here")
    logs = (launch.folder(runs) / "slurm").absolute()
    logs.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[int, str]] = []
    for number, members in enumerate(generations(runs)):
        file = logs / f"generation-{number}.sh"
        n = min(len(members), most)
        file.write_text(script(logs.parent.name, command, n, logs, options), encoding="utf-8")
        after = [f"--dependency=afterany:{jobs[-1][1]}"] if jobs else []
        said = subprocess.run(
            ["sbatch", "--parsable", *after, str(file)], capture_output=True, text=True
        )
        if said.returncode:
            why = said.stderr.strip().replace("\n", "; ")
            raise ValueError(f"--slurm={' '.join(options)!r}: sbatch refuses the job: {why}")
        jobs.append((n, said.stdout.strip().partition(";")[0]))
    return jobs


def here(command: list[str], n: int, logs: Path, beat: Callable[[], None]) -> list[int]:
    """n workers on this machine, each with its share of the devices; their exit statuses.

    beat: called twice a second. What they print is in logs/0.log, 1.log, ... A signal to this
    process reaches each of them; they save, and their statuses come back.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        workers = []
        for number in range(n):
            log = stack.enter_context(open(logs / f"{number}.log", "a", encoding="utf-8"))
            with _share_of_cores(number, n):
                worker = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | _devices(number),
                    start_new_session=True,  # Ctrl-C reaches them through us, once
                )
            workers.append(worker)

        def pass_on(signum, _) -> None:
            for worker in workers:
                worker.send_signal(signum)

        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            stack.callback(signal.signal, signum, signal.signal(signum, pass_on))
        while alive := [worker for worker in workers if worker.poll() is None]:
            beat()
            with contextlib.suppress(subprocess.TimeoutExpired):
                alive[0].wait(timeout=0.5)
        return [worker.returncode for worker in workers]


def _devices(number: int) -> dict[str, str]:
    """Environment that gives worker `number` one accelerator, of those that this process sees."""
    names = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_DEVICES")
    seen = {name: os.environ.get(name, "").split(",") for name in names}
    return {
        name: devices[number % len(devices)] if devices[0] else str(number)
        for name, devices in seen.items()
    }


@contextlib.contextmanager
def _share_of_cores(number: int, n: int) -> Iterator[None]:
    """What is started within has its share of the cores from its first instruction.

    As many cores as it has become its CPU devices.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[number % len(cores) :: n])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
