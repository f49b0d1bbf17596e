"""Prediction of the loss of a run from the rows of other runs, with the hashes of all its inputs.

    candidates = target_prediction.Candidates(same_budget, any_budget)
    prediction = target_prediction.predict_target(rows, candidates, n_params, n_tokens)
    inputs = target_prediction.describe_inputs(rows, sweep_dir, names)

The function is deterministic: the same rows give the same values, intervals and draws. Therefore
prediction_audit.py can repeat it.
"""

import functools
import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.laws import fit, run_table
from lm.laws.forms import power_laws
from lm.laws.source_losses import loss_to_loss
from lm.reports import task_analysis
from lm.reports.audit import ability_backtest, ability_prediction
from lm.runs import provenance, records, run_selection, task_results
from lm.runs.integrity import prediction_log

X, Y = records.N_PARAMS, records.LOSS  # input and output of the law
BUDGET_TOLERANCE = 0.02  # relative difference up to which two token budgets are equal
VALUE_COLUMNS = (X, records.TOKENS, Y)  # of a fitted run, stored in the prediction
SOURCE_LOSSES = "source_losses"  # entry of the losses of sources and tasks
ABILITIES = "abilities"  # entry of the scores of tasks, and of the tasks above baseline
TASK_LOSS = "bits_per_byte"  # metric of a task that is predicted from the loss
NORMAL_95 = 1.959964  # half the width of a normal 95% interval, in standard deviations
PACKAGES = ("numpy", "scipy")
UNFINISHED = "unfinished"  # entry of the candidates that had not ended; the law does not use them


class Candidates(NamedTuple):
    """Names of the runs that a law may use."""

    same_budget: list[str]  # runs with the token budget of the target, for the law of size
    any_budget: list[str]  # all of them, for the law of size and tokens


def predict_target(
    rows: Sequence[dict],
    candidates: Candidates,
    n_params: int,
    n_tokens: int,
    should_predict_tasks: bool = False,
) -> dict:
    """Return the prediction for a number of parameters without embeddings, or why it is refused.

    rows: rows of records.load_folder, which contain the candidates. n_tokens: training tokens of
    the target. The entry joint is the prediction of the law L(N, D), if the candidates have several
    token budgets. The entry tasks has the predicted accuracies. The entry source_losses has the
    predicted losses of the sources and the bits per byte of the tasks, by column. The entry
    abilities has the predicted scores, and the tasks above baseline, see `ability_prediction`.
    """
    by_name = {row["name"]: row for row in rows}
    tolerances = {records.TOKENS: BUDGET_TOLERANCE}
    same_budget, any_budget = (
        run_table.select_tuned(
            [by_name[name] for name in names if name in by_name], [X, records.TOKENS], Y, tolerances
        )
        for names in candidates
    )
    prediction: dict[str, Any] = {"runs": [row["name"] for row in same_budget]}
    prediction |= _predict(lambda: power_laws.power(same_budget, x=X, y=Y), n_params)
    if len(any_budget) > len(same_budget):
        refusal = run_selection.refuse_joint_law(any_budget)
        joint = {"refused": refusal}
        if not refusal:
            fit_law = functools.partial(power_laws.chinchilla, any_budget, n=X, y=Y)
            joint = _predict(fit_law, n_params, n_tokens)
        prediction["joint"] = joint | {"runs": [row["name"] for row in any_budget]}
    if source_losses := _predict_source_losses(any_budget, prediction):
        prediction[SOURCE_LOSSES] = source_losses
    if abilities := _predict_abilities(any_budget, prediction, n_params, n_tokens):
        prediction[ABILITIES] = abilities
    if should_predict_tasks:
        prediction["tasks"] = task_analysis.predict_task_accuracy(same_budget, n_params)
    return prediction


def loss_columns(rows: Iterable[Mapping]) -> list[str]:
    """Return the sorted columns of the losses of single sources, then those of single tasks."""
    keys = {key for row in rows for key in row}
    sources = sorted(key for key in keys if key.startswith(f"{Y}."))
    prefix, _, suffix = task_results.task_column("*", TASK_LOSS).partition("*")
    return sources + sorted(k for k in keys if k.startswith(prefix) and k.endswith(suffix))


