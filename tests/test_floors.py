"""Data flows one way: a file imports only from floors below, or from its left on its own floor."""

import ast
import pathlib
import subprocess
import sys

import pytest

LM = pathlib.Path(__file__).parent.parent / "lm"
# Each line is a chain on a floor: a file may import those before it in its own chain, and all that
# stands on a floor below. Chains of one floor do not see each other.
QUOTES = ("hlo", "roofline", "described", "quote", "search")  # what a machine would take for it
FLOORS: list[list[list[str]]] = [
    [
        [
            *("fields", "config", "layout", "checks", "targets", "sizes", "hyperparameters"),
            *("storage", "guard", "lifeline", "revision", "records", "excerpt", "clock"),
        ]
    ],
    [
        [
            *("hosts", "exact", "mesh", "parametrization"),
            *("learned", "layers", "attention", "kernels", "moe", "model", "cache", "optim"),
        ],
        [
            *("uri", "automaton", "machine", "grammar", "languages"),  # what is made up
            *("tokens", "embedded", "files", "forms", "chat", "prompts"),  # how it is read
            *("tfds_text", "families", "sources"),  # what is read
            *("overlap", "filters", "sift", "seen", "draft", "copies", "corpus"),  # what is kept
            *("order", "whole", "data"),  # in which order
            *("packing", "talk", "tasks", "grade"),  # what is asked, and what is answered
        ],
        [
            *("table", "solver", "fit", "doubts", "estimate", "judge", "advice"),  # how to fit
            *("starts", "powers", "lines", "minima", "isoflop", "frontier"),  # what is fitted
            *("repetition", "ability", "chain", "laws", "mastery", "drift", "kin"),
            *(
                "gains",
                "style",
                "marks",
                "plots",
                "skills",
                "tuning",
                "surface",
                "goodput",
                "rate_plots",
                "outcome",
                "drawings",
                "page",
                "report",
                "standing",
            ),  # what is shown
        ],
    ],
    [
        [
            *("mirrors", "proof", "checkpoint", "lineage", "decode", "sample", "evaluate", "exam"),
            *("programs", "coordinates", "ledger", "attempt", "train", "packs", "plan"),
            *(*QUOTES, "prediction", "launch", "workers"),
        ]
    ],
    [["harness"], ["stock", "hf_writer", "hf_reader"]],
]
NO_JAX = {*FLOORS[0][0], *FLOORS[1][1], *FLOORS[1][2]}


def imports(path: pathlib.Path) -> set[str]:
    """Files of lm, and packages, that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.removeprefix("lm.").split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.module == "lm":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").removeprefix("lm.").split(".")[0])
    return found


def allowed() -> dict[str, set[str]]:
    below, rules = set(), {}
    for floor in FLOORS:
        for chain in floor:
            for place, name in enumerate(chain):
                rules[name] = below | set(chain[:place])
        below |= {name for chain in floor for name in chain}
    return rules


@pytest.mark.parametrize("name", sorted(p.stem for p in LM.glob("*.py") if p.stem != "__init__"))
def test_imports_go_down_or_left(name):
    rules = allowed()
    assert name in rules, f"lm/{name}.py has no place on a floor"
    mine = imports(LM / f"{name}.py")
    assert mine & set(rules) <= rules[name]
    assert "experiments" not in mine and "configs" not in mine
    if name in NO_JAX:
        assert not mine & {"jax", "flax", "optax", "orbax"}


def test_every_place_has_a_file():
    assert set(allowed()) == {p.stem for p in LM.glob("*.py")} - {"__init__"}


def test_config_sizes_and_records_import_no_packages():
    for name in FLOORS[0][0]:
        lazy = {"etils", "fsspec"} if name == "storage" else set()  # for gs:// alone
        known = set(sys.stdlib_module_names) | set(FLOORS[0][0])
        assert imports(LM / f"{name}.py") <= known | lazy


def test_what_stays_on_this_machine_loads_no_package():
    script = (
        "import sys; from lm import records; records.rows(sys.argv[1]);"
        "print(sorted({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    )
    found = subprocess.run(
        [sys.executable, "-Sc", script, LM], capture_output=True, text=True, cwd=LM.parent
    )
    assert found.stdout == "['__main__', 'lm']\n", found.stderr
