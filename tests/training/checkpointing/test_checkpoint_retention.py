"""Retention of checkpoints: the policy, and interrupted deletion."""

import contextlib
import errno
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from lm.config import schema
from lm.runs import filesystem, records
from lm.training import checkpoints
from lm.training.checkpointing import checkpoint_retention


@pytest.fixture
def state():
    return {"step": jnp.int32(3), "params": {"w": jnp.arange(6.0)}}


def save_steps(run: schema.Run, state: dict, *steps: int) -> pathlib.Path:
    """Save a checkpoint at each step, and return the folder of the checkpoints."""
    with checkpoints.CheckpointStore(run) as store:
        for step in steps:
            store.save(step, state, "hash", [], 0.0)
        return store.folder


def saved_steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def restored_step(run: schema.Run, state: dict) -> int:
    """Return the step of the newest intact checkpoint."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with checkpoints.CheckpointStore(run) as store:
        return store.restore_newest(abstract).step


def test_two_newest_and_permanent_checkpoints_are_preserved(tiny, state):
    tiny.permanent_checkpoint_interval = 8
    folder = save_steps(tiny, state, *range(4, 32, 4))
    assert saved_steps(folder) == [8, 16, 24, 28]


def test_best_checkpoint_is_preserved(tiny, state):
    tiny.keep_best = True
    losses = {4: 3.0, 8: 1.0, 12: 2.0, 16: None, 20: 1.5, 24: 1.2}
    with checkpoints.CheckpointStore(tiny) as store:
        for step, loss in losses.items():
            store.save(step, state, "hash", [], 0.0)
            if loss is not None:
                row = {"attempt": 1, "step": step, "loss": loss}
                records.append_record(records.run_dir(tiny) / "evals.jsonl", row)
    with checkpoints.CheckpointStore(tiny) as store:
        assert store.steps() == [8, 20, 24]


def test_pin_of_a_run_with_a_long_name_is_written(tiny):
    long_name = "s/" + 250 * "a"
    checkpoint_retention.pin_checkpoint(tiny, 6, long_name)
    (pin,) = (records.run_dir(tiny) / "pins").iterdir()
    assert pin.name.startswith("6-") and pin.read_text() == f"{long_name}\n"


@pytest.mark.parametrize(
    ("code", "is_raised"),
    [(errno.EROFS, False), (errno.EACCES, False), (errno.ENOSPC, True), (errno.EIO, True)],
)
def test_only_a_read_only_folder_has_no_pin(tiny, monkeypatch, code, is_raised):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filesystem, "write_file", refuse)
    expectation = pytest.raises(OSError) if is_raised else contextlib.nullcontext()
    with expectation:
        checkpoint_retention.pin_checkpoint(tiny, 6, "s/branch")


def test_checkpoint_of_a_child_run_is_preserved(tiny, state):
    """A checkpoint can be protected before the run starts."""
    checkpoint_retention.pin_checkpoint(tiny, 6, "s/branch")
    folder = save_steps(tiny, state, 3, 6, 9, 12)
    checkpoint_retention.pin_checkpoint(tiny, 9, "s/other")
    save_steps(tiny, state, 15, 18)
    assert saved_steps(folder) == [6, 9, 15, 18]
    (folder.with_name("pins") / "6-s-branch").unlink()
    save_steps(tiny, state, 21)
    assert saved_steps(folder) == [9, 18, 21]


def truncate_largest(path: pathlib.Path) -> None:
    """Truncate the largest file of a checkpoint to half."""
    file = max(path.rglob("*"), key=lambda file: file.is_file() and file.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_manifest(path: pathlib.Path) -> None:
    """Change a number of the manifest."""
    file = path / "manifest" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 9.0}))


@pytest.mark.parametrize(
    "damage",
    [
        truncate_largest,
        flip_manifest,
        lambda path: shutil.rmtree(path / "state"),
        lambda path: (path / "state" / "_METADATA").write_text(""),
        lambda path: shutil.rmtree(path / "manifest"),
    ],
)
def test_damaged_checkpoint_replaces_no_intact_one(tiny, state, damage):
    with checkpoints.CheckpointStore(tiny) as store:
        for step in (3, 6, 9):
            store.save(step, state, "hash", [], 0.0)
        assert store.steps() == [6, 9]
        store.save(12, state, "hash", [], 0.0)
        store.steps()
        damage(store.folder / "12")
        store.save(15, state, "hash", [], 0.0)
        assert store.steps() == [9, 12, 15]
        damage(store.folder / "15")
        store.save(18, state, "hash", [], 0.0)
        assert store.steps() == [9, 12, 15, 18]
        damage(store.folder / "18")
    assert restored_step(tiny, state) == 9


def test_interrupted_deletion_leaves_no_incomplete_step(tiny, state, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    folder = save_steps(tiny, state, 3, 6, 9, 12)
    assert saved_steps(folder) == [9, 12]
    deleted = folder / checkpoint_retention.DELETED
    assert {path.name for path in deleted.iterdir()} == {"3", "6"}
    (deleted / "3" / "manifest" / "metadata").unlink()
    with checkpoints.CheckpointStore(tiny, read_only=True) as store:
        assert store.steps() == [9, 12]
    monkeypatch.undo()
    assert deleted.exists() and checkpoints.newest_checkpoint(tiny) == 12
    assert restored_step(tiny, state) == 12
    assert not deleted.exists()


def test_next_save_may_begin_during_a_deletion(tiny, state, monkeypatch):
    """The thread that deletes has created the folder, and the next save removes its contents."""
    local_path = type(epath.Path(tiny.dir))
    replace = local_path.replace

    def remove_and_replace(path, target):
        checkpoint_retention.remove_deleted(path.parent)
        return replace(path, target)

    monkeypatch.setattr(local_path, "replace", remove_and_replace)
    folder = save_steps(tiny, state, 3, 6, 9, 12)
    assert saved_steps(folder) == [9, 12]
    assert not (folder / checkpoint_retention.DELETED).exists()


def test_failed_save_deletes_no_checkpoint(tiny, state, monkeypatch):
    folder = save_steps(tiny, state, 3, 6)
    with checkpoints.CheckpointStore(tiny) as store:

        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store.manager, "save", fail)
        with pytest.raises(OSError, match="No space left on device"):
            store.save(9, state, "hash", [], 0.0)
    assert saved_steps(folder) == [3, 6]


def test_incomplete_save_is_removed_at_the_next_start(tiny, state):
    folder = save_steps(tiny, state, 3)
    (folder / "6.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    assert restored_step(tiny, state) == 3
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["3"]
