"""Verdict about two recipes: value of B, its trend along the ladder, and its chance at scale.

    comparison = recipe_verdict.compare_recipes(rows_a, rows_b)
    print(comparison)                                # about ten lines
    comparison.verdict, comparison.probabilities     # "grows", {10: 0.98, 100: 0.93}

All multipliers m are factors by which A needs more cost to reach the loss of B. The verdict is one
of VERDICTS. Two tests, of log m in the middle of the ladder and of its slope, decide that the
recipes differ. Each has TEST_SHARE of the error, which is divided by the number of candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lm.laws import run_table
from lm.laws.recipe_comparison import multiplier, multiplier_draws, paired_runs

VERDICTS = {
    "no difference": "m is within 10% of 1 along the ladder",
    "constant": "the advantage neither grows nor shrinks by more than 12% per decade of compute",
    "grows": "the advantage grows with compute",
    "vanishes": "the advantage shrinks with compute",
    "reverses": "the better recipe changes within the ladder",
    "undecided": "the runs do not decide the question",
}
EQUAL_FACTOR = 1.1  # multipliers up to this factor from 1 are no difference of practical use
SLOPE_MARGIN = 0.05  # of d log m / d log C: 12% per decade
# Share of the error of each test. With one half, identical recipes were called different in 6% of
# the simulated pairs at an error of 5%, because a preliminary test selects the noise.
TEST_SHARE = 0.375
FACTORS = (10, 100)  # of the largest compute, for the probabilities
N_GRID = 60  # costs of the curve of m


@dataclass(frozen=True)
class ComparisonOptions:
    """Options of a comparison of two recipes."""

    y: str = ""  # column of the loss; default: see paired_runs.pair_runs
    error: float = 0.05  # probability of a wrong decision that the recipes differ
    n_candidates: int = 1  # recipes that were compared with A; divides the error
    is_anytime: bool = False  # the verdict may be read after every new run
    document_error: float = 0.0  # relative, see multiplier.fit_multiplier
    n_draws: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Multiplier:
    """Compute multiplier with its interval."""

    value: float
    lo: float
    hi: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.lo:.3g}, {self.hi:.3g}]"


@dataclass(frozen=True)
class SizeResult:
    """Results at one common size: costs and mean losses of both recipes, and multipliers."""

    name: str
    n_pairs: int
    loss_a: float
    loss_b: float
    cost_a: float  # mean cost, in the unit of RecipeComparison.cost
    cost_b: float
    multipliers: dict[str, Multiplier]  # by column of paired_runs.COSTS


@dataclass(frozen=True)
class RecipeComparison:
    """Result of `compare_recipes`. Costs are in the unit of the column `cost`."""

    verdict: str
    cost: str
    sizes: list[SizeResult]
    average: dict[str, Multiplier]  # in the middle of the ladder, by column of the cost
    slope: Multiplier  # d log m / d log C
    crossing: Multiplier | None  # cost at which m is 1
    probabilities: dict[int, float]  # factor of the largest cost -> probability that B is better
    extrapolated: dict[int, Multiplier]
    curve: dict[str, list[float]]  # cost, value, lo, hi
    is_different: bool
    options: ComparisonOptions
    selection: paired_runs.Selection
    fitted: multiplier.MultiplierFit
    notes: list[str] = field(default_factory=list)

    @property
    def better(self) -> str:
        """Name of the recipe that is better in the middle of the ladder."""
        return "B" if self.average[self.cost].value >= 1 else "A"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the comparison as plain data."""
        return {
            "verdict": self.verdict,
            "meaning": VERDICTS[self.verdict],
            "better": self.better if self.is_different else "",
            "loss": self.selection.y,
            "cost": self.cost,
            "sizes": [
                {f.name: getattr(s, f.name) for f in fields(s) if f.name != "multipliers"}
                | {"multipliers": {k: vars(m) for k, m in s.multipliers.items()}}
                for s in self.sizes
            ],
            "average": {column: vars(m) for column, m in self.average.items()},
            "slope": vars(self.slope),
            "crossing": None if self.crossing is None else vars(self.crossing),
            "probability_b_is_better": {str(k): v for k, v in self.probabilities.items()},
            "extrapolated": {str(k): vars(m) for k, m in self.extrapolated.items()},
            "curve": self.curve,
            "options": vars(self.options),
            "notes": self.notes,
        }

    def __str__(self) -> str:
        return "\n".join(format_lines(self))


