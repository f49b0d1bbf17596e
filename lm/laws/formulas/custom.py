"""User-defined laws: a formula with starts, bounds and priors.

Legend: S parameter vectors, n rows, p free parameters. theta is the vector of the free parameters
in unit scale: logs of positive parameters, and other parameters divided by their largest start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from lm.laws import backtesting, estimation, fit, option_validation, run_table, solver
from lm.laws.formulas import expressions, parameter_priors

OPTIONS = ("loss", "delta", "fixed", "weights", *fit.RESAMPLING_OPTIONS)
MAX_STARTS = 5000
INFINITE = (float("inf"), -float("inf"))
Bounds = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class CustomForm:
    """Definition of a user-defined law, see `custom`."""

    form: str | Callable[..., Any]
    inputs: Mapping[str, str]  # letter -> column
    output: str  # column
    starts: Any
    bounds: Bounds
    priors: parameter_priors.Priors = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)  # name -> formula of parameters
    law: str = "custom"
    floor: str = ""  # parameter that must be below the results, if it is fixed


def custom(
    rows: run_table.Rows,
    form: str | Callable[..., Any],
    x: Mapping[str, str],
    y: str = "eval.loss",
    starts: Any = None,
    bounds: Bounds | None = None,
    priors: parameter_priors.Priors | None = None,
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
    _check_arguments(form, x, y, {"bounds": bounds or {}, "priors": priors or {}})
    definition = CustomForm(form, dict(x), y, starts, bounds or {}, priors or {})
    return fit_form(rows, definition, parsed)


def _check_arguments(form: Any, x: Any, y: Any, pairs_by_argument: Mapping[str, Any]) -> None:
    """Raise ValueError for arguments of `custom` of other types."""
    if not isinstance(form, str) and not callable(form):
        raise ValueError(
            f"form={form!r} must be a formula as text or a function: form='E + A * N**-alpha'"
        )
    if not isinstance(x, Mapping) or not x or not all(isinstance(k, str) and k for k in x):
        raise ValueError(f'x={x!r} must be a dict from letters to columns: x={{"N": "params"}}')
    option_validation.check_columns(**{f"x[{k!r}]": column for k, column in x.items()}, y=y)
    for argument, pairs in pairs_by_argument.items():
        remedy = f'pass {argument}={{"E": (0, 2)}}'
        if not isinstance(pairs, Mapping):
            raise ValueError(f"{argument}={pairs!r} must be a dict of pairs: {remedy}")
        for name, pair in pairs.items():
            is_pair = isinstance(pair, list | tuple) and len(pair) == 2
            may_be_none = argument == "bounds"
            if not is_pair or not all(
                option_validation.is_number(v) or (may_be_none and (v is None or v in INFINITE))
                for v in pair
            ):
                kind = "numbers or None" if may_be_none else "finite numbers"
                raise ValueError(f"{argument}[{name!r}]={pair!r} must be two {kind}: {remedy}")


def fit_form(rows: run_table.Rows, definition: CustomForm, options: fit.FitOptions) -> fit.Fit:
    """Fit the law of a definition. `custom` describes the arguments and errors."""
    weights = [options.weights] if options.weights else []
    columns = [*definition.inputs.values(), *weights, definition.output]
    data = run_table.select_columns(
        rows, columns, options.group, options.where, mixed=options.mixed
    )
    model = CustomModel.of_definition(definition, data, dict(options.fixed or {}))
    row_weights = data.columns[options.weights] if options.weights else None
    _check_variation(data, definition)
    if definition.floor in model.fixed:
        floor = model.fixed[definition.floor]
        y = data.columns[definition.output]
        warning = option_validation.check_floor(definition.floor, floor, y)
        data.warnings.extend([warning] if warning else [])
    problem = _build_problem(model, definition)
    if definition.priors:
        parameter_priors.check_priors(model, definition.priors, options)
    result = estimation.fit_problem(problem, data, options, row_weights)
    if definition.priors:
        result = parameter_priors.fit_with_priors(
            model, problem, definition.priors, data, options, result, row_weights
        )
    if isinstance(definition.form, str):
        result.expression = definition.form
    same = replace(options, where=None, mixed=True)

    def refit(rows: run_table.Rows | None = None, **changes: Any) -> fit.Fit:
        rows = data.rows if rows is None else rows
        changed = definition
        if "starts" in changes:
            changed = replace(definition, starts=changes.pop("starts"))
        return fit_form(rows, changed, fit.change_options(same, changes))

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
        limits = {name: _limits(name, definition.bounds.get(name)) for name in names}
        for name, value in fixed.items():
            low, high = limits[name]
            if not low <= value <= high:
                raise ValueError(
                    f"fixed={{{name!r}: {value!r}}} must be within its bounds {low:g} to {high:g}:"
                    " pass another number, or fit it"
                )
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
        except ValueError:  # The function accepts no complex numbers.
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


def _check_variation(data: run_table.RunTable, definition: CustomForm) -> None:
    """Raise ValueError if the result is equal in all rows, or if all inputs of the law are."""
    if len(data) < 2:
        return
    if np.ptp(np.log(data.columns[definition.output])) < 1e-9:
        value = data.columns[definition.output][0]
        raise ValueError(
            f"{definition.output} is {value:g} in every row: there is no law to fit; pass rows with"
            " other results"
        )
    is_equal = {
        column: np.ptp(np.log(data.columns[column])) < 1e-9 for column in definition.inputs.values()
    }
    if all(is_equal.values()) or (definition.law != "custom" and any(is_equal.values())):
        column = next(column for column, flag in is_equal.items() if flag)
        raise ValueError(
            f"{column} is {data.columns[column][0]:g} in every row: there is no law to fit; pass"
            " rows with other values of it"
        )


def _list_starts(starts: Any) -> list[dict[str, float]]:
    """Return one dict per start. Raises ValueError for invalid starts and for too many."""
    if starts is None:
        raise ValueError(
            'starts=None: pass a value or values per parameter, {"E": 1.5, "alpha": [0.1, 0.5]}'
        )
    option_validation.check_starts(starts)
    if isinstance(starts, Mapping):
        values = [np.atleast_1d(np.asarray(v, float)) for v in starts.values()]
        n_starts = int(np.prod([len(v) for v in values]))
        if n_starts > MAX_STARTS:
            raise ValueError(f"starts has {n_starts} combinations, more than {MAX_STARTS}")
        grid = np.stack([v.ravel() for v in np.meshgrid(*values, indexing="ij")], 1)
        starts = [dict(zip(starts, row, strict=True)) for row in grid.tolist()]
    return [{name: float(value) for name, value in start.items()} for start in starts]


def _parse_form(
    form: str | Callable[..., Any],
    letters: list[str],
    starts: list[dict[str, float]],
    fixed: Mapping[str, float],
) -> tuple[Callable[[Mapping[str, Any]], Any], list[str]]:
    """Return the function of a law, and the names of its parameters."""
    if callable(form):
        return partial(_call_form, form), list(dict.fromkeys([*starts[0], *fixed]))
    expression = expressions.parse_expression(form)
    unused = [letter for letter in letters if letter not in expression.names]
    if unused:
        raise ValueError(f"form={form!r} does not contain the input {', '.join(unused)} of x")
    return expression.evaluate, [name for name in expression.names if name not in letters]


def _call_form(form: Callable[..., Any], values: Mapping[str, Any]) -> np.ndarray:
    """Return the value of a user-defined function. Raises ValueError if it fails."""
    name = getattr(form, "__name__", "form")
    try:
        result = np.asarray(form(**values))
    except Exception as error:
        raise ValueError(
            f"form={name} has raised {type(error).__name__} ({error}): it must accept"
            f" {', '.join(values)} as keyword arguments, which are NumPy arrays"
        ) from error
    if result.dtype.kind not in "fciu":
        raise ValueError(f"form={name} has returned {result.dtype}: it must return numbers")
    return result


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
