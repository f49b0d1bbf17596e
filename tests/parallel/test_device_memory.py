"""The free memory of a process is that of the machine, its container and its limits."""

import resource

import pytest

from lm.parallel import device_memory

GROUP_FILES = {
    "memory.max": "5000000\n",
    "memory.current": "3000000\n",
    "memory.stat": "anon 7\ninactive_file 1000000\n",
}


def write_files(folder, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Return an empty folder in place of the control group of the process."""
    monkeypatch.setattr(device_memory, "MEMORY_GROUP", tmp_path)
    return tmp_path


def test_container_limits_the_memory(group):
    write_files(group, GROUP_FILES)
    assert device_memory.available_host_bytes() == 3_000_000


def test_container_of_the_first_version_limits_the_memory(group):
    files = {
        "memory/memory.limit_in_bytes": "5000000",
        "memory/memory.usage_in_bytes": "4000000",
        "memory/memory.stat": "cache 5\n",
    }
    write_files(group, files)
    assert device_memory.available_host_bytes() == 1_000_000


@pytest.mark.parametrize("limit", ["max\n", ""])
def test_unlimited_container_has_no_effect(group, limit):
    write_files(group, GROUP_FILES | {"memory.max": limit})
    assert 10_000_000 < device_memory.available_host_bytes()


def test_limit_of_the_address_space_counts(group, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1, resource.RLIM_INFINITY))
    assert device_memory.available_host_bytes() == 0
