"""Tests of a module of lm, and their execution in a child process.

The tests of a module are the test file that mirrors it and the test files of its package that
import it. A child process forks from a parent that has imported the libraries, and runs pytest.
"""

import ast
import contextlib
import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDERS = ("lm", "experiments", "configs", "tests", "notebooks")
TIMEOUT, USAGE_ERROR, NO_TESTS = -1000, 4, 5  # exit status: no end in time; two of pytest
MEMORY_BYTES = 12 << 30
OPTIONS = "-q -x --tb=short -p no:cacheprovider -p no:xdist -o addopts= -m".split()


class TestResult(NamedTuple):
    """Result of the tests of a module, until the first failure."""

    outcome: str  # passed, failed, import (a test file fails at its import), hangs, crashed, none
    test: str = ""  # the test that failed
    reason: str = ""  # first line of its error
    durations: dict[str, float] = {}  # seconds per test


class Recorder:
    """Pytest plugin that orders tests by their durations and records the first failure."""

    def __init__(self, files: list[str], durations: dict[str, float], seconds: float):
        self.files, self.expected, self.seconds = files, durations, seconds
        self.result: dict[str, Any] = {"test": "", "reason": "", "outcome": "", "durations": {}}

    def pytest_collection_modifyitems(self, items: list) -> None:
        """Sort the tests: by file in the given order, then the fast tests first."""
        import pytest

        order = {file: i for i, file in enumerate(self.files)}
        items.sort(key=lambda item: (order[_file_of(item.nodeid)], self._duration(item.nodeid)))
        for item in items:
            # A slow machine must not end a test that has no endless loop.
            limit = self.seconds + 10 * self._duration(item.nodeid)
            item.add_marker(pytest.mark.timeout(limit), append=False)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add the duration of setup, call or teardown to the test."""
        durations = self.result["durations"]
        durations[report.nodeid] = durations.get(report.nodeid, 0.0) + report.duration

    def pytest_exception_interact(self, node: Any, call: Any) -> None:
        """Record the first failure."""
        if not self.result["outcome"]:
            text = str(call.excinfo.value).strip() or call.excinfo.typename
            is_timeout = text.startswith("Timeout") and call.excinfo.typename == "Failed"
            outcome = "import" if call.when == "collect" else "hangs" if is_timeout else "failed"
            reason = text.splitlines()[0][:200]
            self.result |= {"test": node.nodeid, "reason": reason, "outcome": outcome}

    def _duration(self, test: str) -> float:
        return self.expected.get(test, 0.0)


def _file_of(test: str) -> str:
    """Return the file of the identifier of a test."""
    return test.partition("::")[0]


def run_tests(
    tree: Path, files: list[str], durations: dict[str, float], timeout: float = 600.0
) -> TestResult:
    """Run test files in a child process until a test fails.

    durations: expected seconds per test. The fast tests of a file run first. A test hangs after
    ten times its duration and timeout / 10 seconds, or after timeout seconds if durations is
    empty. The child process ends after ten times the sum of the durations and timeout seconds.
    """
    output = tree.parent / "result.json"
    output.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            limit = timeout / 10 if durations else timeout
            status = _run_pytest(tree, Recorder(files, durations, limit), output)
        finally:
            os._exit(status)
    expected = sum(t for test, t in durations.items() if _file_of(test) in files)
    status = _wait_for_child(child, timeout + 10 * expected)
    if not output.exists():
        outcome = "hangs" if status == TIMEOUT else "crashed"
        return TestResult(outcome, reason=f"exit status {status}")
    result = TestResult(**json.loads(output.read_text()))
    if result.outcome:
        return result
    # pytest loads conftest.py before its plugins can record an error.
    kinds = {0: "passed", NO_TESTS: "none", USAGE_ERROR: "import"}
    outcome = kinds.get(status, "crashed")
    return result._replace(outcome=outcome, reason=f"exit status {status}" if status else "")


def _wait_for_child(child: int, seconds: float) -> int:
    """Return the exit status of a child process, or TIMEOUT. End all processes of its group."""
    deadline = time.monotonic() + seconds
    finished = wait_status = 0
    try:
        while not finished and time.monotonic() < deadline:
            time.sleep(0.02)
            finished, wait_status = os.waitpid(child, os.WNOHANG)
    finally:  # also after Ctrl-C, for all processes that the tests started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    if not finished:
        os.waitpid(child, 0)
        return TIMEOUT
    return os.waitstatus_to_exitcode(wait_status)


def _run_pytest(tree: Path, recorder: Recorder, output: Path) -> int:
    """Run pytest in this process with the code of the copied tree."""
    import pytest

    for name in list(sys.modules):
        if name.split(".")[0] in FOLDERS:
            del sys.modules[name]
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", os.getcwd()))]
    os.chdir(tree)
    # Bytecode of a mutant would be valid for the next mutant of the same size.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    with output.with_suffix(".txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = int(pytest.main([*recorder.files, *OPTIONS, "not slow"], plugins=[recorder]))
    output.write_text(json.dumps(recorder.result))
    return status


def list_tests(tree: Path, path: str) -> list[str]:
    """Return the test files of a module: the file that mirrors it, then the files that import it.

    Without such a file, the tests are those that mirror the modules that import the module.
    """
    package = Path(path).parts[1]
    mirror = _mirror(tree, path)
    importing = list(_importing_files(tree / "tests" / package, "test_*.py", path))
    files = [mirror, *(file for file in importing if file != mirror)]
    if not importing and not mirror.exists():
        users = _importing_files(tree / "lm" / package, "*.py", path)
        files = [_mirror(tree, str(file.relative_to(tree))) for file in users]
    return [str(file.relative_to(tree)) for file in files if file.exists()]


def _mirror(tree: Path, path: str) -> Path:
    """Return the test file that mirrors a source file."""
    file = Path(path).relative_to("lm")
    return tree / "tests" / file.with_name(f"test_{file.name}")


def _importing_files(folder: Path, pattern: str, path: str) -> Iterator[Path]:
    """Yield the files below a folder that import the module with this path."""
    module = path.removesuffix(".py").replace("/", ".")
    for file in sorted(folder.rglob(pattern)):
        if module in _imported_names(file.read_text()):
            yield file


def _imported_names(source: str) -> set[str]:
    """Return the full names of the modules and of the objects that a source file imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def hash_files(files: list[Path]) -> str:
    """Return a hash of the text of files."""
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
