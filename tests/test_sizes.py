import math

import jax
import pytest

from lm import config, model, plan, sizes

UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
N = [float(name[:-1]) * UNITS[name[-1]] for name in sizes.LADDER]


def test_the_ladder_spans_eight_decades_in_order():
    assert N == sorted(N) and N[0] <= 1e4 and N[-1] >= 1e12


@pytest.mark.parametrize("size", sizes.LADDER)
def test_a_rung_is_what_its_name_says_and_can_run(size):
    shape = sizes.model(size)
    named = float(size[:-1]) * UNITS[size[-1]]
    assert abs(sizes.counts(shape)["non_embedding"] / named - 1) < 0.05
    config.check(config.Run(model=shape))


@pytest.mark.parametrize("size", sizes.LADDER)
@pytest.mark.parametrize("tied", [False, True])
def test_counts_equal_the_real_tree(size, tied):
    shape = sizes.model(size, tied=tied, vocab_size=512)
    tree = jax.eval_shape(lambda: model.init(shape, 0))
    real = {"embedding": tree["embed"], "head": tree.get("head", []), "norms": []}
    blocks = tree["blocks"]
    attention = blocks["attention"]
    real["attention"] = [attention[name] for name in ("query", "key", "value", "out")]
    real["mlp"] = blocks["mlp"]
    counted = {
        part: sum(math.prod(x.shape) for x in jax.tree.leaves(t)) for part, t in real.items()
    }
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    counted["norms"] = total - sum(counted.values())
    counts = sizes.counts(shape)
    assert {part: counts[part] for part in counted} == counted and counts["total"] == total


@pytest.mark.parametrize("size", ["10K", "250K", "100M"])
@pytest.mark.parametrize("tied", [False, True])
def test_flops_equal_those_of_the_real_train_step(size, tied):
    run = config.Run(model=sizes.model(size, tied=tied, attention_blocks=1))
    run.data.seq_len, run.data.batch_size = 64, 2
    per_step = sizes.flops_per_token(run.model, 64)["full"] * 2 * 64
    assert plan.step_flops(run) == per_step


def test_conventions_agree_where_they_must():
    shape = sizes.model("1B", vocab_size=32_768)
    flops = sizes.flops_per_token(shape, 1)
    assert flops["full"] == flops["causal"]  # one token: nothing to mask
    far = sizes.flops_per_token(shape, 100_000)
    attention = far["full"] - flops["full"]
    assert (far["causal"] - flops["causal"]) / attention == pytest.approx(0.5)
    assert flops["6N"] == 6 * sizes.counts(shape)["total"]
    assert far["chinchilla"] > far["full"] > far["causal"] > far["kaplan"]


def test_steps_spend_one_budget():
    run = config.Run(model=sizes.model("1M"))
    per_step = run.data.batch_size * run.data.seq_len
    assert sizes.steps(run, tokens=1e6) == round(1e6 / per_step)
    total = sizes.counts(run.model)["total"]
    assert sizes.steps(run, tokens_per_param=20) == round(20 * total / per_step)
    run.steps = sizes.steps(run, flops=1e13)
    assert sizes.facts(run)["flops"] == pytest.approx(1e13, rel=1e-2)
    for budgets in ({}, {"tokens": 1, "flops": 1}, {"flops": -1}):
        with pytest.raises(ValueError, match="exactly one positive budget"):
            sizes.steps(run, **budgets)


def test_an_unknown_size_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="size 10X does not exist: did you mean 10"):
        sizes.model("10X")
