"""Checks of flags before a command computes anything."""

import os
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from experiments.common import cli
from lm.runs import filesystem


def reject_flags(names: Iterable[str], reason: str) -> None:
    """Raise ValueError for the first of these flags that the command line sets.

    reason: the end of a sentence whose subject is the flag, such as "has no effect with --json".
    """
    for name in names:
        flag = flags.FLAGS[name]
        is_set = flag.present or flag.value != flag.default  # positional ones are not present
        if is_set and flag.value:
            shown = "config.FIELD" if name == cli.CHANGES_FLAG else name
            raise ValueError(f"--{shown} {reason}: remove it")


def check_output_file(flag: str, name: str) -> None:
    """Raise ValueError if the local file that a flag names cannot be written."""
    file, problem = Path(name), ""
    if filesystem.is_remote(name):
        problem = "must be a local file: name one, and copy it to the bucket"
    elif file.is_dir():
        problem = "is a folder: name a file in it"
    elif not file.absolute().parent.is_dir():
        problem = "is in a folder that does not exist: create the folder"
    elif not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        problem = "is not writable: name another file"
    if problem:
        raise ValueError(f"--{flag}={name} {problem}")
