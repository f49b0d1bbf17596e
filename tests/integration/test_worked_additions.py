"""The worked additions of CONTRIBUTING.md, applied to a copy of the code.

Each example has a diff and code that runs after the diff is applied. NAMES lists the name that each
diff adds.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMES = ("csv", "count", "800K", "sqrt", "semilog")


def apply_diff(diff: str, folder: pathlib.Path) -> None:
    """Apply the hunks of a diff to the files below a folder.

    The old text of each hunk must occur exactly once in its file.
    """
    for part in re.split(r"^# (?=lm/)", diff, flags=re.MULTILINE)[1:]:
        name, _, hunks = part.partition("\n")
        path = folder / name
        text = "\n" + path.read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n"):
            lines = [(line[:1], f"{line[1:]}\n") for line in hunk.splitlines()]
            old = "\n" + "".join(line for sign, line in lines if sign != "+")
            new = "\n" + "".join(line for sign, line in lines if sign != "-")
            assert text.count(old) == 1, f"{name} does not contain this text exactly once:{old}"
            text = text.replace(old, new)
        path.write_text(text[1:], encoding="utf-8")


def run_python(root: pathlib.Path, folder: pathlib.Path, *arguments: str) -> str:
    """Run Python in a folder with the `lm` of a root. Return the output if it fails, else ""."""
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return finished.stdout + finished.stderr if finished.returncode else ""


def check_location(root: pathlib.Path) -> str:
    """Return code that fails unless `lm` is imported from a root."""
    return f"import lm; assert lm.__file__ == {str(root / 'lm/__init__.py')!r}, lm.__file__\n"


@pytest.fixture(scope="module")
def changed_copy(tmp_path_factory) -> pathlib.Path:
    """Return a copy of the code with all diffs applied."""
    copy = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "lm", copy / "lm", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests" / "project").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "project" / "test_imports.py", copy / "tests" / "project")
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "notebooks").symlink_to(ROOT / "notebooks")
    for diff in DIFFS:
        apply_diff(diff, copy)
    return copy


def test_every_example_has_a_diff():
    assert len(DIFFS) == len(EXAMPLES) == len(NAMES)


@pytest.mark.slow
def test_examples_run_after_their_diffs(changed_copy, tmp_path):
    code = check_location(changed_copy) + "\n".join(EXAMPLES)
    assert run_python(changed_copy, tmp_path, "-c", code) == ""


def test_each_example_fails_without_its_diff(tmp_path, monkeypatch):
    """The error contains the name that the diff adds. This process has the code without diffs."""
    monkeypatch.chdir(tmp_path)
    for example, name in zip(EXAMPLES, NAMES, strict=True):
        with pytest.raises((ImportError, AttributeError, KeyError, ValueError)) as error:
            exec(example, {})
        assert name in str(error.value).rpartition("\n")[2], name


def test_changed_code_is_formatted(changed_copy):
    for arguments in (("check", "-q", "lm"), ("format", "--check", "lm")):
        assert run_python(changed_copy, changed_copy, "-m", "ruff", *arguments) == ""


@pytest.mark.slow
def test_facade_tests_pass_after_the_diffs(changed_copy):
    """The copied tests import the changed code, without commands.

    The import contracts take too long to check.
    """
    selection = "not contracts and not first_step"
    options = ("-n0", "-q", "--noconftest", "-p", "no:cacheprovider", "-k", selection)
    output = run_python(changed_copy, changed_copy, "-m", "pytest", *options, "tests/project")
    assert output == ""
