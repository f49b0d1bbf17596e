import gzip
import importlib
import pathlib

import pytest

from lm.config import validation
from lm.data.tokenization import bpe_training
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
    n = [
        model_sizes.count_parameters(model_sizes.resolved_model(run))["non_embedding"]
        for run in runs
    ]
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
        run.name: model_sizes.count_parameters(model_sizes.resolved_model(run))["non_embedding"]
        for run in ablations.get_sweep()
    }
    assert list(n.values()) == pytest.approx([n["ablations/base-0"]] * len(n), rel=0.02)


def test_recipes_have_pairs_of_equal_parameters_or_flops():
    from configs.sweeps import recipes
    from lm.config import flops

    facts = {
        name: [flops.run_facts(run) for run in recipes.get_sweep(name)] for name in recipes.CHANGES
    }
    for first, second, column in (
        ("deep", "wide", "params.non_embedding"),
        ("base", "tied", "params.non_embedding"),
        ("base", "no_qk_norm", "params.non_embedding"),
        ("base", "experts", "flops"),
    ):
        values = [[row[column] for row in facts[name]] for name in (first, second)]
        assert values[0] == pytest.approx(values[1], rel=0.02)
        tokens = [[row["tokens"] for row in facts[name]] for name in (first, second)]
        assert tokens[0] == tokens[1]
    with pytest.raises(ValueError, match="recipe 'adam' must be one of base"):
        list(recipes.get_sweep("adam"))


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


SIZES_BY_RECIPE = {
    "base": ("10K", "600K", "10M"), "experts": ("25K,8", "250K,8"),
    "ladder": ("x,10K", "x,4M"), "web": ("60M", "1B", "10B"),
    "pod": ("60M", "400M", "1B", "100B", "1T"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SIZES_BY_RECIPE))
def test_learning_rate_of_a_recipe_falls_with_width(name):
    """The rate that reaches hidden matrices counts, with the factor of the parametrization."""
    from lm.config import schema
    from lm.model import parametrization

    module, rates = importlib.import_module(f"configs.{name}"), []
    for size in SIZES_BY_RECIPE[name]:
        run = module.get_config(size)
        assert run.optim.lr != schema.Optimizer().lr
        factors = parametrization.role_factors(run.model, ("layers", "embed", "mlp"))
        rates.append(run.optim.lr * factors.lr)
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.7 * rates[0]


@pytest.mark.parametrize("name", SWEEPS)
def test_larger_models_of_a_sweep_have_no_larger_rate(name):
    """Sweeps over learning rates are compared at equal multiples of the rate."""
    from lm.model import parametrization

    by_kind = {}
    for run in importlib.import_module(f"configs.sweeps.{name}").get_sweep():
        size, _, kind = run.name.partition("/")[2].partition("-")
        if name in ("isoflop", "known_entropy", "lr_transfer"):
            kind = {"isoflop": size, "known_entropy": kind, "lr_transfer": run.name}[name]
        factors = parametrization.role_factors(run.model, ("layers", "embed", "mlp"))
        by_kind.setdefault(kind, []).append((run.model.d_model, run.optim.lr * factors.lr))
    for pairs in by_kind.values():
        rates = [rate for _, rate in sorted(pairs, key=lambda pair: (pair[0], -pair[1]))]
        assert rates == sorted(rates, reverse=True)


def test_pod_recipe_follows_the_step_law():
    """Li et al. 2025, arXiv:2503.04715: 1e-3 and 0.44 million tokens for 1B and 20B tokens."""
    from configs import pod

    run = pod.get_config("1B")
    assert run.optim.lr == pytest.approx(1e-3, rel=0.1)
    assert run.data.batch_size * run.data.seq_len == 2**19
    assert (run.optim.warmup_steps, run.optim.weight_decay) == (2000, 0.1)
    assert run.optim.lr * run.optim.final_lr_fraction == pytest.approx(1e-5)
    assert pod.get_config("1T").optim.lr < 7e-5


@pytest.mark.parametrize("name", ["pod", "web"])
@pytest.mark.parametrize("size", ["60M", "100M", "1B", "10B", "100B", "1T", "6.7B-A1.1B"])
def test_recipe_for_hardware_follows_published_rules(name, size):
    """The learning rate is in the range of four rules, up to rounding.

    The weight decay is that of Bergsma et al. 2025 (arXiv:2505.13738) within a factor of two. The
    warm-up has 5% of the steps, and at most 2000 steps.
    """
    from lm.config import hyperparameter_rules, model_sizes

    run = validation.validate_run(importlib.import_module(f"configs.{name}").get_config(size))
    lowest, highest = hyperparameter_rules.published_lr_range(run)
    assert 0.999 * lowest <= run.optim.lr <= highest
    assert not hyperparameter_rules.unusual_values(run)
    counts = model_sizes.count_parameters(run.model)
    ratio = model_sizes.training_tokens(run) / counts["active"]
    decay = hyperparameter_rules.power_lines_decay(run.optim.lr, run.steps, ratio)
    assert decay / 2 < run.optim.weight_decay < 2 * decay
    assert run.optim.warmup_steps == min(2000, round(0.05 * run.steps))


