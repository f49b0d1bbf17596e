"""The decoder transformer: RMSNorm, rotary grouped-query attention with QK-norm, gated MLP.

Or, by knobs: LayerNorm, learned positions, a plain MLP, biases, no QK-norm; so the Llama, Qwen3 and
GPT-2 families are models of it.

Tensor names end in their axes: B batch, T query time, S key time, D d_model, F d_ff, N query heads,
K key/value heads, G query heads a key/value head, H d_head, V vocabulary, L layers.

Modules are Flax NNX in tree mode and exist only while a function is traced; between functions the
weights are a plain nested dict of arrays, the layers stacked on a leading axis:

    params = init(model, seed=0)                  {"embed": [V, D], "blocks": {...: [L, ...]}, ...}
    logits_BTV = logits(model, params, tokens_BT)
    nats_BT, log_z_BT, best_BT, routing = losses(model, params, tokens_BT)
    axes(model)                                   the same tree, a tuple of axis names a weight
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.config import schema
from lm.model import attention, layers, lora, moe, parametrization
from lm.parallel import mesh


class Attention(nnx.Module):
    """Causal grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245), QK-norm, rotary."""

    def __init__(self, model: schema.Model, rngs: nnx.Rngs, rules: mesh.ShardingRules):
        d, n, k, h = model.d_model, model.n_heads, model.n_kv_heads, model.d_head
        out = (2 * model.n_layers * n * h) ** -0.5  # so that depth adds up to unit variance
        self.query = layers.weight(rngs, ("embed", "heads", "d_head"), (d, n, h), d**-0.5)
        self.key = layers.weight(rngs, ("embed", "kv_heads", "d_head"), (d, k, h), d**-0.5)
        self.value = layers.weight(rngs, ("embed", "kv_heads", "d_head"), (d, k, h), d**-0.5)
        self.out = layers.weight(rngs, ("heads", "d_head", "embed"), (n, h, d), out)
        self.query_norm = layers.make_norm(model, h) if model.qk_norm else None
        self.key_norm = layers.make_norm(model, h) if model.qk_norm else None
        has = model.bias
        self.query_bias = layers.bias(("heads", "d_head"), (n, h)) if has else None
        self.key_bias = layers.bias(("kv_heads", "d_head"), (k, h)) if has else None
        self.value_bias = layers.bias(("kv_heads", "d_head"), (k, h)) if has else None
        self.out_bias = layers.bias(("norm",), (d,)) if has else None
        self.rules = rules

    def __call__(self, x_BTD: jax.Array, attend: Callable) -> jax.Array:
        """attend: (q_BTNH, k_BSKH, v_BSKH), before rotary, -> o_BTNH; says what sees what."""
        dtype = x_BTD.dtype
        q_BTNH = layers.project(x_BTD, self.query[...].astype(dtype))
        k_BSKH = layers.project(x_BTD, self.key[...].astype(dtype))
        v_BSKH = layers.project(x_BTD, self.value[...].astype(dtype))
        q_BTNH, k_BSKH, v_BSKH = (
            layers.add_bias(x, bias)
            for x, bias in (
                (q_BTNH, self.query_bias),
                (k_BSKH, self.key_bias),
                (v_BSKH, self.value_bias),
            )
        )
        if self.query_norm is not None and self.key_norm is not None:
            q_BTNH, k_BSKH = self.query_norm(q_BTNH), self.key_norm(k_BSKH)
        q_BTNH = self.rules.constrain(q_BTNH, "batch", "length", "heads", "d_head")
        o_BTNH = attend(q_BTNH, k_BSKH, v_BSKH)
        y_BTD = jnp.einsum("btnh,nhd->btd", o_BTNH, self.out[...].astype(dtype))
        return layers.add_bias(y_BTD, self.out_bias)


class Block(nnx.Module):
    """One layer: attention, then MLP or experts, each on the normed stream and added to it."""

    def __init__(self, model: schema.Model, rngs: nnx.Rngs, rules: mesh.ShardingRules):
        self.attention, self.attention_norm = (
            Attention(model, rngs, rules),
            layers.make_norm(model, model.d_model),
        )
        is_dense = model.n_experts == 0
        self.mlp = (
            layers.MLP(model, rngs, model.d_ff, rules)
            if is_dense
            else moe.Experts(model, rngs, rules)
        )
        self.mlp_norm = layers.make_norm(model, model.d_model)
        self.model, self.rules = model, rules

    def __call__(self, x_BTD: jax.Array, attend: Callable) -> tuple[jax.Array, dict]:
        """(x_BTD, routing): see moe.route_tokens; {} where there are no experts."""
        branch = parametrization.residual_scale(self.model)
        x_BTD = x_BTD + branch * self.attention(self.attention_norm(x_BTD), attend)
        x_BTD = self.rules.constrain(x_BTD, "batch", "length", None)
        y, routing = self.mlp(self.mlp_norm(x_BTD)), {}
        if isinstance(y, tuple):
            y, routing = y
        return self.rules.constrain(x_BTD + branch * y, "batch", "length", None), routing


class Decoder(nnx.Module):
    """tokens_BT -> logits_BTV in float32: the head, on the hidden states of all layers."""

    def __init__(self, model: schema.Model, rngs: nnx.Rngs, rules: mesh.ShardingRules):
        d, v = model.d_model, model.vocab_size
        self.embed = layers.weight(rngs, ("vocab", "embed"), (v, d), d**-0.5)
        self.blocks = _stack(model, rngs, rules)
        self.norm = layers.make_norm(model, d)
        self.head = (
            None
            if model.tie_embeddings
            else layers.weight(rngs, ("embed", "vocab"), (d, v), d**-0.5)
        )
        axes, size = ("positions", "embed"), (model.learned_positions, d)
        self.positions = (
            layers.weight(rngs, axes, size, d**-0.5) if model.learned_positions else None
        )
        self.model, self.rules = model, rules

    def __call__(self, tokens_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        x_BTD, _ = self.hidden(tokens_BT, segments_BT)
        return self.logits(
            mesh.restore_order(x_BTD, self.model.attention_query_blocks), self.head_weight()
        )

    def hidden(
        self, tokens_BT: jax.Array, segments_BT: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the last layer leaves, normed: [B, T, D], positions in the order of
        `mesh.interleave_positions`.

        And the routing of all layers: arrays of moe.route_tokens with a leading axis, {} without
        experts.
        """
        model, rules = self.model, self.rules
        times_T = mesh.interleave_positions(
            np.arange(tokens_BT.shape[1]), model.attention_query_blocks, axis=0
        )

        def attend(q_BTNH, k_BSKH, v_BSKH):
            if not model.learned_positions:
                q_BTNH, k_BSKH = (
                    rotary_embedding(x, model.rope_theta, times_T) for x in (q_BTNH, k_BSKH)
                )
            k_BSKH = rules.constrain(k_BSKH, "batch", "length", "kv_heads", "d_head")
            v_BSKH = rules.constrain(v_BSKH, "batch", "length", "kv_heads", "d_head")
            return attention.attend(model, rules, q_BTNH, k_BSKH, v_BSKH, segments_BT)

        layer = _remat(lambda x_BTD, block: block(x_BTD, attend), model.remat)
        unroll = model.n_layers if model.n_layers <= model.scan_unroll else 1
        times_BT = mesh.interleave_positions(
            positions_in_segment(tokens_BT, segments_BT), model.attention_query_blocks
        )
        x_BTD = self.embedded(
            mesh.interleave_positions(tokens_BT, model.attention_query_blocks), times_BT
        )
        x_BTD, routing = jax.lax.scan(layer, x_BTD, self.blocks, unroll=unroll)
        return self.norm(x_BTD), routing

    def embedded(self, tokens_BT: jax.Array, times_BT: jax.Array) -> jax.Array:
        """[B, T, D], what the first layer reads; the place of each token in its text counts only
        where positions are learned."""
        # Whole rows before the look-up: a table split both ways would be gathered on every device.
        embed_VD = self.rules.constrain(self.embed[...].astype(self.model.dtype), "vocab", None)
        x_BTD = embed_VD[tokens_BT]
        if self.positions is not None:
            place_PD = self.positions[...].astype(self.model.dtype)
            x_BTD += place_PD.at[times_BT].get(mode="clip")  # of what fills a row up: any, no NaN
        return self.rules.constrain(x_BTD, "batch", "length", None)

    def head_weight(self) -> jax.Array:
        """[D, V], the transposed embedding if they are tied."""
        if self.head is not None:
            return self.head[...].astype(self.model.dtype)
        embed_VD = self.embed[...].astype(self.model.dtype)
        return self.rules.constrain(embed_VD, "vocab", None).T

    def logits(self, x_BTD: jax.Array, head_DV: jax.Array) -> jax.Array:
        cap = self.model.logit_softcap
        logits_BTV = jnp.einsum("btd,dv->btv", x_BTD, head_DV, preferred_element_type=jnp.float32)
        logits_BTV *= parametrization.logit_scale(self.model)
        logits_BTV = cap * jnp.tanh(logits_BTV / cap) if cap else logits_BTV
        return self.rules.constrain(logits_BTV, "batch", "length", "vocab")


