"""Run a command: `lms COMMAND` or `python -m experiments COMMAND`. Without a command, list them."""

import ast
import difflib
import os
import runpy
import shutil
import sys
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> int:
    """Run the command of sys.argv and return the exit status.

    Without a command, print the list of all commands.
    """
    command, arguments = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    commands = read_commands()
    if command in ("--help", "-h", "help"):
        _print(_list_commands(commands))
    elif command == "--version":
        from lm.runs import provenance

        print(f"lm-scaling {provenance.package_version()}")
    elif command in commands:
        sys.argv = [sys.argv[0], *arguments]
        runpy.run_module(f"experiments.{command}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(command, commands, 1)
        remedy = f"did you mean {near[0]}?" if near else f"use one of {', '.join(commands)}"
        print(f"error: {command} is not a command: {remedy}", file=sys.stderr)
        return 2
    return 0


def read_commands() -> dict[str, str]:
    """Return {command: first line of the docstring of its module}, in alphabetical order."""
    files = sorted(file for file in FOLDER.glob("*.py") if not file.name.startswith("_"))
    trees = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    return {
        name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in trees.items()
    }


def _print(text: str) -> None:
    """Print text. End the process without a message if the reader of the output has ended."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os._exit(141)  # 128 + SIGPIPE


def _list_commands(commands: dict[str, str]) -> str:
    """Return the list of all commands as text, folded to the width of the terminal."""
    width, columns = max(map(len, commands)), shutil.get_terminal_size((1000, 24)).columns
    indent, columns = " " * (width + 4), max(columns, width + 24)
    lines = [
        textwrap.fill(f"  {name:{width}}  {purpose}", columns, subsequent_indent=indent)
        for name, purpose in commands.items()
    ]
    usage = "usage: lms COMMAND [--FLAG=VALUE ...], or python -m experiments COMMAND"
    return "\n".join([usage, "", "Commands:", *lines, "", "Flags: lms COMMAND --help"])


if __name__ == "__main__":
    sys.exit(main())
