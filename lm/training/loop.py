"""The training loop. Every kind of training is `train(run)`; starting and resuming are one call.

A learning rate takes this path from config to update:

    train -> step.build_train_functions -> optimizer.make_optimizer -> optim.schedule
"""

import contextlib
import time
import typing
from collections.abc import Callable, Iterator

import jax

from lm.config import schema
from lm.data import dataset
from lm.parallel import distributed, mesh
from lm.runs import lock
from lm.training import session, step

Interrupted = lock.Interrupted


class Diverged(Exception):
    """The loss or the gradient is not finite."""


def train(run: schema.Run, report: Callable[[dict], None] = lambda row: None) -> None:
    """Train a run to its end, from its newest checkpoint if there is one.

    report: called with each row of metrics.jsonl. Raises ValueError before any computation if the
    run cannot work, Diverged, or Interrupted after SIGINT, SIGTERM or SIGUSR1.
    """
    text = session.validate_session(run)
    device_mesh = mesh.make_for(run)
    status = "rewound"
    while status == "rewound":
        with session.TrainingSession(run, text, device_mesh, report) as active_session:
            program = step.build_train_functions(run, device_mesh)
            run_session(active_session, program, program)
        raise_if_stopped(active_session)
        status = active_session.status
    if status == "diverged":
        raise Diverged(active_session.reason)


def run_session(
    active_session: typing.Any, program: step.TrainFunctions, step_program: step.TrainFunctions
) -> None:
    """Train from the newest checkpoint until the session ends.

    session: session.TrainingSession, or vmapped_runs.VmappedSessions for several runs in one
    program. step_program: the program of the step, which differs from `program` for several runs.
    """
    began = time.perf_counter()
    device_mesh = program.mesh
    size = step.steps_per_call(active_session.run, device_mesh, step_program.n_runs)
    facts = {"params.learned": program.n_learned, "devices.pack": step_program.n_runs}
    facts["devices.steps_per_call"] = size
    peak = mesh.peak_flops_per_second(device_mesh, active_session.run.model.dtype)
    with distributed.fail_together(active_session.folders, Interrupted, ValueError):
        with jax.set_mesh(device_mesh):
            active_session.restore(program.abstract, facts, peak)
            if active_session.status != "running":
                return
            steps = step.lower_steps(step_program, size)
            steps, score, init = step.compile_all(program, steps, fresh=not active_session.first)
            step_index = step.call_steps(step_program, steps, size)
            state = active_session.initial_state(init)
        active_session.begin(score, state, time.perf_counter() - began)
        batches = dataset.prefetch_batches(
            active_session.load_batch,
            active_session.first,
            active_session.run.steps,
            depth=2 * size,
        )
        with contextlib.closing(batches):
            _run_steps(active_session, step_index, score, state, batches, size)


def _run_steps(
    active_session: typing.Any,
    step_index: Callable,
    score: Callable,
    state: dict,
    batches: Iterator[dict],
    size: int,
) -> None:
    """Compute steps until the session ends. size: most steps of one call."""
    signal_of_all = distributed.signal_consensus(active_session.mesh)
    metrics, waited, began = [], 0.0, time.perf_counter()
    while active_session.status == "running":
        # --- Compute until something is due. The first step alone: its loss is verified. ---
        n = (
            1
            if active_session.done == active_session.first
            else min(size, active_session.steps_until_due)
        )
        wait_began = time.perf_counter()
        next_batches = [next(batches) for _ in range(n)]
        waited += time.perf_counter() - wait_began
        state, new_metrics = step_index(state, next_batches)
        metrics += new_metrics
        if jax.default_backend() == "cpu":
            # Queued collectives of more devices than cores can wait for each other forever.
            jax.block_until_ready(new_metrics)
        active_session.advance(new_metrics)
        # Read once: a signal after this line is handled after the next call.
        stop = signal_of_all(active_session.stop_signal)
        if not (stop or active_session.is_due):
            continue

        # --- Read the metrics back ---
        values = jax.device_get(metrics)
        active_session.record(values, time.perf_counter() - began, waited)
        metrics, waited = [], 0.0

        # --- Log, evaluate, save ---
        active_session.log()
        active_session.evaluate(score, state)
        active_session.save(state, stop)
        began = time.perf_counter()


def raise_if_stopped(active_session: typing.Any) -> None:
    """Raise Interrupted if a signal came while the session ended.

    All processes call this after everything is written.
    """
    if stop := distributed.first_error(active_session.stop_signal):
        raise Interrupted(f"stopped by {stop} at the end of {active_session.name}", stop)
