"""Estimate memory, time and cost of a run or a sweep, also for absent hardware. Train nothing.

    uv run python -m experiments.plan --sweep=configs/sweeps/quickstart.py
    uv run python -m experiments.plan --config=configs/pod.py:1T --config.mesh.fsdp=256 \\
        --config.mesh.tensor=8 --target=tpu:v5p:8x16x16
    uv run python -m experiments.plan --config=configs/pod.py:10B --target=gpu:h200:8x16 --search=3
    uv run python -m experiments.plan --advise=runs/quickstart --budget=1e15 --n_runs=2

The checks are those of the commands train and sweep. With --target, the target's compiler computes
memory and traffic (extras tpu and gpu). It needs neither the device nor the training text. Without
the compiler, or with --estimate, the values are analytic. The table names the method.

The plan states the disk space of the checkpoints next to the free space. A checkpoint is saved
every checkpoint_interval steps and at the end. A run retains its two newest checkpoints, because
the newest may be damaged; every multiple of permanent_checkpoint_interval; with keep_best or
eval.patience that of the lowest held-out loss; and those from which other runs start. An older
checkpoint is deleted after a newer one is complete. A damaged one is moved away, never deleted.

With --advise, the command reads a trained sweep and proposes the next runs: those that narrow its
prediction the most per FLOP.
"""

import json

from absl import flags

from experiments.common import cli, console
from lm.config import schema
from lm.sweeps.planning import hardware

_SWEEP = flags.DEFINE_string("sweep", "", "FILE[:ARG] with get_sweep([ARG]) that yields runs")
_CONFIG = cli.config_flag()
_TARGET = flags.DEFINE_string(
    "target", "here", f"hardware of the plan, such as {', '.join(hardware.EXAMPLES)}"
)
_SEARCH = flags.DEFINE_integer("search", 0, "number of layouts to propose for each run", 0, 1000)
_ESTIMATE = flags.DEFINE_bool("estimate", False, "use the analytic estimate and compile nothing")
_ADVISE = flags.DEFINE_string("advise", "", "directory of a sweep whose next runs to propose")
_BUDGET = flags.DEFINE_float(
    "budget", None, "with --advise: FLOPs of the proposed runs; default: the most expensive run", 0
)
_N_RUNS = flags.DEFINE_integer("n_runs", 1, "with --advise: number of runs to propose", 1, 100)
_JSON = flags.DEFINE_bool("json", False, "print JSON instead of tables")


def main() -> int:
    if _ADVISE.value:
        return print_advice()
    if _BUDGET.value is not None or _N_RUNS.value != 1:
        raise ValueError("--budget and --n_runs have an effect only on advice. Add --advise=DIR.")
    target = None if _TARGET.value == "here" else hardware.parse_target(_TARGET.value)
    if target is None and (_SEARCH.value or _ESTIMATE.value):
        raise ValueError(f"--search and --estimate need --target: {', '.join(hardware.EXAMPLES)}")
    runs = cli.load_runs(_SWEEP.value, _CONFIG)
    validate_runs(runs, has_text=target is None)
    from lm.sweeps import prediction

    warning = prediction.check_prediction(runs)
    if warning and not _JSON.value:
        console.print_line(f"warning: {warning}")
    return plan_local(runs) if target is None else plan_target(runs, target)


def print_advice() -> int:
    """Print the next runs of a sweep, their cost and their gain. Return the exit status."""
    from lm.reports import summary
    from lm.reports.sections import next_run_section

    sweep = summary.load_summary(_ADVISE.value)
    try:
        plan = next_run_section.plan_next_runs(sweep, _BUDGET.value, _N_RUNS.value)
    except ValueError as error:
        # A run that is left out may be the cause.
        raise ValueError("; ".join([str(error), *sweep.notes])) from error
    advice = plan.advice
    if _JSON.value:
        facts = {"target": plan.target, "budget": plan.budget, "runs": advice.runs}
        facts |= {"before": advice.before, "after": advice.after, "candidates": advice.table}
        facts["notes"] = sweep.notes
        print(json.dumps(facts, indent=1))
        return 0
    console.print_line(f"law: {str(plan.law_fit).splitlines()[0]}")
    console.print_line(f"target: {plan.describe_target()}")
    console.print_line(f"budget: {plan.budget:.3g} FLOPs")
    console.table([_proposed_line(run) for run in advice.runs], "Next runs")
    candidates = [
        _proposed_line(row) | {"standard deviation at the target": f"{row['after']:.3g}"}
        for row in advice.table
    ]
    console.table(candidates, "Best single runs, by the removed variance per FLOP")
    console.print_line(f"standard deviation of the law at the target today: {advice.before:.3g}")
    console.print_line(f"standard deviation after the next runs: {advice.after:.3g}")
    for note in sweep.notes:
        console.print_line(note)
    return 0


