"""Train several runs of one shape in one program: a `vmap` of the step over the runs.

    runs = select_compatible(iter(ready_runs), 4, alone=set())
    reasons = train_vmapped(runs)                   # {name: reason why the run diverged, or ""}

Each run has its own folder, records, checkpoints and end. The runs may differ in their weights and
batches, which follow from a seed, and in the optimizer inputs. Many small runs fill an accelerator
that a single small run does not; see experiments/LOG.md for measurements.

The loop is that of a single run: loop.run_session. `VmappedSessions` has the methods of
session.TrainingSession that the loop calls, and each method acts on all runs. Every array of its
train state has a leading axis over the runs.
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
from lm.training import checkpoints, loop, optimizer, preemption, session, step

Report = Callable[[schema.Run, dict], None]
VMAPPED_FIELDS = fields.fields_with("vmapped", schema.Run)  # may differ between the runs


def check_compatible(runs: list[schema.Run]) -> None:
    """Raise ValueError that names the first field that prevents training in one program."""
    first, defaults = schema.flatten(runs[0]), schema.flatten(schema.Run())
    for run in runs[1:]:
        values = schema.flatten(run)
        for field, value in values.items():
            if field not in VMAPPED_FIELDS and value != first[field]:
                raise ValueError(
                    f"{run.name} has {field}={value!r} and {runs[0].name} {first[field]!r}: runs of"
                    f" one program may differ in {', '.join(VMAPPED_FIELDS)} only"
                )
        for field, info in fields.field_info(schema.Run).items():
            if info.alone and values[field] != defaults[field]:
                raise ValueError(
                    f"{run.name} has {field}={values[field]!r}, and {info.alone}: train it alone,"
                    f" or set {field}={defaults[field]!r}"
                )


def select_compatible(runs: Iterator[schema.Run], n: int, alone: Set[str]) -> list[schema.Run]:
    """Return the first run, and at most n - 1 other runs that can be trained with it.

    Runs are read from the iterator only until n runs are selected. alone: names of runs that must
    be trained alone.
    """
    selected: list[schema.Run] = []
    while len(selected) < n and (run := next(runs, None)):
        if not selected:
            selected.append(run)
            n = 1 if run.name in alone else n
        elif run.name not in alone:
            selected += [run] if _can_join(run, selected[0]) else []
    return selected


def _can_join(run: schema.Run, first: schema.Run) -> bool:
    try:
        check_compatible([first, run])
    except ValueError:
        return False
    return checkpoints.newest_checkpoint(run) == checkpoints.newest_checkpoint(first)


def split_by_step(runs: list[schema.Run]) -> tuple[list[schema.Run], list[schema.Run]]:
    """Split runs by their newest checkpoint: at the step of the first run, and at other steps."""
    first_step = checkpoints.newest_checkpoint(runs[0])
    same, others = [], []
    for run in runs:
        is_same = checkpoints.newest_checkpoint(run) == first_step
        (same if is_same else others).append(run)
    return same, others


def ignore_run_row(run: schema.Run, row: dict) -> None:
    """Ignore a reported row of a run."""


def train_vmapped(
    runs: list[schema.Run],
    report: Report = ignore_run_row,
    report_evaluation: Report = ignore_run_row,
) -> dict[str, str]:
    """Train runs of one shape to their end. Return {name: reason}.

    Runs whose checkpoints are at the same step are trained in one program. reason: why a run
    diverged, "" for the other runs. report: called with a run and a row of its metrics.jsonl.
    report_evaluation: called with a run and a row of its evals.jsonl. Raises ValueError and
    preemption.Interrupted like loop.train, for all runs.
    """
    check_compatible(runs)
    reasons, reports = {run.name: "" for run in runs}, (report, report_evaluation)
    while runs:
        same, others = split_by_step(runs)
        if len(same) > 1:
            runs = _train_in_one_program(same, reports, reasons) + others
            continue
        (run,), runs = same, others
        try:
            loop.train(run, *(functools.partial(report_row, run) for report_row in reports))
        except loop.Diverged as error:
            reasons[run.name] = str(error)
    return reasons


def _train_in_one_program(
    runs: list[schema.Run], reports: tuple[Report, Report], reasons: dict[str, str]
) -> list[schema.Run]:
    """Train runs in one program, and return the runs that must continue in a new program.

    All runs continue in new programs if their restored steps differ. A run continues after a
    rewind. The remaining runs continue when at most half of the runs are active, because the
    program also computes the steps of the inactive runs. reports: see train_vmapped. reasons:
    receives the reason of each run that diverged.
    """
    texts = [loop.validate_session(run) for run in runs]
    device_mesh = mesh.make_run_mesh(runs[0])
    with contextlib.ExitStack() as stack:
        members: list[session.TrainingSession] = []
        for run, text in zip(runs, texts, strict=True):
            report, report_evaluation = (functools.partial(report, run) for report in reports)
            watchdog = members[0].watchdog if members else None  # progress of a run is that of all
            member = session.TrainingSession(
                run, text, device_mesh, report, report_evaluation, len(runs), watchdog
            )
            members.append(stack.enter_context(member))
        functions = step.build_train_functions(runs[0], device_mesh)
        sessions = VmappedSessions(members, functions)
        loop.run_session(sessions, vmap_train_functions(functions, runs))
    loop.raise_if_stopped(sessions)
    reasons |= {m.run.name: m.reason for m in members if m.status == "diverged"}
    return sessions.to_restart


def vmap_train_functions(
    functions: step.TrainFunctions, runs: list[schema.Run]
) -> step.TrainFunctions:
    """Return functions whose step trains several runs. init and score remain those of one run.

    functions: the functions of any of the runs. The step accepts a list with a batch per run and
    returns a list with the metrics of each run.
    """
    stacked = jax.tree.map(
        lambda *values: np.stack(values), *(step.optimizer_inputs(run) for run in runs)
    )
    input_axes = optimizer.StepInputs(lr=0, weight_decay=0, layer_numbers=None)

    def vmapped_step(state: dict, batches: list[dict], inputs) -> tuple[dict, list[dict]]:
        batch = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
        train_step = jax.vmap(functions.plain_step, in_axes=(0, 0, input_axes))
        state, metrics = train_step(state, batch, inputs)
        return state, [jax.tree.map(lambda x, i=i: x[i], metrics) for i in range(len(runs))]

    return dataclasses.replace(
        functions,
        abstract=_add_run_axis(functions, len(runs)),
        batch=[functions.batch] * len(runs),
        plain_step=vmapped_step,
        inputs=dataclasses.replace(stacked, layer_numbers=functions.inputs.layer_numbers),
        n_runs=len(runs),
    )


def _add_run_axis(functions: step.TrainFunctions, n_runs: int) -> dict:
    """Return the abstract state with a leading axis over the runs, which is not sharded."""

    def add_axis(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(functions.mesh, PartitionSpec(None, *leaf.sharding.spec))
        return jax.ShapeDtypeStruct((n_runs, *leaf.shape), leaf.dtype, sharding=sharding)

    return jax.tree.map(add_axis, functions.abstract)


class VmappedSessions:
    """The sessions of several runs, with the methods that loop.run_session calls.

    Every array of a state has a leading axis over the runs. The metrics of a step are a list with
    a dict per run.

    members     sessions of all runs
    active      sessions of the runs that are still trained, by the index of the run in the state
    first       number of steps of each run before this session
    done        number of completed steps of each active run
    to_restart  runs that must continue in a new program
    """

    def __init__(self, members: list[session.TrainingSession], functions: step.TrainFunctions):
        self.members = members
        self.active = dict(enumerate(members))
        self.run, self.mesh = members[0].run, members[0].mesh
        self.name = ", ".join(member.run.name for member in members)
        self.folders = [member.folder for member in members]
        self.to_restart: list[schema.Run] = []
        abstract = _add_run_axis(functions, len(members))
        self._stack_states = jax.jit(
            lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        )
        self._select_run = jax.jit(
            lambda state, i: jax.tree.map(lambda leaf: leaf[i], state),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, functions.abstract),
        )

    def long_call(self) -> contextlib.AbstractContextManager:
        """Return a context for work other than steps, see StallWatchdog.long_call."""
        return self.members[0].long_call()

    def restore(self, abstract: dict, facts: dict, peak: float) -> None:
        """Restore every run. All runs must continue in new programs if their steps differ."""
        for member in self.members:
            member.restore(abstract, facts, peak)
        self.first = self.done = self.members[0].first
        # The steps differ if the newest checkpoint of a run is damaged.
        if any(member.first != self.first for member in self.members):
            self.to_restart = [member.run for member in self.members]
            self.active = {}

    def initial_state(self, init: Callable[[int], dict]) -> dict:
        """Return the initial states of all runs as one state."""
        return self._stack_states(*(member.initial_state(init) for member in self.members))

    def begin(self, compile_score: Callable, state: dict, compile_seconds: float) -> None:
        """Evaluate runs at the initial weights if due, and finish runs that have no step left.

        compile_score: see compilation.compile_all. state: state of all runs, stacked.
        compile_seconds: time of the compilation.
        """
        for i, member in enumerate(self.members):
            needs_state = member.is_evaluation_due or member.is_over
            run_state = self._select_run(state, i) if needs_state else {}
            member.begin(compile_score, run_state, compile_seconds)
        self._drop_inactive()

    def load_batch(self, step_number: int) -> list[dict[str, jax.Array]]:
        """Load the batch of every run for a step. Inactive runs are included."""
        return [member.load_batch(step_number) for member in self.members]

    @property
    def status(self) -> str:
        """Return "running" while a run is active, then "done"."""
        return "running" if self.active else "done"

    @property
    def stop_signal(self) -> str:
        """Return the name of a signal that a session has received, or ""."""
        return next((m.stop_signal for m in self.members if m.stop_signal), "")

    @property
    def steps_until_due(self) -> int:
        """Return the number of steps until a log row, evaluation or checkpoint of a run is due."""
        return min(member.steps_until_due for member in self.active.values())

    @property
    def is_state_due(self) -> bool:
        """Return True if an evaluation, a checkpoint or the end of a run needs the state."""
        return any(member.is_state_due for member in self.active.values())

    @property
    def is_due(self) -> bool:
        """Return True if a log row, an evaluation or a checkpoint of a run is due."""
        return any(member.is_due for member in self.active.values())

    def advance(self, metrics: list[list[dict]]) -> None:
        """Count completed steps of the active runs."""
        self.done += len(metrics)
        for i, member in enumerate(self.members):
            member.record_progress()
            if i in self.active:
                member.advance([by_run[i] for by_run in metrics])

    def record(self, values: list[list[dict]], seconds: float, waited: float) -> None:
        """Record the metrics of the active runs, which share the time equally."""
        n = len(self.active)
        for i, member in self.active.items():
            member.record([by_run[i] for by_run in values], seconds / n, waited / n)
        self._drop_inactive()

    def log(self) -> None:
        """Write the rows of metrics that are due."""
        for member in self.active.values():
            member.log()

    def save(self, state: dict, stop: str) -> None:
        """Save the checkpoints that are due; after a signal, those of all active runs."""
        for i, member in self.active.items():
            if member.is_checkpoint_due or stop:
                member.write_checkpoint(self._select_run(state, i))

    def evaluate(self, compile_score: Callable, state: dict) -> None:
        """Write the rows of evaluations that are due."""
        for i, member in self.active.items():
            if member.is_evaluation_due:
                member.evaluate(compile_score, self._select_run(state, i))

    def conclude(self, state: dict, stop: str) -> None:
        """Save the best checkpoints, and finish runs that are over.

        After a signal, or if at most half of the runs are active, the active runs are saved and the
        session ends. stop: name of the signal, or "". Raises preemption.Interrupted after a signal.
        """
        over = {i for i, member in self.active.items() if member.is_over}
        is_ending = bool(stop) or 2 * (len(self.active) - len(over)) <= len(self.members)
        for i, member in self.active.items():
            if member.is_new_best or (is_ending and i not in over):
                member.write_checkpoint(self._select_run(state, i))
        for i in sorted(over):
            self.active.pop(i).finish()
        if self.active and stop:
            messages = [member.write_stopped(stop) for member in self.active.values()]
            names = ", ".join(member.run.name for member in self.active.values())
            raise preemption.Interrupted(f"{names} {messages[0]}", stop)
        if is_ending:
            self.to_restart += [member.run for member in self.active.values()]
            self.active = {}

    def _drop_inactive(self) -> None:
        """Remove runs that are done, have diverged, or must rewind in a new program."""
        for i, member in list(self.active.items()):
            if member.status != "running":
                del self.active[i]
            if member.status == "rewound":
                self.to_restart.append(member.run)
