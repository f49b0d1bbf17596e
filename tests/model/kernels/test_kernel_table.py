"""Tests of the choice of kernels: requirements, preferences, messages."""

import importlib.util

import jax
import pytest

from lm.config import schema, validation
from lm.model.kernels import kernel_table
from lm.parallel import mesh

DOCUMENTS = {"data__attend_across_documents": False}
EXPERTS = {"model__n_experts": 4}


def kernel_run(**values) -> schema.Run:
    """Return a bfloat16 run. values: group__name=value."""
    run = schema.Run(model=schema.Model(dtype="bfloat16"))
    for name, value in values.items():
        group, field = name.split("__")
        setattr(getattr(run, group), field, value)
    return run


@pytest.fixture
def select(monkeypatch):
    """Return a function that selects the kernels of a run on devices that are not present."""

    def select_on(platform, has_tokamax=False, capability="9.0", is_attached=True, **values):
        spec = "tokamax" if has_tokamax else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        return kernel_table._select(kernel_run(**values), platform, is_attached, capability)

    return select_on


@pytest.mark.parametrize(
    ("platform", "values", "attention"),
    [
        ("cpu", {}, "plain"),
        ("tpu", DOCUMENTS, "splash"),
        ("tpu", {"mesh__sequence": 2, "data__seq_len": 256}, "splash"),
        ("tpu", {"model__d_head": 256}, "splash"),
        ("tpu", {"model__attention": "plain"}, "plain"),
        ("gpu", {}, "cudnn"),
        ("gpu", {"has_tokamax": True}, "cudnn"),
        ("gpu", DOCUMENTS, "cudnn"),
        ("gpu", DOCUMENTS | {"has_tokamax": True}, "tokamax"),
        ("gpu", {"data__packing": "documents", "has_tokamax": True}, "tokamax"),
        ("gpu", DOCUMENTS | {"has_tokamax": True, "capability": "8.0"}, "cudnn"),
        ("gpu", {"mesh__sequence": 2, "data__seq_len": 256, "has_tokamax": True}, "tokamax"),
        ("gpu", {"mesh__sequence": 2}, "cudnn"),
        ("gpu", {"model__d_head": 256}, "cudnn"),
        ("gpu", {"model__d_head": 256, "capability": "8.0"}, "plain"),
        ("gpu", {"model__dtype": "float32"}, "plain"),
        ("gpu", {"is_attached": False}, "plain"),
    ],
)
def test_attention_kernel_follows_platform_and_shape(platform, values, attention, select):
    assert select(platform, **values).attention.name == attention


@pytest.mark.parametrize(
    ("platform", "values", "experts"),
    [
        ("cpu", {}, "xla"),
        ("tpu", {}, "xla"),
        ("gpu", {}, "tiles"),
        ("gpu", {"has_tokamax": True}, "tokamax"),
        ("gpu", {"has_tokamax": True, "model__dtype": "float32"}, "tiles"),
        ("gpu", {"is_attached": False}, "tiles"),
        ("gpu", {"model__dispatch": "capacity"}, "batched"),
    ],
)
def test_no_gpu_computes_all_experts(platform, values, experts, select):
    assert select(platform, **EXPERTS | values).experts.name == experts


