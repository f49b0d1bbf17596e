"""A dry run raises the errors of the run directories and uses the configs that they contain."""

import os
import pathlib
import subprocess
import sys

import pytest

from lm.config import schema
from lm.runs import records

ROOT = pathlib.Path(__file__).parent.parent.parent
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
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return subprocess.run(
        [sys.executable, "-m", *command, "--dry_run=gpu:h100:1"], cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.fixture
def folder(tiny, tmp_path) -> pathlib.Path:
    """Return a folder with a started run and a recipe with twice its learning rate."""
    run = schema.Run(
        name="sweep/tiny", dir=str(tmp_path / "runs"), model=tiny.model, data=tiny.data
    )
    records.start_run(run, {})
    (tmp_path / "recipes.py").write_text(RECIPES)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("experiments.train", "--config=recipes.py"),
        ("experiments.sweep", "--sweep=recipes.py"),
    ],
)
def test_dry_run_refuses_a_changed_config(folder, command):
    result = dry_run(folder, *command)
    assert result.returncode != 0 and "was started with optim.lr=" in result.stderr, result


def test_dry_run_of_a_sweep_adopts_stored_configs(folder):
    result = dry_run(folder, "experiments.sweep", "--sweep=recipes.py", "--adopt")
    assert result.returncode == 0 and "nothing was trained" in result.stdout, result.stderr
