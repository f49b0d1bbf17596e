"""Hardware and software below JAX on which the bits of a step depend.

    facts = platform_facts.collect_platform_facts(device_mesh)
    facts["versions.jaxlib"], facts["devices.cpu_model"]

The results contain only the entries that the machine reports.
"""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import jax

from lm.parallel import distributed

CPU_INFO = Path("/proc/cpuinfo")
DRIVER_INFO = Path("/proc/driver/nvidia/version")
# Packages that contain a compiler or kernels, by the extras gpu and tpu of this project.
PACKAGES = (
    *("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas"),
    *("nvidia-nccl-cu12", "nvidia-nccl-cu13"),
)
# XLA selects instructions by these extensions, which a virtual machine may hide.
VECTOR_EXTENSION = re.compile(r"(sse4|avx|amx|fma|asimd|sve)\w*")
FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def collect_platform_facts(device_mesh: jax.sharding.Mesh) -> dict[str, str]:
    """Return versions of jaxlib, libtpu, CUDA, its libraries and its driver; CPU model; XLA flags.

    Call in all processes at the same point: the CPU models of all processes are one text.
    """
    facts = {f"versions.{name}": v for name in PACKAGES if (v := _package_version(name))}
    device = device_mesh.devices.flat[0]
    facts["versions.platform"] = " ".join(str(device.client.platform_version).split())
    if driver := driver_version():
        facts["versions.driver"] = driver
    models = distributed.all_gather_objects(cpu_model())
    facts["devices.cpu_model"] = "; ".join(sorted(set(models)))
    if flags := xla_flags(os.environ):
        facts["devices.xla_flags"] = flags
    return facts


def driver_version() -> str:
    """Return the version of the NVIDIA driver, "" without one."""
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _read_text(DRIVER_INFO))
    return match[1] if match else ""


def cpu_model() -> str:
    """Return the model of the CPU with its vector extensions, or only the architecture."""
    fields: dict[str, str] = {}
    for line in _read_text(CPU_INFO).split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    names = ("model name", "cpu family", "model", "stepping")
    names += ("CPU implementer", "CPU part", "CPU variant")
    model = [fields[name] for name in names if name in fields]
    extensions = fields.get("flags", fields.get("Features", "")).split()
    model += sorted(name for name in set(extensions) if VECTOR_EXTENSION.fullmatch(name))
    return " ".join(model) or platform.processor() or platform.machine()


def xla_flags(environment) -> str:
    """Return the compiler flags in environment variables, sorted, without values that are paths.

    Flags with a path, such as a folder for dumps, change no result.
    """
    flags = " ".join(environment.get(name, "") for name in FLAG_VARIABLES).split()
    return " ".join(sorted(flag for flag in flags if "/" not in flag))


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read_text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
