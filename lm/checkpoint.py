"""Checkpoints of a train state: save in the background, restore the newest on any mesh.

One thin layer over orbax's CheckpointManager. A checkpoint is a folder named after its step; it
becomes visible under that name only when it is whole, so a crash while saving leaves the one before.
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
        self.manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def newest(self) -> int | None:
        """The step of the newest whole checkpoint on disk."""
        return max(self.manager.all_steps(read=True), default=None)

    def restore(self, step: int, abstract: dict) -> dict:
        """The state at `step`, split as `abstract` says; ValueError naming the first leaf that differs.

        abstract: a tree of jax.ShapeDtypeStruct with shardings; any mesh will do.
        """
        saved = self.manager.item_metadata(step)
        have = {path: tuple(leaf.shape) for path, leaf in _leaves(saved)}
        want = {path: tuple(leaf.shape) for path, leaf in _leaves(abstract)}
        for path in sorted(have.keys() | want.keys()):
            if have.get(path) != want.get(path):
                raise ValueError(
                    f"{self.folder / str(step)}: {path} has shape {have.get(path)}, the run needs"
                    f" {want.get(path)}: restore it with the config it was saved with"
                )
        return self.manager.restore(step, args=ocp.args.StandardRestore(abstract))


def _leaves(tree) -> list:
    """(path, leaf) pairs; paths are alike for a live state and for what orbax read of a saved one."""
    return [
        ("/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
