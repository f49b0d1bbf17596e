"""Checks of each config field alone: its type, choices, bounds and paths.

    check_values(run)                 # raises schema.ConfigError for the first invalid value
    reject("optim.lr", -1.0, "must be above 0")

The bounds of a field are in its declaration, see lm/config/fields.py.
"""

import dataclasses
import math
import os
import sys
import unicodedata
from typing import Any, NoReturn

from lm.config import field_names, fields, schema

MAX_TEXT = 2**16  # characters of a text field
MAX_PATH, MAX_PATH_PART = 4096, 255  # bytes that file systems allow
MIN_SUFFIX_ROOM = 512  # bytes of MAX_PATH for the files below a folder


def check_values(run: schema.Run) -> None:
    """Check each field alone: its type, its choices, its bounds, and its path.

    Raises ConfigError.
    """
    for name, kind in fields.type_hints(schema.Run).items():
        group, is_group = getattr(run, name), dataclasses.is_dataclass(kind)
        if isinstance(kind, type) and is_group and type(group) is not kind:
            reject(name, group, f"must be {kind.__name__}, not {type(group).__name__}")
    flat, choices = schema.flatten(run), fields.choices(schema.Run)
    infos = fields.field_info(schema.Run)
    for name, kind in schema.field_types(schema.Run).items():
        _check_value(name, flat[name], kind, choices.get(name, ()), infos[name])


def _check_value(
    name: str, value: Any, kind: type, choices: tuple[str, ...], info: fields.FieldInfo
) -> None:
    """Check the type, choices and bounds of a field. kind: int, float, bool, str or dict."""
    if not _has_type(value, kind):
        remedy = f": write {kind.__name__}(...)" if _is_number(value, kind) else ""
        reject(name, value, f"must be {kind.__name__}, not {type(value).__name__}{remedy}")
    if choices and value not in choices:
        reject(name, value, f"must be one of {', '.join(choices)}")
    if kind is str:
        _check_text(name, value)
        if "path" in info.roles and value:
            check_path(name, value)
    if kind is float:
        if not is_finite(value):
            reject(name, value, "must be a finite number")
        if value == 0 and math.copysign(1, value) < 0:
            reject(name, value, "is a negative zero: write 0.0")
    if kind in (int, float):
        _check_bounds(name, value, kind, info)


def _check_bounds(name: str, value: float, kind: type, info: fields.FieldInfo) -> None:
    """Check the bounds of a number, which are those of its declaration and of its type."""
    default = fields.MAX_INT if kind is int else fields.MAX_FLOAT
    largest = default if info.le is None else info.le
    if info.gt is not None and value <= info.gt:
        reject(name, value, f"must be above {info.gt} and at most {_format_bound(largest)}")
    if info.ge is not None and info.le is not None and not info.ge <= value <= info.le:
        reject(name, value, f"must be between {info.ge} and {info.le}")
    if info.ge is not None and value < info.ge:
        reject(name, value, f"must be at least {info.ge}")
    if value > largest:
        remedy = f": try {name}={value % (largest + 1)}" if name == "seed" else ""
        reject(name, value, f"must be at most {_format_bound(largest)}{remedy}")
    if kind is float and not info.ge and 0 < abs(value) < info.smallest:
        zero = " or 0" if info.gt is None else ""
        reject(name, value, f"is too small: use at least {info.smallest}{zero}")


def _format_bound(bound: float) -> str:
    """Return a bound without trailing zeros, such as 2147483647 or 1e+12."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _has_type(value: Any, kind: type) -> bool:
    """Return True if a value has the type of a field. A float field also accepts an int."""
    if kind is dict:
        return isinstance(value, dict)
    return type(value) is kind or (kind is float and type(value) is int)


def _is_number(value: Any, kind: type) -> bool:
    """Return True if a value, such as a NumPy number, converts to `kind` without loss."""
    if kind not in (int, float) or not hasattr(value, "dtype") or getattr(value, "ndim", 1):
        return False
    return value.dtype.kind in "biuf" and bool(kind(value) == value)


def is_finite(value: float) -> bool:
    """Return True if a number is finite as a float. An int of 400 digits is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_text(name: str, value: str) -> None:
    """Check that a text can be written to a UTF-8 file and is not too long."""
    if not is_storable(value):
        reject(name, value, "contains a NUL or bytes that are not UTF-8: rename the file")
    if len(value) > MAX_TEXT:
        reject(name, value, f"has {len(value)} characters: use at most {MAX_TEXT}")


def is_storable(text: str) -> bool:
    """Return True if a text can be a path and can be written to a UTF-8 file."""
    return "\0" not in text and text.encode(errors="ignore").decode() == text


def check_path(name: str, path: str, shown: str = "") -> None:
    """Check that files can be written below a folder.

    Raises ConfigError for control characters, for a path that is too long, and for characters that
    the encoding of the process cannot represent. shown: value of the field, if it is not the path.
    """
    shown = shown or path
    if any(unicodedata.category(character) == "Cc" for character in path):
        reject(name, shown, "contains a control character: rename the folder")
    if "://" in path:
        return
    absolute = os.path.abspath(path)
    encoding = sys.getfilesystemencoding()
    if not is_storable(absolute) or not _can_encode(absolute, encoding):
        problem = f"is a path with characters that the locale ({encoding}) cannot represent"
        reject(name, shown, f"{problem}: set PYTHONUTF8=1, or use a path of ASCII characters")
    n_bytes = len(os.fsencode(absolute))
    if n_bytes > MAX_PATH - MIN_SUFFIX_ROOM:
        problem = f"is a path of {n_bytes} bytes: use at most {MAX_PATH - MIN_SUFFIX_ROOM}"
        reject(name, shown, problem)
    longest = max(len(os.fsencode(part)) for part in absolute.split(os.sep))
    if longest > MAX_PATH_PART:
        problem = f"contains a name of {longest} bytes: use at most {MAX_PATH_PART}"
        reject(name, shown, problem)


def _can_encode(text: str, encoding: str) -> bool:
    """Return True if an encoding can represent a text."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def reject(name: str, value: Any, problem: str) -> NoReturn:
    """Raise ConfigError with a one-line message, which shortens a long value."""
    raise schema.ConfigError(f"{name}={format_value(value)} {problem}")


def format_value(value: Any) -> str:
    """Return the value as in Python code, shortened to one line.

    An int of thousands of digits is described.
    """
    if type(value) is int and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    try:
        return field_names.shorten(repr(value))
    except ValueError:  # an int of thousands of digits within another value
        return f"a value of type {type(value).__name__}"
