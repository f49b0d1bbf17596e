"""Disk space of the checkpoints of a run: bytes of a checkpoint times the retained number.

    space = checkpoint_space.estimate_space(runs)["sweep/a"]
    space.checkpoint_bytes, space.n_retained, space.largest_bytes

A run retains its two newest checkpoints, because the newest may be damaged. It also retains those
of permanent_checkpoint_interval, that of the lowest held-out loss with keep_best or eval.patience,
and those from which other runs start (checkpoint_retention.py). An older checkpoint is deleted
after a newer one is complete, so one more is on the disk for a short time.
"""

import dataclasses
from collections.abc import Collection

import jax

from lm.config import schema
from lm.model import memory_estimate
from lm.training import step


@dataclasses.dataclass(frozen=True)
class CheckpointSpace:
    """Disk space of the checkpoints of a run."""

    checkpoint_bytes: int  # of the arrays, before their compression
    n_retained: int  # largest number of checkpoints after a save

    @property
    def largest_bytes(self) -> int:
        """Return the bytes while a checkpoint is written, before an older one is deleted."""
        return self.checkpoint_bytes * (self.n_retained + 1)


def estimate_space(runs: list[schema.Run]) -> dict[str, CheckpointSpace]:
    """Return the disk space of the checkpoints of each run by name.

    runs: also contain the runs that start from a checkpoint of another run.
    """
    starts: dict[str, set[int]] = {run.name: set() for run in runs}
    for run in runs:
        starts.setdefault(run.start.run, set()).add(run.start.step or -1)  # -1: the last one
    return {
        run.name: CheckpointSpace(checkpoint_bytes(run), count_retained(run, starts[run.name]))
        for run in runs
    }


def checkpoint_bytes(run: schema.Run) -> int:
    """Return the bytes of the arrays in a checkpoint: all parameters, and the optimizer state.

    Frozen weights have no optimizer state.
    """
    weights = memory_estimate.list_weights(run.model)
    is_trainable, _ = step.trainable_axes(run)
    n_values = sum(
        weight.n * (1 + has_moments * memory_estimate.optimizer_state_size(run, weight))
        for weight, has_moments in zip(weights, jax.tree.leaves(is_trainable), strict=True)
    )
    return round(memory_estimate.FLOAT32 * n_values)


def count_retained(run: schema.Run, start_steps: Collection[int] = ()) -> int:
    """Return the largest number of checkpoints that a run retains after a save.

    start_steps: steps from which other runs start; the last step can be -1.
    """
    interval, permanent = run.checkpoint_interval, run.permanent_checkpoint_interval
    n_saves = -(-run.steps // interval)
    previous = (n_saves - 1) * interval
    newest = {run.steps, previous} - {0}
    n_permanent = run.steps // permanent if permanent else 0
    n_permanent -= sum(step % permanent == 0 for step in newest) if permanent else 0
    others = {step for step in start_steps if step > 0 and step not in newest}
    others = {step for step in others if not permanent or step % permanent}
    n_best = int(run.keep_best or run.eval.patience > 0)
    return len(newest) + n_permanent + len(others) + n_best
