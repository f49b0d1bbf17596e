"""Errors name the flag that the command has."""

import os
import pathlib
import subprocess
import sys

import pytest
from fixtures import commands

from lm.runs import records

LOCALE = {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": ""}
ROOT = pathlib.Path(__file__).parent.parent.parent
SWEEP = """from lm.config import schema

def get_sweep():
    yield schema.Run(name="s/a")
"""


def test_folder_of_a_sweep_is_named_by_its_flag(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    for flag in ("--dir=sweep.py/x", "--dir=/proc/x"):
        result = commands.run_command(tmp_path, "sweep", "--sweep=sweep.py", flag)
        assert result.returncode == 2 and result.stderr.endswith("choose another --dir\n")
    text = SWEEP.replace('"s/a"', '"s/a", data=schema.Data(cache_dir="sweep.py/x")')
    (tmp_path / "sweep.py").write_text(text)
    result = commands.run_command(tmp_path, "sweep", "--sweep=sweep.py")
    assert result.stderr.endswith("choose another data.cache_dir in the sweep file\n")


@pytest.mark.parametrize("utf8_mode", ["0", "1"])
def test_prompt_that_is_not_utf8_names_its_flag(tmp_path, finished_run, utf8_mode):
    """In the UTF-8 mode of Python, invalid bytes become surrogates."""
    command = [sys.executable, "-m", "experiments.sample", "--prompt=-"]
    result = subprocess.run(
        [*command, f"--run={records.run_dir(finished_run)}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": utf8_mode} | LOCALE,
        input=b"ab\xff",
        capture_output=True,
        cwd=tmp_path,
    )
    message = result.stderr.decode()
    assert result.returncode == 2 and message.startswith("error: --prompt=-: position 2 of"), (
        message
    )
