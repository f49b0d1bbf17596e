"""Train the pending runs of a sweep.

    launcher.validate_sweep(runs)
    launcher.run_pending(runs, retries=2)

The state of a sweep is its folder: `run_pending` continues where an earlier call ended.

`validate_configs`, `pending` and `write_sweep_files` use no device and read no training text. They
do not start the JAX runtime, so a login node can call them.
"""

import collections
import dataclasses
import datetime
import functools
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from lm.config import axis_rules, run_files, schema, validation
from lm.data import dataset, tokenizers
from lm.data.prepared import recorded_text
from lm.data.sources import documents
from lm.data.tokenization import run_tokenizer
from lm.evaluation import tasks
from lm.parallel import distributed, mesh
from lm.runs import filesystem, json_files, lock, records
from lm.sweeps import attempts, prediction, run_order
from lm.training import loop, trackers, vmapped_runs, warm_start
from lm.training.checkpointing import checkpoint_retention

WAIT_SECONDS = 3.0  # between two checks of a process that waits for other processes


def validate_sweep(runs: list[schema.Run], report: Callable | None = None) -> None:
    """Validate all runs of a sweep on the devices of this process, and prepare their training text.

    report: progress callback of the preparation, see corpus.prepare_corpus. Raises ValueError for
    the first problem that would stop a run.
    """
    validate_configs(runs)
    validate_meshes(runs)
    validate_memory(runs)
    for run in runs:
        text = dataset.open_dataset(run_tokenizer.training_data(run), run.seed, report)
        recorded_text.check_same_text(run, text)
        loop.validate_text(run, text)


def validate_configs(runs: list[schema.Run], n_devices: int = 0) -> None:
    """Validate all of a sweep that needs neither a device nor the training text.

    n_devices: number of devices of each worker; 0 if it is unknown, which skips the check of the
    meshes. Raises ValueError for the first problem that would stop a run.
    """
    validate_names(runs)
    validate_inputs(runs)
    by_name = {run.name: run for run in runs}
    for run in run_order.topological_order(runs):
        records.check_same_config(run)
        if run.start.run:
            warm_start.validate_start(run, _parent(run, by_name))
        if n_devices:
            sizes = axis_rules.resolve_mesh_shape(vars(run.mesh), n_devices)
            axis_rules.validate_mesh_shape(schema.flatten(run), sizes)
    prediction.check_prediction(runs)
    for task_names in {run.eval.tasks for run in runs}:
        tasks.load_tasks(task_names)


def validate_names(runs: list[schema.Run]) -> None:
    """Check that a sweep has runs with unique names SWEEP/RUN, of which it predicts at most one.

    Raises ValueError otherwise.
    """
    if not runs:
        raise ValueError("the sweep has no runs. get_sweep must yield at least one run.")
    sweep_folder(runs)
    counts = collections.Counter(run.name for run in runs)
    duplicates = sorted(name for name, n_runs in counts.items() if n_runs > 1)
    if duplicates:
        raise ValueError(
            f"name={', '.join(duplicates)} is the name of two runs. Give each run a unique name."
        )
    run_files.check_distinct_names(list(counts))
    if sum(run.is_prediction_target for run in runs) > 1:
        raise ValueError(
            "is_prediction_target=True in more than one run. A sweep predicts at most one run."
        )


def validate_inputs(runs: list[schema.Run]) -> None:
    """Check the fields of each run, and that its sources and its tokenizer exist. Read no text.

    Raises ValueError for the first problem. No request is sent to the Hugging Face hub.
    """
    for run in runs:
        validation.validate_run(run_tokenizer.resolve_tokenizer(run))
        trackers.check_trackers(run)
    for source in dict.fromkeys(source for run in runs for source in run.data.sources):
        documents.source_fingerprint(source)
        if not source.startswith("hf:"):
            documents.list_shards(source)
    for tokenizer in dict.fromkeys(run.data.tokenizer for run in runs):
        if not tokenizer.startswith("bpe:"):
            tokenizers.open_tokenizer(tokenizer)


def validate_meshes(runs: list[schema.Run]) -> None:
    """Raise ValueError if a run cannot be divided over the devices of this process."""
    for run in runs:
        mesh.check_mesh_devices(run, mesh.make_mesh(run.mesh))


def validate_memory(runs: list[schema.Run]) -> None:
    """Raise ValueError if a run that is not finished exceeds the memory of the devices."""
    for run in pending(runs):
        loop.validate_memory(run)


def keep_original_configs(runs: list[schema.Run]) -> list[schema.Run]:
    """Return the runs, with the stored configs of started runs: the sweep file may have changed."""
    folders = [records.run_dir(run) for run in runs]
    return [
        records.read_config(folder) if records.read_facts(folder) else run
        for run, folder in zip(runs, folders, strict=True)
    ]


