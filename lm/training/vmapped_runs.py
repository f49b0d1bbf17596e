"""Train several runs of one shape in one program: a `vmap` of the step over the runs.

    runs = choose(iter(ready), 4, alone=set())      the first run, and runs that can join it
    reasons = together(runs)                        train them; why a run diverged, by its name

Each run has its own folder, records, checkpoints and end. The runs may differ in their weights and
batches, which follow from a seed, and in the optimizer inputs. Many small runs fill an accelerator
that a single small run does not; see experiments/LOG.md for measurements.

The loop is that of a single run: loop.run_session. `Sessions` has the methods of
session.TrainingSession that the loop calls, each for all runs. Its train state is that of all runs:
every array has a leading axis over the K runs.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Set

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm.config import fields, schema
from lm.parallel import mesh
from lm.training import checkpoints, loop, session, step

Report = Callable[[schema.Run, dict], None]
FREE = fields.fields_with("vmapped", schema.Run)


def check_compatible(runs: list[schema.Run]) -> None:
    """Raise ValueError that names the first field that prevents training in one program."""
    first, defaults = schema.flatten(runs[0]), schema.flatten(schema.Run())
    for run in runs[1:]:
        values = schema.flatten(run)
        for field, value in values.items():
            if field not in FREE and value != first[field]:
                raise ValueError(
                    f"{run.name} has {field}={value!r} and {runs[0].name} {first[field]!r}: runs of"
                    f" one program may differ in {', '.join(FREE)} only"
                )
        for field, info in fields.field_info(schema.Run).items():
            if info.alone and values[field] != defaults[field]:
                raise ValueError(
                    f"{run.name} has {field}={values[field]!r}, and {info.alone}: train it alone,"
                    f" or set {field}={defaults[field]!r}"
                )


def select_compatible(runs: Iterator[schema.Run], n: int, alone: Set[str]) -> list[schema.Run]:
    """Return the first of the runs, and at most n - 1 runs that can continue with it.

    alone: names of runs that must be trained alone.
    """
    chosen: list[schema.Run] = []
    while len(chosen) < n and (run := next(runs, None)):
        if not chosen:
            chosen.append(run)
            n = 1 if run.name in alone else n
        elif run.name not in alone:
            chosen += [run] if _can_join(run, chosen[0]) else []
    return chosen


def _can_join(run: schema.Run, first: schema.Run) -> bool:
    try:
        check_compatible([first, run])
    except ValueError:
        return False
    return checkpoints.newest_checkpoint(run) == checkpoints.newest_checkpoint(first)


def split_by_step(runs: list[schema.Run]) -> tuple[list[schema.Run], list[schema.Run]]:
    """Return the runs whose newest checkpoint is at the step of the first run's, and the others."""
    steps = [checkpoints.newest_checkpoint(run) for run in runs]
    same = [run for run, step_index in zip(runs, steps, strict=True) if step_index == steps[0]]
    return same, [
        run for run, step_index in zip(runs, steps, strict=True) if step_index != steps[0]
    ]


def train_vmapped(runs: list[schema.Run], report: Report = lambda run, row: None) -> dict[str, str]:
    """Train runs of one shape; those whose checkpoints are at the same step, in one program.

    Return the reason why a run diverged, by its name; "" for the other runs. Raises ValueError and
    Interrupted like loop.train, for all runs.
    """
    check_compatible(runs)
    reasons = {run.name: "" for run in runs}
    while runs:
        same, others = split_by_step(runs)
        if len(same) > 1:
            runs = _train(same, report, reasons) + others
            continue
        (run,), runs = same, others
        try:
            loop.train(run, functools.partial(report, run))
        except loop.Diverged as error:
            reasons[run.name] = str(error)
    return reasons


def _train(runs: list[schema.Run], report: Report, reasons: dict[str, str]) -> list[schema.Run]:
    """Train runs in one program, and return the runs that must continue in a new program.

    These are all runs, if their restored steps differ; a run that rewinds; and the remaining runs
    when at most half are left, because the program computes the ended ones too.
    """
    texts = [session.validate_session(run) for run in runs]
    device_mesh = mesh.make_for(runs[0])
    with contextlib.ExitStack() as stack:
        members = []
        for run, text in zip(runs, texts, strict=True):
            report_row = functools.partial(report, run)
            active_session = session.TrainingSession(run, text, device_mesh, report_row, len(runs))
            members.append(stack.enter_context(active_session))
        program = step.build_train_functions(runs[0], device_mesh)
        sessions = VmappedSessions(members, program)
        loop.run_session(sessions, program, vmap_train_functions(program, runs))
    loop.raise_if_stopped(sessions)
    reasons |= {m.run.name: m.reason for m in members if m.status == "diverged"}
    return sessions.to_restart


def vmap_train_functions(
    program: step.TrainFunctions, runs: list[schema.Run]
) -> step.TrainFunctions:
    """Return the program of K runs. Its init and score remain those of one run.

    Its step takes and returns lists of K batches and of K dicts of metrics.
    """
    inputs = [step.optimizer_inputs(run) for run in runs]

    def step_index(state: dict, batches: list[dict], inputs) -> tuple[dict, list[dict]]:
        batch = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
        state, metrics = jax.vmap(program.plain_step)(state, batch, inputs)
        return state, [jax.tree.map(lambda x, i=i: x[i], metrics) for i in range(len(runs))]

    return dataclasses.replace(
        program,
        abstract=_with_runs(program, len(runs)),
        batch=[program.batch] * len(runs),
        plain_step=step_index,
        inputs=jax.tree.map(lambda *values: np.stack(values), *inputs),
        n_runs=len(runs),
    )


