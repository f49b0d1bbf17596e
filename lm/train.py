"""The loop. Every kind of training is `train(run)`; starting and resuming are the same call."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm import checkpoint, config, data, evaluate, mesh, mirrors, model, optim, records, sizes


class Diverged(Exception):
    """The loss or the gradient is not a finite number."""


class Interrupted(KeyboardInterrupt):
    """A signal asked for a stop; the state was saved."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled for a run: functions of a state {"step", "params", "opt"} of arrays."""

    mesh: jax.sharding.Mesh
    abstract: dict  # jax.ShapeDtypeStruct of each array of the state, with its sharding
    init: Callable  # seed -> state, born split over the mesh
    step: Callable  # (state, tokens [B, T+1]) -> (next state, metrics); the state is donated
    score: Callable  # see evaluate.scorer


def build(run: config.Run, device_mesh: jax.sharding.Mesh) -> Program:
    """The functions of a run on a mesh of real or described devices; computes nothing."""
    axes = model.axes(run.model)
    optimizer = optim.make(run.optim, run.steps, axes)
    lr = optim.schedule(run.optim, run.steps)

    def init(seed) -> dict:
        params = model.init(run.model, seed)
        return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": optimizer.init(params)}

    def loss(params: dict, tokens_BT: jax.Array):
        logits_BTV = model.logits(run.model, params, tokens_BT[:, :-1])
        nats_BT, log_z_BT = model.nats(logits_BTV, tokens_BT[:, 1:])
        nats = jnp.mean(nats_BT)
        return nats + run.model.z_loss * jnp.mean(log_z_BT**2), nats

    def step(state: dict, tokens_BT: jax.Array):
        (_, nats), gradient = jax.value_and_grad(loss, has_aux=True)(state["params"], tokens_BT)
        update, opt = optimizer.update(gradient, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], update)
        metrics = {"loss": nats, "grad_norm": optax.tree.norm(gradient), "lr": lr(state["step"])}
        return {"step": state["step"] + 1, "params": params, "opt": opt}, metrics

    names = optax.tree.map_params(  # moments are split as their weights, the rest is copied
        optimizer,
        lambda _, names: names,
        jax.eval_shape(optimizer.init, jax.eval_shape(lambda: model.init(run.model, 0))),
        axes,
        transform_non_params=lambda _: (),
    )
    split = functools.partial(
        jax.tree.map, lambda names: mesh.sharding(device_mesh, *names), is_leaf=optim.is_names
    )
    shardings = {"step": split(()), "params": split(axes), "opt": split(names)}
    abstract = jax.tree.map(
        lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
        jax.eval_shape(init, 0),
        shardings,
    )
    everywhere = mesh.sharding(device_mesh)
    on_cpu = mesh.platform(device_mesh) == "cpu"
    return Program(
        mesh=device_mesh,
        abstract=abstract,
        init=jax.jit(  # runs once: on CPU not worth the time to optimise
            init,
            out_shardings=shardings,
            compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
        ),
        step=jax.jit(
            step,
            in_shardings=(shardings, mesh.sharding(device_mesh, "batch", None)),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
        ),
        score=evaluate.scorer(run, device_mesh),
    )


def train(run: config.Run, report: Callable[[dict], None] = lambda row: None) -> None:
    """Trains a run to its end, from where it stands, into its folder.

    report: called with each row of metrics.jsonl as it is written. Raises ValueError before any
    compute if the run cannot work, Diverged, or Interrupted after SIGINT or SIGTERM.
    """
    # --- Refuse what cannot work ---
    config.check(run)
    records.compare(run)
    text = data.load(run.data, run.seed)
    if text.tokenizer.vocab_size > run.model.vocab_size:
        raise ValueError(
            f"model.vocab_size={run.model.vocab_size} must be at least the tokenizer's"
            f" {text.tokenizer.vocab_size}"
        )
    device_mesh = mesh.make(run.mesh)
    mesh.check_batch(run, device_mesh)

    # --- Build, and write down what the run is ---
    began = time.perf_counter()
    program = build(run, device_mesh)
    peak = mesh.peak_flops_per_second(device_mesh, run.model.dtype)
    attempt = records.start(run, _facts(run, device_mesh, text, peak))
    folder = records.folder(run)

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(checkpoint.Checkpoints(run))
        asked_to_stop = stack.enter_context(_signals())

        # --- Start, or go on from the newest checkpoint ---
        first = checkpoints.newest() or 0
        with jax.set_mesh(device_mesh):
            saved = checkpoints.restore(first, program.abstract) if first else None
            step, score, init = _compile(run, program, fresh=saved is None)
            state: dict = saved or init(run.seed)
        seconds = _seconds_until(folder, first)
        records.write_facts(folder, resumed_from=first, compile_seconds=time.perf_counter() - began)
        write, close = mirrors.follow(run, first)
        stack.callback(close)

        def evaluate_now(done: int) -> None:
            with jax.set_mesh(device_mesh):
                row = evaluate.evaluate(run, device_mesh, score, state["params"], text)
            records.append(folder / "evals.jsonl", {"attempt": attempt, "step": done} | row)

        evaluated = {row["step"] for row in records.evals(folder)}
        if first and _is_due(first, run.eval.every, run.steps) and first not in evaluated:
            evaluate_now(first)  # the last attempt ended between the checkpoint and this

        # --- Steps ---
        def load(number: int) -> jax.Array:
            rows = mesh.rows_here(run.data.batch_size)
            return mesh.place(device_mesh, text.batch(number, rows)["tokens"])

        batches = stack.enter_context(contextlib.closing(data.prefetch(load, first, run.steps)))
        window, waited, clock = [], 0.0, time.perf_counter()
        for done in range(first + 1, run.steps + 1):
            tick = time.perf_counter()
            tokens_BT = next(batches)
            waited += time.perf_counter() - tick
            state, metrics = step(state, tokens_BT)
            window.append(metrics)
            if jax.default_backend() == "cpu":
                # Queued collectives of more devices than cores can wait for each other for ever.
                jax.block_until_ready(metrics)
            if not _is_due(done, run.log_every, run.steps):
                continue

            # --- Log ---
            values = jax.device_get(window)
            now = time.perf_counter()
            seconds += now - clock
            row = {"attempt": attempt, "step": done, "seconds": seconds}
            row |= _window_metrics(run, text, values, done, now - clock, waited, peak)
            records.append(folder / "metrics.jsonl", row)
            write(row)
            report(row)
            window, waited, clock = [], 0.0, time.perf_counter()
            if not all(math.isfinite(v) for m in values for v in (m["loss"], m["grad_norm"])):
                reason = f"loss {row['loss']}, gradient norm {row['grad_norm']} at step {done}"
                records.write_facts(folder, status="diverged", reason=reason)
                raise Diverged(
                    f"{run.name} diverged: {reason}; try a smaller optim.lr={run.optim.lr}"
                )

            # --- Save, evaluate ---
            stop = asked_to_stop()
            if stop or _is_due(done, run.checkpoint_every, run.steps):
                checkpoints.save(done, state)
            if _is_due(done, run.eval.every, run.steps) and done not in evaluated:
                evaluate_now(done)
                clock = time.perf_counter()
            if stop and done < run.steps:
                raise Interrupted(f"{run.name} stopped by {stop} at step {done} of {run.steps}")
    records.write_facts(folder, status="done", seconds=seconds)


