"""The training loop of a single run."""

import copy
import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from lm.config import schema
from lm.data import dataset, tokenizers
from lm.evaluation import heldout, task_eval, tasks
from lm.parallel import mesh
from lm.runs import json_files, records, task_results
from lm.runs.items import task_items
from lm.sweeps import launcher
from lm.training import (
    checkpoints,
    loaded_model,
    loop,
    metric_log,
    preemption,
    session,
    step,
    warm_start,
)

# Update these numbers when the model, its init or the loss are changed on purpose.
GOLDEN = {"loss": 6.240035, "grad_norm": 4.279511}


def final_params(run: schema.Run) -> list[np.ndarray]:
    _, state = loaded_model.restore_model(run)
    assert int(state["step"]) == run.steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state["params"])]


def losses(run: schema.Run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in records.load_metrics(records.run_dir(run))}


def assert_same_params(run: schema.Run, other: schema.Run) -> None:
    for a, b in zip(final_params(run), final_params(other), strict=True):
        np.testing.assert_array_equal(a, b)


def signal_at(step_number: int):
    """Return a report function that raises SIGTERM at a step of the first attempt."""

    def report(row):
        if row["step"] == step_number and row["attempt"] == 1:
            signal.raise_signal(signal.SIGTERM)

    return report


def test_run_writes_facts_metrics_and_evaluations(tiny):
    reported = []
    loop.train(tiny, reported.append)
    folder = records.run_dir(tiny)
    facts, rows = records.read_facts(folder), records.load_metrics(folder)
    assert facts["status"] == "done" and facts["attempts"] == 1 and facts["devices"] == 4
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12] and reported == rows
    assert rows[-1]["tokens"] == facts["tokens"] == 12 * 8 * 32
    assert rows[-1]["flops"] == pytest.approx(facts["flops"])
    assert rows[-1]["loss"] < rows[0]["loss"] < 7
    assert rows[-1]["seconds"] > rows[0]["seconds"] > 0
    (row,) = records.load_runs(folder)
    assert row["eval.step"] == 12 and 0 < row["eval.loss_se"] < row["eval.loss"] < 6
    assert list((folder / "tensorboard").glob("events*"))


def test_training_learns_repeated_text(tiny):
    tiny.steps, tiny.optim.lr, tiny.log_interval, tiny.checkpoint_interval = 150, 0.02, 50, 150
    loop.train(tiny)
    (row,) = records.load_runs(records.run_dir(tiny))
    assert row["eval.loss"] < 0.8 and row["eval.completion"] > 0.5


def test_same_run_twice_has_the_same_bits(tiny, finished_run):
    loop.train(tiny)
    assert losses(tiny) == losses(finished_run)
    assert_same_params(tiny, finished_run)


def test_run_stopped_by_a_signal_resumes_to_the_same_bits(tiny):
    """The checkpoint is between two rows of metrics."""
    tiny.log_interval, tiny.steps_per_call = 3, 2
    uninterrupted = dataclasses.replace(tiny, name="uninterrupted")
    loop.train(uninterrupted)
    with pytest.raises(preemption.Interrupted, match="stopped by SIGTERM at step 8 of 12"):
        loop.train(tiny, signal_at(6))
    (row,) = records.load_runs(records.run_dir(tiny))
    assert row["status"] == "lost" and not records.is_finished(tiny)
    loop.train(tiny, signal_at(6))
    assert records.read_facts(records.run_dir(tiny))["resumed_from"] == 8
    assert losses(tiny) == losses(uninterrupted)
    assert_same_params(tiny, uninterrupted)


def test_signal_after_the_last_step_finishes_the_run(tiny):
    """The signal comes before the last evaluation and the last checkpoint."""
    with pytest.raises(preemption.Interrupted, match="stopped by SIGTERM at the end of tiny"):
        loop.train(tiny, signal_at(tiny.steps))
    assert records.read_facts(records.run_dir(tiny))["status"] == "done"
    assert records.load_evals(records.run_dir(tiny))[-1]["step"] == tiny.steps


