"""Analytic memory of a train step on one device, without a compiler.

    estimate = memory_estimate.estimate_memory(run, n_devices=4, platform="cpu")
    estimate.params, estimate.optimizer, estimate.gradients, estimate.activations     # bytes
    memory_estimate.check_memory(run, 4, "cpu", available_bytes)      # raises schema.ConfigError
    run = memory_estimate.resolve_layout(run, 4, "cpu")    # sets micro-batches and sharding rules

The size of parameters and optimizer state is exact. Temporaries are within a factor of 2 of the
values that the compilers of CPU, TPU and GPU report (experiments/LOG.md). On CPU they are within
15% for most dense float32 models.
"""

import dataclasses
import functools
import math

import jax

from lm.config import axis_rules, model_sizes, schema
from lm.config.schedules import batch_size_schedule
from lm.model import attention, parametrization, transformer
from lm.model.kernels import kernel_table, remat_policies
from lm.parallel import mesh

FLOAT32 = 4  # bytes
GIB = 2**30  # bytes
SECOND_MOMENTS = {"adamw": 1, "lion": 0, "muon": 0}  # per weight; muon: per weight of a matrix
# A run is rejected only if it exceeds the memory with a third of the estimated temporaries. The
# estimate is at most twice the true value, so a run that fits is never rejected.
TEMPORARIES_FACTOR = 3
# Defaults on CPU, see resolve_layout: activations of a micro-batch per device, and parameters.
MAX_ACTIVATION_BYTES, SHARDED_STATE = 64 * 2**20, 8e6
STATE_BYTES = 4 * FLOAT32  # per parameter: weight, gradient and two moments


@dataclasses.dataclass
class Weight:
    """A weight of the model."""

    n: int  # number of elements
    names: tuple[str | None, ...]  # of its axes
    shape: tuple[int, ...]


@dataclasses.dataclass
class MemoryEstimate:
    """Bytes of one device."""

    params: float
    optimizer: float
    gradients: float
    activations: float

    @property
    def temporaries(self) -> float:
        return self.gradients + self.activations


