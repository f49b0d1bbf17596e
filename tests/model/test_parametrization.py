import dataclasses

import jax
import numpy as np
import pytest

from lm.config import fields, schema
from lm.model import parametrization, transformer
from lm.training import optimizer

BASE = schema.Model(d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, d_head=8, d_ff=32)
BASE.base_width, BASE.base_depth = 16, 2
WIDE = dataclasses.replace(BASE, d_model=64, n_heads=8, n_kv_heads=8, d_ff=128)
DEEP = dataclasses.replace(BASE, n_layers=8)
RULES = ("standard", "mup", "completep")


def weights(shape: schema.Model, rule: str) -> dict:
    return jax.jit(
        lambda: transformer.init_params(dataclasses.replace(shape, parametrization=rule), 0)
    )()


def spread(shape: schema.Model, rule: str) -> dict[str, float]:
    params = weights(shape, rule)
    return {
        "input": float(params["embed"].std()),
        "hidden": float(params["blocks"]["mlp"]["up"].std()),
        "back": float(params["blocks"]["mlp"]["down"].std()),
        "output": float(params["head"].std()),
    }


@pytest.mark.parametrize("rule", RULES[1:])
def test_at_the_base_shape_every_rule_is_the_standard_one(rule):
    jax.tree.map(np.testing.assert_array_equal, weights(BASE, "standard"), weights(BASE, rule))
    shape = dataclasses.replace(BASE, parametrization=rule)
    assert parametrization.residual_scale(shape) == parametrization.logit_scale(shape) == 1
    for names in jax.tree.leaves(
        transformer.param_axes(BASE), is_leaf=lambda n: isinstance(n, tuple)
    ):
        assert parametrization.role_factors(shape, names) == parametrization.role_factors(
            BASE, names
        )


def test_widths_and_depths_change_the_init_as_the_papers_say():
    base, mup, deep = spread(BASE, "mup"), spread(WIDE, "mup"), spread(DEEP, "completep")
    near = {"rel": 0.05}
    assert mup["input"] == pytest.approx(base["input"], **near)  # not 1 / sqrt(width)
    assert mup["output"] == pytest.approx(base["output"], **near)
    assert mup["hidden"] == pytest.approx(base["hidden"] / 2, **near)  # a quarter of the variance
    assert mup["back"] == pytest.approx(base["back"] / 2, **near)
    assert deep["back"] == pytest.approx(base["back"], **near)  # the branch is divided instead
    assert spread(DEEP, "standard")["back"] == pytest.approx(base["back"] / 2, **near)
    shape = dataclasses.replace(WIDE, n_layers=8, parametrization="completep")
    assert (
        parametrization.residual_scale(shape) == 1 / 4
        and parametrization.logit_scale(shape) == 1 / 4
    )


@pytest.mark.parametrize("name", fields.choices(schema.Optimizer)["name"])
def test_one_step_moves_each_kind_of_weight_by_its_own_learning_rate(name):
    shape = dataclasses.replace(WIDE, parametrization="mup")
    knobs = schema.Optimizer(name=name, lr=0.01, weight_decay=0.0, warmup=0.0, schedule="constant")
    params = weights(shape, "mup")
    gradient = jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape), params)
    transformation = optimizer.make_optimizer(knobs, shape, 10, transformer.param_axes(shape))
    inputs = optimizer.inputs(knobs, shape, transformer.param_axes(shape))
    moved, _ = transformation.update(gradient, transformation.init(params), params, inputs=inputs)
    size = {
        "input": np.sqrt(np.mean(moved["embed"] ** 2)),
        "hidden": np.sqrt(np.mean(moved["blocks"]["mlp"]["up"] ** 2)),
        "back": np.sqrt(np.mean(moved["blocks"]["attention"]["out"] ** 2)),
    }
    ratio = {"muon": 0.2}.get(name, 1.0)  # Muon's steps have that share of the size
    assert size["input"] == pytest.approx(0.01, rel=0.01)
    assert size["hidden"] == pytest.approx(ratio * 0.01 / 4, rel=0.2)
    assert size["back"] == pytest.approx(ratio * 0.01 / 4, rel=0.2)
    assert np.vdot(moved["head"], gradient["head"]) < 0


def test_decay_stays_put_where_the_learning_rate_falls():
    shape = dataclasses.replace(WIDE, parametrization="mup")
    for names in jax.tree.leaves(
        transformer.param_axes(shape), is_leaf=lambda n: isinstance(n, tuple)
    ):
        factors = parametrization.role_factors(shape, names)
        assert factors.lr * factors.decay == (0 if "norm" in names else 1)


def test_a_larger_epsilon_means_what_it_says():
    shape = dataclasses.replace(WIDE, parametrization="mup")  # epsilon / 4 for every weight
    knobs = schema.Optimizer(
        lr=1.0, eps=1.0, clip_norm=0.0, warmup=0.0, schedule="constant", b1=0.0, b2=0.0
    )
    params = weights(shape, "mup")
    gradient = jax.tree.map(np.ones_like, params)
    knobs, axes = dataclasses.replace(knobs, weight_decay=0.0), transformer.param_axes(shape)
    transformation, inputs = (
        optimizer.make_optimizer(knobs, shape, 10, axes),
        optimizer.inputs(knobs, shape, axes),
    )
    moved, _ = transformation.update(gradient, transformation.init(params), params, inputs=inputs)
    np.testing.assert_allclose(moved["embed"], -1 / (1 + 1 / 4), rtol=1e-6)
