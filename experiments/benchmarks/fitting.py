"""Time the fits of scaling laws on 240 runs of Chinchilla, against a loop over scipy's optimizer.

    OMP_NUM_THREADS=1 uv run python -m experiments.benchmarks.fitting --scipy_starts=100

Both fit L(N, D) = E + A N^-alpha + B D^-beta with a Huber loss on log L, first from a grid of
initial values and then on bootstrap resamples. The loop over scipy runs a part of the starts and
resamples, and its time is scaled to all of them. The last rows are the time of a fit of 665 runs
with all defaults, and of its first print, which computes the back-test.
"""

import csv
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags
from scipy import optimize, special

from experiments.common import cli, console

_DATA = flags.DEFINE_string(
    "data",
    "notebooks/data/published/chinchilla-epoch.csv",
    "CSV file with the columns params, tokens, loss and in_fit",
)
_SCIPY_STARTS = flags.DEFINE_integer(
    "scipy_starts", 100, "number of starts, and of resamples, that the loop over scipy runs"
)
_REFITS = flags.DEFINE_integer("refits", 1000, "number of bootstrap resamples")

GRID = {
    "log_A": np.arange(0, 30, 5.0),
    "log_B": np.arange(0, 30, 5.0),
    "log_E": np.arange(-1, 1.1, 0.5),
    "alpha": np.arange(0, 2.1, 0.5),
    "beta": np.arange(0, 2.1, 0.5),
}
HUBER_DELTA = 1e-3


def main() -> int:
    """Print a table of the seconds of both programs."""
    from lm.laws.forms import power_laws

    with open(_DATA.value) as file:
        rows = list(csv.DictReader(file))

    def fit_law(starts: Any, n_resamples: int):
        columns = {"n": "params", "d": "tokens", "y": "loss", "where": {"in_fit": 1}}
        return power_laws.chinchilla(rows, **columns, starts=starts, bootstrap=n_resamples)

    fit, grid_seconds = _timed(lambda: fit_law(GRID, 0))
    best_start = [fit.params]
    _, single_seconds = _timed(lambda: fit_law(best_start, 0))
    _, resampled_seconds = _timed(lambda: fit_law(best_start, _REFITS.value))
    refit_seconds = resampled_seconds - single_seconds

    log_n, log_d = np.log(fit.x)
    log_loss = np.log(fit.y)
    rng = np.random.default_rng(0)
    best_scipy, scipy_grid_seconds = time_scipy_grid(log_n, log_d, log_loss, rng)
    scipy_refit_seconds = time_scipy_refits(log_n, log_d, log_loss, fit.params, rng)

    n_starts = int(np.prod([len(values) for values in GRID.values()]))
    objectives = f"{fit.objective:.7f} and {best_scipy:.7f}"
    console.table(
        [
            _table_row(f"{n_starts} starts", grid_seconds, scipy_grid_seconds, objectives),
            _table_row(f"{_REFITS.value} resamples", refit_seconds, scipy_refit_seconds, ""),
            *time_first_print(),
        ]
    )
    return 0


def time_scipy_grid(
    log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Minimize from a random part of GRID. Return the lowest objective, and seconds for all."""
    grid = np.array(list(itertools.product(*GRID.values())))
    starts = grid[rng.permutation(len(grid))[: _SCIPY_STARTS.value]]
    weights = np.ones((len(starts), len(log_loss)))
    best, seconds = _timed(lambda: minimize_all(log_n, log_d, log_loss, starts, weights))
    return best, seconds * len(grid) / len(starts)


def time_scipy_refits(
    log_n: np.ndarray,
    log_d: np.ndarray,
    log_loss: np.ndarray,
    params: dict[str, float],
    rng: np.random.Generator,
) -> float:
    """Minimize on some bootstrap resamples, from fitted parameters. Return seconds for all."""
    start = np.array(
        [*(np.log(params[name]) for name in ("A", "B", "E")), params["alpha"], params["beta"]]
    )
    n = len(log_loss)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=_SCIPY_STARTS.value)
    starts = np.tile(start, (len(counts), 1))
    _, seconds = _timed(lambda: minimize_all(log_n, log_d, log_loss, starts, counts))
    return seconds * _REFITS.value / len(counts)


def time_first_print(n_sizes: int = 35, n_ratios: int = 19) -> list[dict[str, str]]:
    """Return table rows of the fit of a simulated grid of sizes and ratios, and of its print."""
    from lm.laws.forms import power_laws

    rng = np.random.default_rng(0)
    rows = [
        {
            "N": n,
            "D": n * ratio,
            "L": (1.8 + 400 * n**-0.34 + 700 * (n * ratio) ** -0.28) * np.exp(0.003 * rng.normal()),
        }
        for n in np.geomspace(1e7, 1e10, n_sizes)
        for ratio in np.geomspace(5, 200, n_ratios)
    ]
    fit, fit_seconds = _timed(lambda: power_laws.chinchilla(rows, n="N", d="D", y="L"))
    _, print_seconds = _timed(lambda: str(fit))
    empty = dict.fromkeys(("scipy", "ratio", "lowest objective"), "")
    return [
        {"task": f"fit of {len(rows)} runs", "this repository": f"{fit_seconds:.2f} s"} | empty,
        {"task": "first print of it", "this repository": f"{print_seconds:.2f} s"} | empty,
    ]


def minimize_all(
    log_n: np.ndarray,
    log_d: np.ndarray,
    log_loss: np.ndarray,
    starts: np.ndarray,
    weights: np.ndarray,
) -> float:
    """Minimize the weighted Huber loss from each start by L-BFGS. Return the lowest objective.

    Each row of `starts` is (log A, log B, log E, alpha, beta). Each row of `weights` has the weight
    of every run.
    """

    def objective(theta: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
        terms = [theta[0] - theta[3] * log_n, theta[1] - theta[4] * log_d, theta[2] + 0 * log_n]
        total = special.logsumexp(np.stack(terms), axis=0)
        shares, residual = np.exp(np.stack(terms) - total), total - log_loss
        slope = weight * np.clip(residual, -HUBER_DELTA, HUBER_DELTA)
        size = abs(residual)
        huber = np.where(
            size < HUBER_DELTA, residual**2 / 2, HUBER_DELTA * (size - HUBER_DELTA / 2)
        )
        gradients = [shares[0], shares[1], shares[2], -log_n * shares[0], -log_d * shares[1]]
        return 1e6 * (weight * huber).sum(), 1e6 * np.stack(gradients) @ slope

    options = {"jac": True, "method": "L-BFGS-B", "options": {"maxiter": 500}}
    results = [
        optimize.minimize(objective, start, args=(weight,), **options)
        for start, weight in zip(starts, weights, strict=True)
    ]
    return min(result.fun for result in results) / 1e6


def _table_row(task: str, seconds: float, scipy_seconds: float, objectives: str) -> dict[str, str]:
    """Return a row of the table. `objectives` has the lowest objective of both programs."""
    return {
        "task": task,
        "this repository": f"{seconds:.2f} s",
        "scipy": f"{scipy_seconds:.1f} s",
        "ratio": f"{scipy_seconds / seconds:.0f}",
        "lowest objective": objectives,
    }


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and its wall seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    cli.run_main(main)
