import dataclasses
import math

import jax
import pytest

from lm.config import flops, model_sizes, schema, validation
from lm.model import params, transformer
from lm.sweeps import design
from lm.sweeps.planning import cost

UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
RUNGS = [*model_sizes.LADDER, *model_sizes.EXPERTS]
GPT2 = {"norm": "layer", "mlp": "gelu", "bias": True, "qk_norm": False, "learned_positions": 128}
VARIANTS = [GPT2, {"qk_norm": False}, {"bias": True, "norm": "layer"}]


def number(name: str) -> float:
    return float(name[:-1]) * UNITS[name[-1]]


N = [number(name) for name in model_sizes.LADDER]


def test_the_ladder_spans_eight_decades_in_order():
    assert N == sorted(N) and N[0] <= 1e4 and N[-1] >= 1e12


@pytest.mark.parametrize("size", RUNGS)
def test_a_rung_is_what_its_name_says_and_can_run(size):
    shape = model_sizes.ladder_model(size)
    counts = model_sizes.count_parameters(shape)
    total, _, active = size.partition("-A")
    assert abs(counts["non_embedding"] / number(total) - 1) < 0.05
    assert abs(counts["active_non_embedding"] / number(active or total) - 1) < 0.05
    validation.validate_run(schema.Run(model=shape))


@pytest.mark.parametrize("size", RUNGS)
@pytest.mark.parametrize("knobs", [{}, {"tie_embeddings": True, "load_balancing": "bias"}])
def test_counts_equal_the_real_tree(size, knobs):
    shape = model_sizes.ladder_model(size, vocab_size=512, **knobs)
    tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
    real = {"embedding": tree["embed"], "head": tree.get("head", []), "norms": []}
    blocks = tree["blocks"]
    attention, mlp = blocks["attention"], dict(blocks["mlp"])
    real["attention"] = [attention[name] for name in ("query", "key", "value", "out")]
    real["router"] = [mlp.pop(name, []) for name in ("router", "bias")]
    real["mlp"], real["experts"] = (mlp.pop("shared", []), mlp) if shape.n_experts else (mlp, [])
    counted = {
        part: sum(math.prod(x.shape) for x in jax.tree.leaves(t)) for part, t in real.items()
    }
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    counted["norms"] = total - sum(counted.values())
    counts = model_sizes.count_parameters(shape)
    assert {part: counts[part] for part in counted} == counted and counts["total"] == total


@pytest.mark.parametrize("knobs", VARIANTS)
def test_counts_and_flops_of_a_variant_are_those_of_its_program(knobs):
    shape = model_sizes.ladder_model("60K", attention_query_blocks=1, **knobs)
    tree = params.flatten_by_path(jax.eval_shape(lambda: transformer.init_params(shape, 0)))
    counted = dict.fromkeys(("norms", "biases", "embedding"), 0)
    for path, leaf in tree.items():
        part = "norms" if "norm" in path else "biases" if "bias" in path else "embedding"
        if part != "embedding" or path in ("embed", "positions"):
            counted[part] += leaf.size
    counts = model_sizes.count_parameters(shape)
    assert counts["total"] == sum(leaf.size for leaf in tree.values())
    assert {part: counts[part] for part in counted} == counted
    run = schema.Run(model=shape)
    run.data.seq_len, run.data.batch_size = 64, 2
    assert cost.count_step_flops(run) == flops.flops_per_token(shape, 64)["full"] * 2 * 64


def test_what_is_active_leaves_out_the_experts_that_a_token_does_not_pass():
    shape = model_sizes.ladder_model("1T-A32B")
    few = dataclasses.replace(shape, n_experts=shape.experts_per_token)
    idle_scores = 61 * 7168 * (384 - 8)
    assert (
        model_sizes.count_parameters(shape)["active"]
        == model_sizes.count_parameters(few)["total"] + idle_scores
    )
    dense = model_sizes.count_parameters(model_sizes.ladder_model("100K"))
    assert dense["active"] == dense["total"] and dense["router"] == dense["experts"] == 0
    cut = model_sizes.count_parameters(
        model_sizes.ladder_model("100K", n_experts=8)
    )  # the same width, in experts
    assert cut["active"] - cut["router"] == dense["active"] < cut["total"]


@pytest.mark.parametrize("size", ["10K", "250K", "100M", "300K-A100K", "630M-A100M"])
@pytest.mark.parametrize("knobs", [{}, {"tie_embeddings": True, "load_balancing": "bias"}])
def test_flops_equal_those_of_the_real_train_step(size, knobs):
    run = schema.Run(model=model_sizes.ladder_model(size, attention_query_blocks=1, **knobs))
    run.data.seq_len, run.data.batch_size = 64, 2
    per_step = flops.flops_per_token(run.model, 64)["full"] * 2 * 64
    assert cost.count_step_flops(run) == per_step


def test_conventions_agree_where_they_must():
    shape = model_sizes.ladder_model("1B", vocab_size=32_768)
    n_flops = flops.flops_per_token(shape, 1)
    assert n_flops["full"] == n_flops["causal"]  # one token: nothing to mask
    far = flops.flops_per_token(shape, 100_000)
    attention = far["full"] - n_flops["full"]
    assert (far["causal"] - n_flops["causal"]) / attention == pytest.approx(0.5)
    assert n_flops["6N"] == 6 * model_sizes.count_parameters(shape)["total"]
    assert far["chinchilla"] > far["full"] > far["causal"] > far["kaplan"]


def test_steps_spend_one_budget():
    run = schema.Run(model=model_sizes.ladder_model("1M"))
    per_step = run.data.batch_size * run.data.seq_len
    assert model_sizes.steps_for_budget(run, tokens=1e6) == round(1e6 / per_step)
    total = model_sizes.count_parameters(run.model)["total"]
    assert model_sizes.steps_for_budget(run, tokens_per_param=20) == round(20 * total / per_step)
    run.steps = model_sizes.steps_for_budget(run, n_flops=1e13)
    assert flops.run_facts(run)["flops"] == pytest.approx(1e13, rel=1e-2)
    for budgets in ({}, {"tokens": 1, "flops": 1}, {"flops": -1}):
        with pytest.raises(ValueError, match="exactly one positive budget"):
            model_sizes.steps_for_budget(run, **budgets)


def test_an_unknown_size_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="size 10X does not exist: did you mean 10"):
        model_sizes.ladder_model("10X")


def test_branches_begin_where_the_trunk_saves_and_meet_their_budgets():
    run = schema.Run(name="s/x")
    run.optim.warmup, run.checkpoint_interval = 0.02, 7
    budgets = (400_000, 1_000_000, 3_000_000)
    trunk, *branches = design.cooldown_branches(run, budgets[::-1], decay=0.25)
    assert [b.name for b in branches] == ["s/x-0.4M", "s/x-1M", "s/x-3M"]
    assert trunk.optim.schedule == "constant" and trunk.steps == branches[-1].start.step
    for branch, budget in zip(branches, budgets, strict=True):
        validation.validate_run(branch)
        assert branch.start.run == trunk.name and branch.start.restore == "full_state"
        assert branch.start.step % trunk.checkpoint_interval == 0
        assert branch.start.step == pytest.approx(0.75 * branch.steps, abs=1)
        assert model_sizes.training_tokens(branch) == pytest.approx(budget, rel=0.01)
    with pytest.raises(ValueError, match="within the 70 steps of warm-up of s/x-trunk"):
        run.optim.warmup = 0.06
        design.cooldown_branches(run, (100_000, *budgets))
