"""A run cannot have the name of a file or folder of a run or a sweep."""

import ast
import os
import pathlib

import pytest

import lm.runs
from lm.config import run_files, schema, validation
from lm.reports import report
from lm.runs import records

PACKAGES = ("evaluation", "reports", "runs", "sweeps", "training")
# Names that no run directory and no sweep directory contains: files of checkpoints and of the code.
OTHER_NAMES = {"__init__.py", "events", "lm", "preparation", "proofs.jsonl", "pyproject.toml"}
OTHER_NAMES |= {".cache", "code_hashes", "lm-scaling"}  # the cache folder of the user
OTHER_NAMES |= {"_METADATA", "by_tokens", "manifest", "metadata", "multiplier", "state"}


def path_literals() -> set[str]:
    """Return each NAME that the packages append to a path as `path / "NAME"`."""
    root = pathlib.Path(lm.runs.__file__).parents[1]
    names = set()
    for package in PACKAGES:
        for file in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                    value = getattr(node.right, "value", None)
                    names |= {value} if isinstance(value, str) else set()
    return names


def test_every_name_in_a_path_is_reserved():
    names = path_literals() - OTHER_NAMES
    assert len(names) >= 10
    assert [name for name in sorted(names) if not run_files.is_reserved(name)] == []


def test_every_file_of_a_run_and_a_sweep_is_reserved(finished_copy):
    """The names are those of a finished run and of its report."""
    folder = records.run_dir(finished_copy)
    report.write_report(folder.parent)
    names = set(os.listdir(folder)) | set(os.listdir(folder.parent)) - {folder.name}
    assert {"config.json", "checkpoints", "tensorboard", "report.html"} <= names
    names = {name for name in names if not name.startswith(".")}
    assert [name for name in sorted(names) if not run_files.is_reserved(name)] == []


@pytest.mark.parametrize("name", ["plan.json", "Checkpoints", "REPORT.HTML", "lock-7", "figures"])
def test_name_of_a_file_is_rejected_in_any_case(name):
    for full_name in (f"sweep/{name}", f"{name}/run"):
        with pytest.raises(schema.ConfigError, match=f"contains {name}, which is reserved"):
            validation.validate_run(schema.Run(name=full_name))


@pytest.mark.parametrize("name", ["1.5M-2.5B", "a+b", "x.y_z", "600K", "json", "report"])
def test_usual_names_are_valid(name):
    validation.validate_run(schema.Run(name=f"sweep/{name}"))


def test_run_cannot_be_the_folder_of_the_token_files(tmp_path):
    run = schema.Run(name="data", dir=str(tmp_path))
    run.data.cache_dir = str(tmp_path / "other" / ".." / "data")
    with pytest.raises(schema.ConfigError, match="name='data' is the folder data.cache_dir="):
        validation.validate_run(run)


def test_names_that_differ_only_in_case_are_rejected():
    run_files.check_distinct_names(["s/1M", "s/1.5M", "s/1M"])
    with pytest.raises(schema.ConfigError, match="name='s/1m' differs from s/1M only in case"):
        run_files.check_distinct_names(["s/1M", "s/a", "s/1m"])
