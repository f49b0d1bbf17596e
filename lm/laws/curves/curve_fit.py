"""Fit of the models of learning curves to several runs.

The constants of a model are shared by all runs: alpha and the constants of the benefit R. Each run
has its own floor, amplitude and gain, in which the model is linear, and an offset of its training
losses. Errors are relative: the residuals are those of loss / measured loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize

from lm.laws.curves import curve_models

Run = Sequence[curve_models.LearningCurve]  # curves of one run: trunk, branches, training, held-out
ALPHA = 0.5  # starting value
ALPHA_BOUNDS = (0.05, 3.0)
PRIOR_SPREAD = 0.1  # relative standard deviation that is added to the prior of the coefficients
MIN_NOISE = 1e-4  # relative
N_COEFFICIENTS = 4  # floor, amplitude, gain, offset of training losses


class CurveFit(NamedTuple):
    """Model that is fitted to runs."""

    model: str
    alpha: float
    constants: np.ndarray
    coefficients: np.ndarray  # [runs, 4] floor, amplitude at the end of the run, gain, offset
    noise: float  # relative standard deviation of a held-out loss
    training_noise: float  # relative standard deviation of a training loss


def design_matrix(
    curve: curve_models.LearningCurve,
    steps: np.ndarray,
    model: str,
    alpha: float,
    constants: Sequence[float],
) -> np.ndarray:
    """Return the columns [k, 4] that multiply floor, amplitude, gain and offset.

    The amplitude is that at the last step of the curve's run.
    """
    summed = curve_models.summed_rate(curve.rates)
    benefit = curve_models.MODELS[model].benefit(curve, steps, constants)
    is_training = np.full(len(steps), float(curve.is_training))
    power = (summed[steps - 1] / REFERENCE_STEPS) ** -alpha
    return np.stack([np.ones(len(steps)), power, -benefit, is_training], 1)


REFERENCE_STEPS = 1000.0  # S at which the amplitude is defined


def fit_runs(runs: Sequence[Run], model: str) -> CurveFit:
    """Fit a model to finished runs."""
    form = curve_models.MODELS[model]
    start = np.log([ALPHA, *form.start.values()])
    bounds = np.log(np.maximum([ALPHA_BOUNDS, *form.bounds.values()], 1e-3))
    noise = _initial_noise(runs)

    def residuals(theta):
        alpha, *constants = np.exp(theta)
        return np.concatenate(
            [_fit_run(run, model, alpha, constants, noise)[1] for run in runs]
            + [(theta - start) / PRIOR_LOG_SD]
        )

    solution = optimize.least_squares(
        residuals, np.clip(start, *(bounds.T + [[1e-6], [-1e-6]])), bounds=bounds.T, diff_step=1e-3
    )
    alpha, *constants = np.exp(solution.x)
    fitted = [_fit_run(run, model, alpha, constants, noise) for run in runs]
    coefficients = np.stack([c for c, _ in fitted])
    return CurveFit(model, alpha, np.array(constants), coefficients, *noise)


PRIOR_LOG_SD = 1.5


def predict_loss(fitted: CurveFit, run: Run, rates: np.ndarray) -> float:
    """Return the held-out loss at the end of a run with the given learning rates of all steps.

    run: the measured curves. Their coefficients have a normal prior: mean and covariance of the
    coefficients of the fitted runs.
    """
    mean = fitted.coefficients.mean(0)
    centered = fitted.coefficients - mean
    covariance = centered.T @ centered / max(len(centered) - 1, 1)
    covariance += np.diag((PRIOR_SPREAD * np.maximum(np.abs(mean), 0.1 * mean[0])) ** 2)
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    rows, targets = [root], [root @ mean]
    for curve in run:
        sd = fitted.training_noise if curve.is_training else fitted.noise
        weight = 1 / (sd * curve.losses)
        matrix = design_matrix(curve, curve.steps, fitted.model, fitted.alpha, fitted.constants)
        rows.append(matrix * weight[:, None])
        targets.append(curve.losses * weight)
    coefficients = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)[0]
    end = curve_models.LearningCurve(np.array([len(rates)]), np.array([np.nan]), rates)
    matrix = design_matrix(end, end.steps, fitted.model, fitted.alpha, fitted.constants)
    return float((matrix @ coefficients)[0])


def _fit_run(run, model, alpha, constants, noise):
    """Return the coefficients [4] of a run and its scaled residuals."""
    rows, targets = [], []
    for curve in run:
        weight = 1 / (noise[int(curve.is_training)] * curve.losses)
        matrix = design_matrix(curve, curve.steps, model, alpha, constants)
        rows.append(matrix * weight[:, None])
        targets.append(curve.losses * weight)
    matrix, target = np.concatenate(rows), np.concatenate(targets)
    # The offset may have any sign, the other coefficients are not negative.
    solution, _ = optimize.nnls(np.concatenate([matrix, -matrix[:, -1:]], 1), target)
    coefficients = np.append(solution[:3], solution[3] - solution[4])
    return coefficients, matrix @ coefficients - target


def _initial_noise(runs):
    """Return the relative noise of held-out and of training losses, from second differences."""
    noise = []
    for is_training in (False, True):
        squares, count = 0.0, 0
        for run in runs:
            for curve in run:
                if curve.is_training == is_training and len(curve.losses) >= 5:
                    logs = np.log(curve.losses)
                    second = logs[2:] - 2 * logs[1:-1] + logs[:-2]
                    squares, count = squares + (second**2).sum() / 6, count + len(second)
        noise.append(max((squares / count) ** 0.5 if count else 0.0, 1e-3))
    return noise[0], noise[1]
