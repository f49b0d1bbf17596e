import gzip
import importlib
import pathlib

import pytest

from lm.config import validation
from lm.sweeps import launcher

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
RECIPES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__")
SWEEPS = sorted(p.stem for p in (CONFIGS / "sweeps").glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_run_and_says_how(name):
    module = importlib.import_module(f"configs.{name}")
    validation.validate_run(module.get_config())
    assert f"--config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_can_run_and_says_how(name):
    module = importlib.import_module(f"configs.sweeps.{name}")
    runs = [validation.validate_run(run) for run in module.get_sweep()]
    assert len({run.name for run in runs}) == len(runs) > 1
    assert str(launcher.sweep_folder(runs)) == f"runs/{name}"
    assert f"--sweep=configs/sweeps/{name}.py" in module.__doc__


def test_the_quickstart_is_a_ladder():
    from configs.sweeps import quickstart
    from lm.config import model_sizes

    runs = list(quickstart.get_sweep())
    n = [model_sizes.count_parameters(run.model)["non_embedding"] for run in runs]
    assert len(n) >= 6 and n == sorted(n) and n[-1] / n[0] > 50
    assert [run.is_prediction_target for run in runs] == [False] * (len(runs) - 1) + [True]


def test_isoflop_spends_each_budget_on_several_sizes():
    from configs.sweeps import isoflop
    from lm.config import flops

    by_budget = {}
    for run in isoflop.get_sweep():
        by_budget.setdefault(run.name.partition("-")[0], []).append(flops.run_facts(run)["flops"])
    assert len(by_budget) == 3
    for name, spent in by_budget.items():
        budget = float(name.removeprefix("isoflop/"))
        assert len(spent) >= 5 and spent == pytest.approx([budget] * len(spent), rel=0.02)


def test_ablations_keep_the_parameters():
    from configs.sweeps import ablations
    from lm.config import model_sizes

    n = {
        run.name: model_sizes.count_parameters(run.model)["non_embedding"]
        for run in ablations.get_sweep()
    }
    assert list(n.values()) == pytest.approx([n["ablations/base-0"]] * len(n), rel=0.02)


def test_epochs_repeat_all_of_their_text():
    from configs.sweeps import epochs
    from lm.config import model_sizes

    for run in epochs.get_sweep():
        times = int(run.name.rpartition("x")[2])
        assert model_sizes.training_tokens(run) == times * run.data.unique_tokens


def test_specialists_learn_a_task_from_several_amounts_both_ways(tmp_path):
    from configs.sweeps import specialists

    folder = tmp_path / "sst2"
    folder.mkdir()
    line = '{"text": "t", "label_name": "good"}\n'
    (folder / "train.jsonl.gz").write_bytes(gzip.compress((line * 300).encode()))
    runs = {run.name.partition("-")[2]: run for run in specialists.get_sweep(str(tmp_path))}
    few, most = (f"chat:{tmp_path}/sst2/train.jsonl.gz?cap={n}" for n in (125, 12_500))
    ways = {name: list(run.data.sources) for name, run in runs.items() if name.startswith("sst2")}
    assert ways == {
        "sst2-0-tuned": [few], "sst2-0-alone": [few], "sst2-1-tuned": [most],
        "sst2-1-alone": [most], "sst2-1-alone-same-flops": [most],
    }  # fmt: skip
    spent = {name: runs[name].steps for name in ("general", "sst2-1-tuned")}
    assert runs["sst2-1-alone-same-flops"].steps == sum(spent.values())


def test_each_cluster_is_left_out_once_and_neither_tuned_on_nor_declared_seen():
    from configs.sweeps import unseen
    from lm.data.sources import documents

    left = [run for run in unseen.get_sweep() if "without" in run.name]
    asked = [run.eval.tasks.split() for run in left]
    assert sorted(sum(asked, [])) == sorted(
        2 * unseen.eval_tasks(unseen.TUNED, unseen.CHAT).split()
    )
    for run, cluster in zip(left, asked, strict=True):
        assert set(task.partition("&template")[0] for task in cluster) <= set(
            run.data.forbidden_tasks.split(",")
        )
        for source in run.data.sources:
            assert not any(task in source for task in cluster)
            documents.validate_forbidden_tasks(source, run.data.forbidden_tasks)
