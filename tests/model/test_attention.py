"""Tests of blockwise attention against the attention of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import schema
from lm.model import attention
from lm.parallel import mesh, xla_flags

B, N, K = 2, 4, 2  # rows, query heads, key/value heads
SHORT = {"t": 16, "h": 8}  # positions and d_head


def segments(t: int, **_) -> np.ndarray:
    return np.sort(np.random.default_rng(0).integers(3, size=(B, t))).astype(np.int32)


def random_qkv(t: int, h: int, dtype=jnp.float32) -> list[jax.Array]:
    """Return queries, which are scaled by h^-1/2, keys and values."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (B, t, n, h), dtype) for key, n in zip(keys, (N, K, K), strict=True)
    )
    return [q * h**-0.5, k, v]


def reference_attention(q, k, v, segments_BT):
    """Return the attention of jax.nn with its autodiff gradient."""
    is_same = None
    if segments_BT is not None:
        is_same = (segments_BT[:, :, None] == segments_BT[:, None])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=is_same, scale=1.0, is_causal=True)


@pytest.mark.parametrize(("n_blocks", "has_segments"), [(1, True), (2, False), (4, True)])
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-6), ("bfloat16", 3e-2)])
def test_blockwise_attention_equals_plain_attention(n_blocks, has_segments, dtype, atol):
    """The gradients are equal too."""
    qkv = random_qkv(**SHORT, dtype=jnp.dtype(dtype))
    do = jax.random.normal(jax.random.key(1), qkv[0].shape, jnp.dtype(dtype))
    segments_BT = segments(**SHORT) if has_segments else None

    def with_gradients(attend):
        output, pullback = jax.vjp(attend, *qkv)
        return output, *pullback(do)

    def blockwise(q, k, v):
        return attention.blockwise_attention(q, k, v, n_blocks, segments_BT=segments_BT)

    def reference(q, k, v):
        return reference_attention(q, k, v, segments_BT)

    actual = jax.jit(lambda: with_gradients(blockwise))()
    expected = jax.jit(lambda: with_gradients(reference))()
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == y.dtype
        x, y = (np.asarray(array, np.float32) for array in (x, y))
        np.testing.assert_allclose(x, y, atol=atol * abs(y).max())


def test_compiler_accepts_the_options_of_its_platform():
    """Only libtpu can check the TPU options, so the test checks only that they exist."""
    increment = jax.jit(lambda x: x + 1, compiler_options=xla_flags.COMPILER_OPTIONS["gpu"])
    assert increment(1) == 2 and xla_flags.COMPILER_OPTIONS["tpu"]
    assert xla_flags.compiler_options(mesh.make_mesh(schema.Mesh(), jax.devices()[:1])) is None
