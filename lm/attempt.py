"""An attempt at a run: its claim, where it stands, and all it reads and writes on its way.

    with Attempt(run, text, device_mesh) as one:       from here on no other process trains it
        one.find(program.abstract)                     its newest checkpoint, or where it starts
        one.take(values, ...); one.log(...); one.evaluate(...); one.save(...)

The loop that calls these is lm/train.py's; what its rows hold is in lm/ledger.py.
"""

import collections
import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Callable

import jax
import numpy as np

from lm import (
    checkpoint,
    checks,
    clock,
    config,
    data,
    evaluate,
    exam,
    guard,
    hosts,
    ledger,
    lineage,
    mirrors,
    records,
    tasks,
)

MAX_REWINDS = 3  # of one run; then it has diverged


def check(run: config.Run) -> data.Text:
    """The run's text, prepared; ValueError for what cannot work on any devices."""
    checks.check(run)
    mirrors.check(run)
    hosts.first(lambda: records.compare(run))
    if run.start.run:
        lineage.check(run, lineage.parent(run))
    hosts.first(lambda: data.load(run.data, run.seed) and None)  # prepared once
    text = data.load(run.data, run.seed)
    hosts.check_same("config", ledger.knobs_hash(run))
    hosts.check_same("prepared text", text.hash)
    data.check_steps(text, run.steps)
    if text.tokenizer.vocab_size > run.model.vocab_size:
        raise ValueError(
            f"model.vocab_size={run.model.vocab_size} must be at least the tokenizer's"
            f" {text.tokenizer.vocab_size}"
        )
    return text


