"""SLURM jobs: the batch script, the queue, and submission from a machine without devices."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
from fixtures import commands, fake_slurm

from lm.config import schema
from lm.data import corpus
from lm.runs import lock, records
from lm.sweeps import launcher, slurm

ROOT = pathlib.Path(__file__).parent.parent.parent
SWEEP = """
from lm.config import model_sizes, schema

def get_sweep():
    for number in range(4):
        run = schema.Run(name=f"s/{{number}}", dir="my runs", seed=number, steps=12)
        run.log_interval, run.checkpoint_interval = 4, 4
        run.model = model_sizes.ladder_model("10K", n_layers=1)
        run.mesh.data = 1
        run.data.sources, run.data.cache_dir = {{"text:{text}": 1.0}}, "data"
        run.data.seq_len, run.data.batch_size, run.data.heldout_fraction = 32, 8, 0.2
        run.eval.n_sequences, run.eval.n_completions = 16, 0
        run.start.run = "s/0" if number > 1 else ""
        yield run
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> pathlib.Path:
    """Put the programs of the fake SLURM first on the path. Return their folder."""
    programs = fake_slurm.install(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM_HOLD", "1")
    return programs


def submitted_options(cluster: pathlib.Path, job: str) -> dict[str, str]:
    return json.loads((cluster / f"jobs/{job}.json").read_text())["options"]


def run_named(tiny: schema.Run, name: str, parent: str = "", **changes) -> schema.Run:
    start = schema.Start(run=parent)
    return dataclasses.replace(tiny, name=f"s/{name}", start=start, **changes)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("-p gpu -t 4:00:00", ["-p gpu", "-t 4:00:00"]),
        ('--comment="two words" --requeue', ["--comment='two words'", "--requeue"]),
        ("-J 'a b' --gres=gpu:1", ["-J 'a b'", "--gres=gpu:1"]),
        ("--comment='#1 \"x\"'", ["--comment='#1 \"x\"'"]),
        ("--partition gpu --nodes 2", ["--partition gpu", "--nodes 2"]),
        ("", []),
    ],
)
def test_options_are_split_and_quoted_like_a_shell(text, lines):
    assert slurm.parse_options(text) == lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('--comment="two', "No closing quotation"),
        ("gpu -t 1", "'gpu' is not an option"),
        ("--array=0-9", "--array cannot be set here: set --jobs"),
        ("-a 0-9", "-a cannot be set here: set --jobs"),
        ("--wrap=ls", "--wrap cannot be set here"),
    ],
)
def test_invalid_options_are_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        slurm.parse_options(text)
    assert "\n" not in str(error.value)


def test_script_runs_setup_and_passes_options_to_srun(tmp_path):
    """Each task has its own log, in a folder whose name has a space and a per cent sign."""
    options = slurm.JobOptions(
        "-p gpu", ["module load cuda", 'export A="x y"'], "--mpi=none --container-image='a b'", 3
    )
    text = slurm.batch_script("s", ["python", "a b.py"], 8, tmp_path / "1% b", options)
    assert fake_slurm.read_options(text)["--output"] == f"{tmp_path}/1%% b/%A_%a.log"
    assert "#SBATCH --array=0-7%3" in text and "#SBATCH -p gpu" in text
    code = text.replace("module", "echo module").replace("srun", "printf '<%s>' $A", 1)
    code = code.replace("cd ", "SLURM_CPUS_PER_TASK=5; cd ").replace("status=", "env; status=")
    output = subprocess.run(["bash", "-c", code], capture_output=True, text=True).stdout
    assert output.startswith("module load cuda\n<x><y><--kill-on-bad-exit=1>")
    assert f"<--output={tmp_path}/1%% b/%A_%a_%t.log>" in output
    assert "<--mpi=none><--container-image=a b><python><a b.py>" in output
    assert "SRUN_CPUS_PER_TASK=5" in output


def test_batch_script_requeues_interrupted_tasks(tmp_path):
    """The script requeues a task after a stall or a signal, but not a missing program."""
    text = slurm.batch_script("s", ["python"], 4, tmp_path, slurm.JobOptions())
    for status, is_requeued in (
        (0, False), (1, False), (2, False), (126, False), (127, False), (124, True), (143, True),
    ):  # fmt: skip
        code = text.replace("srun --kill", f"(exit {status}) #")
        code = code.replace("scontrol", "echo scontrol")
        result = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
        assert result.returncode == status and ("requeue" in result.stdout) == is_requeued


def test_machine_without_slurm_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="sbatch is not installed on this machine"):
        slurm.submit_slurm([run_named(tiny, "a")], [], 1, slurm.JobOptions())
    assert not pathlib.Path(tiny.dir).exists()


