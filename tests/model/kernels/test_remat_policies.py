"""Tests of the recomputation policies of the backward pass."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from lm.config import fields, schema
from lm.model import transformer
from lm.model.kernels import remat_policies

SHAPE = schema.Model(
    vocab_size=64, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_head=16, d_ff=48,
    dtype="bfloat16", scan_unroll=1,
)  # fmt: skip


def gradient_program(remat: str, attention: str) -> str:
    """Return the traced program of a gradient."""
    shape = schema.Model(**vars(SHAPE) | {"remat": remat, "attention": attention})
    params = jax.eval_shape(lambda: transformer.init_params(shape, 0))
    tokens_BT = jax.ShapeDtypeStruct((2, 129), jnp.int32)

    def loss(params, tokens_BT):
        return transformer.token_losses(shape, params, tokens_BT)[0].sum()

    return str(jax.make_jaxpr(jax.grad(loss))(params, tokens_BT))


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
        for remat in ("none", "dots", "save_dot_with_context_except_mlp", "minimal", "full")
    }
    assert counts["dots"] == counts["none"] == counts["save_dot_with_context_except_mlp"]
    assert counts["full"] == counts["minimal"] == counts["none"] + 1


@pytest.mark.parametrize("remat", remat_policies.POLICIES)
def test_policy_stores_its_activations(remat):
    """An offloaded activation is copied to the memory of the host."""
    names = remat_policies.POLICIES[remat].available
    policy = remat_policies.make_policy(remat)

    def layer(x):
        for name in (*remat_policies.PROJECTIONS, "attention_output"):
            x = jnp.sin(remat_policies.name_activation(x, name))
        return x.sum()

    checkpointed = jax.checkpoint(layer, policy=policy)
    program = str(jax.make_jaxpr(jax.grad(checkpointed))(jnp.ones(3)))
    # A stored activation is not named again in the backward pass.
    n_all = len(remat_policies.PROJECTIONS) + 1
    has_host = "host" in program
    assert has_host == bool(remat_policies.POLICIES[remat].offloaded)
    assert program.count("name[") - n_all <= n_all - len(names)
