"""Peak FLOP/s of accelerators by device kind."""

import types

import pytest

from lm.config import schema
from lm.parallel import mesh, peak_flops
from lm.sweeps.planning import hardware


@pytest.mark.parametrize(
    ("kind", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12),
        ("TPU v3", 61.5e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_peak_is_found_by_device_kind(kind, bfloat16):
    peak = peak_flops.find_peak(kind)
    assert peak is not None and peak.bfloat16 == bfloat16
    assert "data sheet" in peak.source or "docs" in peak.source


@pytest.mark.parametrize("kind", ["cpu", "Tesla T4", "NVIDIA H1000", "TPU v99"])
def test_unknown_device_has_no_peak(kind):
    assert peak_flops.find_peak(kind) is None


def test_plans_and_runs_have_the_same_peaks():
    kinds = {"v5e": "TPU v5 lite", "v5p": "TPU v5p", "v6e": "TPU v6e", "v4": "TPU v4"}
    for chip, spec in hardware.ACCELERATORS.items():
        peak = peak_flops.find_peak(kinds.get(chip, f"NVIDIA {chip}"))
        if chip != "cpu":
            assert peak is not None and peak[:2] == (spec.bfloat16, spec.float32), chip


def test_accelerator_has_the_peak_of_its_data_sheet():
    """A product of 7 GFLOP takes less time than its call: a measured MFU would exceed 100%."""
    card = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
    flat = types.SimpleNamespace(flat=[card] * 8)
    cards = types.SimpleNamespace(devices=flat, size=8, axis_names=("data",))
    measure = mesh.peak_flops_per_second.__wrapped__
    assert measure(cards, "bfloat16") == 8 * 989e12 and measure(cards, "float32") == 8 * 494e12
    assert "7,912 TFLOP/s (NVIDIA data sheet, " in peak_flops.describe_peak(
        card.device_kind, 7912e12
    )


def test_peak_of_a_cpu_is_measured():
    device_mesh = mesh.make_mesh(schema.Mesh())
    measured = mesh.peak_flops_per_second(device_mesh, "float32", size=128)
    text = peak_flops.describe_peak(mesh.device_kind(device_mesh), measured)
    assert text == f"measured peak of matrix products: {measured / 1e9:.0f} GFLOP/s"
