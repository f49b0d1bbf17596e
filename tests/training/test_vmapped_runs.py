"""Several runs that are trained in one program."""

import copy
import dataclasses
import json
import pathlib
import signal

import conftest
import jax
import numpy as np
import pytest

from lm.config import schema
from lm.model import transformer
from lm.parallel import mesh
from lm.runs import records, task_results
from lm.sweeps import launcher
from lm.training import checkpoints, loaded_model, loop, preemption, step, vmapped_runs

# Relative tolerance of losses after 12 steps: batched matrix products sum in another order.
TOLERANCE = 1e-4


def variants(run: schema.Run, folder: str) -> list[schema.Run]:
    """Return three runs of one shape with different seeds, learning rates and weight decays.

    All forms of the weight decay differ, too.
    """
    runs = [copy.deepcopy(run) for _ in range(3)]
    for i, variant in enumerate(runs):
        variant.checkpoint_interval, variant.eval.n_completions = 12, 0
        variant.name, variant.seed, variant.optim.lr = f"{folder}/{i}", i % 2, 3e-3 * (1 + i)
    runs[1].optim.independent_weight_decay, runs[1].optim.weight_decay = True, 0.01
    runs[1].optim.embedding_decay_factor, runs[1].optim.norm_decay_factor = 0.0, 0.5
    runs[2].optim.weight_decay, runs[2].optim.head_decay_factor = 0.3, 2.0
    return runs


def losses(run: schema.Run) -> list[float]:
    return [row["loss"] for row in records.load_metrics(records.run_dir(run))]


def params(run: schema.Run) -> list[np.ndarray]:
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(loaded_model.restore_model(run)[1]["params"])
    ]


@pytest.fixture(scope="module")
def single_and_vmapped(text_file, tmp_path_factory) -> tuple[list[schema.Run], list[schema.Run]]:
    """Train the same three runs in programs of their own and in one program."""
    tiny = conftest.tiny_run(text_file, tmp_path_factory.mktemp("vmapped"))
    tiny.eval.interval = 6
    singles, vmapped = variants(tiny, "single"), variants(tiny, "vmapped")
    for run in singles:
        loop.train(run)
    reported = []
    reasons = vmapped_runs.train_vmapped(
        vmapped, lambda run, row: reported.append((run.name, row["step"]))
    )
    assert reasons == {run.name: "" for run in vmapped}
    assert sorted(reported) == [(run.name, step) for run in vmapped for step in range(2, 13, 2)]
    return singles, vmapped


def test_vmapped_run_equals_the_run_alone(single_and_vmapped):
    singles, vmapped = single_and_vmapped
    for single, run in zip(singles, vmapped, strict=True):
        np.testing.assert_allclose(losses(single), losses(run), rtol=TOLERANCE)
        for a, b in zip(params(single), params(run), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-4)
        expected, evals = (records.load_evals(records.run_dir(r)) for r in (single, run))
        assert [row["step"] for row in expected] == [row["step"] for row in evals] == [6, 12]
        assert expected[-1]["loss"] == pytest.approx(evals[-1]["loss"], rel=TOLERANCE)
    final = [records.load_evals(records.run_dir(run))[-1]["loss"] for run in vmapped]
    assert min(abs(a - b) for a, b in zip(final, final[1:], strict=False)) > 1e-3  # no mix-up


def test_each_vmapped_run_has_its_own_records(single_and_vmapped):
    for single, run in zip(*single_and_vmapped, strict=True):
        expected, facts = (records.read_facts(records.run_dir(r)) for r in (single, run))
        assert facts["status"] == "done" and facts["attempts"] == 1
        assert (expected["devices.pack"], facts["devices.pack"]) == (1, 3)
        assert (expected["tokens"], expected["flops"]) == (facts["tokens"], facts["flops"])
        assert expected.keys() == facts.keys()
        assert checkpoints.newest_checkpoint(run) == 12


@pytest.mark.slow
def test_vmapped_runs_report_their_evaluations(tiny):
    """The runs have no held-out text except the tasks, which they evaluate."""
    runs = variants(tiny, "tasks")[:2]
    for run in runs:
        run.data.heldout_fraction, run.eval.tasks = 0.0, "copy?length=2&n=8"
    reported = []
    vmapped_runs.train_vmapped(
        runs, report_evaluation=lambda run, row: reported.append((run.name, row["step"]))
    )
    assert reported == [("tasks/0", 12), ("tasks/1", 12)]
    rows = records.load_runs(runs[0].dir)
    assert [row["status"] for row in rows] == ["done", "done"]
    assert all("eval.loss" not in row and task_results.task_results(row) for row in rows)


