"""Compilers of machines that are not here; each test needs the extra with that machine's."""

import json
import os
import subprocess
import sys

import pytest

from lm import described, targets


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 33.5G of 15.75G hbm. Exceeded hbm capacity"
         " by 17.75G.", 16 * 2**30 + 17.75 * 2**30),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
         " temporaries (165.56G) exceeds available HBM (15.75G).", 2**30 + 165.56 * 2**30),
        ("INVALID_ARGUMENT: something else", 0.0),
    ],
)  # fmt: skip
def test_what_a_compiler_says_of_memory_is_understood(message, needed):
    found = described._needed(message, held=2**30, memory=16 * 2**30)
    assert found == pytest.approx(needed)


def test_more_devices_than_this_process_has_are_refused():
    with pytest.raises(ValueError, match="this process has"):
        described.devices(targets.parse("cpu:64"))


@pytest.mark.parametrize(("name", "extra"), [("tpu:v5e:2x2", "tpu"), ("gpu:h100:4", "gpu")])
def test_a_step_compiles_for_a_machine_that_is_not_here(name, extra, tmp_path):
    if described.missing(targets.parse(name)):
        pytest.skip(f"the extra {extra} is not installed")
    command = [sys.executable, "-m", "experiments.plan", "--config=configs/base.py:10K", "--json"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [*command, f"--target={name}", "--config.mesh.fsdp=4"],
        env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["how"] == "compiled" and row["bytes_over"] == 0 and row["devices"] == 4
    assert row["collectives"] and row["compile_seconds"] > 0
