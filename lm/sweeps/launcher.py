"""Train the pending runs of a sweep.

    launcher.validate_sweep(runs)
    launcher.run_pending(runs, retries=2)

The state of a sweep is its folder: `run_pending` continues where an earlier call ended.
"""

import dataclasses
import datetime
import functools
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.config import schema, validation
from lm.data import dataset
from lm.evaluation import tasks
from lm.parallel import distributed, mesh
from lm.runs import filesystem, lock, records
from lm.sweeps import prediction
from lm.training import checkpoints, loop, metric_log, vmapped_runs, warm_start


def validate_sweep(runs: list[schema.Run], report: Callable | None = None) -> None:
    """Validate all runs of a sweep, and prepare their training text.

    report: progress callback of the preparation, see corpus.prepare_corpus. Raises ValueError for
    the first problem that would stop a run.
    """
    _validate_names(runs)
    if sum(run.is_prediction_target for run in runs) > 1:
        raise ValueError(
            "is_prediction_target=True in more than one run. A sweep predicts at most one run."
        )
    by_name = {run.name: run for run in runs}
    for run in topological_order(runs):
        validation.validate_run(run)
        metric_log.check_writers(run)
        records.check_same_config(run)
        mesh.check_mesh_devices(run, mesh.make_mesh(run.mesh))
        if run.start.run:
            warm_start.validate_start(run, _parent(run, by_name))
    prediction.check_prediction(runs)
    for task_names in {run.eval.tasks for run in runs}:
        tasks.load_tasks(task_names)
    for run in runs:
        dataset.validate_steps(dataset.open_dataset(run.data, run.seed, report), run.steps)


def keep_original_configs(runs: list[schema.Run]) -> list[schema.Run]:
    """Return the runs, with the stored config of each run that has started.

    With these configs, a sweep whose file was edited after its start can continue.
    """
    folders = [records.run_dir(run) for run in runs]
    return [
        records.read_config(folder) if records.read_facts(folder) else run
        for run, folder in zip(runs, folders, strict=True)
    ]


def max_epochs_by_source(runs: list[schema.Run]) -> dict[str, float]:
    """Return the largest number of epochs over each data source in any run."""
    max_epochs: dict[str, float] = {}
    for run in runs:
        for source, n_epochs in dataset.open_dataset(run.data, run.seed).epochs(run.steps).items():
            max_epochs[source] = max(n_epochs, max_epochs.get(source, 0.0))
    return max_epochs


def sweep_folder(runs: list[schema.Run]) -> Path:
    """Return the common folder DIR/SWEEP of runs that are named SWEEP/RUN.

    Raises ValueError if a name has another form or if the runs have different folders.
    """
    folders = {
        str(filesystem.open_path(run.dir) / run.name.split("/")[0])
        for run in runs
        if "/" in run.name
    }
    if len(folders) != 1 or any("/" not in run.name for run in runs):
        names = ", ".join(sorted({run.name for run in runs})[:3])
        raise ValueError(
            f"name={names}: names in a sweep must be SWEEP/RUN with one SWEEP. Rename the runs."
        )
    return filesystem.open_path(folders.pop())


