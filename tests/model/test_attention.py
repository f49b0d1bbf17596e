"""Tests of the attention backends against plain attention, and of the choice of the backend."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from lm.config import schema, validation
from lm.model import attention
from lm.parallel import mesh, xla_flags

B, N, K = 2, 4, 2  # rows, query heads, key/value heads
SHORT, LONG = {"t": 16, "h": 8}, {"t": 256, "h": 16}  # positions and d_head


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


def backend_run(backend: str, **fields) -> schema.Run:
    """Return a bfloat16 run with this backend; fields: group__name=value."""
    run = schema.Run(model=schema.Model(attention=backend, dtype="bfloat16"))
    for name, value in fields.items():
        group, field = name.split("__")
        setattr(getattr(run, group), field, value)
    return run


@pytest.fixture
def mesh_on(monkeypatch):
    """Return a function from platform to a mesh that reports this platform."""

    def make(platform: str) -> jax.sharding.Mesh:
        monkeypatch.setattr(mesh, "device_platform", lambda _: platform)
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        return mesh.make_mesh(schema.Mesh(), jax.devices()[:1])

    return make


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


@pytest.mark.parametrize("has_segments", [False, True], ids=["no-segments", "segments"])
def test_splash_attention_equals_blockwise_attention(has_segments):
    qkv, segments_BT = random_qkv(**LONG), segments(**LONG) if has_segments else None
    np.testing.assert_allclose(
        attention.splash_attention(*qkv, segments_BT=segments_BT, interpret=True),
        attention.blockwise_attention(*qkv, n_blocks=2, segments_BT=segments_BT),
        atol=2e-5,
    )


def test_splash_attention_is_equal_on_split_rows_and_heads():
    qkv, segments_BT = random_qkv(**LONG), segments(**LONG)
    with jax.set_mesh(mesh.make_mesh(schema.Mesh(data=2, tensor=2), jax.devices()[:4])):
        actual = jax.jit(
            lambda *qkv: attention.splash_attention(*qkv, segments_BT=segments_BT, interpret=True)
        )(*qkv)
    np.testing.assert_allclose(
        actual,
        attention.blockwise_attention(*qkv, n_blocks=2, segments_BT=segments_BT),
        atol=2e-5,
    )


@pytest.mark.parametrize(
    ("platform", "backend", "call", "n_calls"),
    [
        ("tpu", attention.splash_attention, "tpu_custom_call", 3),  # forward; dq; dk and dv
        ("cuda", attention.cudnn_attention, "__cudnn$fmha", 2),
    ],
    ids=["tpu", "cuda"],
)
def test_gradient_on_an_accelerator_calls_its_kernels(
    platform, backend, call, n_calls, monkeypatch
):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)

    def loss(*qkv):
        return backend(*qkv).astype(jnp.float32).sum()

    # Without a mesh, the shardings of this CPU do not apply to the program of another platform.
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*random_qkv(**LONG, dtype=jnp.bfloat16))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count(f"@{call}") >= n_calls


@pytest.mark.parametrize(
    ("platform", "backend"), [("cpu", "plain"), ("gpu", "cudnn"), ("tpu", "splash")]
)
def test_auto_selects_the_backend_of_the_platform(platform, backend, mesh_on):
    assert attention.select_backend(backend_run("auto"), mesh_on(platform)) == backend
    assert attention.select_backend(backend_run("plain"), mesh_on(platform)) == "plain"


@pytest.mark.parametrize(
    ("platform", "backend", "fields", "message"),
    [
        (
            "gpu",
            "cudnn",
            {"model__dtype": "float32"},
            "bfloat16 only, not in model.dtype='float32'",
        ),
        ("gpu", "cudnn", {"model__d_head": 20}, "multiples of 8 up to 128, not model.d_head=20"),
        ("gpu", "cudnn", {"model__d_head": 256}, "multiples of 8 up to 128, not model.d_head=256"),
        (
            "gpu",
            "cudnn",
            {"data__attend_across_documents": False},
            "no document mask, which data.attend_across_documents=False",
        ),
        ("gpu", "cudnn", {"mesh__sequence": 2}, "must be 1, not mesh.sequence=2"),
        ("tpu", "splash", {"data__seq_len": 100}, "multiples of 128, not data.seq_len=100"),
        ("cpu", "splash", {}, "runs on tpu, not on cpu"),
        ("tpu", "cudnn", {}, "runs on gpu, not on tpu"),
    ],
)
def test_unsupported_backend_is_refused(platform, backend, fields, message, mesh_on):
    """With "auto", the run uses blockwise attention instead."""
    run, device_mesh = backend_run(backend, **fields), mesh_on(platform)
    with pytest.raises(ValueError, match=f"model.attention='{backend}'.*{message}.*'auto'"):
        attention.select_backend(run, device_mesh)
    if backend == attention.BACKEND_BY_PLATFORM[platform]:
        assert attention.select_backend(backend_run("auto", **fields), device_mesh) == "plain"


def test_cudnn_is_not_used_for_segments(monkeypatch):
    """The cuDNN kernel has no document mask."""
    monkeypatch.setattr(
        attention, "cudnn_attention", lambda *qkv: pytest.fail("cuDNN ignores the segments")
    )
    qkv, segments_BT = random_qkv(**LONG), segments(**LONG)
    shape = dataclasses.replace(schema.Model(), attention="cudnn")
    np.testing.assert_array_equal(
        attention.attend(shape, mesh.DEFAULT_RULES, *qkv, segments_BT=segments_BT),
        attention.blockwise_attention(*qkv, n_blocks=2, segments_BT=segments_BT),
    )


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="model.attention='flash' must be one of auto, plain"):
        validation.validate_run(backend_run("flash"))


def test_compiler_accepts_the_options_of_its_platform():
    """Only libtpu can check the TPU options, so the test checks only that they exist."""
    increment = jax.jit(lambda x: x + 1, compiler_options=xla_flags.COMPILER_OPTIONS["gpu"])
    assert increment(1) == 2 and xla_flags.COMPILER_OPTIONS["tpu"]
    assert xla_flags.compiler_options(mesh.make_mesh(schema.Mesh(), jax.devices()[:1])) is None
