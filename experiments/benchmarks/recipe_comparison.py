"""Measure the wrong verdicts and the coverage of `compare` on simulated pairs of recipes.

    uv run python -m experiments.benchmarks.recipe_comparison
    uv run python -m experiments.benchmarks.recipe_comparison --pairs=100

Each simulated pair has 4 to 7 sizes over two to three decades of compute, 2 to 4 seeds, a seed
noise of 0.3 to 1%, and a random law of A. In half of the pairs, this law is a sum of two powers,
which the comparison does not fit. A case defines the multiplier m of B. A verdict is wrong if its
text is false for the simulated m, see `is_wrong`. With paired seeds, the noise of A and B has a
correlation of 0 to 0.8. With independent seeds, it has none, and the noise of B is 0.5 to 2 times
that of A.

A second table compares identical recipes again and again, and stops at the first verdict. The runs
are added as one seed of all sizes, or as `compare --decide` adds them.
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
_SEEDS = flags.DEFINE_list("seeds", ["paired", "independent"], "kinds of seeds of A and B")

FACTORS = (10, 100)  # of the largest compute
SEEDS = ("paired", "independent")
MAX_SEEDS = 10
MAX_ADDED = 32  # pairs that --decide adds to a simulated comparison, at most
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
    noise_ratio: float  # noise of B relative to that of A

    def sample(self, rng: np.random.Generator, n_seeds: int):
        """Return a multiplier.PairedLadder with noise."""
        from lm.laws.recipe_comparison import multiplier

        index = np.tile(np.arange(len(self.x)), n_seeds)
        return multiplier.PairedLadder(index, *self.sample_losses(rng, index), self.x, self.x)

    def sample_losses(self, rng: np.random.Generator, index: np.ndarray):
        """Return noisy losses of A and B at sizes, both [n]."""
        shared, own_a, own_b = rng.standard_normal((3, len(index)))
        common = np.sqrt(self.correlation) * shared
        own = np.sqrt(1 - self.correlation)
        return (
            self.loss_a[index] * np.exp(self.noise * (common + own * own_a)),
            self.loss_b[index] * np.exp(self.noise * self.noise_ratio * (common + own * own_b)),
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
    """Print the table of the cases and their sums, and the table of early stopping."""
    for name in _SEEDS.value:
        if name not in SEEDS:
            raise ValueError(f"--seeds={name} must be {' or '.join(SEEDS)}")
    names, lines = _CASES.value or list(CASES), []
    n = len(names) * _PAIRS.value
    for seeds in _SEEDS.value:
        counts = Counter()
        for name in names:
            line, case_counts = measure_case(name, seeds, _PAIRS.value)
            lines.append(line)
            counts += case_counts
        console.print_line(
            f"{seeds} seeds, {n:,} pairs: wrong {counts['wrong'] / n:.1%},"
            f" undecided {counts['undecided'] / n:.1%}"
        )
    console.table(lines)
    console.table(
        [
            measure_early_stopping(seeds, test, _SEQUENCES.value)
            for seeds in _SEEDS.value
            for test in ("anytime-valid", "for fixed numbers of runs", "--decide")
        ]
    )
    return 0


def simulate_pair(name: str, seeds: str, rng: np.random.Generator) -> Pair:
    """Return a random pair of a case. seeds: paired or independent."""
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

    pair = Pair(
        x,
        loss_a(x),
        loss_a(x + true_log_m(x)),
        true_log_m,
        n_seeds=int(rng.integers(2, 5)),
        noise=rng.uniform(0.003, 0.01),
        correlation=rng.uniform(0, 0.8),
        noise_ratio=1.0,
    )
    if seeds == "independent":
        ratio = 2 ** rng.uniform(-1, 1)
        # Both recipes have a noise of 0.3 to 1%.
        ratio = float(np.clip(ratio, 0.003 / pair.noise, 0.01 / pair.noise))
        return pair._replace(correlation=0.0, noise_ratio=ratio)
    return pair


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


def measure_case(name: str, seeds: str, n_pairs: int) -> tuple[dict, Counter]:
    """Return a line of the table, and the counts of wrong and undecided verdicts."""
    from lm.laws.recipe_comparison import multiplier, multiplier_draws, recipe_verdict

    verdicts, counts = Counter(), Counter()
    at_sizes, on_curve, beyond = [], [], []
    for i in range(n_pairs):
        rng = np.random.default_rng((i, list(CASES).index(name)))
        pair = simulate_pair(name, seeds, rng)
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
    line = {"case": name, "seeds": seeds, **shares, "wrong": f"{counts['wrong'] / n_pairs:.1%}"}
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


def measure_early_stopping(seeds: str, test: str, n_sequences: int) -> dict:
    """Return the share of identical recipes that are called different after any added run.

    test: "anytime-valid" and "for fixed numbers of runs" add one seed of all sizes at a time;
    "--decide" adds the pairs that the command trains, with its anytime-valid test.
    """
    verdicts = Counter()
    for i in range(n_sequences):
        rng = np.random.default_rng((i, 100))
        pair = simulate_pair("no effect", seeds, rng)
        if test == "--decide":
            verdicts[decide_pair(pair, rng)] += 1
        else:
            verdicts[stop_at_verdict(pair, rng, test == "anytime-valid")] += 1
    return {
        "seeds": seeds,
        "test after each added run": test,
        "called different": f"{verdicts['different'] / n_sequences:.1%}",
        "called equal": f"{verdicts['equal'] / n_sequences:.1%}",
    }


def stop_at_verdict(pair: Pair, rng: np.random.Generator, is_anytime: bool) -> str:
    """Return different, equal or undecided, from 2 to MAX_SEEDS seeds of all sizes."""
    from lm.laws.recipe_comparison import multiplier, recipe_verdict

    ladder = pair.sample(rng, MAX_SEEDS)
    for n_seeds in range(2, MAX_SEEDS + 1):
        n = n_seeds * len(pair.x)
        part = multiplier.PairedLadder(
            ladder.size_index[:n], ladder.loss_a[:n], ladder.loss_b[:n], ladder.x_a, ladder.x_b
        )
        fitted = multiplier.fit_multiplier(part)
        verdict, is_different = recipe_verdict.decide_trend(fitted, is_anytime=is_anytime)
        if is_different or verdict != "undecided":
            return "different" if is_different else "equal"
    return "undecided"


def decide_pair(pair: Pair, rng: np.random.Generator) -> str:
    """Return different, equal or undecided, with the added pairs of `compare --decide`.

    A verdict is read after every round, and counts as different if any round calls them so.
    """
    from experiments.common import recipe_ladders
    from lm.laws.recipe_comparison import decision_cost, recipe_verdict

    rows = _rows_of(pair, rng, np.tile(np.arange(len(pair.x)), 2), [])
    options = recipe_verdict.ComparisonOptions(is_anytime=True, n_draws=100)
    n_added = 0
    while n_added <= MAX_ADDED:
        comparison = recipe_verdict.compare_recipes(*rows, options)
        if comparison.is_different:
            return "different"
        if comparison.verdict != "undecided":
            return "equal"
        plan = decision_cost.plan_decision(comparison)
        n_pairs = min(plan.next_pairs(np.inf), recipe_ladders.MAX_PAIRS_PER_ROUND)
        index = np.full(n_pairs, int(plan.next_size))
        rows = _rows_of(pair, rng, index, rows)
        n_added += n_pairs
    return "undecided"


def _rows_of(pair: Pair, rng: np.random.Generator, index: np.ndarray, earlier: list) -> list:
    """Return the earlier rows of A and B with new rows at some sizes, whose names are numbers."""
    earlier = earlier or [[], []]
    seeds = {k: sum(row["name"] == str(k) for row in earlier[0]) for k in range(len(pair.x))}
    sides = []
    for rows, losses in zip(earlier, pair.sample_losses(rng, index), strict=True):
        counts = Counter(seeds)
        sides.append(list(rows))
        for k, loss in zip(index.tolist(), losses.tolist(), strict=True):
            cost = float(np.exp(pair.x[k]))
            sides[-1].append({"name": str(k), "seed": counts[k], "status": "done", "loss": loss})
            sides[-1][-1] |= {"flops": cost, "tokens": 1e6}
            counts[k] += 1
    return sides


if __name__ == "__main__":
    cli.run_main(main)
