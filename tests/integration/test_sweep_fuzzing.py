"""Mutated sweep files end in the correct runs, or in one line that names the file.

The files go through the function of `experiments.plan` and `experiments.sweep` that reads them. A
mutation is known to be invalid, known to be harmless, or a random edit of the text.
"""

import contextlib
import copy
import io
import random
import re

import pytest

from experiments.common import cli
from lm.config import field_names, schema, validation

SEED, N_FILES = 20_261_129, 300
SIZES = ("10K", "25K", "60K")
BASE = """\
import copy

from lm.config import model_sizes, schema

SIZES = ("10K", "25K", "60K")


def get_sweep(tokens="200_000"):
    for size in SIZES:
        run = schema.Run(name=f"fuzz/{size}")
        run.model = model_sizes.ladder_model(size)
        run.optim.lr = 0.5 / run.model.d_model
        run.data.sources = {"code": 0.5, "docs": 0.5}
        run.steps = model_sizes.steps_for_budget(run, tokens=int(tokens))
        run.is_prediction_target = size == SIZES[-1]
        yield run
"""
YIELD = "        yield run\n"
FIELDS = tuple(schema.field_types(schema.Run))
WRONG_VALUES = (
    *("'7'", "None", "float('nan')", "float('inf')", "-float('inf')", "-0.0", "10**400", "2**63"),
    *("[1]", "{}", "lambda: 1", "1j", "b'x'", "object()", "schema", "range(3)", "-(10**30)"),
)
ODD_NAMES = (
    *("''", "'.'", "'..'", "'/abs'", "'a/'", "'a//b'", "'a b/c'", "'ä/b'", "'a/\\n'", "'a/\\0'"),
    *("'fuzz/checkpoints'", "'fuzz/report.html'", "'fuzz/.git'", "'x' * 300", "'a\\\\b'", "'a:b'"),
    *("'fuzz/sweep.json'", "'fuzz/damaged'", "'~/a'", "'a/../b'", "'\\u202e'", "'fuzz/10K/x'"),
)
WRONG_RESULTS = (
    *("[]", "()", "{}", "None", "3", "'text'", "schema.Run()", "[schema.Run()] * 2", "[[]]"),
    *("iter([])", "[None]", "[schema.Run]", "schema.Run", "(1 / 0 for _ in range(2))", "[1, 2]"),
    *("[schema.Run(name='a'), schema.Run(name='a')]", "{'a': schema.Run()}", "print", "Ellipsis"),
    *("[schema.Run(name='a'), schema.Run(name='a/b')]", "[schema.Data()]", "b''", "True"),
)
RAISES = (
    *("raise RuntimeError('a\\nb')", "1 / 0", "{}['x']", "[][0]", "assert False, 'x'", "nowhere"),
    *("raise KeyboardInterrupt.__base__('x')", "import nowhere", "raise SystemExit", "exit(0)"),
    *("raise StopIteration", "(lambda f: f(f))(lambda f: f(f))", "open('/nowhere/x')", "int('x')"),
    *(
        "raise ValueError()",
        "raise Exception(run)",
        "raise UnicodeError('\\udcff')",
        "del run.optim",
    ),
)
SYNTAX_ERRORS = ("def", "yield =", "(", "'''", "return 1 +", "\tx = 1", "run.lr = = 1", "\0", "ü ö")
HARMLESS = (
    *("pass", "run = copy.deepcopy(run)", "print('x')", "run.seed = 3", "run.optim.lr = 1"),
    *("run.data.sources['text:my/folder'] = 2", "run.mesh.rules = {'mlp': []}", "run.wandb = True"),
    *("run.model = schema.Model(d_model=64, bias=True)", "run.seed = 2**31 - 1", "run.dir = '.'"),
    *("run.name += '-a.b_c'", "run.name = f'other/{size}'", "run.start.run = 'parent/10K'"),
)


def insert_before_yield(line: str) -> str:
    """Return the sweep file with a line before the runs are yielded."""
    return BASE.replace(YIELD, f"        {line}\n{YIELD}")


def misspell(name: str, rng: random.Random) -> str:
    """Return the name of a field with one letter removed, doubled or exchanged."""
    i = rng.randrange(len(name))
    return rng.choice(
        (name[:i] + name[i + 1 :], name[:i] + name[i] + name[i:], f"{name[:i]}q{name[i + 1 :]}")
    )


def misspelled_field(rng: random.Random) -> tuple[str, bool | None]:
    field = rng.choice(FIELDS)
    group, _, last = field.rpartition(".")
    known = {name.removeprefix(f"{group}.") if group else name for name in FIELDS}
    synonyms = field_names.SYNONYMS[field].split()
    wrong = rng.choice([misspell(last, rng), f"{last}s", *synonyms])
    if wrong in known or wrong in field_names.GROUPS or not wrong.isidentifier():
        wrong = f"{last}_x"
    if wrong in ("continue", "lambda"):
        wrong = "resum"
    owner = f"run.{group}" if group else "run"
    return insert_before_yield(f"{owner}.{wrong} = 1"), False


