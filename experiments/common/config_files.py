"""Load the runs of a config file or a sweep file, and change fields by the command line.

    run = load_run_file("configs/base.py:100K", ["optim.lr=0.01"])
    runs = load_sweep_file("configs/sweeps/quickstart.py")

Every error of a file is raised as ConfigError in one line: the file, the line if it is known, and
the problem. A path that begins with configs/ also names a file that is installed with lm-scaling.
"""

import difflib
import importlib.abc
import importlib.util
import inspect
import itertools
import json
import math
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from lm.config import field_names, run_files, schema, validation
from lm.data.tokenization import run_tokenizer

ROOT = Path(__file__).parents[2]  # folder of the packages lm, experiments and configs
MAX_RUNS = 10_000  # of a sweep; a generator without end has more
BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
USAGE = {
    "config": "--config=FILE is missing, such as --config=configs/base.py:100K",
    "sweep": "--sweep=FILE is missing, such as --sweep=configs/sweeps/quickstart.py",
}
EXAMPLES = {"config": "Configs are in configs/", "sweep": "Sweeps are in configs/sweeps/"}


def load_run_file(location: str, changes: list[str], sources: str = "") -> schema.Run:
    """Return the valid run that get_config(ARG) of FILE[:ARG] returns, with changed fields.

    changes: values of fields, such as "optim.lr=0.01". sources: JSON that replaces data.sources.
    Raises ConfigError for an error in the file, an unknown field or an invalid value.
    """
    path, argument = _find_file("config", location)
    run = _call(path, "config", argument)
    if not isinstance(run, schema.Run):
        _fail(path, f"get_config() must return lm.Run, not {_describe(run)}")
    for change in changes:
        _change_field(run, change)
    if sources:
        run.data.sources = parse_sources(sources)
    if changes or sources:  # the file is not the cause of an invalid value
        return _resolve_and_validate(run)
    _validate(path, run)
    return run


def load_sweep_file(location: str) -> list[schema.Run]:
    """Return the valid runs that get_sweep(ARG) of FILE[:ARG] yields.

    Raises ConfigError for an error in the file, for an invalid run, and for two runs of one name.
    """
    path, argument = _find_file("sweep", location)
    runs = _call(path, "sweep", argument)
    if not runs:
        _fail(path, "get_sweep() yields no runs: it must yield at least one run")
    for run in runs:
        if not isinstance(run, schema.Run):
            _fail(path, f"get_sweep() must yield lm.Run, not {_describe(run)}")
    if len({id(run) for run in runs}) < len(runs):
        _fail(path, "get_sweep() yields one lm.Run object twice: create a new object for each run")
    for run in runs:
        _validate(path, run)
    _check_names(path, [run.name for run in runs])
    return runs