@pytest.mark.slow
def test_run_resumes_with_other_chunks_and_remat(tiny, finished_run):
    with pytest.raises(preemption.Interrupted):
        loop.train(tiny, signal_at(6))
    tiny.optim = dataclasses.replace(tiny.optim, grad_accumulation_steps=2)
    tiny.model = dataclasses.replace(tiny.model, loss_chunks=4, remat="full")
    loop.train(tiny)
    resumed, expected = losses(tiny), losses(finished_run)
    assert list(resumed) == list(expected)
    np.testing.assert_allclose([*resumed.values()], [*expected.values()], rtol=1e-4)


def test_initial_state_is_sharded_over_the_mesh(tiny):
    device_mesh = mesh.make_mesh(schema.Mesh(data=1, fsdp=2, tensor=2))
    functions = step.build_train_functions(tiny, device_mesh)
    with jax.set_mesh(device_mesh):
        state = functions.init(0)
    gate = state["params"]["blocks"]["mlp"]["gate"]
    assert gate.addressable_shards[0].data.shape == (2, 8, 24) and gate.shape == (2, 16, 48)
    moments = [m for m in jax.tree.leaves(state["opt"]) if m.shape == gate.shape]
    assert moments and all(m.sharding == gate.sharding for m in moments)


def test_checkpoint_is_restored_on_another_mesh(finished_run):
    sharded = copy.deepcopy(finished_run)
    sharded.mesh = schema.Mesh(data=1, fsdp=2, tensor=2)
    assert_same_params(finished_run, sharded)


def test_run_with_a_non_finite_loss_has_diverged(tiny):
    tiny.optim.lr = 1e38
    with pytest.raises(loop.Diverged, match="tiny diverged: loss .* by step"):
        loop.train(tiny)
    facts = records.read_facts(records.run_dir(tiny))
    assert facts["status"] == "diverged" and "by step" in facts["reason"]
    assert records.is_finished(tiny) and not records.load_evals(records.run_dir(tiny))


def test_missing_evaluation_is_repeated_after_a_restart(tiny):
    """The machine can fail between a checkpoint and its evaluation."""
    tiny.eval.interval, tiny.log_interval = 3, 1
    with pytest.raises(preemption.Interrupted):
        loop.train(tiny, signal_at(2))
    (records.run_dir(tiny) / "evals.jsonl").unlink()
    loop.train(tiny, signal_at(2))
    assert [row["step"] for row in records.load_evals(records.run_dir(tiny))] == [3, 6, 9, 12]


def test_changed_config_is_rejected_before_training(finished_copy):
    finished_copy.optim.lr = 1.0
    with pytest.raises(ValueError, match="optim.lr=0.003, now 1.0: choose a new name"):
        loop.train(finished_copy)


def test_vocabulary_below_the_tokenizer_size_is_rejected(tiny):
    tiny.model.vocab_size = 128
    with pytest.raises(ValueError, match="model.vocab_size=128 must be at least 256, the size of"):
        loop.train(tiny)
    assert not records.run_dir(tiny).exists()


def test_loss_counts_only_targets_with_a_weight(tiny):
    """With continuation packing, targets that repeat the previous row have weight 0."""
    tiny.data.packing = "continuation"
    functions = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 256, (8, 33)).astype(np.int32)
    weights = (np.arange(32) >= rng.integers(0, 32, (8, 1))).astype(np.float32)
    with jax.set_mesh(functions.mesh):
        state = functions.init(0)
        nats, _ = functions.score(
            state["params"], mesh.put_batch(functions.mesh, {"tokens": tokens})
        )
        nats = np.asarray(nats)
        batch = mesh.put_batch(functions.mesh, {"tokens": tokens, "weights": weights})
        _, metrics = functions.step(state, batch, functions.inputs)
    expected = float(np.average(nats, weights=weights))
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"attend_across_documents": False}, {"packing": "continuation"}, {"packing": "documents"}],
)
def test_run_trains_with_every_packing(tiny, changes):
    tiny.data = dataclasses.replace(tiny.data, **changes)
    loop.train(tiny)
    assert records.load_runs(records.run_dir(tiny))[0]["status"] == "done"


