"""Layer numbers as arguments of the compiled step: equal bits, and fewer operations to compile."""

import re

import jax
import numpy as np
import pytest

from lm.config import schema
from lm.model import transformer
from lm.model.kernels import layer_loop

SHAPE = {"vocab_size": 64, "d_model": 16, "n_layers": 4, "n_heads": 2, "n_kv_heads": 2}
SHAPE |= {"d_head": 8, "d_ff": 32}
TOKENS_BT = np.random.default_rng(0).integers(64, size=(2, 17), dtype=np.int32)


def make_gradient(model: schema.Model) -> tuple:
    """Return the gradient of the mean loss, a function of (weights, layer_numbers), and shapes."""

    def mean_loss(weights, layer_numbers):
        nats_BT, _, _, routing = transformer.token_losses(
            model, weights, TOKENS_BT, layer_numbers=layer_numbers
        )
        return nats_BT.mean(), routing

    gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    weights = jax.eval_shape(lambda: transformer.init_params(model, 0))
    return gradient, weights


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"remat": "elementwise"},
        {"sliding_window": 8, "full_attention_interval": 2},
        pytest.param({"n_experts": 4, "d_expert": 8}, marks=pytest.mark.slow),
    ],
)
def test_layer_numbers_do_not_change_a_bit(fields):
    model = schema.Model(**SHAPE, **fields)
    gradient, _ = make_gradient(model)
    weights = transformer.init_params(model, 0)
    numbers = layer_loop.make_layer_numbers(model, "cpu")
    assert len(numbers) == 4
    jax.tree.map(np.testing.assert_array_equal, gradient(weights, ()), gradient(weights, numbers))


def test_operations_of_all_layers_are_equal():
    """XLA generates code once for equal operations."""
    gradient, weights = make_gradient(schema.Model(**SHAPE))
    numbers = layer_loop.make_layer_numbers(schema.Model(**SHAPE), "cpu")
    n_different = []
    for layer_numbers in ((), numbers):
        hlo = gradient.lower(weights, layer_numbers).compile().as_text()
        bodies = re.findall(r"^%fused_computation.*?\{\n(.*?)^\}", hlo, re.MULTILINE | re.DOTALL)
        unnamed = {re.sub(r"%[\w.\-]+|, metadata=\{.*?\}|\.\d+", "", body) for body in bodies}
        n_different.append(len(unnamed))
    assert n_different[1] < 0.8 * n_different[0], n_different


def test_loops_and_accelerators_have_no_layer_numbers():
    model = schema.Model(**SHAPE)
    for platform in ("gpu", "tpu"):
        assert layer_loop.make_layer_numbers(model, platform) == ()
    model.scan_unroll = 3
    assert layer_loop.make_layer_numbers(model, "cpu") == ()
