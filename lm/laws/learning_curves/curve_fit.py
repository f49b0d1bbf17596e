"""Fit of a model of learning curves to several runs, and the forecast of a run.

The coefficients a, b and g of a run have a normal prior. Its mean is linear in the logs of up to
five inputs of a run: size, peak and mean learning rate, tokens per step, and tokens. Its covariance
is that of the fitted runs. The residuals are correlated along a curve. Prior, shared function, and
size of the residuals are fitted by expectation-maximization.

Legend: n runs, k points of a curve, q columns of a curve, p = 3 coefficients, f features of a run.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.laws.learning_curves import curve_models, recorded_curves

N_ITERATIONS = 20
N_WARM_ITERATIONS = 12  # from the fit of all runs, without one run
CORRELATED_SHARE = 0.7  # of the variance of a residual
CORRELATION_LENGTH = 0.5  # in units of log S
CURVATURE_PENALTY = 0.02  # of the shared function, relative to its range
FEATURE_RIDGE = 0.3  # shrinks the effect of a feature with few runs
SIMILARITY_LENGTH = 3.0  # distance of the scaled features of runs with similar residuals
MIN_PRIOR_SD = 0.01  # of the coefficients around their prior mean
MIN_RESIDUAL = 3e-4  # relative to the loss


@dataclasses.dataclass
class CurveFit:
    """Model that is fitted to finished runs."""

    model: str
    constants: curve_models.Constants
    knots: np.ndarray  # of the shared function; empty for a power law
    u: np.ndarray  # [q - 2] values at the knots, or 1 for a power law
    weights: np.ndarray  # [f, p] effect of the features on the coefficients
    covariance: np.ndarray  # [p, p] of the coefficients around their prior mean
    gram: np.ndarray  # [f, f] of the features of the fitted runs
    residual: float  # standard deviation, relative to the loss


class FittedPoints(NamedTuple):
    """Points of a finished run that are fitted."""

    curve: recorded_curves.LearningCurve
    steps: np.ndarray  # [k]
    log_losses: np.ndarray  # [k]
    inverse: np.ndarray  # [k, k] of the correlation of the residuals


class Statistics(NamedTuple):
    """Sufficient statistics of n curves of one model, for unit residuals."""

    gram: np.ndarray  # [n, q, q]
    products: np.ndarray  # [n, q] with the logs of the losses
    squares: np.ndarray  # [n]
    counts: np.ndarray  # [n]
    features: np.ndarray  # [n, f]
    knots: np.ndarray


def select_points(curve: recorded_curves.LearningCurve) -> FittedPoints:
    """Return the points of a finished run that are fitted."""
    steps, log_losses = curve.fitted_points()
    inverse = np.linalg.inv(correlation(curve_x(curve, steps, 0.0)))
    return FittedPoints(curve, steps, log_losses, inverse)


def curve_x(curve: recorded_curves.LearningCurve, steps: np.ndarray, exponent: float) -> np.ndarray:
    """Return x = log S - exponent log T at steps [k]."""
    summed = curve_models.sum_rates(curve.rates)[steps - 1] * curve.batch_tokens
    return np.log(summed) - exponent * np.log(len(curve.rates) * curve.batch_tokens)


def correlation(x: np.ndarray) -> np.ndarray:
    """Return the correlation [k, k] of residuals at the positions x."""
    distances = np.abs(x[:, None] - x)
    smooth = np.exp(-distances / CORRELATION_LENGTH)
    return CORRELATED_SHARE * smooth + (1 - CORRELATED_SHARE) * np.eye(len(x))


def curve_basis(
    curve: recorded_curves.LearningCurve,
    steps: np.ndarray,
    model: str,
    shape_constant: float,
    knots: np.ndarray,
) -> np.ndarray:
    """Return the columns of a model at steps [k] without R: 1, basis of u."""
    if curve_models.MODELS[model].is_shared_curve:
        basis = curve_models.hat_functions(curve_x(curve, steps, shape_constant), knots)
    else:
        x = curve_x(curve, steps, 0.0) - np.log(curve_models.REFERENCE_TOKENS)
        basis = np.exp(-shape_constant * x)[:, None]
    return np.concatenate([np.ones((len(steps), 1)), basis], 1)


def place_knots(points: Sequence[FittedPoints], model: str, shape_constant: float) -> np.ndarray:
    """Return the knots of the shared function of a model; none for a power law."""
    if not curve_models.MODELS[model].is_shared_curve:
        return np.zeros(0)
    x = np.concatenate([curve_x(p.curve, p.steps, shape_constant) for p in points])
    return np.unique(np.quantile(x, np.linspace(0, 1, curve_models.N_KNOTS)))


def collect_statistics(
    points: Sequence[FittedPoints],
    bases: Sequence[np.ndarray],
    benefits: Sequence[np.ndarray],
    features: np.ndarray,
    knots: np.ndarray,
) -> Statistics:
    """Return the statistics of finished runs.

    bases, benefits: the columns and R of each run at its points. features: [n, f].
    """
    gram, products, squares = [], [], []
    for run, basis, benefit in zip(points, bases, benefits, strict=True):
        columns = np.concatenate([basis, -benefit[:, None]], 1)
        weighted = run.inverse @ columns
        gram.append(columns.T @ weighted)
        products.append(weighted.T @ run.log_losses)
        squares.append(run.log_losses @ run.inverse @ run.log_losses)
    counts = [len(run.steps) for run in points]
    return Statistics(
        np.array(gram), np.array(products), np.array(squares), np.array(counts), features, knots
    )


def fit_model(
    points: Sequence[FittedPoints], model: str, features: np.ndarray
) -> tuple[CurveFit, Statistics]:
    """Fit a model to finished runs. Return the fit with the smallest residuals.

    The constants of R are selected first, with the first constant of the shape.
    """
    form = curve_models.MODELS[model]
    included = np.ones(len(points), bool)
    fits: dict[curve_models.Constants, tuple[CurveFit, Statistics]] = {}
    benefit_constants = form.benefit_constants
    for shape_constant in form.shape_constants:
        knots = place_knots(points, model, shape_constant)
        bases = [curve_basis(p.curve, p.steps, model, shape_constant, knots) for p in points]
        for constants in benefit_constants:
            benefits = [form.benefit(p.curve.rates, p.steps, constants) for p in points]
            statistics = collect_statistics(points, bases, benefits, features, knots)
            start = initial_fit(statistics, model, (*constants, shape_constant))
            fitted = fit_statistics(statistics, start, included, N_ITERATIONS)
            fits[fitted.constants] = fitted, statistics
        best = min(fits, key=lambda constants: fits[constants][0].residual)
        benefit_constants = (best[:-1],)
    return fits[best]


def initial_fit(statistics: Statistics, model: str, constants: curve_models.Constants) -> CurveFit:
    """Return the starting values of fit_statistics."""
    n_features = statistics.features.shape[1]
    u = np.linspace(1, 0, len(statistics.knots)) if len(statistics.knots) else np.ones(1)
    weights = np.zeros((n_features, 3))
    covariance = np.diag([1.0, 1.0, 0.1]) ** 2
    return CurveFit(
        model, constants, statistics.knots, u, weights, covariance, np.eye(n_features), 0.01
    )


def ridge_gram(features: np.ndarray) -> np.ndarray:
    """Return the matrix [f, f] of a ridge regression on features [n, f]; the first is 1."""
    penalty = np.diag([1e-6] + [FEATURE_RIDGE] * (features.shape[1] - 1))
    return features.T @ features + penalty


def fit_statistics(
    statistics: Statistics, start: CurveFit, included: np.ndarray, n_iterations: int
) -> CurveFit:
    """Return the fit of the included runs. included: bool [n]."""
    gram, products = statistics.gram[included], statistics.products[included]
    squares, counts = statistics.squares[included], statistics.counts[included]
    features = statistics.features[included]
    n, n_features = features.shape
    fitted = dataclasses.replace(start, gram=ridge_gram(features))
    for _ in range(n_iterations):
        # --- Coefficients of each run ---
        project = _projection(fitted.u)
        gram_p = project.T @ gram @ project
        prior = np.linalg.inv(fitted.covariance)
        precision = gram_p / fitted.residual**2 + prior
        means = features @ fitted.weights
        right = products @ project / fitted.residual**2 + means @ prior
        posterior = np.linalg.inv(precision)
        coefficients = (posterior @ right[:, :, None])[:, :, 0]
        # --- Size of the residuals ---
        expanded = coefficients @ project.T
        quadratic = squares - 2 * (expanded * products).sum(1)
        quadratic += np.einsum("nq,nqr,nr->n", expanded, gram, expanded)
        quadratic += np.einsum("npq,nqp->n", gram_p, posterior)
        residual = max(np.sqrt(quadratic.sum() / counts.sum()), MIN_RESIDUAL)
        # --- Prior of the coefficients ---
        weights = np.linalg.solve(fitted.gram, features.T @ coefficients)
        errors = coefficients - features @ weights
        n_free = max(n - n_features, 1)
        covariance = errors.T @ errors / n_free + posterior.mean(0) * n / n_free
        covariance += MIN_PRIOR_SD**2 / n * np.eye(3)
        fitted = dataclasses.replace(
            fitted, weights=weights, covariance=covariance, residual=float(residual)
        )
        if len(fitted.knots):
            fitted.u = _fit_shared_function(gram, products, coefficients)
    return fitted


def _projection(u: np.ndarray) -> np.ndarray:
    """Return the matrix [q, 3] from a, b and g to the coefficients of the columns."""
    matrix = np.zeros((len(u) + 2, 3))
    matrix[0, 0], matrix[1:-1, 1], matrix[-1, 2] = 1, u, 1
    return matrix


def _fit_shared_function(gram, products, coefficients) -> np.ndarray:
    """Return the values of u at the knots, with range 1 and the last value 0."""
    a, b, g = coefficients.T
    inner = slice(1, -1)
    matrix = np.einsum("n,nqr->qr", b**2, gram[:, inner, inner])
    other = gram[:, inner, 0] * a[:, None] + gram[:, inner, -1] * g[:, None]
    right = (b[:, None] * (products[:, inner] - other)).sum(0)
    curvature = np.diff(np.eye(len(matrix)), 2, axis=0)
    scale = np.trace(matrix) / len(matrix)
    matrix = matrix + CURVATURE_PENALTY * scale * curvature.T @ curvature
    u = np.linalg.solve(matrix + 1e-9 * scale * np.eye(len(matrix)), right)
    return (u - u[-1]) / (u[0] - u[-1])


class Residuals(NamedTuple):
    """Residuals of a finished run from the fit of a model."""

    x: np.ndarray  # [k] log S
    values: np.ndarray  # [k]
    features: np.ndarray  # [f]


def run_residuals(fitted: CurveFit, points: FittedPoints, features: np.ndarray) -> Residuals:
    """Return the residuals of a finished run from its posterior mean."""
    matrix = model_matrix(fitted, points.curve, points.steps)
    prior = np.linalg.inv(fitted.covariance)
    weighted = points.inverse @ matrix / fitted.residual**2
    right = weighted.T @ points.log_losses + prior @ (features @ fitted.weights)
    coefficients = np.linalg.solve(weighted.T @ matrix + prior, right)
    x = curve_x(points.curve, points.steps, 0.0)
    return Residuals(x, points.log_losses - matrix @ coefficients, features)


def model_matrix(
    fitted: CurveFit, curve: recorded_curves.LearningCurve, steps: np.ndarray
) -> np.ndarray:
    """Return the matrix [k, 3] that multiplies a, b and g at steps of a run."""
    *benefit_constants, shape_constant = fitted.constants
    benefit = curve_models.MODELS[fitted.model].benefit(
        curve.rates, steps, tuple(benefit_constants)
    )
    basis = curve_basis(curve, steps, fitted.model, shape_constant, fitted.knots)
    return np.concatenate([basis, -benefit[:, None]], 1) @ _projection(fitted.u)


class LogLoss(NamedTuple):
    """Normal distribution of the log of a loss."""

    mean: float
    sd: float


def predict_final_loss(
    fitted: CurveFit,
    curve: recorded_curves.LearningCurve,
    features: np.ndarray,
    until: float,
    similar: Sequence[Residuals] = (),
) -> LogLoss:
    """Return the distribution of the log loss at the last step, given the losses until a step.

    similar: residuals of finished runs. Residuals of two runs at equal S are correlated with
    exp(-d / SIMILARITY_LENGTH), where d is the distance of their features.
    """
    steps, log_losses = curve.fitted_points(until)
    all_steps = np.append(steps, curve.n_steps)
    matrix = model_matrix(fitted, curve, all_steps)
    means = matrix @ (features @ fitted.weights)
    n = len(steps)
    # The points of the run come first, its last step at index n. Those of other runs follow.
    x = np.concatenate([curve_x(curve, all_steps, 0.0), *(other.x for other in similar)])
    all_features = np.concatenate(
        [np.tile(features, (n + 1, 1))]
        + [np.tile(other.features, (len(other.x), 1)) for other in similar]
    )
    distances = np.linalg.norm(all_features[:, None] - all_features, axis=2)
    smooth = np.exp(-np.abs(x[:, None] - x) / CORRELATION_LENGTH - distances / SIMILARITY_LENGTH)
    covariance = CORRELATED_SHARE * smooth + (1 - CORRELATED_SHARE) * np.eye(len(x))
    covariance *= fitted.residual**2
    spread = 1 + features @ np.linalg.solve(fitted.gram, features)
    covariance[: n + 1, : n + 1] += spread * matrix @ fitted.covariance @ matrix.T
    known = np.delete(np.arange(len(x)), n)
    deviations = np.concatenate([log_losses - means[:n], *(other.values for other in similar)])
    gain = np.linalg.solve(covariance[np.ix_(known, known)], covariance[known, n])
    variance = covariance[n, n] - gain @ covariance[known, n]
    return LogLoss(float(means[n] + gain @ deviations), float(np.sqrt(variance)))
