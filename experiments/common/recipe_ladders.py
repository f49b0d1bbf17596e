"""Sweeps of the command `compare`: a ladder of one config, and further seeds of a sweep.

The locations that `ladder_location` and `seeds_location` return are values of
experiments.sweep --sweep, so an interrupted comparison continues like any sweep.
"""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from experiments.common import config_files
from lm.config import schema
from lm.laws.recipe_comparison import paired_runs
from lm.reports.recipes import recipe_report
from lm.runs import filesystem, records

MAX_PAIRS_PER_ROUND = 4  # trained between two tests
LADDER, SEEDS = "ladder", "seeds"  # kinds of a sweep in the argument of `get_sweep`


def get_sweep(argument: str = "") -> Iterator[schema.Run]:
    """Yield the runs of an argument that `ladder_location` or `seeds_location` has written."""
    kind, _, rest = argument.partition("+")
    parts = rest.split("+")
    if kind == LADDER and len(parts) == 3:
        yield from build_ladder(parts[0], parts[1].split("-"), int(parts[2]))
    elif kind == SEEDS and len(parts) >= 1 and rest:
        numbers = dict(part.split("=") for part in parts[1:])
        yield from add_seeds(parts[0], {name: int(n) for name, n in numbers.items()})
    else:
        raise ValueError(
            f"{argument!r} is no ladder: pass {LADDER}+FILE+SIZE-SIZE+N_SEEDS or"
            f" {SEEDS}+FOLDER+SIZE=N"
        )


def ladder_location(config_file: str, sizes: Sequence[str], n_seeds: int) -> str:
    """Return the location of the sweep of one config at several sizes and seeds."""
    return f"{__file__}:{LADDER}+{config_file}+{'-'.join(sizes)}+{n_seeds}"


def seeds_location(folder: str, pairs: Mapping[str, int]) -> str:
    """Return the location of a sweep with its runs and further seeds. pairs: {size: number}."""
    numbers = "".join(f"+{name}={n}" for name, n in sorted(pairs.items()))
    return f"{__file__}:{SEEDS}+{folder}{numbers}"


def build_ladder(config_file: str, sizes: Sequence[str], n_seeds: int) -> Iterator[schema.Run]:
    """Yield the runs of FILE:SIZE for each size and seed, in the sweep compare-FILE."""
    sweep = f"compare-{Path(config_file).stem}"
    for size in sizes:
        for seed in range(n_seeds):
            run = config_files.load_run_file(f"{config_file}:{size}", [], "")
            run.name, run.seed = f"{sweep}/{size}-seed{seed}", seed
            yield run


def add_seeds(folder: str, n_new_seeds: Mapping[str, int]) -> list[schema.Run]:
    """Return the runs of a sweep and copies of its runs with further seeds.

    n_new_seeds: {size: number of further seeds}. A copy has the config of the run with the lowest
    loss of its size. Its seed follows the largest seed of the size. Raises ValueError for a size
    without a finished run, and for a cooldown branch, whose trunk run has the seed.
    """
    rows = records.load_runs(folder)
    runs = [records.read_config(filesystem.open_path(row["dir"])) for row in rows]
    for size, n_new in n_new_seeds.items():
        finished = [
            row
            for row in rows
            if paired_runs.size_name(row) == size and records.is_finite(row.get(records.LOSS))
        ]
        if not finished:
            raise ValueError(f"{folder} has no finished run of size {size}: train one first")
        best = min(finished, key=lambda row: row[records.LOSS])
        if best.get("start.run"):
            raise ValueError(
                f"{best['name']} starts from {best['start.run']}: train another seed of that run"
                " and its branches with a sweep file"
            )
        source = next(run for run in runs if run.name == best["name"])
        largest = max(int(row["seed"]) for row in rows if paired_runs.size_name(row) == size)
        for seed in range(largest + 1, largest + 1 + n_new):
            sweep = source.name.split("/")[0]
            copy = dataclasses.replace(source, name=f"{sweep}/{size}-seed{seed}", seed=seed)
            runs.append(dataclasses.replace(copy, is_prediction_target=False))
    return runs


def decide(
    compare: Callable[[], recipe_report.RecipeReport],
    train_pairs: Callable[[str, int], None],
    budget_seconds: float,
    read_time: Callable[[], float] = time.monotonic,
) -> tuple[recipe_report.RecipeReport, str]:
    """Add pairs of runs until the verdict is not undecided. Return the last report and the reason.

    compare: returns the report of all finished runs, with tests that are valid at any time.
    train_pairs: trains a number of further pairs of a size. Each round trains the pairs of the plan
    that fit into the rest of the budget, at most MAX_PAIRS_PER_ROUND. A repeated call continues,
    because finished runs are part of the comparison. The reason is "" for a decision.
    """
    start_time = read_time()
    while True:
        report = compare()
        plan = report.plan
        if report.comparison.verdict != "undecided":
            return report, ""
        seconds_left = budget_seconds - (read_time() - start_time)
        n_pairs = min(plan.next_pairs(seconds_left), MAX_PAIRS_PER_ROUND)
        if n_pairs < 1:
            return report, (
                f"{max(seconds_left, 0):.0f} s are left, and a pair of runs at {plan.next_size}"
                f" takes {plan.next_cost:.0f} s: repeat the command with a larger --time_budget"
            )
        n_before = report.comparison.selection.n_pairs
        train_pairs(plan.next_size, n_pairs)
        if compare().comparison.selection.n_pairs == n_before:
            return report, f"the runs at {plan.next_size} have given no further pair"


def train_sweep(location: str, folder: str = "") -> int:
    """Run experiments.sweep for a location in a new process. Return its exit status.

    folder: value of --dir. A new process is needed, because XLA reads its flags at its start.
    """
    command = [sys.executable, "-m", "experiments.sweep", f"--sweep={location}"]
    return subprocess.run([*command, *([f"--dir={folder}"] if folder else [])]).returncode
