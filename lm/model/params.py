"""Parameter trees by path."""

import jax


def flatten_by_path(state: dict) -> dict:
    """Return {path: leaf} of a nested state, in the order of its leaves.

    A path joins the keys by slashes: "params/embed".
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
