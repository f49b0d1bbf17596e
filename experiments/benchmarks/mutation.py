"""Change the code at random places and count the changes that the tests of the module detect.

    uv run python -m experiments.benchmarks.mutation --sample=200 --seed=0
    uv run python -m experiments.benchmarks.mutation --module=lm/data/packing.py --sample=20

A mutant differs from the code in one comparison, operator, number or boolean. Text, plots, messages
and annotations are excluded. Each mutant is written to a temporary copy of the tree. There, a child
process runs the test file that mirrors the module, and then the test files that import the module.
A failure or the end of --timeout kills the mutant. The command prints each survivor and a table.
"""

import ast
import compileall
import contextlib
import hashlib
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments.common import cli, console

_SAMPLE = flags.DEFINE_integer("sample", 200, "number of mutants")
_SEED = flags.DEFINE_integer("seed", 0, "seed of the sample")
_PACKAGES = flags.DEFINE_list(
    "packages", ["data", "model", "evaluation", "training", "laws"], "packages of lm to change"
)
_MODULE = flags.DEFINE_string("module", "", "change this file alone, such as lm/data/packing.py")
_TIMEOUT = flags.DEFINE_integer("timeout", 300, "seconds after which the tests of a mutant fail")

FOLDERS = ("lm", "experiments", "configs", "tests", "notebooks")
# Imported before the children fork, which saves seconds each. None of them starts a JAX backend.
PRELOADED = "pytest jax flax.linen optax orbax.checkpoint scipy.optimize scipy.stats tokenizers"
TEXT_FUNCTION = re.compile(r"_*(describe|format|print|report|explain|warn|repr|str)(_|$)")
TIMEOUT, NO_TESTS = -1000, 5  # exit status: no end within the limit; pytest found no test
SKIPPED = (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)
# Operator of the syntax tree: operators that replace it.
SWAPS = {
    pair.partition(":")[0]: pair.partition(":")[2]
    for pair in (
        "Lt:LtE,GtE LtE:Lt,Gt Gt:GtE,LtE GtE:Gt,Lt Eq:NotEq NotEq:Eq Is:IsNot IsNot:Is In:NotIn"
        " NotIn:In Add:Sub Sub:Add Mult:Div Div:Mult FloorDiv:Mult Mod:FloorDiv Pow:Mult"
        " BitAnd:BitOr BitOr:BitAnd And:Or Or:And"
    ).split()
}


class Mutant(NamedTuple):
    """A change of one expression. start and end are byte offsets in the file."""

    path: str
    line: int
    start: int
    end: int
    original: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}  {self.original}  ->  {self.text}"


def main() -> int:
    """Print a line per surviving mutant and a table by package."""
    root = Path.cwd()
    mutants = sample_mutants(root, _PACKAGES.value, _MODULE.value, _SAMPLE.value, _SEED.value)
    for name in PRELOADED.split():
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_mutants(mutants, copy_tree(root, Path(folder) / "tree"), _TIMEOUT.value)
    console.table(summarize(outcomes))
    return 0


def sample_mutants(root: Path, packages: list[str], module: str, size: int, seed: int) -> list:
    """Return a sample of the mutants of lm, sorted by file and line.

    The order of the hashes of the mutants selects the sample, so a change of one file does not
    exchange the mutants of the others.
    """
    files = [root / module] if module else [f for p in packages for f in _sources(root / "lm" / p)]
    ranked = []
    for file in files:
        n_equal: dict[str, int] = {}
        for mutant in list_mutants(file.read_bytes(), str(file.relative_to(root))):
            label = f"{seed} {mutant.path} {mutant.original} {mutant.text}"
            n_equal[label] = n_equal.get(label, 0) + 1
            digest = hashlib.sha256(f"{label} {n_equal[label]}".encode()).hexdigest()
            ranked.append((digest, mutant))
    return sorted(mutant for _, mutant in sorted(ranked)[:size])


