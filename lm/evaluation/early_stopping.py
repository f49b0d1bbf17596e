"""Evaluations of one run: the steps at which they are due, the best one, and early stopping.

history = EvaluationHistory(run)
history.rows[200] = {"step": 200, "loss": 1.81, "loss_se": 0.02}
history.best_step(320)            # step of the lowest held-out loss
history.is_patience_exhausted(320)
"""

import math
from collections.abc import Sequence

from lm.config import schema

# An interval evaluation is omitted if the last step follows within this fraction of the interval.
OMITTED_FRACTION = 0.25


class EvaluationHistory:
    """Evaluations of a run, and the decisions that depend on them.

    rows: {step: row of evals.jsonl}. A row without held-out text has no "loss".
    """

    def __init__(self, run: schema.Run, rows: Sequence[dict] = ()):
        self.run = run
        self.rows: dict[int, dict] = {row["step"]: row for row in rows}

    @property
    def has_heldout(self) -> bool:
        """Return True if the run has held-out text."""
        return self.run.data.heldout_fraction > 0

    def is_due(self, step: int) -> bool:
        """Return True if the loss or the tasks are evaluated after a number of steps.

        Evaluations are at the multiples of eval.interval and at the last step. A multiple shortly
        before the last step is omitted, because the final evaluation gives almost the same result.
        """
        if not self.has_heldout and not self.are_tasks_due(step):
            return False
        return self._is_multiple_due(step, self.run.eval.interval)

    def are_tasks_due(self, step: int) -> bool:
        """Return True if an evaluation after a number of steps includes the tasks.

        With eval.patience, the tasks of the last evaluation are those of the best weights: see
        `lacks_tasks`.
        """
        settings = self.run.eval
        if settings.patience and step == self.run.steps:
            return False
        return bool(settings.tasks) and self._is_multiple_due(step, settings.task_interval)

    def lacks_tasks(self, step: int) -> bool:
        """Return True if a run with eval.patience ends at `step`, and its result has no tasks."""
        row = self.rows.get(self.final_step(step), {})
        has_tasks = any(column.startswith("task.") for column in row)
        return self.run.eval.patience > 0 and bool(self.run.eval.tasks) and not has_tasks

    def best_step(self, step: int) -> int:
        """Return the step of the lowest held-out loss until `step`; `step` without a loss."""
        steps = self._steps_with_loss(step)
        return min(steps, key=self._loss, default=step)

    def final_step(self, step: int) -> int:
        """Return the step of the checkpoint that is the result of a run that ends at `step`."""
        return self.best_step(step) if self.run.eval.patience else step

    def is_new_best(self, step: int) -> bool:
        """Return True if early stopping needs the checkpoint of this step."""
        has_loss = "loss" in self.rows.get(step, {})
        return self.run.eval.patience > 0 and has_loss and self.best_step(step) == step

    def is_patience_exhausted(self, step: int) -> bool:
        """Return True if eval.patience evaluations after the best one had no lower loss."""
        best_step = self.best_step(step)
        n_worse = sum(s > best_step for s in self._steps_with_loss(step))
        return 0 < self.run.eval.patience <= n_worse

    def stop_message(self, step: int) -> str:
        """Return a sentence about a run that ends at `step`; "" unless an earlier one is best."""
        best_step = self.final_step(step)
        if best_step == step:
            return ""
        end = "stopped early" if step < self.run.steps else "ended"
        row = self.rows[best_step]
        return (
            f"{end} at step {step}: the best evaluation is step {best_step} with"
            f" {self._loss(best_step):.3f} ± {row['loss_se']:.3f}, whose checkpoint is the result"
        )

    def _loss(self, step: int) -> float:
        """Return the held-out loss of a step, infinity for NaN, which JSON stores as a string."""
        loss = float(self.rows[step]["loss"])
        return math.inf if math.isnan(loss) else loss

    def _steps_with_loss(self, last_step: int) -> list[int]:
        """Return the evaluated steps from 1 to `last_step` in order."""
        return sorted(s for s, row in self.rows.items() if 0 < s <= last_step and "loss" in row)

    def _is_multiple_due(self, step: int, interval: int) -> bool:
        """Return True at the last step, and at multiples of an interval that are not omitted."""
        n_left = self.run.steps - step
        if n_left == 0:
            return True
        is_multiple = interval > 0 and step % interval == 0
        return is_multiple and n_left >= OMITTED_FRACTION * self.run.eval.interval
