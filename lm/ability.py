"""Accuracy of a task as a bounded curve of the loss.

Legend: L loss or bits per byte of the task, acc accuracy between chance and 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from lm import estimate, fit, judge, solver, table

FORMS = {
    "sigmoid": "acc(L) = {a} / (1 + exp(-{k} (L - {x0}))) + {b}",
    "exponential": "y(L) = {eps} - {k} exp(-{gamma} L)",
}
OPTIONS = (
    *("order", "drop", "window", "loss", "delta"),
    *("where", "bootstrap", "resample", "seed", "reach"),
)


@dataclass(frozen=True)
class AbilityOptions(fit.FitOptions):
    """Options of `ability`, which describes them."""

    loss: str = "squares"
    order: str = "tokens"
    drop: float = 0.0
    window: int = 1


@dataclass(kw_only=True)
class AbilityFit(fit.Fit):
    """Fitted curve of accuracy against loss."""

    chance: float | None = None  # accuracy of guessing


def ability(
    rows: table.Rows,
    x: str = "eval.loss",
    y: str = "eval.completion",
    form: str = "sigmoid",
    chance: float | None = None,
    anchor: Sequence[float] | None = None,
    run: str | None = None,
    **options: Any,
) -> AbilityFit:
    """Fit the accuracy as a function of the loss or of bits per byte of the task.

    form="sigmoid": acc = a / (1 + exp(-k (L - x0))) + b with a in [-1, 0], b in [0, 1], k and x0 >=
    0 (step 2 of Bhagia et al. 2024, arXiv:2412.04403). form="exponential": y = eps - k exp(-gamma
    L), for an error (k > 0, Gadre et al. 2024, arXiv:2403.08540) or an accuracy (k < 0).

    `run` is the column of the run if rows are evaluations during runs. The first fraction `drop` of
    each run, sorted by `order`, is excluded, both columns become trailing means over `window`
    evaluations (see `table.smooth`), and whole runs are resampled. `anchor` adds a point (loss,
    accuracy), such as (0, 1). `chance` is the accuracy of guessing: predictions are in [chance, 1].
    `loss` is squares, huber or absolute, of the accuracy. `predict(L)`. Other options: delta,
    where, bootstrap, resample, seed, reach. Raises ValueError for accuracies that do not exceed
    chance, and for accuracies or losses that are all equal.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown; known: {', '.join(FORMS)}")
    parsed = fit.parse_options("ability", options, AbilityOptions(), OPTIONS)
    return _fit_curve(rows, x, y, form, chance, anchor, run, parsed)


def _fit_curve(rows, x, y, form, chance, anchor, run, options: AbilityOptions) -> AbilityFit:
    """Fit the curve of `ability`."""
    if run is not None:
        selected = table.read(list(rows), [x, y], run, options.where, [x, y]).rows
        rows = table.smooth(selected, [x, y], run, options.order, options.drop, options.window)
        options = replace(options, where=None)
    data = table.read(rows, [x, y], run, options.where, [x, y])
    losses, accuracies = data.columns[x], data.columns[y]
    _check_range(y, accuracies, data.names)
    _check_above_chance(y, accuracies, losses, chance)
    points = data if anchor is None else _with_anchor(data, x, y, anchor)
    build_problem = _sigmoid if form == "sigmoid" else _exponential
    problem = build_problem(points.columns[x], points.columns[y], {"L": x, "acc": y})
    problem.bounds = (0.0 if chance is None else chance, 1.0)
    result = estimate.estimate(problem, points, options).extend(AbilityFit, chance=chance)
    result.data = data  # the anchor is not a measurement: it is only in the objective
    residuals = result.fitted - accuracies
    variation = ((accuracies - accuracies.mean()) ** 2).sum()
    result.r_squared = float(1 - (residuals**2).sum() / variation)
    if result.r_squared < 0.5:
        result.warnings.append(
            f"the loss explains only {result.r_squared:.0%} of the variance of the accuracy"
        )
    same = replace(options, where=None, drop=0.0, window=1)  # data.rows are selected and smoothed

    def refit(rows: table.Rows | None = None, **changes: Any) -> fit.Fit:
        rows = data.rows if rows is None else rows
        return _fit_curve(rows, x, y, form, chance, anchor, run, replace(same, **changes))

    result.refit = refit
    result.backtester = partial(judge.backtest, falling=True)
    return result


def _check_range(y: str, accuracies: np.ndarray, names: list[str]) -> None:
    is_wrong = (accuracies > 1) | (accuracies < 0)
    if is_wrong.any():
        shown = ", ".join(f"{names[i]} ({accuracies[i]:g})" for i in np.flatnonzero(is_wrong)[:5])
        raise ValueError(f"{y} must be between 0 and 1 (a fraction, not percent): {shown}")


