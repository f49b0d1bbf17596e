"""Checkpoints of a train state: saved in the background, proved when read, restored on any mesh.

    checkpoints/1200/state/       arrays by path: "params/blocks/mlp/gate", "opt/1/mu/...", "step"
    checkpoints/1200/manifest/    what it must prove to be: see lm/proof.py
    checkpoints/proofs.jsonl      step, next_loss: what the step after a checkpoint must give again
    damaged/1200/                 what could not prove itself: set aside, never deleted
    pins/1200-sweep-branch        a run that starts from it: it is kept

One thin layer over orbax's CheckpointManager, whose folders become visible under their step only
when they are whole. Orbax has no checksums of its own: a flipped bit would be restored as it is.
"""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from lm import config, hosts, proof, records, storage

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax says it all, and raises it as well
SPARE_BYTES = 1 << 18  # of a checkpoint besides its arrays
# What tensorstore says of a disk, a network or a memory that is at fault, and not the files.
ELSEWHERE = (
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "DEADLINE",
    "RESOURCE_EXHAUSTED",
)

# Of an array that every device has, each writes a slice: of a small one, the programs that cut it
# take longer to compile than its bytes to write.
ocp.type_handlers.register_type_handler(
    jax.Array,
    ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**22),
    override=True,
)


class Damaged(Exception):
    """A checkpoint that does not prove to be what was saved; str() says what differs."""


