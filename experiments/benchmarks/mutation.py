"""Change the code at random places and count the changes that the tests of the module detect.

    uv run python -m experiments.benchmarks.mutation --sample=200 --seed=0
    uv run python -m experiments.benchmarks.mutation --packages=data --only=lm/data/packing.py

A mutant differs from the code in one comparison, operator, number or boolean. Text, plots, messages
and annotations are excluded. Each mutant is written to a temporary copy of the tree, where the
tests of the module run until one fails (module_tests.py). A failure, an error at the import of a
test file, a crash or a test that hangs kills the mutant.

The results are appended to --results, a file of JSON lines. A repeated command runs the mutants
without a result: those that are new, and survivors whose tests have changed. First, each test file
runs without a mutant; the command ends if a test fails. The command prints a line per mutant and a
table by package.
"""

import ast
import compileall
import hashlib
import importlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments.benchmarks import module_tests
from experiments.common import cli, console

_SAMPLE = flags.DEFINE_integer("sample", 200, "number of mutants")
_SEED = flags.DEFINE_integer("seed", 0, "seed of the sample")
_PACKAGES = flags.DEFINE_list(
    "packages", ["laws", "data", "evaluation", "model", "training"], "packages of lm to change"
)
_ONLY = flags.DEFINE_list("only", [], "run only the mutants of the sample in these files, folders")
_RESULTS = flags.DEFINE_string("results", "runs/mutants.jsonl", "file of the results")
_TIMEOUT = flags.DEFINE_integer("timeout", 300, "seconds, see module_tests.run_tests")

# Imported before the children fork, with all libraries that lm uses. None starts a JAX backend.
PRELOADED = "pytest pytest_timeout scipy.optimize scipy.stats lm.training.loop lm.laws"
COMPILED = ".pytest_cache/compiled"  # cache of compiled programs of the tests
TEXT_FUNCTION = re.compile(r"_*(describe|format|print|report|explain|warn|repr|str)(_|$)")
OUTCOMES = ("killed", "import", "hangs", "crashed", "survived", "untested")
SURVIVAL = ("survived", "untested")
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
    """Print a line per mutant and a table by package."""
    root = Path.cwd()
    mutants = sample_mutants(root, _PACKAGES.value, _SAMPLE.value, _SEED.value)
    selected = [m for m in mutants if not _ONLY.value or m.path.startswith(tuple(_ONLY.value))]
    for name in PRELOADED.split():
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        results = ResultsFile(root / _RESULTS.value)
        tree = copy_tree(root, Path(folder) / "tree")
        outcomes = run_mutants(selected, tree, results, _TIMEOUT.value)
    console.table(summarize(outcomes))
    console.print_line(f"results: {_RESULTS.value}")
    return 0


