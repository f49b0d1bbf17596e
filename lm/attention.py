"""Causal attention in plain JAX: any device, any mesh, blocks of queries.

    o_BTNH = causal(q_BTNH, k_BSKH, v_BSKH, n_blocks=2)

Tensor names end in their axes: B batch, T query time, S key time, N query heads, K key/value heads,
G query heads a key/value head, M the queries of a key/value head (G x T of them), H d_head,
C blocks of queries.
"""

import jax
import jax.numpy as jnp

from lm import mesh

MASKED = -1e30  # a score no key survives; finite, so that its gradient is


@jax.named_scope("attention")
def causal(
    q_BTNH, k_BSKH, v_BSKH, n_blocks: int, segments_BT=None, rules=mesh.DEFAULT_RULES
) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the keys not later than the query, in blocks of queries.

    Block i of n_blocks multiplies only with the keys up to its own end, so that about half of the
    masked scores are never computed; the result does not depend on n_blocks. segments_BT: numbers
    of documents, in the order of time; a query sees the keys of its own alone.

    Where rows are split over devices, q, k, v and the result are in the order of `mesh.dealt`:
    every device has an equal share of every block, and so of the work. It gathers all keys.
    """
    b, t, n, h = q_BTNH.shape
    k = k_BSKH.shape[2]
    size = t // n_blocks
    q_BKGTH = (q_BTNH * h**-0.5).reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    blocks_CBKGTH = mesh.pieces(q_BKGTH, n_blocks, "length", axis=3)
    whole = (
        rules.constrain(x_BSKH, "batch", None, "kv_heads", None) for x_BSKH in (k_BSKH, v_BSKH)
    )
    k_BKSH, v_BKSH = (mesh.in_time(x_BSKH, n_blocks).swapaxes(1, 2) for x_BSKH in whole)
    blocks = []
    for block, start in enumerate(range(0, t, size)):
        end = start + size
        seen_TS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        if segments_BT is not None:
            mine_BT = rules.constrain(segments_BT[:, start:end], "batch", None)  # cut where it is
            same_BTS = mine_BT[:, :, None] == segments_BT[:, None, :end]
            seen_TS = (seen_TS & same_BTS)[:, None]
        # Added, not selected: s + 0 is s, and s + MASKED is MASKED, in one pass the fewer.
        hidden_TS = jnp.where(seen_TS, 0.0, MASKED)
        hidden_MS = jnp.concatenate([hidden_TS] * (n // k), axis=-2)
        o_BKMH = _block(
            blocks_CBKGTH[block].reshape(b, k, n // k * size, h),
            k_BKSH[:, :, :end],
            v_BKSH[:, :, :end],
            hidden_MS,
        )
        blocks.append(o_BKMH.reshape(b, k, n // k, size, h))
    o_BKGTH = mesh.joined(jnp.stack(blocks), "length", axis=3)
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


@jax.custom_vjp
def _block(q_BKMH, k_BKSH, v_BKSH, hidden_MS) -> jax.Array:
    """softmax(q k + hidden) v. Its gradient is written out for CPU: see `_small`."""
    return _forward(q_BKMH, k_BKSH, v_BKSH, hidden_MS)[0]


def _forward(q_BKMH, k_BKSH, v_BKSH, hidden_MS):
    score_BKMS = _product("bkmh,bksh->bkms", q_BKMH, k_BKSH) + hidden_MS
    exp_BKMS = jnp.exp(score_BKMS - score_BKMS.max(axis=-1, keepdims=True))
    sum_BKM1 = exp_BKMS.sum(axis=-1, keepdims=True)
    exp_BKMS = exp_BKMS.astype(v_BKSH.dtype)
    # Divided after the product, not before: H numbers a query in place of S.
    o_BKMH = (_product("bkms,bksh->bkmh", exp_BKMS, v_BKSH) / sum_BKM1).astype(v_BKSH.dtype)
    return o_BKMH, (q_BKMH, k_BKSH, v_BKSH, exp_BKMS, sum_BKM1, o_BKMH)


def _backward(kept, do_BKMH):
    """With p = exp / sum: dv = p do, ds = p (do v - do o), dq = ds k, dk = ds q."""
    q_BKMH, k_BKSH, v_BKSH, exp_BKMS, sum_BKM1, o_BKMH = kept
    do_BKMH = do_BKMH / sum_BKM1
    inner_BKM1 = (do_BKMH * o_BKMH).sum(axis=-1, keepdims=True)
    do_BKMH = do_BKMH.astype(v_BKSH.dtype)
    dexp_BKMS = _product("bkmh,bksh->bkms", do_BKMH, v_BKSH)
    ds_BKMS = (exp_BKMS * (dexp_BKMS - inner_BKM1)).astype(q_BKMH.dtype)
    dq_BKMH = _product("bkms,bksh->bkmh", ds_BKMS, k_BKSH)
    dk_BKSH, dv_BKSH = _small(q_BKMH, ds_BKMS), _small(do_BKMH, exp_BKMS)
    return *(dx.astype(q_BKMH.dtype) for dx in (dq_BKMH, dk_BKSH, dv_BKSH)), None


def _small(x_BKMH, score_BKMS) -> jax.Array:
    """The sum over queries of score x: [B, K, S, H].

    XLA on CPU brings the left operand of a product into the order in which it is read. Scores there
    cost four times the product itself, so x is there, and the barrier keeps XLA from turning the
    product round again.
    """
    found_BKHS = _product("bkmh,bkms->bkhs", x_BKMH, score_BKMS)
    return jax.lax.optimization_barrier(found_BKHS).swapaxes(2, 3)


def _product(axes: str, left, right) -> jax.Array:
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


_block.defvjp(_forward, _backward)