def field_changes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate the flags --config.FIELD from the other arguments of a command.

    Return the other arguments, and the changes, such as "optim.lr=0.01". Forms of the flags:
    --config.FIELD=VALUE, --config.FIELD VALUE, and --config.FIELD or --noconfig.FIELD for a bool.
    Raises ConfigError for an unknown field, for a flag without a value, and for --noconfig.FIELD
    with a value or with a field that is not a bool.
    """
    others, changes = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, has_value, value = argument.partition("=")
        flag = name.lstrip("-")
        field = flag.removeprefix("no").removeprefix("config.")
        if not name.startswith("-") or not flag.removeprefix("no").startswith("config."):
            others.append(argument)
            continue
        kind = _field_type(field)
        if flag.startswith("no") and (has_value or kind is not bool):
            rule = "takes no value" if has_value else "needs a field that is true or false"
            raise schema.ConfigError(f"{name} {rule}: write --config.{field}={value or 'VALUE'}")
        if not has_value and kind is bool:
            value = "false" if flag.startswith("no") else "true"
        elif not has_value:
            value = next(remaining, None)
            if value is None:
                raise schema.ConfigError(f"{name} has no value: write {name}=VALUE")
        changes.append(f"{field}={value}")
    return others, changes


def parse_sources(text: str, flag: str = "--sources") -> dict[str, float]:
    """Parse the JSON of sources and weights. Raises ConfigError that shows an example."""
    try:
        sources = json.loads(text)
        return {str(source): float(weight) for source, weight in sources.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        example = '{"code": 0.5, "text:my/folder": 0.5}'
        raise schema.ConfigError(f"{flag}={text:.200} must be JSON such as {example}") from None


def _find_file(kind: str, location: str) -> tuple[str, str]:
    """Return the path and the argument of FILE[:ARG]. Raises ConfigError if no such file exists.

    kind: config or sweep, the flag.
    """
    if not location:
        raise schema.ConfigError(USAGE[kind])
    path, _, argument = (location, "", "") if os.path.isfile(location) else location.partition(":")
    if os.path.isfile(path):
        return path, argument
    installed = ROOT / path
    if Path(path).parts[:1] == ("configs",) and installed.is_file():
        return str(installed), argument
    if os.path.isdir(path):
        raise schema.ConfigError(f"--{kind}={path} is a folder: name a file. {EXAMPLES[kind]}")
    folder = Path(path).parent
    files = [*folder.glob("*.py"), *(ROOT / folder).glob("*.py")]
    near = difflib.get_close_matches(path, [str(folder / file.name) for file in files], 1, 0.8)
    hint = f"Did you mean {near[0]}?" if near else EXAMPLES[kind]
    raise schema.ConfigError(f"--{kind}={path}: the file does not exist. {hint}")


def _call(path: str, kind: str, argument: str) -> Any:
    """Execute a file and return the result of its get_config or, as a list, of its get_sweep."""
    name, other = f"get_{kind}", {"config": "sweep", "sweep": "config"}[kind]
    module = _execute(path)
    function = getattr(module, name, None)
    if function is None and hasattr(module, f"get_{other}"):
        raise schema.ConfigError(
            f"--{kind}={path} has get_{other}() and no {name}(): use --{other}={path}"
        )
    if not callable(function):
        result = "return a run" if kind == "config" else "yield the runs"
        raise schema.ConfigError(f"--{kind}={path} has no {name}(). It must {result}.")
    arguments = [argument] if argument else []
    _check_signature(path, name, function, arguments)

    def call() -> Any:
        result = function(*arguments)
        if kind == "config":
            return result
        if isinstance(result, schema.Run):
            _fail(path, "get_sweep() must yield runs, not return one run: write yield run")
        if not isinstance(result, Iterable):
            _fail(path, f"get_sweep() must yield runs, not return {_describe(result)}")
        runs = list(itertools.islice(result, MAX_RUNS + 1))
        if len(runs) > MAX_RUNS:
            _fail(path, f"get_sweep() yields more than {MAX_RUNS:,} runs: divide the sweep")
        return runs

    return _guard(path, call)


class UncachedLoader(importlib.abc.FileLoader, importlib.abc.SourceLoader):
    """Loader without bytecode files. They are stale if a file changes twice within a second."""


def _execute(path: str) -> types.ModuleType:
    """Import a file as a module and return it."""
    loader = UncachedLoader("config_file", path)
    spec = importlib.util.spec_from_file_location("config_file", path, loader=loader)
    assert spec, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look up the module of a class
    _guard(path, lambda: loader.exec_module(module))
    return module


def _check_signature(path: str, name: str, function: Callable, arguments: list[str]) -> None:
    """Raise ConfigError unless the function accepts the argument of FILE[:ARG]."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        remedy = "remove the text after the colon" if arguments else f"write {path}:ARGUMENT"
        _fail(path, f"{name}(): {error}: {remedy}")
    except ValueError:
        pass  # a function without a signature, such as a built-in one


def _guard(path: str, function: Callable[[], Any]) -> Any:
    """Call a function that executes code of a file. Raise its errors as ConfigError in one line."""
    try:
        return function()
    except (FileProblem, KeyboardInterrupt):
        raise
    except BaseException as error:  # a file may also call exit()
        line, problem = _locate(error, path), _describe_error(error)
        raise FileProblem(f"{path}{line}: {_explain_import(error) or problem}") from error


class FileProblem(schema.ConfigError):
    """An error of a config file or a sweep file, with the name of the file."""


