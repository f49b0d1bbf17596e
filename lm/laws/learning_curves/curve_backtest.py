"""Back-test of the models of learning curves: each finished run is forecast from the others.

reference = curve_backtest.Reference(curves)             # fits every model to finished runs
table = reference.backtest(0.5)                          # forecasts from half of the steps
reference.predict_final("collapse", curve, until=300)
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.laws.learning_curves import curve_fit, curve_models, recorded_curves

LEVEL = 0.95
MIN_EVALUATIONS = 8  # of a finished run, to fit evaluations instead of training losses
N_SIMILAR = 8  # finished runs whose residuals correct the shared function of the collapse
MIN_FEATURE_RUNS = 3  # finished runs per feature of the prior


class Gap(NamedTuple):
    """Difference of the log of the final loss from the curve at the last step, over runs."""

    mean: float
    sd: float


@dataclasses.dataclass(frozen=True)
class ModelBacktest:
    """Errors of a model over finished runs, each forecast from the other runs.

    errors: log of forecast / measured loss [n]. scores: errors divided by their predicted standard
    deviations [n].
    """

    errors: np.ndarray
    scores: np.ndarray

    @property
    def mean_error(self) -> float:
        """Mean absolute error, relative to the loss."""
        return float(np.abs(np.expm1(self.errors)).mean())

    def without(self, index: int) -> "ModelBacktest":
        """Return the back-test without one run."""
        errors, scores = np.delete(self.errors, index), np.delete(self.scores, index)
        return dataclasses.replace(self, errors=errors, scores=scores)

    def interval_factor(self, level: float = LEVEL) -> float:
        """Return the half-width of an interval in predicted standard deviations.

        The factor is that of Student's t distribution with the measured size of the scores.
        """
        from scipy import special  # its import takes longer than that of all laws

        n = len(self.scores)
        size = np.sqrt((self.scores**2).mean() * (1 + 1 / n))
        return float(special.stdtrit(n - 1, 0.5 + level / 2) * size)


class Reference:
    """Models that are fitted to finished runs.

    Without enough evaluations, the models describe training losses, and the final held-out loss
    follows from the gap of the finished runs.
    """

    def __init__(self, curves: Sequence[recorded_curves.LearningCurve]):
        self.uses_training_losses = any(
            len(curve.fitted_points()[0]) < MIN_EVALUATIONS for curve in curves
        )
        self.curves = [self.select_losses(curve) for curve in curves]
        self._inputs = np.array([_run_inputs(curve) for curve in curves])
        self._means, self._scales = self._inputs.mean(0), self._inputs.std(0)
        is_varied = self._scales > 1e-6
        n_features = min(int(is_varied.sum()), max(len(curves) // MIN_FEATURE_RUNS - 1, 0))
        self._selected = np.flatnonzero(is_varied)[:n_features]
        self._features = np.array([self.features(curve) for curve in self.curves])  # [n, f]
        self._points = [curve_fit.select_points(curve) for curve in self.curves]
        self._backtests: dict[tuple[str, float], ModelBacktest] = {}

    def select_losses(self, curve: recorded_curves.LearningCurve) -> recorded_curves.LearningCurve:
        """Return the curve of the losses that the models describe."""
        return curve.with_training_losses() if self.uses_training_losses else curve

    def features(self, curve: recorded_curves.LearningCurve) -> np.ndarray:
        """Return the features [f] of a run: 1 and its scaled inputs, see _run_inputs."""
        scaled = (_run_inputs(curve) - self._means)[self._selected] / self._scales[self._selected]
        return np.concatenate([[1.0], scaled])

    @functools.cached_property
    def fits(self) -> dict[str, tuple[curve_fit.CurveFit, curve_fit.Statistics]]:
        """Fit of each model to all runs, with the best constants of its grid."""
        return {
            model: curve_fit.fit_model(self._points, model, self._features)
            for model in curve_models.MODELS
        }

    def predict_final(
        self, model: str, curve: recorded_curves.LearningCurve, until: float
    ) -> curve_fit.LogLoss:
        """Return the distribution of the final loss of a run from its losses until a step."""
        return self._predict(self.fits[model][0], curve, until, self._gap(model))

    def backtest(self, fraction: float) -> dict[str, ModelBacktest]:
        """Return the back-test of each model. fraction: of the steps that a forecast uses."""
        for model in curve_models.MODELS:
            if (model, fraction) not in self._backtests:
                self._backtests[model, fraction] = self._backtest_model(model, fraction)
        return {model: self._backtests[model, fraction] for model in curve_models.MODELS}

    def _backtest_model(self, model: str, fraction: float) -> ModelBacktest:
        errors, scores = [], []
        for i, curve in enumerate(self.curves):
            gap = self._gap(model, i)
            until = fraction * curve.n_steps
            prediction = self._predict(self._left_out_fits[model][i], curve, until, gap, i)
            error = prediction.mean - np.log(curve.final_loss)
            errors.append(error)
            scores.append(error / prediction.sd)
        return ModelBacktest(np.array(errors), np.array(scores))

    @functools.cached_property
    def _left_out_fits(self) -> dict[str, list[curve_fit.CurveFit]]:
        """Fits of each model without one run, by the index of the run."""
        fits = {}
        for model, (fitted, statistics) in self.fits.items():
            fits[model] = []
            for i in range(len(self.curves)):
                included = np.arange(len(self.curves)) != i
                fits[model].append(
                    curve_fit.fit_statistics(
                        statistics, fitted, included, curve_fit.N_WARM_ITERATIONS
                    )
                )
        return fits

    def _predict(
        self,
        fitted: curve_fit.CurveFit,
        curve: recorded_curves.LearningCurve,
        until: float,
        gap: Gap,
        left_out: int | None = None,
    ) -> curve_fit.LogLoss:
        """Return the distribution of the log of the final loss of a run.

        left_out: index of a finished run whose residuals are not used.
        """
        features, similar = self.features(curve), []
        if curve_models.MODELS[fitted.model].is_shared_curve:
            order = np.argsort(np.linalg.norm(self._features - features, axis=1), kind="stable")
            nearest = order[order != left_out] if left_out is not None else order
            similar = [
                curve_fit.run_residuals(fitted, self._points[i], self._features[i])
                for i in nearest[:N_SIMILAR]
            ]
        mean, sd = curve_fit.predict_final_loss(fitted, curve, features, until, similar)
        return curve_fit.LogLoss(mean + gap.mean, float(np.hypot(sd, gap.sd)))

    def _gap(self, model: str, left_out: int | None = None) -> Gap:
        """Return the gap over all runs except one. The gap of curves of evaluations is 0."""
        gaps = np.delete(self._gaps[model], [] if left_out is None else left_out)
        return Gap(float(gaps.mean()), float(gaps.std(ddof=1)))

    @functools.cached_property
    def _gaps(self) -> dict[str, np.ndarray]:
        """Gap of each run and model [n]."""
        gaps = {model: np.zeros(len(self.curves)) for model in curve_models.MODELS}
        if self.uses_training_losses:
            for model, (fitted, _) in self.fits.items():
                for i, curve in enumerate(self.curves):
                    prediction = self._predict(fitted, curve, np.inf, Gap(0.0, 0.0), i)
                    gaps[model][i] = np.log(curve.final_loss) - prediction.mean
        return gaps


def _run_inputs(curve: recorded_curves.LearningCurve) -> np.ndarray:
    """Return logs of size, peak and mean learning rate, tokens per step and tokens of a run.

    The mean learning rate is relative to the peak, and describes the schedule.
    """
    peak, n_tokens = curve.rates.max(), curve.n_steps * curve.batch_tokens
    mean = curve.rates.mean() / peak
    return np.log([curve.n_params, peak, mean, curve.batch_tokens, n_tokens])