def _with_runs(program: step.TrainFunctions, n_runs: int) -> dict:
    """Return the abstract state with a leading axis over the runs, which no device splits."""

    def add_axis(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(program.mesh, PartitionSpec(None, *leaf.sharding.spec))
        return jax.ShapeDtypeStruct((n_runs, *leaf.shape), leaf.dtype, sharding=sharding)

    return jax.tree.map(add_axis, program.abstract)


class VmappedSessions:
    """The sessions of several runs, with the methods that loop.run_session calls.

    A state has a leading axis over the runs; metrics of a step are a list with a dict per run.
    status: running or done, for all runs. to_restart: runs that must continue in a new program.
    """

    def __init__(self, members: list[session.TrainingSession], program: step.TrainFunctions):
        self.members = members
        self.active = dict(enumerate(members))  # by their index in the state
        self.run, self.mesh = members[0].run, members[0].mesh
        self.name = ", ".join(active_session.run.name for active_session in members)
        self.folders = [active_session.folder for active_session in members]
        self.to_restart: list[schema.Run] = []
        stacked = jax.tree.map(lambda leaf: leaf.sharding, _with_runs(program, len(members)))
        self._stack = jax.jit(
            lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
            out_shardings=stacked,
        )
        self._take = jax.jit(
            lambda state, i: jax.tree.map(lambda leaf: leaf[i], state),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, program.abstract),
        )

    def restore(self, abstract: dict, facts: dict, peak: float) -> None:
        """Restore every run. All must continue in a new program if their steps differ."""
        for active_session in self.members:
            active_session.restore(abstract, facts, peak)
        self.first = self.done = self.members[0].first
        if any(
            active_session.first != self.first for active_session in self.members
        ):  # damaged checkpoints
            self.active, self.to_restart = (
                {},
                [active_session.run for active_session in self.members],
            )

    def initial_state(self, init: Callable[[int], dict]) -> dict:
        """Return the states of all runs as one."""
        return self._stack(*(active_session.initial_state(init) for active_session in self.members))

    def begin(self, score: Callable, state: dict, compile_seconds: float) -> None:
        """Evaluate initial weights that are due, and finish runs that have no step left."""
        for i, active_session in enumerate(self.members):
            one_state = self._take(state, i) if active_session.is_evaluation_due else {}
            active_session.begin(score, one_state, compile_seconds)
        self._drop_ended()

    def load_batch(self, step_index: int) -> list[dict[str, jax.Array]]:
        """Load the batch of every run, ended runs included."""
        return [active_session.load_batch(step_index) for active_session in self.members]

    @property
    def status(self) -> str:
        """Return "running" as long as a run is trained."""
        return "running" if self.active else "done"

    @property
    def stop_signal(self) -> str:
        """Return the name of a signal that one of the guards has caught, or ""."""
        return next((m.stop_signal for m in self.members if m.stop_signal), "")

    @property
    def steps_until_due(self) -> int:
        """Return the number of steps until something is due for a run."""
        return min(active_session.steps_until_due for active_session in self.active.values())

    @property
    def is_due(self) -> bool:
        """Return True if something is due for a run."""
        return any(active_session.is_due for active_session in self.active.values())

    def advance(self, metrics: list[list[dict]]) -> None:
        """Count completed steps of all runs."""
        self.done += len(metrics)
        for i, active_session in enumerate(self.members):
            active_session.watch.beat()
            if i in self.active:
                active_session.advance([step_index[i] for step_index in metrics])

    def record(self, values: list[list[dict]], seconds: float, waited: float) -> None:
        """Record the metrics of all runs, which share the time equally."""
        n = len(self.active)
        for i, active_session in self.active.items():
            active_session.record([step_index[i] for step_index in values], seconds / n, waited / n)
        self._drop_ended()

    def log(self) -> None:
        """Write the rows that are due."""
        for active_session in self.active.values():
            active_session.log()

    def evaluate(self, score: Callable, state: dict) -> None:
        """Make the evaluations that are due."""
        for i, active_session in self.active.items():
            if active_session.is_evaluation_due:
                active_session.evaluate(score, self._take(state, i))

    def save(self, state: dict, stop: str) -> None:
        """Save what is due and finish runs that are over.

        After a signal, or if at most half of the runs remain, the others are saved and the session
        ends. Raises loop.Interrupted after a signal.
        """
        over = {i for i, active_session in self.active.items() if active_session.is_over()}
        is_ending = bool(stop) or 2 * (len(self.active) - len(over)) <= len(self.members)
        for i, active_session in self.active.items():
            if active_session.is_checkpoint_due or (is_ending and i not in over):
                active_session.write_checkpoint(self._take(state, i))
        for i in sorted(over):
            self.active.pop(i).finish()
        if self.active and stop:
            messages = [
                active_session.write_stopped(stop) for active_session in self.active.values()
            ]
            names = ", ".join(active_session.run.name for active_session in self.active.values())
            raise loop.Interrupted(f"{names} {messages[0]}", stop)
        if is_ending:
            self.to_restart += [active_session.run for active_session in self.active.values()]
            self.active = {}

    def _drop_ended(self) -> None:
        """Remove runs that are done, have diverged, or must rewind in a new program."""
        for i, active_session in list(self.active.items()):
            if active_session.status != "running":
                del self.active[i]
            if active_session.status == "rewound":
                self.to_restart.append(active_session.run)
