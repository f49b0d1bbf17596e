"""Compiled functions of a run: initial state, train step, loss on held-out rows.

    program = build(run, device_mesh)
    size = steps_per_call(run, device_mesh)
    step, score, init = compile_all(program, lower_steps(program, size), fresh=True)
    call = call_steps(program, step, size)
    state, metrics = call(init(run.seed), [batch, batch])      1 to `size` steps

A call of the step computes several steps in a loop whose length is an argument, so that the number
of steps does not change a bit. On CPU each call allocates the memory of all intermediate arrays
again, page by page; the steps of one call share it.
"""

import concurrent.futures
import dataclasses
import functools
import json
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.config import flops, schema
from lm.evaluation import heldout
from lm.model import attention, moe, transformer
from lm.parallel import deterministic, mesh, xla_flags
from lm.training import optimizer

# Limits of one call, in steps and in FLOPs: a signal waits for the end of the call.
MAX_STEPS_PER_CALL, MAX_FLOPS_PER_CALL = 8, 1.5e12
# Fields of a run that its program depends on.
PROGRAM_FIELDS = (
    *("steps", "model", "optim", "mesh"),
    *("data.batch_size", "data.seq_len", "data.attend_across_documents", "data.packing"),
)
ShardingRules = mesh.ShardingRules  # the field `mesh` of Program hides the module


@dataclasses.dataclass(frozen=True)
class TrainFunctions:
    """The functions of a run on a mesh. A train state is a dict {"step", "params", "opt"}.

    abstract   jax.ShapeDtypeStruct of each array of the state, with its sharding
    batch      the same of a batch, as dataset.TokenDataset.batch makes them
    init       seed -> state, created in its shards
    step       (state, batch, inputs) -> (next state, metrics), compiled; donates the state
    plain_step the same function, not compiled
    inputs     the optimizer inputs of the run
    score      see heldout.make_scorer
    options    compiler options of the step
    lowered    steps that were lowered before, by number of runs and steps per call
    """

    mesh: jax.sharding.Mesh
    rules: ShardingRules
    abstract: dict
    batch: typing.Any
    init: Callable
    step: Callable
    plain_step: Callable
    inputs: optimizer.OptimizerInputs
    score: Callable
    n_learned: int
    options: dict | None
    n_runs: int = 1
    lowered: dict = dataclasses.field(default_factory=dict, repr=False)


class Cache:
    """The most recently built programs, by mesh and PROGRAM_FIELDS.

    A command builds each program once and stores none. Tests set `size` of CACHE, so that runs of
    one shape are traced once.
    """

    def __init__(self, size: int = 0):
        self.size, self.programs = size, {}

    def key(self, run: schema.Run, device_mesh: jax.sharding.Mesh) -> tuple:
        """Return what identifies the program of a run."""
        fields = {
            field: value
            for field, value in schema.flatten(run).items()
            if field in PROGRAM_FIELDS or field.partition(".")[0] in PROGRAM_FIELDS
        }
        return json.dumps(fields), device_mesh

    def store(self, key: tuple, program: TrainFunctions) -> None:
        """Store a program and drop the oldest ones beyond `size`."""
        self.programs[key] = program
        while len(self.programs) > self.size:
            del self.programs[next(iter(self.programs))]


CACHE = Cache()


