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


def masked_reference(q, k, v, segments_BT, window: int, cap: float):
    """Return attention with a window and a cap, with its autodiff gradient."""
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    score_BNTS = cap * jnp.tanh(jnp.einsum("btnh,bsnh->bnts", q, k) / cap)
    age_TS = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])
    mask_BTS = (segments_BT[:, :, None] == segments_BT[:, None]) & (age_TS >= 0) & (age_TS < window)
    score_BNTS = jnp.where(mask_BTS[:, None], score_BNTS, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(score_BNTS), v)


@pytest.mark.parametrize(("window", "is_local"), [(5, None), (5, True), (16, False)])
def test_window_and_cap_equal_a_dense_mask(window, is_local):
    """Blocks skip keys only if all layers have the window. The gradients are equal too."""
    segments_BT = segments(**SHORT)
    do = jax.random.normal(jax.random.key(1), (B, 16, N, 8))
    flag = None if is_local is None else jnp.array(is_local)
    variant = attention.Variant(5, 0.5, flag)

    def with_gradients(attend):
        output, pullback = jax.vjp(attend, *random_qkv(**SHORT))
        return output, *pullback(do)

    actual = jax.jit(
        lambda: with_gradients(
            lambda *qkv: attention.blockwise_attention(*qkv, 4, segments_BT, variant=variant)
        )
    )()
    expected = jax.jit(
        lambda: with_gradients(lambda *qkv: masked_reference(*qkv, segments_BT, window, 0.5))
    )()
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=3e-6)


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
    options = xla_flags.COMPILER_OPTIONS["gpu"]
    known = {name: value for name, value in options.items() if xla_flags.is_known(name, value)}
    increment = jax.jit(lambda x: x + 1, compiler_options=known)
    assert increment(1) == 2 and len(known) >= 5 and xla_flags.COMPILER_OPTIONS["tpu"]
    assert not xla_flags.is_known("xla_gpu_option_of_no_version", True)
    assert xla_flags.compiler_options(mesh.make_mesh(schema.Mesh(), jax.devices()[:1])) is None
