"""Analytic memory and time of a train step on target hardware, without a compiler.

    weights = roofline.list_weights(run.model)
    estimate = roofline.estimate_step(run, hardware.parse_target("tpu:v5e:4x4"), weights)
    estimate.bytes, estimate.compute_seconds, estimate.memory_seconds, estimate.network_seconds

The size of parameters and optimizer state is exact. Temporaries are within a factor of 2 of the
values that the compilers of CPU, TPU and GPU report (experiments/LOG.md). Memory traffic assumes
that each matrix product reads and writes its arrays once, and that all other operations are fused
into the products.
"""

import dataclasses
import itertools
import math

import jax

from lm.config import axis_rules, flops, model_sizes, schema
from lm.model import attention, parametrization, transformer
from lm.parallel import mesh
from lm.sweeps.planning import hardware

FLOAT32 = 4  # bytes
MOMENTS = {"adamw": 2, "lion": 1, "muon": 1}  # float32 numbers per weight; muon: of a matrix


@dataclasses.dataclass
class Weight:
    """A weight of the model."""

    n: int  # number of elements
    names: tuple[str | None, ...]  # of its axes
    shape: tuple[int, ...]


@dataclasses.dataclass
class Estimate:
    """Memory of one device in bytes, and the time of a step if only one resource limited it."""

    params: float
    optimizer: float
    temporaries: float
    flops: float  # executed by all devices, including recomputation
    compute_seconds: float  # at the vendor's peak
    memory_seconds: float
    network_seconds: float

    @property
    def bytes(self) -> float:
        return self.params + self.optimizer + self.temporaries


