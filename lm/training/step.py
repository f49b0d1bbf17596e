"""Compiled functions of a run: initial state, train step, loss on held-out rows.

    functions = build_train_functions(run, device_mesh)
    with jax.set_mesh(device_mesh):
        state = functions.init(run.seed)
        state, metrics = functions.step(state, batch, functions.inputs)

The training loop calls several steps at once, see lm/training/loop.py.
"""

import dataclasses
import json
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lm.config import fields, model_sizes, schema
from lm.config.schedules import batch_size_schedule
from lm.evaluation import heldout
from lm.model import memory_estimate, moe, transformer
from lm.model.kernels import kernel_table, layer_loop
from lm.parallel import deterministic, mesh, xla_flags
from lm.training import optimizer

# Fields of a run that its compiled functions depend on.
PROGRAM_FIELDS = (
    *("steps", "model", "optim", "mesh"),
    *("data.batch_size", "data.batch_size_warmup", "data.seq_len"),
    *("data.attend_across_documents", "data.packing"),
)
INPUT_FIELDS = fields.fields_with("vmapped", schema.Run)  # the functions get their values
ShardingRules = mesh.ShardingRules  # the field `mesh` of TrainFunctions hides the module


@dataclasses.dataclass(frozen=True)
class TrainFunctions:
    """Functions of a run on a mesh. A train state is a dict {"step", "params", "opt"}.

    "Abstract" arrays are jax.ShapeDtypeStruct with a sharding.

    rules             mesh axes that split each logical axis
    abstract          abstract arrays of the state that `step` accepts
    abstract_saved    abstract arrays of the state in a checkpoint: the same, for a single run
    batch             abstract arrays of a batch from dataset.TokenDataset.batch
    evaluation_batch  abstract arrays of a batch of held-out rows
    init              seed -> state, created in its shards
    step              (state, batch, inputs) -> (next state, metrics), compiled; donates the state
    plain_step        the same function, not compiled
    inputs            the inputs of the run, see optimizer.StepInputs
    score             see heldout.make_scorer
    n_learned         number of trainable parameters
    options           compiler options of the step
    n_runs            number of runs that `step` trains, see lm/training/vmapped_runs.py
    lowered           lowered calls of several steps, by number of runs and steps per call
    """

    mesh: jax.sharding.Mesh
    rules: ShardingRules
    abstract: dict
    abstract_saved: dict
    batch: typing.Any
    evaluation_batch: dict
    init: Callable
    step: Callable
    plain_step: Callable
    inputs: optimizer.StepInputs
    score: Callable
    n_learned: int
    options: dict | None
    n_runs: int = 1
    lowered: dict = dataclasses.field(default_factory=dict, repr=False)


class Cache:
    """The most recently built functions, by mesh and PROGRAM_FIELDS without INPUT_FIELDS.

    A command builds the functions of a run once, so its cache has size 0. Tests set `size` of
    CACHE, so that runs of one shape are traced once.
    """

    def __init__(self, size: int = 0):
        self.size, self.programs = size, {}

    def key(self, run: schema.Run, device_mesh: jax.sharding.Mesh) -> tuple:
        """Return the values that the functions of a run depend on."""
        values = {
            field: value
            for field, value in schema.flatten(run).items()
            if (field in PROGRAM_FIELDS or field.partition(".")[0] in PROGRAM_FIELDS)
            and field not in INPUT_FIELDS
        }
        return json.dumps(values), device_mesh

    def store(self, key: tuple, functions: TrainFunctions) -> None:
        """Store functions and drop the oldest ones beyond `size`."""
        self.programs[key] = functions
        while len(self.programs) > self.size:
            del self.programs[next(iter(self.programs))]


CACHE = Cache()


def build_train_functions(
    run: schema.Run, device_mesh: jax.sharding.Mesh, stage: batch_size_schedule.Stage | None = None
) -> TrainFunctions:
    """Return the functions of a run on a mesh; compile nothing.

    device_mesh: real devices, or described devices of absent hardware. stage: steps of equal batch
    size, see data.batch_size_warmup; None is the last stage.
    """
    stage = stage or batch_size_schedule.BatchSizeSchedule.from_config(run.data).stages[-1]
    key = *CACHE.key(run, device_mesh), stage
    if key in CACHE.programs:
        return dataclasses.replace(CACHE.programs[key], inputs=step_inputs(run, device_mesh))
    is_trainable, axes = trainable_axes(run)
    transformation = optimizer.make_stage_optimizer(run, stage, axes)
    data = dataclasses.replace(run.data, batch_size=stage.batch_size, batch_size_warmup="")
    run = kernel_table.resolve_kernels(dataclasses.replace(run, data=data), device_mesh)
    run = memory_estimate.resolve_layout(run, device_mesh.size, mesh.device_platform(device_mesh))
    rules = mesh.ShardingRules.from_config(run.mesh)

    def init(seed) -> dict:
        params = transformer.init_params(run.model, seed)
        opt = transformation.init(optimizer.partition(params, is_trainable))
        return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": opt}

    step = _step_function(run, device_mesh, rules, transformation, is_trainable)
    abstract = _abstract_state(run, device_mesh, rules, jax.eval_shape(init, 0))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    rows = mesh.named_sharding(device_mesh, "batch", None)
    replicated = mesh.named_sharding(device_mesh)
    options = _step_options(run, device_mesh)
    functions = TrainFunctions(
        mesh=device_mesh,
        rules=rules,
        abstract=abstract,
        abstract_saved=abstract,
        batch=_abstract_batch(run.data, rows),
        evaluation_batch=_abstract_evaluation_batch(run.data, rows),
        init=jax.jit(
            init,
            out_shardings=shardings,
            compiler_options=xla_flags.init_options(
                device_mesh, model_sizes.count_parameters(run.model)["total"]
            ),
        ),
        step=jax.jit(
            step,
            in_shardings=(shardings, rows, replicated),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
            compiler_options=options,
        ),
        plain_step=step,
        inputs=step_inputs(run, device_mesh),
        score=heldout.make_scorer(run, device_mesh),
        n_learned=_n_trainable(abstract["params"], is_trainable),
        options=options,
    )
    CACHE.store(key, functions)
    return functions


