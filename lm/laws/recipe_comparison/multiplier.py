"""Compute multiplier of recipe B over recipe A along a ladder, with its uncertainty.

m(C) is the factor by which A needs more FLOPs than C to reach the loss of B at C: L_A(m C) =
L_B(C). It is above 1 if B is better. The same definition applies to seconds and parameters.

Model, with x = log C and an irreducible loss E of both recipes:

    A: log(L_A - E) = b_A - alpha_A x
    B: log(L_B - E) = b_B - alpha_B x - alpha g(x)
    m: log m(x) = (b_A - b_B - (alpha_A - alpha_B) x + alpha g(x)) / (alpha_A (1 + w(x)))

g is the drift of log m from a straight line, and w the drift of the exponent of A. Both have the
prior of `form_uncertainty`: their slopes change by independent increments. Means of the pairs
determine E and the mean exponent. Differences of the pairs determine m. Both are independent for
equal noise of the recipes, so the common noise of a pair (seed, data order) cancels in m.

multiplier_draws.py draws g and w.

Legend: n pairs, K sizes, G values of E.
"""

from dataclasses import dataclass

import numpy as np

from lm.laws.recipe_comparison import anytime_valid_tests

FLOOR_FRACTIONS = np.linspace(0.0, 0.96, 25)  # values of E, relative to the lowest loss
SIZE_NOISE_LEVEL = 0.05  # p-value below which sizes differ by more than their seeds
MIN_NOISE = 1e-7  # of log L: losses have seven digits


@dataclass(frozen=True)
class PairedLadder:
    """Losses of pairs of runs, one of each recipe, at K common sizes."""

    size_index: np.ndarray  # size of each pair, n integers below K
    loss_a: np.ndarray  # [n]
    loss_b: np.ndarray  # [n]
    x_a: np.ndarray  # log of the cost of A at each size [K], ascending
    x_b: np.ndarray  # log of the cost of B at each size [K]

    @property
    def n_sizes(self) -> int:
        return len(self.x_a)

    @property
    def x_mean(self) -> np.ndarray:
        """Mean log cost of both recipes at each size, [K]."""
        return 0.5 * (self.x_a + self.x_b)

    @property
    def pairs_per_size(self) -> np.ndarray:
        return np.bincount(self.size_index, minlength=self.n_sizes)


@dataclass(frozen=True)
class Effect:
    """Estimate with its standard error, degrees of freedom and information.

    information: noise variance of an average pair over the squared standard error, see
    `anytime_valid_tests`. For a mean it is the number of pairs.
    """

    value: float
    standard_error: float
    n_spare: int
    information: float

    def interval(self, error: float = 0.05, is_anytime: bool = False) -> tuple[float, float]:
        """Return the interval that misses the value with probability `error`."""
        critical = anytime_valid_tests.critical_value(
            error, self.n_spare, self.information, is_anytime
        )
        half_width = critical * self.standard_error if self.standard_error else 0.0
        return self.value - half_width, self.value + half_width


@dataclass(frozen=True)
class Regression:
    """Weighted least-squares lines of one response for each E: coefficients [G, 2]."""

    coefficients: np.ndarray  # intercept at the center, and slope
    covariances: np.ndarray  # inverse of X' W X, [G, 2, 2]
    squares: np.ndarray  # weighted sum of squared residuals [G]
    n_spare: int
    weights: np.ndarray  # [G, n]


