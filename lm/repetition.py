"""Laws of data that is reused: repeated epochs, and pre-training that replaces data.

Legend: N parameters, D tokens seen, U unique tokens, N' and D' their effective values, L loss.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lm import estimate, fit, judge, lines, powers, solver, table
from lm import starts as begin

BASE = ("E", "A", "B", "alpha", "beta")


def data_constrained(
    rows: table.Rows,
    n: str = "params.non_embedding",
    d: str = "tokens",
    unique: str = "unique_tokens",
    y: str = "eval.loss",
    base: fit.Fit | Mapping[str, float] | None = None,
    tied: bool = True,
    excess: bool = True,
    loss: str = "huber",
    delta: float = 1e-3,
    fixed: Mapping[str, float] | None = None,
    group: str | None = None,
    where: table.Where = None,
    starts: Any = None,
    bootstrap: int = 1000,
    resample: str = "auto",
    seed: int = 0,
    reach: float = 10.0,
) -> fit.Fit:
    """L(N, D, U) = E + A N'^-alpha + B D'^-beta: repeats lose worth (Muennighoff et al. 2023).

    arXiv:2305.16264. D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)) and, with U_N = min(N,
    best N for U tokens) = min(N, G (G U)^(beta/alpha)), G = (alpha A / (beta B))^(1/(alpha+beta)),
    N' = U_N + U_N R_N (1 - exp(-(N/U_N - 1) / R_N)); excess=False keeps N' = N. R_D and R_N are
    fitted given `base`, which holds E, A, B, alpha, beta (a dict, beta = alpha if absent, or a
    chinchilla or overtrained fit). Without it, base (with tied exponents, if `tied`) and R are
    fitted in turns until the objective rests. Intervals are given the base law. `fixed` holds R_D
    or R_N; `starts` is a grid {"R_D": [...], "R_N": [...]}.

    `predict(N, D, U)`. Parameters: R_D, R_N (the R* of the paper: repeats, and excess parameters,
    that are worth anything). Valleys are flat here: extra["valleys"] lists other optima within 1%
    of the objective.
    """
    fixed = dict(fixed or {})
    data = table.read(rows, [n, d, unique, y], group, where)
    if base is None:
        base = _joint(data, (n, d, unique, y), excess, loss, delta, fixed, starts, tied)
    given = dict(base.params) if isinstance(base, fit.Fit) else dict(base)
    given.setdefault("beta", given.get("alpha", float("nan")))
    missing = [name for name in BASE if name not in given]
    if missing:
        raise ValueError(f"base must give {', '.join(BASE)}; it lacks {', '.join(missing)}")
    given = {name: float(given[name]) for name in BASE}
    names = ["R_D", "R_N"] if excess else ["R_D"]
    unknown = set(fixed) - set(names)
    if unknown:
        raise ValueError(f"fixed names {', '.join(unknown)}; known: {', '.join(names)}")
    N, D, U = (data.columns[k] for k in (n, d, unique))
    if not (D > U * 1.001).any():
        raise ValueError(
            f"no row repeats data ({d} <= {unique} in all {len(data)} rows): R_D cannot be fitted"
        )
    free = [name for name in names if name not in fixed]
    place = {name: i for i, name in enumerate(free)}
    parts = _parts(given, N, D, U)

    def log_f(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = {k: np.exp(theta[:, place[k], None]) if k in place else float(fixed[k]) for k in names}
        data_term, data_slope = _term(given["B"], given["beta"], *parts["D"], r["R_D"])
        if excess:
            size_term, size_slope = _term(given["A"], given["alpha"], *parts["N"], r["R_N"])
        else:
            size_term, size_slope = (
                np.broadcast_to(given["A"] * N ** -given["alpha"], data_term.shape),
                0 * data_term,
            )
        total = given["E"] + size_term + data_term
        slopes = {"R_D": data_slope / total, "R_N": size_slope / total}
        return np.log(total), np.stack([slopes[k] for k in free], -1)

    def natural(theta: np.ndarray) -> dict[str, np.ndarray]:
        params = {
            k: np.exp(theta[:, place[k]]) if k in place else np.full(len(theta), float(fixed[k]))
            for k in names
        }
        return params

    def values(params, size, seen, distinct):
        part = _parts(given, size, seen, distinct)
        first = (
            _term(given["A"], given["alpha"], *part["N"], params["R_N"])[0]
            if excess
            else given["A"] * size ** -given["alpha"]
        )
        return np.asarray(
            given["E"] + first + _term(given["B"], given["beta"], *part["D"], params["R_D"])[0]
        )

    def internal(params):
        logs = [np.log(np.maximum(params[k], 1e-3)) for k in free]
        return np.stack(np.broadcast_arrays(*logs), 1)

    grid = {k: np.geomspace(0.3, 300, 9) for k in free} if starts is None else starts
    problem = estimate.Problem(
        law="data_constrained",
        formula="L(N, D, U) = "
        + "{E:.4g} + {A:.4g} N'^-{alpha:.4g} + {B:.4g} D'^-{beta:.4g}".format(**given)
        + ", "
        + ", ".join(f"{k} = {{{k}}}" for k in names),
        columns={"N": n, "D": d, "U": unique, "L": y},
        inputs=["N", "D", "U"],
        objective=lambda loss, delta: solver.curve(log_f, loss, delta),
        starts=begin.grid(grid, free, internal),
        lower=np.full(len(free), np.log(1e-3)),
        upper=np.full(len(free), np.log(1e5)),
        natural=natural,
        values=values,
        free=free,
        fixed=fixed,
        watch=free,
    )
    result = estimate.estimate(problem, data, loss, delta, None, bootstrap, resample, seed, reach)
    result.extra["base"] = given
    options = dict(
        n=n,
        d=d,
        unique=unique,
        y=y,
        base=given,
        excess=excess,
        loss=loss,
        delta=delta,
        fixed=fixed,
        group=group,
        starts=starts,
        bootstrap=bootstrap,
        resample=resample,
        seed=seed,
        reach=reach,
    )
    result.refit = lambda rows=None, **new: data_constrained(
        data.rows if rows is None else rows, **{**options, **new}
    )
    result.judge = judge.backtest
    return result


def _joint(data, columns, excess, loss, delta, fixed, starts, tied) -> dict[str, float]:
    """The base law that goes with R_D and R_N: each fitted given the other, in turns."""
    n, d, unique, y = columns
    once = [
        row for row in data.rows if table.number(row[d]) <= table.number(row[unique]) * (1 + 1e-9)
    ]
    first = once if len(once) >= 6 else data.rows
    law: Mapping[str, float] = powers.chinchilla(
        first, n, d, y, tied=tied, loss=loss, delta=delta, bootstrap=0
    ).params
    best, kept = float("inf"), dict(law)
    for _ in range(60):
        found = data_constrained(
            data.rows,
            *columns,
            base=law,
            excess=excess,
            loss=loss,
            delta=delta,
            fixed=fixed,
            starts=starts,
            bootstrap=0,
        )
        if not found.objective < best * (1 - 1e-7):
            break
        best, kept = found.objective, found.extra["base"]
        part = _parts(kept, *(data.columns[k] for k in (n, d, unique)))
        size = _effective(*part["N"], found.params["R_N"]) if excess else data.columns[n]
        seen = _effective(*part["D"], found.params["R_D"])
        rows = [{**row, "N'": u, "D'": v} for row, u, v in zip(data.rows, size, seen, strict=True)]
        near = {k: v for k, v in kept.items() if k != "beta" or not tied}
        law = powers.chinchilla(
            rows, "N'", "D'", y, tied=tied, loss=loss, delta=delta, starts=[near], bootstrap=0
        ).params
    return kept


def _effective(fresh, repeats, worth) -> np.ndarray:
    return fresh * (1 - worth * np.expm1(-repeats / worth))


def _parts(given, size, seen, distinct) -> dict[str, tuple[Any, Any]]:
    """What is new, and how many times it is repeated, for tokens and for parameters."""
    distinct = np.minimum(distinct, seen)
    alpha, beta = given["alpha"], given["beta"]
    scale = (alpha * given["A"] / (beta * given["B"])) ** (1 / (alpha + beta))
    useful = np.minimum(size, scale * (scale * distinct) ** (beta / alpha))
    return {"D": (distinct, seen / distinct - 1), "N": (useful, size / useful - 1)}


def _term(coefficient, exponent, fresh, repeats, worth) -> tuple[Any, Any]:
    """A term of the law at its effective tokens or parameters, and its slope in log worth."""
    share = repeats / worth
    effective = 1 + worth * -np.expm1(-share)
    term = coefficient * (fresh * effective) ** -exponent
    return term, -exponent * term * worth * (-np.expm1(-share) - share * np.exp(-share)) / effective


def transfer(
    rows: table.Rows,
    d: str = "tokens",
    n: str | None = "params.non_embedding",
    y: str = "eval.loss",
    scratch: fit.Fit | None = None,
    effective: str | None = None,
    group: str | None = None,
    where: table.Where = None,
    bootstrap: int = 1000,
    resample: str = "auto",
    seed: int = 0,
    reach: float = 10.0,
) -> fit.Fit:
    """D_T = k D_F^alpha N^beta: the data that pre-training was worth (Hernandez et al. 2021).

    arXiv:2102.01293. Rows are fine-tuned runs with D_F tokens (column `d`) and N parameters (n=None
    leaves N out). D_T is their column `effective`, or follows from `scratch`, a fit to runs from
    scratch over (N, D) or D alone: the tokens D_E that reach the same loss from scratch, less D_F.
    Rows below the scratch law's floor, or that gained nothing, are left out and named. Least
    squares in logs. Parameters: exponent (alpha), exponent2 (beta), k; `predict(D_F, N)` gives D_T.
    """
    if (scratch is None) == (effective is None):
        raise ValueError(
            "give either scratch= (a fit to runs from scratch) or effective= (the column of D_T)"
        )
    inputs = [d] if n is None else [d, n]
    column = effective or "data.transferred"
    excluded: list[tuple[str, str]] = []
    if scratch is not None:
        data = table.read(rows, [*inputs, y], group, where)
        excluded = list(data.excluded)
        rows = []
        for i, row in enumerate(data.rows):
            needed = _tokens_for(
                scratch, data.columns[y][i], None if n is None else data.columns[n][i]
            )
            gained = needed - data.columns[d][i]
            if np.isfinite(gained) and gained > 0:
                rows.append({**row, column: gained})
            else:
                reason = (
                    "its loss is below what the scratch law can reach"
                    if not np.isfinite(needed)
                    else "pre-training gained nothing"
                )
                excluded.append((data.names[i], reason))
        if not rows:
            raise ValueError(
                f"no row gained from pre-training; the first: {excluded[0][0]}, {excluded[0][1]}"
            )
        where = None
    result = lines.loglog(
        rows, inputs, column, None, group, where, bootstrap, resample, seed, reach, law="transfer"
    )
    result.data.excluded[:] = excluded or result.data.excluded
    if (result.residuals > 2).any():
        result.warnings.append("some rows are off by more than a factor 3")
    return result


def _tokens_for(scratch: fit.Fit, loss: float, n: float | None) -> float:
    """Tokens from scratch to a loss, by bisection in log D; infinite where none reach it."""
    low, high = np.log(1.0), np.log(1e20)
    for _ in range(100):
        middle = (low + high) / 2
        point = {"N": n, "D": np.exp(middle)}
        inputs = [point.get(letter, np.exp(middle)) for letter in scratch.inputs]
        above = float(scratch.values(scratch.params, *inputs)) > loss
        low, high = (middle, high) if above else (low, middle)
    return float(np.exp(high)) if high < np.log(1e20) - 1e-6 else float("inf")
