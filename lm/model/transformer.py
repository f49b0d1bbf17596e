"""The decoder transformer: RMSNorm, rotary grouped-query attention with QK-norm, gated MLP.

Config fields select other norms, positions, MLPs, biases, windows and caps of attention. The
architectures of lm/model/hf/architectures.py are special cases.

    params = init_params(model, seed=0)           # {"embed": [V, D], "blocks": {...: [L, ...]}}
    axes = param_axes(model)                      # the same tree, a tuple of axis names per weight
    logits_BTV = compute_logits(model, params, tokens_BT)
    nats_BT, log_z_BT, best_BT, routing = token_losses(model, params, tokens_BT)

Tensor names end in their axes: B batch, T query time, S key time, D d_model, F d_ff, N query heads,
K key/value heads, H d_head, V vocabulary, L layers, C chunks.

Modules are Flax NNX in tree mode and exist only while a function is traced. Between functions, the
weights are a nested dict of arrays, with the layers stacked on a leading axis.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.config import model_sizes, schema
from lm.model import attention, layers, lora, moe, parametrization, position_encoding
from lm.model.kernels import layer_loop, remat_policies, table_lookup
from lm.parallel import mesh


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) with optional QK-norm.

    The caller supplies the mask and the position encoding.
    """

    def __init__(self, model: schema.Model, rngs: nnx.Rngs, rules: mesh.ShardingRules):
        d, n, k, h = model.d_model, model.n_heads, model.n_kv_heads, model.d_head
        # The outputs of the 2 x n_layers branches sum to unit variance.
        out_std = (2 * model.n_layers * n * h) ** -0.5
        self.query = layers.weight(rngs, ("embed", "heads", "d_head"), (d, n, h), d**-0.5)
        self.key = layers.weight(rngs, ("embed", "kv_heads", "d_head"), (d, k, h), d**-0.5)
        self.value = layers.weight(rngs, ("embed", "kv_heads", "d_head"), (d, k, h), d**-0.5)
        self.out = layers.weight(rngs, ("heads", "d_head", "embed"), (n, h, d), out_std)
        self.query_norm = self._make_head_norm(model, "heads", n)
        self.key_norm = self._make_head_norm(model, "kv_heads", k)
        has_bias = model.bias or model.qkv_bias
        self.query_bias = layers.bias(("heads", "d_head"), (n, h)) if has_bias else None
        self.key_bias = layers.bias(("kv_heads", "d_head"), (k, h)) if has_bias else None
        self.value_bias = layers.bias(("kv_heads", "d_head"), (k, h)) if has_bias else None
        self.out_bias = layers.bias(("norm",), (d,)) if model.bias else None
        self.rules, self.gradient_dtype = rules, model.gradient_dtype

    def _make_head_norm(self, model: schema.Model, axis: str, n_heads: int):
        """Return the norm of queries or keys, None without QK-norm.

        axis: logical axis of the heads. The norm is over each head, or over all heads together.
        """
        if not model.qk_norm:
            return None
        if model.qk_norm_scope == "head":
            return layers.make_norm(model, model.d_head)
        return layers.make_norm(model, n_heads, model.d_head, names=(axis, "d_head"))

    def __call__(self, x_BTD: jax.Array, attend: Callable) -> jax.Array:
        """Return the attention output [B, T, D].

        attend: function of (q_BTNH, k_BSKH, v_BSKH) that returns o_BTNH. It applies the factor
        H^-1/2, rotary embeddings and the mask.
        """
        q_BTNH, k_BSKH, v_BSKH = (
            remat_policies.name_activation(
                layers.add_bias(
                    layers.project_shared(x_BTD, weight[...], self.gradient_dtype), bias
                ),
                name,
            )
            for name, weight, bias in (
                ("query", self.query, self.query_bias),
                ("key", self.key, self.key_bias),
                ("value", self.value, self.value_bias),
            )
        )
        if self.query_norm is not None and self.key_norm is not None:
            q_BTNH, k_BSKH = self.query_norm(q_BTNH), self.key_norm(k_BSKH)
        q_BTNH = self.rules.constrain(q_BTNH, "batch", "length", "heads", "d_head")
        o_BTNH = attend(q_BTNH, k_BSKH, v_BSKH)
        y_BTD = layers.project(o_BTNH, self.out[...], self.gradient_dtype, n_axes=2)
        y_BTD = layers.add_bias(y_BTD, self.out_bias)
        return remat_policies.name_activation(y_BTD, "attention_projection")


