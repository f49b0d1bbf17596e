"""Save, verify and restore checkpoints of a train state, on any mesh.

    checkpoints/1200/state/       arrays by path: "params/blocks/mlp/gate", "opt/1/mu/...", "step"
    checkpoints/1200/manifest/    checksums of the arrays and the position of the run
    checkpoints/proofs.jsonl      step and next_loss, the loss of the step after a checkpoint
    checkpoints/deleted/          see checkpointing/checkpoint_retention.py
    damaged/1200/                 a corrupt checkpoint; it is moved there and never deleted
    pins/1200-sweep-branch        name of a run that starts from this checkpoint, which is preserved

A thin layer over orbax's CheckpointManager, which renames the folder of a step to its final name
once the folder is complete. Orbax has no checksums: it would restore a flipped bit without an
error.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from lm.config import run_files, schema
from lm.model import params
from lm.parallel import distributed
from lm.runs import filesystem, json_files, records
from lm.runs.integrity import changed_fields, record_lines, stored_config
from lm.training.checkpointing import (
    checkpoint_manifest,
    checkpoint_retention,
    read_errors,
)

if TYPE_CHECKING:
    import orbax.checkpoint

SPARE_BYTES = 1 << 18  # for the files of a checkpoint other than its arrays


class CorruptCheckpoint(Exception):
    """The files of a checkpoint differ from the saved ones. The message names the difference."""


class CheckpointStore:
    """The checkpoints of one run. Leaving the context waits for a save in progress.

    read_only: True for a run that another process may be training; no file in its folder changes.
    saved_step: step of the last save by this object; -1 before the first save.
    """

    def __init__(self, run: schema.Run, read_only: bool = False):
        self.run_folder = records.run_dir(run)
        self.folder = self.run_folder / run_files.CHECKPOINTS
        self.fields = checkpoint_manifest.expected_fields(run, read_only)
        self.saved_step = -1
        self.is_read_only = read_only
        self._run = run
        self._open_managers = contextlib.ExitStack()
        if not read_only:
            checkpoint_retention.remove_incomplete(self.folder)
            distributed.run_on_primary(lambda: self.folder.mkdir(parents=True, exist_ok=True))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with _write_errors(self.folder):
            self._open_managers.close()
        if not self.is_read_only:
            checkpoint_retention.remove_incomplete(self.folder)

    @functools.cached_property
    def manager(self) -> "orbax.checkpoint.CheckpointManager":
        """Manager of orbax. The first use, in all processes at the same time, opens the folder.

        A new run uses it at its first save: the compilation of the step, whose memory is the
        largest of a small run, comes before.
        """
        import orbax.checkpoint  # its import takes 0.3 s and 25 MiB

        # Orbax logs each error and raises it.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        # By default each device with a copy of an array writes a slice. For a small array,
        # compiling the programs that slice it takes longer than writing its bytes.
        orbax.checkpoint.type_handlers.register_type_handler(
            jax.Array,
            orbax.checkpoint.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**22),
            override=True,
        )
        is_writer = not self.is_read_only
        options = orbax.checkpoint.CheckpointManagerOptions(
            preservation_policy=checkpoint_retention.preservation_rules(self._run),
            todelete_subdir=checkpoint_retention.DELETED if is_writer else None,
            cleanup_tmp_directories=is_writer,
            read_only=self.is_read_only,
            create=False,
            save_interval_steps=1 if is_writer else 0,
        )
        path = self.folder if filesystem.is_remote(self.folder) else self.folder.absolute()
        manager = orbax.checkpoint.CheckpointManager(path, options=options)
        self._open_managers.callback(manager.close)
        return manager

    def save(
        self, step: int, state: dict, batch_hash: str, window: list[dict], seconds: float
    ) -> None:
        """Copy the state and write it in the background.

        batch_hash: hash of the next batch. window: metrics of the steps that are not logged yet.
        seconds: training time so far.

        Raises OSError if the last save failed, if the folder cannot be written, or if its disk has
        no room for this save. In the last two cases the save does not begin, because after a failed
        write the threads of orbax wait ten minutes for each other.
        """
        import orbax.checkpoint

        checkpoint_retention.remove_deleted(self.folder)
        self.check_room(state)
        # The logs must not be older than the weights.
        distributed.run_on_primary(lambda: record_lines.sync_records(self.run_folder))
        arrays = orbax.checkpoint.args.PyTreeSave(params.flatten_by_path(state))
        position = {"batch": batch_hash, "window": window, "seconds": seconds}
        manifest = checkpoint_manifest.build_manifest(
            step, state, position | {"config": self.fields}
        )
        with _write_errors(self.folder):
            self.manager.check_for_errors()
            items = orbax.checkpoint.args.Composite(
                state=arrays, manifest=orbax.checkpoint.args.JsonSave(manifest)
            )
            self.manager.save(step, args=items, force=True)
        self.saved_step = step

    def steps(self) -> list[int]:
        """Wait for pending saves, and return the steps of the complete checkpoints in order.

        A folder that has no checkpoint is not opened. Raises OSError if a save failed.
        """
        is_saved = self.saved_step >= 0
        if not is_saved and not distributed.run_on_primary(lambda: newest_checkpoint(self._run)):
            return []
        manager = self.manager
        with _write_errors(self.folder):
            manager.wait_until_finished()
        return distributed.run_on_primary(lambda: sorted(manager.all_steps(read=True)))

    def restore_newest(self, abstract: dict) -> checkpoint_manifest.RestoredState:
        """Restore the newest intact checkpoint.

        If no checkpoint is intact, the result has step 0 and an empty state. Newer, corrupt
        checkpoints are moved to damaged/. Raises CheckpointError for an intact checkpoint of
        another model or run.
        """
        damage: list[str] = []
        for step in reversed(self.steps()):
            try:
                return dataclasses.replace(self.restore(step, abstract), damage=damage)
            except CorruptCheckpoint as error:
                target = self._quarantine(step)
                damage.append(f"checkpoint {step} is damaged ({error}): moved to {target}")
        return checkpoint_manifest.RestoredState(self.run_folder, damage=damage)

    def restore(self, step: int, abstract: dict) -> checkpoint_manifest.RestoredState:
        """Restore the state of a step with the shardings of `abstract`.

        abstract: a tree of jax.ShapeDtypeStruct with shardings on any mesh, with any of the parts
        "step", "params", "opt". Raises CheckpointError if the checkpoint is missing, or if an
        array differs in shape or type. Raises CorruptCheckpoint if the files were changed.
        """
        saved = self._read_manifest(step, abstract)
        arrays = self._read_arrays(step, saved, params.flatten_by_path(abstract))
        leaves = [arrays[path] for path in params.flatten_by_path(abstract)]
        next_step = distributed.run_on_primary(lambda: self.next_loss(step)) or {}
        return checkpoint_manifest.RestoredState(
            self.run_folder,
            step,
            jax.tree.unflatten(jax.tree.structure(abstract), leaves),
            expected_batch_hash=saved["batch"],
            expected_next_loss=next_step.get("next_loss"),
            next_environment=next_step.get("where", ""),
            seconds=saved["seconds"],
            window=saved["window"],
        )

    def _read_manifest(self, step: int, abstract: dict) -> dict:
        """Read a manifest, and check that it belongs to this step, run and model."""
        if step not in (steps := self.steps()):
            raise checkpoint_manifest.CheckpointError(
                f"{self.folder} has no step {step}: it has {steps}"
            )
        saved = self._read(step, "manifest")
        if saved.get("checksum") != checkpoint_manifest.checksum(saved):
            raise CorruptCheckpoint("the manifest's checksum differs")
        if saved["step"] != step:
            raise CorruptCheckpoint(f"it was saved as step {saved['step']}")
        path = self.folder / str(step)
        checkpoint_manifest.check_format_version(path, saved)
        self._check_fields(path, saved)
        checkpoint_manifest.check_arrays(path, saved["arrays"], abstract)
        return saved

    def _check_fields(self, path: Path, saved: dict) -> None:
        """Raise CheckpointError for other fields or values than changed_fields.py allows."""
        if "config" not in saved:
            return
        defaults = schema.flatten(schema.Run())
        stored, current = defaults | saved["config"], defaults | self.fields
        missing = "no such field"
        changed = [
            f"{field}={stored.get(field, missing)!r} in the checkpoint,"
            f" {current.get(field, missing)!r} in this run"
            for field in changed_fields.find_conflicts(saved["config"], self.fields, saved["step"])
        ]
        if changed:
            raise checkpoint_manifest.CheckpointError(
                f"{path} belongs to another run, {'; '.join(changed)}: move the checkpoint away, or"
                " start from that run with start.run"
            )

    def _read_arrays(self, step: int, saved: dict, abstract: dict) -> dict:
        """Read arrays by path and verify their checksums.

        saved: the manifest. abstract: jax.ShapeDtypeStruct with a sharding by path. Raises
        CorruptCheckpoint if a checksum differs from the manifest.
        """
        arrays = self._read(step, "state", abstract)
        # Orbax returns the abstract array for a path that its metadata lacks.
        missing = [path for path, x in arrays.items() if not isinstance(x, jax.Array)]
        if missing:
            raise CorruptCheckpoint(f"{missing[0]} is missing")
        for path, checksum in checkpoint_manifest.array_checksums(arrays).items():
            if checksum != saved["fingerprints"][path]:
                raise CorruptCheckpoint(f"the numbers of {path} differ from the saved ones")
        return arrays

    def reader(self, step: int, abstract: dict) -> Callable[[str], jax.Array]:
        """Return read(path) -> array, which reads and verifies one array on each call."""
        saved, by_path = self._read_manifest(step, abstract), params.flatten_by_path(abstract)
        return lambda path: self._read_arrays(step, saved, {path: by_path[path]})[path]

    def record_next_loss(self, step: int, loss: float, environment: str) -> None:
        """Record the loss of the step after a checkpoint.

        environment: devices and versions that computed the loss.
        """
        row = {"step": step, "next_loss": loss, "where": environment}
        if distributed.is_primary():
            records.append_record(self.folder / "proofs.jsonl", row)

    def next_loss(self, step: int) -> dict | None:
        """Return the row of `record_next_loss`; None if the run ended before the next step."""
        rows = json_files.read_latest_rows(self.folder / "proofs.jsonl")
        return next((row for row in rows if row["step"] == step), None)

    def _read(self, step: int, item: str, abstract: dict | None = None) -> Any:
        """Read an item of a checkpoint, "state" or "manifest".

        abstract: abstract arrays of the state by path; None for the manifest. Raises OSError if the
        disk, network or memory failed, else CorruptCheckpoint in all processes.
        """
        args, value, reason = _restore_args(item, abstract), None, ""
        try:
            value = self.manager.restore(step, args=args)[item]
        except Exception as error:  # orbax, tensorstore and the disk raise many types
            if failure := read_errors.find_failure(error):
                message = _first_line(failure, 120)
                raise OSError(
                    f"{self.folder / str(step)} cannot be read now ({message}): no file was moved"
                ) from error
            message = _first_line(error, 120)
            reason = f"{item} is not readable: {type(error).__name__}: {message}"
        if reason := distributed.first_error(reason):
            raise CorruptCheckpoint(reason)
        return value

    def check_room(self, state: dict) -> None:
        """Raise OSError if the folder cannot be written, or has no room for a checkpoint.

        state: tree of arrays or abstract arrays.
        """
        leaves = jax.tree.leaves(state)
        n_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) + SPARE_BYTES

        def check() -> None:
            filesystem.check_writable(self.folder)
            if (free := filesystem.free_bytes(self.folder)) < n_bytes:
                message = f"no room for a checkpoint of {n_bytes:,} bytes, {free:,} are free"
                raise OSError(errno.ENOSPC, message, str(self.folder))

        distributed.run_on_primary(check)

    def _quarantine(self, step: int) -> Path:
        """Move a corrupt checkpoint to damaged/ and return its new path."""

        def move() -> str:
            target = self.folder.with_name(run_files.DAMAGED) / str(step)
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(target.name + "-again")
            filesystem.move_dir(self.folder / str(step), target)
            return str(target)

        target = distributed.run_on_primary(move)
        self.manager.reload()
        return filesystem.open_path(target)


def newest_checkpoint(run: schema.Run) -> int:
    """Return the step of the newest checkpoint of a run, intact or not; 0 if the run has none."""
    return changed_fields.newest_step(records.run_dir(run))


def read_checkpoint(
    run: schema.Run, step: int | None, abstract: dict
) -> checkpoint_manifest.RestoredState:
    """Restore a checkpoint of a run that another process may be training.

    step: None is the newest checkpoint. Raises CheckpointError if the checkpoint is missing or
    corrupt.
    """
    with open_readonly(run, step) as (store, step):
        return store.restore(step, abstract)


@contextlib.contextmanager
def open_readonly(run: schema.Run, step: int | None) -> Iterator[tuple[CheckpointStore, int]]:
    """Open the checkpoints of a run that another process may be training. Yield (store, step).

    step: None is the newest checkpoint. Raises CheckpointError if the run has no checkpoint, or if
    the checkpoint that is read in the context is corrupt.
    """
    stored_config.check_format(records.run_dir(run), records.read_facts(records.run_dir(run)))
    folder = records.run_dir(run) / run_files.CHECKPOINTS
    if not folder.is_dir():
        raise checkpoint_manifest.CheckpointError(f"{records.run_dir(run)} has no checkpoint yet")
    with CheckpointStore(run, read_only=True) as store:
        steps = store.steps()
        if not steps:
            raise checkpoint_manifest.CheckpointError(
                f"{records.run_dir(run)} has no checkpoint yet"
            )
        step = steps[-1] if step is None else step
        try:
            yield store, step
        except CorruptCheckpoint as error:
            raise checkpoint_manifest.CheckpointError(
                f"{folder / str(step)} is damaged: {error}"
            ) from error


def _restore_args(item: str, abstract: dict | None) -> "orbax.checkpoint.args.Composite":
    """Return the orbax arguments that read an item, see CheckpointStore._read.

    Each array is read with its type and sharding in `abstract`.
    """
    import orbax.checkpoint

    if abstract is None:
        return orbax.checkpoint.args.Composite(**{item: orbax.checkpoint.args.JsonRestore()})
    arrays = orbax.checkpoint.args.PyTreeRestore(
        item=abstract,
        restore_args=orbax.checkpoint.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    return orbax.checkpoint.args.Composite(**{item: arrays})


@contextlib.contextmanager
def _write_errors(folder: Path):
    """Raise every error of orbax and its threads as an OSError of one line.

    The OSError has the number of a failed system call, such as that of a full disk.
    """
    try:
        yield
    except Exception as error:
        if (number := read_errors.find_error_number(error)) is not None:
            reason = f"a checkpoint could not be written: {os.strerror(number)}"
            raise OSError(number, reason, str(folder)) from error
        message = _first_line(error, 200)
        raise OSError(f"a checkpoint could not be written: {message}") from error


def _first_line(error: BaseException, n_characters: int) -> str:
    return str(error).strip().partition("\n")[0][:n_characters] or type(error).__name__
