"""Free memory of the machine, its container and its limits, and priorities of XLA's threads."""

import concurrent.futures
import os
import pathlib
import resource
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from lm.parallel import device_memory, distributed

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


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs priorities of threads")
def test_threads_that_generate_code_have_priority(tmp_path):
    settings = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_NUM_CPU_DEVICES": "2"}
    run = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, **settings, "XLA_FLAGS": ""},  # the tests have another code generator
        capture_output=True,
        text=True,
        check=False,
    )
    assert not run.returncode, run.stderr[-2000:]


def _check_priorities() -> None:
    """Compile a program of many kernels in a new process. Check the priorities of its threads."""
    niceness = os.nice(0)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    devices = distributed.list_devices()
    assert devices[0].platform == "cpu"
    # A stored program would start no threads.
    assert not os.listdir(os.environ["JAX_COMPILATION_CACHE_DIR"])
    names = device_memory._thread_names()
    slower = {thread for thread in names if _priority(thread) == min(niceness + 10, 19)}
    assert slower and not any(names[thread] == "tf_XLAEigen" for thread in slower)
    lowered = jax.jit(lambda xs: [jnp.sin(x) * x for x in xs]).lower(
        [jnp.zeros((8, i)) for i in range(2, 42)]
    )
    with concurrent.futures.ThreadPoolExecutor(initializer=device_memory.lower_priority) as pool:
        pool.submit(lowered.compile).result()
        ticks = {thread: _processor_ticks(thread) for thread in device_memory._thread_names()}
    del ticks[threading.get_native_id()]
    assert _priority(max(ticks, key=ticks.__getitem__)) == niceness


def _priority(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def _processor_ticks(thread: int) -> int:
    fields = (device_memory.THREADS / str(thread) / "stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    _check_priorities()
