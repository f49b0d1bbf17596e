"""The free memory of a process is that of the machine, its container and its limits."""

import pathlib
import resource
import sys

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and glibc")
def test_free_memory_is_returned_to_the_system():
    def resident_bytes() -> int:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    blocks = [bytearray(60_000) for _ in range(2000)]  # malloc does not map such blocks alone
    barrier = bytearray(60_000)  # the free memory below it is inside of the heap
    before = resident_bytes()
    del blocks
    device_memory.release_free_memory()
    assert resident_bytes() < before - 80_000_000 and len(barrier)


def test_c_library_without_malloc_trim_is_accepted(monkeypatch):
    monkeypatch.setattr(device_memory.ctypes, "CDLL", lambda name: object())
    device_memory.release_free_memory()
