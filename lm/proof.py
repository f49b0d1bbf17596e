"""What a checkpoint must prove: the numbers of each array, and where the run stood.

{"format": 1, "step": 1200, "arrays": {"params/embed": "float32[256, 64]"},
 "fingerprints": {"params/embed": 2837465}, ..., "checksum": of all that}
"""

import hashlib
import json

import jax
import numpy as np

FORMAT = 1
SMALL = 2**24  # bytes that NumPy adds up sooner than XLA compiles the sums


def manifest(step: int, state: dict, position: dict) -> dict:
    """What a checkpoint must prove, and where the run stood; JSON.

    {"format", "step", "arrays": {path: "float32[2, 3]"}, "fingerprints": {path: int}, the keys of
    `position`, "checksum": of all that}
    """
    said = {
        "format": FORMAT,
        "step": step,
        "arrays": shapes(state),
        "fingerprints": fingerprints(by_path(state)),
    } | position
    return said | {"checksum": checksum(said)}


def by_path(state: dict) -> dict:
    """A nested state as one flat dict, "params/embed" -> array, in the order of its leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def fingerprints(arrays: dict) -> dict[str, int]:
    """A 32-bit number for each array, the same on every mesh; a flipped bit always changes it.

    The sum, modulo 2^32, of each element's bits times an odd weight of its position: whole numbers
    add up to the same in any order, and an odd weight loses no bit. Few and small arrays of a CPU
    are read where they are: to compile the sums takes longer than all else of a small checkpoint.
    """
    if sum(x.nbytes for x in arrays.values()) <= SMALL and all(map(_is_here, arrays.values())):
        whole = {path: np.asarray(x.addressable_data(0)) for path, x in arrays.items()}
        return {path: int(_fingerprint(x)) for path, x in whole.items()}
    return {path: int(n) for path, n in jax.device_get(_fingerprints(arrays)).items()}


def _is_here(x: jax.Array) -> bool:
    """Whether NumPy can read all of it without a copy."""
    return x.is_fully_replicated and all(one.platform == "cpu" for one in x.devices())


@jax.jit
def _fingerprints(arrays: dict) -> dict:
    return {path: _fingerprint(x) for path, x in arrays.items()}


def _fingerprint(x: jax.Array | np.ndarray) -> jax.Array | np.uint32:
    """Of an array of JAX or of NumPy, by its own functions."""
    xp = x.__array_namespace__()
    bits = x.view({1: xp.uint8, 2: xp.uint16, 4: xp.uint32}[x.dtype.itemsize]).astype(xp.uint32)
    place = xp.zeros(x.shape, xp.uint32)
    for axis, size in enumerate(x.shape):
        along = [-1 if axis == one else 1 for one in range(x.ndim)]
        place = place * xp.uint32(size) + xp.arange(size, dtype=xp.uint32).reshape(along)
    weight = (place * xp.uint32(0x9E3779B1)) | xp.uint32(1)
    return xp.sum(bits * weight, dtype=xp.uint32)


def shapes(state: dict) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in by_path(state).items()}


def checksum(said: dict) -> str:
    body = {key: value for key, value in said.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
