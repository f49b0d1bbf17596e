"""From compute to accuracy: two steps chained, and the one-step law."""

from dataclasses import replace
from typing import Any

import numpy as np

from lm import fit, judge, powers, table


def chain(step1: fit.Fit, step2: fit.Fit) -> fit.Fit:
    """Accuracy from N and D (or C): `step2`, an ability, of `step1`, a law of its loss.

    The two ensembles are paired draw by draw and step 1's noise is passed through step 2, so that
    the interval holds both steps' doubts (Bhagia et al. 2024 chain so). `predict` takes the inputs
    of step 1. Parameters are those of both, as step1_E and step2_k. Raises ValueError where the
    loss of step 1 is not the loss that step 2 reads.
    """
    if step2.inputs != ["L"]:
        raise ValueError(
            f"step2 must be an ability of a loss, it is {step2.law} of {', '.join(step2.inputs)}"
        )
    if step1.columns[step1.output] != step2.columns["L"]:
        raise ValueError(
            f"step1 predicts {step1.columns[step1.output]} but step2 reads {step2.columns['L']}: "
            "fit both to one loss"
        )

    def values(params, *inputs):
        first = {k[6:]: v for k, v in params.items() if k.startswith("step1_")}
        second = {k[6:]: v for k, v in params.items() if k.startswith("step2_")}
        return np.clip(step2.values(second, step1.values(first, *inputs)), *step2.bounds)

    n = min((len(v) for s in (step1, step2) for v in s.ensemble.values()), default=0)
    ensemble = {
        f"step{i}_{k}": v[:n] for i, s in ((1, step1), (2, step2)) for k, v in s.ensemble.items()
    }
    params = {f"step{i}_{k}": v for i, s in ((1, step1), (2, step2)) for k, v in s.params.items()}
    ensemble |= {k: np.full(n, v) for k, v in params.items() if k not in ensemble and n}
    accuracies = np.array([table.number(row.get(step2.columns["acc"])) for row in step1.data.rows])
    result = replace(
        step1,
        law="chain",
        formula=_inner(step1.formula, 1) + ";  " + _inner(step2.formula, 2),
        params=params,
        values=values,
        columns={
            **{k: step1.columns[k] for k in step1.inputs},
            "acc": step2.columns["acc"],
            "L": step1.columns[step1.output],
        },
        data=replace(step1.data, columns={**step1.data.columns, step2.columns["acc"]: accuracies}),
        loss=f"{step1.loss} in step 1",
        ensemble=ensemble if n else {},
        derived={},
        free=list(params),
        fixed={},
        refit=None,
        judge=lambda _: judge.Score(reason=f"step 1: {step1.score}; step 2: {step2.score}"),
        link=None,
        bounds=step2.bounds,
        plain=True,
        sigma=step2.sigma,
        sigmas=None if step2.sigmas is None else step2.sigmas[:n],
        warnings=[f"step 1: {w}" for w in step1.warnings]
        + [f"step 2: {w}" for w in step2.warnings],
        resampling=f"step 1 {step1.resampling}, step 2 {step2.resampling}",
        extra={"step1": step1, "step2": step2},
    )
    return result


def _inner(formula: str, step: int) -> str:
    return formula.replace("{", f"{{step{step}_")


def one_step(
    rows: table.Rows,
    x: str = "flops",
    y: str = "eval.completion",
    chance: float = 0.0,
    **options: Any,
) -> fit.Fit:
    """Accuracy straight from compute: -log q = A C^-alpha, q = (acc - chance) / (1 - chance).

    The direct law of Krajewski et al. (arXiv:2512.08894) for runs of one number of tokens a
    parameter, fitted by least squares of log(-log q). x is the FLOPs, or any column or columns that
    `power` takes. Rows at or below chance have no logarithm: they are left out and named.
    `predict(C)` gives the accuracy. Parameters: A, alpha; options as `power`.
    """
    data = table.read(
        rows,
        [*([x] if isinstance(x, str) else x), y],
        options.pop("group", None),
        options.pop("where", None),
        [y],
    )
    acc = data.columns[y]
    share = (acc - chance) / (1 - chance)
    good = (share > 0) & (share < 1)
    if good.sum() < 2:
        raise ValueError(
            f"{y} is at chance ({chance:g}) or at 1 in all but {good.sum()} rows: no law can be "
            "fitted"
        )
    column = f"-log {y}"
    derived = [{**data.rows[i], column: float(-np.log(share[i]))} for i in np.flatnonzero(good)]
    result = powers.power(derived, x, column, floor=False, **options)
    excluded = data.excluded + [
        (data.names[i], f"{y} is {acc[i]:g}, not between chance and 1")
        for i in np.flatnonzero(~good)
    ]
    result.data.excluded[:] = excluded
    result.law, result.formula = (
        "one_step",
        "-log q = " + result.formula.split(" = ", 1)[1] + f", acc = {chance:g} + {1 - chance:g} q",
    )
    result.link, result.bounds = (lambda v: chance + (1 - chance) * np.exp(-v)), (chance, 1.0)
    again = result.refit

    def refit(rows=None, **new):
        assert again is not None
        part = again(rows, **new)
        part.link, part.bounds = result.link, result.bounds
        return part

    result.refit = refit
    return result
