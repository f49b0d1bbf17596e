"""A dry run raises the errors of the run directories and uses the configs that they contain."""

import os
import pathlib
import subprocess

import pytest
from fixtures import commands

from lm.config import schema
from lm.runs import records

RECIPES = """
from lm.runs import records

def get_config():
    run = records.read_config("runs/sweep/tiny")
    run.optim.lr *= 2
    return run

def get_sweep():
    yield get_config()
"""


def dry_run(folder: pathlib.Path, *command: str) -> subprocess.CompletedProcess:
    return commands.run_command(folder, *command, "--dry_run=gpu:h100:1")


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch) -> pathlib.Path:
    """Return a folder with a started run and a recipe with twice its learning rate."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    run = schema.Run(
        name="sweep/tiny", dir=str(tmp_path / "runs"), model=tiny.model, data=tiny.data
    )
    records.start_run(run, {})
    (tmp_path / "recipes.py").write_text(RECIPES)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--config=recipes.py"),
        ("sweep", "--sweep=recipes.py"),
    ],
)
def test_dry_run_refuses_a_changed_config(folder, command):
    result = dry_run(folder, *command)
    assert result.returncode != 0 and "was started with optim.lr=" in result.stderr, result


def test_dry_run_of_a_sweep_adopts_stored_configs(folder):
    result = dry_run(folder, "sweep", "--sweep=recipes.py", "--adopt")
    assert result.returncode == 0 and "nothing was trained" in result.stdout, result.stderr
