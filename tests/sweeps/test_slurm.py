"""SLURM jobs: dependency levels, the batch script and a missing sbatch."""

import dataclasses
import pathlib
import shutil
import subprocess

import pytest

from lm.config import schema
from lm.runs import records
from lm.sweeps import slurm


def names_by_level(runs: list[schema.Run]) -> list[list[str]]:
    return [[run.name for run in level] for level in slurm.dependency_levels(runs)]


def test_parents_come_before_children_and_prediction_last(tiny):
    def run(name: str, parent: str = "", predict: bool = False) -> schema.Run:
        start = schema.Start(run=parent)
        return dataclasses.replace(
            tiny, name=f"s/{name}", start=start, is_prediction_target=predict
        )

    runs = [run("p", predict=True), run("b", "s/a"), run("c", "s/b"), run("a"), run("d")]
    assert names_by_level(runs) == [["s/a", "s/d"], ["s/b"], ["s/c"], ["s/p"]]
    records.start_run(runs[3], {})
    records.write_facts(records.run_dir(runs[3]), status="done")
    assert names_by_level(runs)[0] == ["s/b", "s/d"]


def test_batch_script_requeues_interrupted_tasks(tmp_path):
    """The script passes on any sbatch option, and requeues a task after a stall or a signal."""
    text = slurm.batch_script(
        "s", ["python", "-m", "x", "--sweep=a b.py"], 4, tmp_path, ["--partition=gpu"]
    )
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash" and "#SBATCH --array=0-3" in lines
    assert "#SBATCH --partition=gpu" in lines and "#SBATCH --requeue" in lines
    assert "srun --kill-on-bad-exit=1 python -m x '--sweep=a b.py'" in lines
    for status, is_requeued in ((0, False), (1, False), (2, False), (124, True), (143, True)):
        code = text.replace("srun --kill-on-bad-exit=1 python", f"(exit {status}) #")
        code = code.replace("scontrol", "echo scontrol")
        result = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
        assert result.returncode == status and ("requeue" in result.stdout) == is_requeued


def test_machine_without_slurm_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="sbatch is not installed on this machine"):
        slurm.submit_slurm([dataclasses.replace(tiny, name="s/a")], [], 1, [])
    assert not pathlib.Path(tiny.dir).exists()


def test_each_job_waits_for_the_job_before_it(tiny, monkeypatch):
    """A job has at most max_workers tasks, and the dependency names the id without its cluster."""
    commands = []

    def sbatch(command, **options):
        commands.append(command)
        job_id = f"{100 + len(commands)};cluster\n"
        return subprocess.CompletedProcess(command, 0, stdout=job_id, stderr="")

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", sbatch)
    parents = [dataclasses.replace(tiny, name=f"s/{letter}") for letter in "abc"]
    child = dataclasses.replace(tiny, name="s/child", start=schema.Start(run="s/a"))
    jobs = slurm.submit_slurm([child, *parents], ["python"], 2, ["--partition=gpu"])
    assert jobs == [(2, "101"), (1, "102")]
    assert commands[0][1:-1] == ["--parsable"]
    assert commands[1][1:-1] == ["--parsable", "--dependency=afterany:101"]
    assert "#SBATCH --array=0-1" in pathlib.Path(commands[0][-1]).read_text()


def test_refused_job_is_reported_in_one_line(tiny, monkeypatch):
    def sbatch(command, **options):
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="bad\npartition\n")

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", sbatch)
    with pytest.raises(ValueError, match="--slurm='-p x': sbatch refuses the job: bad, partition"):
        slurm.submit_slurm([dataclasses.replace(tiny, name="s/a")], ["python"], 1, ["-p", "x"])
