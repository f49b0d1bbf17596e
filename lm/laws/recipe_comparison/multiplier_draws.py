"""Draws of the compute multiplier at any cost, with the uncertainty of the form.

The model is that of multiplier.py. The drift g of log m and the drift w of the exponent of A have
the prior of `form_uncertainty`: slopes change by independent increments, which decrease outside
the sizes.

Legend: n pairs, K sizes, G values of E, B draws, P points, W cells.
"""

import numpy as np

from lm.laws.recipe_comparison import multiplier

# Prior of the scale of g: change of d log m / d log C per square root of an e-fold.
DRIFT_PRIOR = {0.0: 0.5, 0.02: 0.25, 0.06: 0.25}
EXPONENT_DRIFT_PRIOR = {0.0: 0.7, 0.15: 0.15, 0.3: 0.15}  # as in form_uncertainty.PRIOR
OUTER_DECAY = 0.2  # of the increments of g outside the sizes, per e-fold
N_INNER_CELLS, N_OUTER_CELLS = 12, 12
MAX_LOG_FACTOR = np.log(1e4)  # range of the cells beyond the sizes
MIN_EXPONENT_FRACTION = 0.05  # draws with a smaller exponent of A than this fraction are invalid


def draw_multipliers(
    fitted: multiplier.MultiplierFit, x: np.ndarray, n_draws: int = 2000, seed: int = 0
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
    variance = line.squares / max(line.n_spare, 1) + multiplier.MIN_NOISE**2
    scale_B = _draw_scales(fitted, floor_B, effects, rng)
    sigma_B = np.sqrt(
        variance[floor_B] * line.n_spare / rng.chisquare(max(line.n_spare, 1), n_draws)
    )
    # Matheron's rule: draw from the prior, then condition on the means of the sizes.
    means, totals = multiplier.size_means(fitted)
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
    fitted: multiplier.MultiplierFit, floor_B: np.ndarray, rng: np.random.Generator
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
    fitted: multiplier.MultiplierFit,
    floor_B: np.ndarray,
    effects: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw the scale of the drift of log m from its posterior, per draw [B]."""
    line, scales = fitted.difference_line, np.array(list(DRIFT_PRIOR))
    floor = fitted.best
    means, totals = (values[floor] for values in multiplier.size_means(fitted))
    offsets = fitted.ladder.x_a - fitted.ladder.x_b
    exponent = fitted.mean_line.coefficients[floor, 1]
    sigma = np.sqrt(line.squares[floor] / max(line.n_spare, 1) + multiplier.MIN_NOISE**2)
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


def _design(fitted: multiplier.MultiplierFit) -> np.ndarray:
    positions = fitted.center - fitted.ladder.x_mean
    return np.stack([np.ones_like(positions), positions], 1)


def _covariances(totals: np.ndarray, ratios: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """Return the covariance of size means in units of the noise variance, [B, K, K]."""
    diagonal = np.eye(totals.shape[1]) / totals[:, None, :]
    return diagonal + (ratios**2)[:, None, None] * (effects @ effects.T)


def _generalized_lines(
    responses: np.ndarray,
    totals: np.ndarray,
    ratios: np.ndarray,
    effects: np.ndarray,
    fitted: multiplier.MultiplierFit,
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
    ladder: multiplier.PairedLadder, x: np.ndarray, n_draws: int, rng: np.random.Generator
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
