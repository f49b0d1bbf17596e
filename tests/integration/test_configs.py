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
def test_recipe_is_valid_and_documents_its_command(name):
    module = importlib.import_module(f"configs.{name}")
    validation.validate_run(module.get_config())
    assert f"--config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep_is_valid_and_documents_its_command(name):
    module = importlib.import_module(f"configs.sweeps.{name}")
    runs = [validation.validate_run(run) for run in module.get_sweep()]
    assert len({run.name for run in runs}) == len(runs) > 1
    assert str(launcher.sweep_folder(runs)) == f"runs/{name}"
    assert f"--sweep=configs/sweeps/{name}.py" in module.__doc__


def test_quickstart_covers_a_wide_range_of_sizes():
    from configs.sweeps import quickstart
    from lm.config import model_sizes

    runs = list(quickstart.get_sweep())
    n = [model_sizes.count_parameters(run.model)["non_embedding"] for run in runs]
    assert len(n) >= 6 and n == sorted(n) and n[-1] / n[0] > 50
    assert [run.is_prediction_target for run in runs] == [False] * (len(runs) - 1) + [True]


def test_isoflop_trains_several_sizes_per_budget():
    from configs.sweeps import isoflop
    from lm.config import flops

    by_budget = {}
    for run in isoflop.get_sweep():
        by_budget.setdefault(run.name.partition("-")[0], []).append(flops.run_facts(run)["flops"])
    assert len(by_budget) == 3
    for name, run_flops in by_budget.items():
        budget = float(name.removeprefix("isoflop/"))
        assert len(run_flops) >= 5
        assert run_flops == pytest.approx([budget] * len(run_flops), rel=0.02)


def test_ablations_have_equal_parameter_counts():
    from configs.sweeps import ablations
    from lm.config import model_sizes

    n = {
        run.name: model_sizes.count_parameters(run.model)["non_embedding"]
        for run in ablations.get_sweep()
    }
    assert list(n.values()) == pytest.approx([n["ablations/base-0"]] * len(n), rel=0.02)


def test_epochs_runs_repeat_all_of_their_text():
    from configs.sweeps import epochs
    from lm.config import model_sizes

    for run in epochs.get_sweep():
        n_epochs = int(run.name.rpartition("x")[2])
        assert model_sizes.training_tokens(run) == n_epochs * run.data.unique_tokens


def test_specialists_train_tuned_and_from_scratch(tmp_path):
    """Each number of examples has a fine-tuned run and a run from scratch."""
    from configs.sweeps import specialists

    folder = tmp_path / "sst2"
    folder.mkdir()
    line = '{"text": "t", "label_name": "good"}\n'
    (folder / "train.jsonl.gz").write_bytes(gzip.compress((line * 300).encode()))
    runs = {run.name.partition("-")[2]: run for run in specialists.get_sweep(str(tmp_path))}
    small, large = (f"chat:{tmp_path}/sst2/train.jsonl.gz?cap={n}" for n in (125, 12_500))
    sources = {
        name: list(run.data.sources) for name, run in runs.items() if name.startswith("sst2")
    }
    assert sources == {
        "sst2-0-tuned": [small], "sst2-0-alone": [small], "sst2-1-tuned": [large],
        "sst2-1-alone": [large], "sst2-1-alone-same-flops": [large],
    }  # fmt: skip
    n_steps = runs["general"].steps + runs["sst2-1-tuned"].steps
    assert runs["sst2-1-alone-same-flops"].steps == n_steps


def test_unseen_leaves_out_each_cluster_once():
    """A cluster that is left out is evaluated, forbidden, and in no training source."""
    from configs.sweeps import unseen
    from lm.data.sources import documents

    runs = [run for run in unseen.get_sweep() if "without" in run.name]
    clusters = [run.eval.tasks.split() for run in runs]
    all_tasks = unseen.eval_tasks(unseen.TUNED, unseen.CHAT).split()
    assert sorted(sum(clusters, [])) == sorted(2 * all_tasks)  # two sizes
    for run, cluster in zip(runs, clusters, strict=True):
        tasks = {task.partition("&template")[0] for task in cluster}
        assert tasks <= set(run.data.forbidden_tasks.split(","))
        for source in run.data.sources:
            assert not any(task in source for task in cluster)
            documents.validate_forbidden_tasks(source, run.data.forbidden_tasks)