def compare_recipes(
    rows_a: run_table.Rows, rows_b: run_table.Rows, options: ComparisonOptions | None = None
) -> RecipeComparison:
    """Compare two recipes along their common sizes. See `paired_runs.pair_runs` for the rows.

    Raises ValueError, in one line that states what to run, for recipes that are not comparable.
    """
    options = options or ComparisonOptions()
    _check_options(options)
    selection = paired_runs.pair_runs(rows_a, rows_b, options.y)
    costs = selection.costs()
    if not costs:
        known = ", ".join(paired_runs.COSTS)
        raise ValueError(f"not all runs have one of the costs {known}: add one of these columns")
    fits = {
        cost: multiplier.fit_multiplier(selection.ladder(cost), options.document_error)
        for cost in costs
    }
    cost, error = costs[0], options.error / options.n_candidates
    fitted = fits[cost]
    verdict, is_different = decide_trend(fitted, error, options.is_anytime)
    _, slope = multiplier.line_effects(fitted)
    averages = {
        name: _multiplier(multiplier.line_effects(part)[0], error, options)
        for name, part in fits.items()
    }
    return RecipeComparison(
        verdict=verdict,
        is_different=is_different,
        cost=cost,
        sizes=_size_results(selection, fits, error, options),
        average=averages,
        slope=Multiplier(slope.value, *slope.interval(error, options.is_anytime)),
        **_extrapolate(fitted, error, options, is_different),
        options=options,
        selection=selection,
        fitted=fitted,
        notes=list(selection.notes),
    )


def _extrapolate(
    fitted: multiplier.MultiplierFit, error: float, options: ComparisonOptions, is_different: bool
) -> dict[str, Any]:
    """Return the fields of a comparison that describe the multiplier beyond the ladder."""
    x = fitted.ladder.x_mean
    grid = np.linspace(x.min(), x.max() + np.log(FACTORS[-1]), N_GRID)
    points = np.concatenate([grid, x.max() + np.log(FACTORS)])
    draws = multiplier_draws.draw_multipliers(fitted, points, options.n_draws, options.seed)
    curve = np.exp(np.percentile(draws, [50, 50 * error, 100 - 50 * error], axis=0))
    at_factors = draws[:, N_GRID:]
    is_better = (at_factors > 0).mean(0) + 0.5 * (at_factors == 0).mean(0)
    costs = {"cost": np.exp(points)} | dict(zip(("value", "lo", "hi"), curve, strict=True))
    return {
        "crossing": _crossing(draws[:, :N_GRID], grid, error) if is_different else None,
        "probabilities": dict(zip(FACTORS, is_better.tolist(), strict=True)),
        "extrapolated": {
            factor: Multiplier(*curve[:, N_GRID + i].tolist()) for i, factor in enumerate(FACTORS)
        },
        "curve": {name: values[:N_GRID].tolist() for name, values in costs.items()},
    }


def _check_options(options: ComparisonOptions) -> None:
    if not 0 < options.error < 1:
        raise ValueError(f"error={options.error!r} must be between 0 and 1, such as 0.05")
    if options.n_candidates < 1:
        raise ValueError(f"n_candidates={options.n_candidates!r} must be at least 1")
    if options.n_draws < 100:
        raise ValueError(f"n_draws={options.n_draws!r} must be at least 100")


def decide_trend(
    fitted: multiplier.MultiplierFit, error: float = 0.05, is_anytime: bool = False
) -> tuple[str, bool]:
    """Return one of VERDICTS, and True if the recipes differ. error: of both tests together."""
    average, slope = multiplier.line_effects(fitted)
    average_interval = average.interval(TEST_SHARE * error, is_anytime)
    slope_interval = slope.interval(TEST_SHARE * error, is_anytime)
    average_sign, slope_sign = _sign(average_interval), _sign(slope_interval)
    distances = fitted.ladder.x_mean[[0, -1]] - fitted.center
    if not np.isfinite([average_interval, slope_interval]).all():
        return "undecided", False
    if not average_sign and not slope_sign:
        bounds = [
            average_bound + slope_bound * distance
            for average_bound in average_interval
            for slope_bound in slope_interval
            for distance in distances
        ]
        is_equal = max(map(abs, bounds)) < np.log(EQUAL_FACTOR)
        return ("no difference" if is_equal else "undecided"), False
    if not slope_sign:
        is_flat = max(map(abs, slope_interval)) < SLOPE_MARGIN
        return ("constant" if is_flat else "undecided"), True
    first, last = (
        _sign(multiplier.line_effect_at(fitted, distance).interval(error, is_anytime))
        for distance in distances
    )
    if last == slope_sign:
        return ("reverses" if first == -slope_sign else "grows"), True
    return ("vanishes" if first == -slope_sign else "undecided"), True


