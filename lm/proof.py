"""What a checkpoint must prove: the numbers of each array, and where the run stood.

{"format": 1, "step": 1200, "arrays": {"params/embed": "float32[256, 64]"},
 "fingerprints": {"params/embed": 2837465}, ..., "checksum": of all that}
"""

import hashlib
import json

import jax
import jax.numpy as jnp

FORMAT = 1


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
    add up to the same in any order, and an odd weight loses no bit.
    """
    return {path: int(n) for path, n in jax.device_get(_fingerprints(arrays)).items()}


@jax.jit
def _fingerprints(arrays: dict) -> dict:
    return {path: _fingerprint(x) for path, x in arrays.items()}


def _fingerprint(x: jax.Array) -> jax.Array:
    sized = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, sized).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    weight = (place * jnp.uint32(0x9E3779B1)) | jnp.uint32(1)
    return jnp.sum(bits * weight, dtype=jnp.uint32)


def shapes(state: dict) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in by_path(state).items()}


def checksum(said: dict) -> str:
    body = {key: value for key, value in said.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
