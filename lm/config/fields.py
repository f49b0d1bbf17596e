"""Declare config fields, and query their descriptions, bounds, choices and roles.

    lr: float = field(3e-3, "Peak learning rate.", "vmapped", "traced", gt=0)

    field_info(Optimizer)["lr"].description      # "Peak learning rate."
    fields_with("traced", Optimizer)             # ("lr", "weight_decay")
    choices(Optimizer)["name"]                   # ("adamw", "lion", "muon")

Roles replace lists of field names in other files: a query returns all fields with a role.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeVar

from lm.config import field_names

Role = Literal[
    "execution", "vmapped", "traced", "corpus", "batch", "compute", "adapter", "plan", "path"
]
ROLES: dict[Role, str] = {
    "execution": "Affects how a run computes or is stored, not its result. May change on resume.",
    "vmapped": "May differ between the runs of one vmapped program.",
    "traced": "Input of the compiled train step instead of a constant.",
    "corpus": "Part of the key of a prepared corpus.",
    "batch": "Part of the hash of a token dataset.",
    "compute": "Changes how a model computes, not its weights. May differ from the parent run.",
    "adapter": "Describes LoRA adapters, which a run may add to the model of its parent run.",
    "path": "A folder: a local path, or gs://BUCKET/FOLDER.",
    "plan": "Varied by the layout search and reported as a column of a plan.",
}
Group = TypeVar("Group")
MAX_INT = 2**31 - 1  # compiled programs compute with 32-bit integers
# Default bounds of float fields. Products of two such values fit the range of float32.
MAX_FLOAT, MIN_FLOAT = 1e12, 1e-12


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """Description, bounds, roles and hash names of a config field."""

    description: str
    roles: tuple[Role, ...] = ()
    ge: float | None = None  # smallest allowed value
    gt: float | None = None  # lower bound that is not allowed itself
    le: float | None = None  # largest allowed value; None is MAX_INT or MAX_FLOAT
    smallest: float = MIN_FLOAT  # smallest allowed magnitude of a float other than 0
    axis: str = ""  # logical axis whose size is this field
    chunks: str = ""  # logical axis that this field splits into chunks on each device
    alone: str = ""  # reason why a run with another value than the default is never vmapped
    hash_name: str = ""  # name of the field in hashes; empty if it is the name of the field
    hash_values: tuple[tuple[str, str], ...] = ()  # (value, value in hashes) where they differ
    omit_default: bool = False  # hashes omit the default: the field is newer than stored hashes
    default: Any = None


def field(default: Any, description: str, *roles: Role, **rules: Any) -> Any:
    """Return a dataclass field with its FieldInfo.

    default: a dict is copied for each instance. rules: the other entries of FieldInfo, such as ge.
    """
    metadata = {"info": FieldInfo(description, roles, default=default, **rules)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def config_group(name: str) -> Callable[[type[Group]], type[Group]]:
    """Return a decorator for the dataclass of a group of config fields.

    name: the field of Run with this group, "" for Run itself. A name that is not a field raises
    field_names.UnknownFieldError in an assignment, in the constructor and when it is read. Fields
    of type `Literal` are declared as str.
    """
    prefix = f"{name}." if name else ""

    def decorate(kind: type[Group]) -> type[Group]:
        names = [declared.name for declared in dataclasses.fields(typing.cast(Any, kind))]
        known_names = frozenset(names)
        construct = kind.__init__

        def raise_unless_known(attribute: str) -> None:
            if attribute not in known_names:
                siblings = [prefix + known for known in names]
                message = field_names.unknown_field_message(prefix + attribute, siblings)
                raise field_names.UnknownFieldError(message)

        @functools.wraps(construct)
        def init(self, *values: Any, **named_values: Any) -> None:
            for attribute in named_values:
                raise_unless_known(attribute)
            construct(self, *values, **named_values)

        def set_attribute(self, attribute: str, value: Any) -> None:
            raise_unless_known(attribute)
            object.__setattr__(self, attribute, value)

        def get_missing_attribute(self, attribute: str) -> NoReturn:
            if attribute.startswith("__"):  # a protocol of Python that the class lacks
                raise AttributeError(attribute)
            raise_unless_known(attribute)
            raise field_names.UnknownFieldError(f"{prefix}{attribute} was deleted: set a value")

        for declared in dataclasses.fields(typing.cast(Any, kind)):
            if typing.get_origin(declared.type) is Literal:
                declared.type = str
        methods = {
            "__init__": init,
            "__setattr__": set_attribute,
            "__getattr__": get_missing_attribute,
        }
        for method, function in methods.items():
            setattr(kind, method, function)  # hidden from type checkers, which know the fields
        return kind

    return decorate


@functools.cache
def type_hints(kind: type) -> dict[str, Any]:
    """Return {name of a field: its type} for a dataclass type, in order of declaration."""
    return typing.get_type_hints(kind)


@functools.cache
def field_info(kind: type) -> dict[str, FieldInfo]:
    """Return {"optim.lr": FieldInfo, ...} for a dataclass type, in order of declaration."""
    flat, hints = {}, type_hints(kind)
    for declared in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[declared.name]):
            inner = field_info(hints[declared.name])
            flat |= {f"{declared.name}.{name}": info for name, info in inner.items()}
        else:
            flat[declared.name] = declared.metadata["info"]
    return flat


def fields_with(role: Role, kind: type) -> tuple[str, ...]:
    """Return the names of the fields with a role, in order of declaration."""
    return tuple(name for name, info in field_info(kind).items() if role in info.roles)


@functools.cache
def choices(kind: type) -> dict[str, tuple[Any, ...]]:
    """Return the allowed values of each choice, {"optim.name": ("adamw", "lion", "muon"), ...}."""
    flat = {}
    for name, hint in type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            inner = choices(typing.cast(type, hint))
            flat |= {f"{name}.{k}": values for k, values in inner.items()}
        elif typing.get_origin(hint) is Literal:
            flat[name] = typing.get_args(hint)
    return flat


def for_hash(values: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return `values` with the field names and choices that enter hashes, in the same order.

    These names and choices never change. Hashes therefore stay equal when a field is renamed.

    values: {"optim.lr": 0.003, ...}, any fields of the dataclass type `kind`.
    """
    hashed, infos = {}, field_info(kind)
    for name, value in without_new_defaults(values, kind).items():
        group, dot, last = name.rpartition(".")
        if isinstance(value, str):
            value = dict(infos[name].hash_values).get(value, value)
        hashed[f"{group}{dot}{infos[name].hash_name or last}"] = value
    return hashed


def without_new_defaults(values: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return `values` without fields that have omit_default and their default.

    values: see for_hash.
    """
    infos = field_info(kind)
    return {
        name: value
        for name, value in values.items()
        if not (infos[name].omit_default and value == infos[name].default)
    }


def changed_for_hash(group: Any, role: Role) -> dict[str, Any]:
    """Return the fields with a role that differ from their defaults, by their names in hashes.

    group: an instance of a dataclass without nested groups.
    """
    kind = type(group)
    values = {name: getattr(group, name) for name in fields_with(role, kind)}
    changed = {name: value for name, value in values.items() if value != getattr(kind, name)}
    return for_hash(changed, kind)
