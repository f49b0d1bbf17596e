"""Measure the wrong verdicts and the coverage of `compare` on simulated pairs of recipes.

    uv run python -m experiments.benchmarks.recipe_comparison
    uv run python -m experiments.benchmarks.recipe_comparison --pairs=100

Each simulated pair has 4 to 7 sizes over two to three decades of compute, 2 to 4 seeds, a seed
noise of 0.3 to 1% with a correlation of 0 to 0.8 within a pair, and a random law of A. In half of
the pairs, this law is a sum of two powers, which the comparison does not fit. A case defines the
multiplier m of B. A verdict is wrong if its text is false for the simulated m, see `is_wrong`.

A second table compares identical recipes after each of 2 to 10 seeds, and stops at the first
verdict that they differ: with the anytime-valid test, and with the test for a fixed number of runs.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.common import cli, console

_PAIRS = flags.DEFINE_integer("pairs", 600, "simulated pairs of recipes per case", 1)
_SEQUENCES = flags.DEFINE_integer("sequences", 1000, "simulated sequences of early stopping", 1)
_CASES = flags.DEFINE_list("cases", None, "names of simulated cases; default: all")
_DRAWS = flags.DEFINE_integer("draws", 1000, "draws of each extrapolation", 100)

FACTORS = (10, 100)  # of the largest compute
MAX_SEEDS = 10
INVERSE_GRID = np.linspace(0, 45, 9001)  # log compute above the smallest size


class Pair(NamedTuple):
    """Simulated ladder of two recipes, with the true log m as a function of log compute."""

    x: np.ndarray  # log compute of the sizes
    loss_a: np.ndarray  # without noise, per size
    loss_b: np.ndarray
    true_log_m: Callable[[np.ndarray], np.ndarray]
    n_seeds: int
    noise: float
    correlation: float

    def sample(self, rng: np.random.Generator, n_seeds: int):
        """Return a multiplier.PairedLadder with noise."""
        from lm.laws.recipe_comparison import multiplier

        index = np.tile(np.arange(len(self.x)), n_seeds)
        shared, own_a, own_b = rng.standard_normal((3, len(index)))
        common = np.sqrt(self.correlation) * shared
        own = np.sqrt(1 - self.correlation)
        return multiplier.PairedLadder(
            index,
            self.loss_a[index] * np.exp(self.noise * (common + own * own_a)),
            self.loss_b[index] * np.exp(self.noise * (common + own * own_b)),
            self.x,
            self.x,
        )


def no_effect(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return log m of identical recipes."""
    return np.zeros_like(x)