def test_other_runs_continue_after_one_diverges(single_and_vmapped, tiny):
    singles, _ = single_and_vmapped
    runs = variants(tiny, "mixed")[:2]
    for run in runs:
        run.dir = singles[0].dir
    diverging = copy.deepcopy(runs[0])
    diverging.name, diverging.optim.lr = "mixed/diverging", 1e38
    reasons = vmapped_runs.train_vmapped([runs[0], diverging, runs[1]])
    assert "mixed/diverging diverged: loss" in reasons.pop("mixed/diverging")
    assert reasons == {run.name: "" for run in runs}
    assert records.read_facts(records.run_dir(diverging))["status"] == "diverged"
    for single, run in zip(singles[:2], runs, strict=True):
        np.testing.assert_allclose(losses(single), losses(run), rtol=TOLERANCE)


@pytest.mark.slow
def test_stopped_vmapped_runs_resume_to_the_same_bits(single_and_vmapped, tiny):
    _, uninterrupted = single_and_vmapped
    runs = variants(tiny, "stopped")
    for run in runs:
        run.dir, run.eval.interval = uninterrupted[0].dir, 6

    def stop(run, row):
        if row["step"] == 6 and run is runs[0] and row["attempt"] == 1:
            signal.raise_signal(signal.SIGTERM)

    message = "stopped/2 stopped by SIGTERM at step 8 of 12"
    with pytest.raises(preemption.Interrupted, match=message):
        vmapped_runs.train_vmapped(runs, stop)
    assert [checkpoints.newest_checkpoint(run) for run in runs] == [8, 8, 8]
    vmapped_runs.train_vmapped(runs, stop)
    for expected, run in zip(uninterrupted, runs, strict=True):
        assert losses(expected) == losses(run)
        for a, b in zip(params(expected), params(run), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_runs_at_different_steps_are_trained_separately(tiny):
    """The first run diverges, so that only one of two vmapped runs remains: it trains alone."""
    runs = variants(tiny, "steps")
    runs[0].optim.lr = 1e38

    def stop(row):
        if row["step"] == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(preemption.Interrupted):
        loop.train(runs[2], stop)
    assert vmapped_runs.split_by_step(runs) == (runs[:2], runs[2:])
    vmapped_runs.train_vmapped(runs)
    facts = [records.read_facts(records.run_dir(run)) for run in runs]
    assert [f["status"] for f in facts] == ["diverged", "done", "done"]
    assert [(f["devices.pack"], f["attempts"]) for f in facts] == [(2, 1), (1, 2), (1, 2)]


@pytest.mark.slow
def test_call_of_several_steps_equals_single_steps(tiny):
    single, several = (
        dataclasses.replace(tiny, name=f"calls/{size}", log_interval=6, steps_per_call=size)
        for size in (1, 4)
    )
    loop.train(single)
    loop.train(several)  # calls of 1, 4, 1, 4 and 2 steps
    facts = [records.read_facts(records.run_dir(run)) for run in (single, several)]
    assert [f["devices.steps_per_call"] for f in facts] == [1, 4]
    np.testing.assert_allclose(losses(single), losses(several), rtol=TOLERANCE)


def test_call_of_several_steps_traces_a_step_once(tiny, monkeypatch):
    traces, token_losses = [], transformer.token_losses
    monkeypatch.setattr(
        transformer, "token_losses", lambda *args: traces.append(1) or token_losses(*args)
    )
    tiny.model.d_ff = 104  # a shape that no other test lowers
    device_mesh = mesh.make_mesh(tiny.mesh)
    functions = step.build_train_functions(tiny, device_mesh)
    n_steps = loop.steps_per_call(tiny, device_mesh)
    with jax.set_mesh(device_mesh):
        loop.lower_steps(functions, n_steps)
    assert n_steps > 1 and len(traces) == 1


def test_cached_functions_get_the_rates_of_their_run(tiny):
    """Runs that differ in vmapped fields share their programs."""
    device_mesh = mesh.make_mesh(tiny.mesh)
    other = dataclasses.replace(tiny, optim=dataclasses.replace(tiny.optim, lr=0.5, schedule="wsd"))
    changed = dataclasses.replace(other, optim=dataclasses.replace(other.optim, lr=0.25))
    first, same, different = (
        step.build_train_functions(run, device_mesh) for run in (other, changed, tiny)
    )
    assert (first.inputs.lr, same.inputs.lr) == (0.5, 0.25)
    assert same.step is first.step and different.step is not first.step


def test_call_ends_when_a_record_is_due(tiny, monkeypatch):
    saved_steps, save = [], checkpoints.CheckpointStore.save

    def save_and_record(self, step_number, *args):
        saved_steps.append(step_number)
        save(self, step_number, *args)

    monkeypatch.setattr(checkpoints.CheckpointStore, "save", save_and_record)
    tiny.log_interval, tiny.eval.interval, tiny.checkpoint_interval = 7, 5, 4
    loop.train(tiny)
    folder = records.run_dir(tiny)
    assert [row["step"] for row in records.load_metrics(folder)] == [7, 12]
    assert [row["step"] for row in records.load_evals(folder)] == [5, 10, 12]
    assert saved_steps == [4, 8, 12]


def test_call_has_fewer_steps_of_a_larger_model(tiny):
    device_mesh = mesh.make_mesh(tiny.mesh)
    large = copy.deepcopy(tiny)
    large.model.d_model, large.model.d_ff, large.data.batch_size = 2048, 8192, 4096
    assert loop.steps_per_call(tiny, device_mesh) == 8
    assert loop.steps_per_call(large, device_mesh) == 1
    assert loop.steps_per_call(dataclasses.replace(large, steps_per_call=3), device_mesh) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"optim.name": "muon"},
        {"optim.grad_accumulation_steps": 2},
        {"model.n_experts": 4, "model.d_expert": 16},
        {"model.n_experts": 4, "model.d_expert": 16, "model.dispatch": "capacity"},
        {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2},
        {"mesh.data": 2, "mesh.sequence": 2},
    ],
)
def test_runs_of_every_kind_can_be_vmapped(tiny, changes):
    for field, value in changes.items():
        group, name = field.split(".")
        setattr(getattr(tiny, group), name, value)
    tiny.steps = 4
    singles, vmapped = variants(tiny, "single")[1:], variants(tiny, "vmapped")[1:]
    for run in singles:
        loop.train(run)
    vmapped_runs.train_vmapped(vmapped)
    for single, run in zip(singles, vmapped, strict=True):
        np.testing.assert_allclose(losses(single), losses(run), rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: setattr(run.model, "d_ff", 64), "model.d_ff=64 and x/0 48"),
        (
            lambda run: setattr(run, "steps", 9),
            "steps=9 and x/0 12: runs of one program may",
        ),
        (lambda run: setattr(run.optim, "name", "lion"), "optim.name='lion'"),
    ],
)
def test_runs_of_another_shape_are_not_vmapped(tiny, change, message):
    runs = variants(tiny, "x")
    change(runs[1])
    with pytest.raises(ValueError, match=message):
        vmapped_runs.train_vmapped(runs)
    assert vmapped_runs.select_compatible(iter(runs), 3, set()) == [runs[0], runs[2]]
    assert vmapped_runs.select_compatible(iter(runs[1:]), 3, set()) == [runs[1]]
    assert not pathlib.Path(tiny.dir).exists()


