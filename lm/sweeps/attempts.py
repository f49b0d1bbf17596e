"""Attempts of a run that failed or whose process died, per submission of the sweep.

    attempts.record_crash(run, submission)               # before an attempt
    attempts.record_failure(run, message, submission)    # after an attempt
    attempts.has_failed(facts, submission, retries)

The entries failed_in and crashed_in of facts.json contain a submission once per attempt. They are
written under the lock of the run, because another process may train the run at any time.
"""

import contextlib
import traceback

from lm.config import schema
from lm.runs import filesystem, lock, records

MAX_CRASHES = 3  # restarts of a run in one submission after its process died without a record


def record_crash(run: schema.Run, submission: str) -> None:
    """Count an attempt whose process died without a record, as after SIGKILL.

    Such a process leaves its lock file. Only one of the processes that wait for the run replaces
    the file, so a death counts once.
    """
    folder = records.run_dir(run)
    if records.read_facts(folder).get("status") != "running":
        return
    with contextlib.suppress(lock.RunLocked), lock.RunLock(folder) as run_lock:
        facts = records.read_facts(folder)
        if run_lock.n_replaced and facts.get("status") == "running":
            records.write_facts(folder, crashed_in=[*facts.get("crashed_in", []), submission])


def record_failure(run: schema.Run, message: str, submission: str) -> None:
    """Record the current exception of an attempt, unless another process continues the run."""
    folder = records.run_dir(run)
    with contextlib.suppress(lock.RunLocked), lock.RunLock(folder):
        filesystem.write_file(folder / "error.txt", traceback.format_exc())
        failed_in = [*records.read_facts(folder).get("failed_in", []), submission]
        records.write_facts(folder, status="failed", reason=message, failed_in=failed_in)


def has_failed(facts: dict, submission: str, retries: int) -> bool:
    """Return True if a run has diverged or has used all its attempts of a submission.

    facts: of a run that is not in training. If its status is still running,
    its last process died without a record.
    """
    n_failed = facts.get("failed_in", []).count(submission)
    n_crashed = facts.get("crashed_in", []).count(submission)
    is_used_up = n_failed > retries
    is_used_up |= n_crashed >= MAX_CRASHES and facts.get("status") == "running"
    return is_used_up or facts.get("status") == "diverged"
