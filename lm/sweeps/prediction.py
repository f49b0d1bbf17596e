"""Predict the loss of the run with is_prediction_target=True from the other runs, before it starts.

    prediction.write_prediction(runs, launcher.sweep_folder(runs))

prediction.json contains value, lo, hi, level and fit, or the field refused with a reason. The
interval (lo, hi) includes uncertainty about the form of the law. The file also contains the hashes
of its inputs, of the config of the target and of the code. Its inputs are the runs that had ended,
and the field unfinished names the other candidates. See lm/reports/audit, which verifies
them. Before training, `check_prediction` verifies that the sweep has enough sizes for an interval.
"""

import collections
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.config import model_sizes, schema
from lm.laws import comparability
from lm.reports.audit import target_prediction
from lm.runs import filesystem, json_files, lock, records, run_selection
from lm.runs.integrity import prediction_log, record_checksums, sweep_files

N_PARAMETERS = 3  # E, A and alpha of the law of size
X, Y, BUDGET_TOLERANCE = (
    target_prediction.X,
    target_prediction.Y,
    target_prediction.BUDGET_TOLERANCE,
)
LOCK_SECONDS = 0.5  # between two attempts to lock the folder of a sweep


def related_runs(runs: list[schema.Run]) -> set[str]:
    """Return the names of the predicted run, its ancestors, and all their descendants.

    The law must not use these runs, because a cooldown branch shares most of its training with its
    trunk run. It shares as much with the other branches of that run. The set is empty if no run is
    predicted. A trunk run may belong to another sweep.
    """
    starts = {run.name: (run.start.run, run.start.restore) for run in runs}
    targets = [run.name for run in runs if run.is_prediction_target]
    return run_selection.related_names(targets[0], starts) if targets else set()


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


def update_records(runs: list[schema.Run], selected: set[str], folder: Path) -> None:
    """Write the prediction before a related run starts, and register the result of the target.

    selected: names of the runs that start next.
    """
    register_result(runs, folder)
    if selected & related_runs(runs):
        write_prediction(runs, folder)


def write_prediction(runs: list[schema.Run], folder: Path) -> None:
    """Fit a law to finished runs and write its prediction to prediction.json in the sweep folder.

    The law uses the runs of `runs_to_fit` with the tuned settings of their size and tokens: see
    `run_table.select_tuned`. For a sweep with several token budgets, the field joint
    contains a second prediction, from the law L(N, D) of all unrelated runs. The hash of the
    prediction is recorded in the log of the sweep and in the target: see prediction_log. An
    existing prediction is not changed after one of the related runs has started. A prediction of
    another target moves to prediction-RUN.json.
    """
    target = next(run for run in runs if run.is_prediction_target)
    with _lock_sweep(folder):
        if _has_started(runs):
            return
        prediction = _predict_target(runs, target, folder)
        target_dir = target_prediction.run_folder(folder, target.name)
        if not _is_stored(prediction, folder, target_dir):
            _preserve_earlier(folder, target.name)
            json_files.write_record(folder / "prediction.json", prediction)
            prediction_log.register_prediction(folder, target_dir, prediction)


def register_result(runs: list[schema.Run], folder: Path) -> None:
    """Record the hashes of the finished target in the log of the sweep, if it has a prediction."""
    for run in runs:
        target_dir = target_prediction.run_folder(folder, run.name)
        if run.is_prediction_target and prediction_log.predicted_events(target_dir):
            if records.is_finished(run):
                with _lock_sweep(folder):
                    prediction_log.register_result(folder, target_dir, run.name)


def _has_started(runs: list[schema.Run]) -> bool:
    """Return True if the target or one of its related runs has started."""
    related = related_runs(runs)
    return any(records.read_facts(records.run_dir(run)) for run in runs if run.name in related)


def _predict_target(runs: list[schema.Run], target: schema.Run, folder: Path) -> dict:
    """Return the content of prediction.json."""
    loaded = records.load_folder(folder)
    # A sweep that is edited while it runs may not be in sweep.json yet.
    rows = [*loaded.others, *loaded.rows]
    rows = [row for row in rows if row["status"] in records.TERMINAL_STATUSES]
    candidates = target_prediction.Candidates(*runs_to_fit(runs))
    n_params, n_tokens = _n_params(target), model_sizes.training_tokens(target)
    prediction = {"target": target.name, "x": X, "y": Y, X: n_params, records.TOKENS: n_tokens}
    prediction |= target_prediction.predict_target(
        rows, candidates, n_params, n_tokens, should_predict_tasks=bool(target.eval.tasks)
    )
    names = sorted({name for names in candidates for name in names})
    inputs = target_prediction.describe_inputs(rows, folder, names)
    return prediction | {
        "target_config": prediction_log.config_sha256(target),
        "inputs": inputs,
        # The records of these runs will change, so the prediction has no hashes of them.
        target_prediction.UNFINISHED: [name for name in names if name not in inputs],
        "candidates": candidates._asdict(),
        "members": sorted(run.name for run in runs),
        "code": target_prediction.describe_code(),
        "written": records.current_time(),
    }


def _preserve_earlier(folder: Path, target: str) -> None:
    """Copy the prediction of another target to a file of its own, before it is replaced.

    A sweep may be extended by a size. The prediction of the size before remains, right or wrong.
    """
    try:
        stored = sweep_files.read_prediction(folder)
    except ValueError:  # a damaged file is replaced
        return
    if stored and stored["target"] != target:
        content = (folder / "prediction.json").read_bytes()
        filesystem.write_file(sweep_files.earlier_file(folder, stored["target"]), content)


def _is_stored(prediction: dict, folder: Path, target_dir: Path) -> bool:
    """Return True if the same prediction was stored before and is registered."""
    try:
        stored = sweep_files.read_prediction(folder)
    except ValueError:  # a damaged file is replaced
        return False
    stored.pop(record_checksums.VERSION, None)
    is_same = stored | {"written": ""} == json.loads(
        json_files.to_json(prediction | {"written": ""})
    )
    return is_same and prediction_log.is_registered(folder, target_dir, stored)


@contextlib.contextmanager
def _lock_sweep(folder: Path) -> Iterator[None]:
    """Wait until no other process writes the prediction of a sweep, and lock its folder."""
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.RunLock(folder))
            except lock.RunLocked:
                time.sleep(LOCK_SECONDS)
                continue
            yield
            return


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