def _compile(run: config.Run, program: Program, fresh: bool) -> tuple[Callable, ...]:
    """step, score and (for a fresh start) init, compiled at once: alone none keeps all cores busy."""
    split = mesh.sharding(program.mesh, "batch", None)
    shape = (run.data.batch_size, run.data.seq_len + 1)
    batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split)
    lowered = [
        program.step.lower(program.abstract, batch),
        program.score.lower(program.abstract["params"], batch),
        *([program.init.lower(run.seed)] if fresh else []),
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = list(pool.map(lambda one: one.compile(), lowered))
    return compiled[0], compiled[1], compiled[2] if fresh else program.init


def restore(run: config.Run, step: int | None = None) -> tuple[Program, dict]:
    """A run's functions and its state at a checkpoint (default: the newest) on the devices here."""
    program = build(run, mesh.make(run.mesh))
    with checkpoint.Checkpoints(run) as checkpoints:
        step = checkpoints.newest() if step is None else step
        if step is None:
            raise ValueError(f"{records.folder(run)} has no checkpoint yet")
        return program, checkpoints.restore(step, program.abstract)


def _is_due(step: int, every: int, last: int) -> bool:
    """Every so many steps (0: never), and at the last."""
    return step == last or (every > 0 and step % every == 0)


def _window_metrics(run, text, values: list[dict], done: int, seconds, waited, peak) -> dict:
    """A row of metrics.jsonl: loss and gradient norm are means over the steps since the last."""
    per_step = run.data.batch_size * run.data.seq_len
    per_token = sizes.flops_per_token(run.model, run.data.seq_len)["full"]
    speed = len(values) * per_step / seconds
    loss = float(np.mean([m["loss"] for m in values]))
    return {
        "tokens": done * per_step,
        "flops": done * per_step * per_token,
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / text.bytes_per_token,
        "grad_norm": float(np.mean([m["grad_norm"] for m in values])),
        "lr": float(values[-1]["lr"]),
        "tokens_per_second": speed,
        "flops_per_second": speed * per_token,
        "peak_share": speed * per_token / peak,
        "input_wait": waited / seconds,
        "epoch": max(text.epochs(done).values()),
    }


def _facts(run: config.Run, device_mesh, text: data.Text, peak: float) -> dict:
    """What analysis must never have to rebuild."""
    device = device_mesh.devices.flat[0]
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    knobs = {k: v for k, v in config.flatten(run).items() if k not in records.FREE}
    facts = sizes.facts(run) | {
        "config_hash": hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:16],
        "corpus.hash": text.hash,
        "text.bytes_per_token": text.bytes_per_token,
        "devices": device_mesh.size,
        "devices.kind": device.device_kind,
        "devices.mesh": dict(device_mesh.shape),
        "devices.peak_flops_per_second": peak,
        "versions.python": platform.python_version(),
    }
    facts |= {f"versions.{p}": importlib.metadata.version(p) for p in packages}
    facts |= {f"epochs.{source}": n for source, n in text.epochs(run.steps).items()}
    return facts


def _seconds_until(folder, step: int) -> float:
    """Training seconds of the steps that are kept, over all attempts."""
    return max(
        (row["seconds"] for row in records.metrics(folder) if row["step"] <= step), default=0.0
    )


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], str]]:
    """Yields a function that names the signal that asked for a stop, or "".

    A second signal is obeyed at once.
    """
    caught: list[str] = []

    def handle(number, _):
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught[0] if caught else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
