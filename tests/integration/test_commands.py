"""The commands with the arguments of a user, in this process and in separate ones."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
from fixtures import commands, made_up_sweep, verified_sweep

from lm.runs import records
from lm.runs.integrity import sweep_files

ROOT = pathlib.Path(__file__).parent.parent.parent

SWEEP = """
from lm.config import model_sizes, schema

def get_sweep(steps="8"):
    for size in ("10K", "15K"):
        run = schema.Run(name=f"s/{{size}}", steps=int(steps), log_interval=2)
        run.checkpoint_interval = 4
        run.model = model_sizes.ladder_model(size, n_layers=1)
        run.data.sources, run.data.cache_dir = {{"text:{text}": 1.0}}, "{text}/../data"
        run.data.seq_len, run.data.batch_size, run.data.heldout_fraction = 32, 8, 0.2
        run.eval.n_sequences, run.eval.n_completions = 16, 16
        yield run
"""


BASE = "from lm.config import schema\n\ndef get_config():\n    return schema.Run()\n"


@pytest.fixture
def folder(tmp_path, text_file) -> pathlib.Path:
    (tmp_path / "sweep.py").write_text(SWEEP.format(text=text_file))
    return tmp_path


def environment() -> dict:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2", "COLUMNS": "200"}


def start_command(folder, name, *arguments, **variables) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=folder, env=environment() | variables, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
    """Train the sweep once. Return its folder and the finished command."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "sweep.py").write_text(SWEEP.format(text=text_file))
    (folder / "base.py").write_text(BASE)
    result = commands.run_command(folder, "sweep", "--sweep=sweep.py")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_sweep_trains_and_writes_a_report(trained):
    folder, sweep = trained
    for text in (
        *("width", "without embeddings", "pending runs: 2 of 2", "training FLOPs: "),
        *("epochs over ", "tokens/s", "MFU", "s/10K: begins", "s/10K: done"),
        "s/10K  step 8 of 8  held-out loss",
    ):
        assert text in sweep.stdout, text
    assert sweep.stdout.splitlines()[-1] == "report: runs/s/report.html"
    assert [row["status"] for row in records.load_runs(folder / "runs")] == ["done", "done"]
    assert (folder / "runs/s/report.html").stat().st_size > 10_000
    assert list((folder / "runs/s/figures").glob("*.png"))
    assert sweep_files.read_member_names(folder / "runs/s") == {"s/10K", "s/15K"}