def max_epochs_by_source(runs: list[schema.Run]) -> dict[str, float]:
    """Return the largest number of epochs over each data source in any run."""
    max_epochs: dict[str, float] = {}
    for run in runs:
        text = dataset.open_dataset(run_tokenizer.training_data(run), run.seed)
        for source, n_epochs in text.epochs(run.steps).items():
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

    Also protect from deletion the checkpoints from which runs of the sweep will start. Only one
    process may call this function. sweep: value of the flag --sweep. costs: rows of
    cost.estimate_cost.
    """
    folder = sweep_folder(runs)
    request = {
        "sweep": sweep,
        "runs": [run.name for run in runs],
        "command": f"uv run python -m experiments.sweep {shlex.quote(f'--sweep={sweep}')}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    json_files.write_record(folder / "sweep.json", request)
    json_files.write_record(folder / "plan.json", {"runs": costs})
    by_name = {run.name: run for run in runs}
    for run in runs:
        if run.start.run:
            parent = _parent(run, by_name)
            checkpoint_retention.pin_checkpoint(
                parent, warm_start.start_step(run, parent), run.name
            )


def pending(runs: list[schema.Run]) -> list[schema.Run]:
    """Return the runs that are not finished, in training order."""
    return [run for run in run_order.topological_order(runs) if not records.is_finished(run)]


@dataclasses.dataclass
class _Memory:
    """Names of runs that one call of `run_pending` remembers."""

    finished: set[str] = dataclasses.field(default_factory=set)  # their records are not read again
    locked: set[str] = dataclasses.field(default_factory=set)  # another process got the lock first
    unvmapped: set[str] = dataclasses.field(default_factory=set)  # their common program failed
    unrecorded: set[str] = dataclasses.field(default_factory=set)  # their failure is in no file


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """Options of the processes that train one submission of a sweep.

    submission: identifier that all of these processes share. Only failures of the same submission
    count, so no clocks of two machines are compared. retries: additional attempts after a failure.
    max_vmapped: maximum number of runs in one program, see lm/training/vmapped_runs.py. wait: the
    reason to wait while no run is ready. "never"; "children": other processes train parents of
    more runs than these processes can train; "always": another process still trains a run.
    """

    submission: str = dataclasses.field(default_factory=lambda: secrets.token_hex(4))
    retries: int = 0
    max_vmapped: int = 1
    wait: Literal["never", "children", "always"] = "never"


def run_pending(
    runs: list[schema.Run],
    on_start: Callable[[schema.Run], None] = lambda run: None,
    on_metrics: vmapped_runs.Report = vmapped_runs.ignore_run_row,
    on_end: Callable[[schema.Run, str], None] = lambda run, reason: None,
    on_evaluation: vmapped_runs.Report = vmapped_runs.ignore_run_row,
    options: WorkerOptions | None = None,
) -> None:
    """Train runs in this process, one after another, until no run is ready.

    Any number of processes may call this function at the same time. The process that holds the lock
    of a run trains it. A run that diverges or fails is recorded as such, and the sweep continues. A
    signal, a failed disk or the end of the output stops the sweep. The same call continues it. With
    options.wait a process waits for runs that can become ready, and takes over runs whose process
    has died.

    on_start: called with each run before its training. on_metrics: called with the run and each row
    of metrics.jsonl. on_end: called with the run and the reason of an early end, or "".
    on_evaluation: called with the run and each row of evals.jsonl.
    """
    options = options or WorkerOptions()
    memory = _Memory()
    by_name = {run.name: run for run in runs}
    while True:
        names, should_wait = distributed.run_on_primary(lambda: _select_next(runs, options, memory))
        if names:
            group = [by_name[name] for name in names]
            for run in group:
                on_start(run)
            reasons = _train_group(group, (on_metrics, on_evaluation), options, memory)
            for run in group:
                on_end(run, reasons[run.name])
        elif should_wait:
            time.sleep(WAIT_SECONDS)
            memory.locked.clear()  # the process that trained them may have died
        else:
            return


def ready(runs: list[schema.Run], options: WorkerOptions) -> Iterator[schema.Run]:
    """Yield the runs that can start now, in training order.

    A run waits while another process trains it and until its parent run is finished. The predicted
    run and its related runs wait until no other run can start or is in training. A run that has
    diverged or failed too often is never ready, nor are its descendants.
    """
    return _ready_runs(runs, options, _Memory())


def _ready_runs(
    runs: list[schema.Run], options: WorkerOptions, memory: _Memory
) -> Iterator[schema.Run]:
    """Yield the runs of `ready` that this process can select."""
    states = _run_states(runs, options, memory)
    return (run for run, state in states if state == "ready" and run.name not in memory.locked)


def _run_states(
    runs: list[schema.Run], options: WorkerOptions, memory: _Memory
) -> Iterator[tuple[schema.Run, str]]:
    """Yield the unfinished runs that this submission can still train, in training order.

    The state of each is ready, training (in another process), child (of an unfinished parent) or
    related (to the predicted run, while other runs are unfinished).
    """
    names = {run.name for run in runs}
    related = prediction.related_runs(runs)
    unreachable = set(memory.unrecorded)
    has_unrelated_pending = False
    for run in run_order.topological_order(runs):
        if run.name in memory.finished:
            continue
        folder = records.run_dir(run)
        facts = records.read_facts(folder)
        is_training = facts.get("status") == "running" and lock.is_alive(folder)
        has_failed = attempts.has_failed(facts, options.submission, options.retries)
        has_failed = run.name in unreachable or (has_failed and not is_training)
        if has_failed or run.start.run in unreachable:
            unreachable.add(run.name)
            continue
        if records.is_finished(run):
            memory.finished.add(run.name)
            continue
        is_related = run.name in related
        has_unrelated_pending = has_unrelated_pending or not is_related
        if is_training or lock.is_alive(folder):
            yield run, "training"
        elif is_related and has_unrelated_pending:
            yield run, "related"
        elif run.start.run in names and run.start.run not in memory.finished:
            yield run, "child"
        else:
            yield run, "ready"


def _parent(run: schema.Run, by_name: dict[str, schema.Run]) -> schema.Run:
    """Return the parent run from the sweep, or from disk if the sweep does not contain it."""
    return by_name.get(run.start.run) or warm_start.parent_run(run)


def _select_next(
    runs: list[schema.Run], options: WorkerOptions, memory: _Memory
) -> tuple[list[str], bool]:
    """Return the names of the runs to train next in one program, and True to wait without one.

    Write the prediction before the first related run of the predicted run starts.
    """
    ready_runs = _ready_runs(runs, options, memory)
    group = vmapped_runs.select_compatible(ready_runs, options.max_vmapped, memory.unvmapped)
    prediction.update_records(runs, {run.name for run in group}, sweep_folder(runs))
    return [run.name for run in group], not group and _should_wait(runs, options, memory)


def _should_wait(runs: list[schema.Run], options: WorkerOptions, memory: _Memory) -> bool:
    """Return True if a process without a ready run should wait: see WorkerOptions.wait."""
    if options.wait == "never":
        return False
    states = [state for _, state in _run_states(runs, options, memory)]
    n_training = states.count("training")
    if options.wait == "always":
        return n_training > 0 or "ready" in states
    # A process that ends its run can train one of the children, so only further ones need others.
    return "ready" in states or states.count("child") > n_training > 0


def _train_group(
    group: list[schema.Run],
    reports: tuple[vmapped_runs.Report, vmapped_runs.Report],
    options: WorkerOptions,
    memory: _Memory,
) -> dict[str, str]:
    """Train runs in one program. Return, for each name, the reason of an early end, or ""."""
    try:
        for run in group if distributed.is_primary() else []:
            attempts.record_crash(run, options.submission)
        if len(group) == 1:
            loop.train(group[0], *(functools.partial(report, group[0]) for report in reports))
        else:
            vmapped_runs.train_vmapped(group, *reports)
        return {run.name: _recorded_reason(run) for run in group}
    except loop.Diverged as error:
        return {group[0].name: str(error)}
    except BrokenPipeError:  # the reader of the output has ended
        raise
    except Exception as error:
        if filesystem.is_disk_error(error):
            raise
        reason = _record_failure(group, error, options, memory)
        return dict.fromkeys([run.name for run in group], reason)


def _record_failure(
    group: list[schema.Run], error: Exception, options: WorkerOptions, memory: _Memory
) -> str:
    """Record an error of `_train_group`. Return it as one line."""
    message = f"{type(error).__name__}: {error}"
    if len(group) > 1:
        # The error does not name its run. Each run is trained in its own program to find it.
        memory.unvmapped |= {run.name for run in group}
        return f"will be trained in its own program after {message}"
    if isinstance(error, lock.RunLocked):
        memory.locked.add(group[0].name)
        return str(error)
    try:
        if distributed.is_primary():
            attempts.record_failure(group[0], message, options.submission)
    except OSError as record_error:
        if filesystem.is_disk_error(record_error):
            raise
        memory.unrecorded.add(group[0].name)
    return message


def _recorded_reason(run: schema.Run) -> str:
    """Return the recorded reason of an early end or of a useless result, or ""."""
    return records.read_facts(records.run_dir(run)).get("reason", "")
