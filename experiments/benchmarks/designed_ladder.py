"""Compare the time of a ladder that designs itself with that of a fixed ladder, on simulated runs.

    uv run python -m experiments.benchmarks.designed_ladder
    uv run python -m experiments.benchmarks.designed_ladder --n=5

Each simulated sweep has the sizes of the quickstart, 10K to 600K, and the target 4M. The fixed
ladder trains one to three seeds of every size. Its error is half of the 95% interval of the target,
as the median over N_REPEATS repetitions with other seeds.
The designed ladder may train every size of the ladder from 10K to 2.5M, and stops at this error. It
estimates the time of a run with an error of up to a factor of 2, and measures it with a variation
of 10%. The law has the fitted form, a second power or a drifting exponent. The seed noise is 0.2 to
0.8%.
"""

import math
from collections.abc import Callable

import numpy as np
from absl import flags

from experiments.common import cli, console

_N = flags.DEFINE_integer("n", 20, "simulated sweeps", 1, 10_000)
SIZES = ("10K", "25K", "60K", "100K", "150K", "250K", "600K")
TARGET = "4M"
FLOPS_PER_SECOND = 3e10  # in training
N_REPEATS = 5  # of the fixed ladder; its interval depends on the noise of few runs
START_SECONDS = 4.0  # of compilation and evaluation per run
MAX_COST_FACTOR = 3.0  # limit of the designed ladder, relative to the fixed one


def main() -> int:
    """Print a line per simulated sweep, the ratio of the times and the coverage."""
    lines = []
    for i in range(_N.value):
        lines.append(simulate_sweep(i))
        console.print_line(", ".join(f"{k} {v:.3g}" for k, v in lines[-1].items()))
    ratios = np.array([line["time ratio"] for line in lines])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    console.print_line(
        f"time of the designed ladder over that of the fixed one: median {middle:.2f}, quartiles"
        f" {low:.2f} and {high:.2f}, mean {ratios.mean():.2f}; at most half in"
        f" {(ratios <= 0.5).mean():.0%} of {len(lines)} sweeps"
    )
    for name in ("fixed", "designed"):
        covered = np.mean([line[f"{name} covers"] for line in lines])
        error = np.mean([abs(line[f"{name} deviation"]) for line in lines])
        console.print_line(
            f"{name}: intervals contain the true loss in {covered:.0%}, mean deviation {error:.2%}"
        )
    reached = np.mean([line["reached"] for line in lines])
    console.print_line(f"designed: the error was reached in {reached:.0%}")
    return 0


def simulate_sweep(index: int) -> dict[str, float]:
    """Return the results of a fixed and of a designed ladder of one simulated law."""
    from lm.laws.design import next_ladder_run
    from lm.sweeps.designed_ladder import ladder_cells, ladder_decision, size_family

    rng = np.random.default_rng((index, 0))
    law, noise, n_seeds = _draw_law(rng), rng.uniform(0.002, 0.008), int(rng.integers(1, 4))
    runs = _make_runs()
    runs += size_family.extend_sizes(runs, TARGET)
    ladder = ladder_cells.build_ladder(runs, ladder_cells.LadderGoal(TARGET, 0.5, 1))
    target = ladder.target["N"]
    fixed_rng, own_rng = (np.random.default_rng((index, k)) for k in (1, 2))
    repeats = [
        [
            _train(ladder.cell(size), law, noise, fixed_rng, seed)
            for size in SIZES
            for seed in range(n_seeds)
        ]
        for _ in range(N_REPEATS)
    ]
    fixed_seconds = float(np.mean([sum(map(ladder_decision.wall_seconds, r)) for r in repeats]))
    fits = [ladder.fit_law(rows) for rows in repeats]
    error = float(np.median([next_ladder_run.interval_error(f, [target]) for f in fits]))
    fixed_fit = fits[0]
    goal = ladder_cells.LadderGoal(TARGET, error, MAX_COST_FACTOR * fixed_seconds)
    scale = 2 ** rng.uniform(-1, 1)  # error of the cost model
    estimates = np.array([scale * _seconds(cell) for cell in ladder.cells])
    decisions, designed_rows = [], {}
    while True:
        state = ladder_decision.decide_next(ladder, goal, decisions, designed_rows, estimates)
        if state.decision is None:
            break
        decisions.append(state.decision)
        cell = ladder.cell(state.decision.cell)
        row = _train(cell, law, noise, own_rng, state.decision.seed)
        designed_rows[row["name"]] = row
    designed_fit = ladder.fit_law(list(designed_rows.values()))
    line = {
        "sweep": index,
        "fixed seeds": n_seeds,
        "error": error,
        "fixed seconds": fixed_seconds,
        "designed seconds": state.spent_seconds,
        "time ratio": state.spent_seconds / fixed_seconds,
        "runs": len(decisions),
        "reached": float(state.is_reached),
    }
    for name, law_fit in (("fixed", fixed_fit), ("designed", designed_fit)):
        prediction = law_fit.predict(target, noise=False)
        line[f"{name} deviation"] = math.log(prediction.value / law(target))
        line[f"{name} covers"] = float(prediction.lo <= law(target) <= prediction.hi)
    return line


def _make_runs() -> list:
    """Return a run per size of the simulated sweep."""
    from configs import base

    runs = []
    for size in SIZES:
        run = base.get_config(size)
        run.name = f"simulated/{size}"
        runs.append(run)
    return runs


def _draw_law(rng: np.random.Generator) -> Callable[[float], float]:
    """Return a random law of size: the fitted form, a second power, or a drifting exponent."""
    floor, scale, exponent = rng.uniform(0.6, 1.2), rng.uniform(0.8, 2.0), rng.uniform(0.15, 0.35)
    second, drift = [(0.0, 0.0), (0.3 * scale, 0.0), (0.0, rng.uniform(-0.03, 0.03))][
        int(rng.integers(3))
    ]

    def law(n: float) -> float:
        x = math.log(n / 1e4)
        first = scale * math.exp(-exponent * x * (1 + drift * x))
        return floor + first + second * math.exp(-2 * exponent * x)

    return law


def _seconds(cell) -> float:
    """Return the expected wall time of a run."""
    return START_SECONDS + 6 * cell.n_params * cell.n_tokens / FLOPS_PER_SECOND


def _train(cell, law: Callable, noise: float, rng: np.random.Generator, seed: int) -> dict:
    """Return the row of a simulated run."""
    return {
        "name": cell.run(seed).name,
        "status": "done",
        "seed": seed,
        "params.non_embedding": cell.n_params,
        "tokens": cell.n_tokens,
        "flops": 6.0 * cell.n_params * cell.n_tokens,
        "eval.loss": law(cell.n_params) * math.exp(noise * rng.standard_normal()),
        "clock.steps": _seconds(cell) * math.exp(0.1 * rng.standard_normal()),
    }


if __name__ == "__main__":
    cli.run_main(main)
