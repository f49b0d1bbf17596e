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
from lm.runs import records
from lm.sweeps import launcher
from lm.training import checkpoints, loaded_model, loop, step, vmapped_runs

TOLERANCE = 1e-4  # of losses after a dozen steps: products of a batch of matrices add up elsewise


def variants(run: schema.Run, folder: str) -> list[schema.Run]:
    """Of one shape: another seed, another learning rate, both and another weight decay."""
    runs = [copy.deepcopy(run) for _ in range(3)]
    for number, one in enumerate(runs):
        one.checkpoint_interval, one.eval.n_completions = 12, 0
        one.name, one.seed, one.optim.lr = f"{folder}/{number}", number % 2, 3e-3 * (1 + number)
    runs[2].optim.weight_decay = 0.3
    return runs


def losses(run: schema.Run) -> list[float]:
    return [row["loss"] for row in records.load_metrics(records.run_dir(run))]


def params(run: schema.Run) -> list[np.ndarray]:
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(loaded_model.restore_model(run)[1]["params"])
    ]


@pytest.fixture(scope="module")
def pair(text_file, tmp_path_factory) -> tuple[list[schema.Run], list[schema.Run]]:
    """The same three runs, trained alone and together."""
    tiny = conftest.tiny_run(text_file, tmp_path_factory.mktemp("packs"))
    tiny.eval.interval = 6
    alone, packed = variants(tiny, "alone"), variants(tiny, "packed")
    for run in alone:
        loop.train(run)
    seen = []
    reasons = vmapped_runs.train_vmapped(
        packed, lambda run, row: seen.append((run.name, row["step"]))
    )
    assert reasons == {run.name: "" for run in packed}
    assert sorted(seen) == [(run.name, step) for run in packed for step in range(2, 13, 2)]
    return alone, packed


def test_runs_of_a_pack_come_out_as_if_each_was_alone(pair):
    for one, other in zip(*pair, strict=True):
        np.testing.assert_allclose(losses(one), losses(other), rtol=TOLERANCE)
        for a, b in zip(params(one), params(other), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-4)
        mine, theirs = (records.load_evals(records.run_dir(run)) for run in (one, other))
        assert [row["step"] for row in mine] == [row["step"] for row in theirs] == [6, 12]
        assert mine[-1]["loss"] == pytest.approx(theirs[-1]["loss"], rel=TOLERANCE)
    ends = [records.load_evals(records.run_dir(run))[-1]["loss"] for run in pair[1]]
    assert min(abs(a - b) for a, b in zip(ends, ends[1:], strict=False)) > 1e-3  # no mix-up


def test_each_run_of_a_pack_has_records_of_its_own(pair):
    for one, other in zip(*pair, strict=True):
        mine, theirs = (records.read_facts(records.run_dir(run)) for run in (one, other))
        assert theirs["status"] == "done" and theirs["attempts"] == 1
        assert (mine["devices.pack"], theirs["devices.pack"]) == (1, 3)
        assert (mine["tokens"], mine["flops"]) == (theirs["tokens"], theirs["flops"])
        assert mine.keys() == theirs.keys()
        assert checkpoints.newest_checkpoint(other) == 12


def test_a_run_that_diverges_leaves_the_pack_and_the_others_go_on(pair, tiny):
    alone, _ = pair
    runs = variants(tiny, "mixed")[:2]
    for run in runs:
        run.dir = alone[0].dir
    wild = copy.deepcopy(runs[0])
    wild.name, wild.optim.lr = "mixed/wild", 1e38
    reasons = vmapped_runs.train_vmapped([runs[0], wild, runs[1]])
    assert "mixed/wild diverged: loss" in reasons.pop("mixed/wild")
    assert reasons == {run.name: "" for run in runs}
    assert records.read_facts(records.run_dir(wild))["status"] == "diverged"
    for one, other in zip(alone[:2], runs, strict=True):
        np.testing.assert_allclose(losses(one), losses(other), rtol=TOLERANCE)