def write_sweep_files(sweep: str, runs: list[schema.Run], costs: list[dict]) -> None:
    """Write sweep.json (the request) and plan.json (the estimated costs).

    Also protect from deletion the checkpoints from which runs of the sweep will start. sweep:
    value of the flag --sweep. costs: rows of cost.estimate_cost.
    """
    if not distributed.is_primary():
        return
    folder = sweep_folder(runs)
    request = {
        "sweep": sweep,
        "runs": [run.name for run in runs],
        "command": f"uv run python -m experiments.sweep --sweep={sweep}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    records.write_json(folder / "sweep.json", request)
    records.write_json(folder / "plan.json", {"runs": costs})
    by_name = {run.name: run for run in runs}
    for run in runs:
        if run.start.run:
            parent = _parent(run, by_name)
            checkpoints.protect(parent, warm_start.start_step(run, parent), run.name)


def pending(runs: list[schema.Run]) -> list[schema.Run]:
    """Return the runs that are not finished, in training order."""
    ordered_runs = topological_order(runs)
    are_finished = distributed.run_on_primary(
        lambda: [records.is_finished(run) for run in ordered_runs]
    )
    return [
        run for run, is_finished in zip(ordered_runs, are_finished, strict=True) if not is_finished
    ]


def topological_order(runs: list[schema.Run]) -> list[schema.Run]:
    """Return the runs with each parent run before its children.

    The predicted run and its related runs come last. Raises ValueError for circular parents.
    """
    by_name = {run.name: run for run in runs}
    related = prediction.related_runs(runs)
    ordered_runs: dict[str, schema.Run] = {}
    for run in sorted(runs, key=lambda run: run.name in related):
        for ancestor in _ancestors(run, by_name):
            ordered_runs.setdefault(ancestor.name, ancestor)
    return list(ordered_runs.values())


@dataclasses.dataclass
class _Failures:
    """Runs that one call of `run_pending` does not select as usual, by name."""

    locked: set[str] = dataclasses.field(default_factory=set)  # another process got the lock first
    unvmapped: set[str] = dataclasses.field(default_factory=set)  # their common program failed


def run_pending(
    runs: list[schema.Run],
    on_start: Callable[[schema.Run], None] = lambda run: None,
    on_metrics: Callable[[schema.Run, dict], None] = lambda run, row: None,
    on_end: Callable[[schema.Run, str], None] = lambda run, reason: None,
    retries: int = 0,
    since: float | None = None,
    max_vmapped: int = 1,
) -> None:
    """Train runs in this process, one after another, until no run is ready.

    Any number of processes may call this function at the same time. The process that holds the lock
    of a run trains it. A run that diverges or fails is recorded as such, and the sweep continues. A
    signal, a full disk or a read-only disk stops the sweep. The same call continues it.

    on_start: called with each run before its training. on_metrics: called with the run and each row
    of metrics.jsonl. on_end: called with the run and the reason of an early end, or "". retries:
    additional attempts after a failure. since: Unix time in seconds before which failures do not
    count, by default now. max_vmapped: maximum number of runs in one program, see
    lm/training/vmapped_runs.py.
    """
    since = time.time() if since is None else since
    failures = _Failures()
    by_name = {run.name: run for run in runs}

    def select() -> list[str]:
        return _select_next(runs, retries, since, max_vmapped, failures)

    while names := distributed.run_on_primary(select):
        group = [by_name[name] for name in names]
        for run in group:
            on_start(run)
        reasons = _train_group(group, on_metrics, failures)
        for run in group:
            on_end(run, reasons[run.name])


def ready(runs: list[schema.Run], retries: int, since: float) -> Iterator[schema.Run]:
    """Yield the runs that can start now, in training order. Arguments: see `run_pending`.

    A run waits while another process trains it and until its parent run is finished. The predicted
    run and its related runs wait until no other run can start or is in training. A run that has
    diverged or failed too often is never ready, nor are its descendants.
    """
    by_name = {run.name: run for run in runs}
    related = prediction.related_runs(runs)
    unreachable: set[str] = set()
    has_unrelated_pending = False
    for run in topological_order(runs):
        facts = records.read_facts(records.run_dir(run))
        if run.start.run in unreachable or _has_failed(facts, retries, since):
            unreachable.add(run.name)
            continue
        if records.is_finished(run):
            continue
        parent = by_name.get(run.start.run)
        is_related = run.name in related
        is_blocked = (
            lock.is_alive(records.run_dir(run))
            or (parent is not None and not records.is_finished(parent))
            or (is_related and has_unrelated_pending)
        )
        has_unrelated_pending = has_unrelated_pending or not is_related
        if not is_blocked:
            yield run


def _validate_names(runs: list[schema.Run]) -> None:
    """Check that a sweep has runs with unique names SWEEP/RUN. Raises ValueError otherwise."""
    if not runs:
        raise ValueError("the sweep has no runs. get_sweep must yield at least one run.")
    sweep_folder(runs)
    names = [run.name for run in runs]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(
            f"name={', '.join(duplicates)} is the name of two runs. Give each run a unique name."
        )


def _parent(run: schema.Run, by_name: dict[str, schema.Run]) -> schema.Run:
    """Return the parent run from the sweep, or from disk if the sweep does not contain it."""
    return by_name.get(run.start.run) or warm_start.parent_run(run)


def _ancestors(run: schema.Run, by_name: dict[str, schema.Run]) -> list[schema.Run]:
    """Return the run and its ancestors in the sweep, oldest first.

    Raises ValueError if a run is its own ancestor.
    """
    ancestors = [run]
    while ancestors[-1].start.run in by_name:
        parent = by_name[ancestors[-1].start.run]
        names = [descendant.name for descendant in ancestors]
        if parent.name in names:
            circle = " <- ".join((*names[names.index(parent.name) :], parent.name))
            raise ValueError(
                f"start.run={parent.start.run!r} makes a circle: {circle}. Start one of these runs"
                " without a parent run."
            )
        ancestors.append(parent)
    return ancestors[::-1]


def _select_next(
    runs: list[schema.Run], retries: int, since: float, max_vmapped: int, failures: _Failures
) -> list[str]:
    """Return the names of the runs to train next, in one program.

    Write the prediction before the first related run of the predicted run starts.
    """
    ready_runs = (run for run in ready(runs, retries, since) if run.name not in failures.locked)
    group = vmapped_runs.select_compatible(ready_runs, max_vmapped, failures.unvmapped)
    related = prediction.related_runs(runs)
    if any(run.name in related for run in group):
        prediction.write_prediction(runs, sweep_folder(runs))
    return [run.name for run in group]


def _train_group(
    group: list[schema.Run],
    on_metrics: Callable[[schema.Run, dict], None],
    failures: _Failures,
) -> dict[str, str]:
    """Train runs in one program. Return, for each name, the reason of an early end, or ""."""
    try:
        if len(group) == 1:
            loop.train(group[0], functools.partial(on_metrics, group[0]))
        else:
            vmapped_runs.train_vmapped(group, on_metrics)
        return {run.name: _recorded_reason(run) for run in group}
    except OSError:  # a disk that is full or read-only affects all runs
        raise
    except loop.Diverged as error:
        return {group[0].name: str(error)}
    except Exception as error:
        reason = _record_failure(group, error, failures)
        return dict.fromkeys([run.name for run in group], reason)


def _record_failure(group: list[schema.Run], error: Exception, failures: _Failures) -> str:
    """Record an error of `_train_group`. Return it as one line."""
    message = f"{type(error).__name__}: {error}"
    if len(group) > 1:
        # The error does not name its run. Each run is trained in its own program to find it.
        failures.unvmapped |= {run.name for run in group}
        return f"will be trained in its own program after {message}"
    if isinstance(error, lock.RunLocked):
        failures.locked.add(group[0].name)
        return str(error)
    folder = records.run_dir(group[0])
    if distributed.is_primary():
        filesystem.write_file(folder / "error.txt", traceback.format_exc())
    failed_at = [*records.read_facts(folder).get("failed_at", []), time.time()]
    writer = records.Writer(folder, distributed.is_primary())
    writer.write_facts(status="failed", reason=message, failed_at=failed_at)
    return message


def _recorded_reason(run: schema.Run) -> str:
    """Return the recorded reason of an early end or of a useless result, or ""."""
    return records.read_facts(records.run_dir(run)).get("reason", "")


def _has_failed(facts: dict, retries: int, since: float) -> bool:
    """Return True if a run has diverged or has used all its attempts."""
    n_failed = sum(failure_time >= since for failure_time in facts.get("failed_at", []))
    return n_failed > retries or facts.get("status") == "diverged"