def list_mutants(source: bytes, path: str) -> Iterator[Mutant]:
    """Yield the mutants of a file, in the order of its syntax tree."""
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    for node in _code_nodes(ast.parse(source)):
        if not isinstance(node, ast.expr | ast.stmt) or node.end_lineno is None:
            continue
        for text in _replacements(node):
            start = offsets[node.lineno - 1] + node.col_offset
            end = offsets[node.end_lineno - 1] + (node.end_col_offset or 0)
            changed = text if isinstance(node, ast.AugAssign) else f"({text})"
            yield Mutant(path, node.lineno, start, end, ast.unparse(node), changed)


def run_mutants(mutants: list[Mutant], tree: Path, timeout: int) -> list[tuple[Mutant, str]]:
    """Return the outcome of each mutant: killed, hangs, survived or untested.

    Raises ValueError if a test that kills a mutant also fails without the mutant.
    """
    outcomes, valid_tests = [], set()
    for number, mutant in enumerate(mutants, 1):
        start = time.monotonic()
        file, tests = tree / mutant.path, list_tests(tree, mutant.path)
        original, modified = file.read_bytes(), file.stat().st_mtime
        file.write_bytes(original[: mutant.start] + mutant.text.encode() + original[mutant.end :])
        os.utime(file, (modified + 10, modified + 10))  # so that the bytecode is not valid
        status, failed_test = run_tests(tree, tests, timeout) if tests else (NO_TESTS, "")
        file.write_bytes(original)
        os.utime(file, (modified, modified))
        if failed_test and failed_test not in valid_tests:
            if run_tests(tree, [failed_test], timeout)[0] != 0:
                raise ValueError(f"{failed_test} fails without a mutant: repair the test first")
            valid_tests.add(failed_test)
        outcome = {0: "survived", NO_TESTS: "untested", TIMEOUT: "hangs"}.get(status, "killed")
        seconds = f"({time.monotonic() - start:.0f} s)"
        console.print_line(f"{number}/{len(mutants)} {outcome}: {mutant} {seconds} {failed_test}")
        outcomes.append((mutant, outcome))
    return outcomes


def run_tests(tree: Path, tests: list[str], timeout: int) -> tuple[int, str]:
    """Run tests in a child process until one fails. Return the exit status and the failed test.

    The status is that of pytest, or TIMEOUT.
    """
    output = tree.parent / "output.txt"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            status = _run_pytest(tree, tests, output)
        finally:
            os._exit(status)
    deadline = time.monotonic() + timeout
    finished = wait_status = 0
    try:
        while not finished and time.monotonic() < deadline:
            time.sleep(0.05)
            finished, wait_status = os.waitpid(child, os.WNOHANG)
    finally:  # also after Ctrl-C, for all processes that the tests started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    if not finished:
        os.waitpid(child, 0)
        return TIMEOUT, ""
    failure = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", output.read_text(), re.MULTILINE)
    return os.waitstatus_to_exitcode(wait_status), failure[1] if failure else ""


def _run_pytest(tree: Path, tests: list[str], output: Path) -> int:
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
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    options = ["-x", "-q", "-n0", "--tb=no", "-p", "no:cacheprovider"]
    status = int(pytest.main([*tests, *options]))
    sys.stdout.flush()
    return status


def list_tests(tree: Path, path: str) -> list[str]:
    """Return the tests of a module: the file that mirrors it, then the files that import it.

    Without such a file, the tests are those that mirror the modules that import the module.
    """
    package = Path(path).parts[1]
    mirror = _mirror(tree, path)
    importing = _importing_files(tree / "tests" / package, "test_*.py", path)
    files = [mirror, *(file for file in importing if file != mirror)]
    if not importing and not mirror.exists():
        users = _importing_files(tree / "lm" / package, "*.py", path)
        files = [_mirror(tree, str(file.relative_to(tree))) for file in users]
    return [str(file.relative_to(tree)) for file in files if file.exists()]


def _mirror(tree: Path, path: str) -> Path:
    """Return the test file that mirrors a source file."""
    file = Path(path).relative_to("lm")
    return tree / "tests" / file.with_name(f"test_{file.name}")


