"""The import order of the packages, the light facade, and packages that stay free of JAX."""

import json
import pathlib
import subprocess
import sys

import pytest

import lm

ROOT = pathlib.Path(__file__).parents[2]
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


def test_training_loads_no_package_of_statistics_or_figures():
    """They take a second of CPU and 50 MiB, and a run needs them at its evaluation at most."""
    unused = {"matplotlib", "pandas", "pyarrow", "scipy", "tensorflow"}
    assert not unused & {*loaded_packages("import lm.training.loop", "-c")}
