"""Config fields that may change when a run continues.

    changed_fields.find_conflicts(old, new, n_done=1000)      # names, [] if the run may continue

The configs are flat dicts {field: value}, see schema.flatten. Fields of the execution may always
change. The length of the run may change if no completed step would have had another learning rate.
The weights are then those of a run with the new length.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm.config import fields, run_files, schema
from lm.runs import filesystem

# Fields that determine the learning rate of a step together with `steps`.
LENGTH_FIELDS = ("steps", "optim.warmup", "optim.decay")
LENGTH_RULE = (
    "steps may change with optim.schedule=constant, or wsd before its decay, if the warm-up has the"
    " same number of steps (optim.warmup * steps)"
)


def find_conflicts(old: Mapping[str, Any], new: Mapping[str, Any], n_done: int) -> list[str]:
    """Return the names of the fields that differ and must not change.

    n_done: number of completed steps. A field may be missing on one side.
    """
    may_change = fields.fields_with("execution", schema.Run)
    if has_equal_rates(old, new, n_done):
        may_change = may_change + LENGTH_FIELDS
    return sorted(
        name
        for name in old.keys() | new.keys()
        if name not in may_change and (name not in old or name not in new or old[name] != new[name])
    )


def describe_conflicts(old: Mapping[str, Any], new: Mapping[str, Any], n_done: int) -> str:
    """Return the conflicts with old and new values as one line, "" without any."""
    names = find_conflicts(old, new, n_done)
    rule = f" ({LENGTH_RULE})" if "steps" in names else ""
    return describe_changes(old, new, names) + rule


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return the fields among `names` whose values differ, with both values, as one line."""
    changes = [
        f"{name}={old[name]!r}, now {new[name]!r}" for name in names if old[name] != new[name]
    ]
    return "; ".join(changes)


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint of a run directory, 0 without one."""
    names = (path.name for path in filesystem.list_dir(folder / run_files.CHECKPOINTS))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def has_equal_rates(old: Mapping[str, Any], new: Mapping[str, Any], n_done: int) -> bool:
    """Return True if the completed steps have the same learning rates in both configs.

    See optimizer.learning_rate_schedule.
    """
    names = (*LENGTH_FIELDS, "optim.schedule")
    if any(name not in values for name in names for values in (old, new)):
        return False
    if old["optim.schedule"] != new["optim.schedule"] or n_done > new["steps"]:
        return False
    n_warmup, other_n_warmup = (round(c["optim.warmup"] * c["steps"]) for c in (old, new))
    if n_warmup != other_n_warmup:
        return False
    if new["optim.schedule"] == "wsd":
        n_decay = (max(round(c["optim.decay"] * c["steps"]), 1) for c in (old, new))
        ends = (c["steps"] - n for c, n in zip((old, new), n_decay, strict=True))
        return n_done <= min(ends)
    return new["optim.schedule"] == "constant"