def constant(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a constant log m, of 1.1 to 2 or their inverses."""
    return np.full_like(x, _draw_log_m(rng))


def vanishing_power(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a log m that decreases as a power of compute, by 20 to 70% per decade."""
    return _draw_log_m(rng) * np.exp(-rng.uniform(0.1, 0.5) * (x - x[0]))


def vanishing_line(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a log m that decreases linearly in log compute and stays at 0 after that."""
    distance = rng.uniform(1.0, 2.5) * np.log(1000)
    return _draw_log_m(rng) * np.clip(1 - (x - x[0]) / distance, 0, None)


def growing_line(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a log m that increases linearly in log compute, as a larger exponent gives it."""
    start = _draw_log_m(rng)
    return start + np.sign(start) * rng.uniform(0.03, 0.12) * (x - x[0])


def growing_bend(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a log m that increases at first and becomes constant."""
    start, length = _draw_log_m(rng), rng.uniform(2.0, 8.0)
    growth = rng.uniform(0.05, 0.12) * length
    return start + np.sign(start) * growth * (1 - np.exp(-(x - x[0]) / length))


def lower_floor(x: np.ndarray, rng: np.random.Generator) -> float:
    """Return the decrease of the irreducible loss of B, relative to the loss of A."""
    return rng.uniform(0.005, 0.02)


# Case -> log m on a grid, or the decrease of the irreducible loss.
CASES = {
    "no effect": no_effect,
    "constant": constant,
    "vanishing power": vanishing_power,
    "vanishing line": vanishing_line,
    "growing line": growing_line,
    "growing bend": growing_bend,
    "lower floor": lower_floor,
}


def main() -> int:
    """Print the table of the cases, their sum, and the table of early stopping."""
    lines, counts = [], Counter()
    names = _CASES.value or list(CASES)
    for name in names:
        line, case_counts = measure_case(name, _PAIRS.value)
        lines.append(line)
        counts += case_counts
    console.table(lines)
    n = len(names) * _PAIRS.value
    console.print_line(
        f"all {n:,} pairs: wrong {counts['wrong'] / n:.1%}, undecided {counts['undecided'] / n:.1%}"
    )
    console.table(
        [measure_early_stopping(is_anytime, _SEQUENCES.value) for is_anytime in (True, False)]
    )
    return 0


def simulate_pair(name: str, rng: np.random.Generator) -> Pair:
    """Return a random pair of a case."""
    n_sizes = int(rng.integers(4, 8))
    x = np.log(1e12) + np.linspace(0, np.log(10 ** rng.uniform(2, 3)), n_sizes)
    loss_a = _draw_law(x, rng)
    grid = x[0] + INVERSE_GRID - 10
    case = CASES[name]
    if case is lower_floor:
        decrease = lower_floor(x, rng) * float(loss_a(x[-1:])[0])
        # L_A(grid) decreases, and np.interp needs ascending values.
        log_m = np.interp(-(loss_a(grid) - decrease), -loss_a(grid), grid) - grid
    else:
        after = case(np.maximum(grid, x[0]), rng) if case is not no_effect else 0 * grid
        log_m = after

    def true_log_m(points: np.ndarray) -> np.ndarray:
        return np.interp(points, grid, log_m)

    return Pair(
        x,
        loss_a(x),
        loss_a(x + true_log_m(x)),
        true_log_m,
        n_seeds=int(rng.integers(2, 5)),
        noise=rng.uniform(0.003, 0.01),
        correlation=rng.uniform(0, 0.8),
    )


def _draw_law(x: np.ndarray, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Return a random law of A: one power of compute, or two in half of the cases."""
    floor, scale, exponent = rng.uniform(1, 2.5), rng.uniform(1.5, 4), rng.uniform(0.1, 0.25)
    second = rng.uniform(0.1, 0.5) if rng.random() < 0.5 else 0.0
    return lambda points: (
        floor
        + scale * np.exp(-exponent * (points - x[0]))
        + second * scale * np.exp(-2 * exponent * (points - x[0]))
    )


def _draw_log_m(rng: np.random.Generator) -> float:
    return float(rng.choice([-1, 1]) * np.log(rng.uniform(1.1, 2.0)))


def measure_case(name: str, n_pairs: int) -> tuple[dict, Counter]:
    """Return a line of the table, and the counts of wrong and undecided verdicts."""
    from lm.laws.recipe_comparison import multiplier, multiplier_draws, recipe_verdict

    verdicts, counts = Counter(), Counter()
    at_sizes, on_curve, beyond = [], [], []
    for i in range(n_pairs):
        rng = np.random.default_rng((i, list(CASES).index(name)))
        pair = simulate_pair(name, rng)
        fitted = multiplier.fit_multiplier(pair.sample(rng, pair.n_seeds))
        verdict, is_different = recipe_verdict.decide_trend(fitted)
        verdicts[verdict] += 1
        counts["different"] += is_different
        counts["undecided"] += verdict == "undecided"
        counts["wrong"] += is_wrong(verdict, is_different, pair)
        intervals = [effect.interval() for effect in multiplier.size_effects(fitted)]
        at_sizes += [
            lo <= value <= hi
            for (lo, hi), value in zip(intervals, pair.true_log_m(pair.x), strict=True)
        ]
        points = np.concatenate([pair.x, pair.x[-1] + np.log(FACTORS)])
        draws = multiplier_draws.draw_multipliers(fitted, points, _DRAWS.value, i)
        lo, hi = np.percentile(draws, [2.5, 97.5], axis=0)
        is_covered = (lo <= pair.true_log_m(points)) & (pair.true_log_m(points) <= hi)
        on_curve += is_covered[: len(pair.x)].tolist()
        beyond.append(is_covered[len(pair.x) :])
    shares = {word: f"{verdicts[word] / n_pairs:.1%}" for word in recipe_verdict.VERDICTS}
    covered = {
        f"at {factor}x": f"{share:.1%}"
        for factor, share in zip(FACTORS, np.mean(beyond, axis=0), strict=True)
    }
    line = {"case": name, **shares, "wrong": f"{counts['wrong'] / n_pairs:.1%}"}
    line |= {"differ": f"{counts['different'] / n_pairs:.1%}"}
    coverage = {"m covered": f"{np.mean(at_sizes):.1%}", "curve": f"{np.mean(on_curve):.1%}"}
    return line | coverage | covered, counts


def is_wrong(verdict: str, is_different: bool, pair: Pair) -> bool:
    """Return True if a verdict contradicts the simulated multiplier."""
    from lm.laws.recipe_comparison import recipe_verdict

    log_m = pair.true_log_m(pair.x)
    slope = float(np.polyfit(pair.x, log_m, 1)[0])
    if is_different and not log_m.any():
        return True
    has_one_sign = (log_m[0] >= 0) == (log_m[-1] >= 0)
    is_true = {
        "no difference": np.abs(log_m).max() < np.log(recipe_verdict.EQUAL_FACTOR),
        "constant": abs(slope) < recipe_verdict.SLOPE_MARGIN,
        "grows": has_one_sign and slope * log_m.mean() > 1e-9,
        "vanishes": has_one_sign and slope * log_m.mean() < -1e-9,
        "reverses": not has_one_sign,
        "undecided": True,
    }
    return not is_true[verdict]


def measure_early_stopping(is_anytime: bool, n_sequences: int) -> dict:
    """Return the share of identical recipes that are called different after any seed."""
    from lm.laws.recipe_comparison import multiplier, recipe_verdict

    n_different = n_equal = 0
    for i in range(n_sequences):
        rng = np.random.default_rng((i, 100))
        pair = simulate_pair("no effect", rng)
        ladder = pair.sample(rng, MAX_SEEDS)
        for n_seeds in range(2, MAX_SEEDS + 1):
            n = n_seeds * len(pair.x)
            part = multiplier.PairedLadder(
                ladder.size_index[:n], ladder.loss_a[:n], ladder.loss_b[:n], ladder.x_a, ladder.x_b
            )
            fitted = multiplier.fit_multiplier(part)
            verdict, is_different = recipe_verdict.decide_trend(fitted, is_anytime=is_anytime)
            if is_different or verdict != "undecided":
                n_different += is_different
                n_equal += verdict == "no difference"
                break
    return {
        "test after each seed": "anytime-valid" if is_anytime else "for fixed numbers of runs",
        "called different": f"{n_different / n_sequences:.1%}",
        "called equal": f"{n_equal / n_sequences:.1%}",
    }


if __name__ == "__main__":
    cli.run_main(main)
