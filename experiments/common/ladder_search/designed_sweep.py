"""experiments.sweep --target_size: a ladder whose runs are chosen by their use for a prediction."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags

from experiments.common import cli, console, progress_view
from experiments.common.ladder_search import limits
from lm.config import schema

# Flag of a fixed sweep -> value without effect. A designed ladder trains one run at a time.
FIXED_FLAGS = {"on": "here", "jobs": 1, "max_vmapped": 1, "adopt": False, "dry_run": ""}


def define_flags() -> None:
    """Define the flags of a designed ladder."""
    flags.DEFINE_string(
        "target_size", "", "choose the runs of the sweep file so that they predict this size"
    )
    flags.DEFINE_string(
        "max_error", None, "goal: half the 95% interval of the target's mean loss; default: 1%"
    )
    flags.DEFINE_string(
        "time_budget", None, "limit of the wall time of the chosen runs; default: 1h"
    )
    flags.DEFINE_float("target_tokens", 0.0, "tokens of the target, with several budgets", 0)


def read_goal():
    """Return the ladder_cells.LadderGoal of the flags, None without --target_size.

    Raises ValueError for invalid values, and for flags that have no effect together.
    """
    values = flags.FLAGS
    if not values.target_size:
        for name in ("max_error", "time_budget", "target_tokens"):
            if values[name].value:
                raise ValueError(f"--{name} has an effect only with --target_size=SIZE: add it")
        return None
    for name, default in FIXED_FLAGS.items():
        if values[name].value != default:
            raise ValueError(
                f"--{name}={values[name].value} and --target_size exclude each other, because a"
                f" designed ladder trains one run at a time on this machine: remove --{name}"
            )
    from lm.sweeps.designed_ladder import ladder_cells

    return ladder_cells.LadderGoal(
        values.target_size,
        limits.parse_fraction(values.max_error or "1%", "max_error"),
        limits.parse_duration(values.time_budget or "1h"),
        values.target_tokens,
    )


def describe_flags(sweep: str) -> str:
    """Return the value of --sweep with the flags of the ladder, for the record of the sweep."""
    values = flags.FLAGS
    names = ("target_size", "max_error", "time_budget", "target_tokens")
    return " ".join(
        [sweep, *(f"--{name}={values[name].value}" for name in names if values[name].value)]
    )


def run_ladder(
    sweep: str,
    runs: list[schema.Run],
    goal,
    train: Callable[[list[schema.Run]], None],
    print_results: Callable[[Path], int],
) -> int:
    """Train the runs that the goal needs, and print the results. Return the exit status.

    sweep: value of --sweep. train: trains runs that are not finished. print_results: prints the
    results of the folder of a sweep, and returns the exit status.
    """
    from lm.sweeps.designed_ladder import ladder_cells, size_family

    further_runs = size_family.extend_sizes(runs, goal.size)
    ladder = ladder_cells.build_ladder([*runs, *further_runs], goal)  # writes no file
    names = ", ".join(cell.label for cell in ladder.cells)
    console.print_line(f"sizes that may be trained: {names}")
    if not further_runs:
        console.print_line("no size was added to those of the file, which has no simple recipe")
    cli.make_run_folders(runs)
    cli.tune_memory()
    folder = train_ladder(sweep, ladder, goal, train)
    status = print_results(folder)
    print_result(folder, goal)
    return status


def train_ladder(sweep: str, ladder, goal, train: Callable[[list[schema.Run]], None]) -> Path:
    """Train the runs that the goal needs. Return the folder of the sweep. See `run_ladder`."""
    from lm.parallel import deterministic, mesh, peak_flops
    from lm.sweeps import launcher
    from lm.sweeps.designed_ladder import ladder_loop
    from lm.sweeps.planning import cost

    candidates = [cell.run(min(cell.runs)) for cell in ladder.cells]
    mesh.initialize_devices()
    deterministic.fix_threads(max(run.mesh.deterministic_shards for run in candidates))
    launcher.validate_sweep(candidates, progress_view.preparing)
    device_mesh = mesh.make_mesh(candidates[0].mesh)
    peak = mesh.peak_flops_per_second(device_mesh, candidates[0].model.dtype)
    console.print_line(f"devices: {mesh.describe_devices(device_mesh)}")
    console.print_line(peak_flops.describe_peak(mesh.device_kind(device_mesh), peak))

    def estimate(runs: list[schema.Run]) -> list[dict]:
        platform = mesh.device_platform(device_mesh)
        return [cost.estimate_cost(run, peak, platform) for run in runs]

    def train_run(run: schema.Run, members: list[schema.Run]) -> None:
        launcher.write_sweep_files(describe_flags(sweep), members, estimate(members))
        train([run])

    def report(decision) -> None:
        console.print_line(f"{decision.run}: {decision.reason}")

    seconds = np.array([row["seconds"] for row in estimate(candidates)])
    folder = launcher.sweep_folder(candidates)
    folder.mkdir(parents=True, exist_ok=True)
    ladder_loop.train_ladder(ladder, goal, folder, train_run, seconds, report)
    return folder


def print_result(folder: Path, goal) -> None:
    """Print the prediction, its error, the time and the reason of the stop, from ladder.json."""
    from lm.sweeps.designed_ladder import ladder_record

    result = ladder_record.read_result(folder)
    if result["error"] is not None:
        console.print_line(
            f"{goal.size}: predicted loss {result['value']:.4f}, error {result['error']:.2%} (half"
            " of the 95% interval of the mean over seeds)"
        )
    state = "reached" if result["is_reached"] else "not reached"
    console.print_line(f"goal of {goal.max_error:.2%} {state}: {result['reason']}")
    seconds = result["spent_seconds"]
    console.print_line(f"time of the runs: {seconds:.0f} s of {goal.budget_seconds:.0f} s")
    console.print_line(f"decisions: {folder / ladder_record.FILE}")