class ResultsFile:
    """Results of mutants and durations of tests, in a file of JSON lines."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = {row["key"]: row for row in map(json.loads, lines)}

    def append(self, key: str, **values) -> dict:
        """Append a row. The last row with a key replaces the earlier rows with this key."""
        self.rows[key] = {"key": key, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(self.rows[key]) + "\n")
        return self.rows[key]


def sample_mutants(root: Path, packages: list[str], size: int, seed: int) -> list[Mutant]:
    """Return a sample of the mutants of packages of lm, sorted by package, file and line.

    The order of the hashes of the mutants selects the sample, so a change of one file does not
    exchange the mutants of the others.
    """
    ranked = []
    for file in [file for package in packages for file in _sources(root / "lm" / package)]:
        n_equal: dict[str, int] = {}
        for mutant in list_mutants(file.read_bytes(), str(file.relative_to(root))):
            label = f"{seed} {mutant.path} {mutant.original} {mutant.text}"
            n_equal[label] = n_equal.get(label, 0) + 1
            digest = hashlib.sha256(f"{label} {n_equal[label]}".encode()).hexdigest()
            ranked.append((digest, mutant))
    sample = [mutant for _, mutant in sorted(ranked)[:size]]
    return sorted(sample, key=lambda mutant: (packages.index(_package(mutant)), mutant))


def _package(mutant: Mutant) -> str:
    """Return the package of lm that a mutant changes."""
    return Path(mutant.path).parts[1]


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


def run_mutants(
    mutants: list[Mutant], tree: Path, results: ResultsFile, timeout: float
) -> list[tuple[Mutant, str]]:
    """Return the outcome of each mutant: survived, untested, or the way the tests detected it.

    Raises ValueError if a test fails without a mutant.
    """
    outcomes = []
    for number, mutant in enumerate(mutants, 1):
        row = run_mutant(mutant, tree, results, timeout)
        outcomes.append((mutant, row["outcome"]))
        text = f"{number}/{len(mutants)} {row['outcome']}: {mutant} ({row['seconds']:.0f} s)"
        console.print_line(f"{text} {row['test']} {row['reason']}".rstrip())
    return outcomes


def run_mutant(mutant: Mutant, tree: Path, results: ResultsFile, timeout: float) -> dict:
    """Return the stored result of a mutant, or run its tests and store the result."""
    file, tests = tree / mutant.path, module_tests.list_tests(tree, mutant.path)
    original, modified = file.read_bytes(), file.stat().st_mtime
    source = original[: mutant.start] + mutant.text.encode() + original[mutant.end :]
    key = f"{mutant.path} {hashlib.sha256(source).hexdigest()[:16]}"
    digest = module_tests.hash_files([tree / test for test in tests])
    row = results.rows.get(key)
    if row and (row["outcome"] not in SURVIVAL or row["tests"] == digest):
        return row
    durations: dict[str, float] = {}
    for test in tests:
        durations |= measure_tests(test, tree, results, timeout)
    start = time.monotonic()
    file.write_bytes(source)
    os.utime(file, (modified + 10, modified + 10))  # so that the bytecode is not valid
    try:
        result = (
            module_tests.run_tests(tree, _order_tests(tests, durations), durations, timeout)
            if tests
            else module_tests.TestResult("none")
        )
    finally:
        file.write_bytes(original)
        os.utime(file, (modified, modified))
    outcome = {"passed": "survived", "none": "untested", "failed": "killed"}.get(result.outcome)
    seconds = round(time.monotonic() - start, 2)
    values = {"mutant": str(mutant), "outcome": outcome or result.outcome, "tests": digest}
    return results.append(key, **values, seconds=seconds, test=result.test, reason=result.reason)


def measure_tests(test: str, tree: Path, results: ResultsFile, timeout: float) -> dict[str, float]:
    """Return the seconds of each test of a file without a mutant, stored or measured.

    Raises ValueError if a test fails.
    """
    sources = [f for name in ("lm", "tests/fixtures") for f in sorted((tree / name).rglob("*.py"))]
    key = f"{test} {module_tests.hash_files([*sources, tree / test])}"
    if key not in results.rows:
        result = module_tests.run_tests(tree, [test], {}, timeout)
        if result.outcome not in ("passed", "none"):
            name = f"{result.test or test} {result.outcome}"
            raise ValueError(f"{name} without a mutant ({result.reason}): repair the test first")
        results.append(key, durations={t: round(s, 3) for t, s in result.durations.items()})
    return results.rows[key]["durations"]


def _order_tests(tests: list[str], durations: dict[str, float]) -> list[str]:
    """Return the first test file, then the others by their duration."""
    seconds = {
        test: sum(s for name, s in durations.items() if name.startswith(f"{test}::"))
        for test in tests
    }
    return [*tests[:1], *sorted(tests[1:], key=seconds.__getitem__)]


def copy_tree(root: Path, tree: Path) -> Path:
    """Copy the files that tests need, and the cache of compiled programs."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in module_tests.FOLDERS:
        shutil.copytree(root / name, tree / name, ignore=ignored)
    for file in root.glob("*.*"):
        if file.is_file():
            shutil.copy2(file, tree)
    compileall.compile_dir(tree / "lm", quiet=1)
    # A link would lead out of the tree, where some tests allow no access.
    if (root / COMPILED).exists():
        shutil.copytree(root / COMPILED, tree / COMPILED)
    return tree


def summarize(outcomes: list[tuple[Mutant, str]]) -> list[dict[str, str]]:
    """Return a row per package and a row for all mutants, with the counts of the outcomes.

    rate: fraction of the mutants that the tests detected.
    """
    rows = []
    for package in [*dict.fromkeys(_package(mutant) for mutant, _ in outcomes), "all"]:
        selected = [o for m, o in outcomes if package in ("all", _package(m))]
        n_detected = sum(outcome not in SURVIVAL for outcome in selected)
        row = {"package": package, "mutants": f"{len(selected)}"}
        row |= {outcome: f"{selected.count(outcome)}" for outcome in OUTCOMES}
        rows.append(row | {"rate": f"{n_detected / max(len(selected), 1):.0%}"})
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