def _locate(error: BaseException, path: str) -> str:
    """Return ":LINE" of the innermost line of a file that caused an error, "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f":{lines[-1]}" if lines else ""


def _describe_error(error: BaseException) -> str:
    """Return the message of an error in one line.

    The type of the error is omitted if lm raised it for an invalid value.
    """
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(message.split())[:500]
    frames = traceback.extract_tb(error.__traceback__)
    is_from_lm = bool(frames) and Path(frames[-1].filename).is_relative_to(ROOT / "lm")
    if isinstance(error, schema.ConfigError) or (is_from_lm and isinstance(error, ValueError)):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def _explain_import(error: BaseException) -> str:
    """Return the reason of an import error if another package hides a package of lm-scaling."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ImportError) or name not in ("configs", "experiments", "lm"):
        return ""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or Path(file).parent == ROOT / name:
        return ""
    return f"{Path(file).parent} hides the package {name} of lm-scaling: rename that folder"


def _resolve_and_validate(run: schema.Run) -> schema.Run:
    """Return the valid run with the hyperparameters of its rules. Raises ConfigError."""
    validation.validate_run(run_tokenizer.resolve_tokenizer(run))
    if not (run.optim.lr_rule or run.optim.weight_decay_rule or run.data.batch_size_rule):
        return run
    from lm.sweeps import hyperparameter_values  # imports SciPy

    hyperparameter_values.resolve_rules(run)
    return validation.validate_run(run)


def _validate(path: str, run: schema.Run) -> None:
    """Raise ConfigError that names the file and the run if the run is invalid."""
    try:
        _resolve_and_validate(run)
    except ValueError as error:
        is_named = str(error).startswith("name=")
        _fail(path, str(error) if is_named else f"run {run.name}: {error}")


def _check_names(path: str, names: list[str]) -> None:
    """Raise ConfigError if two runs have one name, or if a run is in the folder of another run."""
    previous: set[str] = set()
    for name in names:
        if name in previous:
            _fail(path, f"name={name!r} is the name of two runs: give each run a unique name")
        previous.add(name)
    try:
        run_files.check_distinct_names(names)
    except schema.ConfigError as error:
        _fail(path, str(error))
    for name in names:
        for parent in Path(name).parents:
            if str(parent) in previous:
                problem = f"is in the folder of the run {parent}: rename one of the runs"
                _fail(path, f"name={name!r} {problem}")


def _change_field(run: schema.Run, change: str) -> None:
    """Set a field of a run to the value of a change such as "optim.lr=0.01"."""
    field, _, text = change.partition("=")
    group, _, name = field.rpartition(".")
    setattr(getattr(run, group) if group else run, name, _parse_value(field, text))


def _field_type(field: str) -> type:
    """Return the type of a field. Raises ConfigError for an unknown field and for a dict entry."""
    kinds = schema.field_types(schema.Run)
    if field in kinds:
        return kinds[field]
    parent = field.partition("[")[0]
    if kinds.get(parent) is dict:
        example = {"data.sources": '{"code": 1.0}'}.get(parent, '{"mlp": []}')
        raise schema.ConfigError(
            f"--config.{field} is one entry of {parent}: set all entries,"
            f" such as --config.{parent}='{example}'"
        )
    if any(known.startswith(f"{field}.") for known in kinds):
        example = next(known for known in kinds if known.startswith(f"{field}."))
        raise schema.ConfigError(
            f"--config.{field} is a group of fields: set one, such as --config.{example}=VALUE"
        )
    raise schema.ConfigError("--config." + field_names.unknown_field_message(field))


def _parse_value(field: str, text: str) -> Any:
    """Return the value of a field from its text on the command line."""
    kind, flag = _field_type(field), f"--config.{field}"
    if field == "data.sources":
        return parse_sources(text, flag)
    try:
        if kind is bool:
            return BOOLEANS[text.lower()]
        if kind is dict:
            return _parse_object(text)
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError(text)
        return value
    except (ValueError, KeyError, RecursionError):
        forms = {int: "a whole number", float: "a finite number", bool: "true or false"}
        expected = forms.get(kind, """JSON such as '{"mlp": ["tensor"]}'""")
        raise schema.ConfigError(f"{flag}={text:.200} must be {expected}") from None


def _parse_object(text: str) -> dict:
    """Return a JSON object. Raises ValueError for other text."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _describe(value: Any) -> str:
    """Return the type of a value in words, without its contents."""
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _fail(path: str, problem: str) -> NoReturn:
    """Raise ConfigError for a problem of a file."""
    raise FileProblem(f"{path}: {problem}")
