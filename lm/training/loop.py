"""The training loop. Every kind of training is `train(run)`; starting and resuming are one call.

A learning rate takes this path from config to update:

    train -> step.build_train_functions -> optimizer.make_optimizer
          -> optimizer.learning_rate_schedule

A call of the compiled function computes several steps. The number of steps is an argument of the
function, so that it does not change the numeric results. On CPU each call allocates the memory of
all intermediate arrays again, page by page; the steps of one call share this memory.
"""

import contextlib
import functools
import time
import typing
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import flops, schema, validation
from lm.config.schedules import batch_size_schedule
from lm.data import corpus, dataset, prefetch
from lm.data.prepared import recorded_text
from lm.data.tokenization import run_tokenizer
from lm.evaluation import task_eval, tasks
from lm.model import inference_memory, memory_estimate
from lm.parallel import device_memory, distributed, mesh
from lm.runs import records
from lm.training import metric_log, preemption, session, step, trackers, warm_start
from lm.training.programs import compilation

# Limits of one call, in steps and in FLOPs: a signal waits for the end of the call.
MAX_STEPS_PER_CALL, MAX_FLOPS_PER_CALL = 8, 1.5e12


class Diverged(Exception):
    """The loss or the gradient is not finite."""


def train(
    run: schema.Run,
    report: metric_log.Report = metric_log.ignore_row,
    report_evaluation: metric_log.Report = metric_log.ignore_row,
) -> None:
    """Train a run to its end, from its newest checkpoint if there is one.

    report: called with each row of metrics.jsonl. report_evaluation: called with each row of
    evals.jsonl. Raises ValueError before any computation if the run cannot work. Raises Diverged if
    the loss or the gradient is not finite. Raises preemption.Interrupted after SIGINT, SIGTERM or
    SIGUSR1.
    """
    text = validate_session(run)
    device_mesh = mesh.make_run_mesh(run)
    status = "rewound"
    while status == "rewound":
        reports = report, report_evaluation
        with session.TrainingSession(run, text, device_mesh, *reports) as active_session:
            run_session(active_session, step.build_train_functions(run, device_mesh))
        raise_if_stopped(active_session)
        status = active_session.status
    if status == "diverged":
        raise Diverged(active_session.reason)


def validate_session(
    run: schema.Run, report: corpus.ProgressCallback | None = None
) -> dataset.TokenDataset:
    """Prepare and return the text of a run. Raises ValueError if the run cannot work.

    report: progress callback of the preparation, see corpus.prepare_corpus.
    """
    validation.validate_run(run_tokenizer.resolve_tokenizer(run))
    trackers.check_trackers(run)
    distributed.list_devices()
    distributed.run_on_primary(lambda: records.check_same_config(run))
    if run.start.run:
        warm_start.validate_start(run, warm_start.parent_run(run))
    validate_memory(run)
    # The primary prepares the text before the other processes open it.
    data = run_tokenizer.training_data(run)
    distributed.run_on_primary(lambda: dataset.open_dataset(data, run.seed, report) and None)
    text = dataset.open_dataset(data, run.seed)
    distributed.run_on_primary(lambda: recorded_text.check_same_text(run, text))
    if run.start.run:
        recorded_text.check_text_of_parent(run, warm_start.parent_run(run), text)
    distributed.check_equal_on_all("config", metric_log.config_hash(run))
    distributed.check_equal_on_all("prepared text", text.hash)
    validate_text(run, text)
    return text


def validate_memory(run: schema.Run) -> None:
    """Check that a run can be divided over the devices of this process and fits their memory.

    Raises ValueError, see memory_estimate.check_memory. Compile nothing.
    """
    device_mesh = mesh.make_run_mesh(run)
    platform = mesh.device_platform(device_mesh)
    n_bytes = device_memory.available_bytes(device_mesh)
    arguments = run, device_mesh.size, platform, n_bytes
    distributed.run_on_primary(lambda: memory_estimate.check_memory(*arguments))
    distributed.run_on_primary(lambda: inference_memory.check_evaluation_memory(*arguments))


def validate_text(run: schema.Run, text: dataset.TokenDataset) -> None:
    """Check the steps, the vocabulary and the tasks of a run against its prepared text.

    Raises ValueError if the run would fail, during training or at its last evaluation.
    """
    dataset.validate_steps(text, run.steps)
    if text.tokenizer.vocab_size > run.model.vocab_size:
        raise ValueError(
            f"model.vocab_size={run.model.vocab_size} must be at least the tokenizer's"
            f" {text.tokenizer.vocab_size}: set 0 for the same size"
        )
    task_eval.validate_task_lengths(run, text.tokenizer, tasks.load_tasks(run.eval.tasks))


