"""Outcomes of attacked commands, and the rules that classify them.

Permitted outcomes are same (equal bits), repaired (equal bits and a line about it), refused (one
line, exit status 2, which names the file or the field) and excluded (a run without a result, with
a reason). Every other outcome is failed.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lm.config import schema

KINDS = ("same", "repaired", "refused", "excluded", "failed", "skipped")
# A message names a config field as GROUP.FIELD or FIELD=, or a flag.
_FIELDS = list(schema.flatten(schema.Run()))
_GROUPED = [re.escape(name) for name in _FIELDS if "." in name]
_SINGLE = [rf"{name.rpartition('.')[2]}=" for name in _FIELDS]
FIELD = re.compile(rf"\b(?:{'|'.join([*_GROUPED, *_SINGLE])})|--\w+")
REPAIR = re.compile(r"(?!error: ).*(: restored from |is prepared again)")  # of a damaged file
MAX_MESSAGE = 900  # characters of a message in one line
MISSING = (None, "", [], {})


class Outcome(NamedTuple):
    """Outcome of a case.

    kind: of KINDS. detail: the message, or the first difference. counts: {kind: number} of a case
    with many inputs. is_real: True if a command in a new interpreter was part of the case.
    """

    kind: str
    detail: str = ""
    counts: Mapping[str, int] = {}
    is_real: bool = False


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome that differs the most from an undisturbed command."""
    order = ("skipped", "same", "repaired", "refused", "excluded", "failed")
    return max(outcomes, key=lambda outcome: order.index(outcome.kind))


def judge_message(message: str, names: Iterable[str], may_name_field: bool = True) -> Outcome:
    """Return refused for a message of one line that names a file or a field, else failed.

    names: parts of the path of the damaged file, any of which names the file. may_name_field: False
    if the cause is a file, so that the name of a field does not suffice.
    """
    text = message.strip()
    if not text or "\n" in text:
        return Outcome("failed", f"message of {len(text.splitlines())} lines: {text[:600]}")
    if len(text) > MAX_MESSAGE:
        return Outcome("failed", f"message of {len(text)} characters: {text[:300]}")
    has_field = may_name_field and FIELD.search(text)
    if not has_field and not is_named(text, names):
        return Outcome("failed", f"names neither the file nor a field: {text}")
    return Outcome("refused", text)


def is_named(text: str, names: Iterable[str]) -> bool:
    """Return True if a text contains any of the names."""
    return any(name and name in text for name in names)


def judge_command(
    status: int | None,
    output: str,
    errors: str,
    names: Iterable[str],
    may_name_field: bool = True,
) -> Outcome:
    """Classify the end of a command by its exit status and its output.

    status: None if the command was stopped after its time limit. A command that ends with status 0
    is "same", or "repaired" if it wrote a line to stderr. The caller compares its results. With
    several damaged files, a command may repair some before its error, with a line per file.
    """
    if status is None:
        return Outcome("failed", f"no end within the time limit: {_last(errors or output)}")
    if "Traceback (most recent call last)" in output + errors:
        return Outcome("failed", f"traceback, exit status {status}: {_last(errors or output)}")
    if status == 0:
        return Outcome("repaired", errors.strip()[:400]) if errors.strip() else Outcome("same")
    if status == 2:
        lines = [line for line in errors.splitlines() if not _is_repair(line, names)]
        return judge_message("\n".join(lines).removeprefix("error: "), names, may_name_field)
    return Outcome("failed", f"exit status {status}: {_last(errors or output)}")


def _is_repair(line: str, names: Iterable[str]) -> bool:
    """Return True for a note that one of the named files is repaired."""
    return REPAIR.match(line) is not None and is_named(line, names)


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else "no output"


def first_difference(expected: Any, actual: Any, path: str = "") -> str:
    """Return the path and both values of the first difference of two plain values, or ""."""
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        for key in [*expected, *(key for key in actual if key not in expected)]:
            difference = first_difference(expected.get(key), actual.get(key), f"{path}/{key}")
            if difference:
                return difference
        return ""
    if isinstance(expected, (list, tuple)) and isinstance(actual, (list, tuple)):
        if len(expected) != len(actual):
            return f"{path}: {len(actual)} items, expected {len(expected)}"
        for i, (a, b) in enumerate(zip(expected, actual, strict=True)):
            difference = first_difference(a, b, f"{path}/{i}")
            if difference:
                return difference
        return ""
    if isinstance(expected, float) and isinstance(actual, float):
        if math.isnan(expected) and math.isnan(actual):
            return ""
    if expected == actual:
        return ""
    return f"{path}: {_short(actual)}, expected {_short(expected)}"


def judge_results(expected: Any, actual: Any, notes: str, names: Iterable[str] = ()) -> Outcome:
    """Compare results with those of the undisturbed command.

    notes: lines that the command printed in addition. A result that is missing is excluded if a
    note contains any of the names. A result with another value is failed.
    """
    difference = first_difference(expected, actual)
    if not difference:
        return Outcome("repaired", notes[:400]) if notes else Outcome("same")
    changed = first_difference(*common_parts(expected, actual))
    if not changed and is_named(notes, names):
        return Outcome("excluded", notes[:400])
    return Outcome("failed", f"{changed or difference} ({notes[:200] or 'no message'})")


def common_parts(first: Any, second: Any) -> tuple[Any, Any]:
    """Return the parts of two plain values that both have."""
    return _common(first, second), _common(second, first)


def _common(value: Any, other: Any) -> Any:
    """Return the parts of a plain value for which the other value has a result too."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return {
            key: _common(item, other[key])
            for key, item in value.items()
            if other.get(key) not in MISSING and item not in MISSING
        }
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(value) == len(other):
            pairs = zip(value, other, strict=True)
            return [_common(a, b) for a, b in pairs if a not in MISSING and b not in MISSING]
    return value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) < 120 else f"{text[:117]}..."