def build_train_functions(
    run: schema.Run, device_mesh: jax.sharding.Mesh, cache: Cache = CACHE
) -> TrainFunctions:
    """Return the functions of a run on a mesh of real or described devices; compute nothing."""
    key = cache.key(run, device_mesh)
    if key in cache.programs:
        return cache.programs[key]
    backend = attention.select_backend(run, device_mesh)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, attention=backend))
    rules = mesh.ShardingRules.of(run.mesh)
    is_trainable, axes = trainable_axes(run)
    transformation = optimizer.make_optimizer(run.optim, run.model, run.steps, axes)

    def init(seed) -> dict:
        params = transformer.init_params(run.model, seed)
        opt = transformation.init(optimizer.partition(params, is_trainable))
        return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": opt}

    step = _step_function(run, device_mesh, rules, transformation, is_trainable)
    abstract = _abstract_state(run, device_mesh, rules, jax.eval_shape(init, 0))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    rows = mesh.named_sharding(device_mesh, "batch", None)
    replicated = mesh.named_sharding(device_mesh)
    on_cpu = mesh.device_platform(device_mesh) == "cpu"
    options = (
        deterministic.OPTIONS
        if run.mesh.deterministic_shards
        else xla_flags.compiler_options(device_mesh)
    )
    program = TrainFunctions(
        mesh=device_mesh,
        rules=rules,
        abstract=abstract,
        batch=_abstract_batch(run.data, rows),
        init=jax.jit(
            init,
            out_shardings=shardings,
            # It runs once: on CPU its optimization takes longer than it saves.
            compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
        ),
        step=jax.jit(
            step,
            in_shardings=(shardings, rows, replicated),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
            compiler_options=options,
        ),
        plain_step=step,
        inputs=optimizer.inputs(run.optim, run.model, axes),
        score=heldout.make_scorer(run, device_mesh),
        n_learned=_n_trainable(abstract["params"], is_trainable),
        options=options,
    )
    cache.store(key, program)
    return program


def trainable_axes(run: schema.Run) -> tuple[dict, dict]:
    """Return which weights are trainable, a tree of booleans, and the axis names of those."""
    axes = transformer.param_axes(run.model)
    is_trainable = optimizer.trainable_mask(run.optim, run.model, axes)
    return is_trainable, optimizer.partition(axes, is_trainable)


def optimizer_inputs(run: schema.Run) -> optimizer.OptimizerInputs:
    """Return the optimizer inputs of a run, for the program of a run of the same shape."""
    return optimizer.inputs(run.optim, run.model, trainable_axes(run)[1])


def _step_function(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    rules: mesh.ShardingRules,
    transformation: optimizer.Optimizer,
    is_trainable: dict,
) -> Callable:
    """Return step(state, batch, inputs) -> (next state, metrics)."""
    gradients = _gradient_function(run, device_mesh, rules)
    # The sums of the gradient norm need a fixed order in deterministic mode.
    clip = (
        deterministic.clip_by_global_norm
        if run.mesh.deterministic_shards
        else optimizer.clip_by_global_norm
    )

    def step(state: dict, batch: dict, inputs: optimizer.OptimizerInputs):
        weights, frozen = (
            optimizer.partition(state["params"], is_trainable, b) for b in (True, False)
        )
        nats, routing, gradient = gradients(weights, frozen, batch)
        with jax.named_scope("optimizer"):
            gradient, grad_norm = clip(gradient, run.optim.clip_norm)
            update, opt = transformation.update(gradient, state["opt"], weights, inputs=inputs)
            if routing and run.model.load_balancing == "bias" and not frozen:
                update = moe.apply_router_bias_update(run.model, update, routing)
            weights = typing.cast(dict, optax.apply_updates(weights, update))
        params = optimizer.combine(weights, frozen)
        lr = transformation.learning_rate(state["step"], inputs.lr)
        metrics = {"loss": nats, "grad_norm": grad_norm, "lr": lr}
        if routing:
            metrics |= moe.routing_metrics(routing)
        after = {"step": state["step"] + 1, "params": params, "opt": opt}
        if run.optim.on_nonfinite == "skip":
            is_finite = jnp.isfinite(nats) & jnp.isfinite(grad_norm)
            before = state | {"step": state["step"] + 1}
            after = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), after, before)
        return after, metrics

    return step