def test_run_directory_contains_the_tokenizer(tiny):
    tiny.data.tokenizer, tiny.model.vocab_size = "bpe:300", 300
    loop.train(tiny)
    text = dataset.open_dataset(tiny.data, tiny.seed)
    saved = tokenizers.load_tokenizer(records.run_dir(tiny))
    assert saved.hash == text.tokenizer.hash and saved.decode(saved.encode("a fox")) == "a fox"


def test_more_epochs_than_allowed_are_rejected(tiny):
    tiny.data.max_epochs = 0.01
    with pytest.raises(ValueError, match="data.max_epochs=0.01: steps=12 give"):
        loop.train(tiny)
    assert not records.run_dir(tiny).exists()


def test_step_donates_its_state(tiny):
    functions = step.build_train_functions(tiny, mesh.make_mesh(schema.Mesh()))
    with jax.set_mesh(functions.mesh):
        state = functions.init(0)
        tokens = mesh.put_batch(functions.mesh, {"tokens": np.ones((8, 33), np.int32)})
        functions.step(state, tokens, functions.inputs)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state["params"]))


def test_first_step_has_the_golden_loss(tiny):
    functions = step.build_train_functions(tiny, mesh.make_mesh(schema.Mesh()))
    tokens = np.tile(np.arange(33, dtype=np.int32) % 7 + 97, (8, 1))
    with jax.set_mesh(functions.mesh):
        batch = mesh.put_batch(functions.mesh, {"tokens": tokens})
        _, metrics = functions.step(functions.init(0), batch, functions.inputs)
    assert float(metrics["loss"]) == pytest.approx(GOLDEN["loss"], rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(GOLDEN["grad_norm"], rel=1e-4)


def test_checkpoint_of_another_shape_is_rejected(finished_run):
    model = dataclasses.replace(finished_run.model, d_ff=40)
    other = dataclasses.replace(finished_run, model=model)
    functions = step.build_train_functions(other, mesh.make_mesh(schema.Mesh()))
    array = r"opt/1/mu/blocks/mlp/down is float32\[2, 48, 16\], the run needs float32\[2, 40, 16\]"
    with checkpoints.CheckpointStore(finished_run, read_only=True) as store:
        with pytest.raises(ValueError, match=array):
            store.restore(12, functions.abstract)


def test_early_stopping_selects_the_best_checkpoint(tiny, monkeypatch):
    tiny.eval.interval, tiny.eval.patience, tiny.log_interval = 1, 2, 5
    losses = dict(zip(range(1, 13), (5.0, 4.0, 4.5, 3.0, 3.1, 3.0, 2.0), strict=False))
    calls = iter(losses)
    monkeypatch.setattr(
        heldout, "evaluate_heldout", lambda *_, **__: {"loss": losses[next(calls)], "loss_se": 0.1}
    )
    reported = []
    loop.train(tiny, report_evaluation=reported.append)
    assert [(row["step"], row["loss"]) for row in reported] == [*losses.items()][:6]
    row = records.load_runs(records.run_dir(tiny))[0]
    assert row["status"] == "done" and row["ends_at"] == 4 and row["eval.loss"] == 3.0
    message = "stopped early at step 6: the best evaluation is step 4 with 3.000 ± 0.100"
    assert message in row["reason"]
    assert row["tokens"] == 6 * 8 * 32  # the tokens of the completed steps
    assert int(loaded_model.restore_model(tiny)[1]["step"]) == 4
    assert [e["event"] for e in records.load_events(records.run_dir(tiny))] == ["stopped early"]
    child = copy.deepcopy(tiny)
    child.name, child.start.run = "child", "tiny"
    assert warm_start.start_step(child, tiny) == 4


@pytest.mark.parametrize("fails", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    ("n_steps", "heldout_losses", "best"),
    [
        (12, (5.0, 4.0, 4.5, 4.1), 2),
        pytest.param(4, (5.0, 4.0, 4.5, 3.9), 4, marks=pytest.mark.slow),
        (3, (5.0, 4.0, 4.5), 2),
    ],
)
def test_tasks_are_evaluated_with_the_best_weights(
    tiny, monkeypatch, n_steps, heldout_losses, best, fails
):
    """Early stopping, and a last step that is or is not the best one."""
    tiny.steps, tiny.checkpoint_interval = n_steps, 100
    tiny.eval.interval, tiny.eval.patience, tiny.eval.tasks = 1, 2, "copy?length=2&n=20"
    loss_of: dict[bytes, float] = {}  # weights -> loss, in the order of the steps

    def evaluate_heldout(run, device_mesh, score, params, text, writer):
        weights = np.asarray(jax.tree.leaves(params)[0]).tobytes()
        loss = loss_of.get(weights, heldout_losses[len(loss_of) % len(heldout_losses)])
        return {"loss": loss_of.setdefault(weights, loss), "loss_se": 0.1}

    monkeypatch.setattr(heldout, "evaluate_heldout", evaluate_heldout)
    if fails:
        fail_once(monkeypatch, task_eval, "evaluate_columns")
        with pytest.raises(RuntimeError, match="broken evaluation"):
            loop.train(tiny)
    loop.train(tiny)
    (row,) = records.load_runs(records.run_dir(tiny))
    assert (row["status"], row["ends_at"], row["eval.loss"]) == ("done", best, min(heldout_losses))
    evaluations = records.load_evals(records.run_dir(tiny))
    has_tasks = {e["step"] for e in evaluations if any(c.startswith("task.") for c in e)}
    assert has_tasks == {best}
    functions = step.build_train_functions(tiny, mesh.make_mesh(schema.Mesh()))
    weights = loaded_model.restore_model(tiny)[1]["params"]
    model = tiny, functions.mesh, functions.score, weights, tokenizers.ByteTokenizer()
    with jax.set_mesh(functions.mesh):
        results = task_eval.evaluate_tasks(*model, tasks.load_tasks(tiny.eval.tasks))
    for name, numbers in results[tiny.eval.tasks].items():
        assert row[f"eval.task.{tiny.eval.tasks}.{name}"] == pytest.approx(numbers["value"])


def fail_once(monkeypatch, module, name: str) -> None:
    """Replace a function by one that raises RuntimeError on its first call."""
    function, calls = getattr(module, name), []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("broken evaluation")
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, fail)


