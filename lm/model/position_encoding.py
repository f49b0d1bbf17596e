"""Positions of tokens in their texts, and rotary embeddings of queries and keys.

    tables = training_tables(model, n_tokens, rules)
    q_BTNH, k_BTKH = encode_positions(q_BTNH, k_BTKH, tables)

Tensor names end in their axes: B batch, T time, N query heads, K key/value heads, H d_head.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import schema
from lm.model.kernels import fused_attention
from lm.parallel import mesh

MAX_TABLE_SIZE = 2**20  # numbers of a table of rotary angles that is a constant of the program


def positions_in_segment(tokens_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """Return the position of each token in its segment, int32 [B, T].

    Without segments, return the position in the row.
    """
    times_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if segments_BT is None:
        return times_BT
    return times_BT - fused_attention.segment_starts(segments_BT)


def rotary_tables(
    d_head: int, theta: float, times_T: jax.Array | np.ndarray
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Return the cosines and the sines of the angles time x theta^(-2i/H), float32 [..., H/2].

    Source: Su et al. 2021, arXiv:2104.09864. times_T: the time of each position, [T], or [B, T] if
    rows differ. The tables are NumPy arrays for a NumPy array, else JAX arrays.
    """
    xp, half = times_T.__array_namespace__(), d_head // 2
    frequency_H = xp.float32(theta) ** (-xp.arange(half, dtype=xp.float32) / half)
    angle_TH = times_T.astype(xp.float32)[..., None] * frequency_H
    return xp.cos(angle_TH), xp.sin(angle_TH)


def training_tables(model: schema.Model, n_tokens: int, rules: mesh.ShardingRules) -> tuple:
    """Return the tables of `rotary_tables` for rows of n_tokens, in the order of the devices.

    See mesh.interleave_positions for the order. Small tables are constants of the program. Large
    tables are computed in the program once per step, and split over the devices like the rows.
    """
    is_small = n_tokens * model.d_head // 2 <= MAX_TABLE_SIZE
    n_blocks = model.attention_query_blocks
    if is_small:
        times_T = mesh.interleave_positions(np.arange(n_tokens), n_blocks, axis=0)
        return rotary_tables(model.d_head, model.rope_theta, times_T)
    times_T = mesh.interleave_positions(jnp.arange(n_tokens), n_blocks, axis=0)
    tables = rotary_tables(model.d_head, model.rope_theta, times_T)
    # The barrier prevents the computation of a cosine for each rotated number.
    return jax.lax.optimization_barrier(
        tuple(rules.constrain(jnp.asarray(table_TH), "length", None) for table_TH in tables)
    )


def encode_positions(
    q_BTNH: jax.Array, k_BTKH: jax.Array, tables: tuple | None
) -> tuple[jax.Array, jax.Array]:
    """Return the queries times H^-1/2 and the keys, both rotated by the tables of rotary_tables.

    Both steps are computed in float32 and rounded once. Attention does not scale the queries again.
    tables: None does not rotate.
    """
    scale = q_BTNH.shape[-1] ** -0.5
    if tables is None:
        return (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype), k_BTKH
    rotated_q_BTNH, rotated_k_BTKH = (rotate_pairs(x, *tables) for x in (q_BTNH, k_BTKH))
    return (rotated_q_BTNH * scale).astype(q_BTNH.dtype), rotated_k_BTKH.astype(k_BTKH.dtype)


def rotate_pairs(x_BTNH: jax.Array, cos_TH, sin_TH) -> jax.Array:
    """Rotate the pairs (i, i + H/2) of each head, in float32. cos_TH, sin_TH: see rotary_tables."""
    cos, sin = cos_TH[..., None, :], sin_TH[..., None, :]
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
