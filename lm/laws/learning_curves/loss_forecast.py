"""Forecast of the final held-out loss of an unfinished run from finished runs.

    result = lm.laws.forecast(lm.load_runs("runs/learning_curves"), NAME)
    print(result)                        # value, interval, back-test of each model, baseline
    result.value, result.lo, result.hi

Each finished run is forecast from the others, from the same fraction of its steps. The model with
the smallest mean error of this back-test makes the forecast, and its errors determine the width of
the interval. The baseline is always reported.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.laws import comparability, prediction_intervals, run_table
from lm.laws.learning_curves import curve_backtest, departures, recorded_curves

BASELINE = "baseline"
MIN_RUNS = 4  # finished runs
MIN_FRACTION = 0.2  # of the steps of the unfinished run
MIN_LOSSES = 3  # of the unfinished run, after recorded_curves.START_FRACTION
FRACTIONS = np.arange(0.2, 1.0, 0.05)  # of the steps, at which the models are back-tested


class ForecastInterval(NamedTuple):
    """Forecast of a final loss with its interval, in nats per token."""

    value: float
    lo: float
    hi: float


@dataclasses.dataclass(frozen=True)
class LossForecast:
    """Forecast of the final held-out loss of a run: see `forecast`."""

    name: str
    step: int
    n_steps: int
    model: str  # selected by the back-test
    intervals: dict[str, ForecastInterval]  # model -> forecast
    backtests: dict[str, curve_backtest.ModelBacktest]
    n_runs: int  # finished runs
    excluded: list[tuple[str, str]]  # (name, reason)
    check: departures.DepartureCheck

    @property
    def value(self) -> float:
        """Forecast of the selected model."""
        return self.intervals[self.model].value

    @property
    def lo(self) -> float:
        """Lower end of the interval."""
        return self.intervals[self.model].lo

    @property
    def hi(self) -> float:
        """Upper end of the interval."""
        return self.intervals[self.model].hi

    @property
    def baseline(self) -> ForecastInterval:
        """Forecast of the baseline."""
        return self.intervals[BASELINE]

    def __str__(self) -> str:
        lines = [
            f"{self.name}: final loss {self.value:.4f} [{self.lo:.4f}, {self.hi:.4f}], forecast at"
            f" step {self.step:,} of {self.n_steps:,} from {self.n_runs} finished runs"
        ]
        for model, (value, lo, hi) in self.intervals.items():
            error = self.backtests[model].mean_error
            lines.append(
                f"{model}: {value:.4f} [{lo:.4f}, {hi:.4f}], mean error of the back-test"
                f" {error:.2%}{' (selected)' if model == self.model else ''}"
            )
        lines.append(f"curve: {self.check}")
        lines += [f"left out: {name}: {reason}" for name, reason in self.excluded]
        return "\n".join(lines)


class Forecaster:
    """Forecasts of several runs from the same finished runs."""

    def __init__(
        self,
        curves: Sequence[recorded_curves.LearningCurve],
        excluded: Sequence[tuple[str, str]] = (),
    ):
        """Select the finished runs. Raises ValueError if they are too few or not comparable.

        excluded: (name, reason) of other finished runs.
        """
        self.excluded = list(excluded)
        self.finished: list[recorded_curves.LearningCurve] = []
        for curve in curves:
            if not curve.is_finished:
                continue
            n_losses = max(len(curve.fitted_points()[0]), len(curve.training_steps))
            if n_losses < curve_backtest.MIN_EVALUATIONS:
                self.excluded.append((curve.name, f"{n_losses} losses of its curve are recorded"))
            else:
                self.finished.append(curve)
        if len(self.finished) < MIN_RUNS:
            example = ", ".join(f"{name}: {reason}" for name, reason in self.excluded[:1])
            more = f" ({len(self.excluded)} left out, such as {example})" if example else ""
            raise ValueError(
                f"{len(self.finished)} finished runs{more} do not suffice: finish at least"
                f" {MIN_RUNS} runs on the same text"
            )
        check_same_text(self.finished)
        self.reference = curve_backtest.Reference(self.finished)

    def forecast(
        self, curve: recorded_curves.LearningCurve, level: float = curve_backtest.LEVEL
    ) -> LossForecast:
        """Return the forecast of an unfinished run. Raises ValueError: see `forecast`."""
        prediction_intervals.check_level(level)
        check_same_text([*self.finished, curve])
        selected = self.reference.select_losses(curve)
        step = int(max([0, *selected.steps]))
        n_losses = len(selected.fitted_points()[0])
        if step < MIN_FRACTION * curve.n_steps or n_losses < MIN_LOSSES:
            kind = "log_interval" if self.reference.uses_training_losses else "eval.interval"
            raise ValueError(
                f"{curve.name} has {n_losses} losses until step {step:,} of {curve.n_steps:,}; a"
                f" forecast needs {MIN_LOSSES} and {MIN_FRACTION:.0%} of the steps: train it"
                f" further, or lower {kind}"
            )
        fraction = float(max(FRACTIONS[FRACTIONS <= step / curve.n_steps + 1e-9]))
        backtests = self.reference.backtest(round(fraction, 2))
        model = min(backtests, key=lambda name: backtests[name].mean_error)
        intervals = {}
        for name, backtest in backtests.items():
            mean, sd = self.reference.predict_final(name, selected, step)
            half_width = backtest.interval_factor(level) * sd
            losses = np.exp([mean, mean - half_width, mean + half_width])
            intervals[name] = ForecastInterval(*losses.tolist())
        check = departures.check_run(self.finished, curve)
        return LossForecast(
            curve.name, step, curve.n_steps, model, intervals, backtests,
            len(self.finished), self.excluded, check,
        )  # fmt: skip


def forecast(
    runs: run_table.Rows | Iterable[recorded_curves.LearningCurve],
    run: str | Mapping | recorded_curves.LearningCurve,
    level: float = curve_backtest.LEVEL,
) -> LossForecast:
    """Forecast the final held-out loss of an unfinished run from the finished runs among `runs`.

    runs: rows of lm.load_runs, or curves of lm.laws.load_curves. run: the unfinished run, as its
    name among `runs`, a row or a curve. level: of the interval. Sizes, schedules and learning rates
    may differ.

    Raises ValueError for an unknown name, fewer than MIN_RUNS finished runs, runs on different
    text, a row without a schedule, and less than MIN_FRACTION of the steps.
    """
    curves = to_curves(runs)
    if isinstance(run, str):
        matching = [curve for curve in curves if curve.name == run]
        if not matching:
            names = ", ".join(curve.name for curve in curves if not curve.is_finished)
            raise ValueError(f"run={run!r} is none of runs; unfinished: {names or 'none'}")
        target = matching[0]
    else:
        target = to_curves([run])[0]
    others = [curve for curve in curves if curve.name != target.name]
    return Forecaster(others).forecast(target, level)


def to_curves(runs: Any) -> list[recorded_curves.LearningCurve]:
    """Return the curves of rows or curves."""
    if isinstance(runs, list | tuple) and all(
        isinstance(run, recorded_curves.LearningCurve) for run in runs
    ):
        return list(runs)
    return recorded_curves.read_curves(runs)


def check_same_text(curves: Sequence[recorded_curves.LearningCurve]) -> None:
    """Raise ValueError if the runs have different text, tokenizers, evaluations or starts."""
    rows = [{"name": curve.name, **curve.settings} for curve in curves]
    if differences := comparability.find_differences(rows, range(len(rows))):
        raise ValueError(
            f"the runs are not comparable: {'; '.join(differences)}. Pass runs that are equal in"
            " this column"
        )