def _importing_files(folder: Path, pattern: str, path: str) -> list[Path]:
    """Return the files below a folder that import the module with this path."""
    module = path.removesuffix(".py").replace("/", ".")
    package, name = module.rsplit(".", 1)
    imports = rf"^\s*(from {package} import (.*\b)?{name}\b|(import|from) {module}\b)"
    files = sorted(folder.rglob(pattern))
    return [file for file in files if re.search(imports, file.read_text(), re.MULTILINE)]


def copy_tree(root: Path, tree: Path) -> Path:
    """Copy the files that tests need, and share the cache of compiled programs."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in FOLDERS:
        shutil.copytree(root / name, tree / name, ignore=ignored)
    for file in root.glob("*.*"):
        if file.is_file():
            shutil.copy2(file, tree)
    compileall.compile_dir(tree / "lm", quiet=1)
    (root / ".pytest_cache").mkdir(exist_ok=True)
    (tree / ".pytest_cache").symlink_to(root / ".pytest_cache")
    return tree


def summarize(outcomes: list[tuple[Mutant, str]]) -> list[dict[str, str]]:
    """Return a row per package and a row for all mutants. A mutant that hangs is killed."""
    packages = sorted({Path(mutant.path).parts[1] for mutant, _ in outcomes})
    rows = []
    for package in [*packages, "all"]:
        selected = [o for m, o in outcomes if package in ("all", Path(m.path).parts[1])]
        n_killed = sum(outcome in ("killed", "hangs") for outcome in selected)
        counts = {o: f"{selected.count(o)}" for o in ("survived", "untested")}
        row = {"package": package, "tried": f"{len(selected)}", "killed": f"{n_killed}", **counts}
        rows.append(row | {"rate": f"{n_killed / max(len(selected), 1):.0%}"})
    return rows


def _sources(folder: Path) -> list[Path]:
    """Return the source files below a folder, without plots."""
    files = sorted(folder.rglob("*.py"))
    return [f for f in files if f.name != "__init__.py" and "plots" not in f.parts]


def _code_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below a node, without text, messages, annotations and decorators."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            is_text = isinstance(child, ast.FunctionDef) and TEXT_FUNCTION.match(child.name)
            # zip(strict=True) is an assertion.
            is_skipped = isinstance(child, SKIPPED) or getattr(child, "arg", "") == "strict"
            if isinstance(child, ast.AST) and not is_text and not is_skipped:
                yield child
                yield from _code_nodes(child)


def _replacements(node: ast.AST) -> list[str]:
    """Return the changed expressions of a node, without its children."""
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Constant):
        return [repr(value) for value in _other_values(node.value)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        return [] if isinstance(node.operand, ast.Constant) else [ast.unparse(node.operand)]
    if isinstance(node, ast.Compare):
        changes = [{"ops": [operator, *node.ops[1:]]} for operator in _swaps(node.ops[0])]
    elif isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign) and not _is_text(node):
        changes = [{"op": operator} for operator in _swaps(node.op)]
    else:
        changes = []
    return [ast.unparse(type(node)(**fields | change)) for change in changes]


def _swaps(operator: ast.AST) -> list:
    """Return the operators that replace an operator."""
    names = SWAPS.get(type(operator).__name__, "").split(",")
    return [getattr(ast, name)() for name in names if name]


def _other_values(value: object) -> list[object]:
    """Return the values that replace a constant: none for text."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1] if value > 0 else [value + 1]
    if isinstance(value, float):
        return [2 * value, value / 2] if value else [1.0]
    return []


def _is_text(node: ast.AST) -> bool:
    """Return True for an operation on a string, such as the concatenation of a message."""
    texts = (n for n in ast.iter_child_nodes(node) if isinstance(n, ast.Constant | ast.JoinedStr))
    return any(isinstance(getattr(text, "value", ""), str) for text in texts)


if __name__ == "__main__":
    cli.run_main(main)
