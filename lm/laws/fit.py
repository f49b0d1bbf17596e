"""Fitted law (`Fit`) and the options of a fit (`FitOptions`)."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lm.laws import option_validation, prediction_intervals, run_table

Ensemble = dict[str, np.ndarray]
OptionsType = TypeVar("OptionsType", bound="FitOptions")
FitType = TypeVar("FitType", bound="Fit")


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit. Each law accepts some of them and has its own defaults."""

    loss: str = "huber"  # huber, absolute, log_squares or squares: see solver.LOSSES
    delta: float = 1e-3  # width of the Huber loss, in units of log y
    tied: bool = False  # parameters and tokens share the exponent alpha
    fixed: Mapping[str, float] | None = None  # parameters with a given value: {"E": 1.69}
    starts: Any = None  # initial values: {name: values} or a list of dicts; default: from the data
    max_starts: int | None = None  # evenly spaced part of more starts, for back-tests of many rows
    weights: str | None = None  # column of the row weights
    group: str | None = None  # rows with the same value of this column are resampled together
    where: run_table.Where = None  # included rows: a function of the row, or {column: value(s)}
    # True, or names of comparability.PROPERTIES in which rows may differ. Laws about such a
    # difference contain it in their default.
    mixed: bool | tuple[str, ...] = False
    bootstrap: int = 1000  # number of refits to resamples; 0 for none
    resample: str = "auto"  # runs, noise or auto: see estimation.fit_problem
    seed: int = 0
    reach: float = 10.0  # factor beyond the data up to which a prediction has no note


RESAMPLING_OPTIONS = ("group", "where", "mixed", "bootstrap", "resample", "seed", "reach")


def parse_options(
    law: str, given: Mapping[str, Any], defaults: OptionsType, accepted: Sequence[str]
) -> OptionsType:
    """Return the defaults, updated with the given options.

    Raises ValueError for other names, and for values outside their range.
    """
    for name in given:
        if name not in accepted:
            nearest = difflib.get_close_matches(name, accepted, 1)
            remedy = f"use {nearest[0]}, the nearest name" if nearest else "use one of these names"
            raise ValueError(
                f"{name}={given[name]!r} is no option of {law}; allowed: {', '.join(accepted)}; "
                f"{remedy}"
            )
    return change_options(defaults, given)


def change_options(options: OptionsType, changes: Mapping[str, Any]) -> OptionsType:
    """Return options with other values. Raises ValueError for values outside their range."""
    option_validation.check_option_values(changes)
    return replace(options, **changes)