class Checkpoints:
    """The checkpoints of one run; a context manager, so that what is being saved is finished.

    read_only: of a run that another process may be training; nothing in its folder is touched.
    """

    def __init__(self, run: config.Run, read_only: bool = False):
        self.folder = records.folder(run) / "checkpoints"
        self.knobs = records.knobs(run)
        # Two: the newest may be damaged.
        kept: list = [policy.LatestN(2), _Pinned(self.folder.with_name("pins"))]
        if run.keep_every:
            kept.append(policy.EveryNSteps(run.keep_every))
        if run.keep_best or run.eval.patience:
            kept.append(
                policy.BestN(
                    get_metric_fn=lambda metrics: metrics["loss"],
                    reverse=True,  # BestN keeps the last of the order
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
            save_interval_steps=0 if read_only else 1,
        )
        here = self.folder if storage.is_remote(self.folder) else self.folder.absolute()
        self.manager = ocp.CheckpointManager(here, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with _written():
            self.manager.close()

    def save(
        self,
        step: int,
        state: dict,
        batch: str,
        window: list[dict],
        seconds: float,
        loss: float | None = None,
    ) -> None:
        """Copies the state and writes it in the background.

        OSError if the last save failed, or if the folder cannot be written or its disk has no room
        for this one, which then is not begun: where it fails later, orbax's threads wait ten
        minutes for each other. batch: hash of what the next step will take; window: metrics of the
        steps that are not logged yet; seconds: of training so far; loss: held-out, if evaluated at
        this step.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE_BYTES
        hosts.first(lambda: self._check_room(needed))
        arrays = ocp.args.PyTreeSave(proof.by_path(state))
        position = {"batch": batch, "window": window, "seconds": seconds}
        said = proof.manifest(step, state, position | {"config": self.knobs})
        with _written():
            self.manager.check_for_errors()
            items = ocp.args.Composite(state=arrays, manifest=ocp.args.JsonSave(said))
            metrics = None if loss is None else {"loss": loss}
            self.manager.save(step, args=items, metrics=metrics, force=True)

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints on disk, oldest first, that being saved included."""
        self.manager.wait_until_finished()
        return hosts.first(lambda: sorted(self.manager.all_steps(read=True)))

    def restore_newest(self, abstract: dict) -> tuple[int, dict, dict, list[str]]:
        """(step, state, manifest, reasons): the newest checkpoint that proves itself.

        Newer ones that do not are set aside, with the reason. Step 0 and an empty state if none is
        left. ValueError where a checkpoint is whole and of another model.
        """
        reasons = []
        for step in reversed(self.steps()):
            try:
                state, said = self.restore(step, abstract)
                return step, state, said, reasons
            except Damaged as error:
                place = self._set_aside(step)
                reasons.append(f"checkpoint {step} is damaged ({error}): set aside in {place}")
        return 0, {}, {}, reasons

    def restore(self, step: int, abstract: dict) -> tuple[dict, dict]:
        """The state at `step`, split as `abstract` says, and its manifest.

        abstract: a tree of jax.ShapeDtypeStruct with shardings; any mesh will do, and any of the
        parts "step", "params", "opt". The manifest also has "next": see `next_loss`. ValueError
        names an array that differs in shape or type; Damaged if the files are not what was saved.
        """
        saved = self._manifest(step, abstract)
        arrays = self._proved(step, saved, proof.by_path(abstract))
        leaves = [arrays[path] for path in proof.by_path(abstract)]
        state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
        return state, saved | {"next": hosts.first(lambda: self.next_loss(step))}

    def _manifest(self, step: int, abstract: dict) -> dict:
        """What a checkpoint says of itself, if it is of this run and of such arrays."""
        if step not in (steps := self.steps()):
            raise ValueError(f"{self.folder} has no step {step}: it has {steps}")
        saved = self._read(step, "manifest", ocp.args.JsonRestore())
        if saved.get("checksum") != proof.checksum(saved):
            raise Damaged("the manifest's checksum differs")
        if saved["step"] != step:
            raise Damaged(f"it was saved as step {saved['step']}")
        known = config.field_types(config.Run)
        changed = [
            f"{knob}={value!r} there, {self.knobs.get(knob, 'no such field')!r} here"
            for knob, value in saved.get("config", {}).items()
            if knob not in known or (knob in self.knobs and self.knobs[knob] != value)
        ]
        if changed:
            raise ValueError(
                f"{self.folder / str(step)} is of another run, {'; '.join(changed)}: move it away,"
                " or start from that run by start.run"
            )
        needed = proof.shapes(abstract)
        parts = tuple(f"{part}/" for part in abstract)
        there = {path for path in saved["arrays"] if f"{path}/".startswith(parts)}
        for path in sorted(there | needed.keys()):
            have, want = saved["arrays"].get(path), needed.get(path)
            if have != want:
                raise ValueError(
                    f"{self.folder / str(step)}: {path} is {have or 'missing'}, the run needs"
                    f" {want or 'nothing of that name'}: use the config it was saved with"
                )
        return saved

    def _proved(self, step: int, saved: dict, wanted: dict) -> dict:
        """Arrays by path, as `wanted` (abstract, by path) says; Damaged if they are not those."""
        arrays = self._read(step, "state", _restoring(wanted))
        for path, number in proof.fingerprints(arrays).items():
            if number != saved["fingerprints"][path]:
                raise Damaged(f"the numbers of {path} differ from what was saved")
        return arrays

    def reader(self, step: int, abstract: dict) -> Callable[[str], jax.Array]:
        """path -> array, as `restore` would give it, read and proved each time it is asked for."""
        saved, wanted = self._manifest(step, abstract), proof.by_path(abstract)
        return lambda path: self._proved(step, saved, {path: wanted[path]})[path]

    def record_next_loss(self, step: int, loss: float, where: str) -> None:
        """Writes down what the step after a checkpoint gave, and on which devices and versions."""
        row = {"step": step, "next_loss": loss, "where": where}
        records.append(self.folder / "proofs.jsonl", row)

    def next_loss(self, step: int) -> dict | None:
        """What was written down for a checkpoint, if the run lived to see it."""
        rows = records.lines(self.folder / "proofs.jsonl")
        return next((row for row in rows if row["step"] == step), None)

    def _read(self, step: int, item: str, how) -> Any:
        found, reason = None, ""
        try:
            found = self.manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]
        except Exception as error:  # whatever orbax, tensorstore or the disk make of bad files
            words = str(error).strip().partition("\n")[0][:120]
            if _is_elsewhere(error):
                words = f"cannot be read now ({words}): nothing was set aside"
                raise OSError(f"{self.folder / str(step)} {words}") from error
            reason = f"{item} is not readable: {type(error).__name__}: {words}"
        if reason := hosts.worst(reason):
            raise Damaged(reason)
        return found

    def _check_room(self, needed: int) -> None:
        storage.probe(self.folder)
        if (free := storage.free_bytes(self.folder)) < needed:
            words = f"no room for a checkpoint of {needed:,} bytes, {free:,} are free"
            raise OSError(errno.ENOSPC, words, str(self.folder))
        records.sync(self.folder.parent)  # what is logged must not be younger than the weights

    def _set_aside(self, step: int) -> Path:
        def move() -> str:
            place = self.folder.with_name("damaged") / str(step)
            place.parent.mkdir(exist_ok=True)
            while place.exists():
                place = place.with_name(place.name + "-again")
            storage.move(self.folder / str(step), place)
            return str(place)

        place = hosts.first(move)
        self.manager.reload()
        return storage.at(place)


def newest(run: config.Run) -> int:
    """Step of the newest checkpoint that a run has, whether it proves itself or not; 0: none."""
    names = (path.name for path in storage.listed(records.folder(run) / "checkpoints"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def read(run: config.Run, step: int | None, abstract: dict) -> tuple[dict, dict]:
    """`Checkpoints.restore` of a run that may be training elsewhere; step None: the newest.

    ValueError if it has no such checkpoint, or one that does not prove itself.
    """
    with opened(run, step) as (checkpoints, step):
        return checkpoints.restore(step, abstract)


@contextlib.contextmanager
def opened(run: config.Run, step: int | None) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a run that may be training elsewhere, and the step (None: the newest)."""
    folder = records.folder(run) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"{records.folder(run)} has no checkpoint yet")
    with Checkpoints(run, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise ValueError(f"{records.folder(run)} has no checkpoint yet")
        step = steps[-1] if step is None else step
        try:
            yield checkpoints, step
        except Damaged as error:
            raise ValueError(f"{folder / str(step)} is damaged: {error}") from error


def _restoring(abstract: dict) -> ocp.args.PyTreeRestore:
    """Those of the saved arrays that `abstract` names, each with its type and sharding."""
    how = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=how, partial_restore=True)


class _Pinned(policy.PreservationPolicy):
    """Keeps the checkpoints that other runs start from."""

    def __init__(self, pins: Path):
        self.pins = pins

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        names = [path.name for path in storage.listed(self.pins)]
        steps = {name.partition("-")[0] for name in names}
        return [str(one.step) in steps for one in checkpoints]


def pin(run: config.Run, step: int, by: str) -> None:
    """Keeps a checkpoint of a run, if need be of one that has not begun, for the run named `by`."""
    if not records.writes:
        return
    with contextlib.suppress(OSError):  # a folder that is only read loses nothing
        storage.write(records.folder(run) / "pins" / f"{step}-{by.replace('/', '-')}", by + "\n")


def _is_elsewhere(error: Exception) -> bool:
    """Whether the files may well be good, and something else failed."""
    if isinstance(error, OSError):
        return not isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
    return isinstance(error, MemoryError) or any(word in str(error) for word in ELSEWHERE)


@contextlib.contextmanager
def _written():
    """Whatever orbax and its threads raise of a write that failed, as an OSError of one line."""
    try:
        yield
    except Exception as error:
        words = str(error).strip().partition("\n")[0][:200]
        raise OSError(f"a checkpoint could not be written: {words}") from error