class Block(nnx.Module):
    """Decoder block: attention, then an MLP or experts, both residual.

    By default, both branches read a norm of the residual stream. model.norm_position and
    model.residual select norms of the outputs (OLMo 2, arXiv:2501.00656), norms of both (Gemma 2,
    arXiv:2408.00118) and parallel branches (Wang and Komatsuzaki 2021, GPT-J).
    """

    def __init__(self, model: schema.Model, rngs: nnx.Rngs, rules: mesh.ShardingRules):
        self.attention = Attention(model, rngs, rules)
        self.attention_norm = layers.make_norm(model, model.d_model)
        has_both = model.norm_position == "both"
        self.attention_output_norm = layers.make_norm(model, model.d_model) if has_both else None
        self.mlp_output_norm = layers.make_norm(model, model.d_model) if has_both else None
        is_dense = model.n_experts == 0
        self.mlp = (
            layers.MLP(model, rngs, model.d_ff, rules)
            if is_dense
            else moe.Experts(model, rngs, rules)
        )
        is_shared = model.residual == "parallel_shared"
        self.mlp_norm = None if is_shared else layers.make_norm(model, model.d_model)
        self.model, self.rules = model, rules

    def __call__(
        self, x_BTD: jax.Array, attend: Callable, is_counted_BT: jax.Array | None = None
    ) -> tuple[jax.Array, dict]:
        """Return (x_BTD, routing); routing is {} without experts, see moe.route_tokens.

        is_counted_BT: the positions that the routing statistics count; None is all positions.
        """
        scale = parametrization.residual_scale(self.model)
        input_BTD = x_BTD
        x_BTD = x_BTD + scale * self.attention_branch(x_BTD, attend)
        x_BTD = self.rules.constrain(x_BTD, "batch", "length", None)
        input_BTD = x_BTD if self.model.residual == "sequential" else input_BTD
        y, routing = self._mlp_branch(input_BTD, is_counted_BT)
        return self.rules.constrain(x_BTD + scale * y, "batch", "length", None), routing

    def attention_branch(self, x_BTD: jax.Array, attend: Callable) -> jax.Array:
        """Return the output of attention with its norms, [B, T, D]; attend: see Attention."""
        if self.model.norm_position == "post":
            return self.attention_norm(self.attention(x_BTD, attend))
        y_BTD = self.attention(self.attention_norm(x_BTD), attend)
        return y_BTD if self.attention_output_norm is None else self.attention_output_norm(y_BTD)

    def _mlp_branch(self, x_BTD: jax.Array, is_counted_BT: jax.Array | None):
        """Return the output of the MLP or experts with its norms, [B, T, D], and routing."""
        norm, is_post = self.mlp_norm or self.attention_norm, self.model.norm_position == "post"
        x_BTD, routing = x_BTD if is_post else norm(x_BTD), {}
        if isinstance(self.mlp, moe.Experts):
            y_BTD, routing = self.mlp(x_BTD, is_counted_BT)
        else:
            y_BTD = self.mlp(x_BTD)
        y_BTD = norm(y_BTD) if is_post else y_BTD
        return y_BTD if self.mlp_output_norm is None else self.mlp_output_norm(y_BTD), routing


class StackedLayers(NamedTuple):
    """Blocks with a leading axis of layers, and one flag per layer.

    is_local: True for layers with a sliding window [L]; None if all layers are equal.
    """

    block: Block
    is_local: jax.Array | np.ndarray | None


