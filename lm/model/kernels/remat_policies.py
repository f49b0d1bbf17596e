"""Which activations of a layer the backward pass recomputes, stores or offloads: model.remat.

    layer = checkpoint_layer(layer, "save_qkv_proj")
    q_BTNH = name_activation(q_BTNH, "query")

none                              recomputes norms and the activation functions of MLPs
elementwise                       stores all products; recomputes all other functions of a layer
dots                              stores products with weights, and the outputs of attention
full                              stores only the input of the layer
minimal                           as dots, without the outputs of attention
minimal_offloaded                 offloads products with weights
save_qkv_proj                     stores queries, keys and values
save_out_proj                     stores the output projection of attention
save_dot_with_context_except_mlp  stores all activations of attention
qkv_proj_offloaded                offloads queries, keys and values

All names but elementwise, dots and none are those of MaxText, for the same activations; dots is its
minimal_with_context. Offloaded activations are copied to the memory of the host, which TPU and GPU
support.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import ad_checkpoint

from lm.config import schema

QKV = ("query", "key", "value")
MLP_UP = ("gate", "up")
PROJECTIONS = (*QKV, "attention_projection", *MLP_UP, "mlp_output")
# Primitives of fused kernels. The softmax statistics of a forward kernel have no name, so a policy
# recognizes them as results of these primitives.
KERNEL_PRIMITIVES = ("pallas_call", "mpmd_map", "dot_product_attention_fwd_wrapper")


@dataclasses.dataclass(frozen=True)
class RematPolicy:
    """Names of stored and of offloaded activations; the backward pass recomputes all others."""

    saved: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()

    @property
    def available(self) -> tuple[str, ...]:
        """Return the names of the activations that are not recomputed."""
        return (*self.saved, *self.offloaded)


POLICIES = {
    "elementwise": RematPolicy(saved=(*PROJECTIONS, "attention_output", "attention_scores")),
    "dots": RematPolicy(saved=(*PROJECTIONS, "attention_output")),
    "full": RematPolicy(),
    "minimal": RematPolicy(saved=PROJECTIONS),
    "minimal_offloaded": RematPolicy(offloaded=PROJECTIONS),
    "save_qkv_proj": RematPolicy(saved=QKV),
    "save_out_proj": RematPolicy(saved=("attention_projection",)),
    "save_dot_with_context_except_mlp": RematPolicy(
        saved=(*QKV, "attention_output", "attention_projection")
    ),
    "qkv_proj_offloaded": RematPolicy(offloaded=QKV),
}


def name_activation(x: jax.Array, name: str) -> jax.Array:
    """Return x with a name that the policies refer to; the value does not change."""
    return ad_checkpoint.checkpoint_name(x, name)


def is_unrolled(model: schema.Model) -> bool:
    """Return True if a model has no loop over its layers."""
    return model.n_layers <= model.scan_unroll and model.remat in ("none", "elementwise")


def checkpoint_layer(layer: Callable, remat: str, prevent_cse: bool = False) -> Callable:
    """Return a layer with the recomputation policy of model.remat; "none": the layer itself."""
    if remat == "none":
        return layer
    return jax.checkpoint(layer, prevent_cse=prevent_cse, policy=make_policy(remat))


def recompute(function: Callable) -> Callable:
    """Return a function of (x [B, T, ...], *weights) that stores only these arrays.

    The backward pass computes the function again when the gradient of its result exists.
    """

    @jax.custom_vjp
    def compute(x, *weights):
        return function(x, *weights)

    def forward(x, *weights):
        return function(x, *weights), (x, weights)

    def backward(residuals, dy):
        x, weights = residuals
        _, pullback = jax.vjp(function, delay(x, dy), *weights)
        return pullback(dy)

    compute.defvjp(forward, backward)
    return compute


def delay(stored: jax.Array, dy: jax.Array) -> jax.Array:
    """Return a stored activation [B, T, ...] that XLA cannot read before the gradient dy exists.

    See `recompute_late`. Each position has its own condition, so that devices that share the
    positions, or the heads of an array of the shape of dy, do not communicate.
    """
    if stored.shape != dy.shape:
        first_BT = dy.reshape(*dy.shape[:2], -1)[:, :, 0]
        dy = first_BT.reshape(*first_BT.shape, *[1] * (stored.ndim - 2))
    return jnp.where(dy == dy, stored, jnp.zeros((), stored.dtype))


def recompute_late(layer: Callable, remat: str) -> Callable:
    """Return a layer of an unrolled loop with the recomputation policy of model.remat.

    layer: function of (x [B, T, D], weights) that returns (y [B, T, D], routing). XLA on CPU
    removes the barriers of jax.checkpoint, merges the recomputed values with the first ones and
    stores them. Here a condition on the gradient of y selects each stored activation, so that XLA
    cannot use it before this gradient exists. The condition is false only for NaN.
    """
    checkpointed = checkpoint_layer(layer, remat)

    @jax.custom_vjp
    def run_layer(x_BTD, weights):
        return layer(x_BTD, weights)

    def forward(x_BTD, weights):
        output, pullback = jax.vjp(checkpointed, x_BTD, weights)
        return output, (pullback, weights)

    def backward(residuals, gradient):
        pullback, weights = residuals
        weight_shapes = {leaf.shape for leaf in jax.tree.leaves(weights)}
        pullback = jax.tree.map(
            lambda leaf: leaf if leaf.shape in weight_shapes else _delay(leaf, gradient[0]),
            pullback,
        )
        return pullback(gradient)

    run_layer.defvjp(forward, backward)
    return run_layer


def _delay(stored: jax.Array, dy_BTD: jax.Array) -> jax.Array:
    """Return a stored activation that XLA cannot read before the gradient dy_BTD exists.

    An array that is not a floating-point array with rows of the batch is returned unchanged.
    """
    if (
        stored.ndim < 2
        or len(stored) != len(dy_BTD)
        or not jnp.issubdtype(stored.dtype, jnp.floating)
    ):
        return stored
    first_B = dy_BTD[:, 0, 0]
    is_number = (first_B == first_B).reshape(-1, *[1] * (stored.ndim - 1))
    return jnp.where(is_number, stored, jnp.zeros((), stored.dtype))


def make_policy(remat: str) -> Callable | None:
    """Return the policy of jax.checkpoint for a value of model.remat; None recomputes all."""
    policy, policies = POLICIES[remat], jax.checkpoint_policies
    if policy.offloaded:
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(policy.saved),
            names_which_can_be_offloaded=list(policy.offloaded),
            offload_src="device",
            offload_dst="pinned_host",
        )
    if not policy.saved:
        return None
    saves = [policies.save_only_these_names(*policy.saved)]
    saves += [_is_kernel] if "attention_output" in policy.saved else []
    return lambda prim, *args, **params: any(save(prim, *args, **params) for save in saves)


def _is_kernel(prim, *_, **__) -> bool:
    """Return True for the primitive of a fused kernel."""
    return prim.name in KERNEL_PRIMITIVES


def validate_remat(run: schema.Run, platform: str) -> None:
    """Raise ValueError if model.remat offloads activations and the platform cannot.

    platform: cpu, gpu or tpu.
    """
    if platform == "cpu" and POLICIES.get(run.model.remat, RematPolicy()).offloaded:
        raise ValueError(
            f"model.remat={run.model.remat!r} copies activations to the memory of the host, which"
            " only TPU and GPU support: set model.remat='save_qkv_proj'"
        )
