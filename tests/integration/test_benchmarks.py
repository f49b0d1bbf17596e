import ast
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from fixtures import made_up_sweep

from experiments.benchmarks import (
    against_pytorch,
    growth,
    hyperparameter_law,
    interleaved,
    memory,
    module_tests,
    mutation,
    throughput_scaling,
    trace_breakdown,
    train_step,
)
from lm.config import model_sizes
from lm.parallel import mesh
from lm.reports.plots import style
from lm.runs import records
from lm.training import step

CALLS = ("first call", "next calls")
PROGRAM = """
import json, sys
print("not an answer"); print(json.dumps({"now": 0.0}), flush=True)
for line in sys.stdin:
    if line == "7\\n": sys.exit("no seventh")
    print(json.dumps({"seconds": [float(line)]}), flush=True)
"""


@pytest.mark.parametrize("size", train_step.SHAPES)
def test_gated_mlp_has_the_size_of_the_baseline_mlp(size):
    """The plain MLP of the baseline is 4 times as wide as the model."""
    model = train_step.benchmark_run(size, []).model
    assert 1 <= 3 * model.d_model * model.d_ff / (8 * model.d_model**2) < 1.04


def test_fields_are_set_by_their_type_and_validated():
    run = train_step.benchmark_run(
        "S", ["model.dtype=bfloat16", "optim.clip_norm=0", "data.attend_across_documents=false"]
    )
    assert (run.model.dtype, run.optim.clip_norm, run.data.attend_across_documents) == (
        "bfloat16",
        0.0,
        False,
    )
    with pytest.raises(ValueError, match="model.unrolll does not exist"):
        train_step.benchmark_run("S", ["model.unrolll=2"])
    with pytest.raises(ValueError, match="model.scan_unroll=0 must be at least 1"):
        train_step.benchmark_run("S", ["model.scan_unroll=0"])


def test_program_answers_and_reports_why_it_ended():
    with interleaved.Program("baseline", [sys.executable, "-c", PROGRAM]) as program:
        assert program.time_steps(3) == {"seconds": [3.0]}
        with pytest.raises(RuntimeError, match="baseline ended: no seventh"):
            program.time_steps(7)


def test_median_interval_contains_the_median_and_narrows():
    small, large = interleaved.median(range(8)), interleaved.median(list(range(8)) * 50)
    assert small[1] < small[0] < small[2] and small[0] == large[0] == 3.5
    assert large[2] - large[1] < small[2] - small[1]


def test_trace_breakdown_recognizes_every_part_of_a_step(tiny):
    program = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    with jax.set_mesh(program.mesh):
        lowered = program.step.lower(program.abstract, program.batch, program.inputs)
    # Before XLA: a compiled program may come from a cache that was filled under other names.
    text = lowered.as_text(dialect="hlo", debug_info=True)
    parts = set(trace_breakdown.operation_parts(text).values())
    assert parts >= {"matmul", "attention", "optimizer", "softmax and loss"}, json.dumps([*parts])


def test_memory_is_planned_by_class_and_measured_by_stage(tiny, capsys):
    result = {"size": "tiny"} | memory.measure_stages(tiny, 1)
    plan, n_bytes = result["plan"], 4 * model_sizes.count_parameters(tiny.model)["total"]
    assert tuple(plan) == memory.PLAN and min(plan.values()) >= 0
    assert plan["weights"] == plan["gradients"] == jax.device_count() * n_bytes / memory.MIB
    assert plan["moments"] == pytest.approx(2 * plan["weights"], rel=0.01)
    stages = result["stages"]
    assert list(stages)[2:] == ["compilation", "initialization", *CALLS, "evaluation"]
    assert all(stage["peak"] >= stage["after"] - 1 for stage in stages.values())
    assert memory.peak_above_imports(result) == max(stage["peak"] for stage in stages.values())
    result["torch"] = {"imports": 200.0, "peak": 400.0, "above imports": 200.0}
    memory.print_table(result)
    text = capsys.readouterr().out
    assert "planned weights" in text and "PyTorch 400.0, above imports 200.0: ratios" in text


def test_ratios_to_pytorch_have_quartiles_of_equal_runs(capsys):
    own = dict.fromkeys(against_pytorch.QUANTITIES, 6.0)
    pairs = [(own, dict.fromkeys(own, value)) for value in (1.0, 2.0, 3.0, 4.0, 6.0)]
    assert against_pytorch.summarize_ratios("speed", pairs) == (2.0, 1.5, 3.0)
    assert against_pytorch.summarize_ratios("speed", pairs[:1]) == (6.0, 6.0, 6.0)
    against_pytorch.print_ratios("S", pairs)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(against_pytorch.QUANTITIES)
    assert "2.00 [1.50, 3.00], 6 against 3 tokens per second; target at least 1.00" in lines[1]


