"""Tests of the recomputation policies of the backward pass."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from lm.config import fields, schema
from lm.model import attention
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
