"""Bytes, and seconds at best, of a train step on a machine, by arithmetic alone: no compiler.

    guess = estimate(run, hardware.parse_target("tpu:v5e:4x4"), weights(run.model))
    guess.bytes, guess.compute_seconds, guess.memory_seconds, guess.network_seconds

What a device holds is exact. Temporaries are within a factor of 2 of what the compilers of CPU, TPU
and GPU report (experiments/LOG.md); traffic is what the program would move if every matrix product
read and wrote its arrays once and all else were fused into them.
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
MOMENTS = {"adamw": 2, "lion": 1, "muon": 1}  # a weight, float32; muon: of its matrices


@dataclasses.dataclass
class Weight:
    n: int  # numbers
    names: tuple[str | None, ...]  # of its axes
    shape: tuple[int, ...]


@dataclasses.dataclass
class Estimate:
    """Bytes of one device; FLOPs of all; seconds of a step if that part alone counted."""

    params: float
    optimizer: float
    temporaries: float
    flops: float  # executed, recomputation included
    compute_seconds: float  # at the vendor's peak
    memory_seconds: float
    network_seconds: float

    @property
    def bytes(self) -> float:
        return self.params + self.optimizer + self.temporaries


def list_weights(shape: schema.Model) -> list[Weight]:
    """Every weight of a model, as it is declared."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: transformer.init_params(shape, 0)))
    names = jax.tree.leaves(transformer.param_axes(shape), is_leaf=mesh.is_axis_names)
    return [
        Weight(math.prod(leaf.shape), axes, leaf.shape)
        for leaf, axes in zip(leaves, names, strict=True)
    ]


def estimate_step(run: schema.Run, target: hardware.Target, of: list[Weight]) -> Estimate:
    """What a step needs and takes. of: weights(run.model)."""
    here = ShardedShapes(run, target)
    held = FLOAT32 * sum(w.n / here.ways(*w.names) for w in of)
    flops = executed_flops(run)
    return Estimate(
        params=held,
        optimizer=sum(
            optimizer_state_size(run, w) * FLOAT32 * w.n / here.ways(*w.names) for w in of
        ),
        temporaries=activation_bytes(run, here, of),
        flops=flops,
        compute_seconds=flops / target.peak(run.model.dtype),
        memory_seconds=memory_traffic(run, here, of) / target.spec.memory_speed,
        network_seconds=network_traffic(run, here, of),
    )


def optimizer_state_size(run: schema.Run, weight: Weight) -> int:
    """Float32 numbers that the optimizer keeps for each of a weight."""
    is_matrix = parametrization.weight_role(weight.names) in ("hidden", "back")
    name = "adamw" if run.optim.name == "muon" and not is_matrix else run.optim.name
    return MOMENTS[name]


def executed_flops(run: schema.Run) -> float:
    """FLOPs of the matrix products of a step, with what is computed twice, without masked blocks.

    The same as cost.count_step_flops(run), which walks through the program.
    """
    shape, t = run.model, run.data.seq_len
    matrices = flops.flops_per_token(shape, 0)["full"]
    attention = (flops.flops_per_token(shape, t)["full"] - matrices) * causal_score_fraction(shape)
    head = 6 * shape.d_model * shape.vocab_size
    per_token = matrices - head
    if shape.remat == "full":  # all but each layer's last product, of which nothing depends
        per_token *= 4 / 3
        per_token -= 2 * shape.n_layers * shape.d_model * mlp_width(shape)
    if shape.n_experts and shape.dispatch == "capacity":  # places are computed, empty or not
        per_token += 18 * shape.n_layers * shape.d_model * padded_expert_width(shape)
    per_token += head * (4 / 3 if shape.loss_chunks > 1 else 1)
    per_token += attention * (1 if shape.remat == "none" else 4 / 3)
    return per_token * run.data.batch_size * t


def causal_score_fraction(shape: schema.Model) -> float:
    """Share of all scores that blocks of queries leave to compute."""
    return (shape.attention_query_blocks + 1) / (2 * shape.attention_query_blocks)


