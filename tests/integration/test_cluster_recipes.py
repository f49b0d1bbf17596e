"""The recipes of configs/clusters: their files parse, and their commands are valid.

Each command runs with --dry-run on simulated devices of its hardware, in the environment that the
cluster gives to the last process.
"""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
from fixtures import commands

from experiments.common import cli
from lm.parallel import cluster

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "clusters"
SLURM = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "node[7-8]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_JOB_ID": "17",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
RECIPES = {
    "slurm.sh": ("gpu:h100:2x8", SLURM, "this is process 1, process 0 is at node7:61457"),
    "skypilot_tpu.yaml": (
        "tpu:v5e:16x16",
        {"TPU_WORKER_HOSTNAMES": ",".join(f"10.0.0.{i}" for i in range(64))},
        "processes: detected by JAX",
    ),
    "jobset.yaml": (
        "gpu:h100:2x8",
        {"JOB_COMPLETION_INDEX": "1"},
        "this is process 1, process 0 is at pod-1b-nodes-0-0.pod-1b:1234",
    ),
}


def read_command(name: str) -> list[str]:
    """Return the arguments of the Python command of a recipe, from "-m" on."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    if name == "jobset.yaml":
        yaml = pytest.importorskip("yaml")
        (job,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        words = container["command"]
    else:
        if name.endswith(".yaml"):
            text = pytest.importorskip("yaml").safe_load(text)["run"]
        lines = re.sub(r"\\\n\s*", " ", text).splitlines()
        (line,) = (line for line in lines if "python -m" in line and not line.startswith("#"))
        words = shlex.split(line)
    return words[words.index("python") + 1 :]


def test_every_recipe_is_tested():
    assert {file.name for file in FOLDER.iterdir() if file.is_file()} == {*RECIPES}


def test_shell_accepts_the_slurm_script():
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)


def test_kubernetes_recipe_starts_a_pod_per_process():
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load((FOLDER / "jobset.yaml").read_text(encoding="utf-8"))
    (job,) = recipe["spec"]["replicatedJobs"]
    spec, command = job["template"]["spec"], read_command("jobset.yaml")
    assert spec["completionMode"] == "Indexed"  # sets JOB_COMPLETION_INDEX
    assert f"--processes={spec['completions']}" in command
    assert spec["completions"] == spec["parallelism"]
    (port,) = spec["template"]["spec"]["containers"][0]["ports"]
    host = f"{recipe['metadata']['name']}-{job['name']}-0-0.{recipe['metadata']['name']}"
    assert f"--coordinator={host}:{port['containerPort']}" in command


@pytest.mark.parametrize("name", RECIPES)
def test_command_of_a_recipe_passes_its_dry_run(name, tmp_path, monkeypatch):
    target, variables, expected = RECIPES[name]
    option, module, *arguments = read_command(name)
    assert option == "-m" and module.startswith("experiments.")
    for variable in [variable for variable in os.environ if variable.startswith("SLURM_")]:
        monkeypatch.delenv(variable)
    arguments = (*arguments, f"--dry-run={target}")
    command = module.removeprefix("experiments.")
    result = commands.run_command(tmp_path, command, *arguments, **variables)
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout and "mesh" in result.stdout
    assert "nothing was trained" in result.stdout
    assert not any(tmp_path.iterdir())
    assert cluster.find_processes(variables) is not None or name == "jobset.yaml"


def test_dashes_in_flag_names_are_underscores(monkeypatch):
    """The options of sbatch in the value of another flag are no flags."""
    values = cli.flags.FlagValues()
    cli.flags.DEFINE_string("dry_run", "", "help", flag_values=values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    assert cli._underscore_name("--dry-run=gpu:h100:2x8") == "--dry_run=gpu:h100:2x8"
    assert cli._underscore_name("--gpus-per-node=8") == "--gpus-per-node=8"
    assert cli._underscore_name("-p gpu-a") == "-p gpu-a"
