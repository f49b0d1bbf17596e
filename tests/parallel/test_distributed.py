"""Devices of a process whose platform is missing."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
from fixtures import commands

from lm.parallel import distributed, mesh
from lm.training import loop

ROOT = pathlib.Path(__file__).parent.parent.parent


def raise_assertion():
    raise AssertionError  # as JAX does if the plug-in of the platform is not installed


def test_missing_platform_is_reported_with_its_remedy(monkeypatch, tiny, finished_run):
    monkeypatch.setattr(jax, "devices", raise_assertion)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    message = r"^JAX_PLATFORMS=cuda: JAX finds no device .*uv sync --extra gpu.*JAX_PLATFORMS=cpu"
    for use in (
        distributed.list_devices,
        lambda: mesh.make_mesh(tiny.mesh),
        lambda: loop.train(tiny),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    run = pathlib.Path(finished_run.dir) / finished_run.name
    result = commands.run_command(run, "sample", f"--run={run}", "--prompt=a")
    assert result.returncode == 2 and result.stderr.startswith("error: JAX_PLATFORMS=cuda: JAX")


def test_training_without_its_platform_is_one_line_and_status_2(tmp_path):
    (tmp_path / "base.py").write_text(
        "from lm.config import schema\n\ndef get_config():\n    return schema.Run()\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "experiments.train", "--config=base.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "missing"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: JAX_PLATFORMS=missing: JAX finds no device (Unable to init")