class ShardedShapes:
    """How a run's arrays lie on a target: ways they are split, and groups that talk."""

    def __init__(self, run: schema.Run, target: hardware.Target):
        self.sizes = axis_rules.resolve_mesh_shape(vars(run.mesh), target.n_devices)
        axis_rules.validate_mesh_shape(schema.flatten(run), self.sizes)
        self.rules, self.target = axis_rules.merged_axis_rules(run.mesh.rules), target
        self.n_bytes = 2 if run.model.dtype == "bfloat16" else FLOAT32
        self.rows = run.data.batch_size / self.ways("batch") / run.optim.grad_accumulation_steps
        self.tokens = self.rows * run.data.seq_len / self.ways("length")  # of a piece, a device

    def axes(self, *names: str | None) -> list[str]:
        """Mesh axes of more than one device that split any of these."""
        used = {axis for name in names if name is not None for axis in self.rules[name]}
        return [axis for axis in axis_rules.MESH_AXES if axis in used and self.sizes[axis] > 1]

    def ways(self, *names: str | None) -> int:
        return math.prod(self.sizes[axis] for axis in self.axes(*names))

    def gathered(self, weight: Weight) -> list[str]:
        """Axes over which a weight is brought together for use: those that split the batch too.

        Not those of its experts: there the tokens travel.
        """
        kept = self.axes("experts")
        split = [a for a in self.axes(*weight.names) if a in self.axes("batch", "length")]
        return [axis for axis in split if not ("experts" in weight.names and axis in kept)]

    def whole(self, weight: Weight) -> float:
        """Numbers of a weight on one device while it is used."""
        again = math.prod(self.sizes[axis] for axis in self.gathered(weight))
        return weight.n / self.ways(*weight.names) * again

    def seconds(self, n_bytes: float, axes: list[str]) -> float:
        """To pass n_bytes, of which each device has its share, round a group: all but the share."""
        size = math.prod(self.sizes[axis] for axis in axes)
        if size == 1:
            return 0.0
        steps = []
        for axis in axis_rules.MESH_AXES:
            inner = math.prod(
                self.sizes[a] for a in axis_rules.MESH_AXES[axis_rules.MESH_AXES.index(axis) + 1 :]
            )
            steps.append([inner * i for i in range(self.sizes[axis] if axis in axes else 1)])
        places = [hardware.place(self.target, sum(at)) for at in itertools.product(*steps)]
        return n_bytes * (size - 1) / size / hardware.link_bandwidth(self.target, places)


def activation_bytes(run: schema.Run, here: ShardedShapes, of: list[Weight]) -> float:
    """Bytes on top of the state: gradients, kept activations, one layer at work, logits."""
    shape, a = run.model, here.n_bytes
    gradients = FLOAT32 * sum(w.n / here.ways(*w.names) for w in of)
    gradients *= 2 if run.optim.grad_accumulation_steps > 1 else 1
    stream = here.tokens * shape.d_model
    heads = here.tokens * shape.n_heads * shape.d_head / here.ways("heads")
    keys = here.tokens * 2 * shape.n_kv_heads * shape.d_head / here.ways("kv_heads")
    inner = here.tokens * mlp_width(shape) / here.ways("mlp")
    scores = here.tokens * stored_attention_scores(run, here)
    ups = 2 if shape.mlp == "gated" else 1  # products that widen
    layer = a * (4 * stream + 3 * heads + 2 * keys + 2 * ups * inner) + (2 * FLOAT32 + a) * scores
    layer += FLOAT32 * (2 * stream + 2 * heads + keys + inner)  # norms, rotation, silu
    width = model_sizes.expert_width(shape) / here.ways("mlp") if shape.n_experts else 0
    placed = a * dispatched_tokens(run, here)
    layer += placed * (4 * shape.d_model + 3 * width)
    kept = {
        "full": a * stream,
        "dots": a * (3 * stream + heads + keys + ups * inner)
        + placed * (shape.d_model + 2 * width),
        "none": layer,
    }[shape.remat]
    logits = 3 * FLOAT32 * here.tokens * shape.vocab_size / here.ways("vocab") / shape.loss_chunks
    used = [here.whole(w) for w in of if here.gathered(w) and "layers" in w.names]
    table = [here.whole(w) for w in of if here.gathered(w) and "vocab" in w.names]
    brought = 2 * a * sum(used) / shape.n_layers + (a + FLOAT32) * max(table, default=0)
    return gradients + shape.n_layers * kept + layer + max(logits, brought) + brought


