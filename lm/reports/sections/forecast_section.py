"""Section of the report about forecasts of final losses during the runs."""

from typing import Any

import numpy as np
from markupsafe import Markup

from lm.laws.learning_curves import loss_forecast, sweep_forecasts
from lm.reports import html, summary
from lm.reports.plots import elements

FRACTION = 0.5  # of the steps from which finished runs are forecast
MAX_RUNS = 30  # finished runs that are forecast, each in a quarter of a second
SIMPLE = "simple forecast"
NOTE = (
    "Each finished run is forecast from half of its steps and from the other finished runs, which"
    " select the model of the learning curve. The simple forecast is a power law of the summed"
    " learning rate minus the gain of a lower rate. The models multi_power and annealing add a"
    " memory of earlier rates to it, and in collapse all runs share one normalized curve. Losses"
    " are in nats per token, intervals are 95%, and an error is (forecast - result) / result."
)


def loss_forecasts(sweep: summary.SweepSummary) -> Markup:
    """Return the forecasts of unfinished runs, and those of finished runs with their results."""
    models = sweep_forecasts.SweepForecasts()
    parts = [_unfinished_runs(sweep, models)]
    done = [row for row in sweep.rows if row["status"] == "done"]
    finished = select_evenly(done, MAX_RUNS)
    forecaster = models.fit_finished(finished)
    if isinstance(forecaster, str):
        return html.join_html([*parts, html.paragraph(f"No forecasts: {forecaster}.", "muted")])
    forecasts = sweep_forecasts.forecast_finished(forecaster, FRACTION)
    names = {row["name"]: elements.short_run_name(row) for row in finished}
    lines = [_finished_line(forecast, names[forecast.name]) for forecast in forecasts]
    errors = np.array([[f.value, f.baseline] for f in forecasts])
    errors = np.abs(errors / np.array([[f.measured] for f in forecasts]) - 1).mean(0)
    verdict = "smaller" if errors[0] < errors[1] else "not smaller"
    n_inside = sum(f.lo <= f.measured <= f.hi for f in forecasts)
    result = (
        f"The mean error is {errors[0]:.2%}, {verdict} than that of the simple forecast,"
        f" {errors[1]:.2%}. {n_inside} of {len(forecasts)} results are inside their interval."
    )
    if len(finished) < len(done):
        result += f" Shown and used: {len(finished)} of {len(done)} finished runs."
    left_out = [f"{name}: {reason}." for name, reason in forecaster.excluded]
    formats = {
        **dict.fromkeys(("forecast", SIMPLE, "result"), "{:.4f}".format),
        "error": "{:+.2%}".format,
    }
    return html.join_html(
        [
            *parts,
            html.paragraph(result),
            html.html_table(lines, formats, is_sortable=True),
            html.paragraph(NOTE, "muted"),
            *(html.paragraph(f"Left out: {text}", "muted") for text in left_out),
        ]
    )


def select_evenly(rows: list[dict], n_rows: int) -> list[dict]:
    """Return at most n_rows rows at equal distances in the list, with the first and the last."""
    if len(rows) <= n_rows:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, n_rows).round().astype(int)]


def _finished_line(forecast: sweep_forecasts.FinishedForecast, name: str) -> dict[str, Any]:
    """Return the table row of a finished run."""
    return {
        "run": name,
        "forecast": forecast.value,
        "95% interval": f"{forecast.lo:.4f} to {forecast.hi:.4f}",
        "result": forecast.measured,
        "error": forecast.value / forecast.measured - 1,
        "model": SIMPLE if forecast.model == "baseline" else forecast.model,
        SIMPLE: forecast.baseline,
    }


def _unfinished_runs(sweep: summary.SweepSummary, models: sweep_forecasts.SweepForecasts) -> Markup:
    """Return a table of the forecasts of unfinished runs, and notes on flagged runs."""
    results = models.forecast_unfinished(sweep.rows)
    lines, notes = [], []
    for name, result in results.items():
        if not isinstance(result, loss_forecast.LossForecast):
            continue  # the section states the reason for the sweep
        lines.append(
            {
                "unfinished run": name.rpartition("/")[2],
                "step": f"{result.step:,} of {result.n_steps:,}",
                "forecast": f"{result.value:.4f}",
                "95% interval": f"{result.lo:.4f} to {result.hi:.4f}",
                SIMPLE: f"{result.baseline.value:.4f}",
                "curve": "unexpected" if result.check.is_flagged else "expected",
            }
        )
        if result.check.is_flagged:
            notes.append(
                html.paragraph(f"{name} leaves its expected curve: {result.check}.", "note")
            )
    return html.join_html([html.html_table(lines), *notes]) if lines else Markup("")
