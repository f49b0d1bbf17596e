"""Analytic memory and time of a train step on target hardware, without a compiler.

    weights = memory_estimate.list_weights(run.model)
    estimate = roofline.estimate_step(run, hardware.parse_target("tpu:v5e:4x4"), weights)
    estimate.bytes, estimate.compute_seconds, estimate.memory_seconds, estimate.network_seconds

The memory is that of lm/model/memory_estimate.py. Memory traffic assumes that each matrix product
reads and writes its arrays once, and that all other operations are fused into the products.
"""

import dataclasses
import itertools
import math

from lm.config import axis_rules, flops, model_sizes, schema
from lm.model import inference_memory, memory_estimate
from lm.model.kernels import kernel_table, remat_policies
from lm.sweeps.planning import evaluation_program, hardware

# Seconds of a call from Python, seconds per kernel, kernels of a layer in both passes, and kernels
# of embedding, loss and optimizer. The values are assumed, not measured: a CUDA graph needs 2 to 3
# microseconds per kernel. The MFU of cost.ASSUMED_MFU contains the calls of a CPU.
LAUNCHES = {
    #       call  kernel  layer others
    "cpu": (0.0,    0.0,     0,     0),
    "gpu": (100e-6, 2.5e-6, 60,    60),
    "tpu": (100e-6, 1.0e-6, 40,    40),
}  # fmt: skip


@dataclasses.dataclass
class Estimate:
    """Memory of one device in bytes, and the time of a step if only one resource limited it."""

    params: float
    optimizer: float
    temporaries: float  # of the train step
    flops: float  # executed by all devices, including recomputation
    compute_seconds: float  # at the vendor's peak
    memory_seconds: float
    network_seconds: float
    launch_seconds: float = 0.0  # see launch_seconds
    evaluation: float = 0.0  # temporaries of an evaluation during training; 0 without evaluations
    generation: float = 0.0  # temporaries of generated answers; 0 if no task generates

    @property
    def bytes(self) -> float:
        """Return the memory of the largest of the train, evaluation and generation programs."""
        largest = max(self.temporaries, self.evaluation, self.generation)
        return self.params + self.optimizer + largest


def estimate_step(
    run: schema.Run, target: hardware.Target, weights: list[memory_estimate.Weight]
) -> Estimate:
    """Estimate memory and time of one train step.

    weights: see memory_estimate.list_weights.
    Raises ValueError if the mesh of the run does not fit the devices or the sizes of the model.
    """
    run = memory_estimate.resolve_layout(run, target.n_devices, target.platform)
    shapes = TargetShapes(run, target)
    platform, capability = target.platform, target.compute_capability
    flops = executed_flops(run, platform, capability)
    memory = memory_estimate.estimate_memory(run, target.n_devices, platform, weights, capability)
    inference = inference_memory.inference_shapes(run, target.n_devices, platform, capability)
    is_evaluated = inference_memory.has_evaluations(run)
    n_prompts = evaluation_program.count_prompts(run)
    answer_bytes = (
        inference_memory.generation_bytes(run, inference, n_prompts) if n_prompts else 0.0
    )
    return Estimate(
        params=memory.params,
        optimizer=memory.optimizer,
        temporaries=memory.temporaries,
        flops=flops,
        compute_seconds=flops / target.peak(run.model.dtype),
        memory_seconds=memory_traffic(run, shapes, weights) / target.spec.memory_speed,
        network_seconds=network_seconds(run, shapes, weights),
        launch_seconds=launch_seconds(run, target.platform),
        evaluation=inference_memory.scoring_bytes(run, inference) if is_evaluated else 0.0,
        generation=answer_bytes,
    )


def launch_seconds(run: schema.Run, platform: str) -> float:
    """Return the seconds that a device needs to start the kernels of one train step.

    A step is not shorter, however small its arrays are. platform: a key of LAUNCHES.
    """
    call, kernel, per_layer, others = LAUNCHES.get(platform, LAUNCHES["gpu"])
    n_layers = run.model.n_layers * (4 / 3 if run.model.remat == "full" else 1)
    n_kernels = (run.optim.grad_accumulation_steps or 1) * per_layer * n_layers + others
    return call + kernel * n_kernels


