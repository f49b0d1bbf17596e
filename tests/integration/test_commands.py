"""The commands as a user types them, in processes of their own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lm.runs import records

ROOT = pathlib.Path(__file__).parent.parent.parent

SWEEP = """
from lm.config import model_sizes; from lm.config import schema

def get_sweep(steps="8"):
    for size in ("10K", "15K"):
        run = schema.Run(name=f"s/{{size}}", steps=int(steps), log_interval=2,
        checkpoint_interval=4) run.model = model_sizes.ladder_model(size, n_layers=1)
        run.data.sources, run.data.cache_dir = {{"text:{text}": 1.0}}, "{text}/../data"
        run.data.seq_len, run.data.batch_size, run.data.heldout_fraction = 32, 8, 0.2
        run.eval.n_sequences, run.eval.n_completions = 16, 16 run.predict = size == "15K" yield run
"""


BASE = "from lm.config import Run\n\ndef get_config():\n    return Run()\n"


@pytest.fixture
def folder(tmp_path, text_file) -> pathlib.Path:
    (tmp_path / "sweep.py").write_text(SWEEP.format(text=text_file))
    return tmp_path


def environment() -> dict:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "2",
        "COLUMNS": "200",
    }


def command(folder, name, *arguments, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=200, **kwargs,
    )  # fmt: skip


def test_a_sweep_from_plan_to_report_and_a_second_call(folder):
    first = command(folder, "sweep", "--sweep=sweep.py")
    assert first.returncode == 0, first.stderr
    for words in (
        "width",
        "without embeddings",
        "2 of 2 runs left",
        "tokens/s",
        "of peak",
        "report:",
    ):
        assert words in first.stdout, words
    assert [row["status"] for row in records.load_runs(folder / "runs")] == ["done", "done"]
    assert (folder / "runs/s/report.html").stat().st_size > 10_000
    assert list((folder / "runs/s/figures").glob("*.png"))
    assert records.read_json(folder / "runs/s/prediction.json")["target"] == "s/15K"

    again = command(folder, "sweep", "--sweep=sweep.py")
    assert again.returncode == 0 and "all 2 runs are done" in again.stdout
    assert records.load_runs(folder / "runs")[0]["attempts"] == 1

    status = command(folder, "status", "--dir=runs/s")
    assert status.returncode == 0 and status.stdout.count("8 of 8") == 2
    report = command(folder, "report", "--dir=runs/s")
    assert report.returncode == 0 and "report.html" in report.stdout
    evaluate = command(folder, "evaluate", "--run=runs/s/10K")
    assert evaluate.returncode == 0, evaluate.stderr
    options = ("--prompt=The quick", "--max_tokens=3", "--stop=zzz", "--json")
    said = command(folder, "sample", "--run=runs/s/10K", *options)
    assert said.returncode == 0, said.stderr
    answer = json.loads(said.stdout)
    assert answer["why"] == "length" and all(0 < t["p"] <= 1 for t in answer["tokens"])
    assert answer["text"] == "".join(t["text"] for t in answer["tokens"])
    (row, _) = records.load_runs(folder / "runs")
    assert f"{row['eval.loss']:.4f}" in evaluate.stdout

    typed = "+\nThe quick\n- \nThe\n= brown fox\nquick\n-\n" + 40 * "x" + "\n"
    talk = command(
        *(folder, "sample", "--run=runs/s/10K", "--max_tokens=3", "--keep=kept.jsonl"), input=typed
    )
    assert talk.returncode == 0 and "no answer to rate" in talk.stdout, talk.stderr
    assert "prompt of 40 tokens, more than data.seq_len=32 of this run" in talk.stdout
    kept = ("--config=base.py", "--config.data.cache_dir=kept", "--from_prompts=kept.jsonl")
    (folder / "base.py").write_text(BASE)
    prepared = command(folder, "prepare", *kept)
    assert prepared.returncode == 0 and "1 prompts rated good are in" in prepared.stdout
    tuning = json.loads((folder / "kept.tuning.jsonl").read_text())
    assert tuning == {"prompt": "The", "target": "brown fox", "task": "prompts"}

    changed = (
        (folder / "sweep.py").read_text().replace("seq_len, run", "seq_len, run.optim.lr, run")
    )
    (folder / "sweep.py").write_text(changed.replace("= 32, 8, 0.2", "= 32, 0.5, 8, 0.2"))
    refused = command(folder, "sweep", "--sweep=sweep.py")
    assert refused.returncode == 2
    assert "s/10K was started with optim.lr=0.003, now 0.5: choose a new name" in refused.stderr


def test_interrupted_by_the_keyboard_it_says_so_and_goes_on(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", "--sweep=sweep.py:100000"],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = folder / "runs/s/10K/metrics.jsonl"
    deadline = time.monotonic() + 150
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "stopped by SIGINT at step" in errors and "repeat the command to continue" in errors
    assert "Traceback" not in errors
    steps = [int(p.name) for p in (folder / "runs/s/10K/checkpoints").iterdir() if p.name.isdigit()]
    assert max(steps) >= records.load_metrics(folder / "runs/s/10K")[-1]["step"]
    assert records.load_runs(folder / "runs")[0]["status"] == "lost"


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("sweep", ["--sweep=nowhere.py"], "--sweep=nowhere.py: the file does not exist"),
        ("sweep", [], "--sweep=FILE is missing"),
        ("sweep", ["--sweeep=x"], "Unknown command line flag 'sweeep'. Did you mean: sweep"),
        ("sweep", ["--sweep=empty.py"], "--sweep=empty.py has no get_sweep()"),
        ("sweep", ["--sweep=sweep.py", "extra"], "extra is not a flag"),
        ("plan", ["--config=base.py", "--config.optim.lrr=1"], "optim.lrr does not exist"),
        ("plan", ["--config=base.py", "--config.optim.lr=fast"], "convert string to float: 'fast'"),
        ("plan", ["--config=base.py", "--config.model.n_kv_heads=3"], "model.n_heads=4 must be a"),
        ("prepare", ["--config=nowhere.py"], "--config=nowhere.py: the file does not exist"),
        ("prepare", ["--config=base.py", '--sources={"text:nowhere": 1}'], "text:nowhere"),
        ("prepare", ["--config=base.py", "--sources=code"], "must be JSON such as"),
        ("status", ["--dir=nowhere"], "--dir=nowhere holds no runs"),
        ("evaluate", ["--run=nowhere"], "nowhere is not a run directory"),
        ("report", ["--dir=nowhere"], "nowhere contains no runs"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(folder, name, arguments, words):
    (folder / "empty.py").write_text("x = 1\n")
    (folder / "base.py").write_text(BASE)
    before = {*folder.iterdir()}
    done = command(folder, name, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert {*folder.iterdir()} - before <= {folder / "__pycache__"}


def test_a_plan_counts_and_trains_nothing(folder):
    done = command(folder, "plan", "--sweep=sweep.py")
    assert done.returncode == 0 and "2 of 2 runs left" in done.stdout
    assert not (folder / "runs/s").exists()


def test_text_that_is_given_is_prepared_and_counted(folder, text_file):
    (folder / "base.py").write_text(BASE)
    sources = json.dumps({f"text:{text_file}": 1})
    done = command(folder, "prepare", "--config=base.py", f"--sources={sources}")
    assert done.returncode == 0 and "held out" in done.stdout
    assert list((folder / "data").glob("*/manifest.json"))


@pytest.mark.parametrize("name, flag", [("sweep", "--retries"), ("train", "--config.KNOB")])
def test_help_says_what_a_command_is_for_and_lists_its_flags(tmp_path, name, flag):
    found = command(tmp_path, name, "--help")
    assert found.returncode == 0
    assert "uv run python -m experiments." + name in found.stdout and f"  {flag}" in found.stdout