def trainable_axes(run: schema.Run) -> tuple[dict, dict]:
    """Return the mask of the trainable weights, a tree of booleans, and their axis names."""
    axes = transformer.param_axes(run.model)
    is_trainable = optimizer.trainable_mask(run.optim, run.model, axes)
    return is_trainable, optimizer.partition(axes, is_trainable)


def step_inputs(run: schema.Run, device_mesh: jax.sharding.Mesh) -> optimizer.StepInputs:
    """Return the inputs of a run, for the functions of any run of the same shape."""
    numbers = layer_loop.make_layer_numbers(run.model, mesh.device_platform(device_mesh))
    return dataclasses.replace(optimizer_inputs(run), layer_numbers=numbers)


def optimizer_inputs(run: schema.Run) -> optimizer.StepInputs:
    """Return the inputs of a run without layer numbers, which are equal for all runs of a shape."""
    return optimizer.inputs(run.optim, run.model, trainable_axes(run)[1])


def _step_options(run: schema.Run, device_mesh: jax.sharding.Mesh) -> dict | None:
    """Return the compiler options of the step."""
    if run.mesh.deterministic_shards:
        return deterministic.OPTIONS
    return xla_flags.compiler_options(device_mesh, run.mesh.deterministic_kernels)


def _step_function(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    rules: mesh.ShardingRules,
    transformation: optimizer.Optimizer,
    is_trainable: dict,
) -> Callable:
    """Return step(state, batch, inputs) -> (next state, metrics)."""
    gradients = _gradient_function(run, device_mesh, rules)
    axes = transformer.param_axes(run.model)
    moves_biases = optimizer.updates_router_biases(run.optim, run.model, axes)
    # The sums of the gradient norm need a fixed order in deterministic mode.
    clip = (
        deterministic.clip_by_global_norm
        if run.mesh.deterministic_shards
        else optimizer.clip_by_global_norm
    )

    def step(state: dict, batch: dict, inputs: optimizer.StepInputs):
        weights, frozen = (
            optimizer.partition(state["params"], is_trainable, b) for b in (True, False)
        )
        nats, routing, gradient = gradients(weights, frozen, batch, inputs.layer_numbers)
        with jax.named_scope("optimizer"):
            gradient, grad_norm = clip(gradient, run.optim.clip_norm)
            update, opt = transformation.update(gradient, state["opt"], weights, inputs=inputs)
            weights = typing.cast(dict, optax.apply_updates(weights, update))
        params = optimizer.combine(weights, frozen)
        if moves_biases:
            params = moe.update_router_biases(run.model, params, routing)
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
    """Return gradients(weights, frozen, batch, layer_numbers) -> (nats, routing, gradient).

    nats: mean loss. routing: metrics of the router by name, {} without experts. All results are
    sums over chunks of the batch: the logical shards of deterministic mode, or
    optim.grad_accumulation_steps chunks that are computed one after another.
    """
    loss = _loss_function(run, rules)

    def gradients(weights: dict, frozen: dict, batch: dict, layer_numbers: tuple = ()):
        totals = _batch_totals(run.model, batch)
        shared = weights, frozen, totals, layer_numbers

        def chunk_gradient(shared, chunk: dict):
            weights, *others = shared
            loss_and_gradient = jax.value_and_grad(loss, has_aux=True)
            (_, (nats, routing)), gradient = loss_and_gradient(weights, chunk, *others)
            return nats, routing, gradient

        if run.mesh.deterministic_shards:
            return deterministic.sum_over_shards(
                run.mesh.deterministic_shards, device_mesh, chunk_gradient
            )(shared, batch)
        n_chunks = run.optim.grad_accumulation_steps
        if n_chunks == 1:
            return chunk_gradient(shared, batch)

        compute = jax.jit(chunk_gradient, inline=True)  # traced once for both uses

        def add(sums, numbered_chunk):
            i, chunk = numbered_chunk
            results = compute(shared, chunk)
            return jax.tree.map(lambda a, b: jnp.where(i == 0, 0, a) + b, sums, results), None

        chunks = {k: mesh.split_chunks(v, n_chunks, "batch", 0) for k, v in batch.items()}
        first = {k: v[0] for k, v in chunks.items()}
        nats, routing, _ = jax.eval_shape(compute, shared, first)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (nats, routing))
        # The sums start as the weights, which the first chunk replaces: an array of zeros of each
        # shape would take XLA on CPU 20 ms to compile.
        start = (*zeros, weights)
        return jax.lax.scan(add, start, (jnp.arange(n_chunks), chunks))[0]

    return gradients