def _gradient_function(
    run: schema.Run, device_mesh: jax.sharding.Mesh, rules: mesh.ShardingRules
) -> Callable:
    """Return gradients(weights, frozen, batch) -> (nats, routing, gradient).

    They are sums over the pieces of the batch: the logical shards of deterministic mode, or the
    optim.grad_accumulation_steps pieces that are computed one after another.
    """
    loss = _loss_function(run, rules)

    def gradients(weights: dict, frozen: dict, batch: dict):
        n = batch["tokens"][:, 1:].size
        total = batch["weights"].sum() if "weights" in batch else n
        shared = weights, frozen, total

        def piece_gradient(shared, piece: dict):
            weights, frozen, total = shared
            loss_and_gradient = jax.value_and_grad(loss, has_aux=True)
            (_, (nats, routing)), gradient = loss_and_gradient(weights, frozen, piece, n, total)
            return nats, routing, gradient

        if run.mesh.deterministic_shards:
            return deterministic.sum_over_shards(
                run.mesh.deterministic_shards, device_mesh, piece_gradient
            )(shared, batch)
        if run.optim.grad_accumulation_steps == 1:
            return piece_gradient(shared, batch)

        def add(sums, piece):
            return jax.tree.map(jnp.add, sums, piece_gradient(shared, piece)), None

        pieces = {
            k: mesh.split_chunks(v, run.optim.grad_accumulation_steps, "batch", 0)
            for k, v in batch.items()
        }
        first = {k: v[0] for k, v in pieces.items()}
        shapes = jax.eval_shape(lambda: piece_gradient(shared, first))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zero, pieces)[0]

    return gradients


def _loss_function(run: schema.Run, rules: mesh.ShardingRules) -> Callable:
    """Return loss(weights, frozen, batch, n, total) -> (objective, (nats, routing)).

    Each is the part that the batch contributes to a mean over n targets of total weight `total`.
    The balance loss is a product of two means: with several pieces, the mean of their products.
    """

    def loss(weights: dict, frozen: dict, batch: dict, n: int, total):
        params = optimizer.combine(weights, frozen)
        nats_BT, log_z_BT, _, routing = transformer.token_losses(
            run.model, params, batch["tokens"], batch.get("segments"), rules
        )
        nats = jnp.sum(nats_BT * batch.get("weights", 1.0)) / total
        routing = {name: mean * (nats_BT.size / n) for name, mean in routing.items()}
        penalty = moe.auxiliary_loss(run.model, routing) if routing else 0.0
        return nats + run.model.z_loss * jnp.sum(log_z_BT**2) / n + penalty, (nats, routing)

    return loss


def _abstract_state(
    run: schema.Run, device_mesh: jax.sharding.Mesh, rules: mesh.ShardingRules, state: dict
) -> dict:
    """Return the arrays of a state with their shardings. state: their shapes and types."""
    is_trainable, axes = trainable_axes(run)
    params = optimizer.partition(state["params"], is_trainable)
    names = {
        "step": (),
        "params": transformer.param_axes(run.model),
        "opt": _names_of_moments(state["opt"], params, axes),
    }
    shardings = jax.tree.map(
        lambda names: rules.sharding(device_mesh, *names), names, is_leaf=mesh.is_axis_names
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )


def _names_of_moments(opt, params: dict, axes: dict):
    """Return the axis names of an optimizer's arrays: those of its weight for a moment, else ().

    A moment is an array whose path ends with the path of a weight of the same shape.
    """
    known = {}
    names = jax.tree.leaves(axes, is_leaf=mesh.is_axis_names)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), leaf_names in zip(leaves, names, strict=True):
        known[jax.tree_util.keystr(path), leaf.shape] = leaf_names

    def names_of(path, leaf) -> tuple:
        suffixes = ((jax.tree_util.keystr(path[start:]), leaf.shape) for start in range(len(path)))
        return next((known[suffix] for suffix in suffixes if suffix in known), ())

    return jax.tree_util.tree_map_with_path(names_of, opt)


def _abstract_batch(data: schema.Data, sharding: jax.sharding.NamedSharding) -> dict:
    b, t = data.batch_size, data.seq_len
    arrays = {"tokens": ((b, t + 1), jnp.int32)}
    if not data.attend_across_documents or data.packing == "documents":
        arrays["segments"] = ((b, t), jnp.int32)
    if data.packing in ("continuation", "documents"):
        arrays["weights"] = ((b, t), jnp.float32)
    return {k: jax.ShapeDtypeStruct(*v, sharding=sharding) for k, v in arrays.items()}


