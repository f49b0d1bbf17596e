"""Laws that are sums of power terms: power, chinchilla, overtrained.

Legend: N parameters, D tokens, C FLOPs, M = D / N, L loss. log L = logsumexp(log E, log A - alpha
log N, log B - beta log D): affine in the parameters inside each term, so that gradients and
Hessians are exact and cheap.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm import estimate, fit, judge, solver, table
from lm import starts as begin

COEFFICIENTS, EXPONENTS = ("A", "B", "C", "F"), ("alpha", "beta", "gamma", "zeta")
COLLINEAR = 0.03  # spread across the inputs' main line, over the spread along it


def power(
    rows: table.Rows,
    x: str | Sequence[str] = "params.non_embedding",
    y: str = "eval.loss",
    floor: bool | float = True,
    loss: str = "log_squares",
    **options: Any,
) -> fit.Fit:
    """L(x) = E + A x^-alpha, by default least squares on log L.

    x is one column (parameters, tokens, FLOPs) or several: L = E + A x1^-alpha + B x2^-beta + C
    x3^-gamma. floor=False leaves E out, a number fixes it. Parameters: E, A, alpha. Options are
    those of `sum_of_powers`: loss, delta, fixed, weights, group, where, starts, bootstrap,
    resample, seed, reach. With six to eight runs the 95% interval of a prediction at twice the
    largest N held the truth in 96-99% of simulated sweeps (see `estimate.estimate`).
    """
    xs = [x] if isinstance(x, str) else list(x)
    letters = [table.letter(column, i, xs) for i, column in enumerate(xs)]
    return sum_of_powers(
        rows, dict(zip(letters, xs, strict=True)), y, "power", floor, loss, **options
    )


def chinchilla(
    rows: table.Rows,
    n: str = "params.non_embedding",
    d: str = "tokens",
    y: str = "eval.loss",
    floor: bool | float = True,
    tied: bool = False,
    loss: str = "huber",
    delta: float = 1e-3,
    **options: Any,
) -> fit.Fit:
    """L(N, D) = E + A N^-alpha + B D^-beta (approach 3 of Hoffmann et al. 2022).

    arXiv:2203.15556. By default the SUM of Huber losses (delta 1e-3) on log L; loss="absolute" is
    what Besiroglu et al. 2024 (arXiv:2404.10102) print, loss="squares" plain least squares of the
    loss. tied=True shares one exponent alpha. Parameters: E, A, B, alpha, beta; derived: a = beta /
    (alpha + beta) and b = 1 - a, the exponents of N* ~ C^a and D* ~ C^b. Options are those of
    `sum_of_powers`.
    """
    return sum_of_powers(
        rows, {"N": n, "D": d}, y, "chinchilla", floor, loss, delta, tied=tied, **options
    )


def overtrained(
    rows: table.Rows,
    n: str = "params.non_embedding",
    d: str = "tokens",
    y: str = "eval.loss",
    floor: bool | float = True,
    loss: str = "squares",
    **options: Any,
) -> fit.Fit:
    """L(C, M) = E + (a M^eta + b M^-eta) C^-eta, C = 6 N D, M = D / N (Gadre et al. 2024).

    arXiv:2403.08540. The same law as E + A N^-alpha + B D^-alpha with one exponent: eta =
    alpha / 2, a = A 6^eta, b = B 6^eta. By default least squares on the loss, as there. `predict(N,
    D)`. Parameters: E, A, B, alpha; derived: a, b, eta.
    """
    return sum_of_powers(
        rows, {"N": n, "D": d}, y, "overtrained", floor, loss, tied=True, **options
    )


def sum_of_powers(
    rows: table.Rows,
    inputs: Mapping[str, str],
    y: str,
    law: str = "power",
    floor: bool | float = True,
    loss: str = "huber",
    delta: float = 1e-3,
    tied: bool = False,
    fixed: Mapping[str, float] | None = None,
    weights: str | None = None,
    group: str | None = None,
    where: table.Where = None,
    starts: Any = None,
    bootstrap: int = 1000,
    resample: str = "auto",
    seed: int = 0,
    reach: float = 10.0,
) -> fit.Fit:
    """L = E + sum of coefficient x^-exponent over `inputs` (letter -> column of the rows).

    loss: huber, absolute, log_squares, squares (`solver.LOSSES`); delta: width of Huber, in log L.
    fixed: {"E": 1.69, "alpha": 0.34} holds parameters. weights: column of row weights. group:
    column whose equal values are resampled together (a trunk, a run of many checkpoints). where:
    which rows count, a function of the row or {column: value}. starts: a grid {"log_A": [...],
    "log_B": [...], "log_E": [...], "alpha": [...], "beta": [...]} (names as they are, or their
    logs), or a list of dicts; by default a grid around the data. Starts are moved into the data's
    range. bootstrap: number of refits, 0 for none; resample: runs, noise or auto. reach: how far
    predictions go unmarked. Exponents are >= 0, and any sign where there is one term and no floor.
    Raises ValueError for rows that cannot carry the law: fewer rows than parameters, an input with
    a single value, wrong values (see `table.read`).
    """
    fixed = dict(fixed or {})
    if floor is not True and floor is not False:
        fixed["E"] = float(floor)
    data = table.read(rows, [*inputs.values(), *([weights] if weights else []), y], group, where)
    problem = _problem(data, dict(inputs), y, law, floor is not False, fixed, tied, starts)
    w = data.columns[weights] if weights else None
    result = estimate.estimate(problem, data, loss, delta, w, bootstrap, resample, seed, reach)
    options = dict(
        inputs=inputs,
        y=y,
        law=law,
        floor=floor is not False,
        loss=loss,
        delta=delta,
        tied=tied,
        fixed=fixed,
        weights=weights,
        group=group,
        starts=starts,
        bootstrap=bootstrap,
        resample=resample,
        seed=seed,
        reach=reach,
    )
    result.refit = lambda rows=None, **new: sum_of_powers(
        data.rows if rows is None else rows, **{**options, **new}
    )
    result.judge = judge.backtest
    if len(inputs) == 2 and _spread(data, inputs) < COLLINEAR:
        result.ray = 1.5
        result.warnings.append(
            "N and D lie on one line: A and B are not told apart, off the line nothing is predicted"
        )
    return result


def _spread(data: table.Table, inputs: Mapping[str, str]) -> float:
    """Smallest over largest singular value of the centred logs: one over the condition number."""
    logs = np.log(np.stack([data.columns[column] for column in inputs.values()]))
    values = np.linalg.svd(logs - logs.mean(1, keepdims=True), compute_uv=False)
    return float(values[-1] / values[0])


def _problem(data, inputs, y, law, has_floor, fixed, tied, starts) -> estimate.Problem:
    """theta holds log coefficients at the centre of the data, and exponents times its spread."""
    if len(inputs) > len(COEFFICIENTS):
        raise ValueError(f"{law} takes {len(COEFFICIENTS)} inputs at most, got {len(inputs)}")
    log_y = np.log(data.columns[y])
    log_x = [np.log(data.columns[column]) for column in inputs.values()]
    if len(data) > 1 and np.ptp(log_y) < 1e-9:
        raise ValueError(f"{y} is {np.exp(log_y[0]):g} in every row: there is no law to fit")
    for (letter, column), v in zip(inputs.items(), log_x, strict=True):
        if np.ptp(v) < 1e-9:
            raise ValueError(
                f"{column} is {np.exp(v[0]):g} in every row: no exponent of {letter} can be fitted"
            )
    centre, scale = [float(v.mean()) for v in log_x], float(np.mean([v.std() for v in log_x]))
    coefficients = list(COEFFICIENTS[: len(log_x)])
    exponents = [EXPONENTS[0] if tied else EXPONENTS[k] for k in range(len(log_x))]
    names = (["E"] if has_floor else []) + coefficients + list(dict.fromkeys(exponents))
    unknown = set(fixed) - set(names)
    if unknown:
        raise ValueError(
            f"fixed names {', '.join(sorted(unknown))}, which {law} has not; known: "
            f"{', '.join(names)}"
        )
    free = [name for name in names if name not in fixed]
    place = {name: i for i, name in enumerate(free)}
    terms = []
    if "E" in place:
        terms.append(term(len(log_y), {place["E"]: 1.0}, 0.0))
    elif has_floor and fixed["E"] > 0:
        terms.append(term(len(log_y), {}, np.log(fixed["E"])))
    for k, (coefficient, exponent) in enumerate(zip(coefficients, exponents, strict=True)):
        columns, offset = {}, 0.0
        away = log_x[k] - (centre[k] if coefficient in place else 0.0)
        if coefficient in place:
            columns[place[coefficient]] = 1.0
        else:
            offset = offset + np.log(fixed[coefficient])
        if exponent in place:
            columns[place[exponent]] = -away / scale
        else:
            offset = offset - fixed[exponent] * away
        terms.append(term(len(log_y), columns, offset))

    def natural(theta: np.ndarray) -> dict[str, np.ndarray]:
        params = {name: np.full(len(theta), float(value)) for name, value in fixed.items()}
        params |= {name: theta[:, place[name]] / scale for name in exponents if name in place}
        if "E" in place:
            params["E"] = np.exp(theta[:, place["E"]])
        for k, name in enumerate(coefficients):
            if name in place:
                params[name] = np.exp(theta[:, place[name]] + params[exponents[k]] * centre[k])
        return {name: params[name] for name in names}

    def internal(params: Mapping[str, np.ndarray]) -> np.ndarray:
        columns = []
        for name in free:
            if name in exponents:
                columns.append(params[name] * scale)
                continue
            with np.errstate(divide="ignore"):
                value = params[f"log_{name}"] if f"log_{name}" in params else np.log(params[name])
            if name != "E":
                k = coefficients.index(name)
                value = value - params.get(exponents[k], fixed.get(exponents[k])) * centre[k]
            columns.append(value)
        return np.stack(np.broadcast_arrays(*columns), 1)

    def values(params, *points):
        total = params.get("E", 0.0)
        for coefficient, exponent, point in zip(coefficients, exponents, points, strict=True):
            total = total + params[coefficient] * point ** -params[exponent]
        return np.asarray(total)

    low, high = log_y.min(), log_y.max()
    signed = not has_floor and len(coefficients) == 1
    slope = -10 * scale if signed else 0.0
    lower = np.array([slope if name in exponents else low - 12 for name in free])
    upper = np.array([10 * scale if name in exponents else high + 2 for name in free])
    # A term of a thousandth of the loss has no slope to leave by: starts begin inside the data.
    inside = np.array([slope if name in exponents else low - 7 for name in free])
    theta = (
        begin.around(log_y, free, coefficients, exponents, scale)
        if starts is None
        else begin.grid(starts, free, internal)
    )
    return estimate.Problem(
        law=law,
        formula=_formula(law, list(inputs), has_floor, coefficients, exponents),
        columns={**inputs, "L": y},
        inputs=list(inputs),
        objective=lambda loss, delta: solver.log_sum_exp(terms, len(free), loss, delta),
        starts=np.clip(theta, inside, upper),
        lower=lower,
        upper=upper,
        natural=natural,
        values=values,
        free=free,
        fixed=fixed,
        derive=_derive(law, exponents),
        watch=[name for name in exponents if name in free],
    )


def term(n: int, columns: Mapping[int, Any], offset: Any) -> solver.Term:
    X = (
        np.stack([np.broadcast_to(v, n) for v in columns.values()], 1)
        if columns
        else np.zeros((n, 0))
    )
    return solver.Term(list(columns), X, np.broadcast_to(np.asarray(offset, float), n))


def _formula(law, letters, has_floor, coefficients, exponents) -> str:
    if law == "overtrained":
        return (
            "L(C, M) = {E} + ({a} M^{eta} + {b} M^-{eta}) C^-{eta}"
            if has_floor
            else "L(C, M) = ({a} M^{eta} + {b} M^-{eta}) C^-{eta}"
        )
    terms = [
        f"{{{a}}} {x}^-{{{e}}}" for a, e, x in zip(coefficients, exponents, letters, strict=True)
    ]
    return f"L({', '.join(letters)}) = " + " + ".join((["{E}"] if has_floor else []) + terms)


def _derive(law, exponents):
    """Parameters that follow: exponents of the best N and D, or the names of Gadre et al."""

    def derive(p):
        if law == "overtrained":
            eta = p["alpha"] / 2
            return {"a": p["A"] * 6**eta, "b": p["B"] * 6**eta, "eta": eta}
        if law == "chinchilla":
            alpha, beta = p[exponents[0]], p[exponents[1]]
            a = beta / np.maximum(alpha + beta, 1e-12)
            return {"a": a, "b": 1 - a}
        return {}

    return derive
