"""Estimate memory, time and cost of a run or a sweep, also for absent hardware. Train nothing.

    uv run python -m experiments.plan --sweep=configs/sweeps/quickstart.py
    uv run python -m experiments.plan --config=configs/pod.py:1T --config.mesh.fsdp=256 \\
        --config.mesh.tensor=8 --target=tpu:v5p:8x16x16
    uv run python -m experiments.plan --config=configs/pod.py:10B --target=gpu:h200:16x8 --search=3
    uv run python -m experiments.plan --advise=runs/quickstart --budget=1e15 --n_runs=2

The checks are those of the commands train and sweep. With --target, the target's compiler computes
memory and traffic (extras tpu and gpu). It needs neither the device nor the training text. Without
the compiler, or with --estimate, the values are analytic. The table names the method.

The plan states the disk space of the checkpoints next to the free space. A checkpoint is saved
every checkpoint_interval steps and at the end. A run retains its two newest checkpoints, because
the newest may be damaged; every multiple of permanent_checkpoint_interval; with keep_best or
eval.patience that of the lowest held-out loss; and those from which other runs start. An older
checkpoint is deleted after a newer one is complete. A damaged one is moved away, never deleted.

With --price_per_device_hour or --watts_per_device, the plan states price and energy.

With --advise, the command reads a trained sweep and proposes the next runs: those that narrow its
prediction the most per FLOP.
"""

import json

from absl import flags

from experiments.common import cli, console, flag_checks, next_command
from lm.config import schema
from lm.sweeps.planning import hardware

_SWEEP = flags.DEFINE_string("sweep", "", "FILE[:ARG] with get_sweep([ARG]) that yields runs")
_CONFIG = cli.config_flag()
_TARGET = flags.DEFINE_string(
    "target",
    "here",
    f"hardware of the plan, or several with commas, such as {', '.join(hardware.EXAMPLES)}",
)
_SEARCH = flags.DEFINE_integer("search", 0, "number of layouts to propose for each run", 0, 1000)
_ESTIMATE = flags.DEFINE_bool("estimate", False, "use the analytic estimate and compile nothing")
_ADVISE = flags.DEFINE_string("advise", "", "directory of a sweep whose next runs to propose")
_BUDGET = flags.DEFINE_float(
    "budget", None, "with --advise: FLOPs of the proposed runs; default: the most expensive run", 0
)
_N_RUNS = flags.DEFINE_integer("n_runs", 1, "with --advise: number of runs to propose", 1, 100)
cli.rate_flags()
_JSON = flags.DEFINE_bool("json", False, "print JSON instead of tables")
RUN_FLAGS = (
    *("sweep", "config", cli.CHANGES_FLAG, "sources", "target", "search", "estimate"),
    *("price_per_device_hour", "watts_per_device"),
)  # flags of a plan of runs, without effect on --advise


def main() -> int:
    if _ADVISE.value:
        flag_checks.reject_flags(RUN_FLAGS, f"has no effect with --advise={_ADVISE.value}")
        return print_advice()
    if _BUDGET.value is not None or _N_RUNS.value != 1:
        raise ValueError("--budget and --n_runs have an effect only on advice. Add --advise=DIR.")
    names = [] if _TARGET.value == "here" else _TARGET.value.split(",")
    targets = [hardware.parse_target(name) for name in names]
    if not targets and (_SEARCH.value or _ESTIMATE.value):
        raise ValueError(f"--search and --estimate need --target: {', '.join(hardware.EXAMPLES)}")
    runs = cli.load_runs(_SWEEP.value, _CONFIG)
    validate_runs(runs, has_text=not targets)
    from lm.sweeps import prediction

    warning = prediction.check_prediction(runs)
    if warning and not _JSON.value:
        console.print_line(f"warning: {warning}")
    return plan_targets(runs, targets) if targets else plan_local(runs)


def print_advice() -> int:
    """Print the next runs of a sweep, their cost and their gain. Return the exit status."""
    from lm.reports import summary
    from lm.reports.sections import next_run_section
    from lm.reports.tables import ladder_sizes

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
    if "N" in plan.law_fit.inputs:
        console.print_line(ladder_sizes.describe_ladder(sweep.rows))
    console.print_line(f"standard deviation of the law at the target today: {advice.before:.3g}")
    console.print_line(f"standard deviation after the next runs: {advice.after:.3g}")
    for note in sweep.notes:
        console.print_line(note)
    next_command.print_next("report", f"--dir={_ADVISE.value}")
    return 0