def _sign(interval: tuple[float, float]) -> int:
    """Return the sign of all values of an interval, 0 if it contains zero."""
    return int(interval[0] > 0) - int(interval[1] < 0)


def _multiplier(effect: multiplier.Effect, error: float, options: ComparisonOptions) -> Multiplier:
    bounds = effect.interval(error, options.is_anytime)
    with np.errstate(over="ignore"):
        return Multiplier(*(float(np.exp(value)) for value in (effect.value, *bounds)))


def _size_results(
    selection: paired_runs.Selection,
    fits: Mapping[str, multiplier.MultiplierFit],
    error: float,
    options: ComparisonOptions,
) -> list[SizeResult]:
    """Return the comparison at each size, smallest first."""
    effects = {cost: multiplier.size_effects(fitted) for cost, fitted in fits.items()}
    results = []
    ladders = {cost: fitted.ladder for cost, fitted in fits.items()}
    ladder = ladders[next(iter(fits))]
    names = selection.ordered_names(next(iter(fits)))
    for k, name in enumerate(names):
        is_size = ladder.size_index == k
        multipliers = {}
        for cost in fits:
            position = selection.ordered_names(cost).index(name)
            multipliers[cost] = _multiplier(effects[cost][position], error, options)
        results.append(
            SizeResult(
                name,
                int(is_size.sum()),
                float(ladder.loss_a[is_size].mean()),
                float(ladder.loss_b[is_size].mean()),
                float(np.exp(ladder.x_a[k])),
                float(np.exp(ladder.x_b[k])),
                multipliers,
            )
        )
    return results


def _crossing(draws: np.ndarray, points: np.ndarray, error: float) -> Multiplier | None:
    """Return the cost at which the sign of log m changes, None if most draws have no change.

    The upper bound is infinite if more than error / 2 of the draws do not change their sign.
    """
    is_changed = np.sign(draws) != np.sign(draws[:, :1])
    has_crossing = is_changed.any(1)
    if has_crossing.mean() < 0.5:
        return None
    costs = np.where(has_crossing, np.exp(points[is_changed.argmax(1)]), np.inf)
    value, lo, hi = np.quantile(costs, [0.5, error / 2, 1 - error / 2], method="inverted_cdf")
    return Multiplier(float(value), float(lo), float(hi))


def format_lines(comparison: RecipeComparison) -> list[str]:
    """Return the text of a comparison, one fact per line."""
    level = f"{1 - comparison.options.error / comparison.options.n_candidates:.3g}"
    unit = paired_runs.COSTS[comparison.cost]
    lines = [f"verdict: {comparison.verdict}, {VERDICTS[comparison.verdict]}"]
    average = comparison.average[comparison.cost]
    if comparison.is_different and average.lo <= 1 <= average.hi:
        if comparison.verdict == "grows":
            recipe = "B" if comparison.slope.value > 0 else "A"
            lines[0] += f"; {recipe} is better at the largest size"
        lines[0] += "; the middle of the ladder is undecided"
    elif comparison.is_different:
        lines[0] += f"; {comparison.better} is better in the middle of the ladder"
    lines.append(
        f"m: factor by which A needs more cost to reach the loss of B ({comparison.selection.y});"
        f" above 1, B is better; intervals at {level}"
    )
    for size in comparison.sizes:
        texts = [f"{paired_runs.COSTS[cost]} {value}" for cost, value in size.multipliers.items()]
        lines.append(
            f"{size.name}: loss {size.loss_a:.4f} (A), {size.loss_b:.4f} (B), {size.n_pairs}"
            f" pair{'s' * (size.n_pairs > 1)}; m in {', '.join(texts)}"
        )
    averages = ", ".join(
        f"{paired_runs.COSTS[cost]} {value}" for cost, value in comparison.average.items()
    )
    lines.append(f"middle of the ladder: m in {averages}")
    per_decade = [10**value for value in vars(comparison.slope).values()]
    lines.append(f"trend: m changes by a factor {Multiplier(*per_decade)} per decade of {unit}")
    if comparison.crossing is not None:
        lines.append(f"crossing: m is 1 at {_format_cost(comparison.crossing)} {unit}")
    for factor, probability in comparison.probabilities.items():
        lines.append(
            f"at {factor} times the largest run: m {comparison.extrapolated[factor]},"
            f" probability that B is better {probability:.0%}"
        )
    return [*lines, *(f"note: {note}" for note in comparison.notes)]


def _format_cost(value: Multiplier) -> str:
    hi = f"{value.hi:.2g}" if np.isfinite(value.hi) else "beyond"
    return f"{value.value:.2g} [{value.lo:.2g}, {hi}]"
