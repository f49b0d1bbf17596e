"""Lookup of token embeddings: values, float32 gradients and the collectives of the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import schema
from lm.model.kernels import table_lookup
from lm.parallel import mesh
from lm.sweeps.planning import aot_compile

MESHES = ({"fsdp": 4}, {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}, {"fsdp": 2, "sequence": 2})


@functools.partial(jax.jit, static_argnames="dtype")
def table_gradient(embed_VD, tokens_BT, weights_BTD, dtype):
    def total(embed_VD):
        names, rules = ("vocab", "embed"), mesh.DEFAULT_RULES
        x_BTD = table_lookup.look_up(embed_VD, tokens_BT, dtype, names, rules)
        return (x_BTD.astype(jnp.float32) * weights_BTD).sum()

    return jax.grad(total)(embed_VD)


def example(dtype: str = "float32"):
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(0, 16, (8, 12))
    return rng.normal(size=(16, 8)).astype("float32"), tokens_BT, rng.normal(size=(8, 12, 8)), dtype


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_gradient_on_a_mesh_equals_that_of_one_device(sizes):
    expected = table_gradient(*example())
    device_mesh = mesh.make_mesh(schema.Mesh(**sizes))
    with jax.set_mesh(device_mesh):
        gradient = table_gradient(*example())
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_gradient_is_that_of_the_plain_lookup():
    embed_VD, tokens_BT, weights_BTD, _ = example()
    plain = jax.jit(jax.grad(lambda table: (table[tokens_BT] * weights_BTD).sum()))(embed_VD)
    np.testing.assert_array_equal(table_gradient(*example()), plain)


def test_bfloat16_row_of_a_frequent_token_is_summed_in_float32():
    tokens_BT = np.zeros((1, 2**15), np.int32)
    weights_BTD = np.full((1, 2**15, 2), 1e-3, np.float32)
    table_VD = np.ones((4, 2), np.float32)
    gradient = table_gradient(table_VD, tokens_BT, weights_BTD, "bfloat16")
    np.testing.assert_allclose(np.asarray(gradient)[0], 2**15 * 1e-3, rtol=0.02)
    assert gradient.dtype == jnp.float32


@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"data": 2, "fsdp": 2}], ids=str)
def test_table_gradient_is_reduce_scattered(sizes):
    """No device reduces the whole table; over data, it all-reduces its own part of D."""
    device_mesh = mesh.make_mesh(schema.Mesh(**sizes))
    rules, size = mesh.DEFAULT_RULES, 512 * 64 * 4
    specs = (("vocab", "embed"), ("batch", None), ("batch", None, None))
    shapes = ((512, 64), jnp.float32), ((8, 16), jnp.int32), ((8, 16, 64), jnp.float32)
    arguments = [
        jax.ShapeDtypeStruct(*shape, sharding=rules.sharding(device_mesh, *names))
        for shape, names in zip(shapes, specs, strict=True)
    ]
    gradient = jax.jit(
        lambda *arrays: table_gradient(*arrays, "bfloat16"),
        out_shardings=arguments[0].sharding,
    )
    with jax.set_mesh(device_mesh):
        text = gradient.lower(*arguments).compile().as_text()
    totals = aot_compile.total_traffic(aot_compile.find_collectives(text, device_mesh.size))
    n = sizes["fsdp"]
    assert totals["reduce-scatter"]["bytes"] == size * (n - 1) / n
    assert totals.get("all-reduce", {"bytes": 0})["bytes"] <= size / n
