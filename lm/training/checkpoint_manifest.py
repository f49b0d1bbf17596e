"""Verify checkpoints: the manifest, and the restored state with its expectations.

The manifest has fingerprints of the arrays and the position of the run:

{"format": 2, "step": 1200, "arrays": {"params/embed": "float32[256, 64]"},
 "fingerprints": {"params/embed": 2837465}, ..., "checksum": of all that}

format 1 is of version 0.1, which has other names of fields.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from lm.model import params
from lm.parallel import distributed

FORMAT = 2
SMALL = 2**24  # bytes that NumPy sums in less time than XLA needs to compile the sums

OTHER_MACHINE_RTOL = 1e-2  # relative tolerance of a loss on other devices or versions


class CheckpointError(ValueError):
    """A checkpoint that is missing, or that this run cannot continue from."""


@dataclasses.dataclass(frozen=True)
class RestoredState:
    """A restored train state, and what the step after it must reproduce.

    folder: of the run. damage: a sentence for each newer checkpoint that was corrupt. seconds:
    training time before the checkpoint. window: metrics of the steps that are not logged yet.
    expected_batch_hash: of the next batch; "" is not compared. expected_next_loss: loss of the
    next step, None is not compared; next_environment: devices and versions that gave it.
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
        """Return the same state for a run that continues with other batches."""
        return dataclasses.replace(self, expected_batch_hash="", expected_next_loss=None)

    def verify_batch(self, batch_hash: str) -> None:
        """Raise CheckpointError in all processes if the next batch differs in one of them."""
        is_changed = self.expected_batch_hash not in ("", batch_hash)
        if distributed.first_error("changed" if is_changed else ""):
            raise CheckpointError(
                f"{self.folder}: the batch after step {self.step} differs from the batch before the"
                " restart: the prepared text has changed. Restore the text, or start a new run"
            )

    def verify_loss(self, loss: float, environment: str) -> None:
        """Raise CheckpointError if the next step does not give the loss that it gave before.

        The loss must be the same to the last bit in the same environment, and agree to a relative
        difference of OTHER_MACHINE_RTOL in another one.
        """
        if self.expected_next_loss is None:
            return
        rtol = 0.0 if environment == self.next_environment else OTHER_MACHINE_RTOL
        if not np.isclose(loss, self.expected_next_loss, rtol=rtol, atol=0.0):
            raise CheckpointError(
                f"{self.folder}: step {self.step + 1} gave loss {loss!r} after the restart and"
                f" {self.expected_next_loss!r} before it: code or text have changed. Choose a new"
                " name"
            )


def build_manifest(step: int, state: dict, position: dict) -> dict:
    """Return the manifest of a state, a JSON object.

    {"format", "step", "arrays": {path: "float32[2, 3]"}, "fingerprints": {path: int}, the keys of
    `position`, "checksum": of all that}
    """
    content = {
        "format": FORMAT,
        "step": step,
        "arrays": array_shapes(state),
        "fingerprints": array_checksums(params.flatten_by_path(state)),
    } | position
    return content | {"checksum": checksum(content)}


def array_checksums(arrays: dict) -> dict[str, int]:
    """Return a 32-bit number for each array, equal on every mesh; a flipped bit changes it.

    It is the sum modulo 2^32 of each element's bits times an odd weight of its position. Integers
    have the same sum in any order, and an odd weight loses no bit. NumPy computes it for small
    arrays on CPU: compiling the sums would take longer than the rest of a small checkpoint.
    """
    is_small = sum(x.nbytes for x in arrays.values()) <= SMALL
    if is_small and all(map(_is_readable_by_numpy, arrays.values())):
        local = {path: np.asarray(x.addressable_data(0)) for path, x in arrays.items()}
        return {path: int(_fingerprint(x)) for path, x in local.items()}
    return {path: int(n) for path, n in jax.device_get(_fingerprints(arrays)).items()}


def _is_readable_by_numpy(x: jax.Array) -> bool:
    """Return True if NumPy can read the array without a copy."""
    return x.is_fully_replicated and all(device.platform == "cpu" for device in x.devices())


@jax.jit
def _fingerprints(arrays: dict) -> dict:
    return {path: _fingerprint(x) for path, x in arrays.items()}


def _fingerprint(x: jax.Array | np.ndarray) -> jax.Array | np.uint32:
    """Return the fingerprint of an array of JAX or NumPy, computed by that library."""
    xp = x.__array_namespace__()
    bits = x.view({1: xp.uint8, 2: xp.uint16, 4: xp.uint32}[x.dtype.itemsize]).astype(xp.uint32)
    position = xp.zeros(x.shape, xp.uint32)
    for axis, size in enumerate(x.shape):
        shape = [-1 if axis == i else 1 for i in range(x.ndim)]
        position = position * xp.uint32(size) + xp.arange(size, dtype=xp.uint32).reshape(shape)
    weight = (position * xp.uint32(0x9E3779B1)) | xp.uint32(1)
    return xp.sum(bits * weight, dtype=xp.uint32)


def array_shapes(state: dict) -> dict[str, str]:
    """Return "float32[2, 3]", type and shape, of each array by its path."""
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in params.flatten_by_path(state).items()
    }


def checksum(manifest: dict) -> str:
    """Return the SHA-256 of a manifest without its own checksum."""
    body = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