def _batch_totals(model: schema.Model, batch: dict) -> tuple:
    """Return (sum of the loss weights, number of tokens that routing counts) of a batch."""
    n = batch["tokens"][:, 1:].size
    if "weights" not in batch:
        return n, n
    if not model.n_experts:
        return batch["weights"].sum(), n
    is_counted_BT = moe.counted_tokens(batch["weights"], batch.get("segments"))
    return batch["weights"].sum(), jnp.maximum(is_counted_BT.sum(), 1)


def _loss_function(run: schema.Run, rules: mesh.ShardingRules) -> Callable:
    """Return loss(weights, batch, frozen, totals, layer_numbers) -> (objective, (nats, routing)).

    The batch may be a chunk. Each result is its contribution to a mean over the complete batch,
    whose totals are those of `_batch_totals`. The means of cross-entropy and z-loss are weighted by
    the loss weights. Those of routing count all tokens except padding. The balance loss is a
    product of two means; with several chunks it is the mean of the products of the chunks.
    """

    def loss(weights: dict, batch: dict, frozen: dict, totals: tuple, layer_numbers: tuple):
        params = optimizer.combine(weights, frozen)
        (total_weight, n_counted), is_counted_BT = totals, None
        if run.model.n_experts and "weights" in batch:
            is_counted_BT = moe.counted_tokens(batch["weights"], batch.get("segments"))
        nats_BT, log_z_BT, _, routing = transformer.token_losses(
            run.model,
            params,
            batch["tokens"],
            batch.get("segments"),
            rules,
            is_counted_BT,
            layer_numbers,
        )
        weights_BT = batch.get("weights", 1.0)
        nats = jnp.sum(nats_BT * weights_BT) / total_weight
        n_chunk = nats_BT.size if is_counted_BT is None else is_counted_BT.sum()
        routing = {name: mean * (n_chunk / n_counted) for name, mean in routing.items()}
        penalty = moe.auxiliary_loss(run.model, routing) if routing else 0.0
        z_loss = run.model.z_loss * jnp.sum(log_z_BT**2 * weights_BT) / total_weight
        return nats + z_loss + penalty, (nats, routing)

    return loss


def _abstract_state(
    run: schema.Run, device_mesh: jax.sharding.Mesh, rules: mesh.ShardingRules, state: dict
) -> dict:
    """Return the abstract arrays of a state. state: shapes and types without shardings."""
    is_trainable, axes = trainable_axes(run)
    params = optimizer.partition(state["params"], is_trainable)
    names = {
        "step": (),
        "params": transformer.param_axes(run.model),
        "opt": _moment_axes(state["opt"], params, axes),
    }
    shardings = jax.tree.map(
        lambda names: rules.sharding(device_mesh, *names), names, is_leaf=mesh.is_axis_names
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )


def _moment_axes(opt, params: dict, axes: dict):
    """Return the axis names of the arrays of an optimizer state.

    A moment has the axis names of its weight; other arrays have (). An array is a moment if its
    path ends with the path of a weight of the same shape.
    """
    axes_by_weight = {}
    names = jax.tree.leaves(axes, is_leaf=mesh.is_axis_names)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), leaf_names in zip(leaves, names, strict=True):
        axes_by_weight[jax.tree_util.keystr(path), leaf.shape] = leaf_names

    def names_of(path, leaf) -> tuple:
        suffixes = ((jax.tree_util.keystr(path[start:]), leaf.shape) for start in range(len(path)))
        return next((axes_by_weight[key] for key in suffixes if key in axes_by_weight), ())

    return jax.tree_util.tree_map_with_path(names_of, opt)


def _abstract_batch(data: schema.Data, sharding: jax.sharding.NamedSharding) -> dict:
    b, t = data.batch_size, data.seq_len
    arrays = {"tokens": ((b, t + 1), jnp.int32)}
    if not data.attend_across_documents or data.packing == "documents":
        arrays["segments"] = ((b, t), jnp.int32)
    if data.packing in ("continuation", "documents"):
        arrays["weights"] = ((b, t), jnp.float32)
    return {k: jax.ShapeDtypeStruct(*v, sharding=sharding) for k, v in arrays.items()}


def _abstract_evaluation_batch(data: schema.Data, sharding: jax.sharding.NamedSharding) -> dict:
    """Return the abstract arrays of held-out rows. They always have segments: tasks are packed."""
    b, t = data.batch_size, data.seq_len
    arrays = {"tokens": (b, t + 1), "segments": (b, t)}
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        for name, shape in arrays.items()
    }


def _n_trainable(params: dict, is_trainable: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(optimizer.partition(params, is_trainable)))