def run_session(active_session: typing.Any, functions: step.TrainFunctions) -> None:
    """Train from the newest checkpoint until the session ends.

    active_session: session.TrainingSession, or an object with the same methods.
    """
    began = time.perf_counter()
    run, device_mesh = active_session.run, functions.mesh
    n_steps = steps_per_call(run, device_mesh, functions.n_runs)
    facts = {"params.learned": functions.n_learned, "devices.pack": functions.n_runs}
    facts["devices.steps_per_call"] = n_steps
    peak = mesh.peak_flops_per_second(device_mesh, run.model.dtype)
    with distributed.fail_together(active_session.folders, preemption.Interrupted, ValueError):
        with active_session.long_call():
            with jax.set_mesh(device_mesh):
                active_session.restore(functions.abstract_saved, facts, peak)
                if active_session.status != "running":
                    return
                stages = _stage_functions(active_session, functions)
                lowered = {size: lower_steps(stage, n_steps) for size, stage in stages.items()}
                is_fresh = not active_session.first
                programs = compilation.compile_all(functions, lowered, is_fresh)
                compiled, compile_score, init = programs
                call_steps = make_steps_call(functions, _select_program(compiled), n_steps)
                state = active_session.initial_state(init)
            active_session.begin(compile_score, state, time.perf_counter() - began)
        batches = prefetch.prefetch_batches(
            active_session.load_batch, active_session.first, run.steps, depth=2 * n_steps
        )
        with contextlib.closing(batches):
            _run_steps(active_session, call_steps, compile_score, state, batches, n_steps)


def _stage_functions(
    active_session: typing.Any, functions: step.TrainFunctions
) -> dict[int, step.TrainFunctions]:
    """Return the functions of the remaining batch sizes, {batch size: functions}.

    functions: those of the last batch size. Only data.batch_size_warmup gives several sizes.
    """
    run = active_session.run
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
    return {
        stage.batch_size: step.build_train_functions(run, functions.mesh, stage)
        for stage in schedule.remaining_stages(active_session.first)[:-1]
    } | {run.data.batch_size: functions}


def _select_program(compiled: dict[int, Callable]) -> Callable:
    """Return a function that calls the compiled function of the batch size of its batches."""

    def call(state: dict, batches: list, *arguments) -> tuple[dict, list]:
        n_rows = len(jax.tree.leaves(batches[0])[0])
        return compiled[n_rows](state, batches, *arguments)

    return call


def _run_steps(
    active_session: typing.Any,
    call_steps: Callable,
    compile_score: Callable,
    state: dict,
    batches: Iterator[dict],
    max_steps: int,
) -> None:
    """Compute steps until the session ends. max_steps: largest number of steps of one call."""
    signal_of_all = distributed.signal_consensus(active_session.mesh)
    is_late = reads_metrics_late(active_session.mesh)
    metrics, is_row_pending, waited, began = [], False, 0.0, time.perf_counter()
    while active_session.status == "running":
        # --- Compute steps until something is due ---
        n_steps = min(max_steps, active_session.steps_until_due)
        if active_session.done == active_session.first:
            n_steps = 1  # the loss of the first step after a restart is verified
        wait_began = time.perf_counter()
        next_batches = [next(batches) for _ in range(n_steps)]
        waited += time.perf_counter() - wait_began
        state, new_metrics = call_steps(state, next_batches)
        if is_row_pending:  # the devices compute the next step while the last row is written
            values, is_row_pending = jax.device_get(metrics), False
            active_session.record(values, time.perf_counter() - began, waited)
            metrics, waited, began = [], 0.0, time.perf_counter()
            active_session.log()
            if active_session.status != "running":
                break
        metrics += new_metrics
        if jax.default_backend() == "cpu":
            # Queued collectives of more devices than cores can wait for each other forever.
            jax.block_until_ready(new_metrics)
        active_session.advance(new_metrics)
        # Read the signal once: a later signal is handled after the next call.
        stop = signal_of_all(active_session.stop_signal)
        if not (stop or active_session.is_due):
            continue
        if is_late and not (stop or active_session.is_state_due):
            is_row_pending = True
            continue

        # --- Read the metrics back ---
        values = jax.device_get(metrics)
        active_session.record(values, time.perf_counter() - began, waited)
        metrics, waited = [], 0.0

        # --- Log, save, evaluate, finish ---
        with active_session.long_call():
            active_session.log()
            active_session.save(state, stop)
            active_session.evaluate(compile_score, state)
            active_session.conclude(state, stop)
        began = time.perf_counter()