def executed_flops(run: schema.Run, platform: str = "cpu", capability: str = "") -> float:
    """Return the FLOPs of all matrix products of a step, without masked blocks of scores.

    platform, capability: see kernel_table.select_kernels_for.
    Products that are computed again in the backward pass count again. The result equals
    cost.count_step_flops(run), which counts the products of the program that is traced for CPU.
    """
    model, seq_len = run.model, run.data.seq_len
    matrices = flops.flops_per_token(model, 0)["full"]
    scores = 12 * model.n_layers * model.n_heads * model.d_head * seq_len
    scores *= memory_estimate.causal_score_fraction(model, seq_len)
    head = 6 * model.d_model * model.vocab_size
    per_token = matrices - head
    if model.n_experts and model.dispatch == "capacity":  # empty slots are computed as well
        per_token += 18 * model.n_layers * model.d_model * padded_expert_width(model)
    per_token += head * (4 / 3 if model.loss_chunks > 1 else 1)
    attention = kernel_table.select_kernels_for(run, platform, capability).attention.name
    per_token += scores + recomputed_flops(run, scores / 6, attention)
    return per_token * run.data.batch_size * seq_len


def recomputed_flops(run: schema.Run, score_product: float, attention: str) -> float:
    """Return the FLOPs per token of the products that the backward pass computes again.

    score_product: FLOPs per token of one of the two products of attention, in all layers.
    attention: name of the kernel.
    """
    model = run.model
    if model.remat == "none":
        return 0.0
    available = remat_policies.POLICIES[model.remat].available
    heads, keys = (n * model.d_head for n in (model.n_heads, model.n_kv_heads))
    width, routed = memory_estimate.mlp_width(model), 0.0
    if model.n_experts:
        routed = model.experts_per_token * model_sizes.expert_width(model)
        padding = padded_expert_width(model) if model.dispatch == "capacity" else 0.0
        width, routed = width + padding, routed + padding
    widths = {"query": heads, "key": keys, "value": keys, "attention_projection": heads}
    widths |= {"up": width, "gate": width if model_sizes.is_gated(model) or model.n_experts else 0}
    # The gradient of the router needs the output of each expert. No gradient needs that of an MLP.
    widths |= {"mlp_output": routed, "router": model.n_experts}
    products = sum(w for name, w in widths.items() if name not in available)
    n_score_products = 1 if "attention_output" in available else 2
    has_statistics = attention != "plain" and "attention_output" in available
    if has_statistics or "attention_scores" in available:
        n_score_products = 0  # the softmax statistics are stored with the output
    return 2 * model.n_layers * model.d_model * products + n_score_products * score_product


class TargetShapes(memory_estimate.ShardedShapes):
    """Sizes of a run's arrays on one device of a target, and the speed of its collectives."""

    def __init__(self, run: schema.Run, target: hardware.Target):
        super().__init__(run, target.n_devices, target.platform, target.compute_capability)
        axis_rules.validate_slices(self.axis_sizes, target.n_slices, target.platform)
        self.target = target

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


def memory_traffic(
    run: schema.Run, shapes: TargetShapes, weights: list[memory_estimate.Weight]
) -> float:
    """Return the bytes per step that one device reads from and writes to its memory."""
    model, value_bytes = run.model, shapes.value_bytes
    n_chunks = run.optim.grad_accumulation_steps
    # The forward pass counts once and the backward pass twice.
    n_passes = 3 + (model.remat == "full")
    width = 8 * model.d_model
    width += 4 * (model.n_heads + model.n_kv_heads) * model.d_head / shapes.shard_count("heads")
    width += (
        (6 if model_sizes.is_gated(model) else 4)
        * memory_estimate.mlp_width(model)
        / shapes.shard_count("mlp")
    )
    score_bytes = (
        3 * memory_estimate.FLOAT32 + 2 * value_bytes
    ) * memory_estimate.stored_attention_scores(run, shapes)
    per_layer = n_passes * (value_bytes * width + score_bytes)
    logits = 6 * memory_estimate.FLOAT32 * model.vocab_size / shapes.shard_count("vocab")
    update = sum(
        2
        * (2 + memory_estimate.optimizer_state_size(run, w))
        * memory_estimate.FLOAT32
        * w.n
        / shapes.shard_count(*w.names)
        for w in weights
    )
    weight_reads = n_passes * value_bytes * n_chunks * sum(map(shapes.gathered_size, weights))
    n_tokens = shapes.n_tokens * n_chunks
    return n_tokens * (model.n_layers * per_layer + logits) + weight_reads + update


def network_seconds(
    run: schema.Run, shapes: TargetShapes, weights: list[memory_estimate.Weight]
) -> float:
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
        local_bytes = memory_estimate.FLOAT32 * w.n / shapes.shard_count(*w.names)
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


def padded_expert_width(model: schema.Model) -> float:
    """Return the hidden width per token of the empty capacity slots of experts."""
    n_empty = (model.capacity_factor - 1) * model.experts_per_token
    return n_empty * model_sizes.expert_width(model)
