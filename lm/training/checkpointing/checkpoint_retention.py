"""Retention of checkpoints: which ones are preserved, and the deletion of the others.

The two newest intact checkpoints are preserved, with all newer ones. Further checkpoints are
preserved for permanent_checkpoint_interval, keep_best, eval.patience, and for runs that start from
them. A checkpoint is deleted after a newer one is complete, in two steps:

    checkpoints/800  ->  checkpoints/deleted/800        a rename, which is atomic on a local disk
    checkpoints/deleted/800                             is removed, now or at the next start

An interrupted deletion thus leaves no incomplete folder with the name of a step. A bucket has no
rename: there the checksums of the manifest detect an incomplete checkpoint.
"""

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm.config import run_files, schema
from lm.parallel import distributed
from lm.runs import filesystem, records
from lm.training.checkpointing import checkpoint_manifest

if TYPE_CHECKING:
    from orbax.checkpoint.checkpoint_managers import preservation_policy

DELETED = "deleted"  # folder in checkpoints/ of checkpoints that are being deleted
INCOMPLETE = "*.orbax-checkpoint-tmp*"  # folders in checkpoints/ of interrupted saves
MAX_NAME_BYTES = 128  # of a run in the name of its pin; the name of a file has at most 255 bytes
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)  # errors of a folder that may not change
N_INTACT = 2  # number of intact checkpoints that are preserved, because the newest may be damaged


def preservation_rules(run: schema.Run) -> "preservation_policy.PreservationPolicy":
    """Return the policy that selects the checkpoints of a run that are not deleted.

    The classes of this file have the methods of PreservationPolicy, which is a protocol.
    """
    from orbax.checkpoint.checkpoint_managers import preservation_policy  # see CheckpointStore

    folder = records.run_dir(run)
    policies: list = [
        _NewestIntact(folder / run_files.CHECKPOINTS),
        _Pinned(folder / run_files.PINS),
    ]
    if run.permanent_checkpoint_interval:
        policies.append(preservation_policy.EveryNSteps(run.permanent_checkpoint_interval))
    if run.keep_best or run.eval.patience:
        policies.append(_Best(folder))
    return preservation_policy.AnyPreservationPolicy(policies)


def remove_deleted(folder: Path) -> None:
    """Remove the checkpoints in `folder` that were selected for deletion, if any.

    The folder DELETED remains: a thread of orbax may have created it to move a checkpoint there.
    """
    if distributed.is_primary() and not filesystem.is_remote(folder):
        for path in filesystem.list_dir(folder / DELETED):
            shutil.rmtree(path, ignore_errors=True)


def remove_incomplete(folder: Path) -> None:
    """Remove the folders of interrupted saves and deletions. No save may be in progress.

    Orbax leaves the folder of a save that was interrupted before its first file was complete.
    """
    if distributed.is_primary() and not filesystem.is_remote(folder):
        for path in (folder / DELETED, *folder.glob(INCOMPLETE)):
            shutil.rmtree(path, ignore_errors=True)


def pin_checkpoint(run: schema.Run, step: int, by: str) -> None:
    """Preserve a checkpoint, which need not exist yet, for another run. No device is used.

    by: name of the run that starts from the checkpoint. The name of the file has a hash in place of
    a long name. Raises OSError if the pin cannot be written to a folder that is not read-only.
    """
    name = by.replace("/", "-")
    if len(name.encode()) > MAX_NAME_BYTES:
        name = hashlib.sha256(by.encode()).hexdigest()
    try:
        filesystem.write_file(records.run_dir(run) / run_files.PINS / f"{step}-{name}", by + "\n")
    except OSError as error:
        if error.errno not in READ_ONLY:  # no process deletes checkpoints of a read-only folder
            raise


class _NewestIntact:
    """Preserve the N_INTACT newest intact checkpoints and all newer ones.

    sizes: bytes of each checkpoint when it was complete. They are known for the checkpoints that
    this process has seen complete.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.sizes: dict[int, int] = {}

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        """Return one bool per checkpoint, in order of steps. The last one is being written."""
        n_intact, is_preserved = 0, []
        for checkpoint in reversed(checkpoints):
            is_preserved.append(n_intact < N_INTACT)
            is_newest = checkpoint is checkpoints[-1]
            if n_intact < N_INTACT:
                n_intact += is_newest or self._is_intact(checkpoint.step)
        return is_preserved[::-1]

    def _is_intact(self, step: int) -> bool:
        """Return True unless a file is missing, has another size, or the manifest is damaged."""
        path = self.folder / str(step)
        try:
            manifest = json.loads((path / "manifest" / "metadata").read_text())
            if manifest["checksum"] != checkpoint_manifest.checksum(manifest):
                return False
            if filesystem.is_remote(path):  # a listing of every object is slow
                return True
            if not (path / "state" / "_METADATA").stat().st_size:
                return False
            n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            return self.sizes.setdefault(step, n_bytes) == n_bytes
        except (OSError, ValueError, KeyError, TypeError):
            return False


class _Pinned:
    """Preserve the checkpoints that other runs start from."""

    def __init__(self, pins: Path):
        self.pins = pins

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        names = [path.name for path in filesystem.list_dir(self.pins)]
        steps = {name.partition("-")[0] for name in names}
        return [str(checkpoint.step) in steps for checkpoint in checkpoints]


class _Best:
    """Preserve the checkpoint with the lowest held-out loss in evals.jsonl.

    The loss is recorded after the save, before two more checkpoints are saved.
    """

    def __init__(self, run_folder: Path):
        self.run_folder = run_folder

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        steps = {checkpoint.step for checkpoint in checkpoints}
        rows = [row for row in records.load_evals(self.run_folder) if row["step"] in steps]
        losses = {row["step"]: float(row["loss"]) for row in rows if "loss" in row}
        finite = {step: loss for step, loss in losses.items() if not math.isnan(loss)}
        best_step = min(finite, key=lambda step: finite[step], default=-1)
        return [checkpoint.step == best_step for checkpoint in checkpoints]
