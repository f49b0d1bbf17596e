"""From loss to what a model can do: accuracy as a bounded curve of the loss.

Legend: L loss or bits per byte of the task, acc accuracy between chance and 1.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from lm import estimate, fit, judge, solver, table

FORMS = {
    "sigmoid": "acc(L) = {a} / (1 + exp(-{k} (L - {x0}))) + {b}",
    "exponential": "y(L) = {eps} - {k} exp(-{gamma} L)",
}


def ability(
    rows: table.Rows,
    x: str = "eval.loss",
    y: str = "eval.completion",
    form: str = "sigmoid",
    chance: float | None = None,
    anchor: Sequence[float] | None = None,
    run: str | None = None,
    order: str = "tokens",
    drop: float = 0.0,
    window: int = 1,
    loss: str = "squares",
    delta: float = 1e-3,
    where: table.Where = None,
    bootstrap: int = 1000,
    resample: str = "auto",
    seed: int = 0,
    reach: float = 10.0,
) -> fit.Fit:
    """Accuracy as a function of the loss or of a task's bits per byte, by least squares.

    form="sigmoid": acc = a / (1 + exp(-k (L - x0))) + b with a in [-1, 0], b in [0, 1], k and x0 >=
    0 (step 2 of Bhagia et al. 2024, arXiv:2412.04403). form="exponential": y = eps - k exp(-gamma
    L), of an error (k > 0, Gadre et al. 2024, arXiv:2403.08540) or of an accuracy (k < 0).
    With `run`, rows are evaluations along runs: the first share `drop` of each is left out and both
    columns become trailing means over `window` (see `table.smooth`), and runs are resampled whole.
    `anchor` adds one point (loss, accuracy), as (0, 1). loss: squares, huber or absolute, of the
    accuracy. `chance` is the accuracy of guessing: predictions stay in [chance, 1], and rows that
    never leave it are refused, as are losses that do not order the accuracies at all. `predict(L)`.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown; known: {', '.join(FORMS)}")
    rows = list(rows)
    if run is not None:
        rows = table.smooth(
            table.read(rows, [x, y], run, where, [x, y]).rows, [x, y], run, order, drop, window
        )
        where = None
    data = table.read(rows, [x, y], run, where, [x, y])
    L, acc = data.columns[x], data.columns[y]
    wrong = (acc > 1) | (acc < 0)
    if wrong.any():
        names = ", ".join(f"{data.names[i]} ({acc[i]:g})" for i in np.flatnonzero(wrong)[:5])
        raise ValueError(f"{y} must lie between 0 and 1 (a share, not per cent): {names}")
    _above_chance(y, acc, L, chance)
    used = data if anchor is None else _with_point(data, x, y, anchor)
    problem = (_sigmoid if form == "sigmoid" else _exponential)(
        used.columns[x], used.columns[y], {"L": x, "acc": y}
    )
    problem.bounds = (0.0 if chance is None else chance, 1.0)
    result = estimate.estimate(problem, used, loss, delta, None, bootstrap, resample, seed, reach)
    result.data = data  # the anchor is no measurement: it is in the objective, not among the rows
    residuals = result.fitted - acc
    result.extra |= {
        "r2": float(1 - (residuals**2).sum() / ((acc - acc.mean()) ** 2).sum()),
        "chance": chance,
    }
    if result.extra["r2"] < 0.5:
        result.warnings.append(
            f"the loss explains only {result.extra['r2']:.0%} of the accuracies' variance"
        )
    options = dict(
        x=x,
        y=y,
        form=form,
        chance=chance,
        anchor=anchor,
        run=run,
        order=order,
        drop=0.0,
        window=1,
        loss=loss,
        delta=delta,
        bootstrap=bootstrap,
        resample=resample,
        seed=seed,
        reach=reach,
    )
    result.refit = lambda rows=None, **new: ability(
        data.rows if rows is None else rows, **{**options, **new}
    )
    result.judge = lambda found: judge.backtest(found, falling=True)
    return result


def _above_chance(y: str, acc: np.ndarray, loss: np.ndarray, chance: float | None) -> None:
    """Refuse a task whose accuracies are noise around guessing."""
    if chance is not None and not 0 <= chance < 1:
        raise ValueError(f"chance={chance} must be at least 0 and below 1")
    if chance is not None and np.quantile(acc, 0.9) < chance + 0.02:
        raise ValueError(
            f"{y} is at chance: nine tenths of the rows are below {chance + 0.02:.2f} where "
            f"guessing gives {chance:g}; "
            "take larger models, an easier task, or its loss"
        )
    if np.ptp(acc) < 1e-9 or np.ptp(loss) < 1e-9:
        raise ValueError(f"{y} or its loss is the same in every row: no curve can be fitted")


