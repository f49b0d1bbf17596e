"""Learning-rate schedules and optimizers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import fields, optimizer_config, schema
from lm.model import transformer
from lm.runs import records
from lm.training import loop, optimizer

SHAPE = schema.Model(
    vocab_size=16, d_model=8, n_layers=2, n_heads=2, n_kv_heads=2, d_head=4, d_ff=16
)


@pytest.mark.parametrize("name", fields.choices(schema.Optimizer)["schedule"])
def test_schedule_rises_to_its_peak_and_falls_to_its_final(name):
    optim = schema.Optimizer(lr=2.0, schedule=name, warmup=0.1, decay=0.3, final_lr_fraction=0.25)
    lr = np.array(optimizer.learning_rate_schedule(optim, 100)(np.arange(100)))
    assert (np.diff(lr[:11]) > 0).all() and lr[0] > 0
    assert lr[10] == pytest.approx(2.0) and lr.max() == pytest.approx(2.0)
    assert (np.diff(lr[10:]) <= 1e-6).all()
    assert lr[-1] == pytest.approx(2.0 if name == "constant" else 0.5)


def test_wsd_is_constant_before_its_decay():
    optim = schema.Optimizer(lr=1.0, schedule="wsd", warmup=0.1, decay=0.2)
    lr = optimizer.learning_rate_schedule(optim, 100)(np.arange(100))
    np.testing.assert_allclose(lr[10:80], 1.0)
    assert lr[81] < 1.0


@pytest.mark.parametrize("name", fields.choices(schema.Optimizer)["schedule"])
def test_run_of_one_step_has_a_learning_rate(name):
    lr = optimizer.learning_rate_schedule(schema.Optimizer(schedule=name), 1)(0)
    assert 0 < lr <= schema.Optimizer().lr


@pytest.mark.parametrize("name", fields.choices(schema.Optimizer)["schedule"])
def test_numpy_and_jax_give_equal_rates(name):
    optim = schema.Optimizer(lr=0.03, schedule=name, warmup=0.1, decay=0.3)
    steps = np.arange(100)
    trained = optimizer.learning_rate_schedule(optim, 100)(steps)
    computed = optimizer_config.compute_learning_rate(optim, 100, steps, np)
    np.testing.assert_allclose(computed, trained, rtol=1e-5)


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.device_get(jax.jit(lambda: transformer.init_params(SHAPE, 0))())


def first_update(
    optim: schema.Optimizer, model: schema.Model, params: dict, gradient: float | dict, axes=None
) -> tuple[dict, Any]:
    """Return the first update and the state after it. A number is the gradient of all weights."""
    axes = axes or transformer.param_axes(model)
    transformation = optimizer.make_optimizer(optim, model, 10, axes)
    inputs = optimizer.inputs(optim, model, axes)
    if not isinstance(gradient, dict):
        gradient = jax.tree.map(lambda w: np.full_like(w, gradient), params)

    @jax.jit
    def update(gradient, params):
        return transformation.update(gradient, transformation.init(params), params, inputs=inputs)

    return jax.device_get(update(gradient, params))


def test_every_weight_except_the_norms_decays(params):
    optim = schema.Optimizer(lr=0.1, weight_decay=0.5, warmup=0.0, schedule="constant")
    update, _ = first_update(optim, SHAPE, params, 0.0)
    for path, change in jax.tree_util.tree_leaves_with_path(update):
        is_norm = "norm" in jax.tree_util.keystr(path)
        assert bool((change == 0).all()) == is_norm, path
    np.testing.assert_allclose(update["embed"], -0.1 * 0.5 * params["embed"], rtol=1e-5)


def test_large_gradient_is_clipped_by_its_global_norm(params):
    optim = schema.Optimizer(clip_norm=1.0, eps=1.0, weight_decay=0.0)
    clip = jax.jit(lambda gradient: optimizer.clip_by_global_norm(gradient, optim.clip_norm)[0])

    def update(scale: float):
        gradient = clip(jax.tree.map(lambda w: np.full_like(w, scale), params))
        return first_update(optim, SHAPE, params, gradient)[0]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), update(1e3), update(1e6))


def train_with_and_without_interrupt(run: schema.Run) -> schema.Run:
    """Train a copy of a run, then the run with an interrupt at step 4. Return the copy."""
    uninterrupted = dataclasses.replace(run, name="uninterrupted")
    loop.train(uninterrupted)

    def stop(row):
        if row["step"] == 4 and row["attempt"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(run, stop)
    loop.train(run, stop)
    return uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("name", fields.choices(schema.Optimizer)["name"])
def test_optimizer_trains_and_resumes_on_a_sharded_mesh(tiny, name):
    """AdamW is slow to test here and is a part of Muon, for the weights that are no matrices.

    Muon has the moments of AdamW, too, here in bfloat16. The warm-up has two steps.
    """
    tiny.optim.name, tiny.mesh = name, schema.Mesh(data=2, fsdp=2)
    tiny.optim.lr = 3e-3 if name == "lion" else 3e-2
    tiny.optim.moment_dtype = "bfloat16" if name == "muon" else "float32"
    tiny.optim.warmup_tokens = 2 * tiny.data.batch_size * tiny.data.seq_len
    tiny.eval.n_completions, tiny.steps = 0, 12
    uninterrupted = train_with_and_without_interrupt(tiny)
    expected, rows = (records.load_metrics(records.run_dir(run)) for run in (uninterrupted, tiny))
    losses = [row["loss"] for row in rows]
    assert losses == [row["loss"] for row in expected] and losses[-1] < losses[0] - 0.3
    rates = {row["step"]: row["lr"] for row in rows}
    assert rates[2] == pytest.approx(tiny.optim.lr * 2 / 3)


def test_layer_decay_counts_the_layers_above(params):
    """The first update of Adam is the learning rate times the sign of the gradient."""
    optim = schema.Optimizer(lr=1.0, warmup=0.0, schedule="constant", weight_decay=0.0)
    optim.layer_decay = 0.5
    update, _ = first_update(optim, SHAPE, params, 1.0)
    for block in jax.tree.leaves(update["blocks"]):
        for layer, factor in enumerate((0.5, 1.0)):
            np.testing.assert_allclose(block[layer], -factor, rtol=1e-5)
    np.testing.assert_allclose(update["embed"], -0.25, rtol=1e-5)
    np.testing.assert_allclose(update["head"], -1.0, rtol=1e-5)


def test_epsilon_is_multiplied_by_the_factor_of_the_weight(params):
    """The first update of Adam with epsilon e is lr g / (g + e)."""
    model = dataclasses.replace(SHAPE, parametrization="completep", base_width=2, base_depth=1)
    optim = schema.Optimizer(lr=1.0, warmup=0.0, schedule="constant", weight_decay=0.0, eps=1.0)
    update, _ = first_update(optim, model, params, 1.0)
    width, depth = 4, 2
    for weight, lr, epsilon in (
        (update["embed"], 1, 1 / width),
        (update["blocks"]["mlp"]["up"], 1 / width, 1 / (width * depth)),
        (update["blocks"]["mlp"]["down"], 1 / width, 1 / (width * depth)),
        (update["head"], 1, 1 / width),
    ):
        np.testing.assert_allclose(weight, -lr / (1 + epsilon), rtol=1e-5)


def decay_inputs(model: schema.Model = SHAPE, **fields) -> dict:
    """Return the decay of each weight per unit of the learning rate, by the path of the weight."""
    optim = schema.Optimizer(lr=0.02, weight_decay=0.1, **fields)
    inputs = optimizer.inputs(optim, model, transformer.param_axes(model))
    leaves = jax.tree_util.tree_leaves_with_path(inputs.weight_decay)
    return {jax.tree_util.keystr(path): float(decay) for path, decay in leaves}


def test_weight_decay_of_a_group_has_its_own_factor():
    factors = {"embedding_decay_factor": 0.0, "head_decay_factor": 2.0, "norm_decay_factor": 3.0}
    decays = decay_inputs(**factors)
    assert decays["['embed']"] == 0 and decays["['head']"] == pytest.approx(0.2)
    assert decays["['norm']['scale']"] == pytest.approx(0.3)
    assert decays["['blocks']['attention']['query_norm']['scale']"] == pytest.approx(0.3)
    assert decays["['blocks']['mlp']['up']"] == pytest.approx(0.1)


def test_default_decays_are_those_without_groups():
    for path, decay in decay_inputs().items():
        assert decay == (0 if "norm" in path else np.float32(0.1)), path


@pytest.mark.parametrize("lr", [1e-3, 0.1])
@pytest.mark.parametrize("name", ["standard", "mup"])
def test_independent_decay_does_not_depend_on_the_rate(params, lr, name):
    """After the warm-up each weight loses weight_decay of its value, at any rate and width."""
    model = dataclasses.replace(SHAPE, parametrization=name, base_width=2)
    optim = schema.Optimizer(lr=lr, weight_decay=0.01, independent_weight_decay=True)
    optim.warmup, optim.schedule = 0.0, "constant"
    update, _ = first_update(optim, model, params, 0.0)
    for weight in ("embed", "head"):
        np.testing.assert_allclose(update[weight], -0.01 * params[weight], rtol=1e-5)
    up = params["blocks"]["mlp"]["up"]
    np.testing.assert_allclose(update["blocks"]["mlp"]["up"], -0.01 * up, rtol=1e-5)


def test_schedule_in_steps_equals_that_in_fractions():
    fractions = schema.Optimizer(schedule="wsd", warmup=0.1, decay=0.3)
    steps = schema.Optimizer(schedule="wsd", warmup_steps=10, decay_steps=30)
    expected, actual = (
        optimizer.learning_rate_schedule(optim, 100)(np.arange(100)) for optim in (fractions, steps)
    )
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", fields.choices(schema.Optimizer)["name"])
def test_first_moment_is_stored_in_bfloat16(params, name):
    """The second moment and the computation remain in float32."""
    rng, updates = np.random.default_rng(1), {}
    gradient = jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), params)
    for dtype in ("float32", "bfloat16"):
        optim = schema.Optimizer(name=name, moment_dtype=dtype)
        updates[dtype], state = first_update(optim, SHAPE, params, gradient)
        paths = jax.tree_util.tree_leaves_with_path(state)
        for path, leaf in paths:
            is_moment = ".mu" in jax.tree_util.keystr(path)
            is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
            assert not is_float or str(leaf.dtype) == (dtype if is_moment else "float32"), path
    # The first update uses the moments before they are rounded.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        updates["float32"],
        updates["bfloat16"],
    )


def test_muon_orthogonalizes_both_factors_of_an_adapter():
    """The singular values of an update are nearly equal, on each side of the residual stream."""
    model = dataclasses.replace(SHAPE, lora_rank=4, lora_on="heads,mlp")
    axes = {"lora": transformer.param_axes(model)["lora"]}
    shapes = jax.eval_shape(lambda: transformer.init_params(model, 0))["lora"]
    rng = np.random.default_rng(0)
    draws = jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), shapes)
    weights = {"lora": draws}
    optim = schema.Optimizer(name="muon", weight_decay=0.0)
    update, _ = first_update(optim, model, weights, weights, axes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(update):
        sides = (-1, 4) if jax.tree_util.keystr(path).endswith("['a']") else (4, -1)
        values = np.linalg.svd(np.asarray(leaf[0]).reshape(sides), compute_uv=False)
        assert len(values) == 4 and values[-1] > 0.5 * values[0], (path, values)
