"""Laws of other papers: `given` predicts with published coefficients, three forms are fitted.

Legend: N parameters, D tokens, x any input, L loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit, option_validation, run_table
from lm.laws.formulas import custom, expressions

# Coefficients as printed, by first author and year. Losses are in nats per token of the paper's
# tokenizer and text: they do not predict the losses of other texts.
PUBLISHED = {
    "hoffmann2022": (
        "chinchilla",
        {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    ),
    "besiroglu2024": (
        "chinchilla",
        {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    ),
    "kaplan2020": ("kaplan", {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}),
}
SOURCES = {
    "hoffmann2022": "Hoffmann et al. 2022, arXiv:2203.15556, equation 10",
    "besiroglu2024": "Besiroglu et al. 2024, arXiv:2404.10102, table 1",
    "kaplan2020": "Kaplan et al. 2020, arXiv:2001.08361, table 2",
}
# Fields of a fit that no optimizer has found.
NO_OPTIMIZATION: dict[str, Any] = {
    "loss": "none",
    "delta": float("nan"),
    "objective": float("nan"),
    "gradient": 0.0,
    "converged": True,
    "n_starts": 0,
    "start_agreement": 1.0,
}
FORM_OPTIONS = (*custom.OPTIONS, "starts")
MAX_BREAKS = 3


@dataclass(kw_only=True)
class GivenFit(fit.Fit):
    """Law with given coefficients. It has no rows, so it has no residuals and no back-test."""

    source: str = ""

    @property
    def n(self) -> int:
        """Number of rows: 0."""
        return 0

    @property
    def n_runs(self) -> int:
        """Number of runs: 0."""
        return 0

    def _extrapolation(self, points: list[np.ndarray]) -> tuple[float, str]:
        """Return the factor beyond the fitted ranges, or 1 and a note without ranges."""
        if len(self.data):
            return super()._extrapolation(points)
        return 1.0, "the range of the fitted runs is not given"

    def __str__(self) -> str:
        shown = {name: f"{value:.4g}" for name, value in {**self.params, **self.derived}.items()}
        columns = ", ".join(f"{letter} = {column}" for letter, column in self.columns.items())
        origin = f"given by {self.source}" if self.source else "given coefficients"
        intervals = f"{self.resampling}" if self.ensemble else "no intervals"
        return f"{self.formula.format(**shown)}\n  {columns}; {origin}; {intervals}"


def given(
    law: str,
    params: Mapping[str, float] | None = None,
    columns: Mapping[str, str] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    draws: Mapping[str, Any] | None = None,
    sigma: float = float("nan"),
    source: str = "",
) -> GivenFit:
    """Return a law with given coefficients, which can predict.

    law: a name of PUBLISHED, whose coefficients are the default of params; a name of
    `expressions.FORMULAS`, "power" or "log_linear"; or a formula as text, whose inputs are the
    keys of columns. params: {name: value}. columns: {letter: column of the rows}, first the inputs
    and then the result; by default those of the runs of this project. ranges: {input: (smallest,
    largest)} of the fitted runs, for notes on extrapolation. draws: {name: array} of refits to
    resamples, which give intervals. sigma: noise of log L. source: citation.

    `predict`, `backtesting.holdout` and `allocation` accept the result. Example:
    `given("hoffmann2022").predict(N=70e9, D=1.4e12)`. Raises ValueError for missing or unknown
    parameters.
    """
    _check_given(law, params, columns, ranges, draws)
    is_unknown = isinstance(sigma, float) and np.isnan(sigma)
    if not is_unknown and not (option_validation.is_number(sigma) and sigma >= 0):
        raise ValueError(f"sigma={sigma!r} must be a number of at least 0, or NaN without noise")
    if law in PUBLISHED:
        source = source or SOURCES[law]
        name, published = PUBLISHED[law]
        params = {**published, **(params or {})}
        law = name
    formula, inputs, output = _formula_of(law, params or {}, columns)
    columns = dict(columns) if columns else {**_default_columns(inputs), output: "eval.loss"}
    expression = expressions.parse_expression(formula)
    names = [name for name in expression.names if name not in inputs]
    values_by_name = _checked_params(names, params or {})
    ensemble = {name: np.asarray(v, float) for name, v in (draws or {}).items()}
    if set(ensemble) - set(names):
        raise ValueError(
            f"draws has {', '.join(set(ensemble) - set(names))}; the law has {', '.join(names)}"
        )
    if len({v.shape for v in ensemble.values()}) > 1:
        raise ValueError("draws has arrays of different lengths: pass equal lengths")
    n_draws = len(next(iter(ensemble.values()))) if ensemble else 0
    return GivenFit(
        law=law if law in expressions.FORMULAS else "given",
        formula=f"{output}({', '.join(inputs)}) = {expression.template(names)}",
        columns=columns,
        inputs=inputs,
        params=values_by_name,
        derived=expressions.derived_parameters(law, values_by_name),
        values=expression.function_of(inputs),
        data=_range_table(inputs, columns, output, ranges or {}),
        **NO_OPTIMIZATION,
        ensemble=ensemble,
        resampling=f"95% intervals by {n_draws} given draws" if ensemble else "none",
        sigma=sigma,
        expression=formula,
        source=source,
    )


def _check_given(law: Any, params: Any, columns: Any, ranges: Any, draws: Any) -> None:
    """Raise ValueError for arguments of `given` of other types."""
    if not isinstance(law, str) or not law:
        raise ValueError(f"law={law!r} must be a name, such as 'hoffmann2022', or a formula")
    given_by_name = {"params": params, "columns": columns, "ranges": ranges, "draws": draws}
    for name, value in given_by_name.items():
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{name}={value!r} must be a dict: see the documentation of given")
    option_validation.check_columns(**{f"columns[{k!r}]": v for k, v in (columns or {}).items()})
    for letter, pair in (ranges or {}).items():
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if (
            not is_pair
            or not all(map(option_validation.is_number, pair))
            or not (0 < pair[0] <= pair[1])
        ):
            raise ValueError(
                f"ranges[{letter!r}]={pair!r} must be the smallest and the largest value, above 0"
            )
    for name, values in (draws or {}).items():
        array = np.asarray(values)
        if (
            array.ndim != 1
            or not len(array)
            or array.dtype.kind not in "fiu"
            or (not np.isfinite(array).all())
        ):
            raise ValueError(f"draws[{name!r}] must be a list of finite numbers: pass the refits")


def _formula_of(
    law: str, params: Mapping[str, float], columns: Mapping[str, str] | None
) -> tuple[str, list[str], str]:
    """Return the formula of a law, its inputs and the letter of its result."""
    letters = list(columns or ())
    if law in expressions.FORMULAS:
        if columns and (set(letters[:-1]) != {"N", "D"} or letters[-1] in ("N", "D")):
            raise ValueError(
                f"columns={dict(columns)} of {law} must have N, D and then the result:"
                ' pass {"N": column, "D": column, "L": column}'
            )
        return expressions.FORMULAS[law], ["N", "D"], letters[-1] if letters else "L"
    if len(letters) < 2:
        raise ValueError(
            f'law={law!r} needs columns={{input: column, ..., "L": column}}, the inputs first and'
            f" the result last; known without it: {', '.join([*PUBLISHED, *expressions.FORMULAS])}"
        )
    inputs = letters[:-1]
    if law == "power":
        return expressions.power_formula(inputs, params), inputs, letters[-1]
    if law == "log_linear":
        return expressions.line_formula(inputs), inputs, letters[-1]
    return law, inputs, letters[-1]


def _default_columns(inputs: list[str]) -> dict[str, str]:
    return {letter: {"N": "params.non_embedding", "D": "tokens"}[letter] for letter in inputs}


def _checked_params(names: list[str], params: Mapping[str, float]) -> dict[str, float]:
    """Return the parameters of a law. Raises ValueError for missing, unknown or invalid ones."""
    missing = [name for name in names if name not in params]
    unknown = [name for name in params if name not in names]
    if missing or unknown:
        problem = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}"
        raise ValueError(f"params {problem}; the law has {', '.join(names)}")
    for name, value in params.items():
        if not option_validation.is_number(value):
            raise ValueError(f"params[{name!r}]={value!r} must be a finite number")
    return {name: float(params[name]) for name in names}


def _range_table(
    inputs: list[str],
    columns: Mapping[str, str],
    output: str,
    ranges: Mapping[str, tuple[float, float]],
) -> run_table.RunTable:
    """Return a table of the ends of the fitted ranges, without results; empty without ranges."""
    missing = [letter for letter in inputs if letter not in ranges]
    unknown = [letter for letter in ranges if letter not in inputs]
    if ranges and (missing or unknown):
        raise ValueError(f"ranges must have the inputs {', '.join(inputs)}, got {list(ranges)}")
    n_ends = 2 if ranges else 0
    table = {columns[letter]: np.array(ranges.get(letter, ()), float) for letter in inputs}
    table[columns[output]] = np.full(n_ends, np.nan)
    names = ["smallest", "largest"][:n_ends]
    return run_table.RunTable(table, names, np.arange(n_ends), [{}] * n_ends, [], [])


def shifted_power(
    rows: run_table.Rows,
    x: str = "params.non_embedding",
    y: str = "eval.loss",
    **options: Any,
) -> fit.Fit:
    """Fit L(x) = E + A (x + x0)^-alpha, a power law that flattens below x0.

    E and x0 may be 0, which gives `power`. A shift describes sweeps whose smallest runs have a
    lower loss than the power law of the large ones; few runs do not determine it. The default is
    least squares on log L. Parameters: E, A, alpha, x0. Options: those of `custom`, and starts.
    """
    parsed = _parsed("shifted_power", options)
    option_validation.check_columns(x=x, y=y)
    data = run_table.select_columns(rows, [x, y], parsed.group, parsed.where, mixed=parsed.mixed)
    letter = run_table.column_letter(x, 0, [x])
    values, losses = data.columns[x], data.columns[y]
    starts = []
    for fraction in (0.0, 0.6, 0.9):
        for alpha in (0.1, 0.3, 0.6, 1.0):
            for shift in (0.0, float(values.min()), float(values.max())):
                rest = np.median(losses) - fraction * losses.min()
                scale = rest * (np.median(values) + shift) ** alpha
                starts.append(
                    {"E": fraction * losses.min(), "A": scale, "alpha": alpha, "x0": shift}
                )
    definition = custom.CustomForm(
        form=f"E + A * ({letter} + x0)**-alpha",
        inputs={letter: x},
        output=y,
        starts=parsed.starts or starts,
        bounds={"E": (0, None), "x0": (0, None)},
        law="shifted_power",
        floor="E",
    )
    return custom.fit_form(rows, definition, parsed)


def broken_power(
    rows: run_table.Rows,
    x: str = "params.non_embedding",
    y: str = "eval.loss",
    n_breaks: int = 1,
    **options: Any,
) -> fit.Fit:
    """Fit the broken power law of Caballero et al. (2022, arXiv:2210.14891, equation 1).

    y = a + b x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i). The slope of log (y - a) is -c0
    below d_1, and changes by -c_i near d_i. f_i is the width of that change. With n_breaks=1 it has
    6 parameters. a may be 0, c_i have any sign, and d_i are within the data and a factor of 10
    beyond it. The default is least squares on log y. Options: those of `custom`, and starts.
    """
    if isinstance(n_breaks, bool) or n_breaks not in range(1, MAX_BREAKS + 1):
        raise ValueError(f"n_breaks={n_breaks!r} must be an integer from 1 to {MAX_BREAKS}")
    parsed = _parsed("broken_power", options)
    option_validation.check_columns(x=x, y=y)
    data = run_table.select_columns(rows, [x, y], parsed.group, parsed.where, mixed=parsed.mixed)
    letter = run_table.column_letter(x, 0, [x])
    values, losses = data.columns[x], data.columns[y]
    low, high = float(values.min()), float(values.max())
    logs = np.linspace(np.log(low), np.log(high), n_breaks + 2)[1:-1]
    shifts = np.linspace(-0.6, 0.6, 5) * (np.log(high / low) / (n_breaks + 1))
    starts, bounds = [], {"a": (0.0, None), "b": (1e-300, None), "c0": (None, None)}
    for i in range(1, n_breaks + 1):
        bounds |= {f"c{i}": (None, None), f"d{i}": (low / 10, high * 10), f"f{i}": (0.01, 10.0)}
    for fraction in (0.0, 0.5, 0.9):
        for slope in (0.03, 0.1, 0.3):
            for change in (-0.1, 0.2, 1.0, 4.0):
                for shift in shifts:
                    start = {"a": fraction * losses.min(), "c0": slope}
                    start["b"] = (losses.max() - start["a"]) * low**slope
                    for i, log_break in enumerate(logs, 1):
                        start |= {f"c{i}": change, f"d{i}": np.exp(log_break + shift), f"f{i}": 0.2}
                    starts.append(start)
    definition = custom.CustomForm(
        form=expressions.broken_power_formula(letter, n_breaks),
        inputs={letter: x},
        output=y,
        starts=parsed.starts or starts,
        bounds=bounds,
        law="broken_power",
        floor="a",
    )
    return custom.fit_form(rows, definition, parsed)


def kaplan(
    rows: run_table.Rows,
    n: str = "params.non_embedding",
    d: str = "tokens",
    y: str = "eval.loss",
    **options: Any,
) -> fit.Fit:
    """Fit L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D.

    This is equation 1.5 of Kaplan et al. (2020, arXiv:2001.08361), a law without E: the loss falls
    to 0 with N and D. The default is least squares on log L. `predict(N, D)` returns L.
    Parameters: N_c, D_c, alpha_N, alpha_D; derived: overfitting_exponent = alpha_N / alpha_D. To
    limit overfitting, D must grow as N to this power (equation 4.4; 0.74 in the paper).
    Options: those of `custom`, and starts.
    """
    parsed = _parsed("kaplan", options)
    option_validation.check_columns(n=n, d=d, y=y)
    data = run_table.select_columns(rows, [n, d, y], parsed.group, parsed.where, mixed=parsed.mixed)
    size, tokens, loss = (float(np.median(data.columns[column])) for column in (n, d, y))
    starts = [
        {
            "alpha_N": alpha_n,
            "alpha_D": alpha_d,
            "N_c": size * (share * loss ** (1 / alpha_d)) ** (alpha_d / alpha_n),
            "D_c": tokens * (1 - share) * loss ** (1 / alpha_d),
        }
        for alpha_n in (0.04, 0.08, 0.16, 0.3)
        for alpha_d in (0.05, 0.1, 0.2, 0.35)
        for share in (0.2, 0.5, 0.8)
    ]
    definition = custom.CustomForm(
        form=expressions.FORMULAS["kaplan"],
        inputs={"N": n, "D": d},
        output=y,
        starts=parsed.starts or starts,
        bounds={},
        derived=expressions.DERIVED["kaplan"],
        law="kaplan",
    )
    return custom.fit_form(rows, definition, parsed)


def _parsed(law: str, options: Mapping[str, Any]) -> fit.FitOptions:
    """Return the options of a law, by default least squares on log L."""
    return fit.parse_options(law, options, fit.FitOptions(loss="log_squares"), FORM_OPTIONS)