def test_failed_last_evaluation_loses_no_step(tiny, monkeypatch):
    """The same command continues with the evaluation only, and its result is the same."""
    tiny.eval.tasks, tiny.checkpoint_interval = "copy?length=2&n=8", 100
    undisturbed = dataclasses.replace(tiny, name="undisturbed")
    loop.train(undisturbed)
    fail_once(monkeypatch, task_eval, "evaluate_tasks")
    with pytest.raises(RuntimeError, match="broken evaluation"):
        loop.train(tiny)
    assert checkpoints.newest_checkpoint(tiny) == 12
    reported = []
    loop.train(tiny, reported.append)
    assert not reported and losses(tiny) == losses(undisturbed)
    rows = [records.load_evals(records.run_dir(run)) for run in (tiny, undisturbed)]
    assert [row | {"attempt": 0} for row in rows[0]] == [row | {"attempt": 0} for row in rows[1]]
    for run, ((row,),) in zip((tiny, undisturbed), zip(rows, strict=True), strict=True):
        (items,) = task_items.load_items(row | {"dir": str(records.run_dir(run))}).values()
        assert len(items.points) == 8
    facts = [records.read_facts(records.run_dir(run)) for run in (tiny, undisturbed)]
    assert facts[0]["status"] == "done" and facts[0]["tokens"] == facts[1]["tokens"]


