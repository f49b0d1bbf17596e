"""Manifest of a checkpoint, and verification of a restored state.

The manifest is a JSON object with the checksums of the arrays and the position of the run:

{"format_version": 2, "step": 1200, "arrays": {"params/embed": "float32[256, 64]"},
 "fingerprints": {"params/embed": 2837465}, ..., "checksum": SHA-256 of the other keys}

A change that an older reader would misread increases FORMAT_VERSION. In every version, the key
format_version exists and the checksum covers all other keys. A reader opens its own version and
older versions from OLDEST_READABLE on, and `check_format_version` rejects newer ones.

Version 1 was written by lm-scaling 0.1, which has other field names. lm-scaling 0.2.0 stored
version 2 with the key "format".
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from lm.config import schema
from lm.model import params
from lm.parallel import distributed
from lm.runs import records
from lm.runs.integrity import record_checksums, stored_config

FORMAT_VERSION = 2
OLDEST_READABLE = 2  # oldest version that this version opens
SMALL_BYTES = 2**24  # that NumPy sums in less time than XLA needs to compile the sums


class CheckpointError(ValueError):
    """The checkpoint is missing, or this run cannot continue from it."""


@dataclasses.dataclass(frozen=True)
class RestoredState:
    """A restored train state, with the batch and the loss that the next step must reproduce.

    folder               run directory
    step, state          number of completed steps, and the train state or parts of it
    expected_batch_hash  hash of the next batch; "" is not compared
    expected_next_loss   loss of the next step, see resume_check.py; None is not compared
    next_environment     devices and versions that computed expected_next_loss
    seconds              training time before the checkpoint
    window               metrics of the steps that are not logged yet
    damage               a message for each newer checkpoint that was corrupt
    """

    folder: Path
    step: int = 0
    state: dict = dataclasses.field(default_factory=dict)
    expected_batch_hash: str = ""
    expected_next_loss: float | None = None
    next_environment: str = ""
    seconds: float = 0.0
    window: list[dict] = dataclasses.field(default_factory=list)
    damage: list[str] = dataclasses.field(default_factory=list)

    def without_expectations(self) -> "RestoredState":
        """Return the same state without expectations, to continue with other batches."""
        return dataclasses.replace(self, expected_batch_hash="", expected_next_loss=None)

    def verify_batch(self, batch_hash: str) -> None:
        """Raise CheckpointError in all processes if the next batch differs in one of them."""
        is_changed = self.expected_batch_hash not in ("", batch_hash)
        if distributed.first_error("changed" if is_changed else ""):
            raise CheckpointError(
                f"{self.folder}: the batch after step {self.step} differs from the batch before the"
                " restart: the prepared text has changed. Restore the text, or start a new run"
            )


def build_manifest(step: int, state: dict, position: dict) -> dict:
    """Return the manifest of a state, a JSON object.

    position: further keys with the position of the run, see CheckpointStore.save.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "arrays": array_shapes(state),
        "fingerprints": array_checksums(params.flatten_by_path(state)),
    } | position
    return content | {"checksum": checksum(content)}


def check_format_version(path: Path, saved: dict) -> None:
    """Raise CheckpointError unless this version can read the manifest of a checkpoint."""
    version = saved.get("format_version", saved.get("format"))
    if type(version) is int and OLDEST_READABLE <= version <= FORMAT_VERSION:
        return
    if type(version) is int and version > FORMAT_VERSION:
        problem, remedy = "a newer version of lm-scaling", "update lm-scaling"
    else:
        problem, remedy = "version 0.1", "use version 0.1, or start a new run"
    raise CheckpointError(
        f"{path}: format_version={version} was written by {problem}, this version reads"
        f" {OLDEST_READABLE} to {FORMAT_VERSION}: {remedy}"
    )


def array_checksums(arrays: dict) -> dict[str, int]:
    """Return a 32-bit checksum of each array by its path.

    The checksum is the sum modulo 2^32 of each element's bits times an odd weight of its position.
    It is equal on every mesh, because the sum of integers does not depend on their order. A flipped
    bit changes it, because an odd weight preserves every bit. NumPy computes the checksums of small
    arrays on CPU: compiling the sums would take longer than the rest of a small checkpoint.
    """
    is_small = sum(x.nbytes for x in arrays.values()) <= SMALL_BYTES
    if is_small and all(map(_is_readable_by_numpy, arrays.values())):
        local = {path: np.asarray(x.addressable_data(0)) for path, x in arrays.items()}
        return {path: int(_array_checksum(x)) for path, x in local.items()}
    return {path: int(n) for path, n in jax.device_get(_compiled_checksums(arrays)).items()}


def _is_readable_by_numpy(x: jax.Array) -> bool:
    """Return True if NumPy can read the array without a copy."""
    return x.is_fully_replicated and all(device.platform == "cpu" for device in x.devices())


@jax.jit
def _compiled_checksums(arrays: dict) -> dict:
    return {path: _array_checksum(x) for path, x in arrays.items()}


def _array_checksum(x: jax.Array | np.ndarray) -> jax.Array | np.uint32:
    """Return the checksum of an array of JAX or NumPy, computed by that library."""
    xp = x.__array_namespace__()
    bits = x.view({1: xp.uint8, 2: xp.uint16, 4: xp.uint32}[x.dtype.itemsize]).astype(xp.uint32)
    position = xp.zeros(x.shape, xp.uint32)
    for axis, size in enumerate(x.shape):
        shape = [-1 if axis == i else 1 for i in range(x.ndim)]
        position = position * xp.uint32(size) + xp.arange(size, dtype=xp.uint32).reshape(shape)
    weight = (position * xp.uint32(0x9E3779B1)) | xp.uint32(1)
    return xp.sum(bits * weight, dtype=xp.uint32)


def array_shapes(state: dict) -> dict[str, str]:
    """Return {path: "dtype[shape]"} of each array of a nested dict, such as "float32[2, 3]"."""
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in params.flatten_by_path(state).items()
    }


def expected_fields(run: schema.Run, is_stored: bool) -> dict:
    """Return the config fields with which the checkpoints of a run must have been saved.

    is_stored: use the config of the run directory, if there is one. A command may change its config
    before it restores weights, for example to evaluate other text.
    """
    file = records.run_dir(run) / "config.json"
    if is_stored and file.exists():
        facts = records.read_facts(file.parent)
        stored_run = stored_config.load_config(file.parent, facts, is_used=False)[0]
        return records.result_fields(stored_run)
    return records.result_fields(run)


def check_arrays(path: Path, saved: dict[str, str], abstract: dict) -> None:
    """Raise CheckpointError if a saved array of the parts of `abstract` has another shape.

    Moments of router biases, which earlier versions saved, are ignored.
    """
    needed = array_shapes(abstract)
    parts = tuple(f"{part}/" for part in abstract)
    in_parts = {name for name in saved if f"{name}/".startswith(parts)}
    in_parts -= {n for n in saved if n.startswith("opt/") and n.endswith("/blocks/mlp/bias")}
    for name in sorted(in_parts | needed.keys()):
        if saved.get(name) != needed.get(name):
            raise CheckpointError(
                f"{path}: {name} is {saved.get(name) or 'missing'}, the run needs"
                f" {needed.get(name) or 'no such array'}: use the config it was saved with"
            )


def checksum(manifest: dict) -> str:
    """Return the SHA-256 of a manifest without its own checksum."""
    return record_checksums.object_sha256(manifest, "checksum")