def test_only_the_predicted_run_waits_for_another_job(tiny, cluster):
    """A job has no more workers than runs that can be in training at the same time."""
    runs = [run_named(tiny, letter) for letter in "abc"]
    runs += [run_named(tiny, "child", "s/a"), run_named(tiny, "p", is_prediction_target=True)]
    assert slurm.submit_slurm(runs, ["x"], 9, slurm.JobOptions()) == [(3, "101"), (1, "102")]
    assert submitted_options(cluster, "101")["--array"] == "0-2"
    assert "--dependency" not in submitted_options(cluster, "101")
    assert submitted_options(cluster, "102")["--dependency"] == "afterany:101"
    assert slurm.queued_jobs(runs) == ["101", "102"]
    (cluster / "jobs/101.queued").unlink()
    assert slurm.queued_jobs(runs) == ["102"]
    (cluster / "jobs/102.queued").unlink()
    assert slurm.queued_jobs(runs) == []
    records.start_run(runs[1], {})
    records.write_facts(records.run_dir(runs[1]), status="done")
    assert slurm.submit_slurm(runs, ["x"], 9, slurm.JobOptions())[0] == (2, "103")


def test_refused_job_is_reported_in_one_line(tiny, cluster):
    options = slurm.JobOptions("--partition=missing")
    with pytest.raises(
        ValueError, match="'--partition=missing': sbatch refuses the job: .*invalid"
    ):
        slurm.submit_slurm([run_named(tiny, "a")], ["python"], 1, options)
    assert slurm.queued_jobs([run_named(tiny, "a")]) == []


def test_failing_squeue_stops_the_submission(tiny, cluster):
    run = run_named(tiny, "a")
    slurm.submit_slurm([run], ["python"], 1, slurm.JobOptions())
    (cluster / "squeue").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    with pytest.raises(ValueError, match="squeue fails: no controller"):
        slurm.queued_jobs([run])


def test_first_worker_prepares_text_and_others_wait(tiny, monkeypatch):
    """A worker waits for the worker that prepares the text, and then reads it without the lock."""
    runs, n_prepared, waits = [run_named(tiny, "a")], [], []
    folder = slurm.job_folder(runs) / "preparation"
    other_worker = lock.RunLock(folder)
    other_worker.__enter__()

    def end_other_worker(seconds: float) -> None:
        waits.append(seconds)
        other_worker.__exit__()

    monkeypatch.setattr(corpus, "prepare_corpus", lambda *arguments: n_prepared.append(1))
    monkeypatch.setattr(launcher, "validate_sweep", lambda runs, report: None)
    monkeypatch.setattr(slurm.time, "sleep", end_other_worker)
    slurm.prepare_in_worker(runs, "1", lambda *arguments: None)
    assert waits and len(n_prepared) == 1
    slurm.prepare_in_worker(runs, "1", lambda *arguments: None)
    assert len(n_prepared) == 1
    slurm.prepare_in_worker(runs, "2", lambda *arguments: None)
    assert len(n_prepared) == 2


@pytest.fixture
def folder(tmp_path, text_file) -> pathlib.Path:
    (tmp_path / "my sweep.py").write_text(SWEEP.format(text=text_file))
    return tmp_path


def sweep(folder: pathlib.Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.sweep", "--sweep=my sweep.py", *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_submission_uses_no_device_and_no_text(folder, cluster, monkeypatch):
    """JAX cannot start, and the mesh needs more devices than this machine has."""
    path = folder / "my sweep.py"
    path.write_text(path.read_text().replace("mesh.data = 1", "mesh.fsdp = 8"))
    arguments = ("--on=slurm", "--jobs=2", '--slurm=-p gpu --comment="two words"')
    result = sweep(folder, *arguments, JAX_PLATFORMS="missing")
    assert result.returncode == 0, result.stderr
    assert "SLURM job 101: 2 workers" in result.stdout
    assert "expected training time: unknown" in result.stdout
    assert not any((folder / "data").iterdir())
    assert submitted_options(cluster, "101")["--comment"] == "two words"
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("a device was used"))
    arguments = ("--sweep=my sweep.py", *arguments, "--target=gpu:h100:8")
    result = commands.run_command(folder, "sweep", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("nothing submitted: SLURM job 101 of this sweep is queued") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_jobs_train_a_sweep_and_survive_a_signal(folder, cluster, monkeypatch):
    """Children start when their parent is finished. A killed worker is requeued."""
    monkeypatch.delenv("FAKE_SLURM_HOLD")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    arguments = ("--on=slurm", "--jobs=2", "--slurm=--cpus-per-task=1")
    is_first_start = "[ $SLURM_ARRAY_TASK_ID$SLURM_RESTART_COUNT = 00 ]"
    killed = f"--slurm_setup={is_first_start} && srun() {{ return 143; }}"
    result = sweep(folder, *arguments, killed)
    assert result.returncode == 0, result.stderr
    queued = cluster / "jobs/101.queued"
    for _ in range(1200):
        if not queued.exists():
            break
        slurm.time.sleep(0.1)
    logs = {path.name: path.read_text() for path in (folder / "my runs/s/slurm").glob("*.log")}
    rows = records.load_runs(folder / "my runs/s")
    assert [row["status"] for row in rows] == ["done"] * 4, logs
    assert {*logs} == {"101_0.log", "101_1.log", "101_0_0.log", "101_1_0.log"}
    assert logs["101_0_0.log"].splitlines()[0].endswith(" 1")  # SRUN_CPUS_PER_TASK
    assert (folder / "my runs/s/report.html").exists()
    result = sweep(folder, *arguments)
    assert "all 4 runs are done" in result.stdout, result.stderr
