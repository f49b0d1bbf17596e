"""Measure the coverage of 95% intervals for branches of trunk runs, envelopes and repeated data.

    OMP_NUM_THREADS=1 uv run python -m experiments.benchmarks.branch_coverage --sweeps=200

Each case simulates sweeps from a known law and fits them with default options. The columns are the
fraction of intervals that contain the truth, and the median half-width relative to the truth.
"""

import numpy as np
from absl import flags

from experiments.common import cli
from lm import laws

_SWEEPS = flags.DEFINE_integer("sweeps", 200, "number of simulated sweeps per case")
_RESAMPLES = flags.DEFINE_integer("resamples", 1000, "number of bootstrap resamples per fit")

TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # Hoffmann et al. 2022
REPEATS = {"R_D": 15.4, "R_N": 5.3}  # Muennighoff et al. 2023
REPEATED = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.3527, "beta": 0.3527}
BRANCHES = [  # trunks, branches per trunk, noise of a trunk, own noise
    (7, 3, 0.004, 0.001),
    (7, 3, 0.0, 0.004),
    (7, 3, 0.001, 0.002),
    (12, 5, 0.004, 0.001),
    (12, 5, 0.0, 0.004),
]
ENVELOPES = [(9, 0.0), (9, 0.003), (15, 0.003)]  # sizes, noise


def main() -> int:
    """Print one line per case and quantity."""
    seeds, n_resamples = range(_SWEEPS.value), _RESAMPLES.value
    for case in BRANCHES:
        results = [simulate_branches(*case, seed, n_resamples) for seed in seeds]
        print_case("{} trunks x {}, noise {:.1%}, own {:.1%}".format(*case), results)
    for sizes, noise in ENVELOPES:
        results = [simulate_envelope(sizes, noise, seed, n_resamples) for seed in seeds]
        print_case(f"envelope of {sizes} sizes, noise {noise:.1%}", results)
    results = [simulate_repeats(seed, n_resamples) for seed in seeds]
    print_case("data_constrained, 72 runs, noise 0.3%", results)
    return 0


def print_case(name: str, results: list[dict[str, tuple[float, float, float]]]) -> None:
    """Print the coverage and the relative half-width of each quantity.

    results: {quantity: (low, high, truth)} of each sweep.
    """
    for quantity in results[0]:
        low, high, true = np.array([result[quantity] for result in results]).T
        covered = np.mean((low <= true) & (true <= high))
        width = np.median((high - low) / 2 / np.abs(true))
        print(f"{name:38} {quantity:10} {covered:6.1%}  half-width {width:.2%}", flush=True)


def law_value(n, d) -> np.ndarray:
    """Return the true loss."""
    return TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]


def simulate_branches(
    trunks: int, branches: int, trunk_sd: float, own_sd: float, seed: int, bootstrap: int
) -> dict[str, tuple[float, float, float]]:
    """Fit one sweep of branches and return its intervals, with a target of four times the size."""
    rng = np.random.default_rng(seed)
    sizes, rows = np.geomspace(1e6, 6.4e7, trunks), []
    for n in sizes:
        shift = trunk_sd * rng.standard_normal()
        for ratio in np.geomspace(5, 80, branches):
            noise = np.exp(shift + own_sd * rng.standard_normal())
            rows.append(
                {
                    "name": f"{n:.4g}-{ratio:.4g}",
                    "start.run": f"{n:.4g}-trunk",
                    "start.restore": "full_state",
                    "params.non_embedding": n,
                    "tokens": ratio * n,
                    "eval.loss": law_value(n, ratio * n) * noise,
                }
            )
    fit = laws.chinchilla(rows, bootstrap=bootstrap, seed=seed)
    target = 4 * sizes[-1], 80 * sizes[-1]
    law, new = fit.predict(*target, noise=False), fit.predict(*target)
    true = float(law_value(*target))
    measured = true * np.exp(np.hypot(trunk_sd, own_sd) * rng.standard_normal())
    exponent = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    return {
        "law": (law.lo, law.hi, true),
        "new run": (new.lo, new.hi, measured),
        "a": (*fit.interval("a"), exponent),
        "beta": (*fit.interval("beta"), TRUTH["beta"]),
    }


def simulate_envelope(
    sizes: int, noise: float, seed: int, bootstrap: int
) -> dict[str, tuple[float, float, float]]:
    """Fit one envelope of learning curves and return the interval of its exponent."""
    rng = np.random.default_rng(seed)
    rows = [
        {"run": f"{n:.4g}", "params": n, "flops": 6 * n * d, "loss": law_value(n, d) * factor}
        for n in np.geomspace(1e7, 1e9, sizes)
        for factor in [np.exp(noise * rng.standard_normal())]
        for d in np.geomspace(1e8, 2e11, 60)
    ]
    fit = laws.envelope(rows, n="params", y="loss", points=500, bootstrap=bootstrap, seed=seed)
    true = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    return {"exponent": (*fit.interval("exponent"), true)}


def simulate_repeats(seed: int, bootstrap: int) -> dict[str, tuple[float, float, float]]:
    """Fit one sweep of repeated data and return the intervals of R_D and R_N."""
    rng, p = np.random.default_rng(seed), REPEATED
    scale, rows = (p["A"] / p["B"]) ** (1 / (2 * p["alpha"])), []
    for n in np.geomspace(2e7, 8e9, 6):
        for unique in (1e8, 1.5e9, 1.2e10):
            for epochs in (1, 3, 10, 40):
                useful = min(n, scale * scale * unique)
                size, tokens = (
                    fresh * (1 + r * (1 - np.exp(-(total / fresh - 1) / r)))
                    for fresh, total, r in (
                        (useful, n, REPEATS["R_N"]),
                        (unique, unique * epochs, REPEATS["R_D"]),
                    )
                )
                loss = p["E"] + p["A"] * size ** -p["alpha"] + p["B"] * tokens ** -p["beta"]
                loss *= np.exp(0.003 * rng.standard_normal())
                rows.append({"n": n, "d": unique * epochs, "u": unique, "loss": loss})
    fit = laws.data_constrained(
        rows, n="n", d="d", unique="u", y="loss", bootstrap=bootstrap, seed=seed
    )
    return {name: (*fit.interval(name), true) for name, true in REPEATS.items()}


if __name__ == "__main__":
    cli.run_main(main)
