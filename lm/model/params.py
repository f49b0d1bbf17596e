import jax


def flatten_by_path(state: dict) -> dict:
    """Return a nested state as a flat dict, "params/embed" -> array, in the order of its leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