def positions_in_segment(tokens_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """The place of each token in its row, or since its segment began: int32 [B, T]."""
    times_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if segments_BT is None:
        return times_BT
    is_first_BT = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0
    return times_BT - jax.lax.cummax(jnp.where(is_first_BT, times_BT, 0), axis=1)


def rotary_embedding(x_BTNH: jax.Array, theta: float, times_T: jax.Array | np.ndarray) -> jax.Array:
    """Rotates the pairs (i, i + H/2) of each head by time x theta^(-2i/H) (arXiv:2104.09864).

    times_T: of each position, or [B, T] where rows differ. Of a NumPy array the angles are
    constants of the program: XLA would compute a cosine anew for each number that it turns.
    """
    xp, half = times_T.__array_namespace__(), x_BTNH.shape[-1] // 2
    frequency_H = xp.float32(theta) ** (-xp.arange(half, dtype=xp.float32) / half)
    angle_TH = times_T.astype(xp.float32)[..., None] * frequency_H
    cos, sin = xp.cos(angle_TH)[..., None, :], xp.sin(angle_TH)[..., None, :]
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def init_params(model: schema.Model, seed: int | jax.Array) -> dict:
    """Fresh weights: a pure function of (model, seed), the same numbers on every mesh."""
    with layers.tree_mode():
        decoder = Decoder(model, _rngs(seed), mesh.DEFAULT_RULES)
        params = nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
    names = _declared(model)
    params = jax.tree.map(
        lambda names, weight: weight * parametrization.role_factors(model, names).init,
        names,
        params,
        is_leaf=mesh.is_axis_names,
    )
    if model.lora_rank:
        params["lora"] = lora.init_lora(model, names, params, seed)
    return params


def param_axes(model: schema.Model) -> dict:
    """The tree of `init` with each weight's axis names, as declared."""
    names = _declared(model)
    return names | {"lora": lora.lora_axes(model, names)} if model.lora_rank else names


def _declared(model: schema.Model) -> dict:
    return nnx.to_pure_dict(_abstract(model)[1], extract_fn=lambda weight: weight.out_sharding)


def compute_logits(
    model: schema.Model, params: dict, tokens_BT: jax.Array, segments_BT: jax.Array | None = None
) -> jax.Array:
    """float32 logits_BTV: position t predicts token t + 1, and sees none later than t.

    segments_BT: where given, t sees the tokens whose segment is its own.
    """
    return make_decoder(model, params)(tokens_BT, segments_BT)


def make_decoder(
    model: schema.Model, params: dict, rules: mesh.ShardingRules = mesh.DEFAULT_RULES
) -> Decoder:
    """Return the modules of these weights, for use while a function is traced."""
    with layers.tree_mode():
        return nnx.merge(_abstract(model, rules)[0], lora.merge_lora(model, params))


def token_losses(
    model: schema.Model,
    params: dict,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    rules: mesh.ShardingRules = mesh.DEFAULT_RULES,
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """Of each token but the first, [B, T - 1]: nats, log Z of its softmax, and the likeliest.

    And the routing of all layers: see Decoder.hidden.

    With model.loss_chunks the logits of a chunk of each row exist at a time, in the backward pass
    too, where they are computed again.
    """
    modules = make_decoder(model, params, rules)
    x_BTD, routing = modules.hidden(tokens_BT[:, :-1], segments_BT)
    targets_BT = mesh.interleave_positions(tokens_BT[:, 1:], model.attention_query_blocks)
    head_DV = modules.head_weight()

    def found(x_BTD, targets_BT):
        logits_BTV = modules.logits(x_BTD, head_DV.astype(x_BTD.dtype))
        return *cross_entropy(logits_BTV, targets_BT), jnp.argmax(logits_BTV, axis=-1)

    if model.loss_chunks == 1:
        all_BT = found(x_BTD, targets_BT)
    else:
        # Gathered once for all chunks, and as float32, in which their gradients are summed.
        head_DV = rules.constrain(head_DV, None, "vocab").astype(jnp.float32)
        cut = [mesh.split_chunks(x, model.loss_chunks, "length", 1) for x in (x_BTD, targets_BT)]
        chunks = jax.lax.map(jax.checkpoint(lambda cut: found(*cut), prevent_cse=False), cut)
        all_BT = [mesh.merge_chunks(x_CBT, "length", 1) for x_CBT in chunks]
    nats_BT, log_z_BT, best_BT = (
        mesh.restore_order(x_BT, model.attention_query_blocks) for x_BT in all_BT
    )
    return nats_BT, log_z_BT, best_BT, routing


@jax.named_scope("loss")
def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each target, and log Z of its softmax (for z-loss), both float32 [B, T]."""
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return log_z_BT - target_BT, log_z_BT


def _rngs(seed) -> nnx.Rngs:
    return nnx.Rngs(params=jax.random.key(seed))


def _stack(model: schema.Model, rngs: nnx.Rngs, rules: mesh.ShardingRules) -> Block:
    """n_layers blocks as one, every weight with a leading "layers" axis."""

    @nnx.vmap(in_axes=0, out_axes=0)
    @nnx.transform_metadata(in_axes=0, out_axes=0, partition="layers")
    def make(rngs: nnx.Rngs) -> Block:
        return Block(model, rngs, rules)

    return make(rngs.split(model.n_layers))


def _remat(layer, policy: str):
    """The layer, with what the backward pass recomputes: none, all but the matmuls, or all."""
    if policy == "none":
        return layer
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return jax.checkpoint(layer, prevent_cse=False, policy=keep)


def _abstract(model: schema.Model, rules: mesh.ShardingRules = mesh.DEFAULT_RULES):
    """Return (graph definition, abstract weights) of the decoder without computing anything."""
    with layers.tree_mode():
        return nnx.split(nnx.eval_shape(lambda: Decoder(model, _rngs(0), rules)), nnx.Param)
