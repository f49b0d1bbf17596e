"""The commands and examples of README.md, CONTRIBUTING.md, other pages and docstrings.

The fast tests check names: modules, flags, config fields and files. The slow test runs every
command of README.md on small models.
"""

import ast
import functools
import gzip
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import typing

import pytest
from fixtures import made_up_sweep

from lm.config import model_sizes, schema, validation
from lm.training import loop

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    *(README, ROOT / "CONTRIBUTING.md"),
    *(ROOT / "experiments" / "README.md", ROOT / "configs" / "README.md"),
]
COMMAND = re.compile(r"uv run (?:--extra \w+ )*python -m experiments\.(\S+)(.*)")
PLACEHOLDERS = ("NAME", "FOLDER", "FILE")
SHOWN_FILE = "my_sweep.py"  # its code is in README.md
# Parses the flags of each command in a new process, because a flag can be defined once per process.
PARSER = """
import importlib, json, sys
from absl import flags

errors = []
for module, arguments in json.load(sys.stdin):
    try:
        importlib.import_module(f"experiments.{module}")
        configs = [x for x in arguments if x.startswith("--config")]
        if configs and "config" not in flags.FLAGS:
            errors.append(f"{module}: {configs[0]}, but the command has no --config")
        rest = flags.FLAGS([module, *(x for x in arguments if x not in configs)])[1:]
        errors += [f"{module}: {argument} is not a flag" for argument in rest]
    except (ImportError, flags.Error) as error:
        errors.append(f"{module}: {error}")
    for name in {*flags.FLAGS} - {"flagfile", "undefok"}:
        delattr(flags.FLAGS, name)
    for name in [name for name in sys.modules if name.startswith("experiments.")]:
        del sys.modules[name]
print(json.dumps(errors))
"""


class Command(typing.NamedTuple):
    """A command line of a page."""

    module: str  # below experiments
    arguments: list[str]


def code_blocks(text: str, language: str = "") -> list[str]:
    """Return the code blocks of a page in a language. Blocks of commands have no language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in blocks if name.replace("bash", "") == language]


def page_commands(text: str) -> list[Command]:
    """Return the commands of experiments in the code blocks of a page, then those in sentences."""
    lines = "".join(code_blocks(text)).replace("\\\n", " ").splitlines()
    sentences = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += re.findall(r"`(uv run [^`]*)`", sentences)
    matches = [match for line in lines if (match := COMMAND.search(line))]
    return [Command(match[1], shlex.split(match[2], comments=True)) for match in matches]


def flag_errors(commands: list[Command]) -> list[str]:
    """Return the errors of the modules and flags of commands.

    The values of --config are not parsed, because their files may read runs.
    """
    inputs = [command for command in commands if not command.module.endswith(PLACEHOLDERS)]
    finished = subprocess.run(
        [sys.executable, "-c", PARSER],
        input=json.dumps(inputs),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


def config_errors(commands: list[Command]) -> list[str]:
    """Return the errors of the config fields, config files and sweep files of commands."""
    fields, errors = schema.field_types(schema.Run), []
    for argument in [argument for command in commands for argument in command.arguments]:
        name, _, value = argument.removeprefix("--").partition("=")
        file = value.partition(":")[0]
        if name.startswith("config."):
            field = name.removeprefix("config.").partition("[")[0]
            errors += [] if field in fields else [f"{argument}: no such field"]
        elif name in ("config", "sweep") and pathlib.Path(file).stem not in PLACEHOLDERS:
            is_present = file == SHOWN_FILE or (ROOT / file).is_file()
            errors += [] if is_present else [f"{argument}: no such file"]
    return errors


@functools.cache
def all_commands() -> list[Command]:
    """Return the commands of all pages, and of the docstrings of commands and configs."""
    texts = [path.read_text(encoding="utf-8") for path in PAGES]
    for path in (path for top in ("experiments", "configs") for path in (ROOT / top).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        texts.append(f"```\n{docstring}\n```\n")
    return [command for text in texts for command in page_commands(text)]


def test_readme_shows_every_kind_of_command():
    commands = page_commands(README.read_text(encoding="utf-8"))
    assert len(commands) > 15
    assert {"sweep", "train", "plan", "evaluate", "export"} <= {c.module for c in commands}


def test_commands_name_modules_and_flags_that_exist():
    assert flag_errors(all_commands()) == []


def test_commands_name_fields_and_files_that_exist():
    assert config_errors(all_commands()) == []


def test_wrong_names_in_a_command_are_detected():
    block = "```\nuv run python -m experiments.{} --run=r\n```\n"
    assert flag_errors(page_commands(block.format("sample --feedback=f"))) != []
    assert flag_errors(page_commands(block.format("sampler"))) != []
    assert flag_errors(page_commands(block.format("status --config=configs/base.py"))) != []
    assert flag_errors(page_commands(block.format("sample --n=many"))) != []
    assert len(config_errors(page_commands(block.format("train --config.optim.rate=1")))) == 1
    assert len(config_errors(page_commands(block.format("sweep --sweep=missing.py")))) == 1


def test_pytest_commands_name_files_that_exist():
    pages = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    paths = re.findall(r"uv run pytest .*?(tests/[\w/]+\.py)", pages)
    assert paths and all((ROOT / path).is_file() for path in paths)


def sweep_example() -> str:
    """Return the code of SHOWN_FILE."""
    return next(code for code in code_blocks(README.read_text(), "python") if "get_sweep" in code)


def test_sweep_example_yields_valid_runs():
    namespace: dict = {}
    exec(sweep_example(), namespace)
    runs = [validation.validate_run(run) for run in namespace["get_sweep"]()]
    assert len({run.name for run in runs}) == len(runs) > 4
    assert [run.is_prediction_target for run in runs] == [False] * (len(runs) - 1) + [True]


def small_run(name: str, text_file: pathlib.Path) -> schema.Run:
    """Return a run below runs/ that trains in a second, with the text of `text_file`."""
    run = schema.Run(name=name, steps=12, log_interval=4)
    run.model = model_sizes.ladder_model("10K", n_layers=1)
    run.data.sources = {f"text:{text_file}": 1.0}
    run.data.seq_len, run.data.batch_size, run.data.heldout_fraction = 32, 8, 0.2
    run.eval.n_sequences, run.eval.n_completions = 16, 8
    return run


def test_python_example_runs_on_a_sweep(text_file, tmp_path, monkeypatch):
    """The sweep is simulated, except the run whose model is loaded.

    The run that the example trains gets a small config, because its defaults take a minute.
    """
    monkeypatch.chdir(tmp_path)
    made_up_sweep.sweep("runs", name="quickstart")
    loop.train(small_run("quickstart/600K", text_file))
    (example,) = [code for code in code_blocks(README.read_text(), "python") if "load_runs" in code]
    definition = 'run = lm.Run(name="mine", model=lm.ladder_model("100K"))\n'
    assert example.count(definition) == 1
    change = "run.model, run.steps, run.data, run.eval = small.model, 12, small.data, small.eval\n"
    namespace: dict = {"small": small_run("small", text_file)}
    exec(example.replace(definition, definition + change), namespace)
    assert namespace["fit"].predict(5e6).value > 0
    assert pathlib.Path("runs/quickstart/report.html").stat().st_size > 10_000
    assert pathlib.Path("runs/mine/config.json").is_file()


# --- All commands of README.md ---

SMALL_CONFIG = (
    *("--config.steps=4", "--config.eval.interval=2", "--config.eval.n_sequences=16"),
    *("--config.data.tokenizer=bytes", "--config.model.vocab_size=256"),
)
SMALL_FLAGS = {
    "train": SMALL_CONFIG,
    "sample": ("--max_tokens=8",),
    "evaluate": ("--n_sequences=16",),
}
# The quickstart with two runs of four steps. Names of runs and files stay those of README.md.
SMALL_QUICKSTART = """
from configs import base