def list_weights(model: schema.Model) -> list[Weight]:
    """Return the weights of a model, as the model declares them."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: transformer.init_params(model, 0)))
    names = jax.tree.leaves(transformer.param_axes(model), is_leaf=mesh.is_axis_names)
    return [
        Weight(math.prod(leaf.shape), axes, leaf.shape)
        for leaf, axes in zip(leaves, names, strict=True)
    ]


@functools.lru_cache(maxsize=64)
def _cached_weights(fields: tuple) -> list[Weight]:
    """Return the weights of a model. Many runs of a sweep have equal models."""
    return list_weights(schema.Model(*fields))


def estimate_memory(
    run: schema.Run,
    n_devices: int,
    platform: str,
    weights: list[Weight] | None = None,
    capability: str = "",
) -> MemoryEstimate:
    """Estimate the memory of one train step on each of n_devices.

    platform: cpu, gpu or tpu. weights: see `list_weights`, None computes them. capability: see
    ShardedShapes. Raises ValueError if the mesh of the run does not fit the devices or the sizes of
    the model.
    """
    run = resolve_layout(run, n_devices, platform)
    shapes = ShardedShapes(run, n_devices, platform, capability)
    weights = _cached_weights(dataclasses.astuple(run.model)) if weights is None else weights
    sizes = [FLOAT32 * w.n / shapes.shard_count(*w.names) for w in weights]
    n_gradients = 2 if run.optim.grad_accumulation_steps > 1 else 1
    moments = [optimizer_state_size(run, weight) for weight in weights]
    return MemoryEstimate(
        params=sum(sizes),
        optimizer=sum(n * size for n, size in zip(moments, sizes, strict=True)),
        gradients=n_gradients * sum(sizes),
        activations=activation_bytes(run, shapes, weights),
    )


def resolve_layout(run: schema.Run, n_devices: int, platform: str) -> schema.Run:
    """Return the run with the micro-batches and sharding rules that its devices use.

    A value that the config sets is kept. On CPU, the default of optim.grad_accumulation_steps is
    the smallest power of two for which the activations of a micro-batch need at most
    MAX_ACTIVATION_BYTES per device, or no more than STATE_BYTES per parameter, if there are enough
    rows. The devices of a CPU share the state
    of a model of more than SHARDED_STATE parameters; each of them would have its own copy
    otherwise. On accelerators the memory of devices does not add up, and the defaults are one
    micro-batch and no sharding.
    """
    is_cpu = platform == "cpu" and not run.mesh.deterministic_shards
    if is_cpu and _shares_state(run, n_devices):
        rules = {"embed": ["data", "fsdp"]}
        run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, rules=rules))
    if run.optim.grad_accumulation_steps:
        return run
    run = _set_micro_batches(run, 1)
    if not is_cpu or run.model.n_experts:  # the balance of experts is that of a micro-batch
        return run
    shapes = ShardedShapes(run, n_devices, platform)
    first = batch_size_schedule.BatchSizeSchedule.from_config(run.data).stages[0].batch_size
    n_rows, n = first // shapes.shard_count("batch"), 1
    n_parameters = model_sizes.count_parameters(run.model)["total"] / shapes.shard_count("embed")
    max_bytes = max(MAX_ACTIVATION_BYTES, STATE_BYTES * n_parameters)
    while n_rows % (2 * n) == 0 and activation_bytes(run, shapes, []) > max_bytes:
        n *= 2
        run = _set_micro_batches(run, n)
        shapes = ShardedShapes(run, n_devices, platform)
    return run


def _shares_state(run: schema.Run, n_devices: int) -> bool:
    """Return True if the devices of a CPU share the state of a run with the default mesh."""
    is_default = run.mesh == schema.Mesh(deterministic_kernels=run.mesh.deterministic_kernels)
    is_large = model_sizes.count_parameters(run.model)["total"] > SHARDED_STATE
    return is_default and is_large and run.model.d_model % n_devices == 0


def _set_micro_batches(run: schema.Run, n: int) -> schema.Run:
    """Return the run with n micro-batches per step."""
    optim = dataclasses.replace(run.optim, grad_accumulation_steps=n)
    return dataclasses.replace(run, optim=optim)


def check_memory(run: schema.Run, n_devices: int, platform: str, available_bytes: float) -> None:
    """Check that a train step can fit into the memory of a device, unless check_memory is False.

    available_bytes: of one device. The check compiles nothing, and takes no longer for huge shapes.
    Raises ConfigError with the estimate, the memory and remedies.
    """
    if not run.check_memory:
        return
    # The smallest share of the parameters comes first: huge shapes cannot be traced.
    total = FLOAT32 * model_sizes.count_parameters(run.model)["total"]
    if total / n_devices > available_bytes:
        problem = f"the parameters alone need {_format_gib(total / n_devices)}"
        _reject_size(run, problem, n_devices, platform, available_bytes)
    estimate = estimate_memory(run, n_devices, platform)
    has_frozen = bool(run.optim.frozen or run.model.lora_rank)
    state = estimate.params + (0 if has_frozen else estimate.optimizer)
    temporaries = estimate.activations if has_frozen else estimate.temporaries
    if state + temporaries / TEMPORARIES_FACTOR > available_bytes:
        problem = (
            f"a step needs about {_format_gib(state + temporaries)} (parameters"
            f" {_format_gib(estimate.params)}, optimizer {_format_gib(state - estimate.params)},"
            f" temporaries {_format_gib(temporaries)})"
        )
        _reject_size(run, problem, n_devices, platform, available_bytes)


def _reject_size(
    run: schema.Run, problem: str, n_devices: int, platform: str, available_bytes: float
) -> None:
    """Raise ConfigError for a run that does not fit into the memory of a device."""
    raise schema.ConfigError(
        f"run {run.name}: data.batch_size={run.data.batch_size} x data.seq_len={run.data.seq_len}"
        f" with {model_sizes.count_parameters(run.model)['total']:.3g} parameters: {problem} per"
        f" device, and each of {n_devices} {platform} devices has {_format_gib(available_bytes)}:"
        " use a smaller model or data.batch_size, model.remat='full', larger"
        " optim.grad_accumulation_steps, or more devices in mesh.fsdp; check_memory=False omits"
        " this check"
    )


def _format_gib(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.3g} GiB"


def optimizer_state_size(run: schema.Run, weight: Weight) -> float:
    """Return the optimizer state per element of a weight, in units of a float32 value.

    A first moment in bfloat16 counts as half a value.
    """
    if "balance" in weight.names:  # a router bias, see moe.update_router_biases
        return 0.0
    is_matrix = parametrization.weight_role(weight.names) in parametrization.MATRIX_ROLES
    name = "adamw" if run.optim.name == "muon" and not is_matrix else run.optim.name
    return (0.5 if run.optim.moment_dtype == "bfloat16" else 1) + SECOND_MOMENTS[name]


class ShardedShapes:
    """Sizes of a run's arrays on one of several equal devices.

    n_rows and n_tokens count one device and one micro-batch. capability: compute capability of the
    GPUs of a target, see kernel_table.select_kernels_for.
    """

    def __init__(self, run: schema.Run, n_devices: int, platform: str, capability: str = ""):
        self.attention = kernel_table.select_kernels_for(run, platform, capability).attention
        self.axis_sizes = axis_rules.resolve_mesh_shape(vars(run.mesh), n_devices)
        axis_rules.validate_mesh_shape(schema.flatten(run), self.axis_sizes)
        self.rules, self.platform = axis_rules.merged_axis_rules(run.mesh.rules), platform
        self.value_bytes = 2 if run.model.dtype == "bfloat16" else FLOAT32
        n_chunks = run.optim.grad_accumulation_steps or 1
        self.n_rows = run.data.batch_size / self.shard_count("batch") / n_chunks
        self.n_tokens = self.n_rows * run.data.seq_len / self.shard_count("length")

    def mesh_axes(self, *names: str | None) -> list[str]:
        """Return the mesh axes of size > 1 that shard any of the named array axes.

        names: array axes; None is an axis without a name, which is not sharded.
        """
        used = {axis for name in names if name is not None for axis in self.rules[name]}
        return [a for a in axis_rules.MESH_AXES if a in used and self.axis_sizes[a] > 1]

    def shard_count(self, *names: str | None) -> int:
        """Return the number of shards of an array with the named axes."""
        return math.prod(self.axis_sizes[axis] for axis in self.mesh_axes(*names))

    def gathered_axes(self, weight: Weight) -> list[str]:
        """Return the mesh axes over which a weight is all-gathered before it is used.

        These are the axes that also shard the batch. The axes of experts are excluded: there the
        tokens are sent to the experts instead.
        """
        expert_axes = self.mesh_axes("experts") if "experts" in weight.names else []
        batch_axes = self.mesh_axes("batch", "length")
        axes = [axis for axis in self.mesh_axes(*weight.names) if axis in batch_axes]
        return [axis for axis in axes if axis not in expert_axes]

    def gathered_size(self, weight: Weight) -> float:
        """Return the number of elements of a weight on one device after the all-gather."""
        gathered = math.prod(self.axis_sizes[axis] for axis in self.gathered_axes(weight))
        return weight.n / self.shard_count(*weight.names) * gathered


def activation_bytes(run: schema.Run, shapes: ShardedShapes, weights: list[Weight]) -> float:
    """Return the bytes of one device in addition to parameters, optimizer state and gradients.

    These are stored activations, the temporaries of one layer, logits and gathered weights.
    """
    model, value_bytes = run.model, shapes.value_bytes
    stored, layer = _layer_bytes(run, shapes)
    logits = 3 * FLOAT32 * shapes.n_tokens * model.vocab_size
    logits = logits / shapes.shard_count("vocab") / model.loss_chunks
    gathered_weights = [w for w in weights if shapes.gathered_axes(w)]
    layer_sizes = [shapes.gathered_size(w) for w in gathered_weights if "layers" in w.names]
    table_sizes = [shapes.gathered_size(w) for w in gathered_weights if "vocab" in w.names]
    gathered = 2 * value_bytes * sum(layer_sizes) / model.n_layers
    gathered += (value_bytes + FLOAT32) * max(table_sizes, default=0)
    if _has_counted_arrays(run, shapes):
        if remat_policies.is_unrolled(model):
            # The gathered weights serve the whole step, those of attention in two layouts.
            attention_weights = [w for w in gathered_weights if "d_head" in w.names]
            twice = gathered_weights + attention_weights
            gathered = FLOAT32 * sum(map(shapes.gathered_size, twice))
        return _counted_bytes(run, shapes) + gathered
    return model.n_layers * stored + layer + max(logits, gathered) + gathered


def _has_counted_arrays(run: schema.Run, shapes: ShardedShapes) -> bool:
    """Return True if `_counted_bytes` counts the arrays of a run: on CPU in float32."""
    model = run.model
    is_float32 = shapes.platform == "cpu" and model.dtype == "float32"
    is_dense = not model.n_experts and not model.attention_softcap
    is_counted = remat_policies.is_unrolled(model) or model.remat == "none"
    return is_float32 and is_dense and is_counted


def _counted_bytes(run: schema.Run, shapes: ShardedShapes) -> float:
    """Return the bytes of the activations of one device that XLA needs on CPU.

    The arrays were counted in the schedules of compiled steps. Most memory is in use at the
    gradient of the loss, or in the backward pass of the last MLP. Without model.remat, XLA computes
    transposed inputs of weight gradients in the forward pass, and stores them. A loop copies the
    arrays of one layer.
    """
    model, n_tokens, is_stored = run.model, shapes.n_tokens, run.model.remat == "none"
    is_loop = not remat_policies.is_unrolled(model)
    n_blocks, has_norm = model.attention_query_blocks, model.qk_norm
    stream = n_tokens * model.d_model
    heads = n_tokens * model.n_heads * model.d_head / shapes.shard_count("heads")
    keys = n_tokens * model.n_kv_heads * model.d_head / shapes.shard_count("kv_heads")
    hidden = n_tokens * model.d_ff / shapes.shard_count("mlp")
    n_up = 2 if model_sizes.is_gated(model) else 1
    logits = n_tokens * model.vocab_size / shapes.shard_count("vocab") / model.loss_chunks
    stored = n_tokens * stored_attention_scores(run, shapes)
    stored += n_up * hidden
    if is_stored:
        # Inputs of both branches, and their transposed norms. Queries and keys are stored before
        # their norm and after their rotation. Each block of queries has a copy of its keys and
        # values.
        stored += 4 * stream + (4 if has_norm else 3) * heads
        stored += (n_blocks + (2 if has_norm else 1)) * keys
    else:
        stored += 2 * stream + 2 * heads + 2 * keys
    last = max(2 * logits + 5 * stream, 4 * hidden + 7 * stream)
    return FLOAT32 * ((model.n_layers + is_loop) * stored + last)


def _layer_bytes(run: schema.Run, shapes: ShardedShapes) -> tuple[float, float]:
    """Return the bytes that a layer stores for the backward pass, and those that it needs at once.

    Both numbers count one device.
    """
    model, value_bytes, n_tokens = run.model, shapes.value_bytes, shapes.n_tokens
    stream = n_tokens * model.d_model
    heads = n_tokens * model.n_heads * model.d_head / shapes.shard_count("heads")
    keys = n_tokens * 2 * model.n_kv_heads * model.d_head / shapes.shard_count("kv_heads")
    hidden = n_tokens * mlp_width(model) / shapes.shard_count("mlp")
    scores = n_tokens * stored_attention_scores(run, shapes)
    n_up = 2 if model_sizes.is_gated(model) else 1  # up projections
    layer = value_bytes * (4 * stream + 3 * heads + 2 * keys + 2 * n_up * hidden)
    layer += (2 * FLOAT32 + value_bytes) * scores
    if shapes.attention.has_dense_mask:
        layer += 2 * value_bytes * n_tokens * run.data.seq_len  # the mask and its gradient
    # Norms, rotary embeddings and activation functions are computed in float32.
    layer += FLOAT32 * (2 * stream + 2 * heads + keys + hidden)
    is_moe = bool(model.n_experts)
    width = model_sizes.expert_width(model) / shapes.shard_count("mlp") if is_moe else 0
    dispatched = value_bytes * dispatched_tokens(run, shapes)
    layer += dispatched * (4 * model.d_model + 3 * width)
    if model.remat == "none":
        return layer, layer
    up = value_bytes * hidden + dispatched * width
    sizes = {
        "query": value_bytes * heads,
        "key": value_bytes * keys / 2,
        "value": value_bytes * keys / 2,
        "attention_output": value_bytes * heads,
        "attention_projection": value_bytes * stream,
        "up": up,
        "gate": up * (n_up - 1),
        "mlp_output": value_bytes * stream + dispatched * model.d_model,
        "attention_scores": value_bytes * scores,
    }
    saved = remat_policies.POLICIES[model.remat].saved
    return value_bytes * stream + sum(sizes[name] for name in saved), layer


def stored_attention_scores(run: schema.Run, shapes: ShardedShapes) -> float:
    """Return the attention scores per token and layer that one device stores in its memory.

    The result is 0 with a fused kernel of the target, which stores no scores.
    """
    if shapes.attention.name != "plain":
        return 0.0
    n_scores = run.data.seq_len * run.model.n_heads / shapes.shard_count("heads")
    if run.model.attention_softcap:
        n_scores *= 4 / 3  # the backward pass needs the tanh besides three other arrays
    return n_scores * causal_score_fraction(run.model, run.data.seq_len)


def causal_score_fraction(model: schema.Model, seq_len: int) -> float:
    """Return the fraction of seq_len^2 attention scores that is computed, with blocks of queries.

    If all layers have a sliding window, a block of queries skips the keys before its first window.
    """
    n_blocks = model.attention_query_blocks
    if not model.sliding_window or model.full_attention_interval:
        return (n_blocks + 1) / (2 * n_blocks)
    size = seq_len // n_blocks
    starts = range(0, seq_len, size)
    ranges = [attention.key_range(start, size, model.sliding_window) for start in starts]
    return sum(size * (end - first) for first, end in ranges) / seq_len**2


def mlp_width(model: schema.Model) -> float:
    """Return the hidden width of the MLP, or of all experts that process a token."""
    if not model.n_experts:
        return model.d_ff
    n_active = model.experts_per_token + model.n_shared_experts
    return n_active * model_sizes.expert_width(model)


def dispatched_tokens(run: schema.Run, shapes: ShardedShapes) -> float:
    """Return the number of capacity slots of the experts of one device.

    A dropless layer has room for all tokens of its group. The result is 0 without experts.
    """
    model = run.model
    is_dropless = model.dispatch == "dropless"
    n_slots = shapes.shard_count("experts") if is_dropless else model.capacity_factor
    return shapes.n_tokens * model.experts_per_token * n_slots if model.n_experts else 0.0
