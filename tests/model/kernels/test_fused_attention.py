"""Tests of fused attention against plain attention, in an interpreter and on simulated devices."""

import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from lm.config import schema
from lm.model import attention
from lm.model.kernels import fused_attention
from lm.parallel import mesh

B, T, N, K, H = 2, 256, 4, 2, 16
NO_TOKAMAX = importlib.util.find_spec("tokamax") is None
KERNELS = [
    "splash",
    "cudnn",
    pytest.param("tokamax", marks=pytest.mark.skipif(NO_TOKAMAX, reason="needs the extra kernels")),
]
REPLICATED = mesh.ShardingRules((("kv_heads", ()),))


def random_arrays(n_kv_heads=K, dtype=jnp.float32) -> list[np.ndarray]:
    """Return queries, keys, values and the gradient of the output."""
    rng = np.random.default_rng(0)
    heads = (N, n_kv_heads, n_kv_heads, N)
    return [rng.normal(size=(B, T, n, H)).astype(dtype) for n in heads]


def documents() -> np.ndarray:
    """Return documents of different lengths, and padding at the end of each row."""
    segments_BT = np.sort(np.random.default_rng(0).integers(3, size=(B, T)), axis=1)
    segments_BT[:, T - 20 :] = 9
    return segments_BT.astype(np.int32)


def with_gradients(attend, arrays):
    *qkv, do = arrays
    output, pullback = jax.vjp(attend, *qkv)
    return output, *pullback(do)


def check_equal(kernel, arrays, segments_BT, rules=mesh.DEFAULT_RULES, n_blocks=2):
    """Check that a kernel equals plain attention on the current mesh, forward and backward."""

    def plain(*qkv):
        return attention.blockwise_attention(*qkv, n_blocks, segments_BT)

    def fused(*qkv):
        qkv = [mesh.interleave_positions(x, n_blocks) for x in qkv]
        names = ("heads", "kv_heads", "kv_heads")
        qkv = [
            rules.constrain(x, "batch", "length", name, None)
            for x, name in zip(qkv, names, strict=True)
        ]
        output = fused_attention.attend_fused(
            kernel, rules, *qkv, segments_BT, n_blocks, is_interpreted=True
        )
        return mesh.restore_order(output, n_blocks)

    actual = jax.jit(lambda *x: with_gradients(fused, x))(*arrays)
    with jax.set_mesh(mesh.make_mesh(schema.Mesh(), jax.devices()[:1])):
        expected = jax.jit(lambda *x: with_gradients(plain, x))(*arrays)
    for x, y in zip(*jax.device_get((actual, expected)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("has_segments", [False, True], ids=["causal", "documents"])
def test_kernel_equals_plain_attention(kernel, has_segments):
    check_equal(kernel, random_arrays(), documents() if has_segments else None)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("axes", "rules", "n_kv_heads"),
    [
        ({"data": 1, "tensor": 4}, REPLICATED, 1),
        ({"data": 1, "sequence": 2, "tensor": 2}, REPLICATED, K),
        ({"data": 2, "tensor": 2}, mesh.DEFAULT_RULES, K),
    ],
    ids=["replicated", "replicated-sequence", "heads"],
)
def test_kernel_equals_plain_attention_on_a_mesh(kernel, axes, rules, n_kv_heads):
    """Replicated key/value heads and split rows have the same gradients as one device."""
    with jax.set_mesh(mesh.make_mesh(schema.Mesh(**axes), jax.devices()[:4])):
        check_equal(kernel, random_arrays(n_kv_heads), documents(), rules)


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "n_devices"), [(8, 4, 2), (8, 2, 4), (12, 4, 3)])
def test_each_query_head_has_its_key_value_head(n_heads, n_kv_heads, n_devices):
    """In the last case, 4 query heads of a device share groups of 3 with other devices."""
    heads = np.arange(n_kv_heads).reshape(1, 1, -1, 1)
    n_local, selected = n_heads // n_devices, []
    for device in range(n_devices):
        kv = fused_attention.select_kv_heads(jnp.asarray(heads), n_heads, n_local, device)[
            0, 0, :, 0
        ]
        selected += np.repeat(np.asarray(kv), n_local // len(kv)).tolist()
    assert selected == np.repeat(np.arange(n_kv_heads), n_heads // n_kv_heads).tolist()


def test_segment_starts_are_those_of_each_run_of_equal_numbers():
    segments_BT = jnp.array([[7, 7, 2, 2, 2, 0]])
    assert fused_attention.segment_starts(segments_BT).tolist() == [[0, 0, 2, 2, 2, 5]]


@pytest.mark.parametrize("has_segments", [False, True], ids=["causal", "documents"])
@pytest.mark.parametrize(
    ("platform", "kernel", "call", "n_calls"),
    [
        ("tpu", "splash", "tpu_custom_call", 3),  # forward; dq; dk and dv
        ("cuda", "cudnn", "__cudnn$fmha", 2),
    ],
    ids=["tpu", "cuda"],
)
def test_gradient_on_an_accelerator_calls_its_kernels(
    platform, kernel, call, n_calls, has_segments, monkeypatch
):
    """Evaluation has segments, and calls the kernel of training."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    segments_BT = documents() if has_segments else None
    shape = schema.Model(attention=kernel)

    def loss(*qkv):
        output = attention.attend(shape, mesh.DEFAULT_RULES, *qkv, segments_BT)
        return output.astype(jnp.float32).sum()

    # Without a mesh, the shardings of this CPU do not apply to the program of another platform.
    qkv = random_arrays(dtype=jnp.bfloat16)[:3]
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*qkv)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count(f"@{call}") >= n_calls


def test_tokamax_keys_end_with_the_time_of_the_query(monkeypatch):
    """tokamax is replaced by dense attention with its mask: keys from k_start to before k_end."""

    def attend(q_BTNH, k_BSKH, v_BSKH, logits_scale, mask):
        key_S = jnp.arange(k_BSKH.shape[1])
        mask_BTS = key_S < mask.k_end[:, :, None]
        mask_BTS &= key_S >= (0 if mask.k_start is None else mask.k_start[:, 0, :, None])
        mask_BNTS = jnp.broadcast_to(mask_BTS[:, None], (B, 1, T, key_S.size))
        return jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, mask=mask_BNTS, scale=logits_scale
        )

    modules = {
        "api": types.SimpleNamespace(IMPLEMENTATIONS={"xla": attend}),
        "base": types.SimpleNamespace(Mask=types.SimpleNamespace),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"tokamax._src.ops.attention.{name}", module)
    monkeypatch.setattr(fused_attention.tokamax_flags, "use_default_flags", lambda: None)
    ranges = fused_attention.KeyRanges(np.arange(T), None, None, None)
    options = {"is_complete": False, "is_interpreted": True}
    actual, expected = (
        jax.jit(lambda *qkv, f=kernel: f(*qkv, ranges, **options))(*random_arrays()[:3])
        for kernel in (fused_attention.tokamax_attention, fused_attention.cudnn_attention)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)
