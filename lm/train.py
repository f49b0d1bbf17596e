"""The loop. Every kind of training is `train(run)`; starting and resuming are the same call.

train(run)                         one run to its end
reasons = together(runs)           runs of one shape in one program: see lm/packs.py
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import jax

from lm import attempt, checkpoint, config, data, exact, hosts, mesh, packs, programs, records

Report = Callable[[config.Run, dict], None]


class Diverged(Exception):
    """The loss or the gradient is not a finite number."""


class Interrupted(KeyboardInterrupt):
    """A signal asked for a stop; the state was saved, or the run is done."""


def train(
    run: config.Run, report: Callable[[dict], None] = lambda row: None, until: int = 0
) -> None:
    """Trains a run to its end, from where it stands, into its folder.

    report: called with each row of metrics.jsonl as it is written; until: see `together`. Raises
    ValueError before any compute if the run cannot work, Diverged, or Interrupted after SIGINT,
    SIGTERM or SIGUSR1.
    """
    if reason := together([run], lambda run, row: report(row), until)[run.name]:
        raise Diverged(reason)


def together(
    runs: list[config.Run], report: Report = lambda run, row: None, until: int = 0
) -> dict[str, str]:
    """Trains runs of one shape, those that stand at the same step in one program.

    Each has a folder, records, checkpoints and an end of its own. until: step at which they are
    left waiting, evaluated and saved; 0: their last. Returns why a run diverged, by its name; ""
    for all others. ValueError and Interrupted as of `train`, for all of them.
    """
    packs.check(runs)
    until = until or runs[0].steps
    reasons = {run.name: "" for run in runs}
    while runs:
        now, later = packs.level(runs)
        runs = _train(now, report, until, reasons) + later
    return reasons


def _train(
    runs: list[config.Run], report: Report, until: int, reasons: dict[str, str]
) -> list[config.Run]:
    """Trains a pack; those of it that are to go on from their checkpoints in another.

    These are all if they are not at the same step, one that goes back, and the rest of a pack
    that lost half of its runs: it would compute what nobody reads.
    """
    # --- Refuse what cannot work ---
    texts = [attempt.check(run) for run in runs]
    device_mesh = mesh.make(runs[0].mesh)
    mesh.check(runs[0], device_mesh)
    exact.check(runs[0], device_mesh)
    ones = [
        attempt.Attempt(run, text, device_mesh, until, len(runs))
        for run, text in zip(runs, texts, strict=True)
    ]

    with contextlib.ExitStack() as stack:
        # --- Claim the runs, build, and write down what they are ---
        began = time.perf_counter()
        for one in ones:
            stack.enter_context(one)
        pack = packs.Pack(runs, device_mesh)
        peak = mesh.peak_flops_per_second(device_mesh, runs[0].model.dtype)
        folders = [one.folder for one in ones]
        stack.enter_context(hosts.together(folders, Interrupted, ValueError))
        with jax.set_mesh(device_mesh):
            facts = {"params.learned": pack.program.n_learned, "devices.pack": len(runs)}
            facts["devices.steps_per_call"] = pack.size
            for one in ones:
                one.find(pack.program.abstract, facts, peak)
            first = ones[0].first
            if any(one.first != first for one in ones):
                return runs  # a checkpoint was damaged

            # --- Start, or go on from the newest checkpoint ---
            step, score, init = pack.compile(fresh=not first)
            state = pack.joined([one.begin(init, report) for one in ones])
        for one in ones:
            records.write_facts(one.folder, compile_seconds=time.perf_counter() - began)
        for place, one in enumerate(ones):
            if one.is_eval:
                one.evaluate(score, pack.member(state, place)["params"])

        # --- Steps ---
        here = mesh.rows_here(device_mesh, runs[0].data.batch_size)

        def load(number: int) -> list[dict[str, jax.Array]]:
            return [mesh.place(device_mesh, one.rows(number, here)) for one in ones]

        ahead = data.prefetch(load, first, until, depth=2 * pack.size)
        batches = stack.enter_context(contextlib.closing(ahead))
        vote = hosts.ballot(device_mesh)
        done, again = first, []
        living = dict(enumerate(ones))  # by their places in the state
        if done >= until:  # they were killed before they could say so
            for place in list(living):
                living.pop(place).finish()
        unread, waited, clock = [], 0.0, time.perf_counter()
        while living:
            # The first alone: after a resume it must give the loss that it gave before.
            n = 1 if done == first else min(pack.size, *(one.until_due for one in living.values()))
            tick = time.perf_counter()
            given = [next(batches) for _ in range(n)]
            waited += time.perf_counter() - tick
            state, metrics = step(state, given)
            unread += metrics
            if jax.default_backend() == "cpu":
                # Queued collectives of more devices than cores can wait for each other for ever.
                jax.block_until_ready(metrics)
            for one in ones:
                one.watch.beat()
            done += n
            for place, one in living.items():
                one.done = done
                one.prove(metrics[0][place]["loss"])
            stop = vote(_signal(ones))  # once: a signal after this line waits for the next call
            if not (stop or any(one.is_due for one in living.values())):
                continue

            # --- Read the metrics back: is all well? ---
            unread = jax.device_get(unread)
            seconds, alive = time.perf_counter() - clock, len(living)
            for place, one in list(living.items()):
                mine = [metrics[place] for metrics in unread]
                if words := one.take(mine, seconds / alive, waited / alive):
                    del living[place]
                    if one.rewind(words):
                        again.append(one.run)
                        continue
                    lr = one.run.optim.lr
                    words = f"{one.run.name} diverged: {words}; try a smaller optim.lr={lr}"
                    reasons[one.run.name] = words
            unread, waited, clock = [], 0.0, time.perf_counter()

            # --- Log, evaluate, save ---
            for one in living.values():
                if one.is_log:
                    one.log()
            for place, one in living.items():
                if one.is_eval:
                    one.evaluate(score, pack.member(state, place)["params"])
            ended = [place for place, one in living.items() if one.is_over()]
            is_parting = stop or 2 * (len(living) - len(ended)) <= len(ones)
            for place, one in living.items():
                if one.is_best() or one.is_save or (is_parting and place not in ended):
                    one.save(pack.member(state, place))
            for place in ended:
                living.pop(place).finish()
            if living and stop:
                words = f"stopped by {stop} at step {done} of {runs[0].steps}"
                for one in living.values():
                    records.write_facts(one.folder, status="lost", reason=f"{one.run.name} {words}")
                raise Interrupted(f"{_names(living.values())} {words}")
            if is_parting:
                again += [one.run for one in living.values()]
                break
            clock = time.perf_counter()
    if stop := hosts.worst(_signal(ones)):  # the others leave when all is written
        raise Interrupted(f"stopped by {stop} at the end of {_names(ones)}")
    return again


def _signal(ones: list[attempt.Attempt]) -> str:
    """The name of a signal that asked for a stop, or "": one of several guards has caught it."""
    return next((one.watch.stop for one in ones if one.watch.stop), "")


def _names(ones: Iterable[attempt.Attempt]) -> str:
    return ", ".join(one.run.name for one in ones)


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
