"""The loop. Every kind of training is `train(run)`; starting and resuming are the same call."""

import collections
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable

import jax
import numpy as np

from lm import (
    checkpoint,
    config,
    data,
    evaluate,
    exact,
    exam,
    guard,
    hosts,
    lineage,
    mesh,
    mirrors,
    programs,
    records,
    sizes,
    tasks,
)

MAX_REWINDS = 3  # of one run; then it has diverged


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
    config.check(run)
    mirrors.check(run)
    hosts.first(lambda: records.compare(run))
    if run.start.run:
        lineage.check(run, lineage.parent(run))
    hosts.first(lambda: data.load(run.data, run.seed) and None)  # prepared once
    text = data.load(run.data, run.seed)
    hosts.check_same("config", _knobs_hash(run))
    hosts.check_same("prepared text", text.hash)
    text.check(run.steps)
    if text.tokenizer.vocab_size > run.model.vocab_size:
        raise ValueError(
            f"model.vocab_size={run.model.vocab_size} must be at least the tokenizer's"
            f" {text.tokenizer.vocab_size}"
        )
    asked = tasks.load_all(run.eval.tasks)
    device_mesh = mesh.make(run.mesh)
    mesh.check(run, device_mesh)
    exact.check(run, device_mesh)
    folder = records.folder(run)

    with contextlib.ExitStack() as stack:
        # --- Build, and write down what the run is ---
        began = time.perf_counter()
        watch = guard.Guard(folder, run.stall_seconds, jax.process_index())
        hosts.first(lambda: stack.enter_context(watch) and None)
        if not hosts.is_first():
            stack.enter_context(watch)
        program = programs.build(run, device_mesh)
        peak = mesh.peak_flops_per_second(device_mesh, run.model.dtype)
        facts = _facts(run, device_mesh, text, peak) | {"params.learned": program.n_learned}
        checkpoints = stack.enter_context(checkpoint.Checkpoints(run))
        stack.enter_context(hosts.together(folder, Diverged, Interrupted, _Rewound, ValueError))
        with jax.set_mesh(device_mesh):
            first, saved, proof, damage = checkpoints.restore_newest(program.abstract)
            if not first and run.resume == "must":
                raise ValueError(
                    f"resume='must', but {folder} has no checkpoint that proves itself"
                )
            resumed = first > 0
            if run.start.run and not resumed:
                facts |= lineage.facts(run)
                first, saved, proof = lineage.restore(run, program.abstract, text.tokenizer)
            attempt = hosts.first(lambda: records.start(run, facts))
            if hosts.is_first():
                text.tokenizer.save(folder)
            tell = functools.partial(records.event, folder, attempt)
            for reason in damage:
                tell(first, "damaged", reason)

            # --- Start, or go on from the newest checkpoint ---
            step, score, init = programs.compile_all(run, program, fresh=not first)
            state: dict = saved
            if not first:
                fresh = init(run.seed)
                state = fresh | saved | {"params": fresh["params"] | saved.get("params", {})}
        passed = hosts.first(lambda: records.read_facts(folder).get("passed_over", []))

        def rows(number: int, selected: slice | np.ndarray = slice(None)) -> dict[str, np.ndarray]:
            """The batch of a step; those that a rewind passed over are never seen again."""
            number += sum(p["batches"] for p in passed if p["from_step"] <= number)
            return text.batch(number, selected)

        is_passed = any(p["from_step"] == first for p in passed)
        changed = "batch" in proof and not is_passed and proof["batch"] != _hash(rows(first))
        if hosts.worst("changed" if changed else ""):
            raise ValueError(
                f"{folder}: the batch after step {first} is not the one it was: the"
                " prepared text has changed"
            )
        expected = None if is_passed else proof.get("next")
        seconds, window = proof.get("seconds", 0.0), proof.get("window", [])
        compile_seconds = time.perf_counter() - began
        from_step = first if resumed else 0
        records.write_facts(folder, resumed_from=from_step, compile_seconds=compile_seconds)
        write, close = mirrors.follow(run, first)
        stack.callback(close)

        evaluated = {row["step"]: row for row in hosts.first(lambda: records.evals(folder))}

        def evaluate_now(done: int) -> None:
            with jax.set_mesh(device_mesh):
                params = state["params"]
                row = evaluate.evaluate(run, device_mesh, score, params, text)
                if _is_due(done, run.eval.tasks_every, run.steps):
                    row |= exam.sit(run, device_mesh, score, params, text.tokenizer, asked)
            evaluated[done] = {"attempt": attempt, "step": done} | row
            records.append(folder / "evals.jsonl", evaluated[done])

        if first not in evaluated and (
            _is_due(first, run.eval.every, run.steps) if resumed else run.start.run
        ):
            evaluate_now(first)  # what the start brings, or what the last attempt did not come to

        # --- Steps ---
        here = mesh.rows_here(device_mesh, run.data.batch_size)

        def load(number: int) -> dict[str, jax.Array]:
            return mesh.place(device_mesh, rows(number, here))

        batches = stack.enter_context(contextlib.closing(data.prefetch(load, first, run.steps)))
        vote = hosts.ballot(device_mesh)
        recent = collections.deque(maxlen=20)
        waited, spent, timed, clock, unproved = 0.0, 0.0, 0, time.perf_counter(), 0
        done, ends_at = first, _best(evaluated, first)[0] if run.eval.patience else first
        for done in range(first + 1, run.steps + 1):
            tick = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - tick
            timed += 1  # not len(window): a resumed one has steps of the attempt before
            state, metrics = step(state, batch)
            window.append(metrics)
            if jax.default_backend() == "cpu":
                # Queued collectives of more devices than cores can wait for each other for ever.
                jax.block_until_ready(metrics)
            watch.beat()
            if done == first + 1 and expected:
                _prove_next(run, done, expected, float(metrics["loss"]), facts)
            is_log = _is_due(done, run.log_every, run.steps)
            stop = vote(watch.stop)  # once: a signal after this line waits for the next step
            is_save = stop or _is_due(done, run.checkpoint_every, run.steps)
            is_eval = _is_due(done, run.eval.every, run.steps)
            if not (is_log or is_save or is_eval):
                continue

            # --- Read the metrics back: is all well? ---
            window = jax.device_get(window)
            now = time.perf_counter()
            seconds, spent, clock = seconds + now - clock, spent + now - clock, now
            bad = [m for m in window if not np.isfinite([m["loss"], m["grad_norm"]]).all()]
            if bad and not (run.optim.nonfinite == "skip" and len(bad) < len(window)):
                words = f"loss {bad[0]['loss']}, gradient norm {bad[0]['grad_norm']} by step {done}"
                to = max(checkpoints.steps(), default=first)
                _end_or_rewind(run, folder, to, passed, done, words, tell)
            if unproved:
                place = unproved - (done - len(window))  # of the step after the checkpoint
                checkpoints.record_next_loss(
                    unproved, float(window[place]["loss"]), _where(run, facts)
                )
                unproved = 0

            # --- Log ---
            if is_log:
                row = {"attempt": attempt, "step": done, "seconds": seconds}
                row |= _window_metrics(run, text, window, done)
                row |= _speed(run, timed, spent, peak) | {"input_wait": waited / spent}
                records.append(folder / "metrics.jsonl", row)
                write(row)
                report(row)
                if bad:
                    tell(done, "skipped", f"{len(bad)} updates whose loss or gradient is no number")
                for name in _spikes(recent, row):
                    tell(done, "spike", f"{name} {row[name]:.4g}, far above the steps before")
                window, waited, spent, timed = [], 0.0, 0.0, 0

            # --- Evaluate, save ---
            if is_eval and done not in evaluated:
                evaluate_now(done)
            ends_at, n_worse = _best(evaluated, done) if run.eval.patience else (done, 0)
            if is_save or (run.eval.patience and ends_at == done):
                loss = evaluated.get(done, {}).get("loss")
                checkpoints.save(done, state, _hash(rows(done)), _plain(window), seconds, loss)
                unproved = done
            if stop and done < run.steps:
                words = f"{run.name} stopped by {stop} at step {done} of {run.steps}"
                records.write_facts(folder, status="lost", reason=words)
                raise Interrupted(words)
            if 0 < run.eval.patience <= n_worse:
                tell(done, "stopped early", f"no evaluation since step {ends_at} had a lower loss")
                break
            clock = time.perf_counter()
        tokens = done * run.data.batch_size * run.data.seq_len
        cost = {"tokens": tokens, "flops": tokens * facts["flops_per_token.full"]}
    records.write_facts(folder, status="done", seconds=seconds, ends_at=ends_at, **cost)
    records.settle(folder)
    hosts.everyone(None)  # the others leave the run when that is written


