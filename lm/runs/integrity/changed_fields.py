"""Config fields that may change when a run continues.

    changed_fields.find_conflicts(old, new, n_done=1000)      # names, [] if the run may continue

The configs are flat dicts {field: value}, see schema.flatten. Fields of the execution may always
change. The length of the run may change if no completed step would have had another learning rate.
The weights are then those of a run with the new length.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm.config import fields, optimizer_config, run_files, schema
from lm.config.schedules import batch_size_schedule
from lm.runs import filesystem, json_files

# Fields that determine the learning rate of a step together with `steps`.
PARTS = ("warmup", "warmup_steps", "warmup_tokens", "decay", "decay_steps", "decay_tokens")
LENGTH_FIELDS = ("steps", *(f"optim.{name}" for name in PARTS))
BATCH_FIELDS = ("data.batch_size", "data.batch_size_warmup", "data.seq_len")
LENGTH_RULE = (
    "steps may change with optim.schedule=constant, or wsd before its decay, if the warm-up has the"
    " same number of steps"
)


def find_conflicts(old: Mapping[str, Any], new: Mapping[str, Any], n_done: int) -> list[str]:
    """Return the names of the fields that differ and must not change.

    n_done: number of completed steps. A field that is missing on one side has its default value
    there: an older version did not have it.
    """
    may_change = fields.fields_with("execution", schema.Run)
    defaults = schema.flatten(schema.Run())
    old, new = ({name: defaults[name] for name in defaults} | {**values} for values in (old, new))
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


def count_completed_steps(folder: Path, facts: Mapping[str, Any]) -> int:
    """Return the number of completed steps of a run directory.

    A run that is done has all its steps, even after its checkpoints were deleted. Another run
    continues from its newest checkpoint. facts: content of facts.json.
    """
    n_done = newest_step(folder)
    if facts.get("status") != "done":
        return n_done
    rows = json_files.read_latest_rows(folder / "metrics.jsonl")
    return max(n_done, facts.get("ends_at") or (rows[-1]["step"] if rows else 0))


def describe_lost_weights(folder: Path, n_steps: int, n_done: int) -> str:
    """Return the problem of more steps for a run that is done and has no checkpoint."""
    return (
        f"{folder} has steps={n_steps}, is done after {n_done} steps, and has no checkpoint to"
        " continue from: restore its checkpoints, or choose a new name"
    )


def has_equal_rates(old: Mapping[str, Any], new: Mapping[str, Any], n_done: int) -> bool:
    """Return True if the completed steps have the same learning rates in both configs.

    See optimizer.learning_rate_schedule.
    """
    names = (*LENGTH_FIELDS, *BATCH_FIELDS, "optim.schedule")
    if any(name not in values for name in names for values in (old, new)):
        return False
    is_same = all(old[name] == new[name] for name in (*BATCH_FIELDS, "optim.schedule"))
    if not is_same or n_done > new["steps"]:
        return False
    optims = [_optimizer(values) for values in (old, new)]
    n_steps = [values["steps"] for values in (old, new)]
    n_warmup, other_n_warmup = map(optimizer_config.count_warmup_steps, optims, n_steps)
    if n_warmup != other_n_warmup:
        return False
    if new["optim.schedule"] == "wsd":
        n_decay = map(optimizer_config.count_decay_steps, optims, n_steps)
        return n_done <= min(n - m for n, m in zip(n_steps, n_decay, strict=True))
    return new["optim.schedule"] == "constant"


def _optimizer(values: Mapping[str, Any]) -> schema.Optimizer:
    """Return the optimizer of a flat config, with the lengths of its schedule in steps."""
    optim = schema.Optimizer(**{name: values[f"optim.{name}"] for name in PARTS})
    schedule = batch_size_schedule.BatchSizeSchedule.from_row(values)
    return batch_size_schedule.resolve_tokens(optim, schedule, values["steps"])