def _n_trainable(params: dict, is_trainable: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(optimizer.partition(params, is_trainable)))


# Calls of several steps.


def steps_per_call(run: schema.Run, device_mesh: jax.sharding.Mesh, n_runs: int = 1) -> int:
    """Return the number of steps of one call: run.steps_per_call, or by their FLOPs on CPU.

    An accelerator keeps the memory between calls and receives the next step during the current
    one: 1.
    """
    if run.steps_per_call:
        return run.steps_per_call
    if mesh.device_platform(device_mesh) != "cpu":
        return 1
    n_tokens = n_runs * run.data.batch_size * run.data.seq_len
    n_flops = n_tokens * flops.flops_per_token(run.model, run.data.seq_len)["full"]
    return int(min(MAX_STEPS_PER_CALL, max(1, MAX_FLOPS_PER_CALL // n_flops)))


def lower_steps(program: TrainFunctions, size: int) -> jax.stages.Lowered:
    """Return the lowered call of at most `size` steps."""
    if (program.n_runs, size) not in program.lowered:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
        replicated = mesh.named_sharding(program.mesh)
        steps = jax.jit(
            functools.partial(_steps, program.plain_step, shardings),
            in_shardings=(shardings, None, replicated, replicated),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
            compiler_options=program.options,
        )
        n = jax.ShapeDtypeStruct((), jnp.int32)
        lowered = steps.lower(program.abstract, [program.batch] * size, n, program.inputs)
        program.lowered[program.n_runs, size] = lowered
    return program.lowered[program.n_runs, size]


def _steps(step: Callable, shardings: dict, state: dict, batches: list, n: jax.Array, inputs):
    """Compute the first n steps; the metrics of the others are 0."""
    if len(batches) == 1:
        state, metrics = step(state, batches[0], inputs)
        return state, [metrics]

    step = jax.jit(step, inline=True)  # traced once for both uses

    def body(i, carry):
        state, metrics = carry
        batch = jax.tree.map(lambda rows: rows[i], stacked)
        state, new = step(state, batch, inputs)
        state = jax.lax.with_sharding_constraint(state, shardings)
        return state, jax.tree.map(lambda array, x: array.at[i].set(x), metrics, new)

    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
    shapes = jax.eval_shape(step, state, batches[0], inputs)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(len(batches), x.dtype), shapes)
    state, metrics = jax.lax.fori_loop(0, n, body, (state, zeros))
    return state, [jax.tree.map(lambda x, i=i: x[i], metrics) for i in range(len(batches))]


def call_steps(program: TrainFunctions, steps: Callable, size: int) -> Callable:
    """Return call(state, batches) -> (state, metrics) of 1 to `size` steps, a list element each.

    steps: the compiled call of lower_steps.
    """
    inputs = mesh.replicate(program.mesh, program.inputs)

    def call(state: dict, batches: list) -> tuple[dict, list]:
        n = len(batches)
        padded = batches + batches[-1:] * (size - n)
        state, metrics = steps(state, padded, np.int32(n), inputs)
        return state, metrics[:n]

    return call


def compile_all(
    program: TrainFunctions, steps: jax.stages.Lowered, fresh: bool
) -> tuple[Callable, ...]:
    """Return compiled steps, score and init; init is compiled only for a fresh start.

    All are compiled at once: no single compilation uses all cores, and each runs while the next
    function is traced.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = [pool.submit(steps.compile)]
        compiled.append(pool.submit(_lower_score(program).compile))
        if fresh:
            compiled.append(pool.submit(program.init.lower(0).compile))
        functions = [future.result() for future in compiled]
    return functions[0], functions[1], functions[2] if fresh else program.init


def _lower_score(program: TrainFunctions) -> jax.stages.Lowered:
    tokens = program.batch["tokens"]
    b, t = tokens.shape
    # Evaluation batches always have segments: tasks are packed by them.
    segments = jax.ShapeDtypeStruct((b, t - 1), jnp.int32, sharding=tokens.sharding)
    return program.score.lower(program.abstract["params"], {"tokens": tokens, "segments": segments})
