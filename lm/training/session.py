"""Training session of one run: its lock, its restored state, and the files that it writes.

loop.run_session calls the methods in this order. lm/training/metric_log.py computes the rows.
"""

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from lm.config import schema
from lm.data import dataset
from lm.evaluation import early_stopping, tasks
from lm.parallel import distributed, mesh
from lm.runs import lock, phase_timer, records
from lm.runs.integrity import record_lines
from lm.training import checkpoints, metric_log, preemption, trackers, warm_start
from lm.training.checkpointing import batch_hash, checkpoint_manifest, resume_check
from lm.training.programs import evaluation

MAX_REWINDS = 3  # limit of a run, which then has diverged


class TrainingSession:
    """A session of a run. Entering raises lock.RunLocked if another process trains the run.

    report    function that is called with each row of metrics.jsonl
    report_evaluation  the same for evals.jsonl
    n_runs    number of runs that share the time of this process; their times add up to it
    watchdog  watchdog of another run in the same program; None starts a watchdog
    status    running, done, diverged, or rewound: the run continues in another session
    reason    reason why the run diverged
    restored  restored state, without its arrays after `initial_state`
    first     number of steps before this session
    done      number of completed steps
    """

    def __init__(
        self,
        run: schema.Run,
        text: dataset.TokenDataset,
        device_mesh: jax.sharding.Mesh,
        report: metric_log.Report = metric_log.ignore_row,
        report_evaluation: metric_log.Report = metric_log.ignore_row,
        n_runs: int = 1,
        watchdog: preemption.StallWatchdog | None = None,
    ):
        self.run, self.text, self.mesh = run, text, device_mesh
        self.report, self.report_evaluation = report, report_evaluation
        self.name, self.status, self.reason = run.name, "running", ""
        self.folder = records.run_dir(run)
        self.folders = [self.folder]
        self.writer = records.Writer(self.folder, distributed.is_primary())
        self.timer = phase_timer.PhaseTimer(lambda: time.perf_counter() / n_runs)
        self.lock = lock.RunLock(self.folder)
        own_watchdog = preemption.StallWatchdog(self.folder, run.stall_seconds, jax.process_index())
        self.watchdog = watchdog or own_watchdog
        self.signals = preemption.SignalHandler()
        self.tasks = tasks.load_tasks(run.eval.tasks)
        self.window: list[dict] = []  # metrics of the steps since the last row
        self.row_time = metric_log.RowTime()
        self.recent_rows = collections.deque(maxlen=20)

    def __enter__(self) -> "TrainingSession":
        with contextlib.ExitStack() as stack:
            distributed.run_on_primary(lambda: stack.enter_context(self.lock) and None)
            stack.enter_context(self.watchdog)
            stack.enter_context(self.signals)
            self._writers = stack.enter_context(contextlib.ExitStack())
            self._contexts = stack.pop_all()
        return self

    def __exit__(self, *raised) -> None:
        with self.long_call():  # the last checkpoint is written
            self._contexts.__exit__(*raised)

    def long_call(self) -> contextlib.AbstractContextManager:
        """Return a context for work other than steps, see StallWatchdog.long_call."""
        return self.watchdog.long_call()

    # --- Start or restart ---

    def restore(self, abstract: dict, facts: dict, peak: float) -> None:
        """Restore the newest intact checkpoint, or that of the parent run, and open the records.

        abstract: abstract arrays of the train state. facts: facts of the compiled functions, stored
        with the run. peak: FLOP/s of the mesh in matrix products.
        """
        run, self.abstract, self.peak = self.run, abstract, peak
        self.checkpoints = self._writers.enter_context(checkpoints.CheckpointStore(run))
        self.facts = metric_log.collect_run_facts(run, self.text, self.mesh, peak) | facts
        restored = self.checkpoints.restore_newest(abstract)
        self.is_restart = restored.step > 0
        if not self.is_restart and run.resume == "required":
            raise checkpoint_manifest.CheckpointError(
                f"resume='required': {self.folder} has no intact checkpoint: set resume='auto'"
            )
        events = resume_check.list_events(run, restored)
        if run.start.run and not self.is_restart:
            self.facts |= warm_start.parent_facts(run)
            restored = warm_start.restore_parent(run, abstract, self.text.tokenizer)
        self.first = self.done = restored.step
        arguments = run, self.facts, self.text.tokenizer, self.first if self.is_restart else -1
        self.attempt = distributed.run_on_primary(lambda: metric_log.start_attempt(*arguments))
        for name, message in events:
            self.write_event(name, message)
        if self.first < run.steps:
            self.checkpoints.check_room(abstract)
        self._load_evaluations()
        stored_facts = distributed.run_on_primary(lambda: records.read_facts(self.folder))
        self.skipped_batches = stored_facts.get("passed_over", [])
        is_rewound = any(skip["from_step"] == self.first for skip in self.skipped_batches)
        self.restored = restored.without_expectations() if is_rewound else restored
        self.environment = metric_log.describe_environment(run, self.facts)
        self.timer.assign_remainder("start")

    def _load_evaluations(self) -> None:
        """Load the evaluations that records.start_run has not voided."""
        rows = distributed.run_on_primary(lambda: records.load_evals(self.folder))
        self.evaluations = early_stopping.EvaluationHistory(self.run, rows)

    def initial_state(self, init: Callable[[int], dict]) -> dict:
        """Return the restored state; init(seed) computes its missing parts.

        Raises checkpoint_manifest.CheckpointError if the next batch differs from the expected one.
        """
        state = self.restored.state
        if not self.first:
            fresh = init(self.run.seed)
            state = fresh | state | {"params": fresh["params"] | state.get("params", {})}
        self.restored = dataclasses.replace(self.restored, state={})
        if expected := self.restored.expected_batch_hash:
            local_batch = self.local_batch(self.done)
            self.restored.verify_batch(batch_hash.hash_again(expected, *local_batch))
        self.window = list(self.restored.window)
        self.row_time.total = self.restored.seconds
        self.writer.write_facts(resumed_from=self.first if self.is_restart else 0)
        self.trackers = trackers.Trackers(self.run, self.writer, self.first)
        self._writers.callback(lambda: self.trackers.close(self.status))
        if self.trackers.warning:
            self.write_event("tracker", self.trackers.warning)
        self.timer.assign_remainder("compile")
        return state

    def begin(self, compile_score: Callable, state: dict, compile_seconds: float) -> None:
        """Evaluate the restored weights if due, and finish a run that has no step left.

        The last session may have ended after its last checkpoint and before its last evaluation.
        """
        self.writer.write_facts(compile_seconds=compile_seconds)
        self.evaluate(compile_score, state)
        if self.is_over:
            self.finish()

    def load_batch(self, step: int) -> dict[str, jax.Array]:
        """Load the batch of a step on the devices."""
        load_rows, local_rows = self.local_batch(step)
        return mesh.put_batch(self.mesh, load_rows(local_rows))

    def local_batch(self, step: int) -> tuple[Callable, np.ndarray]:
        """Return a function that loads rows of a step, and the indices of this process's rows."""
        batch_size = self.text.schedule.stage(step).batch_size
        return functools.partial(self.rows, step), mesh.local_rows(self.mesh, batch_size)

    def rows(self, step: int, selected: slice | np.ndarray = slice(None)) -> dict:
        """Return rows of the batch of a step. Batches before a rewind are not used again.

        selected: indices of the rows within the batch.
        """
        skips = (skip for skip in self.skipped_batches if skip["from_step"] <= step)
        return self.text.batch(step + sum(skip["batches"] for skip in skips), selected)

    # --- What is due after the completed steps ---

    @property
    def stop_signal(self) -> str:
        """Return the name of the signal that requested a stop, or ""."""
        return self.signals.stop

    @property
    def steps_until_due(self) -> int:
        """Return the steps until a log row, evaluation, checkpoint or larger batch is due."""
        intervals = (self.run.log_interval, self.run.eval.interval, self.run.checkpoint_interval)
        end = self.text.schedule.end_of_stage(self.done, self.run.steps)
        return min(end - self.done, *(n - self.done % n for n in intervals if n))

    @property
    def is_log_due(self) -> bool:
        """Return True if a row of metrics is due."""
        return self.done == self.run.steps or self.done % self.run.log_interval == 0

    @property
    def is_evaluation_due(self) -> bool:
        """Return True if an evaluation is due at this step and is not recorded yet."""
        if self.done in self.evaluations.rows:
            return False
        if self.done == self.first and not self.is_restart:  # weights of the parent run
            has_results = self.evaluations.has_heldout or self.evaluations.are_tasks_due(self.done)
            return bool(self.run.start.run) and has_results
        return self.evaluations.is_due(self.done)

    @property
    def is_checkpoint_due(self) -> bool:
        """Return True if a checkpoint of the interval is due."""
        return self.done == self.run.steps or self.done % self.run.checkpoint_interval == 0

    @property
    def is_over(self) -> bool:
        """Return True after the last step, or when eval.patience is exhausted."""
        return self.done >= self.run.steps or self.evaluations.is_patience_exhausted(self.done)

    @property
    def is_new_best(self) -> bool:
        """Return True if early stopping needs the checkpoint of this step."""
        return self.evaluations.is_new_best(self.done)

    @property
    def is_state_due(self) -> bool:
        """Return True if an evaluation, a checkpoint or the end needs the current state."""
        return self.is_evaluation_due or self.is_checkpoint_due or self.is_over

    @property
    def is_due(self) -> bool:
        """Return True if a log row, an evaluation or a checkpoint of the interval is due."""
        return self.is_log_due or self.is_state_due

    # --- What the loop does after a call of the step ---

    def advance(self, metrics: list[dict]) -> None:
        """Count completed steps, and verify the loss of the first step after a restart."""
        self.record_progress()
        is_first = self.done == self.first
        self.done += len(metrics)
        if is_first and self.restored.expected_next_loss is not None:
            rules = resume_check.ResumeRules.from_run(self.run, self.mesh, self.environment)
            loss = float(metrics[0]["loss"])
            if message := resume_check.verify_loss(self.restored, loss, rules):
                self.write_event("inexact resume", message)

    def record_progress(self) -> None:
        """Report to the watchdog and the signal handler that a step was completed."""
        self.watchdog.record_progress()
        self.signals.record_progress()

    def record(self, values: list[dict], seconds: float, waited: float) -> None:
        """Record the metrics of the last steps; end the session if they are not finite.

        seconds: duration of these steps. waited: part of it that was spent waiting for batches.
        """
        self.window += values
        self.row_time.add(len(values), seconds, waited)
        self.timer.add("steps", seconds - waited)
        self.timer.add("input", waited)
        nonfinite = self._nonfinite()
        may_skip = self.run.optim.on_nonfinite == "skip" and len(nonfinite) < len(self.window)
        if nonfinite and not may_skip:
            loss, norm = nonfinite[0]["loss"], nonfinite[0]["grad_norm"]
            self._rewind_or_diverge(f"loss {loss}, gradient norm {norm} by step {self.done}")
            return
        saved = self.checkpoints.saved_step
        first = self.done - len(values)
        if first <= saved < self.done:  # the step after the save is in `values`
            loss = float(values[saved - first]["loss"])
            self.checkpoints.record_next_loss(saved, loss, self.environment)

    def log(self) -> None:
        """Write a row of metrics.jsonl if it is due, and events for unusual values."""
        if self.status != "running" or not self.is_log_due:
            return
        timer = self.row_time
        row = {"attempt": self.attempt, "step": self.done, "seconds": timer.total}
        row |= metric_log.step_metrics(self.run, self.text, self.window, self.done)
        steps = range(self.done - timer.n_steps, self.done)
        row |= metric_log.throughput(self.run, steps, timer.seconds, self.peak)
        row |= {"input_wait": timer.waited / timer.seconds} | self.timer.as_metrics()
        with self.timer.phase("log"):
            self.writer.append("metrics.jsonl", row)
            self.trackers.write_metrics(row)
            self.report(row)
        if n_skipped := len(self._nonfinite()):
            self.write_event("skipped", f"{n_skipped} updates had a non-finite loss or gradient")
        for name in metric_log.find_spikes(self.recent_rows, row):
            self.write_event("spike", f"{name} {row[name]:.4g}, far above the steps before")
        self.window, self.row_time = [], metric_log.RowTime(timer.total)

    def save(self, state: dict, stop: str) -> None:
        """Save a checkpoint if it is due or if a signal requested a stop.

        The loop saves before it evaluates, so that a failed evaluation loses no training step.
        stop: name of the signal, or "".
        """
        if self.status == "running" and (self.is_checkpoint_due or stop):
            self.write_checkpoint(state)

    def evaluate(self, compile_score: Callable, state: dict) -> None:
        """Write the rows of evals.jsonl that are due. compile_score: see compilation.compile_all.

        With eval.patience, the tasks are evaluated at the end, with the best weights.
        """
        if self.status != "running":
            return
        history = self.evaluations
        if self.is_evaluation_due:
            parts = evaluation.Parts(history.has_heldout, history.are_tasks_due(self.done))
            evaluation.write_row(self, self.done, compile_score, state["params"], parts)
        if self.is_over and history.lacks_tasks(self.done):
            step, weights = history.final_step(self.done), state["params"]
            if step < self.done:
                restored = self.checkpoints.restore(step, {"params": self.abstract["params"]})
                weights = weights | restored.state["params"]
            parts = evaluation.Parts(has_heldout=step < self.done, has_tasks=True)
            evaluation.write_row(self, step, compile_score, weights, parts)

    def conclude(self, state: dict, stop: str) -> None:
        """Save the best checkpoint, finish a run that is over, and stop after a signal.

        stop: name of the signal, or "". Raises preemption.Interrupted after a signal.
        """
        if self.status != "running":
            return
        if self.is_new_best:
            self.write_checkpoint(state)
        if self.is_over:
            self.finish()
        elif stop:
            message = self.write_stopped(stop)
            raise preemption.Interrupted(f"{self.run.name} {message}", stop)

    # --- Parts of `save` and `conclude` ---

    def write_checkpoint(self, state: dict) -> None:
        """Begin to save a checkpoint, unless this session has saved one of this step."""
        if self.checkpoints.saved_step == self.done:
            return
        window = [{name: float(value) for name, value in m.items()} for m in self.window]
        next_hash = batch_hash.hash_batch(*self.local_batch(self.done))
        with self.timer.phase("save"):
            self.checkpoints.save(self.done, state, next_hash, window, self.row_time.total)

    def write_stopped(self, stop: str) -> str:
        """Record that a signal stopped the run, and return the message."""
        message = f"stopped by {stop} at step {self.done} of {self.run.steps}"
        self.writer.write_facts(status="lost", reason=f"{self.run.name} {message}")
        return message

    def finish(self) -> None:
        """Record that the run is done, once its last checkpoint is complete."""
        self.status = "done"
        with self.timer.phase("save"):
            self._writers.close()
        ends_at = self.evaluations.final_step(self.done)
        message = self.evaluations.stop_message(self.done)
        loss = self.recent_rows[-1]["loss"] if self.recent_rows else None
        warning = metric_log.quality_warning(self.run, self.evaluations.rows, ends_at, loss)
        for name, text in (("stopped early", message), ("no improvement", warning)):
            if text:
                self.write_event(name, text)
        reason, seconds = "; ".join(filter(None, (message, warning))), self.row_time.total
        attempts = records.attempt_metrics(self.folder, self.attempt)
        facts = metric_log.final_facts(self.run, self.done, self.facts["flops_per_token.full"])
        facts |= {"reason": reason, "seconds": seconds, "ends_at": ends_at}
        facts |= phase_timer.combine_attempts([*attempts, self.timer.as_metrics()], seconds)
        facts |= {"warning": warning} if warning else {}
        if distributed.is_primary():
            record_lines.sync_records(self.folder)  # facts of a finished run must not be newer
        self.writer.write_facts(**facts)
        self.writer.repair()

    def write_event(self, name: str, message: str) -> None:
        """Write a line of events.jsonl."""
        self.writer.event(self.attempt, self.done, name, message)

    def _rewind_or_diverge(self, message: str) -> None:
        """End the session after a non-finite loss or gradient.

        With optim.on_nonfinite=rewind the run returns to its last checkpoint and skips the batches
        since then, at most MAX_REWINDS times. Otherwise the run has diverged.
        """
        self.write_event("nonfinite", message)
        if self.run.optim.on_nonfinite != "rewind" or len(self.skipped_batches) >= MAX_REWINDS:
            message += "; " + metric_log.explain_nonfinite(
                self.run, self.done, self.window, self.recent_rows, self.rows
            )
            self.writer.write_facts(status="diverged", reason=message)
            self.status, self.reason = "diverged", f"{self.run.name} diverged: {message}"
            return
        target = max(self.checkpoints.steps(), default=self.first)
        skip = {"from_step": target, "batches": self.done - target}
        self.writer.write_facts(passed_over=[*self.skipped_batches, skip])
        self.write_event("rewound", f"to step {target}; {skip['batches']} batches are skipped")
        self.status = "rewound"

    def _nonfinite(self) -> list[dict]:
        """Return the metrics since the last row whose loss or gradient norm is not finite."""
        return [m for m in self.window if not np.isfinite([m["loss"], m["grad_norm"]]).all()]
