"""Cost of a decision: the cheapest further pairs of runs that decide an open comparison.

    plan = decision_cost.plan_decision(comparison)
    print(plan)
    # decision: 2 more pairs of runs at 100K decide it: 14 minutes on the device of the runs

Each pair is one run of both recipes at a common size, or at a size beyond the ladder. The plan
assumes that the estimates do not change, so it states an expected cost. Seconds of a size beyond
the ladder are extrapolated as a power of the column `comparison.cost`.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lm.laws import run_table
from lm.laws.recipe_comparison import (
    anytime_valid_tests,
    multiplier,
    paired_runs,
    recipe_verdict,
)

MAX_PAIRS = 200  # of a plan; more pairs than this are no decision within reach
LARGER_FACTOR = 4.0  # cost of the size beyond the ladder, relative to the largest size
POWER_QUANTILE = 0.84  # normal quantile of the probability of 80% that the plan decides


@dataclass(frozen=True)
class DecisionPlan:
    """Further pairs of runs per size, and their cost.

    pairs: {size: number of pairs}. Without seconds in the rows, the cost is in the unit of
    RecipeComparison.cost.
    """

    pairs: dict[str, int]
    cost: float
    unit: str  # text of paired_runs.COSTS
    problem: str = ""  # reason why no plan decides
    next_size: str = ""  # common size with the most useful pair per cost, "" if decided
    next_cost: float = 0.0  # of a pair at that size

    def next_pairs(self, seconds: float) -> int:
        """Return the number of planned pairs at `next_size` that fit into a time, at least 0.

        Without seconds in the rows, each pair counts as fitting.
        """
        n_planned = max(self.pairs.get(self.next_size, 1), 1)
        if self.unit != "seconds" or self.next_cost <= 0:
            return n_planned if seconds > 0 else 0
        return min(n_planned, int(max(seconds, 0.0) / self.next_cost))

    def __str__(self) -> str:
        if self.problem:
            return f"decision: {self.problem}"
        if not self.pairs:
            return "decision: no further run is needed"
        texts = [
            f"{n} more pair{'s' * (n > 1)} of runs at {name}" for name, n in self.pairs.items()
        ]
        cost = f"{self.cost:.2g} {self.unit}"
        if self.unit == "seconds":
            cost = f"{self.cost / 60:.2g} minutes on the device of the runs"
        return f"decision: {' and '.join(texts)} decide it: {cost}"


@dataclass(frozen=True)
class SizeOption:
    """Size at which a pair can be trained: its position, the weight of a pair, and its cost."""

    name: str
    position: float  # log cost relative to the center of the ladder
    weight: float
    cost: float


def plan_decision(comparison: recipe_verdict.RecipeComparison) -> DecisionPlan:
    """Return the cheapest pairs of runs that decide a comparison, by a greedy search.

    Each step adds the pair with the largest decrease of the variance of the open question per unit
    of cost. The open question is the slope if the recipes differ. Otherwise it is log m.
    """
    options, unit = _size_options(comparison)
    if comparison.verdict != "undecided":
        return DecisionPlan({}, 0.0, unit)
    fitted, floor = comparison.fitted, comparison.fitted.best
    line, effects = fitted.difference_line, multiplier.line_effects(fitted)
    exponent = float(fitted.exponents_a()[floor])
    variance = line.squares[floor] / line.n_spare / exponent**2
    covariance = line.covariances[floor]
    n_spare, counts, cost = line.n_spare, Counter(), 0.0
    question = 1 if comparison.is_different else 0
    first: SizeOption | None = None
    rows = np.array([[1.0, -option.position] for option in options])
    weights = np.array([option.weight for option in options])
    costs = np.array([option.cost for option in options])
    for _ in range(MAX_PAIRS):
        columns = covariance @ rows.T
        # A pair with the row r and the weight w subtracts c c' / (1 / w + r' c), with c = cov r.
        totals = 1 / weights + (rows.T * columns).sum(0)
        decreases_per_cost = columns[question] ** 2 / totals / costs
        best = int(np.argmax(decreases_per_cost))
        first = first or options[int(np.argmax(decreases_per_cost[:-1]))]
        covariance = covariance - np.outer(columns[:, best], columns[:, best]) / totals[best]
        n_spare, cost = n_spare + 1, cost + options[best].cost
        counts[options[best].name] += 1
        if _is_decided(comparison, effects, covariance, variance, n_spare):
            ordered = {o.name: counts[o.name] for o in options if counts[o.name]}
            return DecisionPlan(ordered, cost, unit, "", first.name, first.cost)
    assert first is not None, "MAX_PAIRS is above 0"
    problem = f"{MAX_PAIRS} more pairs of runs ({cost:.2g} {unit}) would not decide it:"
    problem += " the effect is too close to the limit, or the noise is too large"
    return DecisionPlan({}, cost, unit, problem, first.name, first.cost)


def _is_decided(
    comparison: recipe_verdict.RecipeComparison,
    effects: tuple[multiplier.Effect, multiplier.Effect],
    covariance: np.ndarray,
    variance: float,
    n_spare: int,
) -> bool:
    """Return True if the expected intervals with this covariance decide the comparison.

    effects: of multiplier.line_effects.
    """
    options = comparison.options
    error = recipe_verdict.TEST_SHARE * options.error / options.n_candidates
    average, slope = effects
    spreads = []
    for effect, unit in ((average, covariance[0, 0]), (slope, covariance[1, 1])):
        information = multiplier.line_information(comparison.fitted, unit)
        critical = anytime_valid_tests.critical_value(
            error, n_spare, information, options.is_anytime
        )
        spread = (critical + POWER_QUANTILE) * math.sqrt(variance * unit)
        spreads.append((abs(effect.value), spread))
    (average_value, average_spread), (slope_value, slope_spread) = spreads
    if slope_value > slope_spread:
        return True
    if comparison.is_different or average_value > average_spread:
        return slope_value + slope_spread < recipe_verdict.SLOPE_MARGIN
    ladder, center = comparison.fitted.ladder, comparison.fitted.center
    distance = float(np.abs(ladder.x_mean[[0, -1]] - center).max())
    bound = average_value + average_spread + distance * (slope_value + slope_spread)
    return bound < np.log(recipe_verdict.EQUAL_FACTOR)


def _size_options(comparison: recipe_verdict.RecipeComparison) -> tuple[list[SizeOption], str]:
    """Return the sizes of further pairs with the cost of a pair, and the unit of the cost."""
    fitted, selection = comparison.fitted, comparison.selection
    ladder, floor = fitted.ladder, fitted.best
    column = "seconds" if "seconds" in selection.costs() else comparison.cost
    by_name = {size.name: size.pairs for size in selection.sizes}
    options = []
    for k, name in enumerate(selection.ordered_names(comparison.cost)):
        is_size = ladder.size_index == k
        weight = float(fitted.difference_line.weights[floor][is_size].mean())
        cost = float(np.mean([_pair_cost(pair, column) for pair in by_name[name]]))
        position = float(ladder.x_mean[k] - fitted.center)
        options.append(SizeOption(name, position, weight, cost))
    first, last = options[0], options[-1]
    distance = last.position - first.position
    step = math.log(LARGER_FACTOR)
    growth = math.log(last.cost / first.cost) / distance
    decay = math.log(last.weight / first.weight) / distance
    larger = SizeOption(
        f"{LARGER_FACTOR:g} times the {comparison.cost} of {last.name}",
        last.position + step,
        last.weight * math.exp(decay * step),
        last.cost * math.exp(growth * step),
    )
    return [*options, larger], paired_runs.COSTS[column]


def _pair_cost(pair: tuple[Mapping, Mapping], column: str) -> float:
    return sum(run_table.to_number(row.get(column)) for row in pair)
