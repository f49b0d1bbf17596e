"""Straight lines in logs: N* against C, tokens against parameters."""

from collections.abc import Sequence

import numpy as np

from lm import estimate, fit, judge, powers, solver, table


def loglog(
    rows: table.Rows,
    x: str | Sequence[str],
    y: str,
    weights: str | None = None,
    group: str | None = None,
    where: table.Where = None,
    bootstrap: int = 1000,
    resample: str = "auto",
    seed: int = 0,
    reach: float = 10.0,
    law: str = "loglog",
) -> fit.Fit:
    """y = k x^exponent, a straight line in logs by (weighted) least squares, say N* against C.

    Several columns x give y = k x1^exponent x2^exponent2. Parameters: exponent (exponent2, ...), k,
    and derived log10_k, the intercept in log10. `predict(x)`. fit.extra["r2"] is the share of the
    variance of log y explained.
    """
    xs = [x] if isinstance(x, str) else list(x)
    data = table.read(rows, [*xs, *([weights] if weights else []), y], group, where)
    letters = [table.letter(column, i, xs) for i, column in enumerate(xs)]
    names = ["exponent", *[f"exponent{i + 2}" for i in range(len(xs) - 1)]]
    logs, log_y = [np.log(data.columns[column]) for column in xs], np.log(data.columns[y])
    for column, v in zip(xs, logs, strict=True):
        if np.ptp(v) < 1e-9:
            raise ValueError(
                f"{column} is {np.exp(v[0]):g} in every row: no exponent can be fitted"
            )
    design = np.stack([np.ones(len(log_y)), *logs], 1)
    if len(data) > len(xs) and np.linalg.cond(design - np.r_[0, design[:, 1:].mean(0)]) > 1e8:
        raise ValueError(
            f"{', '.join(xs)} lie on one line: their exponents are not told apart; vary them apart"
        )
    centre = [float(v.mean()) for v in logs]
    columns = {0: 1.0, **{k + 1: v - centre[k] for k, v in enumerate(logs)}}
    line, p = powers.term(len(log_y), columns, 0.0), len(xs) + 1

    def natural(theta):
        params = {name: theta[:, k + 1] for k, name in enumerate(names)}
        return {
            **params,
            "k": np.exp(theta[:, 0] - sum(theta[:, k + 1] * c for k, c in enumerate(centre))),
        }

    def values(params, *points):
        return np.asarray(
            params["k"]
            * np.prod([v ** params[m] for m, v in zip(names, points, strict=True)], axis=0)
        )

    shown = " ".join(f"{letter}^{{{name}}}" for letter, name in zip(letters, names, strict=True))
    output = {"N": "N", "D": "D"}.get(table.letter(y, 0, [y]), "y") + "*"
    problem = estimate.Problem(
        law=law,
        formula=f"{output} = {{k}} {shown}",
        columns={**dict(zip(letters, xs, strict=True)), output: y},
        inputs=letters,
        objective=lambda loss, delta: solver.log_sum_exp([line], p, loss, delta),
        starts=np.zeros((1, p)) + np.r_[log_y.mean(), np.zeros(p - 1)],
        lower=np.full(p, -1e3),
        upper=np.full(p, 1e3),
        natural=natural,
        values=values,
        free=[*names, "k"],
        derive=lambda q: {"log10_k": np.log10(q["k"])},
    )
    w = data.columns[weights] if weights else None
    result = estimate.estimate(
        problem, data, "log_squares", 1e-3, w, bootstrap, resample, seed, reach
    )
    share = np.ones(len(log_y)) if w is None else w
    spread = (share * (log_y - np.average(log_y, weights=share)) ** 2).sum()
    result.extra["r2"] = 1 - result.objective / spread if spread > 0 else 1.0
    options = dict(
        x=x,
        y=y,
        weights=weights,
        group=group,
        bootstrap=bootstrap,
        resample=resample,
        seed=seed,
        reach=reach,
        law=law,
    )
    result.refit = lambda rows=None, **new: loglog(
        data.rows if rows is None else rows, **{**options, **new}
    )
    result.judge = judge.backtest
    return result
