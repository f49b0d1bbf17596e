"""Find the processes of a run by flags and by the environment of a cluster, without JAX.

cluster.find_processes(os.environ)      # None for a single process
"""

import re
from collections.abc import Mapping
from typing import NamedTuple, NoReturn


class ProcessInfo(NamedTuple):
    """Index of this process, and the address of the coordinator.

    coordinator: host:port of process 0; "" lets JAX detect the cluster. device_ids: local devices
    of this process; None for all.
    """

    coordinator: str
    n_processes: int = 0
    process_id: int = 0
    device_ids: list[int] | None = None


def find_processes(
    env: Mapping[str, str], coordinator: str = "", n_processes: int = 0, process_id: int = -1
) -> ProcessInfo | None:
    """Return the processes of a run by arguments or environment; None for a single process.

    Kubernetes   the arguments except process_id, which is the index of the job's pod
    SLURM        srun with several tasks; several tasks on a node have one device each
    TPU          pod slices, from the metadata that JAX reads. coordinator="auto" uses JAX's
                 detection for other clusters too (Kubernetes by its API, MPI)

    Raises ValueError if the arguments are invalid or incomplete.
    """
    if coordinator == "auto":
        return ProcessInfo("")
    if coordinator or n_processes or process_id >= 0:
        if process_id < 0:
            process_id = _cluster_number(env, "JOB_COMPLETION_INDEX", "-1")
        if not re.fullmatch(r"[^\s:]+:\d+|\[[\da-fA-F:]+\]:\d+", coordinator):
            raise ValueError(f"--coordinator={coordinator} must be host:port of process 0, or auto")
        if not 0 <= process_id < n_processes:
            raise ValueError(
                f"--process={process_id} must be at least 0 and below --processes={n_processes}"
            )
        return ProcessInfo(coordinator, n_processes, process_id) if n_processes > 1 else None
    if _cluster_number(env, "SLURM_STEP_NUM_TASKS", "1") > 1:
        return _slurm_processes(env)
    n_slices = _cluster_number(env, "MEGASCALE_NUM_SLICES", "1")
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or n_slices > 1:
        return ProcessInfo("")
    return None


def _slurm_processes(env: Mapping[str, str]) -> ProcessInfo:
    """Return the processes of a step of srun. The port of process 0 follows from the job id.

    Raises ValueError if a variable is missing.
    """
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next((env[name] for name in names if env.get(name)), "")  # node7, node[001-015,17],x3
    if not nodes:
        _reject_variable(env, "SLURM_STEP_NODELIST")
    first_node = re.sub(r"^([^,\[]*)\[(\w+)[^\]]*\]([^,]*).*$", r"\1\2\3", nodes).partition(",")[0]
    port = 61_440 + _cluster_number(env, "SLURM_JOB_ID") % 4096
    tasks_per_node = re.findall(
        r"(?<!x)\b\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1")
    )  # 2(x3),1
    # If only one device is visible, srun has assigned a device to each task.
    has_own_device = "," not in env.get("CUDA_VISIBLE_DEVICES", ",")
    uses_all = has_own_device or max(map(int, tasks_per_node), default=1) == 1
    return ProcessInfo(
        f"{first_node}:{port}",
        _cluster_number(env, "SLURM_STEP_NUM_TASKS"),
        _cluster_number(env, "SLURM_PROCID"),
        None if uses_all else [_cluster_number(env, "SLURM_LOCALID")],
    )


def _cluster_number(env: Mapping[str, str], name: str, default: str = "") -> int:
    """Return the integer of a variable. Raises ValueError for another value or without a value."""
    value = env.get(name) or default
    return int(value) if re.fullmatch(r"-?\d+", value) else _reject_variable(env, name)


def _reject_variable(env: Mapping[str, str], name: str) -> NoReturn:
    raise ValueError(
        f"{name}={env.get(name, '')!r} is not what a cluster sets for several processes. Start with"
        " srun, or with --coordinator, --processes and --process, or unset SLURM_STEP_NUM_TASKS."
    )