def test_a_pack_stopped_by_a_signal_goes_on_to_the_same_bits(pair, tiny):
    _, whole = pair
    runs = variants(tiny, "stopped")
    for run in runs:
        run.dir, run.eval.interval = whole[0].dir, 6

    def stop(run, row):
        if row["step"] == 6 and run is runs[0] and row["attempt"] == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Interrupted, match="stopped/2 stopped by SIGTERM at step 8 of 12"):
        vmapped_runs.train_vmapped(runs, stop)
    assert [checkpoints.newest_checkpoint(run) for run in runs] == [8, 8, 8]
    vmapped_runs.train_vmapped(runs, stop)
    for one, other in zip(whole, runs, strict=True):
        assert losses(one) == losses(other)
        for a, b in zip(params(one), params(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_runs_at_different_steps_are_not_packed_and_half_a_pack_is_made_anew(tiny):
    runs = variants(tiny, "steps")
    runs[0].optim.lr = 1e38  # diverges, and leaves one of two

    def stop(row):
        if row["step"] == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Interrupted):
        loop.train(runs[2], stop)
    assert vmapped_runs.split_by_step(runs) == (runs[:2], runs[2:])
    vmapped_runs.train_vmapped(runs)
    facts = [records.read_facts(records.run_dir(run)) for run in runs]
    assert [f["status"] for f in facts] == ["diverged", "done", "done"]
    assert [(f["devices.pack"], f["attempts"]) for f in facts] == [(2, 1), (1, 2), (1, 2)]


def test_a_call_of_several_steps_does_what_single_ones_do(tiny):
    single, several = (
        dataclasses.replace(tiny, name=f"calls/{size}", log_interval=6, steps_per_call=size)
        for size in (1, 4)
    )
    loop.train(single)
    loop.train(several)  # calls of 1, 4, 1, 4 and 2 steps
    facts = [records.read_facts(records.run_dir(run)) for run in (single, several)]
    assert [f["devices.steps_per_call"] for f in facts] == [1, 4]
    np.testing.assert_allclose(losses(single), losses(several), rtol=TOLERANCE)


def test_a_step_of_a_call_is_traced_once(tiny, monkeypatch):
    traced, losses = [], transformer.token_losses
    monkeypatch.setattr(
        transformer, "token_losses", lambda *given: traced.append(1) or losses(*given)
    )
    tiny.model.d_ff = 104  # what no other test lowers
    device_mesh = mesh.make_mesh(tiny.mesh)
    program, size = (
        step.build_train_functions(tiny, device_mesh),
        step.steps_per_call(tiny, device_mesh),
    )
    with jax.set_mesh(device_mesh):
        step.lower_steps(program, size)
    assert size > 1 and len(traced) == 1


def test_a_call_ends_where_something_is_due(tiny, monkeypatch):
    saved, save = [], checkpoints.CheckpointStore.save

    def save_and_count(self, step, *given):
        saved.append(step)
        save(self, step, *given)

    monkeypatch.setattr(checkpoints.CheckpointStore, "save", save_and_count)
    tiny.log_interval, tiny.eval.interval, tiny.checkpoint_interval = 7, 5, 4
    loop.train(tiny)
    folder = records.run_dir(tiny)
    assert [row["step"] for row in records.load_metrics(folder)] == [7, 12]
    assert [row["step"] for row in records.load_evals(folder)] == [5, 10, 12]
    assert saved == [4, 8, 12]


def test_a_call_has_fewer_steps_the_longer_they_take(tiny):
    device_mesh = mesh.make_mesh(tiny.mesh)
    large = copy.deepcopy(tiny)
    large.model.d_model, large.model.d_ff, large.data.batch_size = 2048, 8192, 4096
    assert step.steps_per_call(tiny, device_mesh) == 8
    assert step.steps_per_call(large, device_mesh) == 1
    assert step.steps_per_call(dataclasses.replace(large, steps_per_call=3), device_mesh) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        {"optim.name": "muon"},
        {"optim.grad_accumulation_steps": 2},
        {"model.n_experts": 4, "model.d_expert": 16},
        {"model.n_experts": 4, "model.d_expert": 16, "model.dispatch": "capacity"},
        {"mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2},
        {"mesh.data": 2, "mesh.sequence": 2},
    ],
)
def test_runs_of_every_kind_can_be_packed(tiny, knobs):
    for knob, value in knobs.items():
        group, name = knob.split(".")
        setattr(getattr(tiny, group), name, value)
    tiny.steps = 4
    alone, packed = variants(tiny, "alone")[1:], variants(tiny, "packed")[1:]
    for run in alone:
        loop.train(run)
    vmapped_runs.train_vmapped(packed)
    for one, other in zip(alone, packed, strict=True):
        np.testing.assert_allclose(losses(one), losses(other), rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: setattr(run.model, "d_ff", 64), "model.d_ff=64 and x/0 48"),
        (
            lambda run: setattr(run, "steps", 9),
            "steps=9 and x/0 12: runs of one program may",
        ),
        (lambda run: setattr(run.optim, "name", "lion"), "optim.name='lion'"),
    ],
)
def test_runs_of_another_shape_are_refused_and_never_chosen(tiny, change, words):
    runs = variants(tiny, "x")
    change(runs[1])
    with pytest.raises(ValueError, match=words):
        vmapped_runs.train_vmapped(runs)
    assert vmapped_runs.select_compatible(iter(runs), 3, set()) == [runs[0], runs[2]]
    assert vmapped_runs.select_compatible(iter(runs[1:]), 3, set()) == [runs[1]]
    assert not pathlib.Path(tiny.dir).exists()


