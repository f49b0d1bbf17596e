"""Compute multiplier of recipe B over recipe A along a ladder, with its uncertainty.

m(C) is the factor by which A needs more FLOPs than C to reach the loss of B at C: L_A(m C) =
L_B(C). It is above 1 if B is better. The same definition applies to seconds and parameters.

Model, with x = log C and an irreducible loss E of both recipes:

    log(L_A - E) = b_A - alpha_A x,    log(L_B - E) = b_B - alpha_B x + alpha g(x)
    log m(x) = (b_A - b_B - (alpha_A - alpha_B) x + alpha g(x)) / (alpha_A (1 + w(x)))

g is the drift of log m from a straight line, and w the drift of the exponent of A. Both have the
prior of `form_uncertainty`: their slopes change by independent increments. Means of the pairs
determine E and the mean exponent. Differences of the pairs determine m. Both are independent for
equal noise of the recipes, so the common noise of a pair (seed, data order) cancels in m.

Legend: n pairs, K sizes, G values of E, R values of the scale of g, B draws, P points, W cells.
"""

from dataclasses import dataclass

import numpy as np

from lm.laws.recipe_comparison import anytime_valid_tests

FLOOR_FRACTIONS = np.linspace(0.0, 0.96, 25)  # values of E, relative to the lowest loss
# Prior of the scale of g: change of d log m / d log C per square root of an e-fold.
DRIFT_PRIOR = {0.0: 0.5, 0.02: 0.25, 0.06: 0.25}
EXPONENT_DRIFT_PRIOR = {0.0: 0.7, 0.15: 0.15, 0.3: 0.15}  # as in form_uncertainty.PRIOR
OUTER_DECAY = 0.3  # of the increments of g outside the sizes, per e-fold
N_INNER_CELLS, N_OUTER_CELLS = 12, 12
MAX_LOG_FACTOR = np.log(1e4)  # range of the cells beyond the sizes
SIZE_NOISE_LEVEL = 0.05  # p-value below which sizes differ by more than their seeds
MIN_NOISE = 1e-7  # of log L: losses have seven digits
MIN_EXPONENT_FRACTION = 0.05  # draws with a smaller exponent of A than this fraction are invalid


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

    information: noise variance over the squared standard error, see `anytime_valid_tests`.
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

    def exponent_a(self, floor: int) -> float:
        """Return alpha_A at the E with this index."""
        mean = self.mean_line.coefficients[floor, 1]
        return float(mean + 0.5 * self._difference_coefficients(floor)[1])

    def _difference_coefficients(self, floor: int, exponent: float | None = None) -> np.ndarray:
        """Return b_A - b_B at the center, and alpha_A - alpha_B, with unequal costs corrected."""
        offsets = (self.ladder.x_a - self.ladder.x_b)[self.ladder.size_index]
        mean = self.mean_line.coefficients[floor, 1] if exponent is None else exponent
        own = self.difference_line.coefficients[floor]
        if not offsets.any():
            return own
        return own + mean * _line(
            self.ladder, self.center, offsets, self.difference_line.weights[floor]
        )


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


