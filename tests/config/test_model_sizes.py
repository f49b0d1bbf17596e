"""Sizes, parameter counts and FLOPs agree with the parameters and the program of a model."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lm.config import flops, model_sizes, schema, validation
from lm.model import params, transformer
from lm.sweeps import design
from lm.sweeps.planning import cost

UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
SIZES = [*model_sizes.LADDER, *model_sizes.EXPERTS]
GPT2 = {"norm": "layer", "mlp": "gelu", "bias": True, "qk_norm": False, "learned_positions": 128}
VARIANTS = [
    GPT2,
    {"qk_norm": False},
    {"bias": True, "norm": "layer", "residual": "parallel_shared", "mlp": "exact_gelu"}
    | {"head_bias": True, "rotary_fraction": 0.5},
    {"qkv_bias": True, "norm_position": "both", "qk_norm_scope": "all_heads", "mlp": "gated_gelu"},
]
TIED = {"tie_embeddings": True, "load_balancing": "bias"}


def some_of(sizes: list[str], interval: int) -> list:
    """Return all sizes as parameters of a test. All but each interval-th are slow tests."""
    return [
        size if i % interval == 0 else pytest.param(size, marks=pytest.mark.slow)
        for i, size in enumerate(sizes)
    ]


def parse_size(name: str) -> float:
    """Return the number of parameters in the name of a size, such as 1.5M."""
    return float(name[:-1]) * UNITS[name[-1]]


def test_ladder_spans_eight_decades_in_order():
    numbers = [parse_size(name) for name in model_sizes.LADDER]
    assert numbers == sorted(numbers) and numbers[0] <= 1e4 and numbers[-1] >= 1e12


@pytest.mark.parametrize("size", SIZES)
def test_size_has_the_parameters_of_its_name_and_is_valid(size):
    model = model_sizes.ladder_model(size, vocab_size=256)
    counts = model_sizes.count_parameters(model)
    total, _, active = size.partition("-A")
    assert abs(counts["non_embedding"] / parse_size(total) - 1) < 0.05
    assert abs(counts["active_non_embedding"] / parse_size(active or total) - 1) < 0.05
    validation.validate_run(schema.Run(model=model))


@pytest.mark.parametrize("size", some_of(SIZES, 3))
@pytest.mark.parametrize("changes", [{}, TIED])
def test_counts_equal_the_parameters_of_the_model(size, changes):
    model = model_sizes.ladder_model(size, vocab_size=512, **changes)
    tree = jax.eval_shape(lambda: transformer.init_params(model, 0))
    attention, mlp = tree["blocks"]["attention"], dict(tree["blocks"]["mlp"])
    parts = {"embedding": tree["embed"], "head": tree.get("head", []), "norms": []}
    parts["attention"] = [attention[name] for name in ("query", "key", "value", "out")]
    parts["router"] = [mlp.pop(name, []) for name in ("router", "bias")]
    parts["mlp"], parts["experts"] = (mlp.pop("shared", []), mlp) if model.n_experts else (mlp, [])
    expected = {
        part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(leaves))
        for part, leaves in parts.items()
    }
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    expected["norms"] = total - sum(expected.values())
    counts = model_sizes.count_parameters(model)
    assert {part: counts[part] for part in expected} == expected and counts["total"] == total


@pytest.mark.parametrize("changes", VARIANTS)
def test_counts_and_flops_of_a_variant_match_its_program(changes):
    model = model_sizes.ladder_model("60K", vocab_size=256, attention_query_blocks=1, **changes)
    leaves = params.flatten_by_path(jax.eval_shape(lambda: transformer.init_params(model, 0)))
    expected = dict.fromkeys(("norms", "biases", "embedding"), 0)
    for path, leaf in leaves.items():
        part = "norms" if "norm" in path else "biases" if "bias" in path else "embedding"
        if path != "head_bias" and (part != "embedding" or path in ("embed", "positions")):
            expected[part] += leaf.size
    counts = model_sizes.count_parameters(model)
    assert counts["total"] == sum(leaf.size for leaf in leaves.values())
    assert {part: counts[part] for part in expected} == expected
    run = schema.Run(model=model)
    run.data.seq_len, run.data.batch_size = 64, 2
    assert cost.count_step_flops(run) == flops.flops_per_token(model, 64)["full"] * 2 * 64


def test_active_parameters_exclude_unselected_experts():
    """The router of the large model has 384 - 8 more columns than that of the small model."""
    model = model_sizes.ladder_model("1T-A32B", vocab_size=256)
    selected_only = dataclasses.replace(model, n_experts=model.experts_per_token)
    n_router_columns = 61 * 7168 * (384 - 8)
    expected = model_sizes.count_parameters(selected_only)["total"] + n_router_columns
    assert model_sizes.count_parameters(model)["active"] == expected


def test_active_parameters_of_experts_equal_the_dense_model():
    """With experts of d_ff / 2 and two per token, a token uses as many MLP weights as before."""
    dense = model_sizes.count_parameters(model_sizes.ladder_model("100K", vocab_size=256))
    assert dense["active"] == dense["total"] and dense["router"] == dense["experts"] == 0
    experts = model_sizes.count_parameters(
        model_sizes.ladder_model("100K", vocab_size=256, n_experts=8)
    )
    assert experts["active"] - experts["router"] == dense["active"] < experts["total"]


@pytest.mark.parametrize("size", some_of(["10K", "250K", "300K-A100K", "100M", "630M-A100M"], 2))
@pytest.mark.parametrize("changes", [{}, TIED])
def test_flops_equal_those_of_the_train_step(size, changes):
    run = schema.Run(
        model=model_sizes.ladder_model(size, attention_query_blocks=1, vocab_size=256, **changes)
    )
    run.data.seq_len, run.data.batch_size = 64, 2
    n_flops = flops.flops_per_token(run.model, 64)["full"] * 2 * 64
    assert cost.count_step_flops(run) == n_flops


def test_sliding_window_reduces_the_counted_keys():
    """Two of four layers have a window of 16 of 64 keys."""
    plain = model_sizes.ladder_model("60K", vocab_size=256)
    windowed = dataclasses.replace(plain, sliding_window=16, full_attention_interval=2)
    assert model_sizes.attention_windows(windowed) == [16, 0, 16, 0]
    expected, actual = (flops.flops_per_token(model, 64) for model in (plain, windowed))
    attention = 12 * plain.n_heads * plain.d_head
    assert expected["full"] - actual["full"] == attention * 2 * (64 - 16)
    causal = np.mean([min(t + 1, 16) for t in range(64)])
    difference = attention * 2 * (65 / 2 - causal)
    assert expected["causal"] - actual["causal"] == pytest.approx(difference)
    assert flops.flops_per_token(windowed, 16) == flops.flops_per_token(plain, 16)


def test_flop_conventions_differ_as_defined():
    """With one key, full and causal attention are equal. With many keys, causal is half of full."""
    model = model_sizes.ladder_model("1B", vocab_size=32_768)
    short, long = flops.flops_per_token(model, 1), flops.flops_per_token(model, 100_000)
    assert short["full"] == short["causal"]
    n_attention_flops = long["full"] - short["full"]
    assert (long["causal"] - short["causal"]) / n_attention_flops == pytest.approx(0.5)
    assert short["6N"] == 6 * model_sizes.count_parameters(model)["total"]
    assert long["chinchilla"] > long["full"] > long["causal"] > long["kaplan"]


def test_steps_spend_exactly_one_budget():
    run = schema.Run(model=model_sizes.ladder_model("1M", vocab_size=256))
    tokens_per_step = run.data.batch_size * run.data.seq_len
    assert model_sizes.steps_for_budget(run, tokens=1e6) == round(1e6 / tokens_per_step)
    n_tokens = 20 * model_sizes.count_parameters(run.model)["total"]
    n_steps = model_sizes.steps_for_budget(run, tokens_per_param=20)
    assert n_steps == round(n_tokens / tokens_per_step)
    run.steps = model_sizes.steps_for_budget(run, n_flops=1e13)
    assert flops.run_facts(run)["flops"] == pytest.approx(1e13, rel=1e-2)


@pytest.mark.parametrize("budgets", [{}, {"tokens": 1, "n_flops": 1}, {"n_flops": -1}])
def test_steps_reject_no_budget_and_several_budgets(budgets):
    with pytest.raises(ValueError, match="exactly one must be positive"):
        model_sizes.steps_for_budget(schema.Run(), **budgets)


def test_unknown_size_error_suggests_similar_sizes():
    with pytest.raises(ValueError, match="size 10X does not exist: did you mean 10"):
        model_sizes.ladder_model("10X")


def test_cooldown_branches_start_at_saved_steps_of_the_trunk():
    run = schema.Run(name="s/x")
    run.optim.warmup, run.checkpoint_interval = 0.02, 7
    budgets = (400_000, 1_000_000, 3_000_000)
    trunk, *branches = design.cooldown_branches(run, budgets[::-1], decay=0.25)
    assert [branch.name for branch in branches] == ["s/x-0.4M", "s/x-1M", "s/x-3M"]
    assert trunk.optim.schedule == "constant" and trunk.steps == branches[-1].start.step
    for branch, budget in zip(branches, budgets, strict=True):
        validation.validate_run(branch)
        assert branch.start.run == trunk.name and branch.start.restore == "full_state"
        assert branch.start.step % trunk.checkpoint_interval == 0
        assert branch.start.step == pytest.approx(0.75 * branch.steps, abs=1)
        assert model_sizes.training_tokens(branch) == pytest.approx(budget, rel=0.01)
    run.optim.warmup = 0.06
    with pytest.raises(ValueError, match="within the 70 steps of warm-up of s/x-trunk"):
        design.cooldown_branches(run, (100_000, *budgets))


def test_cooldown_branches_replace_lengths_in_tokens():
    """The trunk does not decay, and a branch decays over the fraction of the sweep."""
    run = schema.Run(name="s/x")
    run.optim = schema.Optimizer(schedule="wsd", warmup_tokens=10 * 2048, decay_tokens=5 * 2048)
    trunk, branch = design.cooldown_branches(run, [400_000], decay=0.25)
    for resolved in (trunk, branch):
        validation.validate_run(resolved)
        assert resolved.optim.warmup_tokens == 10 * 2048 and not resolved.optim.decay_tokens
    assert branch.optim.decay == 0.25
    run.optim.warmup_tokens = 200 * 2048
    with pytest.raises(ValueError, match="within the 200 steps of warm-up of s/x-trunk"):
        design.cooldown_branches(run, [400_000], decay=0.25)


@pytest.mark.parametrize("budget", [float("inf"), float("nan"), 0, -1.0])
def test_budget_that_is_not_positive_and_finite_is_refused(budget):
    with pytest.raises(ValueError, match="must be positive and finite"):
        model_sizes.steps_for_budget(schema.Run(), tokens=budget)


def test_size_that_is_not_text_is_refused():
    with pytest.raises(ValueError, match="^size 100 does not exist: did you mean"):
        model_sizes.ladder_model(100)
