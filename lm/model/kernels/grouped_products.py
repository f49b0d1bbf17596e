"""Products of sorted rows with the weights of their group, for dropless experts.

    y_PY = multiply_groups("tiles", a_PX, w_EXY, size_E)

Rows are sorted by group; group e has size_E[e] rows. Rows after the last group have no weights, and
their results are not defined.

Tensor names end in their axes: P rows, X input width, Y output width, E groups (experts), R rows of
a tile, I tiles.
"""

import functools
import importlib

import jax
import jax.numpy as jnp

from lm.model.kernels import tokamax_flags

TILE = 512  # rows; a tile of 512 x 1024 outputs fills 32 of the 132 multiprocessors of an H100


def multiply_groups(kernel: str, a_PX, w_EXY, size_E, is_interpreted: bool = False) -> jax.Array:
    """Return a[p] @ w[group of p] for each row, [P, Y].

    kernel: xla, tokamax or tiles, see kernel_table. is_interpreted: compute the reference of
    tokamax by XLA.
    """
    if kernel == "xla":
        return jax.lax.ragged_dot(a_PX, w_EXY, size_E)
    if kernel == "tiles":
        return multiply_tiles(a_PX, w_EXY, size_E, min(TILE, a_PX.shape[0]))
    if kernel != "tokamax":
        raise ValueError(f"kernel={kernel!r} must be xla, tiles or tokamax for dropless experts")
    tokamax = importlib.import_module("tokamax")
    tokamax_flags.use_default_flags()
    # Mosaic serves Hopper. On Blackwell it has no kernel for the gradient of the weights, and the
    # other kernels of tokamax, in Triton, serve every GPU from Ampere on.
    kind = jax.devices()[0].device_kind
    is_hopper = any(name in kind for name in ("H100", "H200", "GH200", "H800", "H20"))
    implementation = "xla" if is_interpreted else "mosaic" if is_hopper else "triton"
    return tokamax.ragged_dot(a_PX, w_EXY, size_E, implementation=implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def multiply_tiles(a_PX, w_EXY, size_E, n_tile_rows: int) -> jax.Array:
    """Return a[p] @ w[group of p] by a loop over tiles that each have rows of one group.

    The last tile of a group is padded with zeros, so the loop computes at most n_tile_rows - 1
    additional rows per group. Rows after the last group are 0.
    """
    return _forward(a_PX, w_EXY, size_E, n_tile_rows)[0]


def _tiles(size_E: jax.Array, n_rows: int, n_tile_rows: int) -> tuple[jax.Array, jax.Array]:
    """Return (group_I, row_IR): the group of each tile, and the rows of each tile.

    row_IR is n_rows for padding. Unused tiles consist of padding.
    """
    n_tiles = -(-n_rows // n_tile_rows) + size_E.shape[0]
    n_tiles_E = -(-size_E // n_tile_rows)
    end_E = jnp.cumsum(n_tiles_E)
    group_I = jnp.searchsorted(end_E, jnp.arange(n_tiles), side="right")
    is_used_I = group_I < size_E.shape[0]
    group_I = jnp.minimum(group_I, size_E.shape[0] - 1)
    index_I = jnp.arange(n_tiles) - (end_E - n_tiles_E)[group_I]  # tile within its group
    offset_IR = index_I[:, None] * n_tile_rows + jnp.arange(n_tile_rows)
    is_row_IR = is_used_I[:, None] & (offset_IR < size_E[group_I][:, None])
    start_E = jnp.cumsum(size_E) - size_E
    return group_I, jnp.where(is_row_IR, start_E[group_I][:, None] + offset_IR, n_rows)


def _rows(x_PX: jax.Array, row_R: jax.Array) -> jax.Array:
    """Return the rows of a tile, with zeros for padding."""
    return x_PX.at[row_R].get(mode="fill", fill_value=0)


def _merge(tile_IRY: jax.Array, row_IR: jax.Array, n_rows: int) -> jax.Array:
    """Return the rows of all tiles in their original order, [P, Y]."""
    y_PY = jnp.zeros((n_rows, tile_IRY.shape[-1]), tile_IRY.dtype)
    rows = tile_IRY.reshape(-1, tile_IRY.shape[-1])
    return y_PY.at[row_IR.reshape(-1)].set(rows, mode="drop", unique_indices=False)


def _forward(a_PX, w_EXY, size_E, n_tile_rows: int):
    """Return the result of `multiply_tiles` and the residuals of `_backward`."""
    group_I, row_IR = _tiles(size_E, a_PX.shape[0], n_tile_rows)

    def multiply(_, tile):
        group, row_R = tile
        return None, _rows(a_PX, row_R) @ w_EXY[group]

    _, tile_IRY = jax.lax.scan(multiply, None, (group_I, row_IR))
    return _merge(tile_IRY, row_IR, a_PX.shape[0]), (a_PX, w_EXY, size_E)


def _backward(n_tile_rows: int, residuals, dy_PY):
    """Return the gradients of a and w, and None for the sizes."""
    a_PX, w_EXY, size_E = residuals
    group_I, row_IR = _tiles(size_E, a_PX.shape[0], n_tile_rows)

    def multiply(dw_EXY, tile):
        group, row_R = tile
        dy_RY = _rows(dy_PY, row_R)
        dw_XY = jnp.einsum(
            "rx,ry->xy", _rows(a_PX, row_R), dy_RY, preferred_element_type=jnp.float32
        )
        return dw_EXY.at[group].add(dw_XY), dy_RY @ w_EXY[group].T

    # The sum over tiles is float32, as in a single product.
    zero_EXY = jnp.zeros(w_EXY.shape, jnp.float32)
    dw_EXY, tile_IRX = jax.lax.scan(multiply, zero_EXY, (group_I, row_IR))
    return _merge(tile_IRX, row_IR, a_PX.shape[0]), dw_EXY.astype(w_EXY.dtype), None


multiply_tiles.defvjp(_forward, _backward)


def multiply_experts(
    a_PX, weight_EXY, master_EXY, size_E, gradient_dtype: str, kernel: str
) -> jax.Array:
    """Return the products of slots and weights of their experts, [P, Y].

    size_E: number of slots of each expert; None if all experts have as many. master_EXY: the
    float32 weight. Its values are not read; it receives the gradient, which is computed in
    gradient_dtype and added over devices in float32. The kernels tiles and tokamax compute it in
    the type of the activations. kernel: see multiply_groups.
    """
    return _multiply_experts(a_PX, weight_EXY, master_EXY, size_E, gradient_dtype, kernel)


def _product(a_PX, weight_EXY, size_E, kernel: str) -> jax.Array:
    """Return the products of `multiply_experts`."""
    if size_E is not None:
        return multiply_groups(kernel, a_PX, weight_EXY, size_E)
    a_EPX = a_PX.reshape(weight_EXY.shape[0], -1, a_PX.shape[1])
    return jnp.einsum("epx,exy->epy", a_EPX, weight_EXY).reshape(-1, weight_EXY.shape[2])


def _forward_experts(a_PX, weight_EXY, master_EXY, size_E, gradient_dtype, kernel):
    y_PY = _product(a_PX, weight_EXY, size_E, kernel)
    return y_PY, (a_PX, weight_EXY, size_E)


def _backward_experts(gradient_dtype, kernel, residuals, dy_PY):
    """Return the gradients of the slots and of the float32 weight."""
    a_PX, weight_EXY, size_E = residuals
    if size_E is not None and kernel != "xla":
        pullback = jax.vjp(
            lambda a_PX, w_EXY: multiply_groups(kernel, a_PX, w_EXY, size_E), a_PX, weight_EXY
        )[1]
        da_PX, dweight_EXY = pullback(dy_PY)
        return da_PX, None, dweight_EXY.astype(jnp.float32), None

    def multiply(a_PX):
        return _product(a_PX, weight_EXY, size_E, kernel)

    (da_PX,) = jax.linear_transpose(multiply, a_PX)(dy_PY)
    dtype = jnp.dtype(gradient_dtype)
    if size_E is not None:
        numbers = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
        dmaster_EXY = jax.lax.ragged_dot_general(
            a_PX, dy_PY, size_E, numbers, preferred_element_type=dtype
        )
    else:
        a_EPX, dy_EPY = (x.reshape(len(weight_EXY), -1, x.shape[1]) for x in (a_PX, dy_PY))
        dmaster_EXY = jnp.einsum("epx,epy->exy", a_EPX, dy_EPY, preferred_element_type=dtype)
        dmaster_EXY = jax.lax.optimization_barrier(dmaster_EXY)  # see layers.project
    return da_PX, None, dmaster_EXY.astype(jnp.float32), None


def _multiply_first(a_PX, weight_EXY, master_EXY, size_E, gradient_dtype, kernel) -> jax.Array:
    """Return the products of `multiply_experts`, without its gradients."""
    return _product(a_PX, weight_EXY, size_E, kernel)


_multiply_experts = jax.custom_vjp(_multiply_first, nondiff_argnums=(4, 5))
_multiply_experts.defvjp(_forward_experts, _backward_experts)
