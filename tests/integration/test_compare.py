"""Tests of the command `compare`, and of the sweeps that it trains."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from fixtures import made_up_sweep
from fixtures.recipe_rows import recipe_rows

import lm
from experiments.common import recipe_ladders
from lm.laws.recipe_comparison import recipe_verdict

ROOT = pathlib.Path(__file__).parent.parent.parent


def run_compare(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "experiments.compare", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_writes_json_a_record_and_a_page(tmp_path, monkeypatch):
    made_up_sweep.sweep(tmp_path, "a", predict=False)
    monkeypatch.setattr(made_up_sweep, "SCALE", 17.0)
    made_up_sweep.sweep(tmp_path, "b", predict=False)
    done = run_compare("a", "b", "--json", "--out=out", "--candidates=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["better"] == "B" and result["options"]["n_candidates"] == 2
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "comparison.json", "comparison.html", "multiplier.png", "multiplier.svg"
    }  # fmt: skip
    refused = run_compare("a", "missing", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: missing is no folder and no Python file")
    assert refused.stderr.count("\n") == 1


def test_further_seeds_extend_a_sweep(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, "a", predict=False)
    location = recipe_ladders.seeds_location(str(folder), {"60K": [0, 1, 2]})
    runs = list(recipe_ladders.get_sweep(location.partition(":")[2]))
    assert len(runs) == len(made_up_sweep.SIZES) + 2
    assert [(run.name, run.seed) for run in runs[-2:]] == [("a/60K-seed1", 1), ("a/60K-seed2", 2)]
    assert runs[-1].model == next(run.model for run in runs if run.name == "a/60K")
    assert {run.dir for run in runs} == {runs[0].dir}
    assert recipe_ladders.next_seeds([str(folder)], "60K", 2) == [1, 2]
    with pytest.raises(ValueError, match="no finished run of size 5M: train one first"):
        recipe_ladders.add_seeds(str(folder), {"5M": [1]})


def test_config_becomes_a_ladder_of_sizes_and_seeds():
    location = recipe_ladders.ladder_location(str(ROOT / "configs/base.py"), ["10K", "25K"], 2)
    runs = list(recipe_ladders.get_sweep(location.partition(":")[2]))
    assert [run.name for run in runs] == [
        "compare-base/10K-seed0", "compare-base/10K-seed1", "compare-base/25K-seed0",
        "compare-base/25K-seed1",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="is no ladder: pass ladder"):
        list(recipe_ladders.get_sweep("ladder+x"))


def test_decision_adds_pairs_until_the_verdict_or_the_budget():
    """Trained pairs are simulated. A second call continues with the runs of the first."""
    n_seeds, clock = {"n": 1}, {"seconds": 0.0}

    def compare():
        options = recipe_verdict.ComparisonOptions(n_draws=100, is_anytime=True)
        rows = [
            recipe_rows(name, log_m, noise=0.007, n_seeds=n_seeds["n"], seed=3)
            for name, log_m in (("a", 0.0), ("b", 0.3))
        ]
        return lm.compare(*rows, options)

    def train_pairs(size, n_pairs):
        n_seeds["n"] += 1
        clock["seconds"] += 10

    report, reason = recipe_ladders.decide(compare, train_pairs, 15, lambda: clock["seconds"])
    assert report.comparison.verdict == "undecided" and "larger --time_budget" in reason
    n_before = n_seeds["n"]
    report, reason = recipe_ladders.decide(compare, train_pairs, 1e6, lambda: clock["seconds"])
    assert report.comparison.verdict == "constant" and reason == ""
    assert n_seeds["n"] > n_before
