"""Predict the loss of the run with is_prediction_target=True from the other runs, before it starts.

    prediction.write_prediction(runs, launcher.sweep_folder(runs))

prediction.json contains value, lo, hi, level and fit, or the field refused with a reason. The
interval (lo, hi) includes uncertainty about the form of the law. Before training,
`check_prediction` verifies that the sweep has enough sizes for an interval.
"""

import collections
import datetime
import functools
import math
from collections.abc import Callable
from pathlib import Path

from lm.config import model_sizes, schema
from lm.laws import comparability, run_table
from lm.laws.forms import power_laws
from lm.reports import task_analysis
from lm.runs import json_files, records, run_selection

N_PARAMETERS = 3  # E, A and alpha of the law of size
X, Y = "params.non_embedding", "eval.loss"  # input and output of the law
BUDGET_TOLERANCE = 0.02  # relative difference up to which two token budgets are equal


def related_runs(runs: list[schema.Run]) -> set[str]:
    """Return the names of the predicted run, its ancestors, and all their descendants.

    The law must not use these runs, because a cooldown branch shares most of its training with its
    trunk run. It shares as much with the other branches of that run. The set is empty if no run is
    predicted.
    """
    by_name = {run.name: run for run in runs}
    ancestors = [run for run in runs if run.is_prediction_target]
    while ancestors:
        parent = by_name.get(ancestors[-1].start.run)
        if parent is None or parent in ancestors:
            break
        ancestors.append(parent)
    related = {run.name for run in ancestors}
    while children := {run.name for run in runs if run.start.run in related} - related:
        related |= children
    return related


def check_prediction(runs: list[schema.Run]) -> str:
    """Check that the other runs can predict the target with an interval. Return a warning, or "".

    A law of p parameters needs p + 1 fitted sizes: with p sizes it passes through every run, and no
    residuals are left to estimate the noise. Raises ValueError if the sweep has fewer runs or sizes
    than that. Return a warning if only the seeds of p sizes leave residuals.
    """
    if not any(run.is_prediction_target for run in runs):
        return ""
    target = next(run for run in runs if run.is_prediction_target)
    names = set(runs_to_fit(runs)[0])
    n_seeds = _count_seeds([run for run in runs if run.name in names])
    n_sizes, n_fitted = len(n_seeds), sum(n_seeds.values())
    if n_fitted > N_PARAMETERS and n_sizes == N_PARAMETERS:
        return (
            f"{target.name} is predicted from {n_sizes} other sizes: a law of {N_PARAMETERS}"
            " parameters passes through each of them, so only their seeds give an interval"
        )
    if n_fitted <= N_PARAMETERS or n_sizes < N_PARAMETERS:
        raise ValueError(
            f"to predict {target.name} from {n_sizes} other size{'' if n_sizes == 1 else 's'}: a"
            f" law of {N_PARAMETERS} parameters needs at least {N_PARAMETERS + 2} sizes for an"
            " interval, with the target and with equal training tokens. Add sizes, or set"
            " is_prediction_target=False in all runs."
        )
    return ""


def _count_seeds(runs: list[schema.Run]) -> dict[int, int]:
    """Return {size: number of runs of equal settings}; the law uses only the tuned settings."""
    counts = collections.Counter(
        (_n_params(run), comparability.training_settings(schema.flatten(run))) for run in runs
    )
    n_seeds: dict[int, int] = {}
    for (n_params, _), count in counts.items():
        n_seeds[n_params] = max(n_seeds.get(n_params, 0), count)
    return n_seeds


def _n_params(run: schema.Run) -> int:
    return model_sizes.count_parameters(model_sizes.resolved_model(run))["non_embedding"]


