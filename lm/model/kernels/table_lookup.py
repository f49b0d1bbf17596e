"""Lookup of rows in a sharded table, such as that of the token embeddings, and its gradient.

    x_BTD = look_up(table_VD, rows_BT, model.dtype, ("vocab", "embed"), rules)

Tensor names end in their axes: B batch, T time, V rows of the table, D d_model.
"""

import jax
import jax.numpy as jnp

from lm.parallel import mesh


def look_up(
    table_VD: jax.Array, rows_BT: jax.Array, dtype: str, names: tuple, rules: mesh.ShardingRules
) -> jax.Array:
    """Return rows of a table in another type, [B, T, D].

    The gradient of the table is summed in float32. In bfloat16, the sum of a frequent row would
    stop to grow after about 256 tokens. names: axis names of the table. The second axis is gathered
    before the lookup, because a lookup in a table that is split in both axes would gather the
    complete table on every device.
    """
    return _look_up(table_VD, rows_BT, dtype, names, rules)


def _look_up_rows(table_VD, rows_BT, dtype, names, rules) -> jax.Array:
    """Return the rows of `look_up`, without its gradient."""
    table_VD = rules.constrain(table_VD.astype(dtype), *names)
    return rules.constrain(table_VD, names[0], None)[rows_BT]


def _look_up_forward(table_VD, rows_BT, dtype, names, rules):
    return _look_up_rows(table_VD, rows_BT, dtype, names, rules), (table_VD, rows_BT)


def _look_up_backward(dtype, names, rules, residuals, dx_BTD):
    """Return the gradient of the table, with the sharding of the table."""
    table_VD, rows_BT = residuals
    gradient_VD = _sum_rows(table_VD.shape, rows_BT, dx_BTD, names, rules)
    return rules.constrain(gradient_VD, *names).astype(table_VD.dtype), None


_look_up = jax.custom_vjp(_look_up_rows, nondiff_argnums=(2, 3, 4))
_look_up.defvjp(_look_up_forward, _look_up_backward)


def _sum_rows(
    shape: tuple[int, ...],
    rows_BT: jax.Array,
    dx_BTD: jax.Array,
    names: tuple,
    rules: mesh.ShardingRules,
) -> jax.Array:
    """Return the float32 sum of the gradients of each row of the table, [V, D].

    Each device sums the rows of its part of the batch. A reduce-scatter over the axes that split
    the batch and D then gives each device its part of D. Without shard_map, the partitioner
    all-reduces the whole table, which sends twice the bytes.
    """
    current_mesh = jax.sharding.get_abstract_mesh()
    is_manual = current_mesh.empty or bool(current_mesh.manual_axes)
    sizes = {} if is_manual else dict(current_mesh.shape)
    token_axes = [axis for name in ("batch", "length") for axis in rules.mesh_axes(name)]
    split = [axis for axis in rules.mesh_axes(names[1]) if sizes.get(axis, 1) > 1]
    row_axes = [axis for axis in rules.mesh_axes(names[0]) if sizes.get(axis, 1) > 1]
    if not split or not set(split) <= set(token_axes) or set(row_axes) & set(token_axes):
        gradient_VD = _scatter_add(shape, rows_BT, dx_BTD)
        return rules.constrain(gradient_VD, names[0], None)

    n_row_shards = rules.shard_count(names[0])
    other_axes = tuple(axis for axis in token_axes if axis not in split)

    def local(rows_BT: jax.Array, dx_BTD: jax.Array) -> jax.Array:
        n_local_rows = shape[0] // n_row_shards
        shard = jax.lax.axis_index(tuple(row_axes)) if row_axes else 0
        gradient_VD = _scatter_add((n_local_rows, shape[1]), rows_BT - shard * n_local_rows, dx_BTD)
        for axis in split:
            gradient_VD = jax.lax.psum_scatter(gradient_VD, axis, scatter_dimension=1, tiled=True)
        return jax.lax.psum(gradient_VD, other_axes) if other_axes else gradient_VD

    in_specs = rules.spec(("batch", "length")), rules.spec(("batch", "length", None))
    out_specs = rules.spec(names)
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs)(rows_BT, dx_BTD)


def _scatter_add(shape: tuple[int, ...], rows_BT: jax.Array, dx_BTD: jax.Array) -> jax.Array:
    """Return the float32 sum of dx_BTD by row, of the given shape; other rows are skipped."""
    rows_BT = jnp.where(rows_BT < 0, shape[0], rows_BT)  # a negative index is out of bounds
    zeros_VD = jnp.zeros(shape, jnp.float32)
    return zeros_VD.at[rows_BT].add(dx_BTD.astype(jnp.float32), mode="drop")
