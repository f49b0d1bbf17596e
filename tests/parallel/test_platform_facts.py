"""Versions and hardware on which the bits of a step depend."""

import jaxlib
import pytest

from lm.config import schema
from lm.parallel import mesh, platform_facts

X86 = """processor\t: 0
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R)
stepping\t: 8
flags\t\t: fpu sse sse4_2 avx avx2 avx512f fma amx_tile rdrand

processor\t: 1
model name\t: other
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: 12\n"
OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n"


@pytest.mark.parametrize(
    ("text", "model"),
    [
        (X86, "Intel(R) Xeon(R) 6 143 8 amx_tile avx avx2 avx512f fma sse4_2"),
        (ARM, "0x41 0xd40 asimd sve"),
    ],
)
def test_cpu_model_contains_its_vector_extensions(text, model, tmp_path, monkeypatch):
    """Two virtual machines can hide different extensions of one model."""
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(platform_facts, "CPU_INFO", file)
    assert platform_facts.cpu_model() == model
    monkeypatch.setattr(platform_facts, "CPU_INFO", tmp_path / "missing")
    assert platform_facts.cpu_model()


@pytest.mark.parametrize(
    ("text", "version"), [(DRIVER, "550.54.15"), (OPEN_DRIVER, "570.86.10"), ("?", "")]
)
def test_driver_version_is_parsed(text, version, tmp_path, monkeypatch):
    file = tmp_path / "version"
    file.write_text(text)
    monkeypatch.setattr(platform_facts, "DRIVER_INFO", file)
    assert platform_facts.driver_version() == version


def test_flags_with_paths_are_left_out():
    environment = {"XLA_FLAGS": "--b=2 --dump_to=/tmp/a --a=1", "LIBTPU_INIT_ARGS": "--c=3"}
    assert platform_facts.xla_flags(environment) == "--a=1 --b=2 --c=3"
    assert platform_facts.xla_flags({}) == ""


def test_facts_name_the_installed_libraries():
    facts = platform_facts.collect_platform_facts(mesh.make_mesh(schema.Mesh()))
    assert facts["versions.jaxlib"] == jaxlib.__version__
    assert facts["versions.platform"] == "cpu" and facts["devices.cpu_model"]
    assert all(isinstance(value, str) and value for value in facts.values())
