"""Forecasts of all unfinished and all finished runs of sweeps.

    forecasts = sweep_forecasts.SweepForecasts()
    forecasts.forecast_unfinished(lm.load_runs("runs"))     # {name: LossForecast or reason}
    sweep_forecasts.forecast_finished(curves, fraction=0.5)   # each run from the others
"""

from collections.abc import Mapping, Sequence

from lm.laws.learning_curves import loss_forecast, recorded_curves

ENDED = ("done", "diverged")  # statuses without a forecast


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

    def _forecast(
        self, row: Mapping, finished: Sequence[Mapping]
    ) -> loss_forecast.LossForecast | str:
        key = tuple(other["name"] for other in finished)
        try:
            if key not in self._forecasters:
                self._forecasters[key] = _fit_finished(finished)
            forecaster = self._forecasters[key]
            if isinstance(forecaster, str):
                return forecaster
            (curve,) = recorded_curves.read_curves([row])
            return forecaster.forecast(curve)
        except ValueError as error:
            return str(error)


def _fit_finished(finished: Sequence[Mapping]) -> loss_forecast.Forecaster | str:
    """Return the models of finished runs, or the reason for their absence."""
    try:
        return loss_forecast.Forecaster(recorded_curves.read_curves(finished))
    except ValueError as error:
        return str(error)


def _sweep_name(row: Mapping) -> str:
    return str(row["name"]).rpartition("/")[0]


def forecast_finished(
    curves: Sequence[recorded_curves.LearningCurve], fraction: float
) -> list[loss_forecast.LossForecast]:
    """Forecast each finished run from the other finished runs, from a fraction of its steps.

    The other runs alone select the model and calibrate the interval.
    """
    finished = [curve for curve in curves if curve.is_finished]
    forecasts = []
    for i, curve in enumerate(finished):
        forecaster = loss_forecast.Forecaster(finished[:i] + finished[i + 1 :])
        forecasts.append(forecaster.forecast(curve.until(fraction * curve.n_steps)))
    return forecasts
