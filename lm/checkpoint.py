"""Checkpoints of a train state: save in the background, restore the newest on any mesh.

One thin layer over orbax's CheckpointManager. A checkpoint is a folder named after its step; it
becomes visible under that name only when it is whole: a crash while saving leaves the one before.

    checkpoints/1200/state/       arrays by path: "params/blocks/mlp/gate", "opt/1/mu/...", "step"
    checkpoints/1200/manifest/    shape and dtype of each, to compare before anything is read
"""

import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from lm import config, records

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports each file it touches


class Checkpoints:
    """The checkpoints of one run; a context manager, so that what is being saved is finished."""

    def __init__(self, run: config.Run):
        self.folder = records.folder(run) / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,  # one more than needed, should the newest not be readable
            keep_period=run.keep_every or None,
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(Path(self.folder).absolute(), options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.manager.close()

    def save(self, step: int, state: dict) -> None:
        """Copies the state and writes it in the background; fails loudly if the last save did."""
        self.manager.check_for_errors()
        arrays = ocp.args.StandardSave(by_path(state))
        manifest = ocp.args.JsonSave(_manifest(state))
        self.manager.save(
            step, args=ocp.args.Composite(state=arrays, manifest=manifest), force=True
        )

    def newest(self) -> int | None:
        """The step of the newest whole checkpoint on disk."""
        return max(self.manager.all_steps(read=True), default=None)

    def restore(self, step: int, abstract: dict) -> dict:
        """The state at `step`, split as `abstract` says; ValueError names an array that differs.

        abstract: a tree of jax.ShapeDtypeStruct with shardings; any mesh will do.
        """
        if step not in (steps := sorted(self.manager.all_steps(read=True))):
            raise ValueError(f"{self.folder} has no step {step}: it has {steps}")
        saved = self._read(step, manifest=ocp.args.JsonRestore())["manifest"]
        needed = _manifest(abstract)
        for path in sorted(saved.keys() | needed.keys()):
            if saved.get(path) != needed.get(path):
                want = needed.get(path, "nothing of that name")
                raise ValueError(
                    f"{self.folder / str(step)}: {path} is {saved.get(path, 'missing')}, the run"
                    f" needs {want}: use the config it was saved with"
                )
        arrays = self._read(step, state=ocp.args.StandardRestore(by_path(abstract)))["state"]
        return jax.tree.unflatten(
            jax.tree.structure(abstract), [arrays[p] for p in by_path(abstract)]
        )

    def _read(self, step: int, **items):
        return self.manager.restore(step, args=ocp.args.Composite(**items))


def by_path(state: dict) -> dict:
    """A nested state as one flat dict, "params/embed" -> array, in the order of its leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _manifest(state: dict) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in by_path(state).items()}
