"""Sums of power laws: power, chinchilla, overtrained.

Legend: N parameters, D tokens, C FLOPs, M = D / N, L loss. log L = logsumexp(log E, log A - alpha
log N, log B - beta log D). Each term is affine in the parameters, so gradients and Hessians are
exact and fast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lm.laws import (
    backtesting,
    estimation,
    fit,
    option_validation,
    run_table,
    solver,
)
from lm.laws.forms import initial_values

COEFFICIENTS, EXPONENTS = ("A", "B", "C", "F"), ("alpha", "beta", "gamma", "zeta")
MIN_SPREAD = 0.03  # across the main line of the inputs, relative to the spread along it
OPTIONS = ("loss", "delta", "fixed", "starts", "weights", *fit.RESAMPLING_OPTIONS)


def power(
    rows: run_table.Rows,
    x: str | Sequence[str] = "params.non_embedding",
    y: str = "eval.loss",
    floor: bool | float = True,
    **options: Any,
) -> fit.Fit:
    """Fit L(x) = E + A x^-alpha, by default by least squares on log L.

    x: one column (parameters, tokens, FLOPs) or several: L = E + A x1^-alpha + B x2^-beta + C
    x3^-gamma. y: column of the loss. floor: False removes E, a number fixes E. Parameters: E, A,
    alpha. `predict(x)` returns L. Options (`fit.FitOptions`): loss, delta, fixed, starts, weights,
    group, where, mixed, bootstrap, resample, seed, reach.

    In 1,000 simulated sweeps of seven runs with noise of 0.3%, 95% intervals at 2, 4, 10 and 30
    times the largest N contained a new run in 96, 98, 97 and 98% if the form was right, at 1.2,
    1.4, 1.7 and 1.9 times the width that assumes the form. Wrong forms that bend the residuals (two
    powers, shifted power, capped tokens, a break to a steeper law) were covered in 95-100, 93-100,
    89-100 and 87-100%. Intervals that assume the form covered four of these five in 0-54% at 10x.
    A break to a flatter law, which the floor E imitates, was covered in 88, 74, 62 and 54%. See
    `form_uncertainty` and experiments/benchmarks/law_coverage.py.
    """
    parsed = fit.parse_options("power", options, fit.FitOptions(loss="log_squares"), OPTIONS)
    option_validation.check_columns(y=y)
    return sum_of_powers(rows, letter_inputs(x), y, "power", floor, parsed)


def letter_inputs(x: str | Sequence[str]) -> dict[str, str]:
    """Return {letter in the formula: column} of one or several columns.

    Raises ValueError for other values.
    """
    columns: list[Any] = list(x) if isinstance(x, list | tuple) else [x]
    if not columns or len(set(map(str, columns))) < len(columns):
        raise ValueError(f"x={x!r} must be a column or a list of different columns: name them")
    for column in columns:
        option_validation.check_columns(x=column)
    return {run_table.column_letter(column, i, columns): column for i, column in enumerate(columns)}


def chinchilla(
    rows: run_table.Rows,
    n: str = "params.non_embedding",
    d: str = "tokens",
    y: str = "eval.loss",
    floor: bool | float = True,
    **options: Any,
) -> fit.Fit:
    """Fit L(N, D) = E + A N^-alpha + B D^-beta (approach 3 of Hoffmann et al. 2022).

    The law is that of arXiv:2203.15556. n, d, y: columns of N, D and L. The default objective is
    the SUM of Huber losses (delta=1e-3) on log L. loss="absolute" is the objective of Besiroglu et
    al. 2024 (arXiv:2404.10102), loss="squares" is least squares on L. tied=True uses one exponent
    alpha. floor: see `power`.

    `predict(N, D)` returns L. Parameters: E, A, B, alpha, beta. Derived parameters are the
    exponents of N* ~ C^a and D* ~ C^b: a = beta / (alpha + beta), b = 1 - a. Options: tied and the
    options of `power`.
    """
    parsed = fit.parse_options("chinchilla", options, fit.FitOptions(), ("tied", *OPTIONS))
    option_validation.check_columns(n=n, d=d, y=y)
    return sum_of_powers(rows, {"N": n, "D": d}, y, "chinchilla", floor, parsed)


def overtrained(
    rows: run_table.Rows,
    n: str = "params.non_embedding",
    d: str = "tokens",
    y: str = "eval.loss",
    floor: bool | float = True,
    **options: Any,
) -> fit.Fit:
    """Fit L(C, M) = E + (a M^eta + b M^-eta) C^-eta, C = 6 N D, M = D / N (Gadre et al. 2024).

    The law is that of arXiv:2403.08540. It equals E + A N^-alpha + B D^-alpha: eta = alpha / 2, a =
    A 6^eta, b = B 6^eta. n, d, y: columns of N, D and L. floor: see `power`. The default is least
    squares on L, as in the paper. `predict(N, D)` returns L. Parameters: E, A, B, alpha; derived:
    a, b, eta. Options: those of `power`.
    """
    defaults = fit.FitOptions(loss="squares", tied=True)
    parsed = fit.parse_options("overtrained", options, defaults, OPTIONS)
    option_validation.check_columns(n=n, d=d, y=y)
    return sum_of_powers(rows, {"N": n, "D": d}, y, "overtrained", floor, parsed)


def sum_of_powers(
    rows: run_table.Rows,
    inputs: Mapping[str, str],
    y: str,
    law: str,
    floor: bool | float,
    options: fit.FitOptions,
) -> fit.Fit:
    """Fit L = E + sum of coefficient x^-exponent over `inputs` (letter -> column of the rows).

    Exponents are >= 0. They have any sign if there is one term and no E. options.starts is a grid
    {"log_A": [...], "log_B": [...], "log_E": [...], "alpha": [...], "beta": [...]} (names or their
    logs) or a list of dicts. Starts are moved into the range of the data. Raises ValueError for
    rows that do not determine the law: fewer rows than parameters, an input with a single value,
    wrong values (see `run_table.select_columns`).
    """
    fixed, has_floor = dict(options.fixed or {}), floor is not False
    if not isinstance(floor, bool):
        if not option_validation.is_number(floor):
            raise ValueError(f"floor={floor!r} must be a finite number, True to fit E, or False")
        fixed["E"] = floor
    weights = [options.weights] if options.weights else []
    data = run_table.select_columns(
        rows, [*inputs.values(), *weights, y], options.group, options.where, mixed=options.mixed
    )
    warning = option_validation.check_fixed_powers(fixed, EXPONENTS, data.columns[y])
    data.warnings.extend([warning] if warning else [])
    problem = _build_problem(data, inputs, y, law, has_floor, replace(options, fixed=fixed))
    row_weights = data.columns[options.weights] if options.weights else None
    result = estimation.fit_problem(problem, data, options, row_weights)
    # data.rows are the included rows, which are comparable.
    same = replace(options, fixed=fixed, where=None, mixed=True)

    def refit(rows: run_table.Rows | None = None, **changes: Any) -> fit.Fit:
        rows = data.rows if rows is None else rows
        return sum_of_powers(rows, inputs, y, law, has_floor, fit.change_options(same, changes))

    result.refit = refit
    result.backtester = backtesting.backtest
    if len(inputs) == 2 and _spread(data, inputs) < MIN_SPREAD:
        result.max_off_line_factor = 1.5
        result.warnings.append(
            "N and D lie on one line: A and B are not separable, and predict refuses points off it"
        )
    return result


def _spread(data: run_table.RunTable, inputs: Mapping[str, str]) -> float:
    """Return the smallest over the largest singular value of the centered logs of the inputs."""
    logs = np.log(np.stack([data.columns[column] for column in inputs.values()]))
    values = np.linalg.svd(logs - logs.mean(1, keepdims=True), compute_uv=False)
    return float(values[-1] / values[0])


@dataclass
class PowerSum:
    """Sum of power laws over theta of unit scale.

    theta contains the free parameters: log E, log coefficients at the center of the data, and
    exponents times the spread of the data.
    """

    log_y: np.ndarray
    log_x: list[np.ndarray]
    has_floor: bool
    tied: bool
    fixed: dict[str, float]

    def __post_init__(self) -> None:
        n_terms = len(self.log_x)
        self.centers = [float(v.mean()) for v in self.log_x]
        self.scale = float(np.mean([v.std() for v in self.log_x]))
        self.coefficients = list(COEFFICIENTS[:n_terms])
        self.exponents = [EXPONENTS[0] if self.tied else EXPONENTS[k] for k in range(n_terms)]
        exponents = list(dict.fromkeys(self.exponents))
        self.names = (["E"] if self.has_floor else []) + self.coefficients + exponents
        self.free = [name for name in self.names if name not in self.fixed]
        self.index = {name: i for i, name in enumerate(self.free)}

    def terms(self) -> list[solver.Term]:
        """Return the terms of log L, affine in theta."""
        n, index, terms = len(self.log_y), self.index, []
        if "E" in index:
            terms.append(power_term(n, {index["E"]: 1.0}, 0.0))
        elif self.has_floor and self.fixed["E"] > 0:
            terms.append(power_term(n, {}, np.log(self.fixed["E"])))
        names = zip(self.coefficients, self.exponents, strict=True)
        for k, (coefficient, exponent) in enumerate(names):
            columns, offset = {}, 0.0
            centered = self.log_x[k] - (self.centers[k] if coefficient in index else 0.0)
            if coefficient in index:
                columns[index[coefficient]] = 1.0
            else:
                offset = offset + np.log(self.fixed[coefficient])
            if exponent in index:
                columns[index[exponent]] = -centered / self.scale
            else:
                offset = offset - self.fixed[exponent] * centered
            terms.append(power_term(n, columns, offset))
        return terms

    def natural(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Convert theta [S, p] to parameters, each [S]."""
        index = self.index
        params = {name: np.full(len(theta), float(value)) for name, value in self.fixed.items()}
        params |= {
            name: theta[:, index[name]] / self.scale for name in self.exponents if name in index
        }
        if "E" in index:
            params["E"] = np.exp(theta[:, index["E"]])
        for k, name in enumerate(self.coefficients):
            if name in index:
                log_value = theta[:, index[name]] + params[self.exponents[k]] * self.centers[k]
                params[name] = np.exp(log_value)
        return {name: params[name] for name in self.names}

    def internal(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
        """Convert parameters (names or their logs) to theta [S, p]."""
        columns = []
        for name in self.free:
            if name in self.exponents:
                columns.append(params[name] * self.scale)
                continue
            with np.errstate(divide="ignore"):
                value = params[f"log_{name}"] if f"log_{name}" in params else np.log(params[name])
            if name != "E":
                k = self.coefficients.index(name)
                exponent = self.exponents[k]
                slope = params[exponent] if exponent in params else self.fixed[exponent]
                value = value - slope * self.centers[k]
            columns.append(value)
        return np.stack(np.broadcast_arrays(*columns), 1)

    def values(self, params: Mapping[str, Any], *points: np.ndarray) -> np.ndarray:
        """Return L at the inputs."""
        total = params.get("E", 0.0)
        for name, exponent, x in zip(self.coefficients, self.exponents, points, strict=True):
            total = total + params[name] * x ** -params[exponent]
        return np.asarray(total)

    def bounds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the lower and upper bounds of theta, and the lower bounds of starts, each [p]."""
        low, high = self.log_y.min(), self.log_y.max()
        is_signed = not self.has_floor and len(self.coefficients) == 1
        slope = -10 * self.scale if is_signed else 0.0
        is_exponent = [name in self.exponents for name in self.free]
        lower = np.array([slope if flag else low - 12 for flag in is_exponent])
        upper = np.array([10 * self.scale if flag else high + 2 for flag in is_exponent])
        # A term of a thousandth of the loss has no gradient, so starts have larger terms.
        start_lower = np.array([slope if flag else low - 7 for flag in is_exponent])
        return lower, upper, start_lower


def _build_problem(
    data: run_table.RunTable,
    inputs: Mapping[str, str],
    y: str,
    law: str,
    has_floor: bool,
    options: fit.FitOptions,
) -> estimation.FitProblem:
    """Check the columns and the fixed names, and return the problem of a sum of power laws."""
    if not 0 < len(inputs) <= len(COEFFICIENTS):
        raise ValueError(f"{law} accepts 1 to {len(COEFFICIENTS)} inputs, got {len(inputs)}")
    log_y = np.log(data.columns[y])
    log_x = [np.log(data.columns[column]) for column in inputs.values()]
    if len(data) > 1 and np.ptp(log_y) < 1e-9:
        raise ValueError(f"{y} is {np.exp(log_y[0]):g} in every row: there is no law to fit")
    for (letter, column), v in zip(inputs.items(), log_x, strict=True):
        if len(data) > 1 and np.ptp(v) < 1e-9:
            raise ValueError(
                f"{column} is {np.exp(v[0]):g} in every row: no exponent of {letter} can be fitted"
            )
    model = PowerSum(log_y, log_x, has_floor, options.tied, dict(options.fixed or {}))
    unknown = set(model.fixed) - set(model.names)
    if unknown:
        raise ValueError(
            f"fixed={', '.join(sorted(unknown))} is no parameter of {law}; known: "
            f"{', '.join(model.names)}"
        )
    if len(data) < len(model.free):
        raise ValueError(
            f"{law} has {len(model.free)} free parameters and only {len(data)} rows: add runs or "
            "fix a parameter"
        )
    terms = model.terms()
    lower, upper, start_lower = model.bounds()
    theta = (
        initial_values.default_starts(
            log_y, model.free, model.coefficients, model.exponents, model.scale
        )
        if options.starts is None
        else initial_values.start_grid(options.starts, model.free, model.internal)
    )
    return estimation.FitProblem(
        law=law,
        formula=_formula(law, list(inputs), model),
        columns={**inputs, "L": y},
        inputs=list(inputs),
        objective=lambda loss, delta: solver.log_sum_exp(terms, len(model.free), loss, delta),
        starts=np.clip(theta, start_lower, upper),
        lower=lower,
        upper=upper,
        natural=model.natural,
        values=model.values,
        free=model.free,
        fixed=model.fixed,
        derive=partial(_derive, law),
        watch=[name for name in model.exponents if name in model.free],
    )


def power_term(n: int, columns: Mapping[int, Any], offset: Any) -> solver.Term:
    """Return a term of n rows from the columns of X (index in theta -> values) and an offset."""
    X = np.zeros((n, 0))
    if columns:
        X = np.stack([np.broadcast_to(v, n) for v in columns.values()], 1)
    return solver.Term(list(columns), X, np.broadcast_to(np.asarray(offset, float), n))


def _formula(law: str, letters: list[str], model: PowerSum) -> str:
    floor = "{E} + " if model.has_floor else ""
    if law == "overtrained":
        return f"L(C, M) = {floor}" + "({a} M^{eta} + {b} M^-{eta}) C^-{eta}"
    names = zip(model.coefficients, letters, model.exponents, strict=True)
    terms = [f"{{{coefficient}}} {x}^-{{{exponent}}}" for coefficient, x, exponent in names]
    return f"L({', '.join(letters)}) = {floor}" + " + ".join(terms)


def _derive(law: str, p: dict[str, Any]) -> dict[str, Any]:
    """Return the derived parameters: the exponents of N* and D*, or a, b and eta."""
    if law == "overtrained":
        eta = p["alpha"] / 2
        return {"a": p["A"] * 6**eta, "b": p["B"] * 6**eta, "eta": eta}
    if law == "chinchilla":
        alpha, beta = p["alpha"], p.get("beta", p["alpha"])
        a = beta / np.maximum(alpha + beta, 1e-12)
        return {"a": a, "b": 1 - a}
    return {}