def wrong_type(rng: random.Random) -> tuple[str, bool | None]:
    field, value = rng.choice(FIELDS), rng.choice(WRONG_VALUES)
    may_be_valid = "sources" in field or "rules" in field or value in ("'7'", "2**63", "-0.0")
    return insert_before_yield(f"run.{field} = {value}"), None if may_be_valid else False


def odd_name(rng: random.Random) -> tuple[str, bool | None]:
    return insert_before_yield(f"run.name = {rng.choice(ODD_NAMES)}"), False


def wrong_result(rng: random.Random) -> tuple[str, bool | None]:
    kind = rng.choice(("return", "yield"))
    result = rng.choice(WRONG_RESULTS)
    is_valid = kind == "yield" and result == "schema.Run()"
    text = BASE[: BASE.index("def ")] + f"def get_sweep():\n    {kind} {result}\n"
    return text, None if is_valid else False


def raises_halfway(rng: random.Random) -> tuple[str, bool | None]:
    line = rng.choice(RAISES)
    if rng.random() < 0.5:
        line = f"if size == '25K': {line}"
    return insert_before_yield(line), False


def syntax_error(rng: random.Random) -> tuple[str, bool | None]:
    lines = BASE.splitlines()
    lines.insert(rng.randrange(8, len(lines)), rng.choice(SYNTAX_ERRORS))
    return "\n".join(lines), None


def wrong_size(rng: random.Random) -> tuple[str, bool | None]:
    size = rng.choice(("10k", "11K", "", "1T0", "K", "10K ", "百K", "0"))
    return BASE.replace('"25K"', repr(size)), False


def wrong_definition(rng: random.Random) -> tuple[str, bool | None]:
    name = rng.choice(("get_sweeps", "get_config", "sweep", "get_sweep(a, b), f", "Get_sweep"))
    if "," in name:
        return BASE.replace('get_sweep(tokens="200_000")', "get_sweep(tokens, other)"), False
    return BASE.replace("def get_sweep", f"def {name}"), False


def repeated_runs(rng: random.Random) -> tuple[str, bool | None]:
    line = rng.choice(("yield run", "yield copy.deepcopy(run)", "run.name = 'fuzz/same'"))
    return insert_before_yield(line), False


def nested_list(rng: random.Random) -> tuple[str, bool | None]:
    result = rng.choice(("[run]", "(run,)", "[[run]]", "{run.name: run}", "vars(run)", "run, run"))
    return BASE.replace("yield run", f"yield {result}"), False


def harmless_edit(rng: random.Random) -> tuple[str, bool | None]:
    lines = rng.sample(HARMLESS, 2)
    return insert_before_yield("\n        ".join(lines)), True


def random_edits(rng: random.Random) -> tuple[str, bool | None]:
    """Return the sweep file with one to three deleted, repeated or exchanged characters."""
    text = BASE
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(BASE.index("SIZES ="), len(text))
        text = (
            text[:i]
            + rng.choice(("", text[i] * 2, rng.choice("()[]\"'=.,:0 9x\n")))
            + text[i + 1 :]
        )
    return text, None


MUTATIONS = (
    *(misspelled_field, wrong_type, odd_name, wrong_result, raises_halfway, syntax_error),
    *(wrong_size, wrong_definition, repeated_runs, nested_list, random_edits),
    *(harmless_edit, harmless_edit, harmless_edit, harmless_edit),
)


def load(location: str) -> tuple[int, list[schema.Run], str]:
    """Return the exit status, the runs and the error output of a command that reads a sweep."""
    runs: list[schema.Run] = []
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = cli.exit_status(lambda: runs.extend(cli.load_sweep(location)), ["plan"])
    return status, runs, errors.getvalue()


def check_runs(runs: list[schema.Run]) -> None:
    """Check that runs are valid and independent, with names that do not collide."""
    names = [run.name for run in runs]
    assert runs and len({*names}) == len({id(run) for run in runs}) == len(runs)
    for run in copy.deepcopy(runs):
        validation.validate_run(run)


@pytest.mark.slow
def test_mutated_sweep_file_gives_runs_or_one_line(tmp_path):
    rng = random.Random(SEED)
    path = tmp_path / "fuzzed.py"
    counts = {"runs": 0, "one line": 0}
    for number in range(N_FILES):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        text, is_valid = mutation(rng)
        path.write_text(text, encoding="utf-8")
        status, runs, errors = load(str(path))
        where = f"file {number}, {mutation.__name__}: {errors}\n{text}"
        assert status in (0, 2) and is_valid in (None, status == 0), where
        counts["one line" if status else "runs"] += 1
        if status:
            assert re.fullmatch(rf"error: (--\w+=)?{path}.*\n", errors), where
            assert len(errors) < 900, where
        else:
            assert not errors, where
            check_runs(runs)
    print(f"seed {SEED}: {N_FILES} files, {counts}")
    assert counts["runs"] >= N_FILES / 5
    assert counts["one line"] >= N_FILES / 2


def test_unmutated_sweep_file_gives_its_runs(tmp_path):
    (tmp_path / "sweep.py").write_text(BASE)
    status, runs, errors = load(str(tmp_path / "sweep.py"))
    assert (status, errors) == (0, "")
    assert [run.name for run in runs] == [f"fuzz/{size}" for size in SIZES]
    assert [run.is_prediction_target for run in runs] == [False, False, True]