@pytest.mark.parametrize(
    ("platform", "values", "message"),
    [
        (
            "gpu",
            {"model__attention": "cudnn", "model__dtype": "float32"},
            "model.attention='cudnn' computes in bfloat16 only, not in model.dtype='float32'",
        ),
        (
            "gpu",
            {"model__attention": "cudnn", "model__d_head": 20},
            "multiples of 8 up to 256 on this device, not model.d_head=20",
        ),
        (
            "gpu",
            {"model__attention": "cudnn", "model__d_head": 256, "capability": "8.0"},
            "multiples of 8 up to 128 on this device, not model.d_head=256",
        ),
        (
            "gpu",
            {"model__attention": "tokamax"},
            "model.attention='tokamax' needs the extra 'kernels' .uv sync",
        ),
        (
            "gpu",
            {"model__attention": "tokamax", "has_tokamax": True, "capability": "8.0"},
            "needs compute capability 9.0, and this device has 8.0",
        ),
        (
            "tpu",
            {"model__attention": "splash", "data__seq_len": 100},
            "multiples of 128, not data.seq_len=100",
        ),
        (
            "tpu",
            {"model__attention": "splash", "mesh__sequence": 2},
            "multiples of 128 x mesh.sequence=2, not data.seq_len=128",
        ),
        ("cpu", {"model__attention": "splash"}, "runs on tpu, not on cpu"),
        ("tpu", {"model__attention": "cudnn"}, "runs on gpu, not on tpu"),
        ("gpu", {"model__expert_kernel": "xla"}, "runs on cpu and tpu, not on gpu"),
        (
            "cpu",
            {"model__expert_kernel": "tiles", "model__dispatch": "capacity"},
            "model.expert_kernel='tiles' needs model.dispatch='dropless'",
        ),
    ],
)
def test_unsupported_kernel_is_refused(platform, values, message, select):
    with pytest.raises(ValueError, match=f"{message}.*: change that or set model.*='auto'"):
        select(platform, **values)


def test_lines_name_the_reason_and_the_extra(select):
    run = kernel_run(**DOCUMENTS, **EXPERTS)
    lines = kernel_table.describe_kernels(select("gpu", **DOCUMENTS, **EXPERTS), run)
    assert lines[0].startswith("attention: cudnn, because")
    assert lines[1].startswith("experts: tiles, because")
    for line in lines:
        assert "not run on" in line
        assert line.endswith("tokamax needs the extra 'kernels' (uv sync --extra kernels)")
    (line,) = kernel_table.describe_kernels(select("cpu"), kernel_run())
    assert line.startswith("attention: plain, because it runs on every device")


def test_every_row_has_known_requirements_and_evidence():
    for kernel in kernel_table.KERNELS:
        assert set(kernel.requirements) <= set(kernel_table.REQUIREMENTS)
        assert kernel.reason and kernel.evidence and set(kernel.platforms) <= {"cpu", "gpu", "tpu"}


def test_resolved_run_names_its_kernels():
    device_mesh = mesh.make_mesh(schema.Mesh(), jax.devices()[:1])
    run = kernel_table.resolve_kernels(kernel_run(), device_mesh)
    assert (run.model.attention, run.model.expert_kernel) == ("plain", "xla")


def test_offload_is_refused_on_cpu():
    device_mesh = mesh.make_mesh(schema.Mesh(), jax.devices()[:1])
    run = kernel_run(model__remat="qkv_proj_offloaded")
    with pytest.raises(ValueError, match="model.remat='qkv_proj_offloaded' .* only TPU and GPU"):
        kernel_table.resolve_kernels(run, device_mesh)


def test_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="model.attention='flash' must be one of auto, plain"):
        validation.validate_run(kernel_run(model__attention="flash"))


def test_kernels_of_a_target_follow_its_generation(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = kernel_run(**DOCUMENTS, **EXPERTS)
    names = {}
    for capability in ("", "8.0", "9.0", "10.0"):
        kernels = kernel_table.select_kernels_for(run, "gpu", capability)
        names[capability] = kernels.attention.name, kernels.experts.name
        for kernel in (kernels.attention, kernels.experts):
            is_conditional = "if the extra 'kernels' is installed there" in kernel.reason
            assert is_conditional == (kernel.name == "tokamax")
    assert names[""] == ("cudnn", "tiles") and names["8.0"] == ("cudnn", "tokamax")
    assert names["9.0"] == names["10.0"] == ("tokamax", "tokamax")
    wide = kernel_run(model__d_head=256)
    assert kernel_table.select_kernels_for(wide, "gpu", "8.0").attention.name == "plain"
