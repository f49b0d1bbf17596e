"""Runs that start from the checkpoint of a parent run."""

import copy

import conftest
import jax
import numpy as np
import pytest

from lm.config import schema
from lm.runs import filesystem, records
from lm.sweeps import launcher, run_order
from lm.training import loaded_model, loop, warm_start
from lm.training.checkpointing import checkpoint_retention


@pytest.fixture(scope="module")
def trunk(text_file, tmp_path_factory) -> schema.Run:
    """Return a finished run of constant learning rate with checkpoints at 4, 8 and 12."""
    run = conftest.tiny_run(text_file, tmp_path_factory.mktemp("trunk"))
    run.name, run.optim.schedule, run.permanent_checkpoint_interval = "s/trunk", "constant", 4
    loop.train(run)
    return run


def child(trunk: schema.Run, name: str, **start) -> schema.Run:
    """Return a copy of the run that starts from it. start: fields of schema.Start."""
    run = copy.deepcopy(trunk)
    run.name, run.start = f"s/{name}", schema.Start(run=trunk.name, **start)
    return run


def weights(run: schema.Run, step: int | None = None) -> list[np.ndarray]:
    _, state = loaded_model.restore_model(run, step)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state["params"])]


def losses(run: schema.Run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in records.load_metrics(records.run_dir(run))}


def test_unchanged_branch_has_the_bits_of_the_trunk(trunk):
    branch = child(trunk, "same", step=4, restore="full_state")
    loop.train(branch)
    for a, b in zip(weights(trunk), weights(branch), strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(branch) == {step: loss for step, loss in losses(trunk).items() if step > 4}
    facts = records.read_facts(records.run_dir(branch))
    assert facts["parent.step"] == 4 and facts["parent.tokens"] == 4 * 8 * 32
    assert facts["resumed_from"] == 0 and facts["tokens"] == 12 * 8 * 32


def test_cooldown_branch_decays_the_learning_rate_to_zero(trunk):
    branch = child(trunk, "cooldown", step=8, restore="full_state")
    branch.optim.schedule, branch.optim.decay, branch.optim.final_lr_fraction = "linear", 0.3, 0.0
    loop.train(branch)
    assert sorted(losses(branch)) == [10, 12] and losses(branch)[12] != losses(trunk)[12]
    rows = records.load_metrics(records.run_dir(branch))
    assert rows[-1]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_fine_tuning_starts_with_the_final_loss_of_its_parent(trunk):
    tuned = child(trunk, "tuned", step=0)
    tuned.steps, tuned.optim.lr = 4, 1e-4
    loop.train(tuned)
    before = records.load_evals(records.run_dir(tuned))[0]
    last = records.load_evals(records.run_dir(trunk))[-1]
    assert before["step"] == 0 and before["loss"] == last["loss"]
    assert max(losses(tuned)) == 4 and int(loaded_model.restore_model(tuned)[1]["step"]) == 4


@pytest.mark.slow
def test_fine_tuning_resumes_from_its_own_checkpoint(trunk):
    uninterrupted, interrupted = child(trunk, "uninterrupted"), child(trunk, "interrupted")
    for run in (uninterrupted, interrupted):
        run.steps, run.optim.lr = 8, 1e-3
    loop.train(uninterrupted)

    def stop(row):
        if row["step"] == 4 and row["attempt"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(interrupted, stop)
    loop.train(interrupted, stop)
    assert losses(interrupted) == losses(uninterrupted)
    for a, b in zip(weights(interrupted), weights(uninterrupted), strict=True):
        np.testing.assert_array_equal(a, b)


def continue_as(run: schema.Run, field: str, value: str) -> None:
    """Let a run restore the full state of its parent, with another optimizer field."""
    run.start.restore, run.steps = "full_state", 20
    setattr(run.optim, field, value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: setattr(r.start, "run", "s/nowhere"), "nowhere is not a run directory"),
        (lambda r: setattr(r.model, "d_ff", 96), "model.d_ff=48 in the parent, 96 in this run"),
        (lambda r: setattr(r.model, "rope_theta", 500.0), "model.rope_theta=10000.0 in the parent"),
        (
            lambda r: setattr(r.start, "step", 40),
            "start.step=40 must be at most 12, the last step of s/trunk",
        ),
        (lambda r: setattr(r.start, "step", 5), r"has no step 5: it has \[4, 8, 12\]"),
        (
            lambda r: setattr(r.start, "restore", "full_state"),
            "steps=12 must be above start.step=12",
        ),
        (lambda r: setattr(r.start, "run", r.name), "is the run itself"),
        (
            lambda r: continue_as(r, "name", "lion"),
            "optim.name='lion' must be 'adamw', as in start.run='s/trunk', whose",
        ),
        (
            lambda r: continue_as(r, "moment_dtype", "bfloat16"),
            "optim.moment_dtype='bfloat16' must be 'float32'",
        ),
    ],
)
def test_invalid_start_is_rejected_and_writes_nothing(trunk, change, message):
    run = child(trunk, "wrong")
    change(run)
    with pytest.raises(ValueError, match=message):
        loop.train(run)
    assert not (records.run_dir(run) / "config.json").exists()


def test_parent_with_another_tokenizer_is_rejected(trunk):
    run = child(trunk, "other")
    folder = records.run_dir(trunk)
    with pytest.raises(ValueError, match="another tokenizer than data.tokenizer='bytes'"):
        warm_start.restore_parent(run, {}, type("Other", (), {"hash": "other"})())
    assert folder.exists()


def test_child_runs_after_its_parent(trunk):
    a, b = child(trunk, "a"), child(trunk, "b")
    a.start.run = "s/b"
    order = [run.name for run in run_order.topological_order([a, b, trunk])]
    assert order == ["s/trunk", "s/b", "s/a"]


def test_circle_of_parents_is_rejected(trunk):
    a, b = child(trunk, "a"), child(trunk, "b")
    a.start.run = "s/b"
    b.start.run = "s/a"
    with pytest.raises(ValueError, match="makes a circle: s/a <- s/b <- s/a"):
        run_order.topological_order([a, b])


def test_planned_sweep_preserves_the_checkpoint_of_a_branch(text_file, tmp_path):
    parent = conftest.tiny_run(text_file, tmp_path)
    parent.name = "s/parent"
    branch = child(parent, "branch", step=4, restore="full_state")
    launcher.write_sweep_files("x.py", [parent, branch], [])
    loop.train(parent)
    folder = records.run_dir(parent)
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    assert sorted(int(name) for name in names if name.isdecimal()) == [4, 8, 12]
    assert [pin.name for pin in (folder / "pins").iterdir()] == ["4-s-branch"]


def test_run_pins_the_checkpoint_that_it_starts_from(trunk, monkeypatch):
    """A parent in a read-only folder needs no pin."""
    loop.train(child(trunk, "pinning", step=8))
    assert (records.run_dir(trunk) / "pins" / "8-s-pinning").exists()

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(filesystem, "write_file", refuse)
    checkpoint_retention.pin_checkpoint(trunk, 4, "s/other")
