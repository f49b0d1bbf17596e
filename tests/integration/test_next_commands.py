"""The suggested next command of each command: it exists, has the given flags and is quoted."""

import ast
import pathlib
import re

import pytest
from absl import flags

from experiments.common import config_files, console, next_command

ROOT = pathlib.Path(__file__).parents[2] / "experiments"
FILES = [*ROOT.glob("*.py"), *(ROOT / "common").glob("*.py")]
# Commands without a suggestion of their own: sweep and status print that of their sweep.
COMMANDS = sorted(f.stem for f in ROOT.glob("*.py") if not f.stem.startswith("_"))


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    """Return the calls of a function or method with this name."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [n for n in nodes if getattr(n.func, "attr", getattr(n.func, "id", "")) == name]


def defined_flags(tree: ast.AST) -> set[str]:
    """Return the names of the flags that a module defines."""
    names = ("string", "bool", "integer", "float", "list", "enum", "multi_string")
    definitions = [call for name in names for call in calls(tree, f"DEFINE_{name}")]
    return {call.args[0].value for call in definitions if isinstance(call.args[0], ast.Constant)}


def texts(node: ast.AST) -> list[str]:
    """Return the first literal part of each string in an expression, such as --run=."""
    strings = [n for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value]
    return [n.value for n in strings if isinstance(n.value, str)]


def test_every_command_suggests_commands_with_existing_flags():
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
    common = set().union(*(defined_flags(t) for file, t in trees.items() if "common" in file.parts))
    by_command = {file.stem: defined_flags(tree) for file, tree in trees.items()}
    by_command = {name: by_command[name] | common | {"help", "config"} for name in COMMANDS}
    suggestions = {
        file.stem: calls(tree, "print_next")
        for file, tree in trees.items()
        if file.stem != "next_command"
    }
    assert set(COMMANDS) <= {name for name, nodes in suggestions.items() if nodes}
    for name, nodes in suggestions.items():
        for call in nodes:
            targets = [text for text in texts(call.args[0]) if text in by_command]
            assert targets, (name, ast.unparse(call))
            for text in (text for argument in call.args[1:] for text in texts(argument)):
                flag = re.match(r"--(\w+)", text)
                assert not flag or all(flag[1] in by_command[t] for t in targets), (name, text)


@pytest.fixture
def printed(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(console, "print_line", lines.append)
    return lines


def test_suggestions_are_quoted_and_repeat_the_config(printed, monkeypatch, tmp_path):
    monkeypatch.setattr(next_command.flags, "FLAGS", values := flags.FlagValues())
    for define, name in (
        *((flags.DEFINE_string, n) for n in ("config", "sources", "sweep")),
        (flags.DEFINE_multi_string, "config_changes"),
    ):
        define(name, None, "", flag_values=values)
    values(["x", "--config=a b.py:10K", "--config_changes=optim.lr=0.1", '--sources={"code": 1}'])
    next_command.print_next("train", *next_command.sweep_or_config_arguments())
    values.sweep = "s.py"
    monkeypatch.setattr(config_files, "ROOT", tmp_path)  # an installation without a clone
    arguments = next_command.sweep_or_config_arguments()
    next_command.print_next("sweep", *arguments, environment={"TFDS_DATA_DIR": "my data"})
    assert printed == [
        "next: uv run python -m experiments.train '--config=a b.py:10K' --config.optim.lr=0.1"
        " '--sources={\"code\": 1}'",
        "next: TFDS_DATA_DIR='my data' lms sweep --sweep=s.py",
    ]
