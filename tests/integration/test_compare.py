"""Tests of the command `compare`, and of the sweeps that it trains."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from fixtures import documentation, made_up_sweep
from fixtures.recipe_rows import recipe_rows

import lm
from experiments.common import recipe_ladders
from lm.laws.recipe_comparison import recipe_verdict
from lm.runs import records

ROOT = pathlib.Path(__file__).parent.parent.parent


def run_compare(*arguments) -> tuple[int, str]:
    """Return the exit status and the output of the command."""
    return documentation.run_in_process(f"experiments.compare {' '.join(arguments)}")


def test_command_writes_json_a_record_and_a_page(tmp_path, monkeypatch):
    made_up_sweep.sweep(tmp_path, "a", predict=False)
    monkeypatch.setattr(made_up_sweep, "SCALE", 17.0)
    made_up_sweep.sweep(tmp_path, "b", predict=False)
    monkeypatch.chdir(tmp_path)
    status, output = run_compare("--a=a", "--b=b", "--json", "--out=out", "--candidates=2")
    assert status == 0, output
    result = json.loads(output)
    assert result["better"] == "B" and result["options"]["n_candidates"] == 2
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "comparison.json", "comparison.html", "multiplier.png", "multiplier.svg"
    }  # fmt: skip
    assert run_compare("--a=a", "--b=missing") == (
        2,
        "error: missing is no folder and no Python file: pass the folder of a sweep, a sweep file"
        " or a config\n",
    )
    status, output = run_compare("--candidates", "2", "a", "--json", "b")
    assert status == 0 and json.loads(output)["better"] == "B", output
    assert run_compare("a", "b", "c") == (2, "error: c is not a flag. Write --name=value.\n")
    status, output = run_compare("a", "b", "--decide", "--error=0.04")  # needs no further run
    suggestion = "next: uv run python -m experiments.compare a b --error=0.04 --anytime --out="
    assert status == 0 and suggestion in output, output
    status, output = run_compare("--a=a", "--b=b", "--decide", "--time_budget=soon")
    assert (status, output[:25]) == (2, "error: --time_budget=soon")


def test_further_seeds_extend_a_sweep(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, "a", predict=False)
    location = recipe_ladders.seeds_location(str(folder), {"60K": [0, 1, 2]})
    runs = list(recipe_ladders.get_sweep(location.partition(":")[2]))
    assert len(runs) == len(made_up_sweep.SIZES) + 2
    assert [(run.name, run.seed) for run in runs[-2:]] == [("a/60K-seed1", 1), ("a/60K-seed2", 2)]
    assert runs[-1].model == next(run.model for run in runs if run.name == "a/60K")
    assert {run.dir for run in runs} == {runs[0].dir}
    with pytest.raises(ValueError, match="no finished run 5M: train it first"):
        recipe_ladders.add_seeds(str(folder), {"5M": [1]})


def test_further_seeds_repeat_the_best_rate_of_both_recipes(tmp_path):
    """Seed 0 selects the rate. Its biased pair is replaced, and the training continues."""
    folders = [made_up_sweep.sweep(tmp_path, name, predict=False) for name in "ab"]
    rows = {folder: records.load_runs(folder) for folder in folders}
    noise = np.random.default_rng(0)
    for folder in folders:
        for row in list(rows[folder]):
            row["eval.loss"] *= 1 + 0.02 * noise.standard_normal()
            other = {"optim.lr": 2 * row["optim.lr"], "name": f"{row['name']}-fast"}
            rows[folder].append(row | other | {"eval.loss": row["eval.loss"] + 0.1})
    trained = []

    def train_pairs(size, n_pairs):
        seeds = recipe_ladders.next_seeds(size, n_pairs)
        trained.append((size.name, seeds))
        for folder, tuned in zip(folders, size.tuned, strict=True):
            assert "fast" not in tuned[0]["name"]
            rows[folder] += [
                tuned[0]
                | {"seed": seed, "name": f"{tuned[0]['name']}-seed{seed}"}
                | {"eval.loss": tuned[0]["eval.loss"] * (1 + 0.02 * noise.standard_normal())}
                for seed in seeds
            ]

    def compare():
        options = recipe_verdict.ComparisonOptions(n_draws=100, is_anytime=True)
        return lm.compare(*rows.values(), options)

    clock = iter(range(0, 100_000, 10_000))
    recipe_ladders.decide(compare, train_pairs, 45_000, lambda: next(clock))
    assert len(trained) > 1 and all(0 not in seeds for _, seeds in trained)
    by_size = {name: [s for n, seeds in trained if n == name for s in seeds] for name, _ in trained}
    assert all(seeds == list(range(1, len(seeds) + 1)) for seeds in by_size.values())
    with pytest.raises(ValueError, match="contains [+]"):
        recipe_ladders.seeds_location("runs/x", {"a+b": [1]})


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


def test_ladders_with_equal_sweep_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.py").write_text("")
    assert run_compare("a/config.py", "b/config.py", "--sizes=10K,25K") == (
        2,
        "error: a/config.py and b/config.py have the same file name, so both ladders would be the"
        " sweep compare-config: rename one of the files\n",
    )
    with pytest.raises(ValueError, match="x[+]y.py contains [+].*: rename the path"):
        recipe_ladders.ladder_location("x+y.py", ["10K"], 2)
    with pytest.raises(ValueError, match="contains [+]"):
        recipe_ladders.seeds_location("runs/x+y", {"10K": [1]})


def test_exhausted_budget_names_the_cost_in_its_unit():
    options = recipe_verdict.ComparisonOptions(n_draws=100)
    rows = [recipe_rows(name, noise=0.01, n_seeds=1, seed=3) for name in "ab"]
    report = lm.compare(*rows, options)
    for unit, expected in (("FLOPs", "takes 2.5e+12 FLOPs: "), ("seconds", "0 s: repeat")):
        plan = dataclasses.replace(report.plan, unit=unit, next_cost=2.5e12)
        changed = dataclasses.replace(report, plan=plan)
        _, reason = recipe_ladders.decide(iter([changed]).__next__, lambda *_: pytest.fail(), 0)
        assert expected in reason