@dataclass(frozen=True)
class MultiplierFit:
    """Fit of both recipes: effects at the sizes, and draws of log m at any cost."""

    ladder: PairedLadder
    center: float  # mean log cost of the pairs
    floors: np.ndarray  # values of E [G]
    floor_weights: np.ndarray  # their probabilities [G]
    mean_line: Regression
    difference_line: Regression
    document_variance: float = 0.0  # of the relative difference, shared by all sizes

    @property
    def best(self) -> int:
        """Index of the E with the median probability."""
        return int(np.searchsorted(np.cumsum(self.floor_weights), 0.5))

    def difference_coefficients(self) -> np.ndarray:
        """Return b_A - b_B at the center, and alpha_A - alpha_B, for each E [G, 2]."""
        offsets = (self.ladder.x_a - self.ladder.x_b)[self.ladder.size_index]
        own, exponents = self.difference_line.coefficients, self.mean_line.coefficients[:, 1]
        if not offsets.any():
            return own
        # The recipes have unequal costs at a size: the law moves A to the cost of B.
        design, covariances = _pair_design(self), self.difference_line.covariances
        weights = self.difference_line.weights
        return own + exponents[:, None] * np.einsum(
            "gij,gn,n,nj->gi", covariances, weights, offsets, design
        )

    def exponents_a(self) -> np.ndarray:
        """Return alpha_A for each E, [G]."""
        return self.mean_line.coefficients[:, 1] + 0.5 * self.difference_coefficients()[:, 1]

    @property
    def exponent_spread(self) -> float:
        """Relative standard error of the mean exponent for a given E."""
        lines = self.mean_line
        variances = lines.squares / max(lines.n_spare, 1) * lines.covariances[:, 1, 1]
        relative = variances / np.maximum(lines.coefficients[:, 1], 1e-12) ** 2
        return float(np.sqrt(self.floor_weights @ relative))

    def average(self, values_G: np.ndarray) -> tuple[float, float]:
        """Return the mean of values over E, and their variance."""
        is_possible = self.floor_weights > 0
        values, weights = values_G[is_possible], self.floor_weights[is_possible]
        mean = float(weights @ values)
        return mean, float(weights @ (values - mean) ** 2)


def fit_multiplier(ladder: PairedLadder, document_error: float = 0.0) -> MultiplierFit:
    """Fit the means and the differences of the pairs for each value of E.

    document_error: standard error of the difference of log losses that stems from the held-out
    documents, which all sizes share.
    """
    floors = FLOOR_FRACTIONS * min(ladder.loss_a.min(), ladder.loss_b.min())
    excess_a, excess_b = (loss - floors[:, None] for loss in (ladder.loss_a, ladder.loss_b))
    log_a, log_b = np.log(excess_a), np.log(excess_b)
    # The noise of log L is constant, so the noise of log(L - E) is L / (L - E) times as large.
    weights = excess_a * excess_b / (ladder.loss_a * ladder.loss_b)
    x = ladder.x_mean[ladder.size_index]
    center = float(x.mean())
    mean_line = _fit_lines(0.5 * (log_a + log_b), weights, center - x, ladder.size_index)
    difference_line = _fit_lines(log_a - log_b, weights, center - x, ladder.size_index)
    scale = max(mean_line.squares.min(), 1e-300)
    log_weights = (
        -0.5 * max(mean_line.n_spare, 1) * np.log(np.maximum(mean_line.squares / scale, 1.0))
    )
    log_weights = np.where(mean_line.coefficients[:, 1] > 0, log_weights, -np.inf)
    if not np.isfinite(log_weights).any():
        raise ValueError(
            "the loss does not decrease with the cost of the runs, so no multiplier is defined:"
            " compare sizes that differ more"
        )
    probabilities = np.exp(log_weights - log_weights.max())
    return MultiplierFit(
        ladder,
        center,
        floors,
        probabilities / probabilities.sum(),
        mean_line,
        difference_line,
        document_error**2,
    )


def _fit_lines(
    values: np.ndarray, weights: np.ndarray, positions: np.ndarray, size_index: np.ndarray
) -> Regression:
    """Fit values [G, n] = intercept + slope * positions [n] with weights [G, n].

    Sizes may differ by more than their seeds, because the tuning or the form is imperfect. If an
    F-test finds this, the noise is that of the means of the sizes.
    """
    design = np.stack([np.ones_like(positions), positions], 1)
    normal = np.einsum("gn,ni,nj->gij", weights, design, design)
    covariances = np.linalg.inv(normal)
    coefficients = np.einsum("gij,gn,nj->gi", covariances, weights * values, design)
    residuals = values - coefficients @ design.T
    squares = (weights * residuals**2).sum(1)
    n, n_sizes = len(positions), int(size_index.max()) + 1
    n_within, n_between = n - n_sizes, n_sizes - 2
    if n_within < 1 or n_between < 1:
        return Regression(coefficients, covariances, squares, n - 2, weights)
    indicators = size_index[:, None] == np.arange(n_sizes)
    totals = weights @ indicators
    deviations = values - ((weights * values) @ indicators / totals)[:, size_index]
    within = (weights * deviations**2).sum(1)
    between = np.maximum(squares - within, 0.0)
    from scipy import special  # its import takes longer than that of all laws

    best = int(np.argmin(squares))
    ratio = between[best] / n_between / max(within[best] / n_within, 1e-300)
    if special.fdtrc(n_between, n_within, ratio) < SIZE_NOISE_LEVEL:
        return Regression(coefficients, covariances, between, n_between, weights)
    return Regression(coefficients, covariances, squares, n - 2, weights)


