"""The commands and examples of README.md, CONTRIBUTING.md, other pages and docstrings.

The tests check names: modules, flags, config fields and files. test_documentation.py runs them.
"""

import ast
import functools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import typing

import pytest

from lm.config import schema, validation

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    *(README, ROOT / "CONTRIBUTING.md"),
    *(ROOT / "experiments" / "README.md", ROOT / "configs" / "README.md"),
]
COMMAND = re.compile(r"uv run (?:--extra \w+ )*python -m experiments\.(\S+)(.*)")
PLACEHOLDERS = ("NAME", "FOLDER", "FILE")
SHOWN_FILE = "my_sweep.py"  # its code is in README.md
# Parses the flags of each command in a new process, because a flag can be defined once per process.
PARSER = """
import importlib, json, sys
from absl import flags

errors = []
for module, arguments in json.load(sys.stdin):
    try:
        command = importlib.import_module(f"experiments.{module}")
        if hasattr(command, "__path__"):  # a package
            importlib.import_module(f"experiments.{module}.__main__")
        configs = [x for x in arguments if x.startswith("--config")]
        if configs and "config" not in flags.FLAGS:
            errors.append(f"{module}: {configs[0]}, but the command has no --config")
        rest = flags.FLAGS([module, *(x for x in arguments if x not in configs)])[1:]
        rest = rest[len(getattr(command, "POSITIONAL", ())) :]
        errors += [f"{module}: {argument} is not a flag" for argument in rest]
    except (ImportError, flags.Error) as error:
        errors.append(f"{module}: {error}")
    for name in {*flags.FLAGS} - {"flagfile", "undefok"}:
        delattr(flags.FLAGS, name)
    for name in [name for name in sys.modules if name.startswith("experiments.")]:
        del sys.modules[name]
print(json.dumps(errors))
"""


class Command(typing.NamedTuple):
    """A command line of a page."""

    module: str  # below experiments
    arguments: list[str]


def code_blocks(text: str, language: str = "") -> list[str]:
    """Return the code blocks of a page in a language. Blocks of commands have no language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in blocks if name.replace("bash", "") == language]


def page_commands(text: str) -> list[Command]:
    """Return the commands of experiments in the code blocks of a page, then those in sentences."""
    lines = "".join(code_blocks(text)).replace("\\\n", " ").splitlines()
    sentences = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += re.findall(r"`(uv run [^`]*)`", sentences)
    matches = [match for line in lines if (match := COMMAND.search(line))]
    return [Command(match[1], shlex.split(match[2], comments=True)) for match in matches]


def flag_errors(commands: list[Command]) -> list[str]:
    """Return the errors of the modules and flags of commands.

    The values of --config are not parsed, because their files may read runs.
    """
    inputs = [command for command in commands if not command.module.endswith(PLACEHOLDERS)]
    finished = subprocess.run(
        [sys.executable, "-c", PARSER],
        input=json.dumps(inputs),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


def config_errors(commands: list[Command]) -> list[str]:
    """Return the errors of the config fields, config files and sweep files of commands."""
    fields, errors = schema.field_types(schema.Run), []
    for argument in [argument for command in commands for argument in command.arguments]:
        name, _, value = argument.removeprefix("--").partition("=")
        file = value.partition(":")[0]
        if name.startswith("config."):
            field = name.removeprefix("config.").partition("[")[0]
            errors += [] if field in fields else [f"{argument}: no such field"]
        elif name in ("config", "sweep") and pathlib.Path(file).stem not in PLACEHOLDERS:
            is_present = file == SHOWN_FILE or (ROOT / file).is_file()
            errors += [] if is_present else [f"{argument}: no such file"]
    return errors


@functools.cache
def all_commands() -> list[Command]:
    """Return the commands of all pages, and of the docstrings of commands and configs."""
    texts = [path.read_text(encoding="utf-8") for path in PAGES]
    for path in (path for top in ("experiments", "configs") for path in (ROOT / top).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        texts.append(f"```\n{docstring}\n```\n")
    return [command for text in texts for command in page_commands(text)]


def test_readme_shows_every_kind_of_command():
    commands = page_commands(README.read_text(encoding="utf-8"))
    assert len(commands) > 15
    assert {"sweep", "train", "plan", "evaluate", "export"} <= {c.module for c in commands}


def test_commands_name_modules_and_flags_that_exist():
    assert flag_errors(all_commands()) == []


def test_commands_name_fields_and_files_that_exist():
    assert config_errors(all_commands()) == []


def test_wrong_names_in_a_command_are_detected():
    block = "```\nuv run python -m experiments.{} --run=r\n```\n"
    assert flag_errors(page_commands(block.format("sample --feedback=f"))) != []
    assert flag_errors(page_commands(block.format("sampler"))) != []
    assert flag_errors(page_commands(block.format("status --config=configs/base.py"))) != []
    assert flag_errors(page_commands(block.format("sample --n=many"))) != []
    assert len(config_errors(page_commands(block.format("train --config.optim.rate=1")))) == 1
    assert len(config_errors(page_commands(block.format("sweep --sweep=missing.py")))) == 1


def test_pytest_commands_name_files_that_exist():
    pages = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    paths = re.findall(r"uv run pytest .*?(tests/[\w/]+\.py)", pages)
    assert paths and all((ROOT / path).is_file() for path in paths)


def sweep_example() -> str:
    """Return the code of SHOWN_FILE."""
    return next(code for code in code_blocks(README.read_text(), "python") if "get_sweep" in code)


def test_sweep_example_yields_valid_runs():
    namespace: dict = {}
    exec(sweep_example(), namespace)
    runs = [validation.validate_run(run) for run in namespace["get_sweep"]()]
    assert len({run.name for run in runs}) == len(runs) > 4
    assert [run.is_prediction_target for run in runs] == [False] * (len(runs) - 1) + [True]


@pytest.mark.parametrize("folder", ["experiments/benchmarks", "configs/sweeps"])
def test_every_benchmark_and_sweep_is_in_a_table(folder):
    top, name = folder.split("/")
    page = (ROOT / top / "README.md").read_text(encoding="utf-8")
    files = [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert files and [file for file in files if f"({name}/{file})" not in page] == []
