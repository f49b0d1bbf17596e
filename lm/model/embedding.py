"""Token embedding: the lookup of rows in a sharded table, and the gradient of the table.

    x_BTD = look_up(embed_VD, tokens_BT, model.dtype, rules)

Tensor names end in their axes: B batch, T time, V vocabulary, D d_model.
"""

import functools

import jax
import jax.numpy as jnp

from lm.parallel import mesh


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def look_up(
    embed_VD: jax.Array, tokens_BT: jax.Array, dtype: str, rules: mesh.ShardingRules
) -> jax.Array:
    """Return the rows of the tokens in another type, [B, T, D].

    The gradient of the table is summed in float32. In bfloat16, the sum of a frequent row would
    stop to grow after about 256 tokens.
    """
    # The "embed" axis is gathered before the lookup, because a lookup in a table that is split in
    # both axes would gather the complete table on every device.
    return rules.constrain(embed_VD.astype(dtype), "vocab", None)[tokens_BT]


def _look_up_forward(embed_VD, tokens_BT, dtype, rules):
    return look_up(embed_VD, tokens_BT, dtype, rules), (embed_VD, tokens_BT)


def _look_up_backward(dtype, rules, residuals, dx_BTD):
    """Return the gradient of the table, with the sharding of the table."""
    embed_VD, tokens_BT = residuals
    return _sum_rows(embed_VD.shape, tokens_BT, dx_BTD, rules).astype(embed_VD.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


def _sum_rows(
    shape: tuple[int, ...], tokens_BT: jax.Array, dx_BTD: jax.Array, rules: mesh.ShardingRules
) -> jax.Array:
    """Return the float32 sum of the gradients of each token of the vocabulary, [V, D].

    Each device sums the tokens of its part of the batch. A reduce-scatter over the axes that split
    the batch and D then gives each device its part of D. Without shard_map, the partitioner
    all-reduces the whole table, which sends twice the bytes.
    """
    current_mesh = jax.sharding.get_abstract_mesh()
    is_manual = current_mesh.empty or bool(current_mesh.manual_axes)
    sizes = {} if is_manual else dict(current_mesh.shape)
    token_axes = [axis for name in ("batch", "length") for axis in rules.mesh_axes(name)]
    split = [axis for axis in rules.mesh_axes("embed") if sizes.get(axis, 1) > 1]
    vocab_axes = [axis for axis in rules.mesh_axes("vocab") if sizes.get(axis, 1) > 1]
    if not split or not set(split) <= set(token_axes) or set(vocab_axes) & set(token_axes):
        gradient_VD = _scatter_add(shape, tokens_BT, dx_BTD)
        return rules.constrain(gradient_VD, "vocab", None)

    n_vocab_shards = rules.shard_count("vocab")
    other_axes = tuple(axis for axis in token_axes if axis not in split)

    def local(tokens_BT: jax.Array, dx_BTD: jax.Array) -> jax.Array:
        n_rows = shape[0] // n_vocab_shards
        shard = jax.lax.axis_index(tuple(vocab_axes)) if vocab_axes else 0
        gradient_VD = _scatter_add((n_rows, shape[1]), tokens_BT - shard * n_rows, dx_BTD)
        for axis in split:
            gradient_VD = jax.lax.psum_scatter(gradient_VD, axis, scatter_dimension=1, tiled=True)
        return jax.lax.psum(gradient_VD, other_axes) if other_axes else gradient_VD

    in_specs = rules.spec(("batch", "length")), rules.spec(("batch", "length", None))
    out_specs = rules.spec(("vocab", "embed"))
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs)(tokens_BT, dx_BTD)


def _scatter_add(shape: tuple[int, ...], tokens_BT: jax.Array, dx_BTD: jax.Array) -> jax.Array:
    """Return the float32 sum of dx_BTD by token, of the given shape; other tokens are skipped."""
    tokens_BT = jnp.where(tokens_BT < 0, shape[0], tokens_BT)  # a negative index is out of bounds
    zeros_VD = jnp.zeros(shape, jnp.float32)
    return zeros_VD.at[tokens_BT].add(dx_BTD.astype(jnp.float32), mode="drop")