def _pair_design(fitted: MultiplierFit) -> np.ndarray:
    """Return the columns of the line of all pairs, [n, 2]."""
    positions = fitted.center - fitted.ladder.x_mean[fitted.ladder.size_index]
    return np.stack([np.ones_like(positions), positions], 1)


def line_effects(fitted: MultiplierFit) -> tuple[Effect, Effect]:
    """Return log m at the center of the ladder, and d log m / d log C along it."""
    return line_effect_at(fitted, 0.0), _line_effect(fitted, np.array([0.0, -1.0]))


def line_effect_at(fitted: MultiplierFit, distance: float) -> Effect:
    """Return log m on the line at a log cost of this distance from the center of the ladder."""
    return _line_effect(fitted, np.array([1.0, -distance]), fitted.document_variance)


def _line_effect(
    fitted: MultiplierFit, direction: np.ndarray, document_variance: float = 0.0
) -> Effect:
    """Return a linear function of the coefficients of the difference, relative to alpha_A.

    The error includes the uncertain E, which bends a multiplier that differs from 1.
    """
    floor, line = fitted.best, fitted.difference_line
    exponents = fitted.exponents_a()
    value, between = fitted.average(fitted.difference_coefficients() @ direction / exponents)
    unit = float(direction @ line.covariances[floor] @ direction)
    noise = line.squares[floor] / max(line.n_spare, 1) * unit
    documents = document_variance / float(line.weights[floor].mean())
    variance = (noise + documents) / exponents[floor] ** 2
    error = float(np.sqrt(variance + between + (fitted.exponent_spread * value) ** 2))
    return Effect(value, error, line.n_spare, line_information(fitted, unit))


def line_information(fitted: MultiplierFit, unit: float) -> float:
    """Return the information of a coefficient with the variance `unit` in units of the noise.

    The noise of log L has the weight 1, and an average pair has the mean weight of log(L - E).
    """
    return 1 / (unit * float(fitted.difference_line.weights[fitted.best].mean()))


def size_effects(fitted: MultiplierFit) -> list[Effect]:
    """Return log m at each common size, from the pairs of that size.

    The noise is pooled over sizes. The law of A only converts the difference of losses to a
    factor of cost.
    """
    floor, ladder = fitted.best, fitted.ladder
    means, totals = size_means(fitted)
    exponents, spread = fitted.exponents_a(), fitted.exponent_spread
    counts = ladder.pairs_per_size
    variance, n_spare = _seed_variance(fitted)
    effects = []
    for k in range(ladder.n_sizes):
        difference, between = fitted.average(means[:, k] / exponents)
        weight = float(totals[floor, k])
        documents = fitted.document_variance * counts[k] / weight
        noise = (variance / weight + documents) / exponents[floor] ** 2
        error = float(np.sqrt(noise + between + (spread * difference) ** 2))
        value = difference + float(ladder.x_a[k] - ladder.x_b[k])
        effects.append(Effect(value, error, n_spare, float(counts[k])))
    return effects


def _seed_variance(fitted: MultiplierFit) -> tuple[float, int]:
    """Return the weighted variance of a pair around its size, and its degrees of freedom.

    Without repeated pairs, it is the variance around the line of all sizes.
    """
    ladder, line, floor = fitted.ladder, fitted.difference_line, fitted.best
    n_within = len(ladder.size_index) - ladder.n_sizes
    if n_within < 1:
        return float(line.squares[floor]) / max(line.n_spare, 1), line.n_spare
    differences = np.log(ladder.loss_a - fitted.floors[floor]) - np.log(
        ladder.loss_b - fitted.floors[floor]
    )
    deviations = differences - size_means(fitted)[0][floor, ladder.size_index]
    return float(line.weights[floor] @ deviations**2) / n_within, n_within


def size_means(fitted: MultiplierFit) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean difference of each size and its total weight, both [G, K]."""
    ladder, weights = fitted.ladder, fitted.difference_line.weights
    differences = np.log(ladder.loss_a - fitted.floors[:, None]) - np.log(
        ladder.loss_b - fitted.floors[:, None]
    )
    indicators = ladder.size_index[:, None] == np.arange(ladder.n_sizes)
    totals = weights @ indicators
    return (weights * differences) @ indicators / totals, totals
