"""Forecasts of all unfinished and all finished runs of sweeps.

forecasts = sweep_forecasts.SweepForecasts()
forecasts.forecast_unfinished(lm.load_runs("runs"))     # {name: LossForecast or reason}
sweep_forecasts.forecast_finished(forecaster, fraction=0.5)   # each run from the others
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.config.schedules import batch_size_schedule
from lm.laws.learning_curves import curve_backtest, loss_forecast, recorded_curves

ENDED = ("done", "diverged")  # statuses without a forecast
WARMUP_REASON = "its batch size changes"


class SweepForecasts:
    """Forecasts of the unfinished runs of sweeps. Models are fitted once per set of finished runs.

    The runs of a sweep have equal folders in their names.
    """

    def __init__(self):
        self._forecasters: dict[tuple[str, ...], loss_forecast.Forecaster | str] = {}

    def forecast_unfinished(
        self, rows: Sequence[Mapping]
    ) -> dict[str, loss_forecast.LossForecast | str]:
        """Return the forecast of each unfinished run by name, or the reason for its absence."""
        results: dict[str, loss_forecast.LossForecast | str] = {}
        for row in rows:
            if row["status"] not in ENDED:
                finished = [
                    other
                    for other in rows
                    if other["status"] == "done" and _sweep_name(other) == _sweep_name(row)
                ]
                results[row["name"]] = self._forecast(row, finished)
        return results

    def fit_finished(self, finished: Sequence[Mapping]) -> loss_forecast.Forecaster | str:
        """Return the models of finished runs, or the reason for their absence.

        Runs with a warm-up of the batch size are left out.
        """
        key = tuple(row["name"] for row in finished)
        if key not in self._forecasters:
            try:
                constant = [row for row in finished if not row.get(batch_size_schedule.FIELD)]
                excluded = [
                    (row["name"], WARMUP_REASON)
                    for row in finished
                    if row.get(batch_size_schedule.FIELD)
                ]
                curves = recorded_curves.read_curves(constant)
                self._forecasters[key] = loss_forecast.Forecaster(curves, excluded)
            except ValueError as error:
                self._forecasters[key] = str(error)
        return self._forecasters[key]

    def _forecast(
        self, row: Mapping, finished: Sequence[Mapping]
    ) -> loss_forecast.LossForecast | str:
        if row.get(batch_size_schedule.FIELD):
            return WARMUP_REASON
        forecaster = self.fit_finished(finished)
        if isinstance(forecaster, str):
            return forecaster
        try:
            (curve,) = recorded_curves.read_curves([row])
            return forecaster.forecast(curve)
        except ValueError as error:
            return str(error)


def _sweep_name(row: Mapping) -> str:
    return str(row["name"]).rpartition("/")[0]


class FinishedForecast(NamedTuple):
    """Forecast of a finished run from other runs, with its result. Losses in nats per token."""

    name: str
    model: str
    value: float
    lo: float
    hi: float
    baseline: float
    measured: float


def forecast_finished(
    forecaster: loss_forecast.Forecaster, fraction: float, level: float = curve_backtest.LEVEL
) -> list[FinishedForecast]:
    """Forecast each finished run from the other finished runs, from a fraction of its steps.

    The back-test of the other runs selects the model and calibrates the interval. Only the
    constants that all runs share are those of all runs.
    """
    backtests = forecaster.reference.backtest(fraction)
    forecasts = []
    for i, curve in enumerate(forecaster.finished):
        others = {name: backtest.without(i) for name, backtest in backtests.items()}
        model = min(others, key=lambda name: others[name].mean_error)
        logs = {name: np.log(curve.final_loss) + b.errors[i] for name, b in backtests.items()}
        sd = abs(backtests[model].errors[i] / backtests[model].scores[i])
        half_width = others[model].interval_factor(level) * sd
        value, lo, hi = np.exp(logs[model] + np.array([0, -half_width, half_width])).tolist()
        baseline = float(np.exp(logs[loss_forecast.BASELINE]))
        forecasts.append(
            FinishedForecast(curve.name, model, value, lo, hi, baseline, curve.final_loss)
        )
    return forecasts
