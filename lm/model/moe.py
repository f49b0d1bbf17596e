"""Mixture of experts: a router selects a few of many small MLPs for every token.

    y_BTD, routing = Experts(model, rngs, rules)(x_BTD)        # replaces layers.MLP
    loss += auxiliary_loss(model, routing)                     # load balance and z-loss, all layers
    params = update_router_biases(model, params, routing)      # load balancing by biases

Tensor names end in their axes: B batch, T time, D d_model, F width of an expert, E experts, K
experts per token, M assignments of a token to an expert (B x T x K), P slots, G pairs of expert and
batch row, C slots per pair.

Each assignment is permuted to a slot of its expert, and the result is permuted back. The two
dispatch methods sort the assignments by expert and differ in the slots of an expert:

    dropless   as many slots as the expert has assignments (grouped_products.py); no drops
    capacity   a fixed number of slots per expert and batch row. Assignments that exceed the
               capacity are dropped, the latest tokens first. Rows do not affect each other.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import model_sizes, schema
from lm.model import layers
from lm.model.kernels import grouped_products, remat_policies
from lm.parallel import mesh


class Experts(nnx.Module):
    """Token-choice routing to the top k of E gated MLPs (Shazeer et al. 2017, arXiv:1701.06538).

    The router is computed in float32. Shared experts process every token (Dai et al. 2024,
    arXiv:2401.06066); they are one MLP of their joint width.
    """

    def __init__(self, model: schema.Model, rngs: nnx.Rngs, rules: mesh.ShardingRules):
        d, e, f = model.d_model, model.n_experts, model_sizes.expert_width(model)
        out = (2 * model.n_layers * f) ** -0.5  # as in layers.MLP
        self.router = layers.weight(rngs, ("embed", "router"), (d, e), d**-0.5)
        self.gate = layers.weight(rngs, ("experts", "embed", "mlp"), (e, d, f), d**-0.5)
        self.up = layers.weight(rngs, ("experts", "embed", "mlp"), (e, d, f), d**-0.5)
        self.down = layers.weight(rngs, ("experts", "mlp", "embed"), (e, f, d), out)
        shared_width = model.n_shared_experts * f
        self.shared = layers.MLP(model, rngs, shared_width, rules) if shared_width else None
        # The bias has no gradient and no optimizer state: `update_router_biases` changes it. It is
        # a parameter because routing needs it and checkpoints must verify it.
        has_bias = model.load_balancing == "bias"
        self.bias = nnx.Param(jnp.zeros(e), out_sharding=("balance",)) if has_bias else None
        self.model, self.rules = model, rules

    def __call__(
        self, x_BTD: jax.Array, is_counted_BT: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the weighted sum of the expert outputs, and the statistics of `route_tokens`."""
        bias_E = None if self.bias is None else self.bias[...]
        weight_BTK, expert_BTK, routing = route_tokens(
            self.model, x_BTD, self.router[...], bias_E, is_counted_BT
        )
        experts = [w[...] for w in (self.gate, self.up, self.down)]
        # Slots are assigned in the order of time, but the positions of split rows are interleaved.
        n_blocks, n_shards = self.model.attention_query_blocks, mesh.shard_count("length")
        inputs = [
            mesh.swap_blocks(x, n_shards, n_blocks, 1) for x in (x_BTD, weight_BTK, expert_BTK)
        ]
        y_BTD = mesh.swap_blocks(
            apply_experts(self.model, self.rules, *inputs, *experts), n_blocks, n_shards, 1
        )
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD), routing