def memory_traffic(run: schema.Run, here: ShardedShapes, of: list[Weight]) -> float:
    """Bytes a step between a device and its memory."""
    shape, a = run.model, here.n_bytes
    passes = {"none": 3, "dots": 3, "full": 4}[shape.remat]  # forward; backward counts twice
    tokens = here.tokens * run.optim.grad_accumulation_steps
    width = 8 * shape.d_model
    width += 4 * (shape.n_heads + shape.n_kv_heads) * shape.d_head / here.ways("heads")
    width += (6 if shape.mlp == "gated" else 4) * mlp_width(shape) / here.ways("mlp")
    per_layer = passes * (a * width + (3 * FLOAT32 + 2 * a) * stored_attention_scores(run, here))
    logits = 6 * FLOAT32 * shape.vocab_size / here.ways("vocab")
    update = sum(
        2 * (2 + optimizer_state_size(run, w)) * FLOAT32 * w.n / here.ways(*w.names) for w in of
    )
    used = passes * a * run.optim.grad_accumulation_steps * sum(here.whole(w) for w in of)
    return tokens * (shape.n_layers * per_layer + logits) + used + update


def network_traffic(run: schema.Run, here: ShardedShapes, of: list[Weight]) -> float:
    """Seconds a step of all that travels, one after another."""
    shape, a, pieces = run.model, here.n_bytes, run.optim.grad_accumulation_steps
    again = shape.remat == "full"
    seconds = 0.0
    for w in of:
        to_batch = here.axes("batch", "length")
        summed = [axis for axis in to_batch if axis not in here.axes(*w.names)]
        # Brought together forward and backward, their gradients summed and shared out again.
        seconds += pieces * (3 + again) * here.seconds(a * here.whole(w), here.gathered(w))
        local = FLOAT32 * w.n / here.ways(*w.names)
        seconds += pieces * 2 * here.seconds(local, summed)
    stream = a * here.tokens * pieces * shape.d_model
    sums = (4 + again) * shape.n_layers  # partial sums, out of attention and MLP, both ways
    seconds += sums * 2 * here.seconds(stream, here.axes("heads", "mlp"))
    seconds += 2 * 2 * here.seconds(stream, here.axes("vocab"))
    keys = 2 * a * here.tokens * pieces * shape.n_kv_heads * shape.d_head
    keys *= here.ways("length") / here.ways("kv_heads")
    seconds += (3 + again) * shape.n_layers * here.seconds(keys, here.axes("length"))
    if shape.n_experts:  # a group sees each other's tokens, and shares out what experts said
        together = stream * here.ways("experts")
        seconds += (4 + 2 * again) * shape.n_layers * here.seconds(together, here.axes("experts"))
    return seconds


def stored_attention_scores(run: schema.Run, here: ShardedShapes) -> float:
    """Scores of a token and a layer that a device's memory holds: those of plain attention alone.

    A kernel of the machine keeps them on the chip.
    """
    if attention.select_backend_for(run, here.target.platform) != "plain":
        return 0.0
    return (
        run.data.seq_len * run.model.n_heads / here.ways("heads") * causal_score_fraction(run.model)
    )


def mlp_width(shape: schema.Model) -> float:
    """Width of all MLPs that a token passes."""
    if not shape.n_experts:
        return shape.d_ff
    passed = shape.experts_per_token + shape.n_shared_experts
    return passed * model_sizes.expert_width(shape)


def padded_expert_width(shape: schema.Model) -> float:
    """Width, for each token, of the places in its experts' boxes that stay empty."""
    return (shape.capacity_factor - 1) * shape.experts_per_token * model_sizes.expert_width(shape)


def dispatched_tokens(run: schema.Run, here: ShardedShapes) -> float:
    """Rows that the experts of a device have room for: all that a group could send if dropless."""
    shape = run.model
    room = here.ways("experts") if shape.dispatch == "dropless" else shape.capacity_factor
    return here.tokens * shape.experts_per_token * room if shape.n_experts else 0.0
