"""Norms against NumPy, and scales of the initial weights."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.config import schema
from lm.model import layers, transformer

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
    params = jax.jit(lambda: transformer.init_params(SHAPE, 0))()
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
