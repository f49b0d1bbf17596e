"""Logical axis rules: the mesh axes that shard each axis of an array, and their validation.

    merged_axis_rules({"mlp": []})["heads"]           # ("tensor",)
    resolve_mesh_shape(vars(run.mesh), n_devices)     # {"data": 4, "fsdp": 1, ...}

The axes of an array have logical names ("embed", "heads", ...). AXIS_RULES maps each name to the
mesh axes that shard it. The field mesh.rules replaces rows of AXIS_RULES. This file does not import
JAX, so that an invalid mesh is rejected before JAX starts.
"""

import math

from lm.config import fields, schema, value_checks
from lm.config.schedules import batch_size_schedule

# Devices along the last axis are nearest to each other, so the axis with most traffic is last.
MESH_AXES = ("data", "fsdp", "expert", "sequence", "tensor")
AXIS_RULES = {
    # logical axis   mesh axes that shard it
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
SLICE_NOUNS = {"tpu": "slices", "gpu": "nodes"}  # groups of devices with a fast network
FIXED = ("batch", "length")  # mesh.rules cannot replace them: they load the batches


def _axis_sizes() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return {logical axis: (field of its size, fields that divide it further)}."""
    infos = fields.field_info(schema.Run)
    return {
        info.axis: (name, tuple(n for n, other in infos.items() if other.chunks == info.axis))
        for name, info in infos.items()
        if info.axis
    }


AXIS_SIZES = _axis_sizes()


def merged_axis_rules(changes: dict) -> dict[str, tuple[str, ...]]:
    """Return AXIS_RULES with the rows of `changes` replaced.

    changes: mesh.rules, {logical axis: a mesh axis, a list of mesh axes, or []}.
    """
    rows = {
        name: (axes,) if isinstance(axes, str) else tuple(axes) for name, axes in changes.items()
    }
    return AXIS_RULES | rows


def validate_mesh_shape(values: dict, sizes: dict[str, int]) -> None:
    """Check that mesh.rules is valid and that the mesh divides the sizes of the run.

    values: schema.flatten(run). sizes: number of devices along each of MESH_AXES. Raises
    ConfigError, which suggests values that work.
    """
    changes = values["mesh.rules"]
    for name, axes in changes.items():
        row = f"mesh.rules[{value_checks.format_value(name)}]={value_checks.format_value(axes)}"
        if name not in AXIS_RULES or name in FIXED:
            known = ", ".join(n for n in AXIS_RULES if n not in FIXED)
            raise schema.ConfigError(f"{row} is not an axis of a weight: the axes are {known}")
        listed = [axes] if isinstance(axes, str) else axes
        is_list = isinstance(listed, list)
        if not is_list or not all(isinstance(a, str) and a in MESH_AXES for a in listed):
            allowed = f"one of {', '.join(MESH_AXES)}, a list of them, or []"
            raise schema.ConfigError(f"{row} must be {allowed}")
        if len(set(listed)) < len(listed):
            raise schema.ConfigError(f"{row} repeats an axis: remove the repetition")
    for name, axes in merged_axis_rules(changes).items():
        if name in AXIS_SIZES:
            field, chunk_fields = AXIS_SIZES[name]
            shards = {f"mesh.{axis}": sizes[axis] for axis in axes if sizes[axis] > 1}
            _check_divisible(values, field, shards)
            for chunks in chunk_fields:
                _check_divisible(values, field, shards | {chunks: values[chunks] or 1})
    _check_first_batch_size(values, sizes)


def _check_first_batch_size(values: dict, sizes: dict[str, int]) -> None:
    """Raise ConfigError if devices, micro-batches or shards do not divide the first batch size.

    See data.batch_size_warmup: each later batch size is a multiple of the first one.
    """
    schedule = batch_size_schedule.BatchSizeSchedule.from_row(values)
    first = schedule.stages[0].batch_size
    parts = {f"mesh.{axis}": sizes[axis] for axis in AXIS_RULES["batch"]}
    parts |= {name: values[name] or 1 for name in AXIS_SIZES["batch"][1]}
    shards = {"mesh.deterministic_shards": values["mesh.deterministic_shards"] or 1}
    for divisors in (parts, shards):
        n_parts = math.prod(divisors.values())
        if schedule.warmup and first % n_parts:
            product = "*".join(name for name, n in divisors.items() if n > 1)
            raise schema.ConfigError(
                f"{batch_size_schedule.FIELD}={schedule.warmup!r} begins with {first} rows, which"
                f" must be a multiple of {product}={n_parts}: list fewer numbers, or raise"
                " data.batch_size"
            )


def resolve_mesh_shape(mesh: dict[str, int], n_devices: int) -> dict[str, int]:
    """Return {mesh axis: number of devices}, where the data axis has all remaining devices if -1.

    mesh: fields of the config group mesh. Raises ConfigError if the product of the numbers is not
    n_devices.
    """
    inner = math.prod(mesh[axis] for axis in MESH_AXES[1:])
    sizes = {axis: mesh[axis] for axis in MESH_AXES}
    if mesh["data"] == -1:
        sizes["data"] = n_devices // inner
    if math.prod(sizes.values()) == n_devices:
        return sizes
    axes = [f"mesh.{axis}={mesh[axis]}" for axis in MESH_AXES if mesh[axis] != 1]
    shape = " x ".join(axes) or "mesh.data=1"
    raise schema.ConfigError(
        f"{shape} must be the number of devices, {n_devices}: try {_nearest_mesh(mesh, n_devices)}"
    )


def validate_slices(sizes: dict[str, int], n_slices: int, platform: str) -> None:
    """Check that only the data axis crosses the slow network between slices or nodes.

    sizes: number of devices along each of MESH_AXES. n_slices: number of TPU slices or GPU nodes,
    each with a fast network of its own. platform: cpu, gpu or tpu. Raises ConfigError, which
    suggests a mesh that works.
    """
    if sizes["data"] % n_slices == 0:
        return
    factor = n_slices // math.gcd(sizes["data"], n_slices)
    axis = next((a for a in MESH_AXES[1:] if sizes[a] % factor == 0), "")
    data, other = sizes["data"] * factor, sizes.get(axis, factor) // factor
    mesh = f"mesh.data={data} with mesh.{axis}={other}" if axis else "mesh.data=-1"
    shape = " x ".join(f"mesh.{axis}={size}" for axis, size in sizes.items() if size > 1)
    raise schema.ConfigError(
        f"{shape}: mesh.data={sizes['data']} must be a multiple of the {n_slices}"
        f" {SLICE_NOUNS.get(platform, 'slices')}, because no other axis may cross the slow network"
        f" between them: try {mesh}. mesh.rules={{'embed': ['data', 'fsdp']}} shards weights over"
        " data as well"
    )


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a positive number that is at most `limit`, at least 1."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return max(n for n in [*small, *(number // n for n in small)] if n == 1 or n <= limit)


def _nearest_mesh(mesh: dict[str, int], n_devices: int) -> str:
    """Return a field and value, as text, with which the mesh has n_devices devices."""
    for axis in reversed(MESH_AXES):
        others = math.prod(
            mesh[other] for other in MESH_AXES if other != axis and mesh[other] != -1
        )
        if mesh[axis] in (1, -1) or n_devices % others:
            continue
        size = n_devices // others
        if mesh["data"] == -1:  # the data axis gets the remaining devices
            size = largest_divisor(size, mesh[axis])
        return f"mesh.{axis}={size}"
    return "mesh.data=-1 for all remaining devices, and 1 for every other axis"


def _check_divisible(values: dict, field: str, parts: dict[str, int]) -> None:
    """Raise ConfigError unless the value of a field is a multiple of the product of `parts`.

    parts: {name of a field that divides the value: its value}.
    """
    value, n_parts = values[field], math.prod(parts.values())
    if value % n_parts == 0:
        return
    near = max(1, round(value / n_parts)) * n_parts
    product = "*".join(part for part, n in parts.items() if n > 1)
    problem = f"must be a multiple of {product}={n_parts}: try {field}={near}"
    last, n = list(parts.items())[-1]  # the second suggestion reduces the last part
    others = n_parts // n
    if value % others == 0:
        smaller = largest_divisor(value // others, n - 1)
        problem += f" or {last}={smaller}"
    raise schema.ConfigError(f"{field}={value} {problem}")
