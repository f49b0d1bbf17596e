"""Lines that name the kernels of runs and the reasons for their selection."""

from experiments.common import console
from lm.config import schema


def print_kernels(runs: list[schema.Run], platform: str = "", capability: str = "") -> None:
    """Print the kernels of each run once.

    platform: cpu, gpu or tpu of a target; "" is the devices of this process. capability: compute
    capability of its GPUs. Raises ValueError if a run selects a kernel or a remat policy that the
    platform does not support.
    """
    from lm.model.kernels import kernel_table, remat_policies
    from lm.parallel import mesh

    names: dict[str, list[str]] = {}
    for run in runs:
        if platform:
            kernels = kernel_table.select_kernels_for(run, platform, capability)
        else:
            device_mesh = mesh.make_mesh(run.mesh)
            remat_policies.validate_remat(run, mesh.device_platform(device_mesh))
            kernels = kernel_table.select_kernels(run, device_mesh)
        for line in kernel_table.describe_kernels(kernels, run):
            names.setdefault(line, []).append(run.name)
    for line, run_names in names.items():
        is_shared = len(run_names) == len(runs)
        console.print_line(line if is_shared else f"{line} ({', '.join(run_names)})")