def test_run_in_training_elsewhere_is_no_failure_of_a_sweep(tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    records.write_facts(folder / "c", status="running", ends_at=None)
    script = (
        "import pathlib; from experiments import sweep; from lm.reports import report\n"
        "from lm.runs import lock; report.write_summary = str; folder = pathlib.Path('s')\n"
        "with lock.RunLock(folder / 'c'):\n    print(sweep.print_results(folder))\n"
        "print(sweep.print_results(folder))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    statuses = [line for line in done.stdout.splitlines() if line in ("0", "1")]
    assert statuses == ["0", "1"], done.stdout + done.stderr  # lost after the lock is released


def test_second_sweep_command_trains_nothing(trained):
    folder, _ = trained
    second = start_command(folder, "sweep", "--sweep=sweep.py", JAX_PLATFORMS="missing")
    assert second.returncode == 0 and "all 2 runs are done" in second.stdout
    assert records.load_runs(folder / "runs")[0]["attempts"] == 1


def test_status_and_report_read_the_records(trained):
    folder, _ = trained
    status = commands.run_command(folder, "status", "--dir=runs/s")
    assert status.returncode == 0 and status.stdout.count("8 of 8") == 2
    assert "runs done: 2 of 2" in status.stdout
    report = commands.run_command(folder, "report", "--dir=runs/s")
    assert report.returncode == 0 and report.stdout.endswith("\nreport: runs/s/report.html\n")
    audit = commands.run_command(folder, "report", "--verify=runs/s")
    assert audit.returncode == 0
    assert audit.stdout.startswith(
        "not verifiable: runs/s has no prediction.json\ncontradictions: 0"
    )
    archive = commands.run_command(folder, "report", "--dir=runs/s", "--archive_to=archive")
    assert archive.returncode == 0, archive.stderr
    assert archive.stdout.splitlines()[-1] == "archive: archive"
    assert len(records.load_runs(folder / "archive")) == 2


def test_evaluate_repeats_the_final_loss(trained, text_file):
    """The text is outside the working directory, so it needs permission."""
    folder, _ = trained
    refused = commands.run_command(folder, "evaluate", "--run=runs/s/10K")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert f"data.cache_dir names {text_file}/../data, outside the run and" in refused.stderr
    permission = f"--allow_path={text_file.parent}"
    evaluate = commands.run_command(folder, "evaluate", "--run=runs/s/10K", permission)
    assert evaluate.returncode == 0, evaluate.stderr
    (row, _) = records.load_runs(folder / "runs")
    assert f"{row['eval.loss']:.4f}" in evaluate.stdout


def test_evaluate_measures_other_text(trained):
    """The records of the run do not change."""
    folder, _ = trained
    (folder / "other.jsonl").write_text(
        "".join(f'{{"text": "line {n} of it"}}\n' for n in range(99))
    )
    evals = folder / "runs/s/10K/evals.jsonl"
    stored = evals.read_text()
    sources = """--sources={"jsonl:other.jsonl": 1}"""
    options = ("--seq_len=16", "--n_sequences=8", "--cache_dir=data")
    evaluate = commands.run_command(folder, "evaluate", "--run=runs/s/10K", sources, *options)
    assert evaluate.returncode == 0, evaluate.stderr
    assert (
        "jsonl:other.jsonl: all documents, 99 documents; evaluated: 8 sequences of 16 tokens"
        in (evaluate.stdout)
    )
    assert "loss.other" in evaluate.stdout and evals.read_text() == stored


def test_train_prints_its_header_evaluations_and_result(folder):
    (folder / "one.py").write_text(
        "import sweep\n\ndef get_config():\n    run = next(sweep.get_sweep())\n"
        "    run.eval.interval = 4\n    return run\n"
    )
    train = commands.run_command(folder, "train", "--config=one.py")
    assert train.returncode == 0, train.stderr
    lines = train.stdout.splitlines()
    assert lines[0].startswith("devices: 4 cpu") and "epochs over " in train.stdout
    assert lines[1].startswith("attention: plain, because ")
    assert "training documents, " in train.stdout
    assert sum("of 8  held-out loss" in line for line in lines) == 2
    assert "evaluation of the checkpoint of step 8:" in lines
    assert lines[-2].startswith("next: uv run python -m experiments.")
    assert lines[-1] == "run directory: runs/s/10K"
    changed = commands.run_command(folder, "train", "--config=one.py", "--config.steps=40")
    assert changed.returncode == 2 and len(changed.stderr.splitlines()) == 1
    assert "runs/s/10K was started with steps=8, now 40 (steps may change with" in changed.stderr


def test_sample_prints_tokens_as_json(trained):
    folder, _ = trained
    options = ("--prompt=The quick", "--max_tokens=3", "--stop=zzz", "--json")
    sample = commands.run_command(folder, "sample", "--run=runs/s/10K", *options)
    assert sample.returncode == 0, sample.stderr
    answer = json.loads(sample.stdout)
    assert answer["finish_reason"] == "length" and all(0 < t["p"] <= 1 for t in answer["tokens"])
    assert answer["text"] == "".join(t["text"] for t in answer["tokens"])


def test_rated_conversation_becomes_a_tuning_set(trained):
    """A prompt that is too long is refused in one line, and the conversation continues."""
    folder, _ = trained
    typed = "+\nThe quick\n- \nThe\n= brown fox\nquick\n-\n" + 40 * "x" + "\n"
    sample = commands.run_command(
        *(folder, "sample", "--run=runs/s/10K", "--max_tokens=3", "--feedback_file=rated.jsonl"),
        input=typed,
    )
    assert sample.returncode == 0 and "no answer to rate" in sample.stdout, sample.stderr
    assert "prompt of 40 tokens, more than data.seq_len=32 of this run" in sample.stdout
    rated = ("--config=base.py", "--config.data.cache_dir=rated", "--from_prompts=rated.jsonl")
    prepare = commands.run_command(folder, "prepare", *rated)
    assert prepare.returncode == 0, prepare.stderr
    assert "1 prompts rated good are in" in prepare.stdout
    tuning = json.loads((folder / "rated.tuning.jsonl").read_text())
    assert tuning == {"prompt": "The", "target": "brown fox", "task": "prompts"}


def test_changed_config_of_a_started_run_is_refused(trained):
    folder, _ = trained
    text = (folder / "sweep.py").read_text()
    changed = text.replace("seq_len, run", "seq_len, run.optim.lr, run")
    (folder / "changed.py").write_text(changed.replace("= 32, 8, 0.2", "= 32, 0.5, 8, 0.2"))
    refused = commands.run_command(folder, "sweep", "--sweep=changed.py")
    assert refused.returncode == 2
    assert "s/10K was started with optim.lr=0.003, now 0.5" in refused.stderr


def test_interrupted_sweep_saves_and_exits_with_130(folder):
    metrics, is_finished = folder / "runs/s/10K/metrics.jsonl", threading.Event()

    def interrupt() -> None:
        """Send the signal to this process while the run trains."""
        while not metrics.exists():
            if is_finished.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = commands.run_command(folder, "sweep", "--sweep=sweep.py:100000")
    is_finished.set()
    thread.join()
    errors = result.stderr
    assert result.returncode == 128 + signal.SIGINT, errors
    assert "stopped by SIGINT at step" in errors and "repeat the command to continue" in errors
    assert "Traceback" not in errors
    steps = [int(p.name) for p in (folder / "runs/s/10K/checkpoints").iterdir() if p.name.isdigit()]
    assert max(steps) >= records.load_metrics(folder / "runs/s/10K")[-1]["step"]
    assert records.load_runs(folder / "runs")[0]["status"] == "lost"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sweep", ["--sweep=nowhere.py"], "--sweep=nowhere.py: the file does not exist"),
        ("sweep", [], "--sweep=FILE is missing"),
        ("sweep", ["--sweeep=x"], "Unknown command line flag 'sweeep'. Did you mean: sweep"),
        ("sweep", ["--sweep=empty.py"], "--sweep=empty.py has no get_sweep()"),
        ("sweep", ["--sweep=sweep.py", "extra"], "extra is not a flag"),
        ("plan", ["--config=base.py", "--config.optim.lrr=1"], "optim.lrr does not exist"),
        ("plan", ["--config=base.py", "--config.optim.lr=fast"], "lr=fast must be a finite number"),
        ("plan", ["--config=base.py", "--config.model.n_kv_heads=3"], "model.n_heads=4 must be a"),
        ("plan", ["--config=base.py", '--sources={"text:nowhere": 1}'], "text:nowhere"),
        ("plan", ["--sweep=twice.py"], "name='s/10K' is the name of two runs"),
        ("plan", ["--sweep=sweep.py", "--budget=1e15"], "Add --advise=DIR"),
        ("plan", ["--advise=nowhere"], "nowhere contains no runs"),
        ("plan", ["--sweep=sweep.py", "--target=gpu:h300"], "tpu:v4|v5e|v5p|v6e:[SLICESx]SIDES"),
        ("sweep", ["--sweep=sweep.py", "--slurm=-p x"], "--slurm has an effect only on jobs"),
        ("prepare", ["--config=nowhere.py"], "--config=nowhere.py: the file does not exist"),
        ("prepare", ["--config=base.py", '--sources={"text:nowhere": 1}'], "text:nowhere"),
        ("prepare", ["--config=base.py", "--sources=code"], "must be JSON such as"),
        ("prepare", ["--config=base.py", "--engine=datatrove", "--slurm=-x"], "needs --executor"),
        ("evaluate", ["--run=r", "--harness=a", "--sources={}"], "has no effect with --harness"),
        ("evaluate", ["--run=r", "--harness=a", "--keep"], "--keep=True has no effect with --h"),
        ("evaluate", ["--run=r", "--tasks=copy", "--sources={}"], "={} has no effect with --tasks"),
        ("evaluate", ["--run=r", "--overlap=3"], "--overlap=3 has an effect only with --tasks"),
        ("status", ["--dir=nowhere"], "--dir=nowhere contains no runs"),
        ("evaluate", ["--run=nowhere"], "nowhere is not a run directory"),
        ("report", ["--dir=nowhere"], "nowhere contains no runs"),
    ],
)  # fmt: skip
def test_invalid_input_is_one_line_and_status_2(folder, name, arguments, message):
    (folder / "empty.py").write_text("x = 1\n")
    (folder / "base.py").write_text(BASE)
    text = (folder / "sweep.py").read_text()
    (folder / "twice.py").write_text(text.replace("s/{size}", "s/10K"))
    files_before = {*folder.iterdir()}
    result = commands.run_command(folder, name, *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr and result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert {*folder.iterdir()} - files_before <= {folder / "__pycache__"}


def test_plan_prints_costs_and_trains_nothing(folder):
    result = commands.run_command(folder, "plan", "--sweep=sweep.py")
    assert result.returncode == 0 and "pending runs: 2 of 2" in result.stdout
    assert not (folder / "runs/s").exists()


def test_plan_proposes_the_next_runs_of_a_sweep(tmp_path):
    made_up_sweep.sweep(tmp_path, status={"1.6M": ("running", "")})
    arguments = ["--advise=toy", "--budget=1e14", "--n_runs=2", "--json"]
    result = commands.run_command(tmp_path, "plan", *arguments)
    assert result.returncode == 0, result.stderr
    advice = json.loads(result.stdout)
    assert len(advice["runs"]) == 2 and sum(run["flops"] for run in advice["runs"]) <= 1e14
    assert advice["target"] == {"N": 1610000.0} and advice["after"] < advice["before"]


def test_advice_names_the_run_that_is_left_out(tmp_path):
    """Without this run the sweep has no law."""
    folder = verified_sweep.write_sweep(tmp_path)
    (folder / "a" / "facts.json").write_text("{")
    result = commands.run_command(tmp_path, "plan", "--advise=s")
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "s/a/facts.json is not valid JSON" in result.stderr


def test_prepare_uses_the_sources_flag(folder, text_file):
    (folder / "base.py").write_text(BASE)
    sources = json.dumps({f"text:{text_file}": 1})
    result = commands.run_command(folder, "prepare", "--config=base.py", f"--sources={sources}")
    assert result.returncode == 0 and "held out" in result.stdout
    assert list((folder / "data").glob("*/manifest.json"))


def test_prepare_prepares_the_text_of_a_sweep_once(folder):
    result = commands.run_command(folder, "prepare", "--sweep=sweep.py")
    assert result.returncode == 0, result.stderr
    header, row, summary, *notes, prepared = result.stdout.splitlines()
    assert any("held-out" in note for note in notes)
    assert header.startswith("source") and " MB in " in summary
    assert (folder / prepared / "manifest.json").exists()


@pytest.mark.parametrize("name, flag", [("sweep", "--max_vmapped"), ("train", "--config.FIELD")])
def test_help_prints_the_purpose_and_the_flags(tmp_path, name, flag):
    result = commands.run_command(tmp_path, name, "--help")
    assert result.returncode == 0
    assert "uv run python -m experiments." + name in result.stdout
    assert f"  {flag}" in result.stdout


def test_sweep_that_cannot_predict_is_refused_before_training(folder):
    text = (folder / "sweep.py").read_text()
    target = '        run.is_prediction_target = size == "15K"\n        yield run'
    (folder / "sweep.py").write_text(text.replace("        yield run", target))
    for name in ("plan", "sweep"):
        result = commands.run_command(folder, name, "--sweep=sweep.py")
        assert result.returncode == 2
        assert "to predict s/15K from 1 other size: a law of 3 parameters" in result.stderr
    assert not (folder / "runs").exists()
