import jax
import jax.numpy as jnp
import pytest

from lm.config import flops, model_sizes, schema
from lm.sweeps.planning import cost


def test_a_row_of_the_plan_is_exact_where_it_can_be():
    run = schema.Run(name="s/a", model=model_sizes.ladder_model("1B"), steps=100)
    row = cost.estimate_cost(run, peak_flops_per_second=1e12)
    assert row["params_total"] == model_sizes.count_parameters(run.model)["total"]
    assert row["tokens"] == 100 * 16 * 128 and row["flops"] == flops.run_facts(run)["flops"]
    assert row["seconds"] > row["flops"] / 1e12


def test_seconds_shrink_with_the_peak_and_grow_with_the_steps():
    run = schema.Run(model=model_sizes.ladder_model("1M"), steps=100)
    seconds = cost.estimate_cost(run, 1e11)["seconds"]
    assert cost.estimate_cost(run, 2e11)["seconds"] == pytest.approx(seconds / 2)
    run.steps = 300
    assert cost.estimate_cost(run, 1e11)["seconds"] == pytest.approx(3 * seconds)


def test_every_product_is_counted_as_often_as_it_runs():
    def twice_five_times(a, b):
        body = jax.jit(lambda x, _: (x @ b @ b.T, None))
        return jax.lax.scan(body, a, length=5)[0]

    a, b = jnp.ones((3, 7)), jnp.ones((7, 4))
    jaxpr = jax.make_jaxpr(twice_five_times)(a, b).jaxpr
    assert cost.matmul_flops(jaxpr) == 5 * 2 * (2 * 3 * 7 * 4)
    batched = jax.make_jaxpr(lambda x, y: jnp.einsum("bij,bjk->bik", x, y))
    assert cost.matmul_flops(batched(jnp.ones((6, 2, 3)), jnp.ones((6, 3, 5))).jaxpr) == 2 * 180


def test_blocks_of_attention_execute_less_than_is_counted_as_work():
    run = schema.Run(model=model_sizes.ladder_model("100K"))
    work = flops.flops_per_token(run.model, run.data.seq_len)
    per_step = run.data.batch_size * run.data.seq_len
    run.model.attention_query_blocks = 1
    assert cost.count_step_flops(run) == work["full"] * per_step
    run.model.attention_query_blocks = 4
    assert work["causal"] * per_step < cost.count_step_flops(run) < work["full"] * per_step
