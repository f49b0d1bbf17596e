"""Measure forecasts of final losses, and the detection of faulty runs, on committed records.

    uv run python -m experiments.benchmarks.learning_curves
    uv run python -m experiments.benchmarks.learning_curves --faulty_to=faulty.jsonl

The records are learning curves of configs/sweeps/learning_curves.py and of faulty runs, which
--faulty_to trains again (experiments/benchmarks/faulty_runs.py). Each run is forecast from the
other runs, which also select the model and calibrate the interval. The errors are relative to the
final held-out loss. Intervals of mean errors are bootstrap intervals over the runs, and those of
rates are Wilson intervals.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy import stats

from experiments.common import cli, console
from lm.laws.learning_curves import (
    curve_models,
    departures,
    loss_forecast,
    recorded_curves,
    sweep_forecasts,
)

_DATA = flags.DEFINE_string("data", "notebooks/data/curves", "folder with the records")
_FAULTY_TO = flags.DEFINE_string("faulty_to", "", "train the faulty runs and write their curves")
FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the steps
GROUPED_FRACTION = 0.5
TEST_FRACTION = 0.2  # of the steps, at which faulty runs are tested
N_RESAMPLES = 2000
FINISHED_FILE, FAULTY_FILE = "finished.jsonl", "faulty.jsonl"


def main() -> int:
    if _FAULTY_TO.value:
        from experiments.benchmarks import faulty_runs

        faulty_runs.train_faulty_runs(_FAULTY_TO.value)
        return 0
    folder = Path(_DATA.value)
    curves = recorded_curves.load_curves(folder / FINISHED_FILE)
    faulty = recorded_curves.load_curves(folder / FAULTY_FILE)
    print_forecasts(curves)
    print_flags(curves, faulty)
    return 0


def print_forecasts(curves: Sequence[recorded_curves.LearningCurve]) -> None:
    """Print the errors of the forecasts by fraction of the steps, and by schedule and peak rate."""
    forecaster = loss_forecast.Forecaster(curves)
    lines = []
    for fraction in FRACTIONS:
        forecasts = sweep_forecasts.forecast_finished(forecaster, fraction)
        backtests = forecaster.reference.backtest(fraction)
        lines.append(
            {"steps": f"{fraction:.0%}"}
            | summarize_forecasts(forecasts)
            | {model: f"{backtests[model].mean_error:.2%}" for model in curve_models.MODELS}
        )
    console.table(lines, f"Mean error of the forecasts of {len(curves)} runs")
    forecasts = sweep_forecasts.forecast_finished(forecaster, GROUPED_FRACTION)
    groups: dict[str, list[sweep_forecasts.FinishedForecast]] = {}
    for forecast in forecasts:
        size, schedule, factor = forecast.name.rpartition("/")[2].split("-")
        for group in (schedule, factor, size):
            groups.setdefault(group, []).append(forecast)
    lines = [{"runs": name} | summarize_forecasts(groups[name]) for name in groups]
    console.table(lines, f"Forecasts from {GROUPED_FRACTION:.0%} of the steps")


def summarize_forecasts(forecasts: Sequence[sweep_forecasts.FinishedForecast]) -> dict[str, str]:
    """Return the mean errors with intervals, the largest error and the coverage, as text."""
    measured = np.array([f.measured for f in forecasts])
    errors = np.abs(np.array([f.value for f in forecasts]) / measured - 1)
    baseline = np.abs(np.array([f.baseline for f in forecasts]) / measured - 1)
    is_inside = [f.lo <= f.measured <= f.hi for f in forecasts]
    half_width = np.mean([(f.hi - f.lo) / 2 / f.measured for f in forecasts])
    return {
        "n": str(len(forecasts)),
        "error": _format_mean(errors),
        "baseline error": _format_mean(baseline),
        "largest error": f"{errors.max():.2%}",
        "inside 95% interval": _format_rate(is_inside),
        "half-width": f"{half_width:.2%}",
    }


def print_flags(
    curves: Sequence[recorded_curves.LearningCurve], faulty: Sequence[recorded_curves.LearningCurve]
) -> None:
    """Print the fractions of healthy and faulty runs that are flagged at 20% of their steps.

    Each run is tested against the finished runs except the healthy run of the same name.
    """
    groups: dict[str, list[bool]] = {}
    for curve in [*curves, *faulty]:
        fault, _, name = curve.name.rpartition(":")
        others = [other for other in curves if other.name != name]
        run = dataclasses.replace(curve, name=name).until(TEST_FRACTION * curve.n_steps)
        check = departures.check_run(others, run)
        groups.setdefault(fault or "healthy", []).append(check.is_flagged)
    lines = [
        {"runs": group, "n": str(len(flags_)), "flagged": _format_rate(flags_)}
        for group, flags_ in groups.items()
    ]
    console.table(lines, f"Runs that are flagged at {TEST_FRACTION:.0%} of their steps")


def _format_mean(values: np.ndarray) -> str:
    """Format a mean with its 95% bootstrap interval."""
    samples = np.random.default_rng(0).integers(len(values), size=(N_RESAMPLES, len(values)))
    lo, hi = np.quantile(values[samples].mean(1), [0.025, 0.975])
    return f"{values.mean():.2%} [{lo:.2%}, {hi:.2%}]"


def _format_rate(outcomes: Sequence[bool]) -> str:
    """Format a fraction with its 95% Wilson interval."""
    interval = stats.binomtest(sum(outcomes), len(outcomes)).proportion_ci(method="wilson")
    return f"{np.mean(outcomes):.1%} [{interval.low:.1%}, {interval.high:.1%}]"


if __name__ == "__main__":
    cli.run_main(main)
