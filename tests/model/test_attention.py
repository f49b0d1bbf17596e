import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model import attention

B, T, N, K, H = 2, 16, 4, 2, 8
SEGMENTS = np.sort(np.random.default_rng(0).integers(3, size=(B, T))).astype(np.int32)


def made(dtype=jnp.float32) -> list[jax.Array]:
    keys, heads = jax.random.split(jax.random.key(0), 4), (N, K, K, N)
    shapes = [(B, T, n, H) for n in heads]  # of queries, keys, values, and a slope of the output
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def theirs(q, k, v, segments):
    """JAX's own, whose gradient is autodiff's."""
    mask = None if segments is None else (segments[:, :, None] == segments[:, None])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)


@pytest.mark.parametrize(("n_blocks", "segments"), [(1, SEGMENTS), (2, None), (4, SEGMENTS)])
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-6), ("bfloat16", 3e-2)])
def test_blocks_of_queries_and_their_gradient_are_those_of_plain_attention(
    n_blocks, segments, dtype, atol
):
    *qkv, slope = made(jnp.dtype(dtype))

    def with_gradient(attend):
        out, back = jax.vjp(attend, *qkv)
        return out, *back(slope)

    def ours(q, k, v):
        return attention.blockwise_attention(q, k, v, n_blocks, segments_BT=segments)

    found = jax.jit(lambda: with_gradient(ours))()
    wanted = jax.jit(lambda: with_gradient(lambda q, k, v: theirs(q, k, v, segments)))()
    for ours_, want in zip(found, wanted, strict=True):
        assert ours_.dtype == want.dtype
        ours_, want = (np.asarray(x, np.float32) for x in (ours_, want))
        np.testing.assert_allclose(ours_, want, atol=atol * abs(want).max())
