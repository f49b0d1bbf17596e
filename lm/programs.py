"""What is compiled for a run: functions of a train state, which is a plain dict of arrays."""

import concurrent.futures
import dataclasses
import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lm import config, evaluate, exact, kernels, learned, mesh, model, moe, optim


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled for a run: functions of a state {"step", "params", "opt"} of arrays."""

    mesh: jax.sharding.Mesh
    abstract: dict  # jax.ShapeDtypeStruct of each array of the state, with its sharding
    init: Callable  # seed -> state, born split over the mesh
    step: Callable  # (state, batch) -> (next state, metrics); the state is donated
    plain_step: Callable  # the same, not compiled; takes rates in place of those of run.optim
    score: Callable  # see evaluate.scorer
    n_learned: int  # parameters that learn
    batch: dict  # jax.ShapeDtypeStruct of each array of a batch, as data.Text.batch makes them
    options: dict | None  # what the compiler of a step is asked for


def build(run: config.Run, device_mesh: jax.sharding.Mesh) -> Program:
    """The functions of a run on a mesh of real or described devices; computes nothing."""
    attention = kernels.chosen(run, device_mesh)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, attention=attention))
    axes = model.axes(run.model)
    keep = learned.tree(run.optim, run.model, axes)
    mine = learned.part(axes, keep)
    clip = 0.0 if run.mesh.exact else run.optim.clip  # see exact.clipped

    def optimizer(rates: dict | None = None) -> optax.GradientTransformation:
        knobs = dataclasses.replace(run.optim, clip=clip, **(rates or {}))
        return optim.make(knobs, run.model, run.steps, mine)

    def init(seed) -> dict:
        params = model.init(run.model, seed)
        opt = optimizer().init(learned.part(params, keep))
        return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": opt}

    def loss(weights: dict, frozen: dict, batch: dict, n: int, total):
        """What is minimised; nats and routing. Parts of the means over n targets of weight total.

        Balance is a product of two means: of pieces, it is the mean of theirs.
        """
        nats_BT, log_z_BT, _, routing = model.losses(
            run.model, learned.joined(weights, frozen), batch["tokens"], batch.get("segments")
        )
        nats = jnp.sum(nats_BT * batch.get("weights", 1.0)) / total
        routing = {name: mean * (nats_BT.size / n) for name, mean in routing.items()}
        penalty = moe.penalty(run.model, routing) if routing else 0.0
        return nats + run.model.z_loss * jnp.sum(log_z_BT**2) / n + penalty, (nats, routing)

    def gradients(weights: dict, frozen: dict, batch: dict):
        """Nats, routing and the gradient of a batch, summed over its pieces."""
        n = batch["tokens"][:, 1:].size
        total = batch["weights"].sum() if "weights" in batch else n
        given = weights, frozen, total

        def of_piece(given, piece: dict):
            weights, frozen, total = given
            of_loss = jax.value_and_grad(loss, has_aux=True)
            (_, found), gradient = of_loss(weights, frozen, piece, n, total)
            return *found, gradient

        if run.mesh.exact:
            return exact.summed(run.mesh.exact, device_mesh, of_piece)(given, batch)
        if run.optim.accumulate == 1:
            return of_piece(given, batch)

        def add(sums, piece):
            return jax.tree.map(jnp.add, sums, of_piece(given, piece)), None

        pieces = {k: mesh.pieces(v, run.optim.accumulate, "batch", 0) for k, v in batch.items()}
        shapes = jax.eval_shape(lambda: of_piece(given, {k: v[0] for k, v in pieces.items()}))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zero, pieces)[0]

    def step(state: dict, batch: dict, rates: dict | None = None):
        weights, frozen = (learned.part(state["params"], keep, which) for which in (True, False))
        with mesh.rules(run.mesh):
            nats, routing, gradient = gradients(weights, frozen, batch)
        if run.mesh.exact:
            gradient, grad_norm = exact.clipped(gradient, run.optim.clip)
        else:
            with jax.named_scope("optimizer"):
                grad_norm = optax.tree.norm(gradient)
        with jax.named_scope("optimizer"):
            update, opt = optimizer(rates).update(gradient, state["opt"], weights)
            if routing and run.model.balance == "bias" and not frozen:
                update = moe.balanced(run.model, update, routing)
            weights = typing.cast(dict, optax.apply_updates(weights, update))
        params = learned.joined(weights, frozen)
        lr = optim.schedule(dataclasses.replace(run.optim, **(rates or {})), run.steps)
        metrics = {"loss": nats, "grad_norm": grad_norm, "lr": lr(state["step"])}
        if routing:
            metrics |= moe.metrics(routing)
        after = {"step": state["step"] + 1, "params": params, "opt": opt}
        if run.optim.nonfinite == "skip":
            good = jnp.isfinite(nats) & jnp.isfinite(grad_norm)
            before = state | {"step": state["step"] + 1}
            after = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
        return after, metrics

    params = learned.part(jax.eval_shape(lambda: model.init(run.model, 0)), keep)
    names = _names_of(jax.eval_shape(optimizer().init, params), params, mine)
    split = functools.partial(
        jax.tree.map, lambda names: mesh.sharding(device_mesh, *names), is_leaf=mesh.is_names
    )
    with mesh.rules(run.mesh):
        shardings = {"step": split(()), "params": split(axes), "opt": split(names)}
    abstract = jax.tree.map(
        lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
        jax.eval_shape(init, 0),
        shardings,
    )
    everywhere = mesh.sharding(device_mesh)
    on_cpu = mesh.platform(device_mesh) == "cpu"
    options = exact.OPTIONS if run.mesh.exact else kernels.options(device_mesh)
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
            compiler_options=options,
        ),
        plain_step=step,
        score=evaluate.scorer(run, device_mesh),
        batch=_batch(run.data, mesh.sharding(device_mesh, "batch", None)),
        options=options,
        n_learned=sum(leaf.size for leaf in jax.tree.leaves(params)),
    )


def _names_of(opt, params: dict, axes: dict):
    """Axis names of an optimizer's arrays: moments have those of their weights, the rest none.

    A moment is an array whose path ends in that of a weight of its shape.
    """
    known = {}
    names = jax.tree.leaves(axes, is_leaf=mesh.is_names)
    for (path, leaf), its in zip(jax.tree_util.tree_leaves_with_path(params), names, strict=True):
        known[jax.tree_util.keystr(path), leaf.shape] = its

    def find(path, leaf) -> tuple:
        ends = ((jax.tree_util.keystr(path[start:]), leaf.shape) for start in range(len(path)))
        return next((known[end] for end in ends if end in known), ())

    return jax.tree_util.tree_map_with_path(find, opt)


def _batch(data: config.Data, split) -> dict:
    b, t = data.batch_size, data.seq_len
    arrays = {"tokens": ((b, t + 1), jnp.int32)}
    if not data.across or data.rows == "whole":
        arrays["segments"] = ((b, t), jnp.int32)
    if data.rows in ("continued", "whole"):
        arrays["weights"] = ((b, t), jnp.float32)
    return {k: jax.ShapeDtypeStruct(*v, sharding=split) for k, v in arrays.items()}


def compile_all(program: Program, step: jax.stages.Lowered, fresh: bool) -> tuple[Callable, ...]:
    """step, score and (for a fresh start) init, compiled at once: none alone fills the cores."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        # Each is compiled while the next is traced.
        compiled = [pool.submit(step.compile)]
        compiled.append(pool.submit(_scored(program).compile))
        if fresh:
            compiled.append(pool.submit(program.init.lower(0).compile))
        found = [one.result() for one in compiled]
    return found[0], found[1], found[2] if fresh else program.init


def _scored(program: Program) -> jax.stages.Lowered:
    tokens = program.batch["tokens"]
    b, t = tokens.shape
    segments = jax.ShapeDtypeStruct((b, t - 1), jnp.int32, sharding=tokens.sharding)
    scored = {"tokens": tokens, "segments": segments}  # segments always: tasks are packed by them
    return program.score.lower(program.abstract["params"], scored)
