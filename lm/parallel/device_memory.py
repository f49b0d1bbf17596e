"""Memory that a process can use on each of its devices, in bytes, and memory of compilations."""

import contextlib
import ctypes
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

MEMORY_GROUP = Path("/sys/fs/cgroup")
THREADS = Path("/proc/self/task")
COMPILER_NICENESS = 10  # of the threads that emit kernels, relative to those that generate code


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


@contextlib.contextmanager
def limit_waiting_kernels() -> Iterator[None]:
    """Reduce the memory of compilations on CPU. JAX must start its devices in this context.

    One thread of XLA emits the kernels of a program, and a thread per core lowers them and
    generates their code. An emitted kernel needs about a MiB until it is lowered. With equal
    priorities and two cores, most kernels of a train step wait at the same time. Fewer wait if the
    thread that emits has a lower priority, and a compilation takes the same time. In JAX 0.10 this
    thread belongs to JAX. In JAX 0.12 it is the thread that compiles, see `lower_priority`. Without
    effect on other systems than Linux.
    """
    names = _thread_names()
    yield
    # JAX 0.10 does not name the threads that emit. The threads tf_XLAEigen compute the steps.
    started = {
        thread
        for thread, name in _thread_names().items()
        if thread not in names and (name == "tf_XLACompile" or not name.startswith("tf_"))
    }
    if not started or jax.default_backend() != "cpu":
        return
    _start_code_generation()
    for thread in started:
        lower_priority(thread)


def lower_priority(thread: int | None = None) -> None:
    """Lower the priority of a thread on Linux. thread: its id; None is the current thread."""
    thread = threading.get_native_id() if thread is None else thread
    if THREADS.exists():  # elsewhere the priority would be that of a process
        with contextlib.suppress(OSError):  # the thread has ended
            niceness = os.getpriority(os.PRIO_PROCESS, thread) + COMPILER_NICENESS
            os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _thread_names() -> dict[int, str]:
    """Return {id: name} of the threads of this process; {} if the system does not list them."""
    names = {}
    with contextlib.suppress(OSError):
        for thread in THREADS.iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                names[int(thread.name)] = (thread / "comm").read_text().strip()
    return names


def _start_code_generation() -> None:
    """Compile a program, because the first compilation starts the threads that generate code.

    They have the priority of the thread that starts them. A program from the cache would start
    none, so this program is never stored.
    """
    setting = "jax_persistent_cache_min_compile_time_secs"
    seconds = jax.config.values[setting]
    jax.config.update(setting, float("inf"))
    try:
        jax.jit(lambda x: x + 1).lower(0).compile()
    finally:
        jax.config.update(setting, seconds)


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
