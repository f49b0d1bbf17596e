"""Laws of reused data: repeated epochs (data-constrained), and transfer from pre-training.

Legend: N parameters, D tokens seen, U unique tokens, N' and D' their effective values, L loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm.laws import backtesting, estimation, fit, initial_values, run_table, solver
from lm.laws.forms import log_linear, power_laws

BASE = ("E", "A", "B", "alpha", "beta")
OPTIONS = ("tied", "loss", "delta", "fixed", "starts", *fit.RESAMPLING_OPTIONS)
MAX_ROUNDS = 60  # alternating fits of the base law and of R
MIN_SINGLE_EPOCH_ROWS = 6  # with fewer, the base law starts from all rows


@dataclass(kw_only=True)
class DataConstrainedFit(fit.Fit):
    """Fitted R_D and R_N, given a base law."""

    base: dict[str, float]  # E, A, B, alpha, beta


def data_constrained(
    rows: run_table.Rows,
    n: str = "params.non_embedding",
    d: str = "tokens",
    unique: str = "unique_tokens",
    y: str = "eval.loss",
    base: fit.Fit | Mapping[str, float] | None = None,
    excess: bool = True,
    **options: Any,
) -> DataConstrainedFit:
    """Fit L(N, D, U) = E + A N'^-alpha + B D'^-beta for repeated data (Muennighoff et al. 2023).

    The equations are from arXiv:2305.16264. D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)).
    N' = U_N + U_N R_N (1 - exp(-(N/U_N - 1) / R_N)), and N' = N with excess=False.
    U_N = min(N, best N for U tokens) = min(N, G (G U)^(beta/alpha)).
    G = (alpha A / (beta B))^(1/(alpha+beta)).

    R_D and R_N are fitted for a given `base` law. base: a dict of E, A, B, alpha, beta (default:
    beta = alpha), or a chinchilla or overtrained fit. Without base, the base law and R are fitted
    alternately until the objective is constant. That base law has one exponent if tied=True, the
    default. Intervals are conditional on the base law.

    `predict(N, D, U)` returns L. Parameters: R_D, R_N (R* in the paper: the repeats, and the excess
    parameters, that have value). The objective is often flat: fit.optima has other optima within
    1%. fixed has R_D or R_N; starts is a grid {"R_D": [...], "R_N": [...]}. Options: tied, loss,
    delta, fixed, starts, group, where, mixed, bootstrap, resample, seed, reach.
    """
    defaults = fit.FitOptions(tied=True, mixed=("corpus",))
    parsed = fit.parse_options("data_constrained", options, defaults, OPTIONS)
    columns = {"N": n, "D": d, "U": unique, "L": y}
    if base is None:
        data = run_table.select_columns(
            rows, list(columns.values()), parsed.group, parsed.where, mixed=parsed.mixed
        )
        base = _fit_base(data, columns, excess, parsed)
    return _fit_repeats(rows, columns, base, excess, parsed)


def _fit_repeats(
    rows: run_table.Rows,
    columns: dict[str, str],
    base: fit.Fit | Mapping[str, float],
    excess: bool,
    options: fit.FitOptions,
) -> DataConstrainedFit:
    """Fit R_D and R_N given the base law."""
    data = run_table.select_columns(
        rows, list(columns.values()), options.group, options.where, mixed=options.mixed
    )
    params = _base_params(base)
    names = ["R_D", "R_N"] if excess else ["R_D"]
    fixed = dict(options.fixed or {})
    unknown = set(fixed) - set(names)
    if unknown:
        raise ValueError(f"fixed={', '.join(unknown)} is no parameter; known: {', '.join(names)}")
    n, d, unique = (data.columns[columns[letter]] for letter in ("N", "D", "U"))
    if not (d > unique * 1.001).any():
        raise ValueError(
            f"no row repeats data ({columns['D']} <= {columns['U']} in all {len(data)} rows): R_D "
            "cannot be fitted"
        )
    problem = _build_problem(RepeatedData(params, names, fixed, n, d, unique), columns, options)
    result = estimation.fit_problem(problem, data, options).extend(DataConstrainedFit, base=params)
    # data.rows are the included rows, which are comparable.
    same = replace(options, where=None, mixed=True)

    def refit(rows: run_table.Rows | None = None, **changes: Any) -> fit.Fit:
        rows = data.rows if rows is None else rows
        return _fit_repeats(rows, columns, params, excess, replace(same, **changes))

    result.refit = refit
    result.backtester = backtesting.backtest
    return result


def _base_params(base: fit.Fit | Mapping[str, float]) -> dict[str, float]:
    """Return E, A, B, alpha and beta of the base law. The default of beta is alpha."""
    params = dict(base.params) if isinstance(base, fit.Fit) else dict(base)
    params.setdefault("beta", params.get("alpha", float("nan")))
    missing = [name for name in BASE if name not in params]
    if missing:
        raise ValueError(f"base must give {', '.join(BASE)}; it lacks {', '.join(missing)}")
    return {name: float(params[name]) for name in BASE}


@dataclass
class RepeatedData:
    """Law of repeated data at the rows of the fit. theta has the logs of the free R_D and R_N."""

    base: dict[str, float]
    names: list[str]  # R_D, or R_D and R_N
    fixed: dict[str, float]
    n: np.ndarray
    d: np.ndarray
    unique: np.ndarray

    def __post_init__(self) -> None:
        self.free = [name for name in self.names if name not in self.fixed]
        self.index = {name: i for i, name in enumerate(self.free)}
        self.parts = _parts(self.base, self.n, self.d, self.unique)

    def log_f(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return log L [S, n] and its Jacobian [S, n, p].

        theta: logs of the free parameters, [S, p]. S: parameter vectors, n: rows, p: free
        parameters.
        """
        base = self.base
        r = {
            k: np.exp(theta[:, self.index[k], None]) if k in self.index else float(self.fixed[k])
            for k in self.names
        }
        data_term, data_slope = _term(base["B"], base["beta"], *self.parts["D"], r["R_D"])
        if "R_N" in r:
            size_term, size_slope = _term(base["A"], base["alpha"], *self.parts["N"], r["R_N"])
        else:
            size_term = np.broadcast_to(base["A"] * self.n ** -base["alpha"], data_term.shape)
            size_slope = 0 * data_term
        total = base["E"] + size_term + data_term
        slopes = {"R_D": data_slope / total, "R_N": size_slope / total}
        return np.log(total), np.stack([slopes[k] for k in self.free], -1)

    def natural(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Convert theta [S, p] to R_D and R_N, each [S]."""
        return {
            k: np.exp(theta[:, self.index[k]])
            if k in self.index
            else np.full(len(theta), float(self.fixed[k]))
            for k in self.names
        }

    def internal(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
        """Convert R_D and R_N to theta [S, p]."""
        logs = [np.log(np.maximum(params[k], 1e-3)) for k in self.free]
        return np.stack(np.broadcast_arrays(*logs), 1)

    def values(self, params: Mapping[str, Any], n: Any, d: Any, unique: Any) -> np.ndarray:
        """Return L at the inputs."""
        base, parts = self.base, _parts(self.base, n, d, unique)
        size_term = base["A"] * n ** -base["alpha"]
        if "R_N" in self.names:
            size_term = _term(base["A"], base["alpha"], *parts["N"], params["R_N"])[0]
        data_term = _term(base["B"], base["beta"], *parts["D"], params["R_D"])[0]
        return np.asarray(base["E"] + size_term + data_term)


def _build_problem(
    model: RepeatedData, columns: dict[str, str], options: fit.FitOptions
) -> estimation.FitProblem:
    free = model.free
    grid = {k: np.geomspace(0.3, 300, 9) for k in free}
    base = "{E:.4g} + {A:.4g} N'^-{alpha:.4g} + {B:.4g} D'^-{beta:.4g}".format(**model.base)
    repeats = ", ".join(f"{k} = {{{k}}}" for k in model.names)
    return estimation.FitProblem(
        law="data_constrained",
        formula=f"L(N, D, U) = {base}, {repeats}",
        columns=columns,
        inputs=["N", "D", "U"],
        objective=lambda loss, delta: solver.curve(model.log_f, loss, delta),
        starts=initial_values.start_grid(
            grid if options.starts is None else options.starts, free, model.internal
        ),
        lower=np.full(len(free), np.log(1e-3)),
        upper=np.full(len(free), np.log(1e5)),
        natural=model.natural,
        values=model.values,
        free=free,
        fixed=model.fixed,
        watch=free,
    )


def _fit_base(
    data: run_table.RunTable, columns: dict[str, str], excess: bool, options: fit.FitOptions
) -> dict[str, float]:
    """Fit the base law and R alternately, and return the base law of the best objective."""
    n, d, unique, y = columns.values()
    chinchilla = fit.FitOptions(
        tied=options.tied, loss=options.loss, delta=options.delta, bootstrap=0, mixed=True
    )
    repeats = replace(chinchilla, fixed=options.fixed, starts=options.starts)
    single_epoch = [
        row
        for row in data.rows
        if run_table.to_number(row[d]) <= run_table.to_number(row[unique]) * (1 + 1e-9)
    ]
    first = single_epoch if len(single_epoch) >= MIN_SINGLE_EPOCH_ROWS else data.rows
    law: Mapping[str, float] = power_laws.sum_of_powers(
        first, {"N": n, "D": d}, y, "chinchilla", True, chinchilla
    ).params
    best_objective, best = float("inf"), dict(law)
    for _ in range(MAX_ROUNDS):
        result = _fit_repeats(data.rows, columns, law, excess, repeats)
        if not result.objective < best_objective * (1 - 1e-7):
            break
        best_objective, best = result.objective, result.base
        parts = _parts(best, *(data.columns[k] for k in (n, d, unique)))
        sizes = _effective(*parts["N"], result.params["R_N"]) if excess else data.columns[n]
        tokens = _effective(*parts["D"], result.params["R_D"])
        rows = [
            {**row, "N'": u, "D'": v} for row, u, v in zip(data.rows, sizes, tokens, strict=True)
        ]
        start = {k: v for k, v in best.items() if k != "beta" or not options.tied}
        law = power_laws.sum_of_powers(
            rows, {"N": "N'", "D": "D'"}, y, "chinchilla", True, replace(chinchilla, starts=[start])
        ).params
    return best


def _effective(fresh: Any, repeats: Any, r: Any) -> np.ndarray:
    """Return the effective number of tokens or parameters."""
    return fresh * (1 - r * np.expm1(-repeats / r))


def _parts(
    base: Mapping[str, float], n: Any, d: Any, unique: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the unique part and the number of its repeats, for tokens and for parameters."""
    unique = np.minimum(unique, d)
    alpha, beta = base["alpha"], base["beta"]
    scale = (alpha * base["A"] / (beta * base["B"])) ** (1 / (alpha + beta))
    useful = np.minimum(n, scale * (scale * unique) ** (beta / alpha))
    return {"D": (unique, d / unique - 1), "N": (useful, n / useful - 1)}


def _term(
    coefficient: float, exponent: float, fresh: Any, repeats: Any, r: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return a term of the law at its effective tokens or parameters, and its slope in log r."""
    ratio = repeats / r
    effective = 1 + r * -np.expm1(-ratio)
    term = coefficient * (fresh * effective) ** -exponent
    return term, -exponent * term * r * (-np.expm1(-ratio) - ratio * np.exp(-ratio)) / effective


def transfer(
    rows: run_table.Rows,
    d: str = "tokens",
    n: str | None = "params.non_embedding",
    y: str = "eval.loss",
    scratch: fit.Fit | None = None,
    effective: str | None = None,
    **options: Any,
) -> fit.Fit:
    """Fit D_T = k D_F^alpha N^beta: the number of tokens that pre-training replaces.

    This is the law of Hernandez et al. (2021, arXiv:2102.01293), by least squares on log D_T. Rows
    are fine-tuned runs with D_F tokens (column `d`) and N parameters. n=None removes N from the
    law.

    Give either `effective`, the column of D_T, or `scratch`, a fit of (N, D) or D to runs from
    scratch. With `scratch`, D_T = D_E - D_F, where D_E tokens from scratch reach the same loss.
    Rows below the irreducible loss of that fit, and rows with D_T <= 0, are excluded.

    Parameters: exponent (alpha), exponent2 (beta), k. `predict(D_F, N)` returns D_T. Options:
    group, where, mixed, bootstrap, resample, seed, reach.
    """
    defaults = fit.FitOptions(mixed=("corpus", "start"))
    parsed = fit.parse_options("transfer", options, defaults, fit.RESAMPLING_OPTIONS)
    if (scratch is None) == (effective is None):
        raise ValueError(
            "give either scratch= (a fit to runs from scratch) or effective= (the column of D_T)"
        )
    inputs = [d] if n is None else [d, n]
    column = effective or "data.transferred"
    excluded: list[tuple[str, str]] = []
    if scratch is not None:
        data = run_table.select_columns(
            rows, [*inputs, y], parsed.group, parsed.where, mixed=parsed.mixed
        )
        rows, excluded = _with_transferred_data(data, d, n, y, scratch, column)
        parsed = replace(parsed, where=None, mixed=True)
    result = log_linear.fit_line(rows, inputs, column, "transfer", parsed)
    if excluded:
        result.data.excluded[:] = excluded
    if (result.residuals > 2).any():
        result.warnings.append("the law is more than a factor 3 above some rows")
    return result


def _with_transferred_data(
    data: run_table.RunTable, d: str, n: str | None, y: str, scratch: fit.Fit, column: str
) -> tuple[list[dict], list[tuple[str, str]]]:
    """Return the rows that gained from pre-training, with D_T as a column, and the exclusions."""
    rows, excluded = [], list(data.excluded)
    for i, row in enumerate(data.rows):
        size = None if n is None else data.columns[n][i]
        needed = _tokens_to_loss(scratch, data.columns[y][i], size)
        gain = needed - data.columns[d][i]
        if np.isfinite(gain) and gain > 0:
            rows.append({**row, column: gain})
        elif np.isfinite(needed):
            excluded.append((data.names[i], "no gain from pre-training"))
        else:
            excluded.append((data.names[i], "loss below the reach of the scratch law"))
    if not rows:
        raise ValueError(
            f"no row gained from pre-training; the first is {excluded[0][0]}: {excluded[0][1]}"
        )
    return rows, excluded


def _tokens_to_loss(scratch: fit.Fit, loss: float, n: float | None) -> float:
    """Return the tokens from scratch to a loss, by bisection in log D; inf if it is unreachable."""
    low, high = np.log(1.0), np.log(1e20)
    for _ in range(100):
        middle = (low + high) / 2
        point = {"N": n, "D": np.exp(middle)}
        inputs = [point.get(letter, np.exp(middle)) for letter in scratch.inputs]
        is_above = float(scratch.values(scratch.params, *inputs)) > loss
        low, high = (middle, high) if is_above else (low, middle)
    return float(np.exp(high)) if high < np.log(1e20) - 1e-6 else float("inf")
