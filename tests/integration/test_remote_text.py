"""A run from a bucket of token files has the losses of a run from local text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks import fast_compilation

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_bucket_of_megatron_files_gives_the_local_losses(tmp_path):
    flags = f"{fast_compilation.FLAGS} --xla_force_host_platform_device_count=8"
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "fixtures" / "bucket_run.py", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr
    local, remote = json.loads(result.stdout.splitlines()[-1])
    assert local == remote and len(local) == 7