def _best(evaluated: dict[int, dict], done: int) -> tuple[int, int]:
    """The step up to `done` of the lowest held-out loss, and how many evaluations came after it."""
    steps = sorted(step for step in evaluated if 0 < step <= done)
    best = min(steps, key=lambda step: evaluated[step]["loss"], default=done)
    return best, sum(step > best for step in steps)


def _end_or_rewind(run, folder, to: int, passed: list, done: int, words: str, tell) -> None:
    """Ends a run whose numbers are none, or passes over the batches since the checkpoint `to`."""
    tell(done, "nonfinite", words)
    if run.optim.nonfinite == "rewind" and len(passed) < MAX_REWINDS:
        passed = [*passed, {"from_step": to, "batches": done - to}]
        records.write_facts(folder, passed_over=passed)
        tell(done, "rewound", f"to step {to}; {done - to} batches are passed over")
        raise _Rewound
    records.write_facts(folder, status="diverged", reason=words)
    raise Diverged(f"{run.name} diverged: {words}; try a smaller optim.lr={run.optim.lr}")


def _prove_next(run: config.Run, done: int, expected: dict, loss: float, facts: dict) -> None:
    """ValueError if the first step after a resume does not give the loss it gave before.

    The same bits on the same devices and versions, a part in a hundred elsewhere; with mesh.exact
    the same bits on any number of devices.
    """
    same_place = expected["where"] == _where(run, facts)
    if not np.isclose(loss, expected["next_loss"], rtol=0.0 if same_place else 1e-2, atol=0.0):
        raise ValueError(
            f"{records.folder(run)}: step {done} gave loss {loss!r} after a resume and"
            f" {expected['next_loss']!r}"
            " before it: code or text have changed; pick a new name"
        )


