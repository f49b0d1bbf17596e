"""Compiler options of each platform."""

import pytest

from lm.parallel import xla_flags


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
def test_gpu_combines_small_messages_of_each_collective(kind):
    """Weights that fsdp gathers and scatters are many small arrays."""
    options = xla_flags.COMPILER_OPTIONS["gpu"]
    assert options[f"xla_gpu_{kind}_combine_threshold_bytes"] >= 2**26
    assert options["xla_gpu_enable_latency_hiding_scheduler"]
