"""The training loop. Every kind of training is `train(run)`; starting and resuming are one call.

A learning rate takes this path from config to update:

    train -> programs.build -> optim.make -> optim.schedule
"""

import contextlib
import time
import typing
from collections.abc import Callable, Iterator

import jax

from lm import attempt, checkpoint, config, data, guard, hosts, mesh, programs, records

Interrupted = guard.Interrupted


class Diverged(Exception):
    """The loss or the gradient is not finite."""


def train(run: config.Run, report: Callable[[dict], None] = lambda row: None) -> None:
    """Train a run to its end, from its newest checkpoint if there is one.

    report: called with each row of metrics.jsonl. Raises ValueError before any computation if the
    run cannot work, Diverged, or Interrupted after SIGINT, SIGTERM or SIGUSR1.
    """
    text = attempt.check(run)
    device_mesh = mesh.make_for(run)
    status = "rewound"
    while status == "rewound":
        with attempt.Attempt(run, text, device_mesh, report) as session:
            program = programs.build(run, device_mesh)
            run_session(session, program, program)
        raise_if_stopped(session)
        status = session.status
    if status == "diverged":
        raise Diverged(session.reason)


def run_session(
    session: typing.Any, program: programs.Program, step_program: programs.Program
) -> None:
    """Train from the newest checkpoint until the session ends.

    session: attempt.Attempt, or packs.Sessions for several runs in one program. step_program: the
    program of the step, which differs from `program` for several runs.
    """
    began = time.perf_counter()
    device_mesh = program.mesh
    size = programs.steps_per_call(session.run, device_mesh, step_program.n_runs)
    facts = {"params.learned": program.n_learned, "devices.pack": step_program.n_runs}
    facts["devices.steps_per_call"] = size
    peak = mesh.peak_flops_per_second(device_mesh, session.run.model.dtype)
    with hosts.together(session.folders, Interrupted, ValueError):
        with jax.set_mesh(device_mesh):
            session.restore(program.abstract, facts, peak)
            if session.status != "running":
                return
            steps = programs.lower_steps(step_program, size)
            steps, score, init = programs.compile_all(program, steps, fresh=not session.first)
            step = programs.call_steps(step_program, steps, size)
            state = session.initial_state(init)
        session.begin(score, state, time.perf_counter() - began)
        batches = data.prefetch(
            session.load_batch, session.first, session.run.steps, depth=2 * size
        )
        with contextlib.closing(batches):
            _run_steps(session, step, score, state, batches, size)


def _run_steps(
    session: typing.Any,
    step: Callable,
    score: Callable,
    state: dict,
    batches: Iterator[dict],
    size: int,
) -> None:
    """Compute steps until the session ends. size: most steps of one call."""
    signal_of_all = hosts.ballot(session.mesh)
    metrics, waited, began = [], 0.0, time.perf_counter()
    while session.status == "running":
        # --- Compute until something is due. The first step alone: its loss is verified. ---
        n = 1 if session.done == session.first else min(size, session.steps_until_due)
        wait_began = time.perf_counter()
        next_batches = [next(batches) for _ in range(n)]
        waited += time.perf_counter() - wait_began
        state, new_metrics = step(state, next_batches)
        metrics += new_metrics
        if jax.default_backend() == "cpu":
            # Queued collectives of more devices than cores can wait for each other forever.
            jax.block_until_ready(new_metrics)
        session.advance(new_metrics)
        # Read once: a signal after this line is handled after the next call.
        stop = signal_of_all(session.stop_signal)
        if not (stop or session.is_due):
            continue

        # --- Read the metrics back ---
        values = jax.device_get(metrics)
        session.record(values, time.perf_counter() - began, waited)
        metrics, waited = [], 0.0

        # --- Log, evaluate, save ---
        session.log()
        session.evaluate(score, state)
        session.save(state, stop)
        began = time.perf_counter()


def raise_if_stopped(session: typing.Any) -> None:
    """Raise Interrupted if a signal came while the session ended.

    All processes call this after everything is written.
    """
    if stop := hosts.worst(session.stop_signal):
        raise Interrupted(f"stopped by {stop} at the end of {session.name}", stop)


def restore(
    run: config.Run, step: int | None = None, parts: tuple[str, ...] = ("step", "params")
) -> tuple[programs.Program, dict]:
    """Return the functions of a run and parts of its state at a checkpoint.

    step: None is the step that a finished run ended with, or else the newest.
    """
    program = programs.build(run, mesh.make(run.mesh))
    wanted = {part: program.abstract[part] for part in parts}
    return program, checkpoint.read(run, _final_step(run, step), wanted).state


@contextlib.contextmanager
def stored(
    run: config.Run, step: int | None = None
) -> Iterator[tuple[Callable[[str], jax.Array], int]]:
    """Yield read(path) -> weight, which reads one weight of a checkpoint, and the step.

    step: see `restore`.
    """
    wanted = {"params": programs.build(run, mesh.make(run.mesh)).abstract["params"]}
    with checkpoint.opened(run, _final_step(run, step)) as (checkpoints, step):
        read = checkpoints.reader(step, wanted)
        yield lambda path: read(f"params/{path}"), step


def _final_step(run: config.Run, step: int | None) -> int | None:
    return records.read_facts(records.folder(run)).get("ends_at") if step is None else step