def _with_point(data: table.Table, x: str, y: str, anchor: Sequence[float]) -> table.Table:
    columns = {x: np.r_[data.columns[x], anchor[0]], y: np.r_[data.columns[y], anchor[1]]}
    row = {x: anchor[0], y: anchor[1], "name": "anchor"}
    groups = np.r_[data.groups, data.groups.max() + 1]
    return table.Table(
        columns, [*data.names, "anchor"], groups, [*data.rows, row], data.excluded, data.warnings
    )


def _objective(curve):
    """Residuals of y itself: where no logs are taken, squares of logs are plain squares."""
    return lambda loss, delta: solver.curve(
        curve, "log_squares" if loss == "squares" else loss, delta
    )


def _sigmoid(L, acc, columns) -> estimate.Problem:
    width, middle = float(L.std()), float(L.mean())

    def curve(theta):  # a, slope in units of the spread, middle in units of the spread, b
        a, k, x0, b = (theta[:, i, None] for i in range(4))
        t = (L - middle) / width - x0
        s = 0.5 * (1 + np.tanh(0.5 * np.clip(k * t, -500, 500)))
        bell = s * (1 - s)
        return a * s + b, np.stack([s, a * bell * t, -a * bell * k, np.ones_like(s)], -1)

    def natural(theta):
        return {
            "a": theta[:, 0],
            "x0": middle + width * theta[:, 2],
            "k": theta[:, 1] / width,
            "b": theta[:, 3],
        }

    def values(p, loss):
        return np.asarray(
            p["b"]
            + p["a"] * 0.5 * (1 + np.tanh(0.5 * np.clip(p["k"] * (loss - p["x0"]), -500, 500)))
        )

    spread = [(v - middle) / width for v in np.quantile(L, [0, 0.25, 0.5, 0.9])]
    starts = product((-0.9, -0.6, -0.3), (0.7, 2.0, 5.0), spread, (1.0, 0.8))
    return estimate.Problem(
        law="ability",
        formula=FORMS["sigmoid"],
        columns=columns,
        inputs=["L"],
        objective=_objective(curve),
        starts=np.array(list(starts)),
        lower=np.array([-1.0, 0.0, -middle / width, 0.0]),
        upper=np.array([0.0, 1e3, 1e2, 1.0]),
        natural=natural,
        values=values,
        free=["a", "k", "x0", "b"],
        plain=True,
    )


def _exponential(L, acc, columns) -> estimate.Problem:
    """Fitted by its values at both ends of the data and its bend: eps and k are a flat valley."""
    low, width = float(L.min()), float(np.ptp(L))

    def curve(theta):  # value at the lowest loss, at the highest, bend
        first, last, bend = (theta[:, i, None] for i in range(3))
        t = (L - low) / width
        rise, whole = -np.expm1(-bend * t), -np.expm1(-bend)
        share = rise / whole
        slope = (t * np.exp(-bend * t) - share * np.exp(-bend)) / whole
        return first + (last - first) * share, np.stack(
            [1 - share, share, (last - first) * slope], -1
        )

    def natural(theta):
        span = (theta[:, 1] - theta[:, 0]) / -np.expm1(-theta[:, 2])
        gamma = theta[:, 2] / width
        return {"eps": theta[:, 0] + span, "k": span * np.exp(gamma * low), "gamma": gamma}

    def values(p, loss):
        return np.asarray(p["eps"] - p["k"] * np.exp(-p["gamma"] * loss))

    ends = float(acc[L.argmin()]), float(acc[L.argmax()])
    return estimate.Problem(
        law="ability",
        formula=FORMS["exponential"],
        columns=columns,
        inputs=["L"],
        objective=_objective(curve),
        starts=np.array([(*ends, bend) for bend in (0.1, 0.5, 1.5, 4.0, 10.0)]),
        lower=np.array([-2.0, -2.0, 1e-3]),
        upper=np.array([3.0, 3.0, 60.0]),
        natural=natural,
        values=values,
        free=["eps", "k", "gamma"],
        plain=True,
    )
