"""Cost estimates, and FLOPs counted in traced programs."""

import jax
import jax.numpy as jnp
import pytest

from lm.config import flops, model_sizes, schema
from lm.sweeps.planning import cost, hardware


def test_plan_row_has_exact_counts():
    run = schema.Run(name="s/a", model=model_sizes.ladder_model("1B", vocab_size=256), steps=100)
    row = cost.estimate_cost(run, peak_flops_per_second=1e12)
    assert row["params_total"] == model_sizes.count_parameters(run.model)["total"]
    assert row["tokens"] == 100 * 16 * 128 and row["flops"] == flops.run_facts(run)["flops"]
    assert row["seconds"] > row["flops"] / 1e12


def test_seconds_are_proportional_to_steps_over_peak():
    run = schema.Run(model=model_sizes.ladder_model("1M", vocab_size=256), steps=100)
    seconds = cost.estimate_cost(run, 1e11)["seconds"]
    assert cost.estimate_cost(run, 2e11)["seconds"] == pytest.approx(seconds / 2)
    run.steps = 300
    assert cost.estimate_cost(run, 1e11)["seconds"] == pytest.approx(3 * seconds)


def test_matmul_flops_count_loop_iterations_and_batches():
    def two_products_five_times(a, b):
        body = jax.jit(lambda x, _: (x @ b @ b.T, None))
        return jax.lax.scan(body, a, length=5)[0]

    a, b = jnp.ones((3, 7)), jnp.ones((7, 4))
    jaxpr = jax.make_jaxpr(two_products_five_times)(a, b).jaxpr
    assert cost.matmul_flops(jaxpr) == 5 * 2 * (2 * 3 * 7 * 4)
    batched = jax.make_jaxpr(lambda x, y: jnp.einsum("bij,bjk->bik", x, y))
    assert cost.matmul_flops(batched(jnp.ones((6, 2, 3)), jnp.ones((6, 3, 5))).jaxpr) == 2 * 180


def test_query_blocks_reduce_the_executed_flops():
    run = schema.Run(model=model_sizes.ladder_model("100K", vocab_size=256))
    per_token = flops.flops_per_token(run.model, run.data.seq_len)
    n_tokens = run.data.batch_size * run.data.seq_len
    run.model.attention_query_blocks = 1
    assert cost.count_step_flops(run) == per_token["full"] * n_tokens
    run.model.attention_query_blocks = 4
    executed = cost.count_step_flops(run)
    assert per_token["causal"] * n_tokens < executed < per_token["full"] * n_tokens


def planned(**fields) -> dict:
    """Return the row of a plan for an H100 by the analytic estimate."""
    run = schema.Run(name="a", model=model_sizes.ladder_model("100K", vocab_size=256))
    for name, value in fields.items():
        group, _, field = name.rpartition("__")
        setattr(getattr(run, group) if group else run, field, value)
    return cost.plan_run(run, hardware.parse_target("gpu:h100"), should_compile=False)


def test_expected_time_is_not_below_the_kernel_launches():
    row = planned()
    assert row["bound"] == "launch" and row["step_seconds"] == row["launch_seconds"] > 1e-4
    run = schema.Run(model=model_sizes.ladder_model("100K", vocab_size=256))
    seconds = cost.estimate_cost(run, 989e12, "gpu")["seconds"]
    assert seconds == pytest.approx(run.steps * row["launch_seconds"])
    assert cost.estimate_cost(run, 989e12, "cpu")["seconds"] < 0.1 * seconds


def test_plan_takes_the_largest_program():
    """An evaluation has no micro-batches, and generated answers have dense scores."""
    row = planned(data__seq_len=2048, data__batch_size=64)
    assert row["largest_program"] == "train" and row["bytes_generation"] == 0.0
    state = row["bytes_params"] + row["bytes_optimizer"]
    assert row["bytes_needed"] == state + row["bytes_temporaries"]
    row = planned(
        data__seq_len=2048, data__batch_size=64, optim__grad_accumulation_steps=64,
        model__remat="full",
    )  # fmt: skip
    assert row["largest_program"] == "evaluation"
    assert row["bytes_needed"] == state + row["bytes_evaluation"] > state + row["bytes_temporaries"]
    row = planned(data__seq_len=16384, data__batch_size=1, eval__tasks="copy?n=64&generate=1")
    assert row["largest_program"] == "generation" and row["bytes_over"] > 0
    assert row["bytes_over"] == row["bytes_needed"] - row["bytes_memory"]
    assert row["step_seconds"] is None and row["hours"] is None
