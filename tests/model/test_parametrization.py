"""Tests of the scaling of weights, learning rates, decay and epsilon with width and depth."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.config import fields, schema
from lm.model import parametrization, transformer
from lm.training import optimizer

BASE = schema.Model(256, d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, d_head=8, d_ff=32)
BASE.base_width, BASE.base_depth = 16, 2
WIDE = dataclasses.replace(BASE, d_model=64, n_heads=8, n_kv_heads=8, d_ff=128)
DEEP = dataclasses.replace(BASE, n_layers=8)


def init_params(shape: schema.Model, name: str) -> dict:
    shape = dataclasses.replace(shape, parametrization=name)
    return jax.device_get(jax.jit(lambda: transformer.init_params(shape, 0))())


def axes_of_weights(shape: schema.Model) -> list[tuple]:
    return jax.tree.leaves(transformer.param_axes(shape), is_leaf=lambda n: isinstance(n, tuple))


def init_std(shape: schema.Model, name: str) -> dict[str, float]:
    """Return the standard deviation of one initial weight of each role."""
    params = init_params(shape, name)
    return {
        "input": float(params["embed"].std()),
        "hidden": float(params["blocks"]["mlp"]["up"].std()),
        "back": float(params["blocks"]["mlp"]["down"].std()),
        "output": float(params["head"].std()),
    }


@pytest.mark.parametrize("name", ["mup", "completep"])
def test_parametrizations_agree_at_the_base_shape(name):
    jax.tree.map(
        np.testing.assert_array_equal, init_params(BASE, "standard"), init_params(BASE, name)
    )
    shape = dataclasses.replace(BASE, parametrization=name)
    assert parametrization.residual_scale(shape) == parametrization.logit_scale(shape) == 1
    for names in axes_of_weights(BASE):
        expected = parametrization.role_factors(BASE, names)
        assert parametrization.role_factors(shape, names) == expected


def test_initialization_scales_with_width_and_depth():
    """The scales are those of tables 8 (muP) and 1 (CompleteP) of the papers."""
    base, wide, deep = init_std(BASE, "mup"), init_std(WIDE, "mup"), init_std(DEEP, "completep")
    near = {"rel": 0.05}
    assert wide["input"] == pytest.approx(base["input"], **near)  # not 1 / sqrt(width)
    assert wide["output"] == pytest.approx(base["output"], **near)
    assert wide["hidden"] == pytest.approx(base["hidden"] / 2, **near)  # 4 times the width
    assert wide["back"] == pytest.approx(base["back"] / 2, **near)
    assert deep["back"] == pytest.approx(base["back"], **near)  # CompleteP scales the branch
    assert init_std(DEEP, "standard")["back"] == pytest.approx(base["back"] / 2, **near)
    shape = dataclasses.replace(WIDE, n_layers=8, parametrization="completep")
    assert parametrization.residual_scale(shape) == 1 / 4
    assert parametrization.logit_scale(shape) == 1 / 4


def first_update(optim: schema.Optimizer, shape: schema.Model, params: dict, gradient: dict):
    """Return the update of the first step of an optimizer."""
    axes = transformer.param_axes(shape)
    transformation = optimizer.make_optimizer(optim, shape, 10, axes)
    inputs = optimizer.inputs(optim, shape, axes)

    @jax.jit
    def update(gradient, params):
        return transformation.update(gradient, transformation.init(params), params, inputs=inputs)

    return jax.device_get(update(gradient, params)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", fields.choices(schema.Optimizer)["name"])
def test_step_sizes_follow_the_learning_rate_of_each_role(name):
    shape = dataclasses.replace(WIDE, parametrization="mup")
    optim = schema.Optimizer(name=name, lr=0.01, weight_decay=0.0, warmup=0.0, schedule="constant")
    params = init_params(shape, "mup")
    rng = np.random.default_rng(1)
    gradient = jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), params)
    update = first_update(optim, shape, params, gradient)
    rms = {
        "input": np.sqrt(np.mean(update["embed"] ** 2)),
        "hidden": np.sqrt(np.mean(update["blocks"]["mlp"]["up"] ** 2)),
        "back": np.sqrt(np.mean(update["blocks"]["attention"]["out"] ** 2)),
    }
    # The width is 4 times the base width: AdamW and Lion divide by 4, Muon by its root.
    expected = 0.2 * 0.01 / 2 if name == "muon" else 0.01 / 4
    assert rms["input"] == pytest.approx(0.01, rel=0.01)
    assert rms["hidden"] == pytest.approx(expected, rel=0.2)
    assert rms["back"] == pytest.approx(expected, rel=0.2)
    assert np.vdot(update["head"], gradient["head"]) < 0


def test_learning_rate_times_decay_does_not_depend_on_width():
    shape = dataclasses.replace(WIDE, parametrization="mup")
    for names in axes_of_weights(shape):
        factors = parametrization.role_factors(shape, names)
        assert factors.lr * factors.decay == 1


def test_epsilon_of_adam_scales_with_width():
    shape = dataclasses.replace(WIDE, parametrization="mup")  # epsilon / 4 for every weight
    optim = schema.Optimizer(lr=1.0, eps=1.0, b1=0.0, b2=0.0, clip_norm=0.0, weight_decay=0.0)
    optim.warmup, optim.schedule = 0.0, "constant"
    params = init_params(shape, "mup")
    update = first_update(optim, shape, params, jax.tree.map(np.ones_like, params))
    np.testing.assert_allclose(update["embed"], -1 / (1 + 1 / 4), rtol=1e-6)


@pytest.mark.parametrize("name", ["mup", "completep"])
def test_factors_follow_from_width_and_depth(name):
    """A matrix has the same decay per step at any width. muP does not depend on the depth."""
    shape = dataclasses.replace(WIDE, n_layers=8, parametrization=name)
    width, depth = 4, 4 if name == "completep" else 1
    for names in axes_of_weights(WIDE):
        factors, role = (
            parametrization.role_factors(shape, names),
            parametrization.weight_role(names),
        )
        is_matrix = role in ("hidden", "back")
        assert factors.lr == (1 / width if is_matrix else 1)
        assert factors.lr * factors.decay == 1
        is_in_block = is_matrix or role == "norm"
        assert factors.epsilon == 1 / width / (depth if is_in_block else 1)
        std = {"input": width**0.5, "output": width**0.5, "back": depth**0.5}.get(role, 1)
        assert factors.init == std


MATRICES = {
    "hidden": ("layers", "embed", "mlp"),
    "back": ("layers", "heads", "d_head", "embed"),
    "expert": ("layers", "experts", "embed", "mlp"),
    "router": ("layers", "embed", "router"),
    "adapter_a": ("layers", "embed", "rank"),
    "adapter_b": ("layers", "rank", "heads", "d_head"),
}


def spectral_ratios(shape: schema.Model) -> dict[str, float]:
    """Return the spectral norm of an update of Muon, relative to sqrt(fan_out / fan_in)."""
    sizes = {"layers": 1, "experts": 2, "embed": shape.d_model, "mlp": shape.d_ff, "rank": 4}
    sizes |= {"heads": shape.n_heads, "d_head": shape.d_head, "router": 4}
    optim = schema.Optimizer(name="muon", lr=1.0, weight_decay=0.0, warmup=0.0, schedule="constant")
    transformation = optimizer.make_optimizer(optim, shape, 10, MATRICES)
    generator, gradient = np.random.default_rng(0), {}
    for name, names in MATRICES.items():
        gradient[name] = generator.normal(size=[sizes[axis] for axis in names]).astype(np.float32)
    inputs = optimizer.inputs(optim, shape, MATRICES)
    state = transformation.init(gradient)
    update, _ = jax.jit(transformation.update)(gradient, state, gradient, inputs=inputs)
    ratios = {}
    for name, names in MATRICES.items():
        _, *sides = parametrization.matrix_axes(names)
        fan_in, fan_out = (int(np.prod([sizes[names[i]] for i in side])) for side in sides)
        matrix = np.asarray(update[name]).reshape(-1, fan_in, fan_out)[0]
        ratios[name] = float(np.linalg.norm(matrix, 2)) / (fan_out / fan_in) ** 0.5
    return ratios


@pytest.mark.parametrize("name", ["mup", "completep"])
def test_updates_of_muon_satisfy_the_spectral_condition(name):
    """The spectral norm grows with sqrt(fan_out / fan_in), also for a router of fixed fan-out.

    Five iterations of Newton and Schulz give singular values between 0.7 and 1.2. The width is 4
    times the base width, so that a wrong exponent gives at least a factor of 2.
    """
    base, wide = (
        spectral_ratios(dataclasses.replace(shape, parametrization=name, n_layers=n_layers))
        for shape, n_layers in ((BASE, BASE.n_layers), (WIDE, 8))
    )
    assert wide == pytest.approx(base, rel=0.4)


def test_adapters_scale_with_the_width_of_their_sides():
    """Adapter A reads the width and adapter B writes it (Hayou et al. 2024, arXiv:2402.12354)."""
    shape = dataclasses.replace(WIDE, parametrization="mup")
    a, b = ("layers", "embed", "rank"), ("layers", "rank", "mlp")
    for optimizer_name in ("adamw", "muon"):
        factors = [parametrization.role_factors(shape, names, optimizer_name) for names in (a, b)]
        assert [f.lr for f in factors] == [1 / 4, 1]
        assert all(f.lr * f.decay == 1 for f in factors)


@pytest.mark.parametrize(
    "names, role",
    [
        (("vocab", "embed"), "input"),
        (("positions", "embed"), "input"),
        (("embed", "vocab"), "output"),
        (("vocab", "rank"), "input"),
        (("rank", "embed"), "input"),
        (("embed", "rank"), "output"),
        (("rank", "vocab"), "output"),
        (("layers", "heads", "d_head", "rank"), "lora_a"),
        (("layers", "rank", "embed"), "lora_b"),
        (("layers", "embed", "router"), "router"),
        (("layers", "experts", "embed", "mlp"), "hidden"),
        (("layers", "heads", "d_head", "embed"), "back"),
        (("layers", "heads", "d_head"), "norm"),
        (("layers", "balance"), "norm"),
    ],
)
def test_role_follows_from_the_axes(names, role):
    assert parametrization.weight_role(names) == role


def test_router_weights_fall_with_width():
    """A router has a fixed fan-out: the norm of its matrix falls with the root of the width."""
    shape = dataclasses.replace(WIDE, n_experts=4, parametrization="mup")
    factors = parametrization.role_factors(shape, ("layers", "embed", "router"))
    assert (factors.init, factors.lr, factors.epsilon) == (1 / 2, 1 / 4, 1)
