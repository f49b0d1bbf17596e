"""The table of logical axes and the mesh axes that split them, and checks that sizes divide.

An array has one logical name per axis ("embed", "heads", ...). RULES lists the mesh axes that split
each name. A run may replace rows of it (mesh.rules). This file does not import JAX, so that an
impossible mesh is refused before anything starts.
"""

import math

# Devices along the last axis are nearest to each other: axes with more communication come last.
AXES = ("data", "fsdp", "expert", "sequence", "tensor")
RULES = {
    # logical name   mesh axes that split it
    "batch":         ("data", "fsdp", "expert"),
    "length":        ("sequence",),
    "layers":        (),
    "embed":         ("fsdp",),
    "heads":         ("tensor",),
    "kv_heads":      ("tensor",),
    "d_head":        (),
    "mlp":           ("tensor",),
    "vocab":         ("tensor",),
    "positions":     (),
    "experts":       ("expert",),
    "router":        (),
    "balance":       (),
    "rank":          (),
    "norm":          (),
}  # fmt: skip
FIXED = ("batch", "length")  # no run can change these rows: the loading of batches follows them
# The field with the size of an axis, and fields that divide each device's part further.
SIZES = {
    "batch":    ("data.batch_size", ("optim.accumulate",)),
    "length":   ("data.seq_len", ("model.attention_blocks", "model.loss_chunks")),
    "embed":    ("model.d_model", ()),
    "heads":    ("model.n_heads", ()),
    "kv_heads": ("model.n_kv_heads", ()),
    "d_head":   ("model.d_head", ()),
    "mlp":      ("model.d_ff", ()),
    "vocab":    ("model.vocab_size", ()),
    "positions": ("model.max_positions", ()),
    "layers":   ("model.n_layers", ()),
    "experts":  ("model.n_experts", ()),
}  # fmt: skip


def rules(changes: dict) -> dict[str, tuple[str, ...]]:
    """Return RULES with the rows of mesh.rules, each a mesh axis, a list of them, or []."""
    return RULES | {n: (a,) if isinstance(a, str) else tuple(a) for n, a in changes.items()}


def check(knobs: dict, sizes: dict[str, int]) -> None:
    """Raise ValueError with field, value, rule and remedy if the mesh does not fit the run.

    knobs: config.flatten(run). sizes: number of devices along each of AXES.
    """
    changes = knobs["mesh.rules"]
    for name, axes in changes.items():
        row = f"mesh.rules[{name!r}]={axes!r}"
        if name not in RULES or name in FIXED:
            known = ", ".join(n for n in RULES if n not in FIXED)
            raise ValueError(f"{row} is not an axis of a weight: those are {known}")
        listed = [axes] if isinstance(axes, str) else axes
        if not isinstance(listed, list) or not all(axis in AXES for axis in listed):
            raise ValueError(f"{row} must be one of {', '.join(AXES)}, a list of them, or []")
        if len(set(listed)) < len(listed):
            raise ValueError(f"{row} repeats an axis: list it once")
    for name, axes in rules(changes).items():
        if name in SIZES:
            knob, cuts = SIZES[name]
            split = {f"mesh.{axis}": sizes[axis] for axis in axes if sizes[axis] > 1}
            _divides(knobs, knob, split)
            for cut in cuts:
                _divides(knobs, knob, split | {cut: knobs[cut]})


def check_devices(mesh: dict[str, int], n_devices: int) -> dict[str, int]:
    """Return the size of each mesh axis, with data=-1 resolved.

    Raises ValueError if their product is not the number of devices.
    """
    inner = math.prod(mesh[axis] for axis in AXES[1:])
    sizes = {axis: mesh[axis] for axis in AXES}
    if mesh["data"] == -1:
        sizes["data"] = n_devices // inner
    if math.prod(sizes.values()) == n_devices:
        return sizes
    shape = " x ".join(f"mesh.{axis}={mesh[axis]}" for axis in AXES if mesh[axis] != 1)
    raise ValueError(
        f"{shape} must be the number of devices, {n_devices}: try {_nearest_mesh(mesh, n_devices)}"
    )


def _nearest_mesh(mesh: dict[str, int], n_devices: int) -> str:
    """Return a change of one field that makes the mesh fit the devices, or the simplest mesh."""
    for axis in reversed(AXES):
        rest = math.prod(mesh[other] for other in AXES if other != axis and mesh[other] != -1)
        if mesh[axis] in (1, -1) or n_devices % rest:
            continue
        size = n_devices // rest
        if mesh["data"] == -1:  # the data axis takes the remaining devices
            size = max(n for n in range(1, size + 1) if size % n == 0 and n <= mesh[axis])
        return f"mesh.{axis}={size}"
    return "mesh.data=-1, which takes the remaining devices, and 1 for every other axis"


def _divides(knobs: dict, knob: str, parts: dict[str, int]) -> None:
    """Raise ValueError unless the field's value is a multiple of the product of `parts`."""
    value, ways = knobs[knob], math.prod(parts.values())
    if value % ways == 0:
        return
    near = max(1, round(value / ways)) * ways
    product = "*".join(part for part, n in parts.items() if n > 1)
    rule = f"must be a multiple of {product}={ways}: try {knob}={near}"
    last, n = list(parts.items())[-1]  # only the last part is made smaller
    rest = ways // n
    if value % rest == 0:
        smaller = max(size for size in range(1, n) if value % (rest * size) == 0)
        rule += f" or {last}={smaller}"
    raise ValueError(f"{knob}={value} {rule}")