def reads_metrics_late(device_mesh: jax.sharding.Mesh) -> bool:
    """Return True if a row of metrics is read after the next step was dispatched.

    An accelerator then computes without a pause. On CPU the host and its devices share the cores.
    """
    return mesh.device_platform(device_mesh) != "cpu"


def raise_if_stopped(active_session: typing.Any) -> None:
    """Raise Interrupted if a signal came while the session ended.

    All processes call this function after all files are written.
    """
    if stop := distributed.first_error(active_session.stop_signal):
        message = f"stopped by {stop} at the end of {active_session.name}"
        raise preemption.Interrupted(message, stop)


# --- Calls of several steps ---


def steps_per_call(run: schema.Run, device_mesh: jax.sharding.Mesh, n_runs: int = 1) -> int:
    """Return the largest number of steps of one call.

    The number is run.steps_per_call if it is set. Otherwise it is 1 on accelerators, which retain
    memory between calls and receive the next step during the current step. On CPU it follows from
    the FLOPs of a step. n_runs: number of runs that a step trains.
    """
    if run.steps_per_call:
        return run.steps_per_call
    if mesh.device_platform(device_mesh) != "cpu":
        return 1
    n_tokens = n_runs * run.data.batch_size * run.data.seq_len
    n_flops = n_tokens * flops.flops_per_token(run.model, run.data.seq_len)["full"]
    return int(min(MAX_STEPS_PER_CALL, max(1, MAX_FLOPS_PER_CALL // n_flops)))


def lower_steps(functions: step.TrainFunctions, max_steps: int) -> jax.stages.Lowered:
    """Return the lowered function of up to `max_steps` steps.

    Its arguments are the state, a list of `max_steps` batches, the number of steps, int32 [], and
    the inputs of the step. It returns the state and the metrics, which have a leading axis over the
    steps if max_steps > 1. A list would need a kernel per step and metric.
    """
    key = functions.n_runs, max_steps
    if key not in functions.lowered:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, functions.abstract)
        replicated = mesh.named_sharding(functions.mesh)
        steps = jax.jit(
            functools.partial(_compute_steps, functions.plain_step, shardings),
            in_shardings=(shardings, None, replicated, replicated),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
            compiler_options=functions.options,
        )
        n_steps = jax.ShapeDtypeStruct((), jnp.int32)
        batches = [functions.batch] * max_steps
        lowered = steps.lower(functions.abstract, batches, n_steps, functions.inputs)
        functions.lowered[key] = lowered
    return functions.lowered[key]


def make_steps_call(
    functions: step.TrainFunctions, compiled: Callable, max_steps: int
) -> Callable[[dict, list], tuple[dict, list]]:
    """Return call(state, batches) -> (state, metrics), which computes one step per batch.

    compiled: the compiled function of lower_steps. The number of batches is 1 to `max_steps`.
    metrics: a list with an element per step.
    """
    inputs = mesh.replicate(functions.mesh, functions.inputs)
    is_cpu = mesh.device_platform(functions.mesh) == "cpu"

    def call(state: dict, batches: list) -> tuple[dict, list]:
        n_steps = len(batches)
        padded = batches + batches[-1:] * (max_steps - n_steps)
        state, metrics = compiled(state, padded, np.int32(n_steps), inputs)
        if max_steps == 1:
            return state, [metrics]
        metrics = jax.device_get(metrics) if is_cpu else metrics
        return state, [jax.tree.map(lambda x, i=i: x[i], metrics) for i in range(n_steps)]

    return call


def _compute_steps(
    compute_step: Callable, shardings: dict, state: dict, batches: list, n_steps: jax.Array, inputs
) -> tuple[dict, typing.Any]:
    """Compute the first n_steps steps; the metrics of the other steps are 0. See lower_steps."""
    if len(batches) == 1:
        return compute_step(state, batches[0], inputs)

    compute_step = jax.jit(compute_step, inline=True)  # traced once for both uses

    def body(i, carry):
        state, metrics = carry
        batch = jax.tree.map(lambda rows: rows[i], stacked)
        state, new_metrics = compute_step(state, batch, inputs)
        state = jax.lax.with_sharding_constraint(state, shardings)
        return state, jax.tree.map(lambda array, x: array.at[i].set(x), metrics, new_metrics)

    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
    shapes = jax.eval_shape(compute_step, state, batches[0], inputs)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(len(batches), x.dtype), shapes)
    return jax.lax.fori_loop(0, n_steps, body, (state, zeros))