def _predict_source_losses(rows: Sequence[dict], total: Mapping) -> dict[str, dict]:
    """Return {column: prediction, or the reason why it is refused} of each source and task.

    rows: tuned runs of any token budget. total: prediction of the loss of the target. The interval
    of a source includes that of the total. Without a predicted total, the result is empty.
    """
    if "value" not in total or total["lo"] is None:
        return {}
    total_sd = (total["hi"] - total["lo"]) / (2 * NORMAL_95)
    predictions = {}
    for column in loss_columns(rows):
        try:
            law = loss_to_loss.loss_to_loss(rows, column, Y)
            prediction = law.predict(total["value"], total_sd)
        except ValueError as error:
            predictions[column] = {"refused": str(error)}
            continue
        numbers = {"value": prediction.value, "lo": prediction.lo, "hi": prediction.hi}
        predictions[column] = {key: float(v) for key, v in numbers.items()} | {"n_runs": law.n}
    return predictions


def _predict_abilities(
    rows: Sequence[dict], total: Mapping, n_params: int, n_tokens: int
) -> dict[str, Any]:
    """Return the predicted abilities and their back-test, {} without task results.

    rows: tuned runs of any token budget. The runs of the size of the target are left out.
    """
    smaller = [row for row in rows if row[X] < n_params]
    abilities = ability_prediction.predict_abilities(smaller, total, n_params, n_tokens)

    def predict_total(rows: Sequence[dict], size: float) -> dict:
        """Predict the loss of a smaller size, from runs with the token budget of the target."""
        same_budget = [
            row for row in rows if abs(row[records.TOKENS] / n_tokens - 1) <= BUDGET_TOLERANCE
        ]
        return _predict(lambda: power_laws.power(same_budget or rows, x=X, y=Y), size)

    if abilities:
        backtest = ability_backtest.backtest_abilities(smaller, predict_total, n_tokens)
        abilities["backtest"] = backtest
    return abilities


def describe_inputs(
    rows: Sequence[Mapping], sweep_dir: Path, names: Iterable[str]
) -> dict[str, dict]:
    """Return {name: hashes of the records, and the values that enter the law} of the named runs."""
    by_name, inputs = {row["name"]: row for row in rows}, {}
    for name in names:
        if name in by_name:
            columns = [*VALUE_COLUMNS, *loss_columns([by_name[name]])]
            values = {column: by_name[name].get(column) for column in columns}
            hashes = prediction_log.hash_records(run_folder(sweep_dir, name))
            inputs[name] = {"records": hashes, "values": values}
    return inputs


def run_folder(sweep_dir: Path, name: str) -> Path:
    """Return the folder of the run SWEEP/RUN in the folder of its sweep."""
    return sweep_dir / name.partition("/")[2]


def describe_code() -> dict[str, str]:
    """Return the version, the commit and the hash of the code of a prediction, and its packages."""
    code = {
        "version": provenance.package_version(),
        "commit": provenance.git_commit(),
        "hash": provenance.code_hash(__name__),
    }
    return code | {package: importlib.metadata.version(package) for package in PACKAGES}


def _predict(fit_law: Callable[[], fit.Fit], *inputs: float) -> dict:
    """Return value, bounds, level, draws and fit of a law, or the reason as refused.

    The interval (lo, hi) includes uncertainty about the form of the law. The interval
    (lo_if_form_right, hi_if_form_right) does not. The bounds are None for a law without an
    interval.
    """
    try:
        law_fit = fit_law()
        prediction = law_fit.predict(*inputs)
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
    finite |= {"level": prediction.level, "draws": _describe_draws(law_fit)}
    return finite | {"fit": law_fit.to_dict()}


def _describe_draws(law_fit: fit.Fit) -> dict:
    """Return the seed, the number and the SHA-256 of the resampled parameters of a law."""
    digest = hashlib.sha256()
    for name in sorted(law_fit.ensemble):
        digest.update(name.encode() + np.asarray(law_fit.ensemble[name], "<f8").tobytes())
    n_draws = len(next(iter(law_fit.ensemble.values()), ()))
    return {"seed": law_fit.seed, "n": n_draws, "sha256": digest.hexdigest()}