def _proposed_line(run: dict[str, float]) -> dict[str, str]:
    """Return the table row of a proposed run as text."""
    from lm.reports.plots import style
    from lm.reports.sections import next_run_section
    from lm.reports.tables import ladder_sizes

    titles = next_run_section.TITLES
    line = {titles[k]: style.format_si(v) for k, v in run.items() if k in titles}
    if "N" in run:
        line["nearest size of the ladder"] = ladder_sizes.nearest_ladder_size(run["N"])
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
    from experiments.common import disk_space, kernel_lines, optimizer_table
    from lm.parallel import mesh, peak_flops
    from lm.runs import records
    from lm.sweeps import launcher
    from lm.sweeps.planning import cost

    mesh.initialize_devices()
    launcher.validate_meshes(runs)
    device_mesh = mesh.make_mesh(schema.Mesh())
    peak = mesh.peak_flops_per_second(device_mesh, runs[0].model.dtype)
    costs = [cost.estimate_cost(run, peak, mesh.device_platform(device_mesh)) for run in runs]
    rates = cli.device_rates()
    costs = [
        row
        | optimizer_table.describe_optimizer(run)
        | rates.costs(row["seconds"] * device_mesh.size / 3600)
        for row, run in zip(costs, runs, strict=True)
    ]
    if _JSON.value:
        print(json.dumps(costs, indent=1))
        return 0
    console.print_line(f"devices: {mesh.describe_devices(device_mesh)}")
    kernel_lines.print_kernels(runs)
    console.print_line(peak_flops.describe_peak(mesh.device_kind(device_mesh), peak))
    finished = {run.name for run in runs if records.is_finished(run)}
    console.print_plan(costs, finished)
    seconds = sum(row["seconds"] or 0.0 for row in costs if row["name"] not in finished)
    for title, text in rates.describe(seconds * device_mesh.size / 3600).items():
        console.print_line(f"expected {title}: {text}")
    optimizer_table.print_optimizers(costs)
    disk_space.print_disk_space(runs, finished)
    print_memory_problems(runs, device_mesh)
    print_next_command()
    return 0


def print_next_command() -> None:
    """Print the command that trains the planned runs."""
    arguments = next_command.sweep_or_config_arguments()
    next_command.print_next("sweep" if _SWEEP.value else "train", *arguments)


def print_memory_problems(runs: list[schema.Run], device_mesh) -> None:
    """Print each run that cannot fit into the memory of the local devices."""
    from lm.model import inference_memory, memory_estimate
    from lm.parallel import device_memory, mesh

    available = device_memory.available_bytes(device_mesh)
    for run in runs:
        arguments = run, device_mesh.size, mesh.device_platform(device_mesh), available
        try:
            memory_estimate.check_memory(*arguments)
            inference_memory.check_evaluation_memory(*arguments)
        except schema.ConfigError as error:
            console.print_line(f"warning: {error}")


def plan_targets(runs: list[schema.Run], targets: list[hardware.Target]) -> int:
    """Print memory and time on target hardware. Return the exit status.

    Memory is that of the target's compiler, and peaks are those of its vendor.
    """
    from experiments.common import disk_space, kernel_lines, target_plan
    from lm.sweeps.planning import aot_compile

    for target in targets:
        aot_compile.initialize_target_compiler(target)
    if _JSON.value:
        rows = [row for target in targets for row in plan_rows(runs, target)]
        print(json.dumps(rows, indent=1))
        return 0
    for target in targets:
        extra = aot_compile.missing_extra(target)
        if extra and not _ESTIMATE.value:
            console.print_line(
                f"method: analytic estimate. The compiler for {target.platform} is not installed:"
                f" uv sync --extra {extra}"
            )
        target_plan.print_target(target)
        kernel_lines.print_kernels(runs, target.platform, target.compute_capability)
        target_plan.print_rows(plan_rows(runs, target))
        target_plan.print_assumptions(target)
    disk_space.print_disk_space(runs, set(), is_here=False)
    print_next_command()
    return 0


def plan_rows(runs: list[schema.Run], target: hardware.Target) -> list[dict]:
    """Return the rows of cost.plan_run for each run, or for each proposed layout of each run."""
    from experiments.common import optimizer_table
    from lm.sweeps.planning import aot_compile, cost, layout_search

    rates = cli.device_rates()
    should_compile = not (_ESTIMATE.value or aot_compile.missing_extra(target))
    rows = []
    for run in runs:
        if _SEARCH.value:
            new_rows = layout_search.search_layouts(run, target, _SEARCH.value, should_compile)
        else:
            new_rows = [cost.plan_run(run, target, should_compile)]
        optimizer = optimizer_table.describe_optimizer(run)
        rows += [row | optimizer | rates.costs(row["device_hours"]) for row in new_rows]
    return rows


if __name__ == "__main__":
    cli.run_main(main)
