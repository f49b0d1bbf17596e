"""Causal attention in plain JAX: any device, any mesh, blocks of queries.

    o_BTNH = causal(q_BTNH, k_BSKH, v_BSKH, n_blocks=2)

Tensor names end in their axes: B batch, T query time, S key time, N query heads, K key/value heads,
G query heads a key/value head, H d_head, C blocks of queries.
"""

import jax
import jax.numpy as jnp

from lm import mesh

MASKED = -1e30  # a score no key survives; finite, so that its gradient is


@jax.named_scope("attention")
def causal(q_BTNH, k_BSKH, v_BSKH, n_blocks: int, segments_BT=None) -> jax.Array:
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
    k_BKSH, v_BKSH = (
        mesh.in_time(mesh.constrain(x_BSKH, "batch", None, "kv_heads", None), n_blocks).swapaxes(
            1, 2
        )
        for x_BSKH in (k_BSKH, v_BSKH)
    )
    blocks = []
    for block, start in enumerate(range(0, t, size)):
        end = start + size
        score_BKGTS = jnp.einsum(
            "bkgth,bksh->bkgts",
            blocks_CBKGTH[block],
            k_BKSH[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        seen_TS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        if segments_BT is not None:
            mine_BT = mesh.constrain(segments_BT[:, start:end], "batch", None)  # cut where it is
            same_BTS = mine_BT[:, :, None] == segments_BT[:, None, :end]
            seen_TS = (seen_TS & same_BTS)[:, None, None]
        score_BKGTS = jnp.where(seen_TS, score_BKGTS, MASKED)
        top_BKGT1 = jax.lax.stop_gradient(score_BKGTS.max(axis=-1, keepdims=True))
        exp_BKGTS = jnp.exp(score_BKGTS - top_BKGT1)
        sum_BKGT1 = exp_BKGTS.sum(axis=-1, keepdims=True)
        o_BKGTH = jnp.einsum(
            "bkgts,bksh->bkgth",
            exp_BKGTS.astype(v_BKSH.dtype),
            v_BKSH[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        # Divided here, not before the product: H numbers a query in place of S.
        blocks.append((o_BKGTH / sum_BKGT1).astype(v_BKSH.dtype))
    o_BKGTH = mesh.joined(jnp.stack(blocks), "length", axis=3)
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)