@pytest.mark.parametrize("name", ["base", "ladder", "mixture", "experts"])
@pytest.mark.parametrize("size", ["10K", "100K", "4M"])
def test_recipe_for_cpu_has_a_rate_of_one_over_width(name, size):
    module = importlib.import_module(f"configs.{name}")
    argument = {"ladder": f"x,{size}", "experts": f"{size},8"}.get(name, size)
    run = module.get_config("x", size) if name == "mixture" else module.get_config(argument)
    assert run.optim.lr * run.model.d_model == pytest.approx(0.5)


def test_default_rate_is_reported_for_a_large_model():
    """The default of 3e-3 suits a model of 100 thousand parameters."""
    from configs import pod
    from lm.config import hyperparameter_rules, schema

    run = pod.get_config("1B")
    run.optim.lr = schema.Optimizer().lr
    (phrase,) = hyperparameter_rules.unusual_values(run)
    assert phrase == ("optim.lr=0.003 is large (published rules for this size: 0.00035 to 0.0021)")


def test_tuned_run_has_no_lengths_of_its_parent(tmp_path):
    """A warm-up of 2000 steps would be longer than the fine-tuning."""
    from configs import base, finetune
    from lm.runs import records

    parent = base.get_config("10K")
    parent.name, parent.dir = "sweep/10K", str(tmp_path)
    parent.steps, parent.optim.schedule = 5000, "wsd"
    parent.optim.warmup, parent.optim.warmup_steps = 0.0, 2000
    parent.optim.decay_tokens = 10**6
    records.start_run(validation.validate_run(parent), {})
    tuned = validation.validate_run(finetune.get_config(f"{tmp_path}/sweep/10K"))
    assert (tuned.optim.warmup, tuned.optim.warmup_steps) == (0.05, 0)
    assert (tuned.optim.decay, tuned.optim.decay_tokens) == (0.2, 0)


@pytest.mark.parametrize("name, fraction", [("finetune", 1 / 3), ("instruct", 4 / 3)])
def test_tuned_run_inherits_model_tokenizer_and_rate(name, fraction, tmp_path):
    """The run is in runs/tuned, so it is in no sweep."""
    from configs import base
    from lm.runs import records

    parent = base.get_config("10K")
    parent.name, parent.dir, parent.data.tokenizer = "sweep/10K", str(tmp_path), "bpe:300"
    records.start_run(validation.validate_run(parent), {})
    bpe_training.train_bpe(iter(["a cat and a dog"] * 9), 262).save(records.run_dir(parent))
    tuned = importlib.import_module(f"configs.{name}").get_config(f"{tmp_path}/sweep/10K")
    assert tuned.name.startswith("tuned/sweep-10K") and tuned.start.run == "sweep/10K"
    assert tuned.data.tokenizer == f"file:{tmp_path}/sweep/10K/tokenizer.json"
    assert tuned.model == parent.model
    assert tuned.optim.lr == pytest.approx(parent.optim.lr * fraction)


@pytest.mark.parametrize("name", ["finetune", "instruct"])
def test_imported_model_is_tuned_at_a_small_rate(name, tmp_path):
    """An imported run has no learning rate of its own. 1e-3 ruins a pre-trained Llama."""
    from lm.config import model_sizes, schema
    from lm.runs import records

    model = model_sizes.ladder_model("6B", vocab_size=32_000)
    imported = schema.Run(name="llama", dir=str(tmp_path), model=model)
    records.start_run(imported, {"imported.family": "llama"})
    tuned = importlib.import_module(f"configs.{name}").get_config(f"{tmp_path}/llama")
    assert 1e-5 < tuned.optim.lr < 2e-5


@pytest.mark.parametrize("name", ["finetune", "instruct"])
def test_tuned_run_has_no_rules_of_its_parent(name, tmp_path):
    """A rule for pre-training would replace the rate of the fine-tuning."""
    from configs import base
    from lm.runs import records

    parent = base.get_config("10K")
    parent.name, parent.dir = "sweep/10K", str(tmp_path)
    parent.optim.lr_rule = parent.data.batch_size_rule = "step_law"
    parent.optim.weight_decay_rule = "power_lines"
    records.start_run(validation.validate_run(parent), {})
    tuned = importlib.import_module(f"configs.{name}").get_config(f"{tmp_path}/sweep/10K")
    assert tuned.optim.lr_rule == tuned.optim.weight_decay_rule == tuned.data.batch_size_rule == ""
    fraction = {"finetune": 1 / 3, "instruct": 4 / 3}[name]
    assert tuned.optim.lr == pytest.approx(fraction * parent.optim.lr)


