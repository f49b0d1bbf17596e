"""The worked additions of CONTRIBUTING.md: what is shown there is enough, and it runs."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", TEXT, re.DOTALL)
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ADDED = ("csv", "count", "800K", "sqrt", "semilog")


def apply(diff: str, folder: pathlib.Path) -> None:
    """Changes the files below a folder as a diff says; each place must be there exactly once."""
    for part in re.split(r"^# (?=lm/)", diff, flags=re.MULTILINE)[1:]:
        name, _, hunks = part.partition("\n")
        path = folder / name
        text = path.read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n"):
            lines = [(line[:1], line[1:] + "\n") for line in hunk.splitlines()]
            old, new = ("".join(x for sign, x in lines if sign != off) for off in ("+", "-"))
            assert ("\n" + text).count("\n" + old) == 1, f"{name} has not one place of:\n{old}"
            text = ("\n" + text).replace("\n" + old, "\n" + new)[1:]
        path.write_text(text, encoding="utf-8")


def run(folder: pathlib.Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout + done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "lm", folder / "lm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_a_source_a_task_a_size_a_schedule_and_a_law_are_added_as_shown(copy):
    assert len(DIFFS) == len(CODE) == len(ADDED)
    for diff in DIFFS:
        apply(diff, copy)
    where = f"import lm.config; assert lm.config.__file__.startswith({str(copy)!r})\n"
    assert run(copy, sys.executable, "-c", where + "\n".join(CODE)) == ""
    assert run(copy, sys.executable, "-m", "ruff", "check", "-q", "lm") == ""


@pytest.mark.parametrize("code, word", list(zip(CODE, ADDED, strict=True)), ids=ADDED)
def test_without_the_addition_the_code_below_it_fails_by_its_name(code, word, tmp_path):
    assert word in run(tmp_path, sys.executable, "-c", code).rstrip().rpartition("\n")[2]