def test_figure_has_a_panel_per_axis_and_stores_its_lines(tmp_path, monkeypatch):
    lines = [
        throughput_scaling.BASE
        | {"devices": 2, "axis": axis, axis: value, "tokens_per_second": [9e4 / value] * 3}
        | {"at_best": 2e5 / value, "peak_gflops_per_second": 400}
        | {"grown_mib": 95.0, "planned_mib": 100.0}
        for axis, values in throughput_scaling.AXIS_VALUES.items()
        for value in values
    ]
    monkeypatch.setattr(throughput_scaling, "_OUT", type("", (), {"value": tmp_path / "cost"}))
    png, svg = throughput_scaling.draw(lines)
    text = svg.read_text()
    assert style.read_figure_metadata(png) == {"lines": lines}
    for label in (*throughput_scaling.AXIS_LABELS.values(), "0.95 to 0.95 of the planned memory"):
        assert f"<!-- {label}" in text or label in text, label


SOURCE = '''"""1 < 2"""
LIMIT: int | None = 3


def scale(x: int | None = None, y="a" + "b") -> float:
    """Return 2 * x."""
    if x < LIMIT and not y:
        raise ValueError(f"{x + 1}: " + "é" * 2)
    return [x * 2.0, *zip(y, y, strict=True)]


def describe_scale(x):
    return x + 1
'''


def test_mutants_change_code_and_no_text():
    source = SOURCE.encode()
    mutants = list(mutation.list_mutants(source, "lm/laws/toy.py"))
    assert [(m.line, m.original, m.text) for m in mutants] == [
        (2, "3", "(4)"),
        (2, "3", "(2)"),
        (7, "x < LIMIT and (not y)", "(x < LIMIT or not y)"),
        (7, "x < LIMIT", "(x <= LIMIT)"),
        (7, "x < LIMIT", "(x >= LIMIT)"),
        (7, "not y", "(y)"),
        (9, "x * 2.0", "(x / 2.0)"),
        (9, "2.0", "(4.0)"),
        (9, "2.0", "(1.0)"),
    ]
    for mutant in mutants:
        changed = source[: mutant.start] + mutant.text.encode() + source[mutant.end :]
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