@pytest.mark.parametrize(("field", "value"), [("mesh.deterministic_shards", 4), ("wandb", True)])
def test_runs_with_some_fields_are_trained_alone(tiny, field, value):
    runs = variants(tiny, "x")
    group, _, name = field.rpartition(".")
    for run in runs:
        setattr(getattr(run, group) if group else run, name, value)
    assert vmapped_runs.select_compatible(iter(runs), 3, set()) == runs[:1]
    with pytest.raises(ValueError, match=f"{field}={value}, and "):
        vmapped_runs.check_compatible(runs)


def test_sweep_retries_failed_vmapped_runs_alone(tiny, monkeypatch):
    """The first three runs have another shape than the last three, of which one fails."""
    runs, groups = variants(tiny, "s"), []
    wider = [copy.deepcopy(run) for run in runs]
    for run in wider:
        run.name, run.model.d_ff = run.name + "b", 64

    def fake_train(run, *reports):
        if run.name == "s/1b":
            raise RuntimeError("broken")
        records.start_run(run, {})
        records.write_facts(records.run_dir(run), status="done")

    def fake_train_vmapped(group, *reports):
        groups.append([run.name for run in group])
        for run in group:
            fake_train(run)
        return {run.name: "" for run in group}

    monkeypatch.setattr(loop, "train", fake_train)
    monkeypatch.setattr(vmapped_runs, "train_vmapped", fake_train_vmapped)
    ended = []
    launcher.run_pending(
        [*runs, *wider],
        on_end=lambda run, reason: ended.append((run.name, reason)),
        options=launcher.WorkerOptions(max_vmapped=2),
    )
    assert groups == [["s/0", "s/1"], ["s/0b", "s/1b"]]  # s/2 is trained alone
    assert [reason for name, reason in ended if name == "s/1b"] == [
        "will be trained in its own program after RuntimeError: broken",
        "RuntimeError: broken",
    ]
    statuses = {
        run.name: records.read_facts(records.run_dir(run))["status"] for run in [*runs, *wider]
    }
    assert [name for name, status in statuses.items() if status != "done"] == ["s/1b"]
    facts = json.loads((records.run_dir(wider[1]) / "facts.json").read_text())
    assert facts["status"] == "failed"
