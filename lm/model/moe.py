"""Experts: many small MLPs in the place of one, of which a router picks a few for every token.

Tensor names end in their axes: B batch, T time, D d_model, F width of an expert, E experts, K
experts a token, M choices (B x T x K), P places where experts read tokens, G boxes of C places.

    y_BTD, routing = Experts(model, rngs)(x_BTD)       a drop-in for layers.MLP
    loss += penalty(model, routing)                    balance and z-loss, of all layers
    update = balanced(model, update, routing)          moves the biases that even out the load

A choice (token, expert) is carried to a place of its expert and back. Both ways to lay out the
places sort the choices by expert; they differ in what an expert reads:

    dropless   a run of rows as long as it happens to be (jax.lax.ragged_dot); nothing is dropped
    capacity   a box of a fixed number of places for every row of the batch. What comes when the
               box is full is dropped: later tokens never displace earlier ones, nor rows each other
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import model_sizes, schema
from lm.model import layers
from lm.parallel import mesh


class Experts(nnx.Module):
    """Token-choice routing to the best k of E gated MLPs (Shazeer et al. 2017, arXiv:1701.06538).

    The router is computed in float32. Shared experts, which every token passes (Dai et al. 2024,
    arXiv:2401.06066), are one MLP of their joint width.
    """

    def __init__(self, model: schema.Model, rngs: nnx.Rngs, rules: mesh.ShardingRules):
        d, e, f = model.d_model, model.n_experts, model_sizes.expert_width(model)
        out = (2 * model.n_layers * f) ** -0.5  # as in layers.MLP
        self.router = layers.weight(rngs, ("embed", "router"), (d, e), d**-0.5)
        self.gate = layers.weight(rngs, ("experts", "embed", "mlp"), (e, d, f), d**-0.5)
        self.up = layers.weight(rngs, ("experts", "embed", "mlp"), (e, d, f), d**-0.5)
        self.down = layers.weight(rngs, ("experts", "mlp", "embed"), (e, f, d), out)
        shared = model.n_shared_experts * f
        self.shared = layers.MLP(model, rngs, shared, rules) if shared else None
        # No gradient reaches it, and `balanced` replaces what an optimizer makes of that. It lives
        # among the weights: whoever has them can route, and a checkpoint proves it like them.
        is_bias = model.load_balancing == "bias"
        self.bias = nnx.Param(jnp.zeros(e), out_sharding=("balance",)) if is_bias else None
        self.model, self.rules = model, rules

    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of what a token's experts say, and how tokens were routed: see `route`."""
        bias_E = None if self.bias is None else self.bias[...]
        weight_BTK, chosen_BTK, routing = route_tokens(self.model, x_BTD, self.router[...], bias_E)
        experts = [w[...].astype(x_BTD.dtype) for w in (self.gate, self.up, self.down)]
        # Boxes fill up in the order of time, which is not that in which split rows lie.
        blocks, ways = self.model.attention_query_blocks, mesh.shard_count("length")
        tokens = [mesh.swap_blocks(x, ways, blocks, 1) for x in (x_BTD, weight_BTK, chosen_BTK)]
        y_BTD = mesh.swap_blocks(
            apply_experts(self.model, self.rules, *tokens, *experts), blocks, ways, 1
        )
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD), routing


def route_tokens(
    model: schema.Model, x_BTD, router_DE, bias_E=None
) -> tuple[jax.Array, jax.Array, dict]:
    """(weight_BTK, chosen_BTK, routing): each token's experts, what each counts, and float32 sums.

    load_E     share of all choices that fell on each expert
    balance    E x sum over experts of load x mean score: 1 where even, up to E (Fedus et al. 2021,
               arXiv:2101.03961, equation 4); only the scores carry a gradient
    z          mean of log(sum(exp(logits)))^2 (Zoph et al. 2022, arXiv:2202.08906, equation 5)
    dropped    share of choices for which no place was left

    bias_E is added to the scores for the choice, never to what a choice counts (Wang et al. 2024,
    arXiv:2408.15664, equation 3).
    """
    e, k = model.n_experts, model.experts_per_token
    logits_BTE = jnp.einsum(
        "btd,de->bte", x_BTD.astype(jnp.float32), router_DE, precision=jax.lax.Precision.HIGHEST
    )
    softmax = model.router == "softmax"
    score_BTE = jax.nn.softmax(logits_BTE) if softmax else jax.nn.sigmoid(logits_BTE)
    preferred_BTE = jax.lax.stop_gradient(score_BTE if bias_E is None else score_BTE + bias_E)
    _, chosen_BTK = jax.lax.top_k(preferred_BTE, k)
    is_BTKE = chosen_BTK[..., None] == jnp.arange(e)
    weight_BTK = jnp.sum(is_BTKE * score_BTE[:, :, None], axis=-1)  # a gather whose gradient is one
    if model.normalize_expert_weights:
        weight_BTK = weight_BTK / weight_BTK.sum(axis=-1, keepdims=True)
    count_BE = jnp.sum(is_BTKE, axis=(1, 2))
    load_E = jnp.sum(count_BE, axis=0) / chosen_BTK.size
    share_BTE = score_BTE if softmax else score_BTE / score_BTE.sum(axis=-1, keepdims=True)
    over_BE = jnp.maximum(count_BE - expert_capacity(model, x_BTD.shape[1]), 0)
    routing = {
        "load_E": load_E,
        "balance": e * jnp.sum(load_E * share_BTE.mean(axis=(0, 1))),
        "z": jnp.mean(jax.nn.logsumexp(logits_BTE, axis=-1) ** 2),
        "dropped": jnp.sum(over_BE) / chosen_BTK.size,
    }
    return weight_BTK, chosen_BTK, routing


