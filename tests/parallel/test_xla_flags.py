"""Compiler options of each platform."""

import pytest

from lm.config import schema
from lm.parallel import mesh, xla_flags


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
def test_gpu_combines_small_messages_of_each_collective(kind):
    """Weights that fsdp gathers and scatters are many small arrays."""
    options = xla_flags.COMPILER_OPTIONS["gpu"]
    assert options[f"xla_gpu_{kind}_combine_threshold_bytes"] >= 2**26
    assert options["xla_gpu_enable_latency_hiding_scheduler"]


def test_initial_state_of_a_large_model_is_optimized_on_cpu():
    """It takes 5 s without optimization for 25M parameters, and a small one compiles sooner."""
    device_mesh = mesh.make_mesh(schema.Mesh())
    levels = [
        (xla_flags.init_options(device_mesh, n) or {})["xla_backend_optimization_level"]
        for n in (1e5, 25e6)
    ]
    assert levels == [0, 1]
