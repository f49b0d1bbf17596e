"""Norms against NumPy, and scales of the initial weights."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import schema
from lm.model import layers, transformer
from lm.model.kernels import table_lookup
from lm.parallel import mesh

SHAPE = schema.Model(
    vocab_size=64, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_head=12, d_ff=80
)
X = np.random.default_rng(0).normal(1.0, 2.0, (5, 32)).astype(np.float32)


@pytest.mark.parametrize("name", ["rms", "layer"])
def test_norm_divides_by_the_root_of_the_moment_and_epsilon(name):
    with layers.tree_mode():
        norm = layers.make_norm(dataclasses.replace(SHAPE, norm=name, norm_eps=0.5), 32)
        y = np.asarray(norm(X))
    centered = X - X.mean(1, keepdims=True) if name == "layer" else X
    expected = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 0.5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_initial_weights_have_unit_scale_and_small_outputs():
    """A matrix has deviation 1 / sqrt(inputs). Outputs of a block are divided by sqrt(2 layers)."""
    params = jax.device_get(jax.jit(lambda: transformer.init_params(SHAPE, 0))())
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    depth = (2 * 3) ** -0.5
    for weight, std in (
        (params["embed"], 32**-0.5),
        (params["head"], 32**-0.5),
        (attention["query"], 32**-0.5),
        (attention["out"], depth * (4 * 12) ** -0.5),
        (mlp["up"], 32**-0.5),
        (mlp["gate"], 32**-0.5),
        (mlp["down"], depth * 80**-0.5),
    ):
        assert float(weight.std()) == pytest.approx(std, rel=0.07)


def exact_table_gradient(rows: np.ndarray, dy: np.ndarray, n_rows: int) -> np.ndarray:
    """Return the gradient of a table [V, D] in float64."""
    gradient_VD = np.zeros((n_rows, dy.shape[-1]))
    np.add.at(gradient_VD, rows.ravel(), dy.astype(np.float64).reshape(-1, dy.shape[-1]))
    return gradient_VD


@pytest.mark.parametrize("axes", [{}, {"data": 1, "fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("n_runs", [1, 2])
def test_gradient_of_a_frequent_row_is_exact_in_bfloat16(axes, n_runs):
    """Half of 65,536 tokens are equal. A sum in bfloat16 has an error of more than 50%."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 16, (n_runs, 64, 1024))
    rows = np.where(rng.random(rows.shape) < 0.5, 3, rows)
    dy = jnp.asarray(rng.normal(1.0, 1.0, (*rows.shape, 4)), jnp.bfloat16)
    table_VD = jnp.ones((n_runs, 16, 4))

    def gradient(table_VD, rows_BT, dy_BTD):
        def product(table_VD):
            names = ("vocab", "embed")
            x_BTD = table_lookup.look_up(table_VD, rows_BT, "bfloat16", names, mesh.DEFAULT_RULES)
            return (x_BTD * dy_BTD).astype(jnp.float32).sum()

        return jax.grad(product)(table_VD)

    with contextlib.ExitStack() as stack:
        if axes:
            stack.enter_context(jax.set_mesh(mesh.make_mesh(schema.Mesh(**axes))))
        actual = jax.jit(jax.vmap(gradient))(table_VD, rows, dy)
    for run in range(n_runs):
        expected = exact_table_gradient(rows[run], np.asarray(dy[run], np.float32), 16)
        np.testing.assert_allclose(actual[run], expected, rtol=1e-5, atol=0.1)


def test_gradient_of_learned_positions_is_exact_in_bfloat16():
    """Positions beyond the table add to its last row."""
    rows = np.broadcast_to(np.arange(6), (2048, 6))
    dy = np.ones((*rows.shape, 4))

    def product(table_PD):
        options = ("bfloat16", ("positions", "embed"), mesh.DEFAULT_RULES)
        x = table_lookup.look_up(table_PD, jnp.clip(rows, 0, 4), *options)
        return x.astype(jnp.float32).sum()

    actual = jax.jit(jax.grad(product))(jnp.ones((5, 4)))
    np.testing.assert_array_equal(actual, exact_table_gradient(np.minimum(rows, 4), dy, 5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weight_and_bias_gradients_are_summed_in_float32(dtype):
    """The sums of 16,384 equal summands are exact. In bfloat16 they have an error of 80%."""
    x_BTD = jnp.ones((128, 128, 4), dtype)
    weight, head, bias = jnp.ones((4, 2, 3)), jnp.ones((4, 5)), jnp.zeros((2, 3))

    def total(weight, head, bias):
        y = layers.add_bias(layers.project_shared(x_BTD, weight), bias)
        z = layers.project(y, jnp.ones((2, 3, 4)), n_axes=2)
        logits = layers.project_to_float32(z * 0 + x_BTD, head.astype(dtype), head)
        return y.astype(jnp.float32).sum() + logits.sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(weight, head, bias)
    for gradient in gradients:
        assert gradient.dtype == jnp.float32
        np.testing.assert_array_equal(gradient, 128 * 128)
