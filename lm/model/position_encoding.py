"""Positions of tokens in their texts, and rotary embeddings of queries and keys.

    tables = select_tables(training_tables(model, n_tokens, rules), is_local)
    q_BTNH, k_BTKH = encode_positions(q_BTNH, k_BTKH, tables)

Tensor names end in their axes: B batch, T time, N query heads, K key/value heads, H d_head.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import model_sizes, schema
from lm.model.kernels import fused_attention
from lm.parallel import mesh

MAX_TABLE_SIZE = 2**20  # numbers of a table of rotary angles that is a constant of the program
# Waves per rope_original_length of the frequencies between which llama3 interpolates.
LOW_WAVES, HIGH_WAVES = 1.0, 4.0


class RotaryTables(NamedTuple):
    """Cosines and sines of a model, see `rotary_tables`; None without rotary embeddings.

    local: those of layers with a sliding window, None if they are equal.
    """

    full: tuple | None
    local: tuple | None


def positions_in_segment(tokens_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """Return the position of each token in its segment, int32 [B, T].

    Without segments, return the position in the row.
    """
    times_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if segments_BT is None:
        return times_BT
    return times_BT - fused_attention.segment_starts(segments_BT)


def rotary_tables(
    d_head: int,
    theta: float,
    times_T: jax.Array | np.ndarray,
    scale: Callable = lambda frequency_H: frequency_H,
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Return the cosines and the sines of the angles time x theta^(-2i/H), float32 [..., H/2].

    Source: Su et al. 2021, arXiv:2104.09864. times_T: the time of each position, [T], or [B, T] if
    rows differ. scale: changes the frequencies. The tables are NumPy arrays for a NumPy array, else
    JAX arrays.
    """
    xp, half = times_T.__array_namespace__(), d_head // 2
    frequency_H = xp.float32(theta) ** (-xp.arange(half, dtype=xp.float32) / half)
    angle_TH = times_T.astype(xp.float32)[..., None] * scale(frequency_H)
    return xp.cos(angle_TH), xp.sin(angle_TH)


def model_tables(
    model: schema.Model, times_T: jax.Array | np.ndarray, is_local: bool = False
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Return the tables of `rotary_tables` for the rotated part of the heads of a model.

    is_local: for a layer with a sliding window, which may have other frequencies.
    """
    if is_local and model.local_rope_theta:
        model = dataclasses.replace(
            model, rope_theta=model.local_rope_theta, rope_scaling="none", rope_factor=1.0
        )
    xp = times_T.__array_namespace__()
    scale = functools.partial(_scaled_frequencies, model, xp)
    return rotary_tables(model_sizes.rotary_size(model), model.rope_theta, times_T, scale)


def _scaled_frequencies(model: schema.Model, xp, frequency_H):
    """Return the frequencies that model.rope_scaling reduces, float32 [H/2].

    linear: position interpolation (Chen et al. 2023, arXiv:2306.15595). llama3: waves of more than
    rope_original_length are divided, those below a quarter of it are not, and the factor is
    interpolated between them (Llama 3, arXiv:2407.21783, and its published code).
    """
    if model.rope_scaling == "none":
        return frequency_H
    divided_H = frequency_H / xp.float32(model.rope_factor)
    if model.rope_scaling == "linear":
        return divided_H
    waves_H = model.rope_original_length * frequency_H / xp.float32(2 * math.pi)
    smooth_H = (waves_H - LOW_WAVES) / (HIGH_WAVES - LOW_WAVES)
    smooth_H = xp.clip(smooth_H, 0, 1).astype(xp.float32)
    return (1 - smooth_H) * divided_H + smooth_H * frequency_H


def training_tables(model: schema.Model, n_tokens: int, rules: mesh.ShardingRules) -> RotaryTables:
    """Return the tables of all layers for rows of n_tokens, in the order of the devices.

    See mesh.interleave_positions for the order. Small tables are constants of the program. Large
    tables are computed in the program once per step, and split over the devices like the rows.
    """
    is_small = n_tokens * model.d_head // 2 <= MAX_TABLE_SIZE
    n_blocks = model.attention_query_blocks
    if is_small:
        times_T = mesh.interleave_positions(np.arange(n_tokens), n_blocks, axis=0)
        return make_tables(model, times_T)
    times_T = mesh.interleave_positions(jnp.arange(n_tokens), n_blocks, axis=0)
    # The barrier prevents the computation of a cosine for each rotated number.
    return jax.lax.optimization_barrier(
        jax.tree.map(
            lambda table_TH: rules.constrain(jnp.asarray(table_TH), "length", None),
            make_tables(model, times_T),
        )
    )


def make_tables(model: schema.Model, times_T: jax.Array | np.ndarray) -> RotaryTables:
    """Return the tables of all layers for the times of positions, see `rotary_tables`."""
    if model.learned_positions:
        return RotaryTables(None, None)
    has_full = 0 in model_sizes.attention_windows(model)
    full = model_tables(model, times_T, is_local=not has_full)
    has_local = has_full and model.local_rope_theta > 0
    return RotaryTables(full, model_tables(model, times_T, is_local=True) if has_local else None)


def select_tables(tables: RotaryTables, is_local: jax.Array | bool | None) -> tuple | None:
    """Return the tables of a layer. is_local: True if the layer has a sliding window."""
    if tables.local is None or is_local is None:
        return tables.full
    if isinstance(is_local, bool):
        return tables.local if is_local else tables.full
    return jax.tree.map(lambda x, y: jnp.where(is_local, x, y), tables.local, tables.full)


def encode_positions(
    q_BTNH: jax.Array, k_BTKH: jax.Array, tables: tuple | None, scale: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Return the queries times H^-1/2 and the keys, both rotated by the tables of rotary_tables.

    Both steps are computed in float32 and rounded once. Attention does not scale the queries again.
    tables: None does not rotate. scale: replaces H^-1/2 unless it is 0.
    """
    scale = scale or q_BTNH.shape[-1] ** -0.5
    if tables is None:
        return (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype), k_BTKH
    rotated_q_BTNH, rotated_k_BTKH = (rotate_pairs(x, *tables) for x in (q_BTNH, k_BTKH))
    return (rotated_q_BTNH * scale).astype(q_BTNH.dtype), rotated_k_BTKH.astype(k_BTKH.dtype)


def rotate_pairs(x_BTNH: jax.Array, cos_TH, sin_TH) -> jax.Array:
    """Rotate the pairs (i, i + R/2) of the first R dimensions of each head, in float32.

    cos_TH, sin_TH: see rotary_tables. R is twice the size of their last axis.
    """
    cos, sin = cos_TH[..., None, :], sin_TH[..., None, :]
    x_BTNH = x_BTNH.astype(jnp.float32)
    half = cos_TH.shape[-1]
    if 2 * half < x_BTNH.shape[-1]:
        left, right, rest = jnp.split(x_BTNH, [half, 2 * half], axis=-1)
        rotated = [left * cos - right * sin, right * cos + left * sin, rest]
        return jnp.concatenate(rotated, axis=-1)
    left, right = jnp.split(x_BTNH, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
