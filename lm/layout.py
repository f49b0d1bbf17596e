"""Which mesh axes an array's axes are split over: the one table, and what must divide.

An array is described by logical names, one an axis ("embed", "heads", ...). RULES says over which
axes of the mesh each name is split; a run may change rows of it (mesh.rules). No JAX here, so that
a mesh that cannot work is refused before anything starts.
"""

import math

# Devices along the last axis are nearest to each other: what talks most comes last.
AXES = ("data", "fsdp", "expert", "sequence", "tensor")
RULES = {
    # logical name   mesh axes it is split over
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
FIXED = ("batch", "length")  # what the mesh axes mean, and how batches are loaded
# Knob that is the size of an axis, and the knobs that cut each device's share of it further.
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
    """RULES with the rows of mesh.rules in place of its own: a mesh axis, a list of them, or []."""
    return RULES | {n: (a,) if isinstance(a, str) else tuple(a) for n, a in changes.items()}


def check(knobs: dict, sizes: dict[str, int]) -> None:
    """ValueError naming knob, value, rule and what would work, if the mesh cannot hold the run.

    knobs: config.flatten(run); sizes: devices along each of AXES.
    """
    changes = knobs["mesh.rules"]
    for name, axes in changes.items():
        row = f"mesh.rules[{name!r}]={axes!r}"
        if name not in RULES or name in FIXED:
            known = ", ".join(n for n in RULES if n not in FIXED)
            raise ValueError(f"{row} names no axis of a weight: those are {known}")
        listed = [axes] if isinstance(axes, str) else axes
        if not isinstance(listed, list) or not all(axis in AXES for axis in listed):
            raise ValueError(f"{row} must be one of {', '.join(AXES)}, a list of them, or []")
        if len(set(listed)) < len(listed):
            raise ValueError(f"{row} names an axis twice: once is enough")
    for name, axes in rules(changes).items():
        if name in SIZES:
            knob, cuts = SIZES[name]
            split = {f"mesh.{axis}": sizes[axis] for axis in axes if sizes[axis] > 1}
            _divides(knobs, knob, split)
            for cut in cuts:
                _divides(knobs, knob, split | {cut: knobs[cut]})


def check_devices(mesh: dict[str, int], n_devices: int) -> dict[str, int]:
    """The size of each mesh axis, a -1 of data resolved; ValueError if they do not multiply."""
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
    """The change of one knob that makes a mesh multiply to the devices, or the plainest mesh."""
    for axis in reversed(AXES):
        rest = math.prod(mesh[other] for other in AXES if other != axis and mesh[other] != -1)
        if mesh[axis] in (1, -1) or n_devices % rest:
            continue
        left = n_devices // rest
        if mesh["data"] == -1:  # which takes what this axis leaves
            left = max(
                size for size in range(1, left + 1) if left % size == 0 and size <= mesh[axis]
            )
        return f"mesh.{axis}={left}"
    return "mesh.data=-1, which takes what is left, and 1 for every other axis"


def _divides(knobs: dict, knob: str, parts: dict[str, int]) -> None:
    """ValueError unless the knob's value is a multiple of the product of `parts`."""
    value, ways = knobs[knob], math.prod(parts.values())
    if value % ways == 0:
        return
    near = max(1, round(value / ways)) * ways
    product = "*".join(part for part, n in parts.items() if n > 1)
    rule = f"must be a multiple of {product}={ways}: try {knob}={near}"
    last, n = list(parts.items())[-1]  # what can shrink: the rest stays
    rest = ways // n
    if value % rest == 0:
        smaller = max(size for size in range(1, n) if value % (rest * size) == 0)
        rule += f" or {last}={smaller}"
    raise ValueError(f"{knob}={value} {rule}")
