"""Accuracy from compute: the two-step law, and the one-step law."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lm import fit, judge, powers, table


@dataclass(kw_only=True)
class TwoStepFit(fit.Fit):
    """Two fits in sequence: a law of the loss, and the accuracy as a function of that loss."""

    step1: fit.Fit
    step2: fit.Fit


def chain(step1: fit.Fit, step2: fit.Fit) -> TwoStepFit:
    """Predict accuracy from N and D (or C): `step2`, an ability, of `step1`, a law of its loss.

    The ensembles are paired draw by draw, and the parameters of step 1 vary through step 2, so that
    the interval contains the uncertainty of both steps (Bhagia et al. 2024, arXiv:2412.04403).
    `predict` takes the inputs of step 1. Parameters are those of both fits, named step1_E and
    step2_k. Raises ValueError if the loss of step 1 is not the loss of step 2.
    """
    if step2.inputs != ["L"]:
        raise ValueError(
            f"step2 must be an ability of a loss, it is {step2.law} of {', '.join(step2.inputs)}"
        )
    loss, accuracy = step1.columns[step1.output], step2.columns["acc"]
    if loss != step2.columns["L"]:
        raise ValueError(
            f"step1 predicts {loss} but step2 reads {step2.columns['L']}: fit both to the same loss"
        )
    names1, names2 = _qualified_names(step1, "step1"), _qualified_names(step2, "step2")
    params = {names1[k]: v for k, v in step1.params.items()}
    params |= {names2[k]: v for k, v in step2.params.items()}
    derived = {names1[k]: v for k, v in step1.derived.items()}
    formula = f"{_qualified_formula(step1, names1)};  {_qualified_formula(step2, names2)}"
    ensemble, n_draws = _pair_ensembles(step1, step2, names1, names2)
    ensemble |= {k: np.full(n_draws, v) for k, v in params.items() if k not in ensemble and n_draws}

    def values(params, *inputs):
        losses = step1.values({name: params[names1[name]] for name in step1.params}, *inputs)
        accuracies = step2.values({name: params[names2[name]] for name in step2.params}, losses)
        return np.clip(accuracies, *step2.bounds)

    measured = np.array([table.number(row.get(accuracy)) for row in step1.data.rows])
    result = step1.extend(TwoStepFit, step1=step1, step2=step2)
    return replace(
        result,
        law="chain",
        formula=formula,
        params=params,
        values=values,
        columns={**{k: step1.columns[k] for k in step1.inputs}, "acc": accuracy, "L": loss},
        data=replace(step1.data, columns={**step1.data.columns, accuracy: measured}),
        loss=f"{step1.loss} in step 1",
        ensemble=ensemble,
        derived={k: v for k, v in derived.items() if f"{{{k}}}" in formula},
        free=list(params),
        fixed={},
        refit=None,
        backtester=partial(_describe_scores, step1, step2),
        output_transform=None,
        bounds=step2.bounds,
        additive_noise=True,
        sigma=step2.sigma,
        sigmas=None if step2.sigmas is None else step2.sigmas[:n_draws],
        warnings=[f"step 1: {text}" for text in step1.warnings]
        + [f"step 2: {text}" for text in step2.warnings],
        resampling=f"step 1 {step1.resampling}, step 2 {step2.resampling}",
        optima=[],
        seed_noise=None,
        r_squared=None,
    )


def _qualified_names(step: fit.Fit, prefix: str) -> dict[str, str]:
    """Return the names in the two-step law of the parameters and derived parameters of a step."""
    names = dict.fromkeys([*step.ensemble, *step.params, *step.derived])
    return {name: f"{prefix}_{name}" for name in names}


def _qualified_formula(step: fit.Fit, names: dict[str, str]) -> str:
    return step.formula.format(**{name: f"{{{key}}}" for name, key in names.items()})


def _pair_ensembles(
    step1: fit.Fit, step2: fit.Fit, names1: dict[str, str], names2: dict[str, str]
) -> tuple[fit.Ensemble, int]:
    """Return the draws of both steps, as many as the shorter ensemble has, and their number."""
    n_draws = min(
        (len(draws) for step in (step1, step2) for draws in step.ensemble.values()), default=0
    )
    if not n_draws:
        return {}, 0
    ensemble = {names1[k]: draws[:n_draws] for k, draws in step1.ensemble.items()}
    ensemble |= {names2[k]: draws[:n_draws] for k, draws in step2.ensemble.items()}
    return ensemble, n_draws


def _describe_scores(step1: fit.Fit, step2: fit.Fit, _: fit.Fit) -> judge.Score:
    return judge.Score(reason=f"step 1: {step1.score}; step 2: {step2.score}")


def one_step(
    rows: table.Rows,
    x: str | Sequence[str] = "flops",
    y: str = "eval.completion",
    chance: float = 0.0,
    **options: Any,
) -> fit.Fit:
    """Fit -log q = A C^-alpha with q = (acc - chance) / (1 - chance): accuracy from compute.

    This is the direct law of Krajewski et al. (arXiv:2512.08894) for runs with the same number of
    tokens per parameter, by least squares of log(-log q). x is the column of FLOPs, or any column
    or columns of `power`. Rows at or below chance have no logarithm and are excluded. `predict(C)`
    returns the accuracy. Parameters: A, alpha. Options are those of `power`.
    """
    parsed = fit.parse_options(
        "one_step", options, fit.FitOptions(loss="log_squares"), powers.OPTIONS
    )
    inputs = powers.letter_inputs(x)
    data = table.read(rows, [*inputs.values(), y], parsed.group, parsed.where, [y])
    accuracies = data.columns[y]
    q = (accuracies - chance) / (1 - chance)
    is_valid = (q > 0) & (q < 1)
    if is_valid.sum() < 2:
        raise ValueError(
            f"{y} is at chance ({chance:g}) or at 1 in all but {is_valid.sum()} rows: no law can "
            "be fitted"
        )
    column = f"-log {y}"
    valid_rows = [{**data.rows[i], column: float(-np.log(q[i]))} for i in np.flatnonzero(is_valid)]
    power_options = replace(parsed, group=None, where=None)
    result = powers.sum_of_powers(valid_rows, inputs, column, "power", False, power_options)
    result.data.excluded[:] = data.excluded + [
        (data.names[i], f"{y} is {accuracies[i]:g}, not between chance and 1")
        for i in np.flatnonzero(~is_valid)
    ]
    right_side = result.formula.partition(" = ")[2]
    result.law = "one_step"
    result.formula = f"-log q = {right_side}, acc = {chance:g} + {1 - chance:g} q"
    result.refit = partial(_refit_one_step, result.refit, chance)
    return _with_accuracy_output(result, chance)


def _with_accuracy_output(result: fit.Fit, chance: float) -> fit.Fit:
    """Set the transform from -log q to accuracy."""
    result.output_transform = lambda values: chance + (1 - chance) * np.exp(-values)
    result.bounds = (chance, 1.0)
    return result


def _refit_one_step(refit_power, chance: float, rows=None, **changes: Any) -> fit.Fit:
    return _with_accuracy_output(refit_power(rows, **changes), chance)