def _line(
    ladder: PairedLadder, center: float, values: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return intercept and slope of values [n] against the distance below the center."""
    positions = center - ladder.x_mean[ladder.size_index]
    design = np.stack([np.ones_like(positions), positions], 1)
    root = np.sqrt(weights)[:, None]
    return np.linalg.lstsq(design * root, values * root[:, 0], rcond=None)[0]


def line_effects(fitted: MultiplierFit) -> tuple[Effect, Effect]:
    """Return log m at the center of the ladder, and d log m / d log C along it."""
    floor, line = fitted.best, fitted.difference_line
    exponent = fitted.exponent_a(floor)
    intercept, slope = fitted._difference_coefficients(floor) / exponent
    variance = line.squares[floor] / max(line.n_spare, 1) / exponent**2
    spread = _exponent_spread(fitted)
    documents = fitted.document_variance / _mean_weight(fitted, floor) / exponent**2
    effects = []
    for i, (value, extra) in enumerate(((intercept, documents), (-slope, 0.0))):
        unit = float(line.covariances[floor, i, i])
        error = np.sqrt(variance * unit + extra + (spread * value) ** 2)
        effects.append(Effect(float(value), float(error), line.n_spare, 1 / unit))
    return effects[0], effects[1]


def line_effect_at(fitted: MultiplierFit, distance: float) -> Effect:
    """Return log m on the line at a log cost of this distance from the center of the ladder."""
    (average, slope), line = line_effects(fitted), fitted.difference_line
    exponent = fitted.exponent_a(fitted.best)
    covariance = -line.covariances[fitted.best, 0, 1] * line.squares[fitted.best]
    covariance = covariance / max(line.n_spare, 1) / exponent**2
    # Both effects share the uncertain exponent of A.
    covariance += _exponent_spread(fitted) ** 2 * average.value * slope.value
    variance = average.standard_error**2 + (distance * slope.standard_error) ** 2
    variance += 2 * distance * covariance
    noise = line.squares[fitted.best] / max(line.n_spare, 1) / exponent**2
    error = float(np.sqrt(max(variance, 0.0)))
    information = noise / error**2 if error else float(line.n_spare)
    return Effect(average.value + distance * slope.value, error, line.n_spare, information)


def size_effects(fitted: MultiplierFit) -> list[Effect]:
    """Return log m at each common size, from the pairs of that size.

    The noise is pooled over sizes. The law of A only converts the difference of losses to a
    factor of cost.
    """
    floor, ladder, line = fitted.best, fitted.ladder, fitted.difference_line
    differences = np.log(ladder.loss_a - fitted.floors[floor]) - np.log(
        ladder.loss_b - fitted.floors[floor]
    )
    exponent, spread = fitted.exponent_a(floor), _exponent_spread(fitted)
    weights, counts = line.weights[floor], ladder.pairs_per_size
    variance, n_spare = _seed_variance(fitted, differences)
    effects = []
    for k in range(ladder.n_sizes):
        is_size = ladder.size_index == k
        weight = float(weights[is_size].sum())
        difference = float(np.average(differences[is_size], weights=weights[is_size]))
        value = difference / exponent + float(ladder.x_a[k] - ladder.x_b[k])
        documents = fitted.document_variance * counts[k] / weight
        noise = (variance / weight + documents) / exponent**2
        error = float(np.sqrt(noise + (spread * difference / exponent) ** 2))
        effects.append(Effect(value, error, n_spare, float(counts[k])))
    return effects


def _seed_variance(fitted: MultiplierFit, differences: np.ndarray) -> tuple[float, int]:
    """Return the weighted variance of a pair around its size, and its degrees of freedom.

    Without repeated pairs, it is the variance around the line of all sizes.
    """
    ladder, line, floor = fitted.ladder, fitted.difference_line, fitted.best
    weights, n_within = line.weights[floor], len(differences) - ladder.n_sizes
    if n_within < 1:
        return float(line.squares[floor]) / max(line.n_spare, 1), line.n_spare
    indicators = ladder.size_index[:, None] == np.arange(ladder.n_sizes)
    means = (weights * differences) @ indicators / (weights @ indicators)
    squares = float((weights * (differences - means[ladder.size_index]) ** 2).sum())
    return squares / n_within, n_within


def _mean_weight(fitted: MultiplierFit, floor: int) -> float:
    return float(fitted.difference_line.weights[floor].mean())


def _exponent_spread(fitted: MultiplierFit) -> float:
    """Return the relative standard error of the exponent of A in the middle of the ladder.

    The elasticity alpha (L - E) / L is compared between values of E, because the differences of
    log(L - E) change with E as well.
    """
    lines, weights = fitted.mean_line, fitted.floor_weights
    elasticities = lines.coefficients[:, 1] * np.sqrt(lines.weights.mean(1))
    mean = float(weights @ elasticities)
    variances = lines.squares / max(lines.n_spare, 1) * lines.covariances[:, 1, 1]
    within = weights @ (variances / np.maximum(lines.coefficients[:, 1], 1e-12) ** 2)
    between = weights @ (elasticities / mean - 1) ** 2
    return float(np.sqrt(within + between))


def draw_multipliers(
    fitted: MultiplierFit, x: np.ndarray, n_draws: int = 2000, seed: int = 0
) -> np.ndarray:
    """Draw log m at log costs x [P] of B, with the uncertainty of the form. Return [B, P].

    Draws in which A does not improve with cost are infinite with the sign of the difference.
    """
    rng = np.random.default_rng((seed, 7))
    line, ladder = fitted.difference_line, fitted.ladder
    floor_B = rng.choice(len(fitted.floors), n_draws, p=fitted.floor_weights)
    exponent_B = _draw_mean_exponents(fitted, floor_B, rng)
    offsets = ladder.x_a - ladder.x_b
    effects, point_effects = _drift_effects(ladder.x_mean, np.asarray(x, float))
    variance = line.squares / max(line.n_spare, 1) + MIN_NOISE**2
    scale_B = _draw_scales(fitted, floor_B, effects, rng)
    sigma_B = np.sqrt(
        variance[floor_B] * line.n_spare / rng.chisquare(max(line.n_spare, 1), n_draws)
    )
    # Matheron's rule: draw from the prior, then condition on the means of the sizes.
    means, totals = _size_means(fitted)
    responses_BK = means[floor_B] + exponent_B[:, None] * offsets
    drift_BW = (scale_B * exponent_B)[:, None] * rng.standard_normal((n_draws, effects.shape[1]))
    noise_BK = sigma_B[:, None] * rng.standard_normal(responses_BK.shape)
    noise_BK = noise_BK / np.sqrt(totals[floor_B])
    prior_BK = drift_BW @ effects.T
    ratios_B = scale_B * exponent_B / np.sqrt(variance[floor_B])
    weights_BK, coefficients_B2 = _generalized_lines(
        responses_BK - prior_BK - noise_BK, totals[floor_B], ratios_B, effects, fitted
    )
    corrections = np.einsum("bk,kw->bw", weights_BK, effects) * (ratios_B**2)[:, None]
    position = fitted.center - np.asarray(x, float)
    lines_BP = coefficients_B2[:, :1] + coefficients_B2[:, 1:] * position
    differences_BP = lines_BP + (drift_BW + corrections) @ point_effects.T
    exponent_a = exponent_B + 0.5 * coefficients_B2[:, 1]
    documents = np.sqrt(fitted.document_variance / line.weights.mean(1)[floor_B])
    differences_BP += (documents * rng.standard_normal(n_draws))[:, None]
    is_invalid = exponent_a < MIN_EXPONENT_FRACTION * exponent_B
    local_BP = np.where(is_invalid, 1.0, exponent_a)[:, None] * _draw_exponent_drift(
        ladder, np.asarray(x, float), n_draws, rng
    )
    with np.errstate(divide="ignore"):
        infinite_BP = np.copysign(np.inf, differences_BP)
    return np.where(is_invalid[:, None], infinite_BP, differences_BP / local_BP)


def _draw_mean_exponents(
    fitted: MultiplierFit, floor_B: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw the mean exponent of both recipes, above zero."""
    lines = fitted.mean_line
    degrees = max(lines.n_spare, 1)
    sigma_B = np.sqrt(lines.squares[floor_B] / rng.chisquare(degrees, len(floor_B)))
    error_B = sigma_B * np.sqrt(lines.covariances[floor_B, 1, 1])
    means_B = lines.coefficients[floor_B, 1]
    draws_B = means_B + error_B * rng.standard_normal(len(floor_B))
    return np.where(draws_B > MIN_EXPONENT_FRACTION * means_B, draws_B, means_B)


def _draw_scales(
    fitted: MultiplierFit, floor_B: np.ndarray, effects: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw the scale of the drift of log m from its posterior, per draw [B]."""
    line, scales = fitted.difference_line, np.array(list(DRIFT_PRIOR))
    floor = fitted.best
    means, totals = (values[floor] for values in _size_means(fitted))
    offsets = fitted.ladder.x_a - fitted.ladder.x_b
    exponent = fitted.mean_line.coefficients[floor, 1]
    sigma = np.sqrt(line.squares[floor] / max(line.n_spare, 1) + MIN_NOISE**2)
    ratios = scales * exponent / sigma
    n_scales = len(scales)
    responses = np.tile(means + exponent * offsets, (n_scales, 1))
    covariances = _covariances(np.tile(totals, (n_scales, 1)), ratios, effects)
    weights, _ = _generalized_lines(
        responses, np.tile(totals, (n_scales, 1)), ratios, effects, fitted
    )
    squares = (weights * responses).sum(1) / sigma**2
    design = _design(fitted)
    solved = np.linalg.solve(covariances, np.broadcast_to(design, (n_scales, *design.shape)))
    information = np.einsum("ki,rkj->rij", design, solved)
    log_weights = np.log(list(DRIFT_PRIOR.values())) - 0.5 * (
        squares + np.linalg.slogdet(covariances)[1] + np.linalg.slogdet(information)[1]
    )
    probabilities = np.exp(log_weights - log_weights.max())
    return rng.choice(scales, len(floor_B), p=probabilities / probabilities.sum())


def _design(fitted: MultiplierFit) -> np.ndarray:
    positions = fitted.center - fitted.ladder.x_mean
    return np.stack([np.ones_like(positions), positions], 1)


def _size_means(fitted: MultiplierFit) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean difference of each size and its total weight, both [G, K]."""
    ladder, weights = fitted.ladder, fitted.difference_line.weights
    differences = np.log(ladder.loss_a - fitted.floors[:, None]) - np.log(
        ladder.loss_b - fitted.floors[:, None]
    )
    indicators = ladder.size_index[:, None] == np.arange(ladder.n_sizes)
    totals = weights @ indicators
    return (weights * differences) @ indicators / totals, totals


def _covariances(totals: np.ndarray, ratios: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """Return the covariance of size means in units of the noise variance, [B, K, K]."""
    diagonal = np.eye(totals.shape[1]) / totals[:, None, :]
    return diagonal + (ratios**2)[:, None, None] * (effects @ effects.T)


def _generalized_lines(
    responses: np.ndarray,
    totals: np.ndarray,
    ratios: np.ndarray,
    effects: np.ndarray,
    fitted: MultiplierFit,
) -> tuple[np.ndarray, np.ndarray]:
    """Return V^-1 (y - X beta) [B, K] and beta [B, 2] by generalized least squares."""
    covariances, design = _covariances(totals, ratios, effects), _design(fitted)
    n_rows = len(responses)
    right = np.concatenate(
        [responses[:, :, None], np.broadcast_to(design, (n_rows, *design.shape))], axis=2
    )
    solved = np.linalg.solve(covariances, right)
    information = np.einsum("ki,bkj->bij", design, solved[:, :, 1:])
    moments = np.einsum("ki,bk->bi", design, solved[:, :, 0])
    coefficients = np.linalg.solve(information, moments[:, :, None])[:, :, 0]
    return solved[:, :, 0] - np.einsum("bki,bi->bk", solved[:, :, 1:], coefficients), coefficients


def _drift_effects(rows: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the effects of the cells of the drift on the rows [K, W] and the points [P, W]."""
    low, high, center = rows.min(), rows.max(), rows.mean()
    distances = MAX_LOG_FACTOR * (np.arange(1, N_OUTER_CELLS + 1) / N_OUTER_CELLS) ** 1.5
    inner = np.linspace(low, high, N_INNER_CELLS + 1)
    edges = np.concatenate([low - distances[::-1], inner, high + distances])
    middle = 0.5 * (edges[1:] + edges[:-1])
    outside = np.abs(middle - np.clip(middle, low, high))
    scale = np.sqrt(np.diff(edges)) * np.exp(-OUTER_DECAY * outside)
    rows_effects, point_effects = (
        scale
        * np.where(
            middle >= center,
            np.maximum(x[:, None] - middle, 0),
            np.maximum(middle - x[:, None], 0),
        )
        for x in (rows, points)
    )
    return rows_effects, point_effects


def _draw_exponent_drift(
    ladder: PairedLadder, x: np.ndarray, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw 1 + w(x) [B, P]: the change of the exponent of A outside the sizes, above 0.2."""
    probabilities = list(EXPONENT_DRIFT_PRIOR.values())
    scales = rng.choice(list(EXPONENT_DRIFT_PRIOR), n_draws, p=probabilities)
    rows = ladder.x_mean
    outside = np.abs(x - np.clip(x, rows.min(), rows.max()))
    # Increments of variance exp(-2 distance) per e-fold, as in form_uncertainty.
    spread = np.sqrt(0.5 * (1 - np.exp(-2 * outside)))
    drift = scales[:, None] * rng.standard_normal((n_draws, 1)) * spread
    return np.maximum(1 + drift, 0.2)