def _check_above_chance(
    y: str, accuracies: np.ndarray, losses: np.ndarray, chance: float | None
) -> None:
    """Raise ValueError for a task with accuracies that are noise around chance."""
    if chance is not None and not 0 <= chance < 1:
        raise ValueError(f"chance={chance} must be at least 0 and below 1")
    if chance is not None and np.quantile(accuracies, 0.9) < chance + 0.02:
        raise ValueError(
            f"{y} is at chance: nine tenths of the rows are below {chance + 0.02:.2f} where "
            f"guessing gives {chance:g}; "
            "take larger models, an easier task, or its loss"
        )
    if np.ptp(accuracies) < 1e-9 or np.ptp(losses) < 1e-9:
        raise ValueError(f"{y} or its loss is the same in every row: no curve can be fitted")


def _with_anchor(data: table.Table, x: str, y: str, anchor: Sequence[float]) -> table.Table:
    """Return the table with an additional row, the anchor, in a group of its own."""
    columns = {x: np.r_[data.columns[x], anchor[0]], y: np.r_[data.columns[y], anchor[1]]}
    row = {x: anchor[0], y: anchor[1], "name": "anchor"}
    groups = np.r_[data.groups, data.groups.max() + 1]
    return table.Table(
        columns, [*data.names, "anchor"], groups, [*data.rows, row], data.excluded, data.warnings
    )


def _objective(curve):
    """Return the objective of y, not log y: there, squares of "logs" are squares of y."""
    return lambda loss, delta: solver.curve(
        curve, "log_squares" if loss == "squares" else loss, delta
    )


def _logistic(t: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.clip(t, -500, 500)))


def _sigmoid(losses: np.ndarray, accuracies: np.ndarray, columns: dict) -> estimate.Problem:
    """Return the problem of the sigmoid over theta = a, slope, midpoint, b in standard units."""
    width, center = float(losses.std()), float(losses.mean())

    def curve(theta):
        a, k, x0, b = (theta[:, i, None] for i in range(4))
        t = (losses - center) / width - x0
        s = _logistic(k * t)
        bell = s * (1 - s)
        return a * s + b, np.stack([s, a * bell * t, -a * bell * k, np.ones_like(s)], -1)

    def natural(theta):
        return {
            "a": theta[:, 0],
            "x0": center + width * theta[:, 2],
            "k": theta[:, 1] / width,
            "b": theta[:, 3],
        }

    def values(p, loss):
        t = p["k"] * (loss - p["x0"])
        return np.asarray(p["b"] + p["a"] * 0.5 * (1 + np.tanh(0.5 * np.clip(t, -500, 500))))

    midpoints = [(v - center) / width for v in np.quantile(losses, [0, 0.25, 0.5, 0.9])]
    starts = product((-0.9, -0.6, -0.3), (0.7, 2.0, 5.0), midpoints, (1.0, 0.8))
    return estimate.Problem(
        law="ability",
        formula=FORMS["sigmoid"],
        columns=columns,
        inputs=["L"],
        objective=_objective(curve),
        starts=np.array(list(starts)),
        lower=np.array([-1.0, 0.0, -center / width, 0.0]),
        upper=np.array([0.0, 1e3, 1e2, 1.0]),
        natural=natural,
        values=values,
        free=["a", "k", "x0", "b"],
        additive_noise=True,
    )


def _exponential(losses: np.ndarray, accuracies: np.ndarray, columns: dict) -> estimate.Problem:
    """Return the problem of the exponential over theta = value at both ends, curvature.

    The objective is flat along combinations of eps and k.
    """
    low, width = float(losses.min()), float(np.ptp(losses))

    def curve(theta):
        first, last, bend = (theta[:, i, None] for i in range(3))
        t = (losses - low) / width
        rise, full_rise = -np.expm1(-bend * t), -np.expm1(-bend)
        fraction = rise / full_rise
        slope = (t * np.exp(-bend * t) - fraction * np.exp(-bend)) / full_rise
        jacobian = np.stack([1 - fraction, fraction, (last - first) * slope], -1)
        return first + (last - first) * fraction, jacobian

    def natural(theta):
        span = (theta[:, 1] - theta[:, 0]) / -np.expm1(-theta[:, 2])
        gamma = theta[:, 2] / width
        return {"eps": theta[:, 0] + span, "k": span * np.exp(gamma * low), "gamma": gamma}

    def values(p, loss):
        return np.asarray(p["eps"] - p["k"] * np.exp(-p["gamma"] * loss))

    end_values = float(accuracies[losses.argmin()]), float(accuracies[losses.argmax()])
    return estimate.Problem(
        law="ability",
        formula=FORMS["exponential"],
        columns=columns,
        inputs=["L"],
        objective=_objective(curve),
        starts=np.array([(*end_values, bend) for bend in (0.1, 0.5, 1.5, 4.0, 10.0)]),
        lower=np.array([-2.0, -2.0, 1e-3]),
        upper=np.array([3.0, 3.0, 60.0]),
        natural=natural,
        values=values,
        free=["eps", "k", "gamma"],
        additive_noise=True,
    )