@pytest.mark.parametrize("packing", ["packed", "documents"])
def test_run_without_heldout_text_is_trained(tiny, packing):
    tiny.data.heldout_fraction, tiny.data.packing, tiny.eval.interval = 0.0, packing, 5
    evaluations = []
    loop.train(tiny, report_evaluation=evaluations.append)
    (row,) = records.load_runs(records.run_dir(tiny))
    assert row["status"] == "done" and row["ends_at"] == 12 and "eval.loss" not in row
    assert not evaluations and checkpoints.newest_checkpoint(tiny) == 12
    loop.train(tiny)  # a finished run changes nothing
    assert records.read_facts(records.run_dir(tiny))["status"] == "done"


def test_tasks_are_evaluated_without_heldout_text(tiny):
    tiny.data.heldout_fraction, tiny.eval.tasks = 0.0, "copy?length=2&n=8"
    loop.train(tiny)
    (row,) = records.load_runs(records.run_dir(tiny))
    assert "eval.loss" not in row and task_results.task_results(row)


def test_too_long_task_is_refused_before_training(tiny, tmp_path):
    lines = [json.dumps({"prompt": "word " * 40, "target": "x"}) for _ in range(4)]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    tiny.eval.tasks, tiny.eval.on_overflow = f"file:{tmp_path / 'long.jsonl'}", "error"
    with pytest.raises(ValueError, match="4 of 4 examples are longer than data.seq_len=32"):
        loop.train(tiny)
    assert not records.run_dir(tiny).exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("eval.tasks", "file:nowhere.jsonl", "nowhere.jsonl"),
        ("eval.tasks", "copy?lenght=4", "lenght"),
        ("data.sources", {"text:nowhere": 0.0}, "nowhere"),  # a source that is evaluated only
    ],
)
def test_unreadable_input_is_refused_before_training(tiny, field, value, message):
    if field == "data.sources":
        tiny.data.sources |= value
    else:
        tiny.eval.tasks = value
    with pytest.raises(ValueError, match=message):
        loop.train(tiny)
    assert not records.run_dir(tiny).exists()


def test_full_disk_is_reported_before_the_first_step(tiny, monkeypatch):
    usage = shutil.disk_usage(tiny.data.cache_dir.rpartition("/")[0])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="no room for a checkpoint"):
        loop.train(tiny, lambda row: pytest.fail("a step was computed"))
    assert not records.load_metrics(records.run_dir(tiny))


def test_new_start_drops_the_evaluations_of_lost_weights(tiny):
    """The first attempt is lost with its checkpoints; the second one has other weights."""
    tiny.eval.interval = 6
    loop.train(tiny)
    folder = records.run_dir(tiny)
    lost = {row["step"]: row for row in records.load_evals(folder)}
    shutil.rmtree(folder / "checkpoints")
    records.write_facts(folder, status="lost")
    for row in lost.values():
        records.append_record(folder / "evals.jsonl", row | {"loss": 0.5})
    loop.train(tiny)
    rows = {row["step"]: row for row in records.load_evals(folder)}
    assert {step: row["loss"] for step, row in rows.items()} == {
        step: row["loss"] for step, row in lost.items()
    }
    assert [row["attempt"] for row in rows.values()] == [2, 2]


@pytest.mark.parametrize(
    "losses, parent, message",
    [
        (
            {12: 6.0},
            "",
            "held-out loss 6.000 at the end, 5.545 by a uniform guess: try another optim.lr",
        ),
        ({0: 2.0, 8: 2.1, 12: 1.0}, "parent", "2.100 at the end, 2.000 by the initial weights"),
        ({0: 2.0, 8: 1.9, 12: 3.0}, "parent", ""),
        ({0: 6.5, 8: 5.0}, "", ""),
        ({12: "nan"}, "", "held-out loss nan at the end"),  # JSON stores nan as a string
        ({8: 3.0, 12: 7.0}, "", ""),
        ({4: 9.0}, "", ""),
    ],
)
def test_loss_above_a_baseline_gives_a_warning(losses, parent, message):
    run = schema.Run(model=schema.Model(256), start=schema.Start(run=parent))
    rows = {step: {"loss": loss} for step, loss in losses.items()}
    warning = metric_log.quality_warning(run, rows, 8 if 8 in rows else 12)
    assert message in warning and bool(message) == bool(warning)


