"""Peak FLOP/s of accelerators from the data sheets of their vendors, by the device kind of JAX.

    peak_flops.find_peak("NVIDIA H100 80GB HBM3").bfloat16      # 989.4e12

MFU (model FLOPs utilization; Chowdhery et al. 2022, arXiv:2204.02311) is the ratio of the model
FLOP/s of a run and this peak. A CPU has no such data: mesh.peak_flops_per_second measures a matrix
product there.
"""

from typing import NamedTuple


class Peak(NamedTuple):
    """Peak of one JAX device in dense matrix products, without sparsity, in FLOP/s."""

    bfloat16: float
    float32: float  # in the precision that JAX uses by default: TF32 on NVIDIA, bfloat16 on TPU
    source: str


NVIDIA, CLOUD, AMD = "NVIDIA data sheet", "cloud.google.com/tpu/docs", "AMD data sheet"
# The first key whose words all occur in the device kind applies, so exact names come first. A JAX
# device is one core of TPU v2 and v3, which have two cores per chip, and one chip of later TPUs.
PEAKS = {
    "h100 pcie":   Peak(  756e12,  378e12, NVIDIA),
    "h100 nvl":    Peak(  835e12,  417e12, NVIDIA),
    "h100":        Peak(  989e12,  494e12, NVIDIA),
    "h200 nvl":    Peak(  835e12,  417e12, NVIDIA),
    "h200":        Peak(  989e12,  494e12, NVIDIA),
    "gh200":       Peak(  989e12,  494e12, NVIDIA),
    "gb200":       Peak( 2500e12, 1250e12, NVIDIA),
    "b200":        Peak( 2250e12, 1125e12, NVIDIA),
    "a100":        Peak(  312e12,  156e12, NVIDIA),
    "a10g":        Peak(   70e12,   35e12, NVIDIA),
    "a10":         Peak(  125e12, 62.5e12, NVIDIA),
    "a40":         Peak(149.7e12, 74.8e12, NVIDIA),
    "l40s":        Peak(  362e12,  183e12, NVIDIA),
    "l40":         Peak(  181e12, 90.5e12, NVIDIA),
    "l4":          Peak(  121e12, 60.5e12, NVIDIA),
    "rtx 4090":    Peak(165.2e12, 82.6e12, NVIDIA),
    "rtx 3090":    Peak(   71e12, 35.6e12, NVIDIA),
    "mi300x":      Peak( 1307e12,  163e12, AMD),
    "tpu v2":      Peak( 22.5e12, 22.5e12, CLOUD),
    "tpu v3":      Peak( 61.5e12, 61.5e12, CLOUD),
    "tpu v4":      Peak(  275e12,  275e12, CLOUD),
    "tpu v5 lite": Peak(  197e12,  197e12, CLOUD),
    "tpu v5e":     Peak(  197e12,  197e12, CLOUD),
    "tpu v5p":     Peak(  459e12,  459e12, CLOUD),
    "tpu v5":      Peak(  459e12,  459e12, CLOUD),
    "tpu v6 lite": Peak(  918e12,  918e12, CLOUD),
    "tpu v6e":     Peak(  918e12,  918e12, CLOUD),
}  # fmt: skip


def find_peak(device_kind: str) -> Peak | None:
    """Return the peak of a device by its device_kind, None for a CPU or an unknown device."""
    words = device_kind.lower().replace("-", " ").split()
    for key, peak in PEAKS.items():
        if all(word in words for word in key.split()):
            return peak
    return None


def describe_peak(device_kind: str, flops_per_second: float) -> str:
    """Return the peak of all devices and its source as one line."""
    peak = find_peak(device_kind)
    if peak is None:
        return f"measured peak of matrix products: {flops_per_second / 1e9:.0f} GFLOP/s"
    number = f"{flops_per_second / 1e12:,.0f} TFLOP/s"
    return f"peak of matrix products: {number} ({peak.source}, {device_kind})"