def expert_capacity(model: schema.Model, n_tokens: int) -> int:
    """Places that an expert has for a row of the batch; all that a row can ask for if dropless."""
    if model.dispatch == "dropless":
        return n_tokens
    even = n_tokens * model.experts_per_token / model.n_experts
    return min(max(math.ceil(model.capacity_factor * even), 1), n_tokens)


def apply_experts(
    model, rules, x_BTD, weight_BTK, chosen_BTK, gate_EDF, up_EDF, down_EFD
) -> jax.Array:
    """y_BTD: the weighted sum of what each token's experts say of it, over whatever mesh is set.

    The devices that share out the experts see each other's tokens, each adds up what its own
    experts say, and the sums are scattered back. For a token of d_model numbers that sends
    2 x (devices - 1), where an all-to-all would send about 2 x experts_per_token, but to places
    whose number no shape can say beforehand.
    """
    weights = (gate_EDF, up_EDF, down_EFD)
    if jax.sharding.get_abstract_mesh().empty:
        return _mix(model, x_BTD, weight_BTK, chosen_BTK, weights, 0, (0, 1))
    rows, experts, width = (rules.mesh_axes(name) for name in ("batch", "experts", "mlp"))
    # Boxes count a row's tokens from its start, so that who has a part of a row must see it whole.
    times = rules.mesh_axes("length") if model.dispatch == "capacity" else ()
    gathered = [(axis, 0) for axis in experts if axis in rows] + [(axis, 1) for axis in times]

    def here(x_BTD, weight_BTK, chosen_BTK, *weights):
        for axis, dim in reversed(gathered):
            x_BTD, weight_BTK, chosen_BTK = (
                jax.lax.all_gather(a, axis, axis=dim, tiled=True)
                for a in (x_BTD, weight_BTK, chosen_BTK)
            )
        first = jax.lax.axis_index(experts) * weights[0].shape[0] if experts else 0
        part = (jax.lax.axis_index(times), jax.lax.axis_size(times)) if times else (0, 1)
        y_BTD = _mix(model, x_BTD, weight_BTK, chosen_BTK, weights, first, part)
        for axis, dim in gathered:
            y_BTD = jax.lax.psum_scatter(y_BTD, axis, scatter_dimension=dim, tiled=True)
        return jax.lax.psum(y_BTD, (*(axis for axis in experts if axis not in rows), *width))

    token = rules.spec(("batch", "length", None))
    wide = [rules.spec(names) for names in (("experts", None, "mlp"), ("experts", "mlp", None))]
    split = (token, token, token, wide[0], wide[0], wide[1])
    return jax.shard_map(here, in_specs=split, out_specs=token)(
        x_BTD, weight_BTK, chosen_BTK, *weights
    )


def _mix(model, x_BTD, weight_BTK, chosen_BTK, weights, first, part) -> jax.Array:
    """What the experts numbered first, first + 1, ... say of tokens; zero where they are not asked.

    part: (i, n) where n devices have the same tokens and experts: of every box this one fills the
    i-th of n parts.
    """
    gate_EDF, up_EDF, down_EFD = weights
    (b, t, d), k, e = x_BTD.shape, chosen_BTK.shape[2], gate_EDF.shape[0]
    expert_BTK = chosen_BTK - first
    expert_M = jnp.where((expert_BTK >= 0) & (expert_BTK < e), expert_BTK, e).reshape(-1)
    if model.dispatch == "dropless":
        choice_P, place_M, size_E = dropless_permutation(expert_M, e)

        def product(a_PX, w_EXY):
            return jax.lax.ragged_dot(a_PX, w_EXY, size_E)
    else:
        row_M = jnp.arange(b).repeat(t * k)
        # Where devices share a row, its positions do not lie in the order of time: model._dealt.
        time_T = mesh.swap_blocks(
            jnp.arange(t), model.attention_query_blocks, mesh.shard_count("length"), 0
        )
        time_M = jnp.tile(jnp.repeat(time_T, k), b)
        choice_P, place_M = capacity_slots(
            expert_M, row_M, time_M, e, b, expert_capacity(model, t), part
        )

        def product(a_PX, w_EXY):
            a_EXX = a_PX.reshape(e, -1, a_PX.shape[1])
            return jnp.einsum("epx,exy->epy", a_EXX, w_EXY).reshape(-1, w_EXY.shape[2])

    x_MD = jnp.repeat(x_BTD.reshape(-1, d), k, axis=0)
    x_PD = permute_rows(x_MD, choice_P, place_M)
    y_PF = jax.nn.silu(product(x_PD, gate_EDF)) * product(x_PD, up_EDF)
    y_MD = permute_rows(product(y_PF, down_EFD), place_M, choice_P)
    y_BTKD = y_MD.reshape(b, t, k, d).astype(jnp.float32)
    return jnp.sum(y_BTKD * weight_BTK[..., None], axis=2).astype(x_BTD.dtype)


