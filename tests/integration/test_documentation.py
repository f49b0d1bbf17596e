"""The examples of README.md and of `--help`, run in order in one folder as a reader would.

The shorter test runs all commands in one process, with the smaller models of SMALL_BASE. The longer
test runs them exactly as printed, in a clean clone.
"""

import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
from fixtures import documentation

from lm.data.sources import builtin
from lm.reports import figures

# The recipes of the shorter test keep their names, widths and sources. Their models have one layer.
SMALL_BASE = """

_full_config = get_config


def get_config(size="100K"):
    run = _full_config(size)
    run.model.n_layers, run.steps = 1, 6
    run.data.seq_len, run.data.batch_size = 32, 8
    run.eval.n_sequences = run.eval.n_completions = 16
    return run
"""
# Of the built-in text. The whole text takes ten seconds to prepare.
MAX_CHARACTERS = 2_000_000
TEXT_FOLDERS = ("lm/config", "lm/laws", "lm/model")  # of the source text:lm
# Part of a command -> arguments that make it smaller in the shorter test.
SMALL_ARGUMENTS = {
    "experiments.train": (
        *("--config.steps=4", "--config.eval.interval=2", "--config.eval.n_sequences=16"),
        *("--config.data.seq_len=32", "--config.data.batch_size=8"),
    ),
    "configs/instruct.py": ("--config.data.decontaminate_ngram=0",),
    "experiments.sample": ("--max_tokens=8",),
}
REPLACED = {
    "configs/base.py": [("", "", SMALL_BASE)],
    "configs/sweeps/quickstart.py": [
        ('"100K", "150K", "250K", "600K"', '"100K", "600K"', ""),
        ("run.eval.n_sequences = 1024", "run.eval.n_completions = 0", ""),
        ('" ".join(TASKS)', '"copy?n=4"', ""),
        ('"tasks:" + "+".join(SKILLS): 0.4', '"tasks:copy?megabytes=0.1": 0.4', ""),
    ],
}  # fmt: skip
# The first four sizes are those of the quickstart, whose programs are compiled once.
SMALL_SWEEP = (
    ('"10K", "15K", "25K", "40K", "60K"', '"10K", "25K", "60K"'),
    (", 300", ", 6"),
)
NOT_A_NUMBER = re.compile(r"(?<![\w.-])(nan|inf)(?![\w(-])|Traceback", re.IGNORECASE)
WRITTEN = re.compile(r"(?:runs|out|notebooks)/[\w./+-]+\.(?:html|jsonl|json|png|svg|safetensors)\b")


def check_output(example: documentation.Example, output: str, folder: pathlib.Path) -> None:
    """Check that an output has no NaN, and that the files that it names exist."""
    assert not NOT_A_NUMBER.search(output), (example, output[-2000:])
    for path in set(WRITTEN.findall(output)):
        assert (folder / path).exists(), (example, path)


def law_sentences(report: pathlib.Path) -> list[str]:
    """Return the formulas of laws in the text of a report."""
    text = re.sub(r"<figure.*?</figure>", "", report.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"L\([NCD, ]+\) = [^<\n]*", text)


def check_results(folder: pathlib.Path, laws: list[str]) -> None:
    """Check the results after all examples. laws: those of the report after the quickstart."""
    report = folder / "runs/quickstart/report.html"
    assert laws and law_sentences(report) == laws
    text = report.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.-])(nan|inf)(?![\w(-])", re.sub(r"<svg.*?</svg>", "", text))
    for configs in (folder / "runs").rglob("config.json"):
        facts = json.loads((configs.parent / "facts.json").read_text())
        assert facts["status"] == "done", configs


def write_small_configs(folder: pathlib.Path) -> None:
    """Copy the files of the repository that examples read, with smaller recipes."""
    for name in ("configs", "notebooks/data/examples"):
        shutil.copytree(documentation.ROOT / name, folder / name)
    for name in TEXT_FOLDERS:
        shutil.copytree(documentation.ROOT / name, folder / name)
    for name, changes in REPLACED.items():
        text = (folder / name).read_text()
        for old, new, appended in changes:
            assert old in text, (name, old)
            text = (text.replace(old, new, 1) if old else text) + appended
        (folder / name).write_text(text)


def small_command(text: str) -> str:
    """Return a command with the arguments of SMALL_ARGUMENTS."""
    added = [arguments for part, arguments in SMALL_ARGUMENTS.items() if part in text]
    return " ".join([text, *(argument for arguments in added for argument in arguments)])


@pytest.fixture
def small_folder(tmp_path, monkeypatch) -> pathlib.Path:
    """Return the current folder of a reader, who has the small recipes."""
    write_small_configs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # commands restart their process without it
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(builtin, "MAX_CHARACTERS", MAX_CHARACTERS)
    names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_examples_of_readme_run_in_order(small_folder, monkeypatch):
    """Reports have no figures, which require most of their time: test_commands.py has them."""
    laws = []
    monkeypatch.setattr(figures, "all_figures", lambda sweep: {})
    for example in documentation.page_examples(documentation.README):
        began = time.process_time()
        if documentation.reason_not_run(example):
            continue
        if example.language == "python" and "get_sweep" in example.text:
            (small_folder / documentation.SHOWN_FILE).write_text(small_sweep(example.text))
        elif example.language == "python":
            exec(small_python(example.text), {})
        else:
            status, output = documentation.run_in_process(small_command(example.text))
            assert status == 0, (example, output[-3000:])
            check_output(example, output, small_folder)
        report = small_folder / "runs/quickstart/report.html"
        if report.exists() and not laws:
            laws = law_sentences(report)
        print(f"{time.process_time() - began:.1f}", example.text[:100], flush=True)
    check_results(small_folder, laws)


def small_sweep(code: str) -> str:
    """Return the code of the sweep with fewer sizes and steps."""
    for old, new in SMALL_SWEEP:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


def small_python(code: str) -> str:
    """Return the notebook example with a smaller run. Its other lines are unchanged."""
    model = 'model=lm.ladder_model("100K")'
    assert code.count(model) == 1
    return code.replace(model, 'model=lm.ladder_model("100K", n_layers=1), steps=4')


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_examples_run_as_printed_in_a_clean_clone(tmp_path):
    """All examples of README.md, then those of `--help`, in one clone with its own environment."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", documentation.ROOT, clone], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "XLA_FLAGS"))}
    environment.pop("PYTHONPATH", None)
    environment.pop("VIRTUAL_ENV", None)
    laws, seconds = [], []
    examples = documentation.page_examples(documentation.README) + documentation.help_examples()
    for example in examples:
        if documentation.reason_not_run(example):
            continue
        began = time.perf_counter()
        if example.language == "python" and "get_sweep" in example.text:
            (clone / documentation.SHOWN_FILE).write_text(example.text)
            continue
        command = ["bash", "-c", example.text]
        if example.language == "python":
            (clone / "notebook.py").write_text(example.text)
            command = ["uv", "run", "python", "notebook.py"]
        finished = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=1800,
        )  # fmt: skip
        output = finished.stdout + finished.stderr
        seconds.append((time.perf_counter() - began, example.text[:90]))
        print(f"{seconds[-1][0]:6.1f} s  {seconds[-1][1]}", flush=True)
        assert finished.returncode == 0, (example, output[-3000:])
        check_output(example, output, clone)
        report = clone / "runs/quickstart/report.html"
        laws = laws or (law_sentences(report) if report.exists() else [])
    check_results(clone, laws)
    assert (clone / "runs/quickstart/report.html").read_text().count("quickstart/600K")