def test_ability_ladder_predicts_its_largest_size():
    from configs.sweeps import ability_ladder

    runs = list(ability_ladder.get_sweep("text,tasks,1M"))
    (target,) = [run for run in runs if run.is_prediction_target]
    assert target.name == "ability_ladder/1M-10M" and target.eval.tasks == "pair:tasks/blimp"
    assert sum(ability_ladder.WEIGHTS.values()) == pytest.approx(1)
    names = {run.name for run in runs}
    assert {"ability_ladder/400K-seed2-10M", "ability_ladder/10K-2.5M"} <= names
    assert not any("4M-" in name or "1M-seed1" in name for name in names)
    trunks = [run for run in runs if run.name.endswith("-trunk")]
    assert len(trunks) == 16 and not any(run.eval.tasks for run in trunks)
    for branch in runs:
        parents = [run for run in trunks if run.name == branch.start.run]
        assert all(run.seed == branch.seed and run.optim.lr == branch.optim.lr for run in parents)
    assert len(list(ability_ladder.get_sweep())) == len(runs) + 4
    with pytest.raises(ValueError, match="size=2M is not in the ladder: use one of 10K"):
        list(ability_ladder.get_sweep("text,tasks,2M"))


def test_ability_ladder_names_its_law_without_an_absolute_path(monkeypatch, tmp_path):
    """The stored config must be equal in every checkout. The law is relative to the folder."""
    from configs.sweeps import ability_ladder

    run = ability_ladder.recipe("text", "tasks", "10K")
    assert run.optim.lr_rule == run.data.batch_size_rule == "law:notebooks/data/tune"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="LAW=notebooks/data/tune is not a folder: run the"):
        next(iter(ability_ladder.get_sweep()))


def test_ability_ladder_predicts_one_run_at_sizes_with_seeds():
    from configs.sweeps import ability_ladder

    runs = ability_ladder.get_sweep("text,tasks,400K")
    assert [run.name for run in runs if run.is_prediction_target] == ["ability_ladder/400K-10M"]


def test_ability_tuning_compares_at_equal_flops():
    """Runs from scratch have the steps of a tuned run, or the FLOPs of its parent as well."""
    from configs.sweeps import ability_tuning
    from lm.config import flops

    parents = ability_tuning._pretrained_runs("60K", "runs")
    runs = {run.name.rpartition("/")[2]: run for run in ability_tuning.get_sweep("tasks,60K")}
    tuned, scratch = (runs[f"60K-captions-{m}-x2.7"] for m in ("tuned", "scratch"))
    assert tuned.start.run == "ability_ladder/60K-10M" and not scratch.start.run
    assert tuned.model == scratch.model == parents["60K"].model
    assert scratch.data.tokenizer == "file:runs/ability_ladder/60K-10M/tokenizer.json"
    assert (tuned.steps, tuned.data) == (scratch.steps, scratch.data)
    (longer,) = [run for name, run in runs.items() if name.startswith("60K-captions-long")]
    n_flops = [flops.run_facts(run)["flops"] for run in (tuned, parents["60K"], longer)]
    assert n_flops[2] == pytest.approx(n_flops[0] + n_flops[1], rel=0.01)
    assert runs["60K-seed1-captions-tuned-x2.7"].start.run == "ability_ladder/60K-seed1-10M"
    double = [runs[f"60K-captions-double-{method}-x2.7"] for method in ("tuned", "scratch")]
    assert [(run.steps, run.start.run) for run in double] == [
        (2 * tuned.steps, tuned.start.run),
        (2 * tuned.steps, ""),
    ]
    prompts = runs["60K-prompts-tuned-x2.7"]
    assert sum(prompts.data.sources.values()) == pytest.approx(1)
    assert "nli" in prompts.data.forbidden_tasks
    for task, (*tuned, unseen) in ability_tuning.INSTRUCTIONS.items():
        fields = [ability_tuning._instruction(line) for line in (*tuned, unseen)]
        trained = [source for source in prompts.data.sources if f"/{task}/" in source]
        assert [source.partition("?")[2] for source in trained] == fields[:2]
        tests = [name for name in prompts.eval.tasks.split() if f"/{task}?" in name]
        assert [fields[0] in tests[0], fields[2] in tests[1], len(tests)] == [True, True, 2]
    assert not list(ability_tuning.get_sweep("tasks,60K,captions,runs"))[0].eval.n_completions
    with pytest.raises(ValueError, match="part=all does not exist: use one of captions"):
        list(ability_tuning.get_sweep("tasks,60K,all"))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("a?.jsonl", "chat:a?.jsonl?cap=500"),
        ("a.jsonl?template=task", "chat:a.jsonl?template=task&cap=500"),
        ("a.jsonl?cap=9", "chat:a.jsonl?cap=9"),
    ],
)
def test_instruction_tuning_keeps_the_options_of_its_file(file, source):
    from configs import instruct

    assert list(instruct.get_config(f",{file}").data.sources) == [source, "docs"]


@pytest.mark.parametrize("name", ["ability_ladder", "ability_tuning"])
def test_arguments_of_ability_sweeps_have_defaults_and_a_limit(name):
    """An empty folder is the default, not the root of the disk. Superfluous parts are an error."""
    sweep = importlib.import_module(f"configs.sweeps.{name}")
    default, *_ = sweep.get_sweep(",10K")
    assert all(":data/" in source for source in default.data.sources)
    for argument in ("", ","):
        assert next(iter(sweep.get_sweep(argument))).data == default.data
    with pytest.raises(ValueError, match="has 6 parts between commas: it has at most"):
        list(sweep.get_sweep("a,10K,captions,runs,b,c"))
