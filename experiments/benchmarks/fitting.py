"""How fast the fits are, on the 240 runs of Chinchilla, against a loop of scipy's optimiser.

OMP_NUM_THREADS=1 uv run python -m experiments.benchmarks.fitting --scipy_starts=100
"""

import csv
import itertools
import time

import numpy as np
from absl import flags
from scipy import optimize, special

from experiments.common import cli, console

_DATA = flags.DEFINE_string(
    "data",
    "notebooks/data/published/chinchilla-epoch.csv",
    "rows with params, tokens, loss, in_fit",
)
_SCIPY = flags.DEFINE_integer(
    "scipy_starts", 100, "starts and refits of the loop; scaled up to all"
)
_REFITS = flags.DEFINE_integer("refits", 1000, "resamples")

GRID = {
    "log_A": np.arange(0, 30, 5.0),
    "log_B": np.arange(0, 30, 5.0),
    "log_E": np.arange(-1, 1.1, 0.5),
    "alpha": np.arange(0, 2.1, 0.5),
    "beta": np.arange(0, 2.1, 0.5),
}


def main() -> int:
    from lm.laws.forms import power_laws

    with open(_DATA.value) as file:
        rows = list(csv.DictReader(file))
    names = {"n": "params", "d": "tokens", "y": "loss", "where": {"in_fit": 1}}
    fit, many = _timed(lambda: power_laws.chinchilla(rows, **names, starts=GRID, bootstrap=0))
    one = [fit.params]
    _, alone = _timed(lambda: power_laws.chinchilla(rows, **names, starts=one, bootstrap=0))
    _, with_refits = _timed(
        lambda: power_laws.chinchilla(rows, **names, starts=one, bootstrap=_REFITS.value)
    )
    refits = with_refits - alone
    n, d = np.log(fit.x)
    y = np.log(fit.y)

    def objective(theta, w):
        terms = np.stack([theta[0] - theta[3] * n, theta[1] - theta[4] * d, theta[2] + 0 * n])
        total = special.logsumexp(terms, axis=0)
        share, r = np.exp(terms - total), total - y
        slope = w * np.clip(r, -1e-3, 1e-3)
        value = (w * np.where(abs(r) < 1e-3, r * r / 2, 1e-3 * (abs(r) - 5e-4))).sum()
        parts = [share[0], share[1], share[2], -n * share[0], -d * share[1]]
        return 1e6 * value, 1e6 * np.stack(parts) @ slope

    def loop(starts, weights):
        options = {"jac": True, "method": "L-BFGS-B", "options": {"maxiter": 500}}
        found = [
            optimize.minimize(objective, x, args=(w,), **options)
            for x, w in zip(starts, weights, strict=True)
        ]
        return min(result.fun for result in found) / 1e6

    rng = np.random.default_rng(0)
    grid = np.array(list(itertools.product(*GRID.values())))
    some = grid[rng.permutation(len(grid))[: _SCIPY.value]]
    best, seconds = _timed(lambda: loop(some, np.ones((len(some), len(y)))))
    slow = seconds * len(grid) / len(some)
    p = fit.params
    here = np.array([np.log(p["A"]), np.log(p["B"]), np.log(p["E"]), p["alpha"], p["beta"]])
    counts = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=_SCIPY.value)
    _, seconds = _timed(lambda: loop([here] * len(counts), counts))
    slow_refits = seconds * _REFITS.value / len(counts)
    console.table(
        [
            {
                "what": f"{len(grid)} starts",
                "here": f"{many:.2f} s",
                "scipy": f"{slow:.1f} s",
                "ratio": f"{slow / many:.0f}",
                "best": f"{fit.objective:.7f} against {best:.7f}",
            },
            {
                "what": f"{_REFITS.value} refits",
                "here": f"{refits:.2f} s",
                "scipy": f"{slow_refits:.1f} s",
                "ratio": f"{slow_refits / refits:.0f}",
                "best": "",
            },
        ]
    )
    return 0


def _timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    cli.run_main(main)
