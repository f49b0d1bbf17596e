"""Suggested next command, which is a last line of a command's output.

    next_command.print_next("report", "--dir=runs/quickstart")
    # next: uv run python -m experiments.report --dir=runs/quickstart

In an installation without the clone, the line has `lms report --dir=runs/quickstart`. Values with
spaces are quoted for the shell. Commands with --json print no such line.
"""

import shlex
from collections.abc import Mapping

from absl import flags

from experiments.common import cli, config_files, console


def print_next(command: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Print a command that a reader may want to run next.

    environment: variables that the command needs.
    """
    is_clone = (config_files.ROOT / "pyproject.toml").is_file()
    program = ["uv", "run", "python", "-m", f"experiments.{command}"]
    words = program if is_clone else ["lms", command]
    variables = [f"{name}={shlex.quote(value)} " for name, value in (environment or {}).items()]
    console.print_line(f"next: {''.join(variables)}{shlex.join([*words, *arguments])}")


def config_arguments() -> list[str]:
    """Return the arguments --config, --config.FIELD and --sources of the current command."""
    values = flags.FLAGS
    arguments = [f"--config={values['config'].value}"]
    arguments += [f"--config.{change}" for change in values[cli.CHANGES_FLAG].value or []]
    return arguments + ([f"--sources={values.sources}"] if values.sources else [])


def sweep_or_config_arguments() -> list[str]:
    """Return --sweep of the current command, or else the arguments of its config."""
    sweep = flags.FLAGS["sweep"].value
    return [f"--sweep={sweep}"] if sweep else config_arguments()