class Decoder(nnx.Module):
    """The network from tokens_BT to float32 logits_BTV."""

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
        axes, shape = ("positions", "embed"), (model.learned_positions, d)
        self.positions = (
            layers.weight(rngs, axes, shape, d**-0.5) if model.learned_positions else None
        )
        self.head_bias = layers.bias(("vocab",), (v,)) if model.head_bias else None
        self.model, self.rules = model, rules

    def __call__(self, tokens_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        """Return the logits in the original order of positions."""
        x_BTD, _ = self.hidden(tokens_BT, segments_BT)
        return self.logits(
            mesh.restore_order(x_BTD, self.model.attention_query_blocks), *self.head_weight()
        )

    def hidden(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None,
        is_counted_BT: jax.Array | None = None,
        layer_numbers: tuple[jax.Array, ...] = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return (x_BTD, routing): the hidden states after the last norm, and routing statistics.

        The positions of x_BTD are in the order of `mesh.interleave_positions`. routing: the
        statistics of moe.route_tokens with a leading axis of layers, {} without experts.
        is_counted_BT: see Block. layer_numbers: see layer_loop.run_layers.
        """
        model, rules, n_blocks = self.model, self.rules, self.model.attention_query_blocks
        tables = position_encoding.training_tables(model, tokens_BT.shape[1], rules)
        if is_counted_BT is not None:
            is_counted_BT = mesh.interleave_positions(is_counted_BT, n_blocks)

        def run_layer(x_BTD, layer):
            attend = attention.make_attend(model, rules, tables, layer.is_local, segments_BT)
            return layer.block(x_BTD, attend, is_counted_BT)

        # Without a loop, XLA merges the recomputed values with the first ones and stores these.
        is_unrolled = remat_policies.is_unrolled(model)
        if is_unrolled and model.remat != "none":
            run_layer = remat_policies.recompute_late(run_layer, model.remat)
        else:
            run_layer = remat_policies.checkpoint_layer(run_layer, model.remat)
        times_BT = mesh.interleave_positions(
            position_encoding.positions_in_segment(tokens_BT, segments_BT), n_blocks
        )
        x_BTD = self.embedded(mesh.interleave_positions(tokens_BT, n_blocks), times_BT)
        x_BTD, routing = layer_loop.run_layers(
            run_layer, x_BTD, self.stacked_layers(), is_unrolled, layer_numbers
        )
        return self.norm(x_BTD), routing

    def stacked_layers(self) -> StackedLayers:
        """Return the inputs of a scan over the layers."""
        windows = model_sizes.attention_windows(self.model)
        is_mixed = len(set(windows)) > 1
        return StackedLayers(self.blocks, np.array(windows) > 0 if is_mixed else None)

    def embedded(self, tokens_BT: jax.Array, times_BT: jax.Array) -> jax.Array:
        """Return the input of the first layer, [B, T, D].

        times_BT: position of each token in its text, used only for learned positions.
        """
        dtype, rules = self.model.dtype, self.rules
        x_BTD = table_lookup.look_up(self.embed[...], tokens_BT, dtype, ("vocab", "embed"), rules)
        scale = self.model.embedding_scale
        x_BTD = x_BTD if scale == 1 else x_BTD * jnp.asarray(scale, x_BTD.dtype)
        if self.positions is not None:
            # Padding can be beyond the table. Clipping gives it finite values instead of NaN.
            times_BT = jnp.clip(times_BT, 0, self.positions.shape[0] - 1)
            axes = ("positions", "embed")
            x_BTD += table_lookup.look_up(self.positions[...], times_BT, dtype, axes, rules)
        return self.rules.constrain(x_BTD, "batch", "length", None)

    def head_weight(self) -> tuple[jax.Array, jax.Array]:
        """Return the output projection [D, V] in model.dtype, and the float32 weight.

        With tied embeddings, it is the transposed embedding. The gradient belongs to the float32
        weight, see layers.project_to_float32.
        """
        if self.head is None:
            axes, master = ("vocab", "embed"), self.embed[...]
        else:
            axes, master = ("embed", "vocab"), self.head[...]
        # The weight is cast before it is gathered.
        head = jax.lax.stop_gradient(master).astype(self.model.dtype)
        head = self.rules.constrain(head, *axes)
        if self.head is None:
            return self.rules.constrain(head, "vocab", None).T, master.T
        return head, master

    def logits(self, x_BTD: jax.Array, head_DV: jax.Array, master_DV: jax.Array) -> jax.Array:
        """Return the float32 logits [B, T, V] of normed hidden states.

        head_DV, master_DV: see head_weight.
        """
        model, cap = self.model, self.model.logit_softcap
        logits_BTV = layers.project_to_float32(x_BTD, head_DV, master_DV, model.gradient_dtype)
        logits_BTV *= parametrization.logit_scale(model)
        logits_BTV = layers.add_bias(logits_BTV, self.head_bias)
        logits_BTV = cap * jnp.tanh(logits_BTV / cap) if cap else logits_BTV
        return self.rules.constrain(logits_BTV, "batch", "length", "vocab")


def init_params(model: schema.Model, seed: int | jax.Array) -> dict:
    """Return initial weights, a pure function of (model, seed) on every mesh.

    With model.lora_rank, the key "lora" has the adapters.
    """
    with layers.tree_mode():
        decoder = Decoder(model, nnx.Rngs(params=jax.random.key(seed)), mesh.DEFAULT_RULES)
        params = nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
    names = _declared_axes(model)
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
    """Return the tree of `init_params` with the axis names of each weight."""
    names = _declared_axes(model)
    return names | {"lora": lora.lora_axes(model, names)} if model.lora_rank else names


def _declared_axes(model: schema.Model) -> dict:
    """Return the axis names that the modules declare for their weights."""
    _, weights = _abstract(mesh.DEFAULT_RULES, **vars(model))
    return nnx.to_pure_dict(weights, extract_fn=lambda weight: weight.out_sharding)


def compute_logits(
    model: schema.Model, params: dict, tokens_BT: jax.Array, segments_BT: jax.Array | None = None
) -> jax.Array:
    """Return float32 logits_BTV. Position t predicts token t + 1 from the tokens up to t.

    segments_BT: document numbers; position t then attends only to tokens of its own segment.
    """
    return make_decoder(model, params)(tokens_BT, segments_BT)


def make_decoder(
    model: schema.Model, params: dict, rules: mesh.ShardingRules = mesh.DEFAULT_RULES
) -> Decoder:
    """Return the modules with these weights and merged adapters, for use in a traced function."""
    with layers.tree_mode():
        return nnx.merge(_abstract(rules, **vars(model))[0], lora.merge_lora(model, params))


def token_losses(
    model: schema.Model,
    params: dict,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    rules: mesh.ShardingRules = mesh.DEFAULT_RULES,
    is_counted_BT: jax.Array | None = None,
    layer_numbers: tuple[jax.Array, ...] = (),
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """Return (nats_BT, log_z_BT, best_BT, routing) for each token except the first, [B, T - 1].

    nats_BT: cross-entropy in nats. log_z_BT: log of the softmax denominator. best_BT: most likely
    token. routing, layer_numbers: see Decoder.hidden. is_counted_BT: the inputs that routing
    counts, [B, T - 1].

    With model.loss_chunks > 1, only the logits of one chunk of each row are in memory at a time.
    The backward pass recomputes them.
    """
    decoder = make_decoder(model, params, rules)
    x_BTD, routing = decoder.hidden(tokens_BT[:, :-1], segments_BT, is_counted_BT, layer_numbers)
    targets_BT = mesh.interleave_positions(tokens_BT[:, 1:], model.attention_query_blocks)
    head_DV, master_DV = decoder.head_weight()

    def predict(x_BTD, targets_BT):
        logits_BTV = decoder.logits(x_BTD, head_DV, master_DV)
        return *cross_entropy(logits_BTV, targets_BT), jnp.argmax(logits_BTV, axis=-1)

    if model.loss_chunks == 1:
        outputs_BT = predict(x_BTD, targets_BT)
    else:
        # One all-gather serves all chunks.
        head_DV = rules.constrain(head_DV, None, "vocab")
        inputs = [mesh.split_chunks(x, model.loss_chunks, "length", 1) for x in (x_BTD, targets_BT)]
        chunks = jax.lax.map(
            jax.checkpoint(lambda chunk: predict(*chunk), prevent_cse=False), inputs
        )
        outputs_BT = [mesh.merge_chunks(x_CBT, "length", 1) for x_CBT in chunks]
    nats_BT, log_z_BT, best_BT = (
        mesh.restore_order(x_BT, model.attention_query_blocks) for x_BT in outputs_BT
    )
    return nats_BT, log_z_BT, best_BT, routing


@jax.named_scope("loss")
def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (nats_BT, log_z_BT), float32 [B, T].

    nats_BT: cross-entropy of each target in nats. log_z_BT: log of the softmax denominator.
    """
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_logit_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return log_z_BT - target_logit_BT, log_z_BT


def _stack(model: schema.Model, rngs: nnx.Rngs, rules: mesh.ShardingRules) -> Block:
    """Return one Block that stacks n_layers blocks on a leading "layers" axis of every weight."""

    @nnx.vmap(in_axes=0, out_axes=0)
    @nnx.transform_metadata(in_axes=0, out_axes=0, partition="layers")
    def make_block(rngs: nnx.Rngs) -> Block:
        return Block(model, rngs, rules)

    return make_block(rngs.split(model.n_layers))


@functools.lru_cache(maxsize=64, typed=True)  # a run needs the result about ten times
def _abstract(rules: mesh.ShardingRules, **fields):
    """Return (graph definition, abstract weights) of the decoder; fields: those of its model."""
    model, rngs = schema.Model(**fields), lambda: nnx.Rngs(params=jax.random.key(0))
    with layers.tree_mode():
        return nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs(), rules)), nnx.Param)