def list_weights(model: schema.Model) -> list[Weight]:
    """Return the weights of a model, as the model declares them."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: transformer.init_params(model, 0)))
    names = jax.tree.leaves(transformer.param_axes(model), is_leaf=mesh.is_axis_names)
    return [
        Weight(math.prod(leaf.shape), axes, leaf.shape)
        for leaf, axes in zip(leaves, names, strict=True)
    ]


def estimate_step(run: schema.Run, target: hardware.Target, weights: list[Weight]) -> Estimate:
    """Estimate memory and time of one train step. weights: see `list_weights`.

    Raises ValueError if the mesh of the run does not fit the devices or the sizes of the model.
    """
    shapes = ShardedShapes(run, target)
    flops = executed_flops(run)
    return Estimate(
        params=FLOAT32 * sum(w.n / shapes.shard_count(*w.names) for w in weights),
        optimizer=sum(
            optimizer_state_size(run, w) * FLOAT32 * w.n / shapes.shard_count(*w.names)
            for w in weights
        ),
        temporaries=activation_bytes(run, shapes, weights),
        flops=flops,
        compute_seconds=flops / target.peak(run.model.dtype),
        memory_seconds=memory_traffic(run, shapes, weights) / target.spec.memory_speed,
        network_seconds=network_seconds(run, shapes, weights),
    )


def optimizer_state_size(run: schema.Run, weight: Weight) -> int:
    """Return the number of float32 values that the optimizer stores per element of a weight."""
    is_matrix = parametrization.weight_role(weight.names) in ("hidden", "back")
    name = "adamw" if run.optim.name == "muon" and not is_matrix else run.optim.name
    return MOMENTS[name]


def executed_flops(run: schema.Run) -> float:
    """Return the FLOPs of all matrix products of a step, without masked blocks of scores.

    Products that are computed again in the backward pass count again. The result equals
    cost.count_step_flops(run), which counts the products of the traced program.
    """
    model, seq_len = run.model, run.data.seq_len
    matrices = flops.flops_per_token(model, 0)["full"]
    scores = flops.flops_per_token(model, seq_len)["full"] - matrices
    scores *= causal_score_fraction(model)
    head = 6 * model.d_model * model.vocab_size
    per_token = matrices - head
    if model.remat == "full":
        # The last product of a layer is not computed again, because no gradient depends on it.
        per_token *= 4 / 3
        per_token -= 2 * model.n_layers * model.d_model * mlp_width(model)
    if model.n_experts and model.dispatch == "capacity":  # empty slots are computed as well
        per_token += 18 * model.n_layers * model.d_model * padded_expert_width(model)
    per_token += head * (4 / 3 if model.loss_chunks > 1 else 1)
    per_token += scores * (1 if model.remat == "none" else 4 / 3)
    return per_token * run.data.batch_size * seq_len


def causal_score_fraction(model: schema.Model) -> float:
    """Return the fraction of attention scores that is computed, with blocks of queries."""
    return (model.attention_query_blocks + 1) / (2 * model.attention_query_blocks)


class ShardedShapes:
    """Sizes of a run's arrays on one device of a target, and the speed of its collectives.

    n_rows and n_tokens count one device and one micro-batch.
    """

    def __init__(self, run: schema.Run, target: hardware.Target):
        self.axis_sizes = axis_rules.resolve_mesh_shape(vars(run.mesh), target.n_devices)
        axis_rules.validate_mesh_shape(schema.flatten(run), self.axis_sizes)
        self.rules, self.target = axis_rules.merged_axis_rules(run.mesh.rules), target
        self.value_bytes = 2 if run.model.dtype == "bfloat16" else FLOAT32
        n_chunks = run.optim.grad_accumulation_steps
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

    def ring_seconds(self, n_bytes: float, axes: list[str]) -> float:
        """Return the seconds of an all-gather of n_bytes in total over mesh axes.

        Each device of the group has an equal share and sends all other shares once.
        """
        size = math.prod(self.axis_sizes[axis] for axis in axes)
        if size == 1:
            return 0.0
        offsets_by_axis = []
        for i, axis in enumerate(axis_rules.MESH_AXES):
            stride = math.prod(self.axis_sizes[a] for a in axis_rules.MESH_AXES[i + 1 :])
            n_along_axis = self.axis_sizes[axis] if axis in axes else 1
            offsets_by_axis.append([stride * position for position in range(n_along_axis)])
        coordinates = [
            hardware.device_coordinates(self.target, sum(offsets))
            for offsets in itertools.product(*offsets_by_axis)
        ]
        return n_bytes * (size - 1) / size / hardware.link_bandwidth(self.target, coordinates)


def activation_bytes(run: schema.Run, shapes: ShardedShapes, weights: list[Weight]) -> float:
    """Return the bytes of one device in addition to parameters and optimizer state.

    These are gradients, stored activations, the temporaries of one layer, logits and gathered
    weights.
    """
    model, value_bytes = run.model, shapes.value_bytes
    gradients = FLOAT32 * sum(w.n / shapes.shard_count(*w.names) for w in weights)
    gradients *= 2 if run.optim.grad_accumulation_steps > 1 else 1
    stored, layer = _layer_bytes(run, shapes)
    logits = 3 * FLOAT32 * shapes.n_tokens * model.vocab_size
    logits = logits / shapes.shard_count("vocab") / model.loss_chunks
    gathered_weights = [w for w in weights if shapes.gathered_axes(w)]
    layer_sizes = [shapes.gathered_size(w) for w in gathered_weights if "layers" in w.names]
    table_sizes = [shapes.gathered_size(w) for w in gathered_weights if "vocab" in w.names]
    gathered = 2 * value_bytes * sum(layer_sizes) / model.n_layers
    gathered += (value_bytes + FLOAT32) * max(table_sizes, default=0)
    return gradients + model.n_layers * stored + layer + max(logits, gathered) + gathered


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
    n_up = 2 if model.mlp == "gated" else 1  # up projections
    layer = value_bytes * (4 * stream + 3 * heads + 2 * keys + 2 * n_up * hidden)
    layer += (2 * FLOAT32 + value_bytes) * scores
    # Norms, rotary embeddings and activation functions are computed in float32.
    layer += FLOAT32 * (2 * stream + 2 * heads + keys + hidden)
    is_moe = bool(model.n_experts)
    width = model_sizes.expert_width(model) / shapes.shard_count("mlp") if is_moe else 0
    dispatched = value_bytes * dispatched_tokens(run, shapes)
    layer += dispatched * (4 * model.d_model + 3 * width)
    stored = {
        "full": value_bytes * stream,
        "dots": value_bytes * (3 * stream + heads + keys + n_up * hidden)
        + dispatched * (model.d_model + 2 * width),
        "none": layer,
    }[model.remat]
    return stored, layer


def memory_traffic(run: schema.Run, shapes: ShardedShapes, weights: list[Weight]) -> float:
    """Return the bytes per step that one device reads from and writes to its memory."""
    model, value_bytes = run.model, shapes.value_bytes
    n_chunks = run.optim.grad_accumulation_steps
    # The forward pass counts once and the backward pass twice.
    n_passes = {"none": 3, "dots": 3, "full": 4}[model.remat]
    width = 8 * model.d_model
    width += 4 * (model.n_heads + model.n_kv_heads) * model.d_head / shapes.shard_count("heads")
    width += (6 if model.mlp == "gated" else 4) * mlp_width(model) / shapes.shard_count("mlp")
    score_bytes = (3 * FLOAT32 + 2 * value_bytes) * stored_attention_scores(run, shapes)
    per_layer = n_passes * (value_bytes * width + score_bytes)
    logits = 6 * FLOAT32 * model.vocab_size / shapes.shard_count("vocab")
    update = sum(
        2 * (2 + optimizer_state_size(run, w)) * FLOAT32 * w.n / shapes.shard_count(*w.names)
        for w in weights
    )
    weight_reads = n_passes * value_bytes * n_chunks * sum(map(shapes.gathered_size, weights))
    n_tokens = shapes.n_tokens * n_chunks
    return n_tokens * (model.n_layers * per_layer + logits) + weight_reads + update


def network_seconds(run: schema.Run, shapes: ShardedShapes, weights: list[Weight]) -> float:
    """Return the seconds per step of all collectives, executed one after another."""
    model, value_bytes = run.model, shapes.value_bytes
    n_chunks = run.optim.grad_accumulation_steps
    is_recomputed = model.remat == "full"
    seconds = 0.0
    batch_axes = shapes.mesh_axes("batch", "length")
    for w in weights:
        reduced_axes = [axis for axis in batch_axes if axis not in shapes.mesh_axes(*w.names)]
        # Weights are all-gathered in both passes, and their gradients are reduce-scattered.
        gathered_bytes = value_bytes * shapes.gathered_size(w)
        n_gathers = n_chunks * (3 + is_recomputed)
        seconds += n_gathers * shapes.ring_seconds(gathered_bytes, shapes.gathered_axes(w))
        local_bytes = FLOAT32 * w.n / shapes.shard_count(*w.names)
        seconds += n_chunks * 2 * shapes.ring_seconds(local_bytes, reduced_axes)
    stream = value_bytes * shapes.n_tokens * n_chunks * model.d_model
    # Attention and MLP each all-reduce partial sums, in both passes.
    n_sums = (4 + is_recomputed) * model.n_layers
    seconds += n_sums * 2 * shapes.ring_seconds(stream, shapes.mesh_axes("heads", "mlp"))
    seconds += 2 * 2 * shapes.ring_seconds(stream, shapes.mesh_axes("vocab"))
    keys = 2 * value_bytes * shapes.n_tokens * n_chunks * model.n_kv_heads * model.d_head
    keys *= shapes.shard_count("length") / shapes.shard_count("kv_heads")
    n_gathers = (3 + is_recomputed) * model.n_layers
    seconds += n_gathers * shapes.ring_seconds(keys, shapes.mesh_axes("length"))
    if model.n_experts:
        # A group all-gathers its tokens and reduce-scatters the outputs of its experts.
        tokens = stream * shapes.shard_count("experts")
        n_collectives = (4 + 2 * is_recomputed) * model.n_layers
        seconds += n_collectives * shapes.ring_seconds(tokens, shapes.mesh_axes("experts"))
    return seconds


def stored_attention_scores(run: schema.Run, shapes: ShardedShapes) -> float:
    """Return the attention scores per token and layer that one device stores in its memory.

    The result is 0 with a fused kernel of the target, which stores no scores.
    """
    if attention.select_backend_for(run, shapes.target.platform) != "plain":
        return 0.0
    n_scores = run.data.seq_len * run.model.n_heads / shapes.shard_count("heads")
    return n_scores * causal_score_fraction(run.model)


def mlp_width(model: schema.Model) -> float:
    """Return the hidden width of the MLP, or of all experts that process a token."""
    if not model.n_experts:
        return model.d_ff
    n_active = model.experts_per_token + model.n_shared_experts
    return n_active * model_sizes.expert_width(model)


def padded_expert_width(model: schema.Model) -> float:
    """Return the hidden width per token of the empty capacity slots of experts."""
    n_empty = (model.capacity_factor - 1) * model.experts_per_token
    return n_empty * model_sizes.expert_width(model)


def dispatched_tokens(run: schema.Run, shapes: ShardedShapes) -> float:
    """Return the number of capacity slots of the experts of one device.

    A dropless layer has room for all tokens of its group. The result is 0 without experts.
    """
    model = run.model
    is_dropless = model.dispatch == "dropless"
    n_slots = shapes.shard_count("experts") if is_dropless else model.capacity_factor
    return shapes.n_tokens * model.experts_per_token * n_slots if model.n_experts else 0.0
