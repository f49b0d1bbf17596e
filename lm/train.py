"""The loop. Every kind of training is `train(run)`; starting and resuming are the same call."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax

from lm import attempt, checkpoint, config, data, exact, hosts, mesh, programs, records


class Diverged(Exception):
    """The loss or the gradient is not a finite number."""


class Interrupted(KeyboardInterrupt):
    """A signal asked for a stop; the state was saved."""


class _Rewound(Exception):
    """The run goes back to its last checkpoint."""


def train(run: config.Run, report: Callable[[dict], None] = lambda row: None) -> None:
    """Trains a run to its end, from where it stands, into its folder.

    report: called with each row of metrics.jsonl as it is written. Raises ValueError before any
    compute if the run cannot work, Diverged, or Interrupted after SIGINT, SIGTERM or SIGUSR1.
    """
    while True:
        try:
            return _train(run, report)
        except _Rewound:
            continue  # the folder now says which batches are passed over


def _train(run: config.Run, report: Callable[[dict], None]) -> None:
    # --- Refuse what cannot work ---
    text = attempt.check(run)
    device_mesh = mesh.make(run.mesh)
    mesh.check(run, device_mesh)
    exact.check(run, device_mesh)
    one = attempt.Attempt(run, text, device_mesh)

    with contextlib.ExitStack() as stack:
        # --- Claim the run, build, and write down what it is ---
        began = time.perf_counter()
        stack.enter_context(one)
        program = programs.build(run, device_mesh)
        peak = mesh.peak_flops_per_second(device_mesh, run.model.dtype)
        stack.enter_context(hosts.together(one.folder, Diverged, Interrupted, _Rewound, ValueError))
        with jax.set_mesh(device_mesh):
            one.find(program.abstract, {"params.learned": program.n_learned}, peak)

            # --- Start, or go on from the newest checkpoint ---
            step, score, init = programs.compile_all(run, program, fresh=not one.first)
            state = one.begin(init, report)
        records.write_facts(one.folder, compile_seconds=time.perf_counter() - began)
        if one.is_eval:
            one.evaluate(score, state["params"])

        # --- Steps ---
        here = mesh.rows_here(device_mesh, run.data.batch_size)

        def load(number: int) -> dict[str, jax.Array]:
            return mesh.place(device_mesh, one.rows(number, here))

        batches = stack.enter_context(contextlib.closing(data.prefetch(load, one.first, run.steps)))
        vote = hosts.ballot(device_mesh)
        unread, waited, clock = [], 0.0, time.perf_counter()
        while one.done < run.steps:
            tick = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - tick
            state, metrics = step(state, batch)
            unread.append(metrics)
            one.done += 1
            if jax.default_backend() == "cpu":
                # Queued collectives of more devices than cores can wait for each other for ever.
                jax.block_until_ready(metrics)
            one.watch.beat()
            one.prove(metrics["loss"])
            stop = vote(one.watch.stop)  # once: a signal after this line waits for the next step
            if not (stop or one.is_log or one.is_save or one.is_eval):
                continue

            # --- Read the metrics back: is all well? ---
            unread = jax.device_get(unread)
            if words := one.take(unread, time.perf_counter() - clock, waited):
                if one.rewind(words):
                    raise _Rewound
                lr = run.optim.lr
                raise Diverged(f"{run.name} diverged: {words}; try a smaller optim.lr={lr}")
            unread, waited, clock = [], 0.0, time.perf_counter()

            # --- Log, evaluate, save ---
            if one.is_log:
                one.log()
            if one.is_eval:
                one.evaluate(score, state["params"])
            if one.is_best() or one.is_save or stop:
                one.save(state)
            if stop and one.done < run.steps:
                words = f"{run.name} stopped by {stop} at step {one.done} of {run.steps}"
                records.write_facts(one.folder, status="lost", reason=words)
                raise Interrupted(words)
            if one.is_hopeless():
                break
            clock = time.perf_counter()
        one.finish()
    hosts.everyone(None)  # the others leave the run when that is written


def restore(
    run: config.Run, step: int | None = None, parts: tuple[str, ...] = ("step", "params")
) -> tuple[programs.Program, dict]:
    """A run's functions, and parts of its state at a checkpoint, on the devices here.

    step: of the checkpoint; None takes the one that a finished run ended with, else the newest.
    """
    program = programs.build(run, mesh.make(run.mesh))
    wanted = {part: program.abstract[part] for part in parts}
    return program, checkpoint.read(run, _last(run, step), wanted)[0]


@contextlib.contextmanager
def stored(
    run: config.Run, step: int | None = None
) -> Iterator[tuple[Callable[[str], jax.Array], int]]:
    """(path -> weight, step): of a checkpoint, each read when asked for. step: see `restore`."""
    wanted = {"params": programs.build(run, mesh.make(run.mesh)).abstract["params"]}
    with checkpoint.opened(run, _last(run, step)) as (checkpoints, step):
        read = checkpoints.reader(step, wanted)
        yield lambda path: read(f"params/{path}"), step


def _last(run: config.Run, step: int | None) -> int | None:
    return records.read_facts(records.folder(run)).get("ends_at") if step is None else step