def toy_tree(folder: pathlib.Path, test: str) -> pathlib.Path:
    """Write a tree with the module SOURCE and its test file. Return its root."""
    root = folder / "tree"
    for path, text in (("lm/laws/toy.py", SOURCE), ("tests/laws/test_toy.py", test)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_mutants_are_in_the_tree_only_while_their_tests_run(tmp_path, monkeypatch):
    """The fake tests detect each change of the factor, and no other change."""
    root = toy_tree(tmp_path, "from lm.laws import toy\n")
    source, n_calls = root / "lm" / "laws" / "toy.py", []

    def run_tests(tree, files, durations, timeout):
        assert files == ["tests/laws/test_toy.py"]
        n_calls.append(1)
        is_wrong = "x * 2.0" not in source.read_text()
        return module_tests.TestResult("failed" if is_wrong else "passed", "test - of factor")

    monkeypatch.setattr(module_tests, "run_tests", run_tests)
    mutants = mutation.sample_mutants(root, ["laws"], 100, seed=0)
    assert mutation.sample_mutants(root, ["laws"], 3, seed=0) != mutants[:3]
    path = tmp_path / "results.jsonl"
    outcomes = mutation.run_mutants(mutants, root, mutation.ResultsFile(path), timeout=1)
    assert {mutant.line for mutant, outcome in outcomes if outcome == "killed"} == {9}
    assert source.read_text() == SOURCE and len(n_calls) == len(mutants) + 1
    assert mutation.summarize(outcomes)[-1] == {
        "package": "all", "mutants": "9", "killed": "3", "import": "0", "hangs": "0",
        "crashed": "0", "survived": "6", "untested": "0", "rate": "33%",
    }  # fmt: skip
    again = mutation.run_mutants(mutants, root, mutation.ResultsFile(path), timeout=1)
    assert again == outcomes and len(n_calls) == len(mutants) + 1
    # Survivors run again after a change of their tests, and the tests run without a mutant.
    (root / "tests/laws/test_toy.py").write_text("import lm.laws.toy\n")
    mutation.run_mutants(mutants, root, mutation.ResultsFile(path), timeout=1)
    assert len(n_calls) == len(mutants) + 1 + 6 + 1


def test_test_that_fails_without_a_mutant_ends_the_command(tmp_path, monkeypatch):
    root = toy_tree(tmp_path, "from lm.laws import toy\n")
    results = mutation.ResultsFile(tmp_path / "results.jsonl")
    monkeypatch.setattr(module_tests, "run_tests", lambda *_: module_tests.TestResult("import"))
    with pytest.raises(
        ValueError, match=r"test_toy.py import without a mutant .*: repair the test"
    ):
        mutation.run_mutants(mutation.sample_mutants(root, ["laws"], 1, 0), root, results, 1)


TOY_CASES = {
    "def test_a(): pass": ("passed", ""),
    "": ("none", ""),
    "import pytest\n@pytest.mark.parametrize('x', [0], ids=['a - b'])\ndef test_a(x): assert 0": (
        "failed",
        "test_toy.py::test_a[a - b]",
    ),
    "from lm.laws import toy\ntoy.missing": ("import", "test_toy.py"),
    "def test_a():\n    while True: pass": ("hangs", "test_toy.py::test_a"),
    "import os\ndef test_a(): os._exit(0)": ("crashed", ""),
}
RUN_CASES = """
import json, sys, pytest, pytest_timeout  # imported before the children fork
from pathlib import Path
from experiments.benchmarks import module_tests
root, file, results = Path(sys.argv[1]), "tests/laws/test_toy.py", []
for text in json.loads(sys.argv[2]):
    (root / file).write_text(text)
    results.append(module_tests.run_tests(root, [file], {f"{file}::test_a": 0.01}, timeout=20))
Path(sys.argv[3]).write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_outcome_of_tests_names_the_first_failure(tmp_path):
    """A process without threads runs the cases, because each case forks a child."""
    root, output = toy_tree(tmp_path, ""), tmp_path / "results.json"
    (root / "pytest.ini").write_text("[pytest]\n")
    arguments = [str(root), json.dumps(list(TOY_CASES)), str(output)]
    subprocess.run([sys.executable, "-c", RUN_CASES, *arguments], check=True)
    results = [module_tests.TestResult(*values) for values in json.loads(output.read_text())]
    for result, (outcome, test) in zip(results, TOY_CASES.values(), strict=True):
        assert result.outcome == outcome, result
        assert result.test == (f"tests/laws/{test}" if test else ""), result


def test_tests_of_a_module_mirror_or_import_the_module(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    tests = module_tests.list_tests(root, "lm/data/packing.py")
    assert tests[0] == "tests/data/test_packing.py"
    assert "tests/data/test_heldout_documents.py" in tests
    assert module_tests.list_tests(root, "lm/laws/forms/isoflop_minima.py") == [
        "tests/laws/forms/test_isoflop.py"
    ]
    toy = toy_tree(tmp_path, "")
    for text in (
        "from lm.laws import (\n    fit,\n    toy,\n)\n",
        "def test_a():\n    import lm.laws.toy\n",
        "from lm.laws.toy import scale\n",
    ):
        (toy / "tests/laws/test_other.py").write_text(text)
        assert len(module_tests.list_tests(toy, "lm/laws/toy.py")) == 2
    (toy / "tests/laws/test_other.py").write_text("from lm.laws import fit  # toy\n")
    assert len(module_tests.list_tests(toy, "lm/laws/toy.py")) == 1


def test_check_of_the_law_pairs_its_rates_over_seeds():
    losses = np.array([[3.0, 3.1, 3.2], [2.0, 2.1, 2.2], [2.01, 2.12, 2.2]])
    mean, upper = hyperparameter_law.paired_excess(losses, chosen=2)
    assert mean == pytest.approx(np.mean([0.005, 0.02 / 2.1, 0.0])) and upper > mean
    assert hyperparameter_law.paired_excess(losses, chosen=1) == (0.0, 0.0)


def test_rules_have_the_loss_of_a_parabola():
    rates = [0.001 * 2.0**k for k in range(5)]
    losses = 2 + 0.1 * np.log(np.array(rates) / 0.004) ** 2
    row = {"params.non_embedding": 150_448, "tokens": 7.8e6}
    lines = {
        line["rule"]: line for line in hyperparameter_law.list_rules(row, rates, losses, 0.008)
    }
    expected = 0.1 * np.log(2) ** 2 / 2
    assert lines["law of this sweep"]["loss above the best rate"] == f"{expected:+.2%}"
    assert len(lines) == 4


def test_growth_marks_quantities_above_the_expected_exponent(tmp_path):
    assert growth.powers(1000) == [10, 100, 1000] and growth.powers(50) == [10, 50]
    square = growth.Growth("tokens", "temporaries, MiB", (10, 100), (1.0, 100.0))
    line = growth.describe_growth(square)
    assert square.is_too_fast and "exponent  2.00, expected 1.00 GROWS FASTER" in line
    assert not square._replace(expected=1.95).is_too_fast
    assert not growth.Growth("runs", "load_runs, s", (10,), (0.0,)).is_too_fast
    results = growth.measure_documents(tmp_path, [10, 20])
    assert [g.quantity for g in results] == ["prepare, s", "prepared text, MiB"]
    assert growth.model_run({"model.d_model": 128}).model.d_head == 64


def test_copied_runs_are_a_sweep_that_can_be_loaded(tmp_path):
    growth.copy_runs(tmp_path / "copies", made_up_sweep.sweep(tmp_path), 8)
    rows = records.load_runs(tmp_path / "copies")
    assert len({row["name"] for row in rows}) == 8 and {row["seed"] for row in rows} == {*range(8)}
    with pytest.raises(ValueError, match="contains no runs"):
        growth.copy_runs(tmp_path / "none", tmp_path / "empty", 1)
