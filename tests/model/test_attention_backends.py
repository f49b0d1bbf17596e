import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from lm.config import schema, validation
from lm.model import attention
from lm.parallel import mesh, xla_flags

B, T, N, K, H = 2, 256, 4, 2, 16
SEGMENTS = np.sort(np.random.default_rng(0).integers(3, size=(B, T))).astype(np.int32)


def made(dtype=jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (B, T, n, H), dtype) for key, n in zip(keys, (N, K, K), strict=True)
    )
    return q, k, v


def run_of(kernel: str, **knobs) -> schema.Run:
    run = schema.Run(model=schema.Model(attention=kernel, dtype="bfloat16"))
    for name, value in knobs.items():
        group, knob = name.split("__")
        setattr(getattr(run, group), knob, value)
    return run


@pytest.fixture
def on(monkeypatch):
    """A mesh that says it is of another platform."""

    def of(platform: str) -> jax.sharding.Mesh:
        monkeypatch.setattr(mesh, "device_platform", lambda _: platform)
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        return mesh.make_mesh(schema.Mesh(), jax.devices()[:1])

    return of


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["whole", "segments"])
def test_splash_says_what_plain_attention_says(segments):
    qkv = made()
    found = attention.splash_attention(*qkv, segments_BT=segments, interpret=True)
    np.testing.assert_allclose(
        found, attention.blockwise_attention(*qkv, n_blocks=2, segments_BT=segments), atol=2e-5
    )


def test_splash_on_devices_that_share_rows_and_heads_says_the_same():
    with jax.set_mesh(mesh.make_mesh(schema.Mesh(data=2, tensor=2), jax.devices()[:4])):
        found = jax.jit(
            lambda *qkv: attention.splash_attention(*qkv, segments_BT=SEGMENTS, interpret=True)
        )(*made())
    np.testing.assert_allclose(
        found, attention.blockwise_attention(*made(), n_blocks=2, segments_BT=SEGMENTS), atol=2e-5
    )


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_train_step_for_an_accelerator_calls_its_kernel_both_ways(platform, monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    function, call, n = {
        "tpu": (
            attention.splash_attention,
            "tpu_custom_call",
            3,
        ),  # forward; of queries; of keys and values
        "cuda": (attention.cudnn_attention, "__cudnn$fmha", 2),
    }[platform]

    def loss(*qkv):
        return function(*qkv).astype(jnp.float32).sum()

    # Shardings of this CPU do not bind a program for another platform.
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*made(jnp.bfloat16))
    assert traced.lower(lowering_platforms=(platform,)).as_text().count(f"@{call}") >= n


@pytest.mark.parametrize(
    ("platform", "name"), [("cpu", "plain"), ("gpu", "cudnn"), ("tpu", "splash")]
)
def test_auto_is_the_kernel_of_the_platform(platform, name, on):
    assert attention.select_backend(run_of("auto"), on(platform)) == name
    assert attention.select_backend(run_of("plain"), on(platform)) == "plain"


@pytest.mark.parametrize(
    ("platform", "kernel", "knobs", "words"),
    [
        ("gpu", "cudnn", {"model__dtype": "float32"}, "takes bfloat16, not model.dtype='float32'"),
        ("gpu", "cudnn", {"model__d_head": 20}, "takes heads of 8, 16 ... 128, not model.d_head="),
        ("gpu", "cudnn", {"model__d_head": 256}, "takes heads of 8, 16 ... 128"),
        (
            "gpu",
            "cudnn",
            {"data__attend_across_documents": False},
            "unlike data.attend_across_documents=False",
        ),
        ("gpu", "cudnn", {"mesh__sequence": 2}, "takes whole rows, not mesh.sequence=2"),
        ("tpu", "splash", {"data__seq_len": 100}, "takes rows of 128, 256 ..., not data.seq_len"),
        ("cpu", "splash", {}, "is for tpu, not cpu"),
        ("tpu", "cudnn", {}, "is for gpu, not tpu"),
    ],
)
def test_a_kernel_that_cannot_work_is_refused_and_auto_does_without(
    platform, kernel, knobs, words, on
):
    run, device_mesh = run_of(kernel, **knobs), on(platform)
    with pytest.raises(ValueError, match=f"model.attention='{kernel}'.*{words}.*'auto'"):
        attention.select_backend(run, device_mesh)
    if kernel == attention.BY_PLATFORM[platform]:
        assert attention.select_backend(run_of("auto", **knobs), device_mesh) == "plain"


def test_documents_apart_never_go_through_a_kernel_that_mixes_them(monkeypatch):
    monkeypatch.setattr(
        attention, "cudnn_attention", lambda *qkv: pytest.fail("documents were mixed")
    )
    shape = dataclasses.replace(schema.Model(), attention="cudnn")
    found = attention.attend(shape, mesh.DEFAULT_RULES, *made(), segments_BT=SEGMENTS)
    np.testing.assert_array_equal(
        found, attention.blockwise_attention(*made(), n_blocks=2, segments_BT=SEGMENTS)
    )


def test_an_unknown_kernel_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="model.attention='flash' must be one of auto, plain"):
        validation.validate_run(run_of("flash"))


def test_compilers_know_their_options():
    """Of the TPU's, which libtpu alone reads, only that there are some."""
    one = jax.jit(lambda x: x + 1, compiler_options=xla_flags.COMPILER_OPTIONS["gpu"])
    assert one(1) == 2 and xla_flags.COMPILER_OPTIONS["tpu"]
    assert xla_flags.compiler_options(mesh.make_mesh(schema.Mesh(), jax.devices()[:1])) is None
