"""Measure forecasts of final losses, and the detection of faulty runs, on committed records.

    uv run python -m experiments.benchmarks.learning_curves
    uv run python -m experiments.benchmarks.learning_curves --faulty_to=faulty.jsonl

The records are learning curves of configs/sweeps/learning_curves.py, and of faulty runs, which
--faulty_to trains again (experiments/benchmarks/faulty_runs.py). Each run is forecast from the
other runs, which also select the model and calibrate the interval. The errors are relative to the
final held-out loss. Intervals of mean errors are bootstrap intervals over the runs, and those of
rates are Wilson intervals.

Runs with a fault are tested at 20% of their steps against the finished runs, without the healthy
run of the same name:

trained            faulty runs of two sizes, see faulty_runs.py
4x rate, real      a run of half the learning rate whose losses are those of twice the rate
4x rate, simulated   the effect of 4 times the rate, measured between the runs of the same size and
                   schedule, is added to the log losses of a run
repeated, simulated  the fluctuation of other batches, which all runs share, is added from the end
                   of 5% of the steps on. Half of a batch changes: the difference of two independent
                   halves has the standard deviation of a batch
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy import stats

from experiments.benchmarks import faulty_runs
from experiments.common import cli, console
from lm.laws.learning_curves import (
    curve_models,
    departures,
    loss_forecast,
    recorded_curves,
    sweep_forecasts,
)

_RECORDS = flags.DEFINE_string(
    "records", "notebooks/data/curves", "folder with the curves of finished and faulty runs"
)
_FAULTY_TO = flags.DEFINE_string("faulty_to", "", "train the faulty runs and write their curves")
FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the steps
TEST_FRACTION = 0.2  # of the steps, at which faulty runs are tested
N_RESAMPLES = 2000
SLOW, FAST = faulty_runs.SLOW, "x2"
FINISHED_FILE, FAULTY_FILE = "finished.jsonl", "faulty.jsonl"


def main() -> int:
    if _FAULTY_TO.value:
        faulty_runs.train_faulty_runs(_FAULTY_TO.value)
        return 0
    folder = Path(_RECORDS.value)
    curves = recorded_curves.load_curves(folder / FINISHED_FILE)
    trained = recorded_curves.load_curves(folder / FAULTY_FILE)
    print_forecasts(curves)
    print_flags(curves, trained)
    return 0


def print_forecasts(curves: Sequence[recorded_curves.LearningCurve]) -> None:
    """Print the errors of the forecasts by fraction of the steps, and by schedule and peak rate."""
    forecaster = loss_forecast.Forecaster(curves)
    lines, groups = [], {}
    for fraction in FRACTIONS:
        forecasts = sweep_forecasts.forecast_finished(forecaster, fraction)
        backtests = forecaster.reference.backtest(fraction)
        lines.append(
            {"steps": f"{fraction:.0%}"}
            | summarize_forecasts(forecasts)
            | {model: f"{backtests[model].mean_error:.2%}" for model in curve_models.MODELS}
        )
        for forecast in forecasts:
            for group in ("all", *forecast.name.rpartition("/")[2].split("-")):
                groups.setdefault(group, []).append((fraction, forecast))
    console.table(lines, f"Mean error of the forecasts of {len(curves)} runs")
    lines = []
    for name, pairs in groups.items():
        first = [forecast for fraction, forecast in pairs if fraction == FRACTIONS[0]]
        line = {"runs": name, "error from 50% alone": summarize_forecasts(first)["error"]}
        lines.append(line | summarize_forecasts([forecast for _, forecast in pairs]))
    console.table(lines, "Forecasts from 50 to 90% of the steps, all fractions together")


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
    curves: Sequence[recorded_curves.LearningCurve],
    trained: Sequence[recorded_curves.LearningCurve],
) -> None:
    """Print the fractions of healthy and faulty runs that are flagged at 20% of their steps."""
    groups: dict[str, list[bool]] = {}
    for curve in [*curves, *trained, *simulate_faults(curves)]:
        fault, _, name = curve.name.rpartition(":")
        others = [other for other in curves if other.name != name]
        run = dataclasses.replace(curve, name=name).until(TEST_FRACTION * curve.n_steps)
        check = departures.check_run(others, run)
        groups.setdefault(fault or "healthy", []).append(check.is_flagged)
    lines = [
        {"runs": group, "n": str(len(flags_)), "flagged": _format_rate(flags_)}
        for group, flags_ in groups.items()
    ]
    are_flagged = [
        flag for group, flags_ in groups.items() for flag in flags_ if group != "healthy"
    ]
    lines.append(
        {"runs": "all faults", "n": str(len(are_flagged)), "flagged": _format_rate(are_flagged)}
    )
    console.table(lines, f"Runs that are flagged at {TEST_FRACTION:.0%} of their steps")


def simulate_faults(
    curves: Sequence[recorded_curves.LearningCurve],
) -> list[recorded_curves.LearningCurve]:
    """Return two faulty versions of each run, named FAULT:NAME."""
    by_name = {curve.name: curve for curve in curves}
    logs = np.array([np.log(curve.training_losses) for curve in curves])
    fluctuation = departures.remove_trend(logs).mean(0)
    generator, faulty = np.random.default_rng(0), []
    for curve in curves:
        stem, _, factor = curve.name.rpartition("-")
        slow, fast = (by_name[f"{stem}-{name}"].training_losses for name in (SLOW, FAST))
        is_real = factor == SLOW
        losses = fast if is_real else curve.training_losses * fast / slow
        kind = "4x rate, real" if is_real else "4x rate, simulated"
        faulty.append(_with_losses(curve, kind, losses))
        change = generator.permutation(fluctuation)
        change[curve.training_steps <= faulty_runs.REPEATED_FRACTION * curve.n_steps] = 0
        losses = curve.training_losses * np.exp(change)
        faulty.append(_with_losses(curve, "repeated, simulated", losses))
    return faulty


def _with_losses(
    curve: recorded_curves.LearningCurve, fault: str, losses: np.ndarray
) -> recorded_curves.LearningCurve:
    """Return a faulty version of a curve."""
    return dataclasses.replace(curve, name=f"{fault}:{curve.name}", training_losses=losses)


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
