"""Tables of a plan for target hardware, and the check of a command without devices (--dry_run)."""

import os

from absl import flags

from experiments.common import console, optimizer_table
from lm.config import schema
from lm.runs import filesystem
from lm.sweeps.planning import hardware

# Names of the fast and the slow network of a platform, and of the parts that the slow one connects.
NETWORKS = {
    "tpu": ("ICI per link", "data center network per device", "slices"),
    "gpu": ("NVLink per device", "InfiniBand per device", "nodes"),
}
N_SHAPES = 6  # weights in the table of shapes


def dry_run_flag():
    """Define --dry_run=TARGET. Return the flag."""
    return flags.DEFINE_string(
        "dry_run",
        "",
        "check the command and print shapes, mesh and plan on simulated devices of this hardware,"
        " such as gpu:h100:2x8; train nothing and write no file",
    )


def check_started_runs(runs: list[schema.Run]) -> None:
    """Check that the runs on disk have the configs of the command. Write nothing.

    Folders in a bucket are not read, because a dry run needs no access to it. Raises ValueError,
    see records.check_same_config.
    """
    from lm.runs import records

    for run in runs:
        if filesystem.is_remote(run.dir):
            console.print_line(f"{run.name}: the config in {run.dir} is not checked")
        else:
            records.check_same_config(run)


def print_dry_run(runs: list[schema.Run], target_name: str) -> int:
    """Print processes, mesh, shapes and the analytic plan of runs. Return the exit status.

    target_name: value of --dry_run. Raises ValueError like the command on the target.
    """
    from lm.parallel import mesh
    from lm.sweeps.planning import aot_compile, cost

    target = hardware.parse_target(target_name, "--dry_run")
    aot_compile.initialize_target_compiler(target)
    print_target(target)
    _print_processes(target)
    devices = hardware.absent_devices(target)
    for run in runs:
        device_mesh = mesh.make_mesh(run.mesh, devices)
        mesh.check_mesh_devices(run, device_mesh)
        console.print_line(f"{run.name}: {mesh.describe_devices(device_mesh)}")
        n_rows = run.data.batch_size // mesh.n_batch_devices(device_mesh)
        console.print_line(f"{run.name}: {n_rows} rows of {run.data.seq_len} tokens per device")
    if len(runs) == 1:
        _print_shapes(runs[0], device_mesh)
    rows = [cost.plan_run(run, target, should_compile=False) for run in runs]
    print_rows(
        [row | optimizer_table.describe_optimizer(r) for row, r in zip(rows, runs, strict=True)]
    )
    print_assumptions(target)
    console.print_line("dry run: nothing was trained and no file was written")
    return 0


def _print_processes(target: hardware.Target) -> None:
    """Print the processes of the command's flags and environment.

    Raises ValueError if they cannot have equal numbers of devices.
    """
    from lm.parallel import cluster

    values = flags.FLAGS
    arguments = values.coordinator, values.processes, values.process
    info = cluster.find_processes(os.environ, *arguments)
    if info is None:
        console.print_line("processes: 1")
    elif not info.coordinator:
        console.print_line("processes: detected by JAX from the metadata of the cluster")
    elif target.n_devices % info.n_processes:
        raise ValueError(
            f"--dry_run={target.name}: {target.n_devices} devices cannot be divided over"
            f" {info.n_processes} processes: start a process per node or per device"
        )
    else:
        name = f"processes: {info.n_processes}, this is process {info.process_id}"
        console.print_line(f"{name}, process 0 is at {info.coordinator}")


def _print_shapes(run: schema.Run, device_mesh) -> None:
    """Print the largest weights with their shapes on all devices and on one."""
    import jax

    from lm.model import params, transformer
    from lm.parallel import mesh

    rules = mesh.ShardingRules.from_config(run.mesh)
    weights = params.flatten_by_path(jax.eval_shape(lambda: transformer.init_params(run.model, 0)))
    names = jax.tree.leaves(transformer.param_axes(run.model), is_leaf=mesh.is_axis_names)
    axes = dict(zip(weights, names, strict=True))
    largest = sorted(weights, key=lambda path: -weights[path].size)[:N_SHAPES]
    lines = []
    for path in largest:
        sharding = rules.sharding(device_mesh, *axes[path])
        per_device = sharding.shard_shape(weights[path].shape)
        lines.append(
            {
                "weight": path,
                "axes": " ".join(map(str, axes[path])),
                "shape": " x ".join(map(str, weights[path].shape)),
                "shape per device": " x ".join(map(str, per_device)),
            }
        )
    console.table(lines, f"Shapes of the {len(largest)} largest weights")


