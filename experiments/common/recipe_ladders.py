"""Sweeps of the command `compare`: a ladder of one config, and further seeds of a sweep.

The locations that `ladder_location` and `seeds_location` return are values of
experiments.sweep --sweep, so an interrupted comparison continues like any sweep.
"""

import dataclasses
import itertools
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
        seeds = {name: text for name, _, text in (part.rpartition("=") for part in parts[1:])}
        yield from add_seeds(
            parts[0], {name: [int(n) for n in text.split("-")] for name, text in seeds.items()}
        )
    else:
        raise ValueError(
            f"{argument!r} is no ladder: pass {LADDER}+FILE+SIZE-SIZE+N_SEEDS or"
            f" {SEEDS}+FOLDER+RUN=SEED-SEED"
        )


def ladder_location(config_file: str, sizes: Sequence[str], n_seeds: int) -> str:
    """Return the location of the sweep of one config at several sizes and seeds.

    Raises ValueError for a path with a + sign.
    """
    _check_path(config_file)
    return f"{__file__}:{LADDER}+{config_file}+{'-'.join(sizes)}+{n_seeds}"


def seeds_location(folder: str, seeds: Mapping[str, Sequence[int]]) -> str:
    """Return the location of a sweep with its runs and further seeds of some runs.

    seeds: see `add_seeds`. Raises ValueError for a path with a + sign.
    """
    for text in (folder, *seeds):
        _check_path(text)
    parts = (f"+{name}={'-'.join(map(str, numbers))}" for name, numbers in sorted(seeds.items()))
    return f"{__file__}:{SEEDS}+{folder}{''.join(parts)}"


def _check_path(path: str) -> None:
    """Raise ValueError for a path with a + sign, which separates the parts of a location."""
    if "+" in path:
        raise ValueError(f"{path} contains +, which compare cannot pass to sweep: rename the path")


def ladder_name(config_file: str) -> str:
    """Return the name of the sweep of a config, compare-FILE."""
    return f"compare-{Path(config_file).stem}"


def build_ladder(config_file: str, sizes: Sequence[str], n_seeds: int) -> Iterator[schema.Run]:
    """Yield the runs of FILE:SIZE for each size and seed, in the sweep compare-FILE."""
    sweep = ladder_name(config_file)
    for size in sizes:
        for seed in range(n_seeds):
            run = config_files.load_run_file(f"{config_file}:{size}", [], "")
            run.name, run.seed = f"{sweep}/{size}-seed{seed}", seed
            yield run


def add_seeds(folder: str, seeds: Mapping[str, Sequence[int]]) -> list[schema.Run]:
    """Return the runs of a sweep, and copies of some of its runs with these seeds.

    seeds: {name of a run without its sweep: seeds}. Seeds that its settings already have are not
    repeated. Raises ValueError for a name without a run, and for a cooldown branch, whose trunk run
    has the seed.
    """
    rows = records.load_runs(folder)
    runs = [records.read_config(filesystem.open_path(row["dir"])) for row in rows]
    for label, run_seeds in seeds.items():
        source = next((run for run in runs if run.name.endswith(f"/{label}")), None)
        if source is None:
            raise ValueError(f"{folder} has no finished run {label}: train it first")
        if source.start.run:
            raise ValueError(
                f"{source.name} starts from {source.start.run}: train another seed of"
                " that run and its branches with a sweep file"
            )
        size = paired_runs.size_name({"name": source.name, "seed": source.seed})
        for seed in sorted(run_seeds):
            copy = dataclasses.replace(source, seed=seed, is_prediction_target=False)
            if not any(_has_equal_settings(run, copy) for run in runs):
                name = f"{source.name.split('/')[0]}/{size}-seed{seed}"
                while any(run.name == name for run in runs):
                    name += "-tuned"
                runs.append(dataclasses.replace(copy, name=name))
    return runs


def _has_equal_settings(run: schema.Run, other: schema.Run) -> bool:
    """Return True if the runs differ at most in their names and in being a prediction target."""
    free = {"name": "", "is_prediction_target": False}
    return dataclasses.replace(run, **free) == dataclasses.replace(other, **free)


def next_seeds(size: paired_runs.Size, n_pairs: int) -> list[int]:
    """Return the smallest seeds that the best settings of A or of B lack, one per further pair."""
    used = set.intersection(*({int(row["seed"]) for row in rows} for rows in size.tuned))
    return list(itertools.islice((s for s in itertools.count() if s not in used), n_pairs))


def decide(
    compare: Callable[[], recipe_report.RecipeReport],
    train_pairs: Callable[[paired_runs.Size, int], None],
    budget_seconds: float,
    read_time: Callable[[], float] = time.monotonic,
) -> tuple[recipe_report.RecipeReport, str]:
    """Add pairs of runs until the verdict is not undecided. Return the last report and the reason.

    compare: returns the report of all finished runs, with tests that are valid at any time.
    train_pairs: trains a number of further pairs of a size. Each round trains the pairs of the plan
    that fit into the rest of the budget, at most MAX_PAIRS_PER_ROUND. A repeated call continues,
    because finished runs are part of the comparison. The reason is "" for a decision.

    A plan that states that no reachable number of pairs decides does not end the training: with few
    pairs, its estimates are noisy, and later pairs often decide.
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
            is_time = plan.unit == "seconds"
            cost = f"{plan.next_cost:.0f} s" if is_time else f"{plan.next_cost:.3g} {plan.unit}"
            return report, (
                f"{max(seconds_left, 0):.0f} s are left, and a pair of runs at {plan.next_size}"
                f" takes {cost}: repeat the command with a larger --time_budget"
            )
        selection = report.comparison.selection
        names_before = _paired_names(selection)
        train_pairs(next(s for s in selection.sizes if s.name == plan.next_size), n_pairs)
        if _paired_names(compare().comparison.selection) == names_before:
            return report, f"the runs at {plan.next_size} have given no further pair"


def _paired_names(selection: paired_runs.Selection) -> list[tuple[str, str]]:
    """Return the names of the paired runs."""
    return [(a["name"], b["name"]) for size in selection.sizes for a, b in size.pairs]


def train_sweep(location: str, folder: str = "") -> int:
    """Run experiments.sweep for a location in a new process. Return its exit status.

    folder: value of --dir. A new process is needed, because XLA reads its flags at its start.
    """
    command = [sys.executable, "-m", "experiments.sweep", f"--sweep={location}"]
    return subprocess.run([*command, *([f"--dir={folder}"] if folder else [])]).returncode
