"""The import order of the packages, the light facade, and packages that stay free of JAX."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import lm

ROOT = pathlib.Path(__file__).parents[2]
# A new run up to its first step: nothing is compiled.
TRAIN_UNTIL_FIRST_STEP = """
import os, sys
from experiments import train
from experiments.common import cli
from lm.training import loop
def list_modules(*_):
    print(*sys.modules, flush=True)
    os._exit(0)
loop.compilation.compile_all = lambda *_: ({}, None, lambda seed: {"params": {}})
loop._run_steps = list_modules
cli.exit_status(train.main, sys.argv)
"""
LIST_LOADED = (
    "import json, sys; {code};"
    "print(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}}"
    " - set(sys.stdlib_module_names) - {{'__main__'}})))"
)


def loaded_packages(code: str, option: str = "-Sc") -> list[str]:
    """Return the top-level packages outside the standard library that a new process loads.

    option: of Python, -c for installed packages too.
    """
    done = subprocess.run(
        [sys.executable, option, LIST_LOADED.format(code=code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return json.loads(done.stdout)


def test_import_contracts_hold():
    """import-linter checks the contracts of pyproject.toml."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_import_lm_loads_only_itself():
    assert loaded_packages("import lm") == ["lm"]


def test_reading_runs_loads_no_package():
    code = f"import lm; lm.load_runs({str(ROOT / 'notebooks' / 'data' / 'real_ladder')!r})"
    assert loaded_packages(code) == ["lm"]


def test_defining_a_run_loads_no_package():
    code = "import lm; lm.Run(name='mine', model=lm.ladder_model('100K'))"
    assert loaded_packages(code) == ["lm"]


@pytest.mark.parametrize("name", lm.__all__)
def test_every_public_name_resolves(name):
    assert getattr(lm, name) is not None
    assert name in dir(lm)


def test_unknown_public_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'nothing': it has .*load_runs"):
        lm.__getattr__("nothing")


# Packages whose import takes from a tenth of a second to seconds.
HEAVY = {"jax", "matplotlib", "orbax", "pyarrow", "scipy", "tensorflow", "tokenizers"}


def test_commands_check_arguments_before_heavy_imports():
    """--help and an invalid flag import the module of a command and nothing else."""
    names = sorted(file.stem for file in (ROOT / "experiments").glob("[!_]*.py"))
    modules = [f"experiments.{name}" for name in names]
    code = (
        "import importlib; from absl import flags; "
        f"[(importlib.import_module(name), [delattr(flags.FLAGS, flag) for flag in"
        f" {{*flags.FLAGS}} - {{'flagfile', 'undefok'}}]) for name in {modules}]"
    )
    assert not HEAVY & {*loaded_packages(code, "-c")}


def test_finished_sweep_and_report_load_no_jax():
    code = (
        "import experiments.common.finished_sweep, lm.sweeps.prediction, lm.reports.report;"
        "assert 'scipy.stats' not in sys.modules and 'scipy.optimize' not in sys.modules"
    )
    assert not {"jax", "flax", "orbax", "tensorflow"} & {*loaded_packages(code, "-c")}


# A run needs them at its first save or at an evaluation, if at all. They take a second of CPU and
# 75 MiB. The compilation of the step, which comes before, has the largest memory of a small run.
UNUSED_BEFORE_FIRST_STEP = {
    *("matplotlib", "orbax", "pandas", "pyarrow", "scipy", "tensorflow", "tensorstore"),
    *("tokenizers", "uvloop"),
}


def test_training_loads_no_package_that_a_new_run_does_not_need():
    packages = loaded_packages("import lm.training.loop; assert 'sqlite3' not in sys.modules", "-c")
    assert not UNUSED_BEFORE_FIRST_STEP & {*packages}


@pytest.mark.slow
def test_new_run_reaches_its_first_step_without_heavy_packages(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(80):
        lines = (f"Line {n} of a text, in document {number}.\n" for n in range(10))
        (tmp_path / "text" / f"{number}.txt").write_text("".join(lines))
    source = f"text:{tmp_path / 'text'}"
    flags = (
        f"--config={ROOT / 'configs' / 'base.py'}:10K",
        f"--config.dir={tmp_path / 'runs'}",
        f"--config.data.cache_dir={tmp_path / 'data'}",
        f"--config.data.sources={json.dumps({source: 1.0})}",
    )
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_UNTIL_FIRST_STEP, *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"GLIBC_TUNABLES": ""},  # otherwise the command restarts its process
    )
    assert " lm.training.loop " in done.stdout, done.stderr
    modules = done.stdout.splitlines()[-1].split()
    assert not UNUSED_BEFORE_FIRST_STEP & {name.partition(".")[0] for name in modules}
