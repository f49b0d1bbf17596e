"""`Fit`: what a law found, how sure it is, what it left out, and what it predicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from lm import table

Ensemble = dict[str, np.ndarray]


@dataclass
class Prediction:
    """A predicted value with its interval: floats for one point, arrays for many.

    `factor` says how far the point lies beyond the fitted rows (1 is inside; 5 is five times beyond
    the largest input, or below the smallest); `note` says in words when that is more than the law's
    reach.
    """

    value: Any
    lo: Any
    hi: Any
    level: float = 0.95
    factor: float = 1.0
    note: str = ""

    def __str__(self) -> str:
        one = np.ndim(self.value) == 0
        pairs = zip(
            np.atleast_1d(self.value), np.atleast_1d(self.lo), np.atleast_1d(self.hi), strict=True
        )
        text = ", ".join(f"{v:.4g} [{lo:.4g}, {hi:.4g}]" for v, lo, hi in pairs)
        return f"{text if one else '(' + text + ')'}  {self.level:.0%} interval" + (
            f"; {self.note}" if self.note else ""
        )


@dataclass
class Fit:
    """A fitted law: prints like a paper's line, predicts with an interval, turns into JSON.

    Intervals are percentiles of `ensemble`: the law refitted to resamples (see `resampling`), never
    +- 1.96 standard errors, which for a skewed coefficient can reach below zero.
    """

    law: str  # name of the function that made it
    formula: str  # with {names} of parameters
    columns: dict[
        str, str
    ]  # letter of the formula -> column of the rows: which N, which C, which loss
    inputs: list[str]  # letters that predict() takes, in this order
    params: dict[str, float]
    values: Callable[..., np.ndarray]  # (params, *inputs) -> value of the law; broadcasts
    data: table.Table
    loss: str
    delta: float
    objective: float  # a sum over rows
    gradient: float  # largest |d objective / d theta| over the objective, theta of unit scale
    converged: bool
    starts: int
    agree: float  # share of starts that end within 1e-4 of the best objective
    ensemble: Ensemble = field(default_factory=dict)
    resampling: str = "none"  # runs, noise or none
    refit: Callable[..., "Fit"] | None = None  # (rows or None, **changed options) -> Fit
    free: list[str] = field(default_factory=list)  # names of the fitted parameters
    fixed: dict[str, float] = field(default_factory=dict)  # and of the given ones
    derived: dict[str, float] = field(
        default_factory=dict
    )  # follow from the parameters: a = beta / (alpha + beta)
    link: Callable[[np.ndarray], np.ndarray] | None = (
        None  # from what is fitted to what is predicted
    )
    ray: float | None = (
        None  # collinear inputs: factor off their ray beyond which predictions are refused
    )
    sigma: float = float(
        "nan"
    )  # noise of log y (of y where the residuals are plain), degrees of freedom respected
    sigmas: np.ndarray | None = None  # its draws, one a resample
    plain: bool = False  # noise adds to y, not to log y
    bounds: tuple[float, float] = (0.0, float("inf"))  # what a value can be
    reach: float = 10.0  # predictions beyond this factor are marked
    warnings: list[str] = field(default_factory=list)
    judge: Callable[["Fit"], Any] | None = None  # makes the score
    extra: dict[str, Any] = field(default_factory=dict)  # what only one law has
    seed: int = 0

    @cached_property
    def score(self) -> Any:
        """The back-test (`judge.Score`), run when first asked for, printed with every fit."""
        return None if self.judge is None else self.judge(self)

    @property
    def n(self) -> int:
        """Rows in the fit."""
        return len(self.data)

    @property
    def n_runs(self) -> int:
        """Groups of rows that are resampled together."""
        return int(self.data.groups.max()) + 1

    @property
    def excluded(self) -> list[tuple[str, str]]:
        """(name, reason) of every row that was left out."""
        return self.data.excluded

    @property
    def y(self) -> np.ndarray:
        """Measured values."""
        return self.data.columns[self.columns[self.output]]

    @property
    def output(self) -> str:
        """Letter of what the law predicts."""
        return next(letter for letter in self.columns if letter not in self.inputs)

    @property
    def x(self) -> list[np.ndarray]:
        """Measured inputs, in the order of `inputs`."""
        return [self.data.columns[self.columns[letter]] for letter in self.inputs]

    @property
    def fitted(self) -> np.ndarray:
        """The law at the measured inputs."""
        return self.values(self.params, *self.x)

    @property
    def residuals(self) -> np.ndarray:
        """Relative errors of the fit: law / measured - 1 (a row each)."""
        return self.fitted / self.y - 1

    @property
    def mare(self) -> float:
        """Mean absolute relative error of the fit over its own rows: no promise about others."""
        return float(np.abs(self.residuals).mean())

    @property
    def se(self) -> dict[str, float]:
        """Standard deviation of each parameter over the resamples."""
        return {name: float(np.std(draws)) for name, draws in self.ensemble.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95% percentile interval of each parameter."""
        return {name: self.interval(name) for name in self.ensemble}

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of a parameter, or of a derived one."""
        if name not in self.ensemble:
            known = ", ".join(self.ensemble) or "none: fit with bootstrap=1000"
            raise ValueError(f"no interval for {name!r}; known: {known}")
        lo, hi = np.percentile(self.ensemble[name], [50 * (1 - level), 50 * (1 + level)])
        return float(lo), float(hi)

    def predict(self, *inputs: Any, level: float = 0.95, noise: bool = True) -> Prediction:
        """The law at new inputs: numbers or arrays in the order of `fit.inputs`, a row, or rows.

        The interval covers a new measurement; with noise=False only the law's own value there. NaN
        bounds without a bootstrap.
        """
        points = self.points(inputs)
        self._on_the_ray(points)
        value = self.values(self.params, *points)
        value = value if self.link is None else self.link(value)
        lo = hi = np.full_like(value, np.nan)
        if self.ensemble:
            draws = self.draws(*points, noise=noise)
            lo, hi = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], axis=0)
        factor, note = self._beyond(points)
        if value.ndim == 0:
            return Prediction(float(value), float(lo), float(hi), level, factor, note)
        return Prediction(value, lo, hi, level, factor, note)

    def points(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        """Inputs as arrays: from numbers, or from a row or rows by the fit's own columns."""
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            inputs = [table.number(inputs[0].get(self.columns[letter])) for letter in self.inputs]
        elif (
            len(inputs) == 1
            and isinstance(inputs[0], list)
            and inputs[0]
            and isinstance(inputs[0][0], Mapping)
        ):
            inputs = [
                [table.number(row.get(self.columns[k])) for row in inputs[0]] for k in self.inputs
            ]
        if len(inputs) != len(self.inputs):
            raise ValueError(f"predict needs {', '.join(self.inputs)}, got {len(inputs)} inputs")
        points = [np.asarray(v, float) for v in inputs]
        for letter, v in zip(self.inputs, points, strict=True):
            if not (np.isfinite(v).all() and (v > 0).all()):
                raise ValueError(
                    f"{letter} ({self.columns[letter]}) must be a positive number, got {v}"
                )
        return list(np.broadcast_arrays(*points))

    def draws(self, *inputs: np.ndarray, noise: bool = True) -> np.ndarray:
        """The ensemble's predictions, B x the shape of the inputs, with a measurement's noise."""
        points = [np.asarray(v, float)[None] for v in inputs]
        shape = (-1,) + (1,) * (points[0].ndim - 1)
        params: Ensemble = {name: np.asarray(value) for name, value in self.params.items()}
        params |= {name: draws.reshape(shape) for name, draws in self.ensemble.items()}
        values = np.asarray(self.values(params, *points), float)
        if noise and np.isfinite(self.sigma):
            z = np.random.default_rng((self.seed, 1)).standard_normal(values.shape)
            sigma = (self.sigma if self.sigmas is None else self.sigmas.reshape(shape)) * z
            values = values + sigma if self.plain else values * np.exp(sigma)
        return np.clip(values if self.link is None else self.link(values), *self.bounds)

    def _on_the_ray(self, points: list[np.ndarray]) -> None:
        """Refuse points off the line on which all runs lie: there A and B are not told apart."""
        if self.ray is None:
            return
        logs = np.log(np.stack(self.x))
        centre = logs.mean(1)
        direction = np.linalg.svd(logs - centre[:, None])[0][:, 0]
        away = np.log(np.stack(points)).reshape(len(centre), -1) - centre[:, None]
        away = np.abs(away - direction[:, None] * (direction @ away)).max()
        if away > np.log(self.ray):
            raise ValueError(
                f"{', '.join(self.inputs)} of the fitted runs lie on one line (say, one number of "
                "tokens a parameter) "
                f"and this point is a factor {np.exp(away):.3g} off it: add runs off the line to "
                "fit first"
            )

    def _beyond(self, points: list[np.ndarray]) -> tuple[float, str]:
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
            if name in self.ensemble:
                lo, hi = self.interval(name)
                parts.append(f"{name} {value:.4g} [{lo:.4g}, {hi:.4g}]")
        runs = "" if self.n_runs == self.n else f" of {self.n_runs} runs"
        what = "runs" if self.n_runs == self.n else "rows"
        lines = [", ".join(["   ".join(parts), f"n = {self.n} {what}{runs}"])]
        where = ", ".join(f"{letter} = {column}" for letter, column in self.columns.items())
        delta = f" delta {self.delta:g}" if self.loss == "huber" else ""
        lines.append(
            f"  {where}; sum of {self.loss}{delta} {self.objective:.4g}, gradient "
            f"{self.gradient:.1e}, "
            f"{self.agree:.0%} of {self.starts} starts agree; 95% intervals by {self.resampling}"
        )
        if self.score is not None:
            lines.append(f"  {self.score}")
        if self.excluded:
            shown_rows = [f"{name} ({reason})" for name, reason in self.excluded[:4]]
            more = f" and {len(self.excluded) - 4} more" if len(self.excluded) > 4 else ""
            lines.append(f"  left out: {', '.join(shown_rows)}{more}")
        return "\n".join(lines + [f"  warning: {text}" for text in self.warnings])

    def to_dict(self) -> dict[str, Any]:
        """Everything a report needs, as plain JSON values."""
        return {
            "law": self.law,
            "text": str(self),
            "formula": self.formula,
            "columns": self.columns,
            "params": {k: float(v) for k, v in self.params.items()},
            "derived": {k: float(v) for k, v in self.derived.items()},
            "fixed": {k: float(v) for k, v in self.fixed.items()},
            "se": self.se,
            "intervals": {k: list(v) for k, v in self.intervals.items()},
            "resampling": self.resampling,
            "loss": self.loss,
            "delta": self.delta,
            "objective": float(self.objective),
            "gradient": float(self.gradient),
            "converged": bool(self.converged),
            "starts": int(self.starts),
            "agree": float(self.agree),
            "sigma": _plain(self.sigma),
            "n": self.n,
            "n_runs": self.n_runs,
            "names": self.data.names,
            "residuals": [_plain(v) for v in self.residuals],
            "mean_absolute_relative_error": _plain(self.mare),
            "excluded": [list(pair) for pair in self.excluded],
            "warnings": self.warnings,
            "backtest": None if self.score is None else self.score.to_dict(),
        }


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
