"""User-defined laws: a formula with starts, bounds and priors.

Legend: S parameter vectors, n rows, p free parameters. theta is the vector of the free parameters
in unit scale: logs of positive parameters, and other parameters divided by their largest start.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lm.laws import backtesting, estimation, fit, run_table, solver
from lm.laws.formulas import expressions

OPTIONS = ("loss", "delta", "fixed", "weights", *fit.RESAMPLING_OPTIONS)
MAX_STARTS = 5000
MIN_PRIOR_DRAWS = 100  # with fewer effective draws, prior and data disagree
Bounds = Mapping[str, tuple[float | None, float | None]]
Priors = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class CustomForm:
    """Definition of a user-defined law, see `custom`."""

    form: str | Callable[..., Any]
    inputs: Mapping[str, str]  # letter -> column
    output: str  # column
    starts: Any
    bounds: Bounds
    priors: Priors = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)  # name -> formula of parameters
    law: str = "custom"


def custom(
    rows: run_table.Rows,
    form: str | Callable[..., Any],
    x: Mapping[str, str],
    y: str = "eval.loss",
    starts: Any = None,
    bounds: Bounds | None = None,
    priors: Priors | None = None,
    **options: Any,
) -> fit.Fit:
    """Fit a user-defined law, by default by least squares on the log of y.

    form: right side of the law as text, such as "E + A * (N + N0)**-alpha" (see `expressions`), or
    a function with the inputs and the parameters as keyword arguments. The function must accept
    NumPy arrays. Only text can be saved. x: {letter of an input: column}. y: column of the result.
    starts: a value or a list of values per parameter, {"E": 1.5, "alpha": [0.1, 0.5]}, of which all
    combinations are used, or a list of dicts.

    bounds: {parameter: (low, high)}, None for no bound. A parameter with positive starts and
    without a bound, or with a low bound above 0, is positive and varies in logs. Any other
    parameter varies linearly: {"E": (0, None)} permits E = 0.

    priors: {parameter: (mean, standard deviation)} of normal distributions. The parameters maximize
    the posterior density, with the noise of the fit without priors. The draws are those of that
    fit, resampled with the prior as weight. Priors need loss="log_squares" and bootstrap, and do
    not replace rows: there must be at least as many rows as parameters.

    Options (`fit.FitOptions`): loss, delta, fixed, weights, group, where, mixed, bootstrap,
    resample, seed, reach. `predict` takes the inputs in the order of x. Raises ValueError for a
    parameter without a start, and for starts at which the law is not positive.
    """
    parsed = fit.parse_options("custom", options, fit.FitOptions(loss="log_squares"), OPTIONS)
    definition = CustomForm(form, dict(x), y, starts, bounds or {}, priors or {})
    return fit_form(rows, definition, parsed)


def fit_form(rows: run_table.Rows, definition: CustomForm, options: fit.FitOptions) -> fit.Fit:
    """Fit the law of a definition. `custom` describes the arguments and errors."""
    weights = [options.weights] if options.weights else []
    columns = [*definition.inputs.values(), *weights, definition.output]
    data = run_table.select_columns(
        rows, columns, options.group, options.where, mixed=options.mixed
    )
    model = CustomModel.of_definition(definition, data, dict(options.fixed or {}))
    row_weights = data.columns[options.weights] if options.weights else None
    problem = _build_problem(model, definition)
    if definition.priors:
        _check_priors(model, definition.priors, options)
    result = estimation.fit_problem(problem, data, options, row_weights)
    if definition.priors:
        result = _fit_with_priors(model, definition, data, options, result, row_weights)
    if isinstance(definition.form, str):
        result.expression = definition.form
    same = replace(options, where=None, mixed=True)

    def refit(rows: run_table.Rows | None = None, **changes: Any) -> fit.Fit:
        rows = data.rows if rows is None else rows
        changed = definition
        if "starts" in changes:
            changed = replace(definition, starts=changes.pop("starts"))
        return fit_form(rows, changed, replace(same, **changes))

    result.refit = refit
    result.backtester = backtesting.backtest
    return result


@dataclass
class CustomModel:
    """User-defined law at the rows of a fit, over theta."""

    evaluate: Callable[[Mapping[str, Any]], Any]  # inputs and parameters -> value of the law
    letters: list[str]
    points: list[np.ndarray]
    names: list[str]  # of all parameters
    fixed: dict[str, float]
    starts: list[dict[str, float]]
    is_log: dict[str, bool]
    scales: dict[str, float]
    limits: dict[str, tuple[float, float]]
    has_complex_step: bool = True

    @classmethod
    def of_definition(
        cls, definition: CustomForm, data: run_table.RunTable, fixed: dict[str, float]
    ) -> "CustomModel":
        """Check a definition and return its model. Raises ValueError for an invalid definition."""
        letters = list(definition.inputs)
        starts = _list_starts(definition.starts)
        evaluate, names = _parse_form(definition.form, letters, starts, fixed)
        for kind, given_names in (
            ("fixed", fixed), ("bounds", definition.bounds), ("priors", definition.priors)
        ):  # fmt: skip
            unknown = [name for name in given_names if name not in names]
            if unknown:
                raise ValueError(
                    f"{kind}={', '.join(unknown)} is no parameter of the law; known: "
                    f"{', '.join(names)}"
                )
        free = [name for name in names if name not in fixed]
        if not free:
            raise ValueError("fixed= contains all parameters: leave at least one free")
        missing = [name for name in free if any(name not in start for start in starts)]
        if missing:
            raise ValueError(
                f"starts has no value for {', '.join(missing)}; pass starts={{{missing[0]!r}: "
                "[...]}"
            )
        limits = {name: _limits(name, definition.bounds.get(name)) for name in free}
        is_log = {
            name: all(start[name] > 0 for start in starts)
            and (limits[name][0] > 0 or name not in definition.bounds)
            for name in free
        }
        scales = {name: max(abs(start[name]) for start in starts) or 1.0 for name in free}
        points = [data.columns[column] for column in definition.inputs.values()]
        model = cls(evaluate, letters, points, names, fixed, starts, is_log, scales, limits)
        model.has_complex_step = model.agrees_with_differences()
        return model

    @property
    def free(self) -> list[str]:
        """Names of the fitted parameters."""
        return [name for name in self.names if name not in self.fixed]

    def natural(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Convert theta [S, p], which may be complex, to parameters, each [S]."""
        columns = dict(zip(self.free, theta.T, strict=True))
        params: dict[str, np.ndarray] = {}
        for name in self.names:
            if name in self.fixed:
                params[name] = np.full(len(theta), float(self.fixed[name]))
            elif self.is_log[name]:
                with np.errstate(over="ignore"):
                    params[name] = np.exp(columns[name])
            else:
                params[name] = columns[name] * self.scales[name]
        return params

    def internal(self, name: str, value: float) -> float:
        """Convert the value of a parameter to its component of theta."""
        if not self.is_log[name]:
            return value / self.scales[name]
        return float(np.log(value)) if value > 0 else -np.inf

    def values(self, params: Mapping[str, Any], *points: Any) -> np.ndarray:
        """Return the value of the law at the inputs."""
        inputs = dict(zip(self.letters, points, strict=True))
        parameters = {name: params[name] for name in self.names}
        shape = np.broadcast_shapes(*(np.shape(v) for v in (*points, *parameters.values())))
        return np.broadcast_to(np.asarray(self.evaluate({**inputs, **parameters})), shape)

    def log_f(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the log of the law [S, n] and its Jacobian [S, n, p].

        The Jacobian is that of the complex-step method, exact up to rounding. For a function that
        accepts no complex numbers, it is a central difference.
        """
        with np.errstate(all="ignore"):
            value = np.log(self.at_rows(theta))
            slopes = []
            for unit in np.eye(theta.shape[1]):
                if self.has_complex_step:
                    step = 1e-30
                    slopes.append(np.imag(np.log(self.at_rows(theta + 1j * step * unit))) / step)
                else:
                    step = 1e-6
                    ends = [np.log(self.at_rows(theta + s * unit)) for s in (step, -step)]
                    slopes.append((ends[0] - ends[1]) / (2 * step))
        return value, np.stack(slopes, -1)

    def at_rows(self, theta: np.ndarray) -> np.ndarray:
        """Return the law [S, n] at the rows."""
        params = {name: v[:, None] for name, v in self.natural(theta).items()}
        return self.values(params, *(x[None] for x in self.points))

    def agrees_with_differences(self) -> bool:
        """Return True if complex steps give the derivatives of the law at its first start."""
        theta = self.start_matrix()[:1]
        try:
            by_complex_step = self.log_f(theta)[1]
        except TypeError:
            return False
        self.has_complex_step = False
        by_difference = self.log_f(theta)[1]
        scale = 1e-4 * (1 + np.abs(by_difference))
        return bool((np.abs(by_complex_step - by_difference) <= scale).all())

    def start_matrix(self) -> np.ndarray:
        """Return theta of the starts, [S, p]."""
        return np.array(
            [[self.internal(name, start[name]) for name in self.free] for start in self.starts]
        )


def _list_starts(starts: Any) -> list[dict[str, float]]:
    """Return one dict per start. Raises ValueError for no starts and for too many."""
    if isinstance(starts, Mapping) and starts:
        values = [np.atleast_1d(np.asarray(v, float)) for v in starts.values()]
        n_starts = int(np.prod([len(v) for v in values]))
        if n_starts > MAX_STARTS:
            raise ValueError(f"starts has {n_starts} combinations, more than {MAX_STARTS}")
        grid = np.stack([v.ravel() for v in np.meshgrid(*values, indexing="ij")], 1)
        starts = [dict(zip(starts, row, strict=True)) for row in grid.tolist()]
    if not isinstance(starts, Sequence) or not starts:
        raise ValueError(
            'starts is empty: pass a value or values per parameter, {"E": 1.5, "alpha": [0.1, 0.5]}'
        )
    return [{name: float(value) for name, value in start.items()} for start in starts]


def _parse_form(
    form: str | Callable[..., Any],
    letters: list[str],
    starts: list[dict[str, float]],
    fixed: Mapping[str, float],
) -> tuple[Callable[[Mapping[str, Any]], Any], list[str]]:
    """Return the function of a law, and the names of its parameters."""
    if callable(form):
        return lambda values: form(**values), list(dict.fromkeys([*starts[0], *fixed]))
    expression = expressions.parse_expression(form)
    unused = [letter for letter in letters if letter not in expression.names]
    if unused:
        raise ValueError(f"form={form!r} does not contain the input {', '.join(unused)} of x")
    return expression.evaluate, [name for name in expression.names if name not in letters]


def _limits(name: str, bounds: tuple[float | None, float | None] | None) -> tuple[float, float]:
    """Return the bounds of a parameter. Raises ValueError unless low < high."""
    low, high = bounds or (None, None)
    low, high = (-np.inf if low is None else float(low)), (np.inf if high is None else float(high))
    if not low < high:
        raise ValueError(f"bounds of {name} are ({low:g}, {high:g}): low must be below high")
    return low, high


def _build_problem(model: CustomModel, definition: CustomForm) -> estimation.FitProblem:
    """Return the problem of a user-defined law."""
    starts = model.start_matrix()
    lower, upper = (
        np.array([model.internal(name, model.limits[name][k]) for name in model.free])
        for k in (0, 1)
    )
    with np.errstate(all="ignore"):
        is_valid = (model.at_rows(np.clip(starts, lower, upper)) > 0).all(1)
    if not is_valid.any():
        raise ValueError(
            "the law is not positive and finite at all rows at any of its starts: change starts"
        )
    output = "y" if definition.output not in ("loss", "eval.loss") else "L"
    while output in model.letters:
        output += "'"
    text = getattr(definition.form, "__name__", "form").strip("<>")
    if isinstance(definition.form, str):
        text = expressions.parse_expression(definition.form).template(model.names)
    else:
        text += "(" + ", ".join(f"{name} = {{{name}}}" for name in model.names) + ")"
    derived = {
        name: expressions.parse_expression(value) for name, value in definition.derived.items()
    }
    return estimation.FitProblem(
        law=definition.law,
        formula=f"{output}({', '.join(model.letters)}) = {text}",
        columns={**definition.inputs, output: definition.output},
        inputs=model.letters,
        objective=lambda loss, delta: solver.curve(model.log_f, loss, delta),
        starts=np.clip(starts[is_valid], lower, upper),
        lower=lower,
        upper=upper,
        natural=model.natural,
        values=model.values,
        free=model.free,
        fixed=model.fixed,
        derive=lambda params: {name: value.evaluate(params) for name, value in derived.items()},
    )


def _check_priors(model: CustomModel, priors: Priors, options: fit.FitOptions) -> None:
    """Raise ValueError for invalid priors, and for a loss without a noise variance."""
    if options.loss != "log_squares":
        raise ValueError(f"loss={options.loss!r} has no priors: use log_squares")
    for name, (mean, sd) in priors.items():
        if not (np.isfinite(mean) and np.isfinite(sd) and sd > 0) or name in model.fixed:
            raise ValueError(
                f"priors[{name!r}]=({mean}, {sd}) must have a positive standard deviation, and "
                f"{name} must not be fixed"
            )


def _fit_with_priors(
    model: CustomModel,
    definition: CustomForm,
    data: run_table.RunTable,
    options: fit.FitOptions,
    without: fit.Fit,
    weights: np.ndarray | None,
) -> fit.Fit:
    """Return the fit of maximal posterior density; `without` is the fit without priors."""
    problem = _build_problem(model, definition)
    base, noise = problem.objective, without.sigma

    def objective(loss: str, delta: float) -> solver.Objective:
        return _add_priors(base(loss, delta), model, definition.priors, noise)

    problem.objective = objective
    result = estimation.fit_problem(problem, data, replace(options, bootstrap=0), weights)
    names = ", ".join(definition.priors)
    if not without.ensemble:
        return result
    z = [(without.ensemble[k] - mean) / sd for k, (mean, sd) in definition.priors.items()]
    log_weights = -0.5 * (np.stack(z) ** 2).sum(0)
    density = np.exp(log_weights - log_weights.max())
    density = density / density.sum()
    n_effective = 1 / (density**2).sum()
    index = np.random.default_rng((options.seed, 3)).choice(
        len(density), size=len(density), p=density
    )
    result.ensemble = {name: draws[index] for name, draws in without.ensemble.items()}
    result.sigmas = None if without.sigmas is None else without.sigmas[index]
    result.resampling = f"{without.resampling}, weighted by the priors of {names}"
    if n_effective < MIN_PRIOR_DRAWS:
        result.warnings.append(
            f"the priors of {names} leave {n_effective:.0f} effective draws: they disagree with the"
            " data or are much narrower, so the intervals are rough"
        )
    return result


def _add_priors(
    objective: solver.Objective, model: CustomModel, priors: Priors, noise: float
) -> solver.Objective:
    """Return the objective with noise^2 ((parameter - mean) / sd)^2 of each prior added."""

    def penalized(theta: np.ndarray, log_y: np.ndarray, weights: np.ndarray | None):
        value, gradient, hessian, majorizer = (
            part.copy() for part in objective(theta, log_y, weights)
        )
        params = model.natural(theta)
        for name, (mean, sd) in priors.items():
            i, factor = model.free.index(name), (noise / sd) ** 2
            offset = params[name] - mean
            slope = params[name] if model.is_log[name] else model.scales[name]
            value += factor * offset**2
            gradient[:, i] += 2 * factor * offset * slope
            bend = offset * slope if model.is_log[name] else 0.0
            hessian[:, i, i] += 2 * factor * (slope**2 + bend)
            majorizer[:, i, i] += 2 * factor * slope**2
        return value, gradient, hessian, majorizer

    return penalized
