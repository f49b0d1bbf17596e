"""Part of a GPU's memory that JAX reserves."""

import pytest

from lm.parallel import gpu_memory, mesh
from lm.sweeps.planning import hardware


@pytest.mark.parametrize("name", gpu_memory.VARIABLES)
def test_fraction_of_the_environment_is_not_replaced(name):
    environment = {name: ".5"}
    gpu_memory.reserve_gpu_memory(environment)
    assert environment == {name: ".5"} and gpu_memory.gpu_memory_fraction(environment) == 0.5


def test_default_fraction_is_set_and_planned():
    environment: dict[str, str] = {}
    gpu_memory.reserve_gpu_memory(environment)
    assert environment == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    assert gpu_memory.gpu_memory_fraction(environment) == gpu_memory.gpu_memory_fraction({}) == 0.92


@pytest.mark.parametrize("value", ["abc", "0", "1.2", "nan", "-1"])
def test_invalid_fraction_is_refused(value):
    with pytest.raises(ValueError, match=f"MEM_FRACTION={value} must be above 0 and at most 1"):
        gpu_memory.gpu_memory_fraction({gpu_memory.VARIABLE: value})


def test_devices_are_initialized_with_the_fraction(monkeypatch):
    for name in gpu_memory.VARIABLES:
        monkeypatch.setenv(name, "")
    mesh.initialize_devices()
    assert mesh.os.environ[gpu_memory.VARIABLE] == "0.92"


def test_plan_of_a_gpu_has_the_reserved_memory(monkeypatch):
    """A plan for the whole card would be an out-of-memory error on the card."""
    for name in gpu_memory.VARIABLES:
        monkeypatch.setenv(name, "")
    card = hardware.ACCELERATORS["h100"].memory_bytes
    assert hardware.parse_target("gpu:h100:8").spec.memory_bytes == 0.92 * card
    monkeypatch.setenv(gpu_memory.VARIABLE, ".75")
    assert hardware.parse_target("gpu:h100").spec.memory_bytes == 0.75 * card
    v5e = hardware.ACCELERATORS["v5e"]
    assert hardware.parse_target("tpu:v5e:4x4").spec == v5e
