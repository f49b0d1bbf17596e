"""Tests of grouped products against one product per group."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import schema
from lm.model import moe
from lm.model.kernels import grouped_products
from lm.parallel import mesh

NO_TOKAMAX = importlib.util.find_spec("tokamax") is None


def tiles(a_PX, w_EXY, size_E):
    return grouped_products.multiply_tiles(a_PX, w_EXY, size_E, 4)


def tokamax(a_PX, w_EXY, size_E):
    return grouped_products.multiply_groups("tokamax", a_PX, w_EXY, size_E, is_interpreted=True)


@pytest.mark.parametrize(
    "multiply",
    [
        tiles,
        pytest.param(
            tokamax, marks=pytest.mark.skipif(NO_TOKAMAX, reason="needs the extra kernels")
        ),
    ],
)
def test_rows_are_multiplied_with_the_weights_of_their_group(multiply):
    """Groups may be empty, and rows after the last group have no effect."""
    a_PX, w_EXY, dy_PY = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(12, 6), (4, 6, 5), (12, 5)])
    )

    @jax.jit
    def with_gradients(size_E, dy_PY):
        output, pullback = jax.vjp(lambda a, w: multiply(a, w, size_E), a_PX, w_EXY)
        return output, *pullback(dy_PY)

    for sizes in ((3, 0, 5, 2), (0, 0, 10, 0), (4, 4, 2, 0), (1, 1, 1, 1)):
        n, group_P = sum(sizes), np.repeat(np.arange(4), sizes)
        dy_PY = dy_PY.at[n:].set(0)
        y_PY, da_PX, dw_EXY = with_gradients(jnp.array(sizes, jnp.int32), dy_PY)
        w_PXY = np.asarray(w_EXY)[group_P]
        np.testing.assert_allclose(y_PY[:n], np.einsum("px,pxy->py", a_PX[:n], w_PXY), atol=1e-5)
        np.testing.assert_allclose(da_PX[:n], np.einsum("py,pxy->px", dy_PY[:n], w_PXY), atol=1e-5)
        expected_EXY = np.zeros(w_EXY.shape, np.float32)
        for p, group in enumerate(group_P):
            expected_EXY[group] += np.outer(a_PX[p], dy_PY[p])
        np.testing.assert_allclose(dw_EXY, expected_EXY, atol=1e-5)


def test_tiles_compute_only_the_experts_of_each_row():
    """XLA's ragged_dot on GPU computes all 16 experts for every row."""
    w_EXY = jax.ShapeDtypeStruct((16, 64, 64), jnp.float32)
    a_PX, size_E = (
        jax.ShapeDtypeStruct((256, 64), jnp.float32),
        jax.ShapeDtypeStruct((16,), "int32"),
    )

    def multiply(a_PX, w_EXY, size_E):
        return grouped_products.multiply_tiles(a_PX, w_EXY, size_E, 32)

    (scan,) = [
        equation
        for equation in jax.make_jaxpr(multiply)(a_PX, w_EXY, size_E)
        .jaxpr.eqns[0]
        .params["call_jaxpr"]
        .eqns
        if equation.primitive.name == "scan"
    ]
    assert scan.params["length"] * 32 == 256 + 16 * 32  # rows, and padding of at most one tile


@pytest.mark.parametrize("axes", [{}, {"data": 2, "expert": 2}])
def test_experts_are_equal_with_tiles_and_ragged_dot(axes):
    shapes = [
        schema.Model(d_model=16, d_ff=32, n_experts=4, expert_kernel=kernel)
        for kernel in ("xla", "tiles")
    ]
    x_BTD = jax.random.normal(jax.random.key(1), (4, 8, 16))
    key = jax.random.key(2)
    weight_BTK = jax.random.uniform(key, (4, 8, 2))
    expert_BTK = jnp.argsort(jax.random.uniform(key, (4, 8, 4)))[..., :2]
    weights = [
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(4, 16, 16), (4, 16, 16), (4, 16, 16)])
    ]

    def gradients(shape):
        def loss(x_BTD, *weights):
            y_BTD = moe.apply_experts(
                shape, mesh.DEFAULT_RULES, x_BTD, weight_BTK, expert_BTK, *weights
            )
            return jnp.sum(y_BTD**2)

        return jax.jit(jax.grad(loss, (0, 1, 2, 3)))(x_BTD, *weights)

    n_devices = 4 if axes else 1
    with jax.set_mesh(mesh.make_mesh(schema.Mesh(**axes), jax.devices()[:n_devices])):
        expected, actual = map(gradients, shapes)
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y).max())