def get_sweep():
    for size in ("100K", "600K"):
        run = base.get_config(size)
        run.name, run.steps = f"quickstart/{size}", 4
        run.data.sources = {"docs": 0.6, "tasks:copy?megabytes=0.1": 0.4}
        run.eval.tasks, run.eval.n_sequences = "copy?n=10", 16
        run.is_prediction_target = size == "600K"
        yield run
"""


def write_user_files(folder: pathlib.Path) -> None:
    """Write the configs, and the files of a user that the commands of README.md name."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "configs/sweeps/quickstart.py").write_text(SMALL_QUICKSTART)
    base = folder / "configs/base.py"
    base.write_text(base.read_text().replace("TOKENS = 1_800_000", "TOKENS = 10_000"))
    (folder / SHOWN_FILE).write_text(sweep_example())
    for name in ("my/books", "my/folder", "my/set", "my/unseen", "dump"):
        (folder / name).mkdir(parents=True)
    for name in ("my/books/book.txt", "my/folder/notes.txt"):
        text = "\n\n".join(f"Paragraph {i} of a text about {i * i}." * 40 for i in range(200))
        (folder / name).write_text(text)
    rows = [json.dumps({"body": f"Document {i} with a few words. " * 30}) for i in range(100)]
    with gzip.open(folder / "dump/part.jsonl.gz", "wt") as file:
        file.write("\n".join(rows))
    lines = [
        json.dumps({"prompt": f"{i}+1=", "target": str(i + 1), "task": "sum", "category": "math"})
        for i in range(60)
    ]
    for name in ("my/set/test.jsonl", "my/set/train.jsonl", "my/unseen/test.jsonl"):
        (folder / name).write_text("\n".join(lines))
    (folder / "my/prompts.jsonl").write_text("\n".join(lines))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_readme_succeeds(tmp_path):
    """The commands run in order in one folder, so that each finds the runs of earlier commands.

    All runs are done when the command with --on=slurm starts, so it submits no job.
    """
    write_user_files(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"}
    commands = page_commands(README.read_text(encoding="utf-8"))
    for command in commands:
        names = {"--source=FOLDER": "--source=out/600K"}
        arguments = [names.get(argument, argument) for argument in command.arguments]
        arguments += SMALL_FLAGS.get(command.module, ())
        print(command.module, *arguments, flush=True)
        finished = subprocess.run(
            [sys.executable, "-m", f"experiments.{command.module}", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert finished.returncode == 0, f"{command}\n{finished.stdout}\n{finished.stderr}"
    assert (tmp_path / "runs/quickstart/report.html").exists()
    assert (tmp_path / "out/600K/config.json").exists()