def dropless_permutation(
    expert_M: jax.Array, n_experts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(choice_P, place_M, size_E): choices in a run an expert, those of other devices after all.

    choice_P: of each place, the choice that it holds; place_M: its inverse, the place of each
    choice. M stands for none in both.
    """
    m = expert_M.shape[0]
    size_E = jnp.sum(expert_M[:, None] == jnp.arange(n_experts), axis=0, dtype=jnp.int32)
    choice_M = jnp.argsort(expert_M, stable=True)
    place_M = jnp.where(expert_M < n_experts, jnp.argsort(choice_M), m)
    return jnp.where(jnp.arange(m) < jnp.sum(size_E), choice_M, m), place_M, size_E


def capacity_slots(expert_M, row_M, time_M, n_experts: int, n_rows: int, size: int, part) -> tuple:
    """(choice_P, place_M) as in `runs`, P being expert, row, and `size` places for the earliest.

    Only the part (i, n) of every box is laid out: places i x s to (i + 1) x s, s = size / n.
    """
    m, n_boxes, here = expert_M.shape[0], n_experts * n_rows, -(-size // part[1])
    is_mine_M = expert_M < n_experts
    box_M = jnp.where(is_mine_M, expert_M * n_rows + row_M, n_boxes)
    choice_M = jnp.lexsort((time_M, box_M))  # of a box by time, then by preference
    start_G = jnp.searchsorted(box_M[choice_M], jnp.arange(n_boxes + 1))
    rank_M = jnp.argsort(choice_M) - start_G[box_M] - part[0] * here
    last = jnp.minimum(here, size - part[0] * here)
    kept_M = is_mine_M & (rank_M >= 0) & (rank_M < last)
    place_M = jnp.where(kept_M, box_M * here + rank_M, n_boxes * here)
    rank_GC = part[0] * here + jnp.arange(here)
    sorted_GC = start_G[:-1, None] + rank_GC
    is_used_GC = (sorted_GC < start_G[1:, None]) & (rank_GC < size)
    choice_P = jnp.where(is_used_GC, choice_M.at[sorted_GC].get(mode="clip"), m).reshape(-1)
    return choice_P, place_M


@jax.custom_vjp
def permute_rows(x, to, back) -> jax.Array:
    """Rows x[to], zeros where `to` is past the end; `back` is its inverse, past the end for none.

    Each row goes to one place at most, so that the gradient is a look-up as well: left to itself
    it would be a scatter, which on CPU takes a loop over rows.
    """
    return x.at[to].get(mode="fill", fill_value=0)


permute_rows.defvjp(
    lambda x, to, back: (permute_rows(x, to, back), (to, back)),
    lambda kept, dy: (permute_rows(dy, kept[1], kept[0]), None, None),
)


def auxiliary_loss(model: schema.Model, routing: dict) -> jax.Array:
    """What routing adds to the training loss; arrays of `routing` have a leading layers axis."""
    weight = model.load_balancing_weight if model.load_balancing == "loss" else 0.0
    return weight * jnp.sum(routing["balance"]) + model.router_z_loss * jnp.sum(routing["z"])


def apply_router_bias_update(model: schema.Model, update: Any, routing: dict) -> dict:
    """An optimizer's update of the weights, with that of the biases in place of what it made of it.

    Each moves by router_bias_rate, up where the load is below even: a rule without gradient (Wang
    et al. 2024, arXiv:2408.15664, algorithm 1).
    """
    load_LE = routing["load_E"]
    step_LE = model.router_bias_rate * jnp.sign(load_LE.mean(axis=-1, keepdims=True) - load_LE)
    blocks = update["blocks"]
    return update | {"blocks": blocks | {"mlp": blocks["mlp"] | {"bias": step_LE}}}


def routing_metrics(routing: dict) -> dict[str, jax.Array]:
    """Of a step, means over layers. experts.imbalance is the largest load over the mean load."""
    load_LE = routing["load_E"]
    imbalance = load_LE.max(axis=-1) / load_LE.mean(axis=-1)
    means = {"imbalance": imbalance} | {k: routing[k] for k in ("balance", "z", "dropped")}
    return {f"experts.{name}": jnp.mean(value_L) for name, value_L in means.items()}
