"""Parser of `NAME?KEY=VALUE&KEY=VALUE`, the syntax of source names and task names.

    fields = {"length": int_range(2, 10), "template": choice(["chat", "plain"])}
    parse_uri("copy?length=2-5", fields)      # Uri(name="copy", values={"length": (2, 5)})

Every source and task uses this parser, so all of them report the same errors.
"""

import difflib
import re
import shlex
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from lm.config import field_names
from lm.config.fields import MAX_INT

MAX_SHOTS = 1000  # solved examples before an example
# The name may be a glob with a "?": fields start at the first "?" before KEY=.
_QUERY = re.compile(r"\?(?=\w*=)")


class Uri(NamedTuple):
    """A parsed name with its fields."""

    name: str
    values: dict[str, Any]  # field name -> parsed value; fields that are absent have no entry


class Field(NamedTuple):
    """Parser of the value of one field."""

    parse: Callable[[str], Any]  # raises ValueError if the value is not allowed
    allowed: str  # description of the allowed values, for the error message


def parse_uri(text: str, fields: Mapping[str, Field], label: str = "") -> Uri:
    """Parse `text` into its name and the values of its fields.

    `label` precedes `text` in error messages. Raises ValueError for an unknown field, a field that
    is given twice, and a value that its field does not allow.
    """
    name, query = split_uri(text)
    values: dict[str, Any] = {}
    for item in query.split("&") if query else []:
        key, _, value = item.partition("=")
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}? The fields are" if near else "use one of the fields"
            known = ", ".join(fields)
            problem = f"{field_names.shorten(key)} does not exist"
            raise ValueError(f"{label}{field_names.shorten(text)}: {problem}: {hint} {known}")
        if key in values:
            problem = f"{key} is given twice: remove one of its values"
            raise ValueError(f"{label}{field_names.shorten(text)}: {problem}")
        try:
            values[key] = fields[key].parse(value)
        except ValueError:
            problem = f"{key}={field_names.shorten(value)} must be {fields[key].allowed}"
            raise ValueError(f"{label}{field_names.shorten(text)}: {problem}") from None
    return Uri(name, values)


def split_uri(text: str) -> tuple[str, str]:
    """Return the name and the unparsed fields; "" if `text` has no fields."""
    name, *rest = _QUERY.split(text, maxsplit=1)
    return name, "".join(rest)


def split_names(text: str) -> list[str]:
    """Split a list of names at white space. A name or a part of it may be in quotes.

    For example, 'copy "file:my set?n=9"' and 'copy file:"my set"?n=9' are the same two names.
    Raises ValueError if a quote is not closed.
    """
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        return list(lexer)
    except ValueError:
        raise ValueError(
            f"{field_names.shorten(text)}: a quote is not closed: write a name that contains"
            " a quote between quotes of the other kind"
        ) from None


def text(allowed: str = "a name") -> Field:
    """Return a field whose value is a non-empty string.

    allowed: description of the allowed values for the error message.
    """
    return Field(_non_empty, allowed)


def sentence() -> Field:
    """Return a field whose value is a text, written with + for a space and %XX for other bytes."""

    def parse(value: str) -> str:
        if re.search(r"[\s'\"]", value):  # quotes have another meaning in a list of tasks
            raise ValueError(value)
        return _non_empty(urllib.parse.unquote_plus(value, errors="strict").strip())

    return Field(
        parse, "a text with + for each space, and %27, %22, %26, %25 and %2B for ', \", &, % and +"
    )


def names() -> Field:
    """Return a field whose value is a frozenset of names, written with commas."""
    return Field(
        lambda value: frozenset(map(_non_empty, value.split(","))), "names separated by commas"
    )


def choice(options: Iterable[str]) -> Field:
    """Return a field whose value is one of `options`."""
    allowed = list(options)

    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(value)
        return value

    return Field(parse, f"one of {', '.join(allowed)}")


def count(high: int = MAX_INT) -> Field:
    """Return a field whose value is a whole number from 0 to `high`, written in digits."""

    def parse(value: str) -> int:
        if not re.fullmatch("[0-9]+", value) or int(value) > high:
            raise ValueError(value)
        return int(value)

    return Field(parse, f"a whole number from 0 to {high}")


def number(kind: type, low: float, high: float) -> Field:
    """Return a field whose value is a number from `low` to `high`, both included.

    kind: type of the value, int or float.
    """

    def parse(value: str) -> float:
        parsed = kind(value)
        if not low <= parsed <= high:
            raise ValueError(value)
        return parsed

    word = "a whole number" if kind is int else "a number"
    return Field(parse, f"{word} from {low} to {high}")


def int_range(low: int, high: int) -> Field:
    """Return a field of one integer or a range such as 2-5. Its value is (minimum, maximum)."""

    def parse(value: str) -> tuple[int, int]:
        first, dash, last = value.partition("-")
        minimum, maximum = int(first), int(last if dash else first)
        if not low <= minimum <= maximum <= high:
            raise ValueError(value)
        return minimum, maximum

    return Field(parse, f"a whole number, or a range such as {low}-{low + 1}, from {low} to {high}")


def _non_empty(value: str) -> str:
    if not value:
        raise ValueError(value)
    return value