def _where(run: config.Run, facts: dict) -> str:
    """What two steps must have in common to give the same bits."""
    start = "devices.kind" if run.mesh.exact else "devices"
    keys = sorted(k for k in facts if k.startswith((start, "versions.")) and "peak" not in k)
    return json.dumps([facts[k] for k in keys])


def _knobs_hash(run: config.Run) -> str:
    knobs = {k: v for k, v in config.flatten(run).items() if k not in records.FREE}
    return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:16]


def _hash(batch: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(batch[k].tobytes() for k in sorted(batch))).hexdigest()[:16]


def _plain(window: list[dict]) -> list[dict]:
    return [{name: float(value) for name, value in m.items()} for m in window]


def _spikes(recent: collections.deque, row: dict) -> list[str]:
    """Names of what is over 6 deviations above its last 20 rows; then adds the row to them."""
    found = []
    for name in ("loss", "grad_norm"):
        past = np.array([old[name] for old in recent])
        if len(past) >= 10 and row[name] > past.mean() + 6 * past.std():
            found.append(name)
    recent.append(row)
    return found


def restore(run: config.Run, step: int | None = None) -> tuple[programs.Program, dict]:
    """A run's functions and its state at a checkpoint, on the devices here.

    step: of the checkpoint; None takes the one that a finished run ended with, else the newest.
    """
    program = programs.build(run, mesh.make(run.mesh))
    step = records.read_facts(records.folder(run)).get("ends_at") if step is None else step
    return program, checkpoint.read(run, step, program.abstract)[0]


def _is_due(step: int, every: int, last: int) -> bool:
    """Every so many steps (0: never), and at the last."""
    return step == last or (every > 0 and step % every == 0)


def _window_metrics(run: config.Run, text: data.Text, values: list[dict], done: int) -> dict:
    """Of a row of metrics.jsonl: loss and gradient norm are means over the steps since the last."""
    tokens = done * run.data.batch_size * run.data.seq_len
    loss, grad_norm = (_mean([m[name] for m in values]) for name in ("loss", "grad_norm"))
    return {
        "tokens": tokens,
        "flops": tokens * sizes.flops_per_token(run.model, run.data.seq_len)["full"],
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / text.bytes_per_token,
        "grad_norm": grad_norm,
        "lr": float(values[-1]["lr"]),
        "epoch": max(text.epochs(done).values()),
    } | {name: _mean([m[name] for m in values]) for name in values[0] if "experts." in name}


def _speed(run: config.Run, steps: int, seconds: float, peak: float) -> dict:
    """Of a row of metrics.jsonl: how fast these steps were, against the matmul peak."""
    tokens_per_second = steps * run.data.batch_size * run.data.seq_len / seconds
    flops = tokens_per_second * sizes.flops_per_token(run.model, run.data.seq_len)["full"]
    return {
        "tokens_per_second": tokens_per_second,
        "flops_per_second": flops,
        "peak_share": flops / peak,
    }


def _mean(values: list) -> float:
    """Of those that are numbers: what was skipped has none."""
    numbers = np.array(values, np.float64)
    return float(np.mean(numbers[np.isfinite(numbers)]))


def _facts(run: config.Run, device_mesh, text: data.Text, peak: float) -> dict:
    """What analysis must never have to rebuild."""
    device = device_mesh.devices.flat[0]
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    facts = sizes.facts(run) | {
        "config_hash": _knobs_hash(run),
        "corpus.hash": text.hash,
        "unique_tokens": text.unique_tokens,
        "corpus.bytes_per_token": text.bytes_per_token,
        "host": platform.node(),
        "devices": device_mesh.size,
        "devices.kind": device.device_kind,
        "devices.mesh": dict(device_mesh.shape),
        "devices.cut": [
            run.optim.accumulate,
            run.model.loss_chunks,
            run.model.remat,
            run.mesh.rules,
        ],
        "devices.peak_flops_per_second": peak,
        "versions.python": platform.python_version(),
    }
    facts |= {f"versions.{p}": importlib.metadata.version(p) for p in packages}
    facts |= {f"epochs.{source}": n for source, n in text.epochs(run.steps).items()}
    facts |= {f"floor.{source}": nats for source, (nats, _) in text.floors().items()}
    for source, found in text.fit.items():
        facts |= {f"rows.{name}.{source}": value for name, value in found.items()}
    return facts
