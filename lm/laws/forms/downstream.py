"""Accuracy of a task from its loss, and from N, D or C in one or two steps.

Legend: L loss or bits per byte of the task, acc accuracy between chance and 1, N parameters, D
tokens, C FLOPs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from lm.laws import (
    backtesting,
    estimation,
    fit,
    form_uncertainty,
    option_validation,
    run_table,
    solver,
)
from lm.laws.forms import evaluation_curves, power_laws

FORMS = {
    "sigmoid": "acc(L) = {a} / (1 + exp(-{k} (L - {x0}))) + {b}",
    "exponential": "y(L) = {eps} - {k} exp(-{gamma} L)",
}
OPTIONS = (
    *("order", "drop", "window", "loss", "delta"),
    *("where", "mixed", "bootstrap", "resample", "seed", "reach"),
)


@dataclass(frozen=True)
class AccuracyOptions(fit.FitOptions):
    """Options of `accuracy_from_loss`, which describes them."""

    loss: str = "squares"
    mixed: bool | tuple[str, ...] = ("corpus", "start")
    order: str = "tokens"
    drop: float = 0.0
    window: int = 1


@dataclass(kw_only=True)
class AccuracyFit(fit.Fit):
    """Fitted curve of accuracy against loss."""

    chance: float | None = None  # accuracy of guessing


def accuracy_from_loss(
    rows: run_table.Rows,
    x: str = "eval.loss",
    y: str = "eval.completion",
    form: str = "sigmoid",
    chance: float | None = None,
    anchor: Sequence[float] | None = None,
    run: str | None = None,
    **options: Any,
) -> AccuracyFit:
    """Fit the accuracy as a function of the loss or of bits per byte of the task.

    x: column of the loss. y: column of the accuracy, a fraction. chance: accuracy of guessing;
    predictions are in [chance, 1]. anchor: an additional point (loss, accuracy), such as (0, 1).
    run: column of the run if rows are evaluations during runs.

    form="sigmoid": acc = a / (1 + exp(-k (L - x0))) + b, step 2 of Bhagia et al. (2024,
    arXiv:2412.04403). a is in [-1, 0], b in [0, 1]. k and x0 are at least 0.
    form="exponential": y = eps - k exp(-gamma L), for an error (k > 0, Gadre et al. 2024,
    arXiv:2403.08540) or an accuracy (k < 0).

    With `run`, the first fraction `drop` of each run, sorted by `order`, is excluded. Both columns
    become trailing means over `window` evaluations (see `evaluation_curves`), and whole runs are
    resampled. loss: squares, huber or absolute, of the accuracy. Other options: delta,
    where, mixed, bootstrap, resample, seed, reach. `predict(L)` returns the accuracy. Raises
    ValueError for accuracies that do not exceed chance, and for accuracies or losses that are all
    equal.
    """
    option_validation.check_choice("form", form, FORMS)
    option_validation.check_columns(x=x, y=y)
    option_validation.check_optional_columns(run=run)
    option_validation.check_option_values({"chance": chance})
    option_validation.check_anchor(anchor)
    parsed = fit.parse_options("accuracy_from_loss", options, AccuracyOptions(), OPTIONS)
    return _fit_curve(rows, x, y, form, chance, anchor, run, parsed)


def _fit_curve(rows, x, y, form, chance, anchor, run, options: AccuracyOptions) -> AccuracyFit:
    """Fit the curve of `accuracy_from_loss`."""
    if run is not None:
        data = run_table.select_columns(rows, [x, y], run, options.where, [x, y], options.mixed)
        rows = evaluation_curves.smooth_evaluations(
            data.rows, [x, y], run, options.order, options.drop, options.window
        )
        options = replace(options, where=None, mixed=True)
    data = run_table.select_columns(rows, [x, y], run, options.where, [x, y], options.mixed)
    losses, accuracies = data.columns[x], data.columns[y]
    option_validation.check_fractions(y, accuracies, data.names)
    option_validation.check_above_chance(y, accuracies, losses, chance)
    points = data if anchor is None else _with_anchor(data, x, y, anchor)
    build_problem = _sigmoid if form == "sigmoid" else _exponential
    problem = build_problem(points.columns[x], points.columns[y], {"L": x, "acc": y})
    problem.bounds = (0.0 if chance is None else chance, 1.0)
    result = estimation.fit_problem(problem, points, options).extend(AccuracyFit, chance=chance)
    result.data = data  # the anchor is not a measurement: it is only in the objective
    residuals = result.fitted - accuracies
    variation = ((accuracies - accuracies.mean()) ** 2).sum()
    result.r_squared = float(1 - (residuals**2).sum() / variation)
    if result.r_squared < 0.5:
        text = f"the loss explains only {result.r_squared:.0%} of the variance of the accuracy"
        result.warnings += [text]
    # The rows of the table are already selected, compared and smoothed.
    same = replace(options, where=None, mixed=True, drop=0.0, window=1)

    def refit(rows: run_table.Rows | None = None, **changes: Any) -> fit.Fit:
        rows = data.rows if rows is None else rows
        return _fit_curve(rows, x, y, form, chance, anchor, run, fit.change_options(same, changes))

    result.refit = refit
    result.backtester = partial(backtesting.backtest, falling=True)
    return result


def _with_anchor(
    data: run_table.RunTable, x: str, y: str, anchor: Sequence[float]
) -> run_table.RunTable:
    """Return the table with an additional row, the anchor, in a group of its own."""
    columns = {x: np.r_[data.columns[x], anchor[0]], y: np.r_[data.columns[y], anchor[1]]}
    row = {x: anchor[0], y: anchor[1], "name": "anchor"}
    groups = np.r_[data.groups, data.groups.max() + 1]
    return run_table.RunTable(
        columns, [*data.names, "anchor"], groups, [*data.rows, row], data.excluded, data.warnings
    )


def _objective(curve):
    """Return the objective of y, not log y: there, squares of "logs" are squares of y."""
    names = {"squares": "log_squares"}
    return lambda loss, delta: solver.curve(curve, names.get(loss) or loss, delta)


def _logistic(t: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.clip(t, -500, 500)))


def _sigmoid(losses: np.ndarray, accuracies: np.ndarray, columns: dict) -> estimation.FitProblem:
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
    return estimation.FitProblem(
        law="accuracy_from_loss",
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


def _exponential(
    losses: np.ndarray, accuracies: np.ndarray, columns: dict
) -> estimation.FitProblem:
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

    end_values = [float(accuracies[i]) for i in (losses.argmin(), losses.argmax())]
    return estimation.FitProblem(
        law="accuracy_from_loss",
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


@dataclass(kw_only=True)
class TwoStepFit(fit.Fit):
    """Two fits in sequence: a law of the loss, and the accuracy as a function of that loss."""

    step1: fit.Fit
    step2: fit.Fit


def two_step(step1: fit.Fit, step2: fit.Fit) -> TwoStepFit:
    """Predict accuracy from N and D (or C): `step2` (accuracy_from_loss) of `step1`.

    step1: fit of the loss. step2: fit of the accuracy to the same loss. `predict` takes the inputs
    of step 1. Parameters are those of both fits, named step1_E and step2_k. Paired ensembles
    contain both uncertainties (Bhagia et al. 2024). Raises ValueError if their losses differ.
    """
    fit.check_fits(step1=step1, step2=step2)
    if step2.inputs != ["L"]:
        raise ValueError(f"step2 must be a fit of accuracy_from_loss, it is {step2.law}")
    loss, accuracy = step1.columns[step1.output], step2.columns["acc"]
    if loss != (read := step2.columns["L"]):
        raise ValueError(f"step1 predicts {loss} but step2 reads {read}: fit both to the same loss")
    names1, names2 = _qualified_names(step1, "step1"), _qualified_names(step2, "step2")
    params = {names1[k]: v for k, v in step1.params.items()}
    params |= {names2[k]: v for k, v in step2.params.items()}
    derived = {names1[k]: v for k, v in step1.derived.items()}
    formula = f"{_qualified_formula(step1, names1)};  {_qualified_formula(step2, names2)}"
    ensemble, n_draws = _pair_ensembles(step1, step2, names1, names2)
    ensemble |= {k: np.full(n_draws, v) for k, v in params.items() if k not in ensemble and n_draws}

    def values(params, *inputs):
        losses = step1.values({name: params[names1[name]] for name in step1.params}, *inputs)
        accuracies = step2.values({name: params[names2[name]] for name in step2.params}, losses)
        return np.clip(accuracies, *step2.bounds)

    measured = np.array([run_table.to_number(row.get(accuracy)) for row in step1.data.rows])
    result = replace(
        step1.extend(TwoStepFit, step1=step1, step2=step2),
        law="two_step",
        formula=formula,
        params=params,
        values=values,
        columns={**{k: step1.columns[k] for k in step1.inputs}, "acc": accuracy, "L": loss},
        data=replace(step1.data, columns={**step1.data.columns, accuracy: measured}),
        loss=f"{step1.loss} in step 1",
        ensemble=ensemble,
        derived={k: v for k, v in derived.items() if f"{{{k}}}" in formula},
        free=list(params),
        fixed={},
        refit=None,
        backtester=partial(_describe_scores, step1, step2),
        output_transform=None,
        bounds=step2.bounds,
        additive_noise=True,
        sigma=step2.sigma,
        sigmas=None if step2.sigmas is None else step2.sigmas[:n_draws],
        warnings=[f"step 1: {text}" for text in step1.warnings]
        + [f"step 2: {text}" for text in step2.warnings],
        resampling=f"step 1 {step1.resampling}, step 2 {step2.resampling}",
        optima=[],
        seed_noise=None,
        r_squared=None,
        **form_uncertainty.join_steps(step1, step2, names1, n_draws),
    )
    result.undetermined += [names2[name] for name in step2.undetermined]
    result.undetermined_at = partial(_is_undetermined, step1, step2)
    return result


def _is_undetermined(
    step1: fit.Fit, step2: fit.Fit, _: fit.Fit, points: list[np.ndarray]
) -> np.ndarray:
    """Return a mask of the points where the rows of a step do not determine its value."""
    mask = np.zeros(points[0].shape, bool)
    losses = [np.asarray(step1.values(step1.params, *points), float)]
    for step, inputs in ((step1, points), (step2, losses)):
        if step.undetermined_at is not None:
            mask |= step.undetermined_at(step, inputs)
    return mask


def _qualified_names(step: fit.Fit, prefix: str) -> dict[str, str]:
    """Return the names in the two-step law of the parameters and derived parameters of a step."""
    names = dict.fromkeys([*step.ensemble, *step.params, *step.derived])
    return {name: f"{prefix}_{name}" for name in names}


def _qualified_formula(step: fit.Fit, names: dict[str, str]) -> str:
    return step.formula.format(**{name: f"{{{key}}}" for name, key in names.items()})


def _pair_ensembles(
    step1: fit.Fit, step2: fit.Fit, names1: dict[str, str], names2: dict[str, str]
) -> tuple[fit.Ensemble, int]:
    """Return the draws of both steps, as many as the shorter ensemble has, and their number.

    Without the draws of one step, an interval would lack its uncertainty: there are no draws then.
    """
    if not step1.ensemble or not step2.ensemble:
        return {}, 0
    n_draws = min(len(draws) for step in (step1, step2) for draws in step.ensemble.values())
    ensemble = {names1[k]: draws[:n_draws] for k, draws in step1.ensemble.items()}
    ensemble |= {names2[k]: draws[:n_draws] for k, draws in step2.ensemble.items()}
    return ensemble, n_draws


def _describe_scores(step1: fit.Fit, step2: fit.Fit, _: fit.Fit) -> backtesting.BacktestScore:
    return backtesting.BacktestScore(reason=f"step 1: {step1.score}; step 2: {step2.score}")


def one_step(
    rows: run_table.Rows,
    x: str | Sequence[str] = "flops",
    y: str = "eval.completion",
    chance: float = 0.0,
    **options: Any,
) -> fit.Fit:
    """Fit -log q = A C^-alpha, with q = (acc - chance) / (1 - chance): accuracy from compute.

    This is the direct law of Krajewski et al. (arXiv:2512.08894) for runs with the same number of
    tokens per parameter. The fit is by least squares on log(-log q).

    x: column of FLOPs, or other columns as in `power_laws.power`. y: column of the accuracy.
    chance: accuracy of random answers, a fraction. Rows at or below chance, or at accuracy 1, have
    no logarithm and are excluded. Parameters: A, alpha. `predict(C)` returns the accuracy. The
    options are those of `power_laws.power`.
    """
    parsed = fit.parse_options(
        "one_step", options, fit.FitOptions(loss="log_squares"), power_laws.OPTIONS
    )
    inputs = power_laws.letter_inputs(x)
    option_validation.check_columns(y=y)
    option_validation.check_option_values({"chance": float("nan") if chance is None else chance})
    data = run_table.select_columns(
        rows, [*inputs.values(), y], parsed.group, parsed.where, [y], parsed.mixed
    )
    accuracies = data.columns[y]
    q = (accuracies - chance) / (1 - chance)
    is_valid = (q > 0) & (q < 1)
    if is_valid.sum() < 2:
        raise ValueError(
            f"{y} is at chance ({chance:g}) or at 1 in all but {is_valid.sum()} rows: no law can "
            "be fitted"
        )
    column = f"-log {y}"
    valid_rows = [{**data.rows[i], column: float(-np.log(q[i]))} for i in np.flatnonzero(is_valid)]
    power_options = replace(parsed, group=None, where=None, mixed=True)
    result = power_laws.sum_of_powers(valid_rows, inputs, column, "power", False, power_options)
    result.data.excluded[:] = data.excluded + [
        (data.names[i], f"{y} is {accuracies[i]:g}, not between chance and 1")
        for i in np.flatnonzero(~is_valid)
    ]
    right_side = result.formula.partition(" = ")[2]
    result.law = "one_step"
    result.formula = f"-log q = {right_side}, acc = {chance:g} + {1 - chance:g} q"
    result.refit = partial(_refit_one_step, result.refit, chance)
    return _with_accuracy_output(result, chance)


def _with_accuracy_output(result: fit.Fit, chance: float) -> fit.Fit:
    """Set the transform from -log q to accuracy."""
    result.output_transform = lambda values: chance + (1 - chance) * np.exp(-values)
    result.bounds = (chance, 1.0)
    return result


def _refit_one_step(refit_power, chance: float, rows=None, **changes: Any) -> fit.Fit:
    return _with_accuracy_output(refit_power(rows, **changes), chance)