def _proposed_line(run: dict[str, float]) -> dict[str, str]:
    """Return the table row of a proposed run as text."""
    from lm.reports.plots import style
    from lm.reports.sections import next_run_section

    titles = next_run_section.TITLES
    line = {titles[k]: style.format_si(v) for k, v in run.items() if k in titles}
    if "N" in run:
        line["nearest size of the ladder"] = next_run_section.nearest_ladder_size(run["N"])
    return line | {"FLOPs": f"{run['flops']:.3g}"}


def validate_runs(runs: list[schema.Run], has_text: bool) -> None:
    """Check the runs as training does, except for the meshes. has_text: check the sources too.

    Raises ValueError for the first problem.
    """
    from lm.sweeps import launcher

    if _SWEEP.value:
        launcher.validate_names(runs)
    if has_text and _SWEEP.value:
        launcher.validate_configs(runs)
    elif has_text:
        launcher.validate_inputs(runs)


def plan_local(runs: list[schema.Run]) -> int:
    """Print the cost at the measured speed of the local devices. Return the exit status."""
    from experiments.common import disk_space
    from lm.parallel import mesh
    from lm.runs import records
    from lm.sweeps import launcher
    from lm.sweeps.planning import cost

    mesh.initialize_devices()
    launcher.validate_meshes(runs)
    device_mesh = mesh.make_mesh(schema.Mesh())
    peak = mesh.peak_flops_per_second(device_mesh, runs[0].model.dtype)
    costs = [cost.estimate_cost(run, peak, mesh.device_platform(device_mesh)) for run in runs]
    if _JSON.value:
        print(json.dumps(costs, indent=1))
        return 0
    console.print_line(f"devices: {mesh.describe_devices(device_mesh)}")
    console.print_line(f"measured peak of matrix products: {peak / 1e9:.0f} GFLOP/s")
    finished = {run.name for run in runs if records.is_finished(run)}
    console.print_plan(costs, finished)
    disk_space.print_disk_space(runs, finished)
    print_memory_problems(runs, device_mesh)
    return 0


def print_memory_problems(runs: list[schema.Run], device_mesh) -> None:
    """Print each run that cannot fit into the memory of the local devices."""
    from lm.model import memory_estimate
    from lm.parallel import device_memory, mesh

    available = device_memory.available_bytes(device_mesh)
    for run in runs:
        try:
            memory_estimate.check_memory(
                run, device_mesh.size, mesh.device_platform(device_mesh), available
            )
        except schema.ConfigError as error:
            console.print_line(f"warning: {error}")


def plan_target(runs: list[schema.Run], target: hardware.Target) -> int:
    """Print memory and time on target hardware. Return the exit status.

    Memory is that of the target's compiler, and peaks are those of its vendor.
    """
    from experiments.common import disk_space
    from lm.sweeps.planning import aot_compile, cost, layout_search

    aot_compile.initialize_target_compiler(target)
    extra = aot_compile.missing_extra(target)
    should_compile = not (_ESTIMATE.value or extra)
    if not _JSON.value:
        if extra and not _ESTIMATE.value:
            console.print_line(
                f"method: analytic estimate. The compiler for {target.platform} is not installed:"
                f" uv sync --extra {extra}"
            )
        print_target(target)
    rows = []
    for run in runs:
        if _SEARCH.value:
            rows += layout_search.search_layouts(run, target, _SEARCH.value, should_compile)
        else:
            rows.append(cost.plan_run(run, target, should_compile))
    if _JSON.value:
        print(json.dumps(rows, indent=1))
        return 0
    console.table([_memory_line(row) for row in rows], "Memory: GiB per device")
    console.table([_time_line(row) for row in rows], "Time: seconds per step, and the whole run")
    for row in rows:
        print_traffic(row)
    disk_space.print_disk_space(runs, set(), is_here=False)
    console.print_line("roofline: the longest of compute, memory and network, at vendor peaks")
    console.print_line(f"expected: at an MFU that is assumed, not measured, for {target.platform}")
    return 0


def print_target(target: hardware.Target) -> None:
    """Print the devices of a target, with the memory and peak of one of them."""
    chip = target.spec
    console.print_line(f"target: {target.name}, {target.n_devices:,} devices")
    console.print_line(f"memory per device: {chip.memory_bytes / hardware.GIB:.2f} GiB")
    console.print_line(f"peak per device: {chip.bfloat16 / 1e12:.4g} TFLOP/s in bfloat16")
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
        "temporaries": gib["bytes_temporaries"],
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
        "roofline": number("roofline_seconds"),
        "bound by": row["bound"],
        "MFU": f"{row['mfu']:.0%}",
        "expected": number("step_seconds"),
        "hours": number("hours", ",.3g") if (row["hours"] or 0) < 1000 else number("hours", ",.0f"),
        "device-hours": number("device_hours", ",.0f"),
        "compilation": number("compile_seconds", ".0f"),
    }


def _format_mesh(row: dict) -> str:
    return " ".join(f"{axis}={size}" for axis, size in row["mesh"].items()) or "one device"


if __name__ == "__main__":
    cli.run_main(main)