def route_tokens(
    model: schema.Model, x_BTD, router_DE, bias_E=None, is_counted_BT: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, dict]:
    """Return (weight_BTK, expert_BTK, routing).

    weight_BTK: float32 weight of each expert output. expert_BTK: index of each selected expert.
    bias_E is added to the scores that select experts, not to the weights (Wang et al. 2024,
    arXiv:2408.15664, equation 3). routing has float32 statistics:

    load_E     fraction of all assignments to each expert
    balance    E x sum over experts of load x mean score: 1 for an even load, at most E (Fedus et
               al. 2021, arXiv:2101.03961, equation 4); only the scores have a gradient
    z          mean of log(sum(exp(logits)))^2 (Zoph et al. 2022, arXiv:2202.08906, equation 5)
    dropped    fraction of assignments that exceed the capacity

    is_counted_BT: the tokens that the statistics count, which exclude padding; None counts all.
    """
    e, k = model.n_experts, model.experts_per_token
    logits_BTE = jnp.einsum(
        "btd,de->bte", x_BTD.astype(jnp.float32), router_DE, precision=jax.lax.Precision.HIGHEST
    )
    is_softmax = model.router == "softmax"
    score_BTE = jax.nn.softmax(logits_BTE) if is_softmax else jax.nn.sigmoid(logits_BTE)
    selection_BTE = jax.lax.stop_gradient(score_BTE if bias_E is None else score_BTE + bias_E)
    _, expert_BTK = jax.lax.top_k(selection_BTE, k)
    one_hot_BTKE = expert_BTK[..., None] == jnp.arange(e)
    # The product selects scores like a gather, but its gradient is not a scatter.
    weight_BTK = jnp.sum(one_hot_BTKE * score_BTE[:, :, None], axis=-1)
    if model.normalize_expert_weights:
        weight_BTK = weight_BTK / weight_BTK.sum(axis=-1, keepdims=True)
    n_assignments = expert_BTK.size
    if is_counted_BT is not None:
        one_hot_BTKE &= is_counted_BT[:, :, None, None]
        n_assignments = k * jnp.maximum(jnp.sum(is_counted_BT), 1)
    count_BE = jnp.sum(one_hot_BTKE, axis=(1, 2))
    load_E = jnp.sum(count_BE, axis=0) / n_assignments
    share_BTE = score_BTE if is_softmax else score_BTE / score_BTE.sum(axis=-1, keepdims=True)
    n_dropped_BE = jnp.maximum(count_BE - expert_capacity(model, x_BTD.shape[1]), 0)
    z_BT = jax.nn.logsumexp(logits_BTE, axis=-1) ** 2
    routing = {
        "load_E": load_E,
        "balance": e * jnp.sum(load_E * _mean_over_tokens(share_BTE, is_counted_BT)),
        "z": _mean_over_tokens(z_BT, is_counted_BT),
        "dropped": jnp.sum(n_dropped_BE) / n_assignments,
    }
    return weight_BTK, expert_BTK, routing


def _mean_over_tokens(x_BT: jax.Array, is_counted_BT: jax.Array | None) -> jax.Array:
    """Return the mean over rows and positions, the first two axes; 0 if no token is counted."""
    if is_counted_BT is None:
        return x_BT.mean(axis=(0, 1))
    mask_BT = is_counted_BT.reshape(*is_counted_BT.shape, *[1] * (x_BT.ndim - 2))
    total = jnp.sum(jnp.where(mask_BT, x_BT, 0.0), axis=(0, 1))
    return total / jnp.maximum(jnp.sum(is_counted_BT), 1)


