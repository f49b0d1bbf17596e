import copy

import conftest
import jax
import numpy as np
import pytest

from lm.config import schema
from lm.runs import filesystem, records
from lm.sweeps import launcher
from lm.training import checkpoints, loaded_model, loop, warm_start


@pytest.fixture(scope="module")
def trunk(text_file, tmp_path_factory) -> schema.Run:
    """A finished run of constant learning rate with checkpoints at 4, 8 and 12."""
    run = conftest.tiny_run(text_file, tmp_path_factory.mktemp("trunk"))
    run.name, run.optim.schedule, run.permanent_checkpoint_interval = "s/trunk", "constant", 4
    loop.train(run)
    return run


def child(trunk: schema.Run, name: str, **start) -> schema.Run:
    run = copy.deepcopy(trunk)
    run.name, run.start = f"s/{name}", schema.Start(run=trunk.name, **start)
    return run


def weights(run: schema.Run, step: int | None = None) -> list[np.ndarray]:
    _, state = loaded_model.restore_model(run, step)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state["params"])]


def losses(run: schema.Run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in records.load_metrics(records.run_dir(run))}


def test_a_branch_that_changes_nothing_is_the_trunk_bit_for_bit(trunk):
    branch = child(trunk, "same", step=4, restore="full_state")
    loop.train(branch)
    for a, b in zip(weights(trunk), weights(branch), strict=True):
        np.testing.assert_array_equal(a, b)
    kept = {step: loss for step, loss in losses(trunk).items() if step > 4}
    assert losses(branch) == kept
    facts = records.read_facts(records.run_dir(branch))
    assert facts["parent.step"] == 4 and facts["parent.tokens"] == 4 * 8 * 32
    assert facts["resumed_from"] == 0 and facts["tokens"] == 12 * 8 * 32


def test_a_cooldown_differs_from_the_trunk_only_after_the_branch(trunk):
    branch = child(trunk, "cooldown", step=8, restore="full_state")
    branch.optim.schedule, branch.optim.decay, branch.optim.final_lr_fraction = "linear", 0.3, 0.0
    loop.train(branch)
    assert sorted(losses(branch)) == [10, 12] and losses(branch)[12] != losses(trunk)[12]
    rows = records.load_metrics(records.run_dir(branch))
    assert rows[-1]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_fine_tuning_starts_at_what_the_parent_ended_with(trunk):
    tuned = child(trunk, "tuned", step=0)
    tuned.steps, tuned.optim.lr = 4, 1e-4
    loop.train(tuned)
    before = records.load_evals(records.run_dir(tuned))[0]
    last = records.load_evals(records.run_dir(trunk))[-1]
    assert before["step"] == 0 and before["loss"] == last["loss"]
    assert max(losses(tuned)) == 4 and int(loaded_model.restore_model(tuned)[1]["step"]) == 4


def test_fine_tuning_can_be_interrupted_and_goes_on_from_its_own_checkpoint(trunk):
    whole, cut = child(trunk, "whole"), child(trunk, "cut")
    for run in (whole, cut):
        run.steps, run.optim.lr = 8, 1e-3
    loop.train(whole)

    def stop(row):
        if row["step"] == 4 and row["attempt"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(cut, stop)
    loop.train(cut, stop)
    assert losses(cut) == losses(whole)
    for a, b in zip(weights(cut), weights(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: setattr(r.start, "run", "s/nowhere"), "nowhere is not a run directory"),
        (lambda r: setattr(r.model, "d_ff", 96), "model.d_ff=48 there, 96 here"),
        (lambda r: setattr(r.model, "rope_theta", 500.0), "model.rope_theta=10000.0 there"),
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
    ],
)
def test_what_cannot_be_started_from_is_refused_by_name_and_writes_nothing(trunk, change, words):
    run = child(trunk, "wrong")
    change(run)
    with pytest.raises(ValueError, match=words):
        loop.train(run)
    assert not (records.run_dir(run) / "config.json").exists()


def test_weights_of_another_tokenizer_are_refused(trunk):
    run = child(trunk, "other")
    folder = records.run_dir(trunk)
    with pytest.raises(ValueError, match="another tokenizer than data.tokenizer='bytes'"):
        warm_start.restore_parent(run, {}, type("Other", (), {"hash": "other"})())
    assert folder.exists()


def test_a_child_runs_after_its_parent_and_circles_are_refused(trunk):
    a, b = child(trunk, "a"), child(trunk, "b")
    a.start.run, a.is_prediction_target = "s/b", False
    assert [run.name for run in launcher.topological_order([a, b, trunk])] == [
        "s/trunk",
        "s/b",
        "s/a",
    ]
    b.start.run = "s/a"
    with pytest.raises(ValueError, match="makes a circle: s/a <- s/b <- s/a"):
        launcher.topological_order([a, b])


def test_a_checkpoint_that_a_sweep_will_need_is_kept_from_when_it_is_planned(text_file, tmp_path):
    parent = conftest.tiny_run(text_file, tmp_path)
    parent.name = "s/parent"
    branch = child(parent, "branch", step=4, restore="full_state")
    launcher.write_sweep_files("x.py", [parent, branch], [])
    loop.train(parent)
    folder = records.run_dir(parent)
    kept = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdecimal())
    assert kept == [4, 8, 12]
    assert [pin.name for pin in (folder / "pins").iterdir()] == ["4-s-branch"]


def test_a_run_that_starts_pins_what_it_starts_from_where_it_may(trunk, monkeypatch):
    loop.train(tuned := child(trunk, "pinning", step=8))
    assert (records.run_dir(trunk) / "pins" / f"8-s-{tuned.name[2:]}").exists()

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(filesystem, "write_file", refuse)
    checkpoints.protect(trunk, 4, "s/other")  # a model that is only read can be started from
