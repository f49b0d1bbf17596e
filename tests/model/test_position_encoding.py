"""Tests of rotary embeddings: angles, distances, rounding, and large tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import schema
from lm.model import position_encoding, transformer
from lm.parallel import mesh

SHAPE = schema.Model(
    vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=48
)


def tables(d_head: int, times_T) -> tuple:
    return position_encoding.rotary_tables(d_head, 1e4, times_T)


def test_rotary_angles_are_equal_for_numpy_and_jax_times():
    for constant, computed in zip(
        tables(32, np.arange(300)), tables(32, jnp.arange(300)), strict=True
    ):
        assert isinstance(constant, np.ndarray) and isinstance(computed, jax.Array)
        np.testing.assert_allclose(constant, computed, atol=2e-6)


def test_rotary_scores_depend_only_on_distance():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    q_BTNH, k_BTNH = position_encoding.encode_positions(
        *(jnp.tile(x, (1, 12, 1, 1)) for x in (q, k)), tables(8, np.arange(12))
    )
    score_TS = jnp.einsum("btnh,bsnh->ts", q_BTNH, k_BTNH)
    for distance in (-3, 0, 5):
        np.testing.assert_allclose(np.ptp(jnp.diagonal(score_TS, distance)), 0, atol=1e-5)
    assert np.ptp(score_TS) > 0.03


def test_queries_are_scaled_and_rotated_with_one_rounding():
    """The scale 32^-1/2 is not a power of two. A second rounding would change a third of them."""
    q_BTNH = jax.random.normal(jax.random.key(0), (1, 64, 4, 32), jnp.bfloat16)
    for rotary in (tables(32, np.arange(64)), None):
        actual, _ = position_encoding.encode_positions(q_BTNH, q_BTNH, rotary)
        exact, _ = position_encoding.encode_positions(*[q_BTNH.astype(jnp.float32)] * 2, rotary)
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_array_equal(actual, exact.astype(jnp.bfloat16))


def test_large_tables_are_no_constants_of_the_program():
    model = dataclasses.replace(SHAPE, d_head=128, n_heads=1, n_kv_heads=1)
    tree = jax.eval_shape(lambda: transformer.init_params(model, 0))
    tokens = jax.ShapeDtypeStruct((1, 131_073), "int32")
    program = jax.jit(lambda p, t: transformer.token_losses(model, p, t)[0]).lower(tree, tokens)
    assert len(program.as_text()) < 1e6


def test_tables_in_the_program_are_computed_once(monkeypatch):
    """They are not computed in each layer, and the logits are those of constant tables."""
    params = jax.jit(lambda: transformer.init_params(SHAPE, 0))()
    tokens_BT = jax.random.randint(jax.random.key(1), (4, 16), 0, 64)

    def logits() -> jax.Array:
        return jax.jit(lambda p: transformer.compute_logits(SHAPE, p, tokens_BT))(params)

    expected = logits()
    monkeypatch.setattr(position_encoding, "MAX_TABLE_SIZE", 0)
    np.testing.assert_allclose(logits(), expected, atol=1e-5)
    jaxpr = str(jax.make_jaxpr(lambda p: transformer.compute_logits(SHAPE, p, tokens_BT))(params))
    assert jaxpr.count(" cos ") == 1 and "optimization_barrier" in jaxpr
    with jax.set_mesh(mesh.make_mesh(schema.Mesh(data=2, sequence=2))):
        np.testing.assert_allclose(logits(), expected, atol=1e-5)
