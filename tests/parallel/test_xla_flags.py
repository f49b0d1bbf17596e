"""Compiler options of each platform."""

import jax
import pytest

from lm.config import schema
from lm.parallel import mesh, xla_flags


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
def test_gpu_combines_small_messages_of_each_collective(kind):
    """Weights that fsdp gathers and scatters are many small arrays."""
    options = xla_flags.COMPILER_OPTIONS["gpu"]
    assert options[f"xla_gpu_{kind}_combine_threshold_bytes"] >= 2**26
    assert options["xla_gpu_enable_latency_hiding_scheduler"]


def test_programs_on_cpu_omit_unknown_options(monkeypatch):
    """A later version of XLA may remove an option."""
    device_mesh = mesh.make_mesh(schema.Mesh(), jax.devices()[:1])
    known = xla_flags.program_options(device_mesh)
    assert known["xla_cpu_use_fusion_emitters"] is False
    assert xla_flags.compiler_options(device_mesh) == known
    removed = {"xla_cpu_option_of_no_version": True, "xla_cpu_opt_preset": "VALUE_OF_NO_VERSION"}
    options = {"cpu": known | removed}
    monkeypatch.setattr(xla_flags, "PROGRAM_OPTIONS", options)
    assert xla_flags.program_options(device_mesh) == known