class Attempt:
    """A context manager; guard.Taken on entry if another process trains the run.

    until: steps at which it ends or waits; first: steps done before; done: steps done now; seconds:
    of training, over all attempts; window: metrics of the steps since the last row; evaluated: rows
    of evals.jsonl by step; clock: where its time goes. n: runs that are trained with it, itself
    too; it counts an nth of all seconds, so that those of all runs add up.
    """

    def __init__(
        self, run: config.Run, text: data.Text, device_mesh: jax.sharding.Mesh, until: int, n: int
    ):
        self.run, self.text, self.mesh, self.until = run, text, device_mesh, until
        self.clock = clock.Clock(lambda: time.perf_counter() / n)
        self.asked = tasks.load_all(run.eval.tasks)
        self.folder = records.folder(run)
        self.watch = guard.Guard(self.folder, run.stall_seconds, jax.process_index())
        self.window: list[dict] = []
        self.seconds, self._spent, self._waited, self._timed = 0.0, 0.0, 0.0, 0
        self._recent = collections.deque(maxlen=20)
        self._unproved = 0  # step of a checkpoint whose next loss is not known yet

    def __enter__(self) -> "Attempt":
        with contextlib.ExitStack() as stack:
            hosts.first(lambda: stack.enter_context(self.watch) and None)
            if not hosts.is_first():
                stack.enter_context(self.watch)
            self._open = stack.enter_context(contextlib.ExitStack())  # what is written to
            self._claimed = stack.pop_all()
        return self

    def __exit__(self, *raised) -> None:
        self._claimed.__exit__(*raised)

    def find(self, abstract: dict, facts: dict, peak: float) -> None:
        """Where the run stands, and what of its state was saved; opens its records.

        facts: of the program; peak: FLOP/s of the mesh in matrix products.
        """
        run, self.peak = self.run, peak
        self.checkpoints = self._open.enter_context(checkpoint.Checkpoints(run))
        self.facts = ledger.facts(run, self.text, self.mesh, peak) | facts
        self.first, saved, proof, damage = self.checkpoints.restore_newest(abstract)
        if not self.first and run.resume == "must":
            raise ValueError(
                f"resume='must', but {self.folder} has no checkpoint that proves itself"
            )
        self.resumed = self.first > 0
        if run.start.run and not self.resumed:
            self.facts |= lineage.facts(run)
            self.first, saved, proof = lineage.restore(run, abstract, self.text.tokenizer)
        self.done, self._saved, self._proof = self.first, saved, proof
        self.number = hosts.first(lambda: records.start(run, self.facts))
        if hosts.is_first():
            self.text.tokenizer.save(self.folder)
        self.tell = functools.partial(records.event, self.folder, self.number)
        for reason in damage:
            self.tell(self.first, "damaged", reason)
        self.evaluated = {row["step"]: row for row in hosts.first(self._evals)}
        found = hosts.first(lambda: records.read_facts(self.folder))
        self._passed = found.get("passed_over", [])
        self.clock.rest("start")

    def begin(
        self, init: Callable[[int], dict], report: Callable[[config.Run, dict], None]
    ) -> dict:
        """The state to go on with: what was saved, and the rest from init(seed).

        ValueError if the next batch is not the one it was when that was saved.
        """
        state, self._saved = self._saved, {}
        if not self.first:
            fresh = init(self.run.seed)
            state = fresh | state | {"params": fresh["params"] | state.get("params", {})}
        proof, is_passed = self._proof, any(p["from_step"] == self.first for p in self._passed)
        changed = "batch" in proof and not is_passed and proof["batch"] != self._next_batch()
        if hosts.worst("changed" if changed else ""):
            raise ValueError(
                f"{self.folder}: the batch after step {self.first} is not the one it was: the"
                " prepared text has changed"
            )
        self._expected = None if is_passed else proof.get("next")
        self.seconds, self.window = proof.get("seconds", 0.0), proof.get("window", [])
        records.write_facts(self.folder, resumed_from=self.first if self.resumed else 0)
        self._write, close = mirrors.follow(self.run, self.first)
        self._open.callback(close)
        self._report = report
        self.clock.rest("compile")
        return state

    def rows(self, number: int, selected: slice | np.ndarray = slice(None)) -> dict:
        """The batch of a step; those that a rewind passed over are never seen again."""
        number += sum(p["batches"] for p in self._passed if p["from_step"] <= number)
        return self.text.batch(number, selected)

    # What is due after the steps that are done.

    @property
    def until_due(self) -> int:
        """Steps until something is due."""
        every = (self.run.log_every, self.run.eval.every, self.run.checkpoint_every)
        return min(self.until - self.done, *(n - self.done % n for n in every if n))

    @property
    def is_log(self) -> bool:
        """Whether a row of metrics is due."""
        return _is_due(self.done, self.run.log_every, self.until)

    @property
    def is_eval(self) -> bool:
        """Whether an evaluation is due that is not there."""
        due = _is_due(self.done, self.run.eval.every, self.until)
        if self.done == self.first:  # what the start brings, or the last attempt did not come to
            due = due if self.resumed else bool(self.run.start.run)
        return due and self.done not in self.evaluated

    @property
    def is_save(self) -> bool:
        """Whether a checkpoint is due, before any is for being the best."""
        return _is_due(self.done, self.run.checkpoint_every, self.until)

    @property
    def is_due(self) -> bool:
        """Whether any of these is."""
        return self.is_log or self.is_eval or self.is_save

    # What the loop does with them.

    def prove(self, loss) -> None:
        """ValueError if the first step after a resume does not give the loss it gave before.

        The same bits on the same devices and versions, a part in a hundred elsewhere; with
        mesh.exact the same bits on any number of devices.
        """
        expected = self._expected
        if not expected or self.done != self.first + 1:
            return
        loss = float(loss)
        rtol = 0.0 if expected["where"] == self._where() else 1e-2
        if not np.isclose(loss, expected["next_loss"], rtol=rtol, atol=0.0):
            raise ValueError(
                f"{self.folder}: step {self.done} gave loss {loss!r} after a resume and"
                f" {expected['next_loss']!r}"
                " before it: code or text have changed; pick a new name"
            )

    def take(self, values: list[dict], seconds: float, waited: float) -> str:
        """Reads the metrics of the last steps; what is bad about them, or "".

        seconds: that they took; waited: of these, for batches.
        """
        self.window += values
        self._timed += len(values)  # not len(window): a resumed one has steps of another attempt
        self.seconds, self._spent = self.seconds + seconds, self._spent + seconds
        self._waited += waited
        self.clock.add("steps", seconds - waited)
        self.clock.add("input", waited)
        self._bad = [m for m in self.window if not np.isfinite([m["loss"], m["grad_norm"]]).all()]
        if self._bad and not self._is_skipping():
            loss, norm = self._bad[0]["loss"], self._bad[0]["grad_norm"]
            return f"loss {loss}, gradient norm {norm} by step {self.done}"
        if self._unproved:
            place = self._unproved - (self.done - len(self.window))  # of the step after it
            loss = float(self.window[place]["loss"])
            self.checkpoints.record_next_loss(self._unproved, loss, self._where())
            self._unproved = 0
        return ""

    def rewind(self, words: str) -> bool:
        """Whether the run goes back: then the batches since its last checkpoint are passed over."""
        self.tell(self.done, "nonfinite", words)
        if self.run.optim.nonfinite != "rewind" or len(self._passed) >= MAX_REWINDS:
            records.write_facts(self.folder, status="diverged", reason=words)
            return False
        to = max(self.checkpoints.steps(), default=self.first)
        n = self.done - to
        passed = [*self._passed, {"from_step": to, "batches": n}]
        records.write_facts(self.folder, passed_over=passed)
        self.tell(self.done, "rewound", f"to step {to}; {n} batches are passed over")
        return True

    def log(self) -> None:
        """Writes a row of metrics.jsonl, and what is odd about it."""
        row = {"attempt": self.number, "step": self.done, "seconds": self.seconds}
        row |= ledger.metrics(self.run, self.text, self.window, self.done)
        row |= ledger.speed(self.run, self._timed, self._spent, self.peak)
        row |= {"input_wait": self._waited / self._spent} | self.clock.row()
        with self.clock.of("log"):
            records.append(self.folder / "metrics.jsonl", row)
            self._write(row)
            self._report(self.run, row)
        if self._bad:
            words = f"{len(self._bad)} updates whose loss or gradient is no number"
            self.tell(self.done, "skipped", words)
        for name in ledger.spikes(self._recent, row):
            self.tell(self.done, "spike", f"{name} {row[name]:.4g}, far above the steps before")
        self.window, self._waited, self._spent, self._timed = [], 0.0, 0.0, 0

    def evaluate(self, score: Callable, params: dict) -> None:
        """Writes a row of evals.jsonl."""
        run, is_asked = self.run, _is_due(self.done, self.run.eval.tasks_every, self.run.steps)
        with self.clock.of("evaluate"), jax.set_mesh(self.mesh):
            row = evaluate.evaluate(run, self.mesh, score, params, self.text)
            if is_asked:
                tokenizer = self.text.tokenizer
                results = exam.sit(run, self.mesh, score, params, tokenizer, self.asked)
                row |= exam.columns(results)
        self.evaluated[self.done] = {"attempt": self.number, "step": self.done} | row
        records.append(self.folder / "evals.jsonl", self.evaluated[self.done])

    def is_best(self) -> bool:
        """Whether a checkpoint must be kept of this step, as the best so far of eval.patience."""
        return self.run.eval.patience > 0 and self._best()[0] == self.done

    def is_over(self) -> bool:
        """Whether it ends or waits here, or eval.patience is at its end."""
        if self.done == self.until:
            return True
        best, n_worse = self._best()
        if not 0 < self.run.eval.patience <= n_worse:
            return False
        words = f"no evaluation since step {best} had a lower loss"
        self.tell(self.done, "stopped early", words)
        return True

    def save(self, state: dict) -> None:
        """Begins a checkpoint."""
        loss = self.evaluated.get(self.done, {}).get("loss")
        window = [{name: float(value) for name, value in m.items()} for m in self.window]
        batch = self._next_batch()
        with self.clock.of("save"):
            self.checkpoints.save(self.done, state, batch, window, self.seconds, loss)
        self._unproved = self.done

    def finish(self) -> None:
        """Writes that the run is done, once its last checkpoint is whole."""
        with self.clock.of("save"):
            self._open.close()
        ends_at = self._best()[0] if self.run.eval.patience else self.done
        tokens = self.done * self.run.data.batch_size * self.run.data.seq_len
        cost = {"tokens": tokens, "flops": tokens * self.facts["flops_per_token.full"]}
        words = ledger.doubt(self.run, self.evaluated, ends_at)
        if words:
            self.tell(self.done, "worthless", words)
        said = {"status": "done", "reason": words, "seconds": self.seconds, "ends_at": ends_at}
        spent = [*records.attempts(self.folder, self.number), self.clock.row()]
        said |= clock.total(spent, self.seconds)
        records.write_facts(self.folder, **said, **cost)
        records.settle(self.folder)

    def _is_skipping(self) -> bool:
        return self.run.optim.nonfinite == "skip" and len(self._bad) < len(self.window)

    def _evals(self) -> list[dict]:
        return records.evals(self.folder)

    def _best(self) -> tuple[int, int]:
        """The step of the lowest held-out loss, and how many evaluations came after it."""
        steps = sorted(step for step in self.evaluated if 0 < step <= self.done)
        best = min(steps, key=lambda step: self.evaluated[step]["loss"], default=self.done)
        return best, sum(step > best for step in steps)

    def _next_batch(self) -> str:
        """Hash of the batch after the steps that are done."""
        batch = self.rows(self.done)
        return hashlib.sha256(b"".join(batch[k].tobytes() for k in sorted(batch))).hexdigest()[:16]

    def _where(self) -> str:
        """What two steps must have in common to give the same bits."""
        start = "devices.kind" if self.run.mesh.exact else "devices"
        keys = (k for k in self.facts if k.startswith((start, "versions.")) and "peak" not in k)
        return json.dumps([self.facts[k] for k in sorted(keys)])


def _is_due(step: int, every: int, last: int) -> bool:
    """Every so many steps (0: never), and at the last."""
    return step == last or (every > 0 and step % every == 0)
