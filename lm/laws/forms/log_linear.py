"""Log-linear fits, such as N* against C or tokens against parameters."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lm.laws import backtesting, estimation, fit, option_validation, run_table, solver
from lm.laws.forms import power_laws

MAX_LOG_K = 600.0  # |log k| of a line, near the limits of floating-point numbers
LINE_OPTIONS = ("weights", *fit.RESAMPLING_OPTIONS)


def log_linear(rows: run_table.Rows, x: str | Sequence[str], y: str, **options: Any) -> fit.Fit:
    """Fit y = k x^exponent, a straight line in logs, by (weighted) least squares on log y.

    Several columns x give y = k x1^exponent x2^exponent2. Parameters: exponent (exponent2, ...), k;
    derived: log10_k, the intercept in log10. `predict(x)`. fit.r_squared is the explained fraction
    of the variance of log y. Options (`fit.FitOptions`): weights, group, where, mixed,
    bootstrap, resample, seed, reach.
    """
    defaults = fit.FitOptions(loss="log_squares")
    parsed = fit.parse_options("log_linear", options, defaults, LINE_OPTIONS)
    power_laws.letter_inputs(x)
    option_validation.check_columns(y=y)
    return fit_line(rows, x, y, "log_linear", parsed)


def fit_line(
    rows: run_table.Rows, x: str | Sequence[str], y: str, law: str, options: fit.FitOptions
) -> fit.Fit:
    """Fit the law y = k x^exponent of `log_linear`, under the name of another law.

    x: one or several columns. law: name of the law in the result and in messages. options: parsed
    options of the law.
    """
    xs = [x] if isinstance(x, str) else list(x)
    weights = [options.weights] if options.weights else []
    columns = [*xs, *weights, y]
    data = run_table.select_columns(
        rows, columns, options.group, options.where, mixed=options.mixed
    )
    problem = _build_line_problem(data, xs, y, law)
    row_weights = data.columns[options.weights] if options.weights else None
    options = replace(options, loss="log_squares", where=None, mixed=True)
    result = estimation.fit_problem(problem, data, options, row_weights)
    log_y = np.log(data.columns[y])
    w = np.ones(len(log_y)) if row_weights is None else row_weights
    spread = (w * (log_y - np.average(log_y, weights=w)) ** 2).sum()
    result.r_squared = 1 - result.objective / spread if spread > 0 else 1.0

    def refit(rows: run_table.Rows | None = None, **changes: Any) -> fit.Fit:
        rows = data.rows if rows is None else rows
        return fit_line(rows, x, y, law, fit.change_options(options, changes))

    result.refit = refit
    result.backtester = backtesting.backtest
    return result


def _build_line_problem(
    data: run_table.RunTable, xs: list[str], y: str, law: str
) -> estimation.FitProblem:
    """Return the problem of a line: theta is log y at the center of the data, and the exponents."""
    inputs = power_laws.letter_inputs(xs)
    letters = list(inputs)
    names = ["exponent", *[f"exponent{i + 2}" for i in range(len(xs) - 1)]]
    logs, log_y = [np.log(data.columns[column]) for column in xs], np.log(data.columns[y])
    _check_independent(xs, logs)
    centers = [float(v.mean()) for v in logs]
    design = np.stack([np.ones(len(log_y)), *logs], 1)
    log_k = float(np.linalg.lstsq(design, log_y, rcond=None)[0][0])
    if abs(log_k) > MAX_LOG_K:
        closest = xs[int(np.argmin([np.ptp(v) for v in logs]))]
        raise ValueError(
            f"the line has k = exp({log_k:.3g}): the values of {closest} are too close together for"
            " an exponent; remove this input, or add rows with other values of it"
        )
    columns = {0: 1.0, **{k + 1: v - centers[k] for k, v in enumerate(logs)}}
    line, p = power_laws.power_term(len(log_y), columns, 0.0), len(xs) + 1
    factors = [f"{letter}^{{{name}}}" for letter, name in zip(letters, names, strict=True)]
    output = {"N": "N", "D": "D"}.get(run_table.column_letter(y, 0, [y]), "y") + "*"

    def natural(theta):
        log_k = theta[:, 0] - sum(theta[:, k + 1] * c for k, c in enumerate(centers))
        return {**{name: theta[:, k + 1] for k, name in enumerate(names)}, "k": np.exp(log_k)}

    def values(params, *points):
        powers_of_x = [x ** params[name] for name, x in zip(names, points, strict=True)]
        return np.asarray(params["k"] * np.prod(powers_of_x, axis=0))

    return estimation.FitProblem(
        law=law,
        formula=f"{output} = {{k}} {' '.join(factors)}",
        columns={**inputs, output: y},
        inputs=letters,
        objective=lambda loss, delta: solver.log_sum_exp([line], p, loss, delta),
        starts=np.zeros((1, p)) + np.r_[log_y.mean(), np.zeros(p - 1)],
        lower=np.full(p, -1e3),
        upper=np.full(p, 1e3),
        natural=natural,
        values=values,
        free=[*names, "k"],
        derive=lambda params: {"log10_k": np.log10(params["k"])},
    )


def _check_independent(xs: list[str], logs: list[np.ndarray]) -> None:
    """Raise ValueError if an input is constant or the inputs are collinear."""
    for column, v in zip(xs, logs, strict=True):
        if np.ptp(v) < 1e-9:
            raise ValueError(
                f"{column} is {np.exp(v[0]):g} in every row: no exponent can be fitted"
            )
    design = np.stack([np.ones(len(logs[0])), *logs], 1)
    if len(design) > len(xs) and np.linalg.cond(design - np.r_[0, design[:, 1:].mean(0)]) > 1e8:
        raise ValueError(
            f"{', '.join(xs)} lie on one line: their exponents cannot be separated; vary them "
            "independently"
        )
