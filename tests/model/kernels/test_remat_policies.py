"""Tests of the recomputation policies of the backward pass."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from lm.config import fields, schema
from lm.model import attention, layers
from lm.model.kernels import remat_policies
from lm.parallel import mesh


def gradient_program(remat: str, kernel: str) -> str:
    """Return the traced program of the gradient of a checkpointed attention."""
    shape = schema.Model(attention=kernel)

    def attend(*qkv):
        return attention.attend(shape, mesh.DEFAULT_RULES, *(2 * x for x in qkv))

    layer = remat_policies.checkpoint_layer(attend, remat)
    qkv = [jax.ShapeDtypeStruct((2, 128, n, 16), jnp.bfloat16) for n in (2, 1, 1)]
    return str(jax.make_jaxpr(jax.grad(lambda *qkv: layer(*qkv).sum()))(*qkv))


def test_every_policy_of_the_config_exists():
    choices = fields.choices(schema.Run)["model.remat"]
    assert set(choices) == {"none", *remat_policies.POLICIES}


@pytest.mark.parametrize(
    ("kernel", "call"),
    [("splash", "pallas_call["), ("cudnn", "dot_product_attention_fwd_wrapper[")],
)
def test_dots_keeps_the_output_of_attention(kernel, call, monkeypatch):
    """The forward kernel runs once with dots, as without remat, and twice with full."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    counts = {
        remat: gradient_program(remat, kernel).count(call)
        for remat in ("none", "dots", "minimal", "full")
    }
    assert counts["dots"] == counts["none"]
    assert counts["full"] == counts["minimal"] == counts["none"] + 1


@pytest.mark.parametrize("remat", remat_policies.POLICIES)
def test_policy_stores_its_activations(remat):
    """An offloaded activation is copied to the memory of the host."""
    names = remat_policies.POLICIES[remat].available
    all_names = (*remat_policies.PROJECTIONS, "attention_output", "attention_scores")
    policy = remat_policies.make_policy(remat)

    def layer(x):
        for name in all_names:
            x = jnp.sin(remat_policies.name_activation(x, name))
        return x.sum()

    checkpointed = jax.checkpoint(layer, policy=policy)
    program = str(jax.make_jaxpr(jax.grad(checkpointed))(jnp.ones(3)))
    # A stored activation is not named again in the backward pass.
    n_all = len(all_names)
    has_host = "host" in program
    assert has_host == bool(remat_policies.POLICIES[remat].offloaded)
    assert program.count("name[") - n_all <= n_all - len(names)


def normalize(x_BTD, scale_D):
    return x_BTD * jax.lax.rsqrt(jnp.mean(x_BTD * x_BTD, axis=-1, keepdims=True)) * scale_D


def stored_shapes_and_gradients(compute):
    """Return the shapes of the arrays that a backward pass reads, and its gradients."""
    x_BTD, scale_D = jnp.sin(jnp.arange(48.0)).reshape(2, 4, 6), jnp.arange(1.0, 7.0)
    _, pullback = jax.vjp(compute, x_BTD, scale_D)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(pullback))
    return shapes, pullback(jnp.cos(jnp.arange(48.0)).reshape(2, 4, 6))


def test_recompute_stores_its_arguments_only():
    plain_shapes, plain_gradients = stored_shapes_and_gradients(normalize)
    shapes, gradients = stored_shapes_and_gradients(remat_policies.recompute(normalize))
    assert shapes == [(2, 4, 6), (6,)] and len(plain_shapes) > len(shapes)
    assert all((a == b).all() for a, b in zip(gradients, plain_gradients, strict=True))


def test_recompute_keeps_a_gradient_that_is_not_a_number():
    compute = remat_policies.recompute(jnp.matmul)
    x_BTD, w_DF = jnp.ones((1, 2, 3)), jnp.ones((3, 4))
    _, pullback = jax.vjp(compute, x_BTD, w_DF)
    dx_BTD, dw_DF = pullback(jnp.zeros((1, 2, 4)).at[0, 1, 3].set(jnp.nan))
    assert jnp.isnan(dx_BTD[0, 1]).all() and not jnp.isnan(dx_BTD[0, 0]).any()
    assert jnp.isnan(dw_DF[:, 3]).all() and not jnp.isnan(dw_DF[:, :3]).any()


@pytest.mark.parametrize("mlp", ["gated", "gated_gelu", "gelu", "exact_gelu"])
def test_mlp_stores_its_projections_only(mlp):
    """Neither the activation nor its sigmoid is stored, which are as large as a projection."""
    model = schema.Model(mlp=mlp, d_model=6, d_ff=10)

    def compute(x_BTD):
        with layers.tree_mode():
            return layers.MLP(model, nnx.Rngs(params=0), 10, mesh.DEFAULT_RULES)(x_BTD)

    _, pullback = jax.vjp(compute, jnp.ones((2, 4, 6)))
    hidden = [leaf for leaf in jax.tree.leaves(pullback) if leaf.shape == (2, 4, 10)]
    assert len(hidden) == (2 if mlp.startswith("gated") else 1)


def temporary_bytes():
    """Return the memory of the gradient of four equal MLPs."""
    model = schema.Model(d_model=32, d_ff=128)

    def loss(x_BTD):
        with layers.tree_mode():
            mlp = layers.MLP(model, nnx.Rngs(params=0), 128, mesh.DEFAULT_RULES)
        for _ in range(4):
            x_BTD = x_BTD + mlp(x_BTD)
        return x_BTD.sum()

    memory = jax.jit(jax.grad(loss)).lower(jnp.ones((2, 64, 32))).compile().memory_analysis()
    return memory.temp_size_in_bytes


def test_xla_recomputes_activations_late(monkeypatch):
    """Without the delay, XLA on CPU computes the activations of all layers early."""
    late = temporary_bytes()
    monkeypatch.setattr(remat_policies, "delay", lambda stored, dy: stored)
    hidden = 4 * 2 * 64 * 128
    assert late <= temporary_bytes() - 3 * hidden