def test_warning_is_in_facts_events_and_the_sweep_report(tiny, monkeypatch):
    monkeypatch.setattr(heldout, "evaluate_heldout", lambda *_, **__: {"loss": 9.0, "loss_se": 0.1})
    reasons, tiny.name = [], "sweep/tiny"
    launcher.run_pending([tiny], on_end=lambda run, reason: reasons.append(reason))
    row = records.load_runs(records.run_dir(tiny))[0]
    assert row["status"] == "done" and "9.000 at the end, 5.545 by a uniform" in row["reason"]
    assert reasons == [row["reason"]]
    assert [e["event"] for e in records.load_events(records.run_dir(tiny))] == ["no improvement"]


def train_with_late_rows(run, name: str, is_late: bool, monkeypatch) -> list[str]:
    """Train a copy of a run, and return the order of dispatched calls and written rows."""
    run = dataclasses.replace(run, name=name)
    events: list[str] = []
    make_call = loop.make_steps_call

    def make_recorded_call(*arguments):
        call = make_call(*arguments)

        def recorded(state, batches):
            events.append("call")
            return call(state, batches)

        return recorded

    with monkeypatch.context() as patches:
        patches.setattr(loop, "reads_metrics_late", lambda _: is_late)
        patches.setattr(loop, "make_steps_call", make_recorded_call)
        try:
            loop.train(run, lambda row: events.append(f"row {row['step']}"))
        except loop.Diverged as error:
            events.append(str(error).replace(name, ""))
    return events


def result_files(run, name: str) -> list:
    """Return the losses, evaluations and events of a run, without times and names."""
    folder = records.run_dir(dataclasses.replace(run, name=name))
    rows = [(r["step"], r["loss"], r["grad_norm"]) for r in records.load_metrics(folder)]
    evaluations = [(row["step"], row["loss"]) for row in records.load_evals(folder)]
    path = folder / "events.jsonl"
    events = json_files.read_latest_rows(path) if path.exists() else []
    return [rows, evaluations, [(e["step"], e["event"]) for e in events]]


def test_late_rows_are_written_after_the_next_dispatch(tiny, monkeypatch):
    """Rows at checkpoints, evaluations and the end are not late; all files are the same."""
    tiny.steps_per_call, tiny.eval.interval = 1, 6
    prompt = train_with_late_rows(tiny, "prompt", False, monkeypatch)
    late = train_with_late_rows(tiny, "late", True, monkeypatch)
    assert prompt[:3] == ["call", "call", "row 2"] and late[:4] == ["call"] * 3 + ["row 2"]
    assert late.count("call") == prompt.count("call") == 12
    rows = [event for event in late if event != "call"]
    assert rows == [event for event in prompt if event != "call"]
    assert (
        late[late.index("row 4") - 2 :][:3] == ["row 2", "call", "row 4"] and late[-1] == "row 12"
    )
    assert result_files(tiny, "late") == result_files(tiny, "prompt")


@pytest.mark.slow
@pytest.mark.parametrize("on_nonfinite", ["stop", "rewind"])
def test_late_rows_detect_a_nonfinite_loss_at_the_same_step(tiny, on_nonfinite, monkeypatch):
    """The step after the row was dispatched already; its result is dropped."""
    tiny.steps_per_call, tiny.optim.on_nonfinite = 1, on_nonfinite
    find_nonfinite = session.TrainingSession._nonfinite

    def fail_once(active_session):
        is_failure = active_session.done == 6 and active_session.attempt == 1
        return [{"loss": 1e9, "grad_norm": 0.0}] if is_failure else find_nonfinite(active_session)

    monkeypatch.setattr(session.TrainingSession, "_nonfinite", fail_once)
    monkeypatch.setattr(metric_log, "explain_nonfinite", lambda *_: "a reason")
    results = {}
    for name, is_late in (("prompt", False), ("late", True)):
        events = train_with_late_rows(tiny, name, is_late, monkeypatch)
        rows = [event for event in events if event != "call"]
        results[name] = rows, result_files(tiny, name)
    assert results["late"] == results["prompt"]