def counted_tokens(weights_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """Return True for the tokens that can influence the loss, bool [B, T]: not for padding.

    A token counts if a target at its position, or at a later position of its segment, has a loss
    weight. weights_BT: loss weights of the targets. segments_BT: document numbers.
    """
    n_tokens = weights_BT.shape[1]
    position_BT = jnp.where(weights_BT != 0, jnp.arange(n_tokens), n_tokens)
    next_BT = jax.lax.cummin(position_BT, axis=1, reverse=True)
    if segments_BT is None:
        return next_BT < n_tokens
    next_segment_BT = jnp.take_along_axis(segments_BT, jnp.minimum(next_BT, n_tokens - 1), axis=1)
    return (next_BT < n_tokens) & (next_segment_BT == segments_BT)


def expert_capacity(model: schema.Model, n_tokens: int) -> int:
    """Return the number of slots of an expert per batch row of n_tokens tokens.

    Dropless dispatch has n_tokens slots, because a token selects an expert at most once.
    """
    if model.dispatch == "dropless":
        return n_tokens
    even_load = n_tokens * model.experts_per_token / model.n_experts
    return min(max(math.ceil(model.capacity_factor * even_load), 1), n_tokens)


def apply_experts(
    model, rules, x_BTD, weight_BTK, expert_BTK, gate_EDF, up_EDF, down_EFD
) -> jax.Array:
    """Return y_BTD, the weighted sum of the outputs of each token's experts, on the current mesh.

    Devices that split the experts all-gather their tokens, apply their own experts, and
    reduce-scatter the sums. This sends 2 x (devices - 1) copies of a token. An all-to-all would
    send about 2 x experts_per_token, but the shapes of its messages depend on the routing.

    gate_EDF, up_EDF, down_EFD: float32 weights. Devices gather them in the type of x_BTD. The
    float32 weights are passed too, and receive the gradients: see multiply_experts.
    """
    weights = _cast_weights(rules, (gate_EDF, up_EDF, down_EFD), x_BTD.dtype)
    if jax.sharding.get_abstract_mesh().empty:
        return _combine_local(model, x_BTD, weight_BTK, expert_BTK, weights, 0, (0, 1))
    batch_axes, expert_axes, mlp_axes = (
        rules.mesh_axes(name) for name in ("batch", "experts", "mlp")
    )
    # The capacity counts the tokens of a row from its start, so a device needs complete rows.
    length_axes = rules.mesh_axes("length") if model.dispatch == "capacity" else ()
    gathered = [(axis, 0) for axis in expert_axes if axis in batch_axes]
    gathered += [(axis, 1) for axis in length_axes]

    token_axes = (*batch_axes, *rules.mesh_axes("length"))
    weight_axes = (*expert_axes, *mlp_axes)

    def local(x_BTD, weight_BTK, expert_BTK, *weights):
        # The gradient of an array is summed over the axes on which only the other operand varies.
        x_BTD = _vary(x_BTD, [axis for axis in weight_axes if axis not in token_axes])
        missing = [axis for axis in token_axes if axis not in weight_axes]
        weights = tuple(_vary(weight, missing) for weight in weights)
        for axis, dim in reversed(gathered):
            x_BTD, weight_BTK, expert_BTK = (
                jax.lax.all_gather(x, axis, axis=dim, tiled=True)
                for x in (x_BTD, weight_BTK, expert_BTK)
            )
        first = jax.lax.axis_index(expert_axes) * weights[0].shape[0] if expert_axes else 0
        part = (
            (jax.lax.axis_index(length_axes), jax.lax.axis_size(length_axes))
            if length_axes
            else (0, 1)
        )
        y_BTD = _combine_local(model, x_BTD, weight_BTK, expert_BTK, weights, first, part)
        for axis, dim in gathered:
            y_BTD = jax.lax.psum_scatter(y_BTD, axis, scatter_dimension=dim, tiled=True)
        return jax.lax.psum(
            y_BTD, (*(axis for axis in expert_axes if axis not in batch_axes), *mlp_axes)
        )

    token = rules.spec(("batch", "length", None))
    up = rules.spec(("experts", None, "mlp"))
    down = rules.spec(("experts", "mlp", None))
    in_specs = (token, token, token, *(up, up, down) * 2)
    # Kernels with a gradient of their own do not state over which axes their results vary.
    check_vma = model.expert_kernel not in ("tiles", "tokamax")
    local_experts = jax.shard_map(local, in_specs=in_specs, out_specs=token, check_vma=check_vma)
    return local_experts(x_BTD, weight_BTK, expert_BTK, *weights)


def _cast_weights(rules, masters: tuple, dtype) -> tuple:
    """Return gate, up and down in a type, then the float32 weights. The gradients belong to these.

    The sharding of the cast weights is that of the float32 weights: devices cast before a gather.
    """
    up_axes, down_axes = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
    cast = tuple(
        rules.constrain(jax.lax.stop_gradient(weight).astype(dtype), *axes)
        for weight, axes in zip(masters, (up_axes, up_axes, down_axes), strict=True)
    )
    return cast + masters


def _vary(x: jax.Array, axes: list[str]) -> jax.Array:
    """Return x, marked as varying over these mesh axes."""
    return jax.lax.pcast(x, tuple(axes), to="varying") if axes else x


def _combine_local(model, x_BTD, weight_BTK, expert_BTK, weights, first, part) -> jax.Array:
    """Return the weighted sum of the outputs of the experts first, first + 1, ..., [B, T, D].

    A token of other experts only gets zeros. weights: gate, up and down of these experts in the
    type of x_BTD, then in float32. part: (i, n) if n devices have the same tokens and experts. This
    device then fills the i-th of n parts of the slots of each expert and row.
    """
    (b, t, d), k, e, size_E = x_BTD.shape, expert_BTK.shape[2], weights[0].shape[0], None
    local_BTK = expert_BTK - first
    expert_M = jnp.where((local_BTK >= 0) & (local_BTK < e), local_BTK, e).reshape(-1)
    if model.dispatch == "dropless":
        assignment_P, slot_M, size_E = dropless_permutation(expert_M, e)
    else:
        row_M = jnp.arange(b).repeat(t * k)
        # The positions of split rows are interleaved: see Decoder.hidden.
        time_T = mesh.swap_blocks(
            jnp.arange(t), model.attention_query_blocks, mesh.shard_count("length"), 0
        )
        time_M = jnp.tile(jnp.repeat(time_T, k), b)
        assignment_P, slot_M = capacity_slots(
            expert_M, row_M, time_M, e, b, expert_capacity(model, t), part
        )

    kernel = "xla" if model.expert_kernel == "auto" else model.expert_kernel

    def product(a_PX, i: int):
        return grouped_products.multiply_experts(
            a_PX, weights[i], weights[i + 3], size_E, model.gradient_dtype, kernel
        )

    x_MD = jnp.repeat(x_BTD.reshape(-1, d), k, axis=0)
    x_PD = permute_rows(x_MD, assignment_P, slot_M)
    gate_PF = remat_policies.name_activation(product(x_PD, 0), "gate")
    up_PF = remat_policies.name_activation(product(x_PD, 1), "up")
    y_PD = product(jax.nn.silu(gate_PF) * up_PF, 2)
    y_PD = remat_policies.name_activation(y_PD, "mlp_output")
    y_MD = permute_rows(y_PD, slot_M, assignment_P)
    y_BTKD = y_MD.reshape(b, t, k, d).astype(jnp.float32)
    return jnp.sum(y_BTKD * weight_BTK[..., None], axis=2).astype(x_BTD.dtype)


def dropless_permutation(
    expert_M: jax.Array, n_experts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (assignment_P, slot_M, size_E): the assignments sorted by expert, with P = M.

    expert_M: index of a local expert, or n_experts for an expert of another device.
    assignment_P: the assignment in each slot. slot_M: its inverse, the slot of each assignment. In
    both, the value M means that there is none. size_E: number of assignments per expert.
    """
    m = expert_M.shape[0]
    size_E = jnp.sum(expert_M[:, None] == jnp.arange(n_experts), axis=0, dtype=jnp.int32)
    order_M = jnp.argsort(expert_M, stable=True)
    slot_M = jnp.where(expert_M < n_experts, jnp.argsort(order_M), m)
    return jnp.where(jnp.arange(m) < jnp.sum(size_E), order_M, m), slot_M, size_E


def capacity_slots(
    expert_M, row_M, time_M, n_experts: int, n_rows: int, capacity: int, part: tuple
) -> tuple[jax.Array, jax.Array]:
    """Return (assignment_P, slot_M) as `dropless_permutation`, with a capacity.

    Each pair of expert and batch row has `capacity` slots for its earliest assignments; P runs over
    expert, row, slot. In assignment_P, the value M means an empty slot. In slot_M, the value P
    means a dropped assignment or an expert of another device. part: (i, n) selects the i-th of n
    parts of the slots of each pair.
    """
    m, n_pairs = expert_M.shape[0], n_experts * n_rows
    n_slots = -(-capacity // part[1])  # of this part
    first_slot = part[0] * n_slots
    is_local_M = expert_M < n_experts
    pair_M = jnp.where(is_local_M, expert_M * n_rows + row_M, n_pairs)
    # Sorted by pair, then by time, then by the preference of the token.
    order_M = jnp.lexsort((time_M, pair_M))
    start_G = jnp.searchsorted(pair_M[order_M], jnp.arange(n_pairs + 1))
    rank_M = jnp.argsort(order_M) - start_G[pair_M] - first_slot
    end = jnp.minimum(n_slots, capacity - first_slot)
    has_slot_M = is_local_M & (rank_M >= 0) & (rank_M < end)
    slot_M = jnp.where(has_slot_M, pair_M * n_slots + rank_M, n_pairs * n_slots)
    rank_C = first_slot + jnp.arange(n_slots)
    sorted_GC = start_G[:-1, None] + rank_C
    is_used_GC = (sorted_GC < start_G[1:, None]) & (rank_C < capacity)
    assignment_P = jnp.where(is_used_GC, order_M.at[sorted_GC].get(mode="clip"), m).reshape(-1)
    return assignment_P, slot_M


@jax.custom_vjp
def permute_rows(x, source, inverse) -> jax.Array:
    """Return the rows x[source], with zeros where `source` is past the end of x.

    inverse: the row of the result to which each row of x moves, past its end if to none. The
    gradient is therefore a gather by `inverse`. Autodiff would use a scatter, which is a loop over
    rows on CPU.
    """
    return x.at[source].get(mode="fill", fill_value=0)


permute_rows.defvjp(
    lambda x, source, inverse: (permute_rows(x, source, inverse), (source, inverse)),
    lambda residuals, dy: (permute_rows(dy, residuals[1], residuals[0]), None, None),
)


def auxiliary_loss(model: schema.Model, routing: dict) -> jax.Array:
    """Return the load balancing loss plus the z-loss of the router, summed over layers.

    routing: the statistics of `route_tokens` with a leading axis of layers.
    """
    weight = model.load_balancing_weight if model.load_balancing == "loss" else 0.0
    return weight * jnp.sum(routing["balance"]) + model.router_z_loss * jnp.sum(routing["z"])


def update_router_biases(model: schema.Model, params: dict, routing: dict) -> dict:
    """Return the weights after the update of the router biases, which have no gradient.

    Each bias moves by router_bias_rate: up if the load of its expert is below the mean, down if it
    is above (Wang et al. 2024, arXiv:2408.15664, algorithm 1).
    """
    load_LE, blocks = routing["load_E"], params["blocks"]
    step_LE = model.router_bias_rate * jnp.sign(load_LE.mean(axis=-1, keepdims=True) - load_LE)
    bias_LE = blocks["mlp"]["bias"] + step_LE
    return params | {"blocks": blocks | {"mlp": blocks["mlp"] | {"bias": bias_LE}}}


def routing_metrics(routing: dict) -> dict[str, jax.Array]:
    """Return the routing metrics of a step, as means over layers.

    experts.imbalance is the largest load divided by the mean load. The others are statistics of
    `route_tokens`.
    """
    load_LE = routing["load_E"]
    imbalance_L = load_LE.max(axis=-1) / load_LE.mean(axis=-1)
    means = {"imbalance": imbalance_L} | {k: routing[k] for k in ("balance", "z", "dropped")}
    return {f"experts.{name}": jnp.mean(value_L) for name, value_L in means.items()}