def print_rows(rows: list[dict]) -> None:
    """Print the tables and the traffic of rows of cost.plan_run."""
    console.table([_memory_line(row) for row in rows], "Memory: GiB per device")
    console.print_line("needed: weights, optimizer and the largest of the three programs")
    console.table([_time_line(row) for row in rows], "Time: seconds per step, and the whole run")
    optimizer_table.print_optimizers(list({row["name"]: row for row in rows}.values()))
    for row in rows:
        print_traffic(row)


def print_assumptions(target: hardware.Target) -> None:
    """Print the meaning of the times of a plan."""
    console.print_line(
        "roofline: the longest of compute, memory, network and kernel launches, at vendor peaks"
    )
    console.print_line(f"expected: at an MFU that is assumed, not measured, for {target.platform}")


def print_target(target: hardware.Target) -> None:
    """Print the devices of a target, with the memory and peak of one of them."""
    chip = target.spec
    console.print_line(f"target: {target.name}, {target.n_devices:,} devices")
    console.print_line(f"memory per device: {chip.memory_bytes / hardware.GIB:.2f} GiB")
    console.print_line(f"peak per device: {chip.bfloat16 / 1e12:.4g} TFLOP/s in bfloat16")
    if target.platform != "cpu":
        fast, slow, noun = NETWORKS[target.platform]
        console.print_line(f"{fast}: {chip.link_speed / 1e9:g} GB/s")
        console.print_line(f"{slow}: {chip.slow_speed / 1e9:g} GB/s, over {target.n_slices} {noun}")
    console.print_line(f"source: {chip.source}")


def print_traffic(row: dict) -> None:
    """Print the traffic of each kind of collective in a row of cost.plan_run."""
    for kind, total in row["collectives"].items():
        console.print_line(
            f"{row['name']}, {kind}: {total['bytes'] / 1e9:.3g} GB per device and step,"
            f" in {total['n']:,} operations"
        )


def _memory_line(row: dict) -> dict[str, str]:
    """Return a line of the table of memory."""
    gib = {key: f"{n / hardware.GIB:.2f}" for key, n in row.items() if key.startswith("bytes_")}
    return {
        "run": row["name"],
        "parameters": f"{row['params_total']:.4g}",
        "active": f"{row['params_active']:.4g}",
        "FLOPs": f"{row['flops']:.2e}",
        "mesh": _format_mesh(row),
        "micro-batches": str(row["optim.grad_accumulation_steps"]),
        "remat": row["model.remat"],
        "weights": gib["bytes_params"],
        "optimizer": gib["bytes_optimizer"],
        "train step": gib["bytes_temporaries"],
        "evaluation": gib["bytes_evaluation"],
        "generation": gib["bytes_generation"] if row["bytes_generation"] else "-",
        "needed": gib["bytes_needed"],
        "fits": f"exceeds by {gib['bytes_over']}" if row["bytes_over"] else "yes",
        "method": row["method"],
    }


def _time_line(row: dict) -> dict[str, str]:
    """Return a line of the table of time."""

    def number(key: str, template: str = ".3g") -> str:
        return "-" if row[key] is None else format(row[key], template)

    return {
        "run": row["name"],
        "mesh": _format_mesh(row),
        "remat": row["model.remat"],
        "compute": number("compute_seconds"),
        "memory": number("memory_seconds"),
        "network": number("network_seconds"),
        "launch": number("launch_seconds"),
        "roofline": number("roofline_seconds"),
        "bound by": row["bound"],
        "MFU": f"{row['mfu']:.0%}",
        "expected": number("step_seconds"),
        "hours": number("hours", ",.3g") if (row["hours"] or 0) < 1000 else number("hours", ",.0f"),
        "device-hours": number("device_hours", ",.0f"),
        **({"price": number("price", ",.2f")} if "price" in row else {}),
        **({"kWh": number("energy_kwh", ",.1f")} if "energy_kwh" in row else {}),
        "compilation": number("compile_seconds", ".0f"),
    }


def _format_mesh(row: dict) -> str:
    return " ".join(f"{axis}={size}" for axis, size in row["mesh"].items()) or "one device"
