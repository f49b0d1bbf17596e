"""Memory that a process can use on each of its devices, in bytes."""

import contextlib
import ctypes
import os
import resource
from pathlib import Path

import jax

MEMORY_GROUP = Path("/sys/fs/cgroup")


def available_bytes(mesh: jax.sharding.Mesh) -> float:
    """Return the bytes that a program can use on each device of this process.

    The limit of an accelerator is that of its allocator. The devices of a CPU share the free memory
    of the machine. The result is infinite if the system does not report it.
    """
    devices = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known_limits = [limit for limit in limits if limit]
    if known_limits:
        return min(known_limits)
    if devices and devices[0].platform == "cpu":
        return available_host_bytes() / len(devices)
    return float("inf")


def available_host_bytes() -> float:
    """Return the free memory for this process: of the machine, its container and its limits."""
    system = _read_numbers(Path("/proc/meminfo"))
    free = system.get("MemAvailable:", float("inf")) + system.get("SwapFree:", 0.0)
    return max(0.0, min(1024 * free, _free_group_bytes(), _free_address_space()))


def release_free_memory() -> None:
    """Return the free memory of malloc to the system, if the C library can do this.

    A compilation needs hundreds of MiB, which malloc retains otherwise. The arrays of a step are
    larger than most of these free blocks and need memory of their own.
    """
    with contextlib.suppress(OSError, AttributeError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


def _free_group_bytes() -> float:
    """Return the bytes that the control group of a container can still use."""
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = int((MEMORY_GROUP / limit_name).read_text())
            usage = int((MEMORY_GROUP / usage_name).read_text())
        except (OSError, ValueError):  # no control group, or the limit is "max"
            continue
        folder = (MEMORY_GROUP / limit_name).parent
        cached = _read_numbers(folder / "memory.stat").get("inactive_file", 0.0)
        return limit - usage + cached
    return float("inf")


def _free_address_space() -> float:
    """Return the bytes that the process can still map, see `ulimit -v`."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        used = 0
    return limit - used


def _read_numbers(file: Path) -> dict[str, float]:
    """Return {name: number} of a file with lines NAME NUMBER; {} if it cannot be read."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: float(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
