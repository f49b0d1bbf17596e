"""Causal attention: a blockwise kernel in plain JAX, and the call of the selected kernel.

    attend = make_attend(model, rules, tables, is_local, segments_BT)
    o_BTNH = attend(q_BTNH, k_BSKH, v_BSKH)

model.attention names the kernel: plain is `blockwise_attention`, for any device and any mesh, and
lm/model/kernels/ has the others. kernels/kernel_table.py selects the kernel of a run.

Tensor names end in their axes: B batch, T query time, S key time, N query heads, K key/value heads,
G query heads per key/value head, M the G x T queries of a key/value head, H d_head, C blocks of
queries.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config import schema
from lm.model import position_encoding
from lm.model.kernels import fused_attention, remat_policies
from lm.parallel import mesh

MASK_VALUE = -1e30  # finite, because the gradient of -inf is NaN
FUSED = ("splash", "cudnn", "tokamax")


class Variant(NamedTuple):
    """Sliding window and cap of scores of a layer.

    window: keys per query; 0 is all earlier keys (Beltagy et al. 2020, arXiv:2004.05150). softcap:
    cap c of scores, c tanh(score / c) (Gemma 2, arXiv:2408.00118); 0 is off. is_local: True if the
    layer has the window, where layers differ; None: it has.
    """

    window: int = 0
    softcap: float = 0.0
    is_local: jax.Array | None = None

    def largest_age(self, n_keys: int) -> jax.Array | int:
        """Return the number of positions from a query back to its first key, exclusive."""
        return (
            self.window if self.is_local is None else jnp.where(self.is_local, self.window, n_keys)
        )


PLAIN = Variant()


@jax.named_scope("attention")
def blockwise_attention(
    q_BTNH, k_BSKH, v_BSKH, n_blocks: int, segments_BT=None, rules=mesh.DEFAULT_RULES,
    variant: Variant = PLAIN,
) -> jax.Array:  # fmt: skip
    """Return softmax(q k) v over the earlier and equal keys, [B, T, N, H].

    Each of n_blocks multiplies only with the keys of `key_range`. About half of the masked scores
    are therefore never computed. The result does not depend on n_blocks.

    segments_BT: document numbers in the original order of time. A query attends only to the keys
    of its own document. variant: the window and the cap.

    If the rows are split over devices, q, k, v and the result are in the order of
    `mesh.interleave_positions`. Each device then has an equal part of every block, and all devices
    do the same work. The keys and values of a row are gathered on every device.
    """
    b, t, n, h = q_BTNH.shape
    k = k_BSKH.shape[2]
    block_size = t // n_blocks
    q_BKGTH = q_BTNH.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    blocks_CBKGTH = mesh.split_chunks(q_BKGTH, n_blocks, "length", axis=3)
    gathered = (
        rules.constrain(x_BSKH, "batch", None, "kv_heads", None) for x_BSKH in (k_BSKH, v_BSKH)
    )
    k_BKSH, v_BKSH = (mesh.restore_order(x_BSKH, n_blocks).swapaxes(1, 2) for x_BSKH in gathered)
    outputs = []
    for block, start in enumerate(range(0, t, block_size)):
        # Layers that differ share a program, so their blocks have the keys of all layers.
        static_window = variant.window if variant.is_local is None else 0
        first, end = key_range(start, block_size, static_window)
        mask_TS = jnp.arange(start, end)[:, None] >= jnp.arange(first, end)
        if variant.window:
            age_TS = jnp.arange(start, end)[:, None] - jnp.arange(first, end)
            mask_TS &= age_TS < variant.largest_age(t)
        if segments_BT is not None:
            query_segments_BT = rules.constrain(segments_BT[:, start:end], "batch", None)
            is_same_BTS = query_segments_BT[:, :, None] == segments_BT[:, None, first:end]
            mask_TS = (mask_TS & is_same_BTS)[:, None]
        # An added bias needs one pass over the scores less than a selection. s + MASK_VALUE is
        # MASK_VALUE in float32.
        bias_TS = jnp.where(mask_TS, 0.0, MASK_VALUE)
        bias_MS = jnp.concatenate([bias_TS] * (n // k), axis=-2)
        o_BKMH: jax.Array = _biased_attention(
            blocks_CBKGTH[block].reshape(b, k, n // k * block_size, h),
            k_BKSH[:, :, first:end],
            v_BKSH[:, :, first:end],
            bias_MS,
            variant.softcap,
        )
        outputs.append(o_BKMH.reshape(b, k, n // k, block_size, h))
    o_BKGTH = mesh.merge_chunks(jnp.stack(outputs), "length", axis=3)
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


def key_range(start: int, size: int, window: int) -> tuple[int, int]:
    """Return the first key that any query of a block attends to, and the key after the last.

    start, size: first query and number of queries of the block. window: keys per query; 0 is all.
    """
    return max(0, start - window + 1) if window else 0, start + size


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _biased_attention(q_BKMH, k_BKSH, v_BKSH, bias_MS, cap: float) -> jax.Array:
    """Return softmax(score + bias) v, [B, K, M, H], with score = q k, or cap tanh(q k / cap).

    The gradient is explicit because the gradient of autodiff is slow on CPU: see
    `_sum_over_queries`.
    """
    return _forward(q_BKMH, k_BKSH, v_BKSH, bias_MS, cap)[0]


def _forward(q_BKMH, k_BKSH, v_BKSH, bias_MS, cap: float):
    """Return the output of `_biased_attention` and the residuals of `_backward`."""
    score_BKMS = _product("bkmh,bksh->bkms", q_BKMH, k_BKSH)
    tanh_BKMS = jnp.tanh(score_BKMS / cap) if cap else None
    score_BKMS = (score_BKMS if tanh_BKMS is None else cap * tanh_BKMS) + bias_MS
    exp_BKMS = jnp.exp(score_BKMS - score_BKMS.max(axis=-1, keepdims=True))
    sum_BKM1 = exp_BKMS.sum(axis=-1, keepdims=True)
    exp_BKMS = exp_BKMS.astype(v_BKSH.dtype)
    exp_BKMS = remat_policies.name_activation(exp_BKMS, "attention_scores")
    sum_BKM1 = remat_policies.name_activation(sum_BKM1, "attention_scores")
    # Dividing the product costs H divisions per query, dividing the scores would cost S.
    o_BKMH = (_product("bkms,bksh->bkmh", exp_BKMS, v_BKSH) / sum_BKM1).astype(v_BKSH.dtype)
    o_BKMH = remat_policies.name_activation(o_BKMH, "attention_output")
    return o_BKMH, (q_BKMH, k_BKSH, v_BKSH, exp_BKMS, sum_BKM1, o_BKMH, tanh_BKMS)


def _backward(cap: float, residuals, do_BKMH):
    """Return dq, dk, dv and None for the bias, from the gradient of the output.

    With p = exp / sum: dv = p do, ds = p (do v - do o), dq = ds k, dk = ds q. A cap multiplies ds
    by 1 - tanh^2.
    """
    q_BKMH, k_BKSH, v_BKSH, exp_BKMS, sum_BKM1, o_BKMH, tanh_BKMS = residuals
    do_BKMH = do_BKMH / sum_BKM1
    inner_BKM1 = (do_BKMH * o_BKMH).sum(axis=-1, keepdims=True)
    do_BKMH = do_BKMH.astype(v_BKSH.dtype)
    dexp_BKMS = _product("bkmh,bksh->bkms", do_BKMH, v_BKSH)
    ds_BKMS = exp_BKMS * (dexp_BKMS - inner_BKM1)
    ds_BKMS = ds_BKMS if tanh_BKMS is None else ds_BKMS * (1 - tanh_BKMS * tanh_BKMS)
    ds_BKMS = ds_BKMS.astype(q_BKMH.dtype)
    dq_BKMH = _product("bkms,bksh->bkmh", ds_BKMS, k_BKSH)
    dk_BKSH, dv_BKSH = _sum_over_queries(q_BKMH, ds_BKMS), _sum_over_queries(do_BKMH, exp_BKMS)
    return *(dx.astype(q_BKMH.dtype) for dx in (dq_BKMH, dk_BKSH, dv_BKSH)), None


def _sum_over_queries(x_BKMH, score_BKMS) -> jax.Array:
    """Return the sum over queries of score times x, [B, K, S, H].

    XLA on CPU copies the left operand of a product into the order in which it is read. A copy of
    the scores costs four times the product itself, so x is the left operand. The barrier prevents
    XLA from exchanging the operands.
    """
    sum_BKHS = _product("bkmh,bkms->bkhs", x_BKMH, score_BKMS)
    return jax.lax.optimization_barrier(sum_BKHS).swapaxes(2, 3)


def _product(axes: str, left, right) -> jax.Array:
    """Return the einsum of two arrays, accumulated in float32."""
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


_biased_attention.defvjp(_forward, _backward)


def attend(
    shape: schema.Model, rules: mesh.ShardingRules, q_BTNH, k_BSKH, v_BSKH, segments_BT=None,
    is_local: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Return softmax(q k) v over the earlier and equal keys of the same segment.

    The caller has multiplied the queries by H^-1/2, see position_encoding.encode_positions. The
    kernel is shape.attention; "auto" is plain attention. Only plain attention has a sliding window
    and a cap of scores. is_local: see Variant. The result is [B, T, N, H].
    """
    n_blocks = shape.attention_query_blocks
    if shape.attention in FUSED:
        return fused_attention.attend_fused(
            shape.attention, rules, q_BTNH, k_BSKH, v_BSKH, segments_BT, n_blocks
        )
    variant = Variant(shape.sliding_window, shape.attention_softcap, is_local)
    return blockwise_attention(q_BTNH, k_BSKH, v_BSKH, n_blocks, segments_BT, rules, variant)


def make_attend(
    model: schema.Model,
    rules: mesh.ShardingRules,
    tables: position_encoding.RotaryTables,
    is_local: jax.Array | None,
    segments_BT: jax.Array | None,
) -> Callable:
    """Return the function `attend` of transformer.Attention for complete rows of one layer.

    is_local: see Variant.
    """

    def attend_layer(q_BTNH, k_BSKH, v_BSKH):
        layer_tables = position_encoding.select_tables(tables, is_local)
        q_BTNH, k_BSKH = position_encoding.encode_positions(
            q_BTNH, k_BSKH, layer_tables, model.attention_scale
        )
        k_BSKH = rules.constrain(k_BSKH, "batch", "length", "kv_heads", "d_head")
        v_BSKH = rules.constrain(v_BSKH, "batch", "length", "kv_heads", "d_head")
        return attend(model, rules, q_BTNH, k_BSKH, v_BSKH, segments_BT, is_local)

    return attend_layer