@pytest.mark.parametrize(("knob", "value"), [("mesh.deterministic_shards", 4), ("wandb", True)])
def test_some_runs_are_trained_alone(tiny, knob, value):
    runs = variants(tiny, "x")
    for run in runs:
        setattr(
            run.mesh if knob == "mesh.deterministic_shards" else run, knob.split(".")[-1], value
        )
    assert vmapped_runs.select_compatible(iter(runs), 3, set()) == runs[:1]
    with pytest.raises(ValueError, match=f"{knob}={value}, and "):
        vmapped_runs.check_compatible(runs)


def test_a_sweep_packs_what_it_can_and_what_breaks_in_a_pack_is_tried_alone(tiny, monkeypatch):
    runs, packed = variants(tiny, "s"), []
    more = [copy.deepcopy(run) for run in runs]
    for run in more:
        run.name, run.model.d_ff = run.name + "b", 64

    def fake(run, report):
        if run.name == "s/1b":
            raise RuntimeError("broken")
        records.start_run(run, {})
        records.write_facts(records.run_dir(run), status="done")

    def fake_pack(some, report):
        packed.append([run.name for run in some])
        for run in some:
            fake(run, report)
        return {run.name: "" for run in some}

    monkeypatch.setattr(loop, "train", fake)
    monkeypatch.setattr(vmapped_runs, "train_vmapped", fake_pack)
    said = []
    launcher.run_pending(
        [*runs, *more], on_end=lambda run, why: said.append((run.name, why)), max_vmapped=2
    )
    assert packed == [["s/0", "s/1"], ["s/0b", "s/1b"]]  # s/2 is left alone
    broken = [why for name, why in said if name == "s/1b"]
    assert broken == [
        "will be trained in its own program after RuntimeError: broken",
        "RuntimeError: broken",
    ]
    status = {
        run.name: records.read_facts(records.run_dir(run))["status"] for run in [*runs, *more]
    }
    assert [name for name, one in status.items() if one != "done"] == ["s/1b"]
    assert json.loads((records.run_dir(more[1]) / "facts.json").read_text())["status"] == "failed"
