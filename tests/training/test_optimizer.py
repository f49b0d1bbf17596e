import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import fields, schema
from lm.model import transformer
from lm.runs import records
from lm.training import loop, optimizer

SHAPE = schema.Model(
    vocab_size=16, d_model=8, n_layers=2, n_heads=2, n_kv_heads=2, d_head=4, d_ff=16
)


@pytest.mark.parametrize("name", fields.choices(schema.Optimizer)["schedule"])
def test_a_schedule_warms_up_peaks_and_ends_where_it_says(name):
    knobs = schema.Optimizer(lr=2.0, schedule=name, warmup=0.1, decay=0.3, final_lr_fraction=0.25)
    lr = np.array(optimizer.learning_rate_schedule(knobs, 100)(np.arange(100)))
    assert (np.diff(lr[:11]) > 0).all() and lr[0] > 0
    assert lr[10] == pytest.approx(2.0) and lr.max() == pytest.approx(2.0)
    assert (np.diff(lr[10:]) <= 1e-6).all()
    assert lr[-1] == pytest.approx(2.0 if name == "constant" else 0.5)


def test_wsd_is_flat_until_its_decay():
    knobs = schema.Optimizer(lr=1.0, schedule="wsd", warmup=0.1, decay=0.2)
    lr = optimizer.learning_rate_schedule(knobs, 100)(np.arange(100))
    np.testing.assert_allclose(lr[10:80], 1.0)
    assert lr[81] < 1.0


def test_a_run_of_one_step_has_a_learning_rate():
    for name in fields.choices(schema.Optimizer)["schedule"]:
        assert (
            0
            < optimizer.learning_rate_schedule(schema.Optimizer(schedule=name), 1)(0)
            <= schema.Optimizer().lr
        )


def test_norms_do_not_decay_and_every_other_weight_does():
    params = jax.jit(lambda: transformer.init_params(SHAPE, 0))()
    knobs = schema.Optimizer(lr=0.1, weight_decay=0.5, warmup=0.0, schedule="constant")
    axes = transformer.param_axes(SHAPE)
    transformation, inputs = (
        optimizer.make_optimizer(knobs, SHAPE, 10, axes),
        optimizer.inputs(knobs, SHAPE, axes),
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    update, _ = transformation.update(zeros, transformation.init(params), params, inputs=inputs)
    for path, moved in jax.tree_util.tree_leaves_with_path(update):
        is_norm = "norm" in jax.tree_util.keystr(path)
        assert bool((moved == 0).all()) == is_norm, path
    np.testing.assert_allclose(update["embed"], -0.1 * 0.5 * params["embed"], rtol=1e-5)


def test_a_large_gradient_is_clipped_by_its_global_norm():
    params = jax.jit(lambda: transformer.init_params(SHAPE, 0))()
    knobs, axes = (
        schema.Optimizer(clip_norm=1.0, eps=1.0, weight_decay=0.0),
        transformer.param_axes(SHAPE),
    )
    transformation, inputs = (
        optimizer.make_optimizer(knobs, SHAPE, 10, axes),
        optimizer.inputs(knobs, SHAPE, axes),
    )

    def update(scale: float):
        gradient = jax.tree.map(lambda x: jnp.full_like(x, scale), params)
        gradient, _ = optimizer.clip_by_global_norm(gradient, knobs.clip_norm)
        return transformation.update(gradient, transformation.init(params), params, inputs=inputs)[
            0
        ]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), update(1e3), update(1e6))


@pytest.mark.parametrize("name", fields.choices(schema.Optimizer)["name"])
def test_every_optimizer_trains_and_resumes_on_a_split_mesh(tiny, name):
    tiny.optim.name, tiny.mesh = name, schema.Mesh(data=2, fsdp=2)
    tiny.optim.lr = 3e-3 if name == "lion" else 3e-2
    tiny.eval.n_completions, tiny.steps = 0, 12
    whole = dataclasses.replace(tiny, name="whole")
    loop.train(whole)

    def stop(row):
        if row["step"] == 4 and row["attempt"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(tiny, stop)
    loop.train(tiny, stop)
    seen = [
        [row["loss"] for row in records.load_metrics(records.run_dir(run))] for run in (whole, tiny)
    ]
    assert seen[0] == seen[1] and seen[0][-1] < seen[0][0] - 0.3