def write_prediction(runs: list[schema.Run], folder: Path) -> None:
    """Fit a law to finished runs and write its prediction to prediction.json in the sweep folder.

    The law uses the runs of `runs_to_fit` with the tuned settings of their size and tokens: see
    `run_table.select_tuned`. For a sweep with several token budgets, the field joint
    contains a second prediction, from the law L(N, D) of all unrelated runs. An existing prediction
    is not changed after one of the related runs has started.
    """
    target = next(run for run in runs if run.is_prediction_target)
    related = related_runs(runs)
    if any(records.read_facts(records.run_dir(run)) for run in runs if run.name in related):
        return
    loaded = records.load_folder(folder)
    # A sweep that is edited while it runs may not be in sweep.json yet.
    rows = {row["name"]: row for row in (*loaded.others, *loaded.rows)}
    same_budget, any_budget = (
        run_table.select_tuned(
            [rows[name] for name in names if name in rows], [X, records.TOKENS], Y
        )
        for names in runs_to_fit(runs)
    )
    n_params = _n_params(target)
    prediction = {
        "target": target.name,
        "x": X,
        "y": Y,
        X: n_params,
        "runs": [row["name"] for row in same_budget],
    }
    prediction |= _predict(lambda: power_laws.power(same_budget, x=X, y=Y), n_params)
    if len(any_budget) > len(same_budget):
        n_tokens = model_sizes.training_tokens(target)
        refusal = run_selection.refuse_joint_law(any_budget)
        joint = {"refused": refusal}
        if not refusal:
            fit_law = functools.partial(power_laws.chinchilla, any_budget, n=X, y=Y)
            joint = _predict(fit_law, n_params, n_tokens)
        prediction["joint"] = joint | {"runs": [row["name"] for row in any_budget]}
    if target.eval.tasks:
        prediction["tasks"] = task_analysis.predict_task_accuracy(same_budget, n_params)
    prediction["written"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    json_files.write_record(folder / "prediction.json", prediction)


def runs_to_fit(runs: list[schema.Run]) -> tuple[list[str], list[str]]:
    """Return the names of runs with the target's token budget, and of runs with any budget.

    The laws are fitted to these runs. Both lists exclude related runs. They also exclude trunk
    runs, because a trunk run does not decay its learning rate. If no run has the target's budget,
    the first list contains the runs with the target's tokens per parameter.
    """
    target = next(run for run in runs if run.is_prediction_target)
    related = related_runs(runs)
    trunks = {run.start.run for run in runs if run.start.restore == "full_state"}
    candidates = [run for run in runs if run.name not in related | trunks]
    same_budget = _names_like(candidates, target, model_sizes.training_tokens)
    same_budget = same_budget or _names_like(candidates, target, _tokens_per_parameter)
    return same_budget, sorted(run.name for run in candidates)


def _names_like(
    runs: list[schema.Run], target: schema.Run, measure: Callable[[schema.Run], float]
) -> list[str]:
    """Return the sorted names of the runs whose measure equals the target's within tolerance."""
    value = measure(target)
    tolerance = BUDGET_TOLERANCE * value
    return sorted(run.name for run in runs if abs(measure(run) - value) <= tolerance)


def _tokens_per_parameter(run: schema.Run) -> float:
    return (
        model_sizes.training_tokens(run)
        / model_sizes.count_parameters(model_sizes.resolved_model(run))["total"]
    )


def _predict(fit_law: Callable, *inputs: float) -> dict:
    """Return value, bounds, level and fit of a law at the inputs, or the reason as refused.

    The interval (lo, hi) includes uncertainty about the form of the law. The interval
    (lo_if_form_right, hi_if_form_right) does not. The bounds are None for a law without an
    interval.
    """
    try:
        fit = fit_law()
        prediction = fit.predict(*inputs)
    except ValueError as error:
        return {"refused": str(error)}
    numbers = {
        "value": prediction.value,
        "lo": prediction.lo,
        "hi": prediction.hi,
        "lo_if_form_right": prediction.lo_if_form_right,
        "hi_if_form_right": prediction.hi_if_form_right,
    }
    finite = {key: float(v) if math.isfinite(v) else None for key, v in numbers.items()}
    return finite | {"level": prediction.level, "fit": fit.to_dict()}