@dataclass
class Fit:
    """Fitted law, with its formula, intervals, predictions and JSON form.

    Intervals are percentiles of `ensemble`, the parameters of refits to resamples. An interval of
    1.96 standard errors would reach below zero for a skewed coefficient.
    """

    law: str  # name of the function that fitted it
    formula: str  # with {names} of parameters
    columns: dict[str, str]  # letter of the formula -> column of the rows
    inputs: list[str]  # letters that predict() takes, in this order
    params: dict[str, float]
    values: Callable[..., np.ndarray]  # (params, *inputs) -> value of the law; broadcasts
    data: run_table.RunTable
    loss: str
    delta: float
    objective: float  # sum over rows
    gradient: float  # largest |d objective / d theta| / objective, with theta of unit scale
    converged: bool
    n_starts: int  # number of initial values
    start_agreement: float  # fraction of starts that end within 1e-4 of the best objective
    ensemble: Ensemble = field(default_factory=dict)
    resampling: str = "none"  # description of the resamples
    refit: Callable[..., "Fit"] | None = None  # (rows or None, **changed options) -> Fit
    free: list[str] = field(default_factory=list)  # names of the fitted parameters
    fixed: dict[str, float] = field(default_factory=dict)  # parameters with a given value
    derived: dict[str, float] = field(default_factory=dict)  # functions of the parameters
    output_transform: Callable[[np.ndarray], np.ndarray] | None = None  # fitted -> predicted value
    max_off_line_factor: float | None = None  # collinear inputs: largest factor off their line
    sigma: float = float("nan")  # noise of log y, or of y if additive_noise
    sigmas: np.ndarray | None = None  # sigma of each resample
    additive_noise: bool = False  # noise is added to y, not to log y
    bounds: tuple[float, float] = (0.0, float("inf"))  # range of a predicted value
    reach: float = 10.0  # factor beyond the data up to which a prediction has no note
    warnings: list[str] = field(default_factory=list)
    backtester: Callable[["Fit"], Any] | None = None  # computes the score
    optima: list[dict[str, float]] = field(default_factory=list)  # if several are within 1%
    seed_noise: float | None = None  # noise between rows of equal inputs, if there are such rows
    r_squared: float | None = None  # explained fraction of the variance, if the law reports it
    seed: int = 0
    expression: str = ""  # right side of a user-defined law as text, see formulas/expressions.py
    undetermined: list[str] = field(default_factory=list)  # parameters that the rows do not fix
    # (fit, points) -> mask of the points where the value depends on undetermined parameters
    undetermined_at: Callable[["Fit", list[np.ndarray]], np.ndarray] | None = None
    # (fit, points) -> samples of the error of the form [B, *shape], see form_uncertainty
    form_sampler: Callable[["Fit", list[np.ndarray]], np.ndarray] | None = None

    def extend(self, fit_type: type[FitType], **details: Any) -> FitType:
        """Return this fit as a fit of a subclass, with the details of that law."""
        return fit_type(**{f.name: getattr(self, f.name) for f in fields(Fit)}, **details)

    @cached_property
    def score(self) -> Any:
        """Back-test of the law, a `backtesting.BacktestScore`, computed at first access."""
        return None if self.backtester is None else self.backtester(self)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.data)

    @property
    def n_runs(self) -> int:
        """Number of resampling groups.

        By default, a group is all rows of a run, or of all branches of a trunk run. See
        run_table.select_columns.
        """
        return int(self.data.groups.max()) + 1

    @property
    def excluded(self) -> list[tuple[str, str]]:
        """(name, reason) of each excluded row."""
        return self.data.excluded

    @property
    def y(self) -> np.ndarray:
        """Measured values."""
        return self.data.columns[self.columns[self.output]]

    @property
    def output(self) -> str:
        """Letter of the predicted quantity."""
        return next(letter for letter in self.columns if letter not in self.inputs)

    @property
    def x(self) -> list[np.ndarray]:
        """Measured inputs, in the order of `inputs`."""
        return [self.data.columns[self.columns[letter]] for letter in self.inputs]

    @property
    def fitted(self) -> np.ndarray:
        """Values of the law at the measured inputs."""
        return self.values(self.params, *self.x)

    @property
    def residuals(self) -> np.ndarray:
        """Relative error of the law at each row: law / measured - 1."""
        return self.fitted / self.y - 1

    @property
    def mare(self) -> float:
        """Mean absolute relative error at the fitted rows. At other rows, it is usually larger."""
        return float(np.abs(self.residuals).mean())

    @property
    def se(self) -> dict[str, float]:
        """Standard deviation of each determined parameter over the resamples."""
        return {
            name: float(np.std(draws))
            for name, draws in self.ensemble.items()
            if name not in self.undetermined
        }

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95% percentile interval (low, high) of each determined parameter over the resamples."""
        return {
            name: self.interval(name) for name in self.ensemble if name not in self.undetermined
        }

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Return the percentile interval of a parameter or of a derived parameter.

        It assumes that the form of the law is right. The bounds are NaN for a parameter that the
        rows do not determine.
        """
        prediction_intervals.check_level(level)
        if isinstance(name, str) and name in self.undetermined:
            return float("nan"), float("nan")
        if not isinstance(name, str) or name not in self.ensemble:
            known = ", ".join(self.ensemble) or "none: fit with bootstrap=1000"
            raise ValueError(f"no interval for {name!r}; known: {known}")
        lo, hi = np.percentile(self.ensemble[name], [50 * (1 - level), 50 * (1 + level)])
        return float(lo), float(hi)

    def predict(
        self, *inputs: Any, level: float = 0.95, noise: bool = True, **named: Any
    ) -> prediction_intervals.Prediction:
        """Predict at new inputs: numbers or arrays in the order of `fit.inputs`, a row, or rows.

        Inputs may be given by name instead: predict(N=1e9, D=2e10).

        The interval contains a new measurement with probability `level`. With noise=False, it
        contains the value of the law. The interval includes uncertainty about the form of the law
        (see `form_uncertainty`); a second interval assumes the form. The bounds are NaN for a fit
        without bootstrap, and where the rows do not determine the law.

        Raises ValueError for inputs that are not positive, for a level outside (0, 1), and for a
        point off the line of collinear runs.
        """
        prediction_intervals.check_level(level)
        points = self.points(prediction_intervals.order_inputs(self.inputs, inputs, named))
        self._check_off_line_factor(points)
        value = self.values(self.params, *points)
        value = value if self.output_transform is None else self.output_transform(value)
        bounds = np.full((4, *value.shape), np.nan)
        factor, note = self._extrapolation(points)
        includes_form = bool(self.ensemble) and self.form_sampler is not None
        if self.ensemble:
            percentiles = [50 * (1 - level), 50 * (1 + level)]
            bounds[2:] = np.percentile(self.draws(*points, noise=noise), percentiles, axis=0)
            bounds[:2] = bounds[2:]
            if includes_form:
                draws = self.draws(*points, noise=noise, form=True)
                bounds[:2] = np.percentile(draws, percentiles, axis=0)
                # The drift of the form may move all draws to one side of the fitted law.
                bounds[0], bounds[1] = np.minimum(bounds[0], value), np.maximum(bounds[1], value)
            if self.undetermined_at is not None:
                is_unknown = self.undetermined_at(self, points)
                bounds[:, is_unknown] = np.nan
                if is_unknown.any():
                    unknown = f"the rows do not determine {', '.join(self.undetermined)}"
                    note = f"{unknown}; {note}" if note else unknown
        lo, hi, lo_if_right, hi_if_right = bounds if value.ndim else map(float, bounds)
        value = value if value.ndim else float(value)
        return prediction_intervals.Prediction(
            value, lo, hi, level, factor, note, lo_if_right, hi_if_right, includes_form
        )

    def points(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        """Convert the inputs of `predict` to float arrays of one shape, in the order of `inputs`.

        Raises ValueError for a wrong number of inputs, and for values that are not positive.
        """
        return prediction_intervals.read_points(inputs, {k: self.columns[k] for k in self.inputs})

    def draws(self, *inputs: np.ndarray, noise: bool = True, form: bool = False) -> np.ndarray:
        """Return one prediction per resample at the inputs, [B, *shape of an input].

        inputs: arrays of one shape, in the order of `inputs`. noise: add the noise of a measurement
        to each prediction. form: add the error of the form of the law, if the fit estimates it.
        """
        points = [np.asarray(v, float)[None] for v in inputs]
        shape = (-1,) + (1,) * (points[0].ndim - 1)
        params: Ensemble = {name: np.asarray(value) for name, value in self.params.items()}
        params |= {name: draws.reshape(shape) for name, draws in self.ensemble.items()}
        values = np.asarray(self.values(params, *points), float)
        if form and self.form_sampler is not None:
            errors = self.form_sampler(self, [point[0] for point in points])
            values = values + errors if self.additive_noise else values * np.exp(errors)
        if noise and np.isfinite(self.sigma):
            z = np.random.default_rng((self.seed, 1)).standard_normal(values.shape)
            sigma = (self.sigma if self.sigmas is None else self.sigmas.reshape(shape)) * z
            values = values + sigma if self.additive_noise else values * np.exp(sigma)
        transform = self.output_transform
        return np.clip(values if transform is None else transform(values), *self.bounds)

    def _check_off_line_factor(self, points: list[np.ndarray]) -> None:
        """Raise ValueError for a point off the line of collinear runs, where the law is unknown."""
        if self.max_off_line_factor is None:
            return
        logs = np.log(np.stack(self.x))
        center = logs.mean(1)
        direction = np.linalg.svd(logs - center[:, None])[0][:, 0]
        offsets = np.log(np.stack(points)).reshape(len(center), -1) - center[:, None]
        distance = np.abs(offsets - direction[:, None] * (direction @ offsets)).max()
        if distance > np.log(self.max_off_line_factor):
            raise ValueError(
                f"{', '.join(self.inputs)} of the fitted runs lie on one line (for example, one "
                "number of tokens per parameter) and this point is a factor "
                f"{np.exp(distance):.3g} off it: add runs off the line to the fit"
            )

    def _example_prediction(self) -> str:
        """Return the text of a prediction at twice the largest inputs, or ""."""
        if self.form_sampler is None or not self.ensemble or np.isfinite(self.bounds[1]):
            return ""
        largest = int(np.argmax(np.prod(np.stack(self.x), axis=0)))
        point = [2 * x[largest] for x in self.x]
        inputs = ", ".join(f"{k} = {v:.4g}" for k, v in zip(self.inputs, point, strict=True))
        return f"{self.output} at twice the largest inputs, {inputs}: {self.predict(*point)}"

    def _extrapolation(self, points: list[np.ndarray]) -> tuple[float, str]:
        """Return the factor of the points beyond the data, and a note if it is above `reach`."""
        factor, note = 1.0, ""
        for letter, v, x in zip(self.inputs, points, self.x, strict=True):
            beyond = float(max(np.max(v) / x.max(), x.min() / np.min(v), 1.0))
            if beyond > max(factor, self.reach):
                note = (
                    f"{beyond:.3g} times beyond the fitted {letter}, more than {self.reach:g}: an "
                    "extrapolation"
                )
            factor = max(factor, beyond)
        return factor, note

    def __str__(self) -> str:
        shown = {name: f"{value:.4g}" for name, value in {**self.params, **self.derived}.items()}
        parts = [self.formula.format(**shown).replace("- -", "+ ").replace("+ -", "- ")]
        for name, value in {**self.params, **self.derived}.items():
            if name in self.undetermined:
                parts.append(f"{name} {value:.4g} (not determined)")
            elif name in self.ensemble:
                interval = prediction_intervals.format_interval(*self.interval(name))
                parts.append(f"{name} {value:.4g}{interval}")
        count = "runs" if self.n_runs == self.n else f"rows of {self.n_runs} runs"
        lines = [", ".join(["   ".join(parts), f"n = {self.n} {count}"])]
        columns = ", ".join(f"{letter} = {column}" for letter, column in self.columns.items())
        delta = f" (delta {self.delta:g})" if self.loss == "huber" else ""
        description = "no intervals"
        if self.ensemble:
            description = f"95% intervals by {self.resampling}, if the form is right"
        lines.append(
            f"  {columns}; sum of {self.loss}{delta} {self.objective:.4g} at its minimum, scaled "
            f"gradient {self.gradient:.1e}; {round(self.start_agreement * self.n_starts):,} of "
            f"{self.n_starts:,} starting points reach this minimum; {description}"
        )
        if example := self._example_prediction():
            lines.append(f"  {example}")
        if self.score is not None:
            lines.append(f"  {self.score}")
        if self.excluded:
            shown_rows = [f"{name} ({reason})" for name, reason in self.excluded[:4]]
            more = f" and {len(self.excluded) - 4} more" if len(self.excluded) > 4 else ""
            lines.append(f"  excluded: {', '.join(shown_rows)}{more}")
        return "\n".join(lines + [f"  warning: {text}" for text in self.warnings])

    def save(self, path: str | Path) -> None:
        """Write the fit to a JSON file, which `laws.load_fit` reads (see saved_fit.py)."""
        from lm.laws.reporting import saved_fit  # it imports this file

        saved_fit.save_fit(self, path)

    def checklist(self) -> Any:
        """Return the answers to a reporting checklist, a `checklist.Checklist` that prints them."""
        from lm.laws.reporting import checklist  # it imports this file

        return checklist.fill_checklist(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters, intervals, diagnostics and back-test as JSON values."""
        return {
            "law": self.law,
            "text": str(self),
            "formula": self.formula,
            "columns": self.columns,
            "params": {k: _finite_or_none(v) for k, v in self.params.items()},
            "derived": {k: _finite_or_none(v) for k, v in self.derived.items()},
            "fixed": {k: _finite_or_none(v) for k, v in self.fixed.items()},
            "se": {k: _finite_or_none(v) for k, v in self.se.items()},
            "intervals": {
                k: [_finite_or_none(v) for v in bounds] for k, bounds in self.intervals.items()
            },
            "resampling": self.resampling,
            "loss": self.loss,
            "delta": self.delta,
            "objective": _finite_or_none(self.objective),
            "gradient": _finite_or_none(self.gradient),
            "converged": bool(self.converged),
            "starts": int(self.n_starts),
            "agree": float(self.start_agreement),
            "sigma": _finite_or_none(self.sigma),
            "n": self.n,
            "n_runs": self.n_runs,
            "names": self.data.names,
            "residuals": [_finite_or_none(v) for v in self.residuals],
            "mean_absolute_relative_error": _finite_or_none(self.mare),
            "excluded": [list(pair) for pair in self.excluded],
            "warnings": self.warnings,
            "backtest": None if self.score is None else self.score.to_dict(),
        }


def check_fits(**fits: Any) -> None:
    """Raise ValueError for an argument that is not a fit."""
    for name, value in fits.items():
        if not isinstance(value, Fit):
            raise ValueError(f"{name}={value!r} must be a fit: pass the result of a law")


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
