"""Declaration of weights with axis names, norms and the MLP.

Tensor names end in their axes: B batch, T time, D d_model, F d_ff.
"""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import schema
from lm.model.kernels import remat_policies
from lm.parallel import mesh


@contextlib.contextmanager
def tree_mode() -> Iterator[None]:
    """Set Flax to treat modules as pytrees, and leave the sharding of weights to jax.jit."""
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False), nnx.use_eager_sharding(False):
        yield


def weight(rngs: nnx.Rngs, names: tuple[str, ...], shape: tuple[int, ...], std: float) -> nnx.Param:
    """Return a normally distributed float32 weight of mean 0.

    names: one logical axis per dimension of `shape` (see axis_rules.AXIS_RULES).
    """
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, out_sharding=names)


def bias(names: tuple[str, ...], shape: tuple[int, ...]) -> nnx.Param:
    """Return a float32 bias of zeros.

    names: one logical axis per dimension of `shape`. An axis of size d_model must have the name
    "norm", which is not split.
    """
    return nnx.Param(jnp.zeros(shape, jnp.float32), out_sharding=names)


def add_bias(y: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """Return y + bias, or y if the bias is None."""
    return y if bias is None else y + bias[...].astype(y.dtype)


class RMSNorm(nnx.Module):
    """RMSNorm: x / rms(x) * scale, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float):
        self.scale, self.eps = nnx.Param(jnp.ones(size), out_sharding=("norm",)), eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm: (x - mean) / deviation * scale + bias, in float32.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    def __init__(self, size: int, eps: float):
        self.scale, self.eps = nnx.Param(jnp.ones(size), out_sharding=("norm",)), eps
        self.bias = bias(("norm",), (size,))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def make_norm(model: schema.Model, size: int) -> RMSNorm | LayerNorm:
    """Return the kind of norm that model.norm names, for a last axis of `size`."""
    return {"rms": RMSNorm, "layer": LayerNorm}[model.norm](size, model.norm_eps)


@jax.custom_vjp
def project(x, weight) -> jax.Array:
    """Return the contraction of the last axis of x with the first axis of a weight.

    Shapes: [..., D], [D, ...] -> [..., ...]. In the gradient of the weight, x is the left operand,
    so XLA on CPU transposes x once for all weights that read it. Autodiff would use the gradient of
    each result as the left operand.
    """
    return jnp.tensordot(x, weight, 1)


def _project_backward(residuals, dy):
    """Return the gradients of x and of the weight."""
    x, weight = residuals
    rows, out = tuple(range(x.ndim - 1)), tuple(range(1, weight.ndim))
    dx = jnp.tensordot(dy, weight, (tuple(n - weight.ndim for n in out), out))
    return dx, jnp.tensordot(x, dy, (rows, rows))


project.defvjp(lambda x, weight: (jnp.tensordot(x, weight, 1), (x, weight)), _project_backward)


@jax.checkpoint
def swiglu(gate, up) -> jax.Array:
    """Return silu(gate) * up. The backward pass recomputes it, which stores two arrays less."""
    return jax.nn.silu(gate) * up


class MLP(nnx.Module):
    """MLP of one layer, gated or with GELU as model.mlp selects.

    gated  (silu(x @ gate) * (x @ up)) @ down (Shazeer 2020, arXiv:2002.05202)
    gelu   gelu(x @ up) @ down, with the tanh formula of GELU (Hendrycks and Gimpel 2016,
           arXiv:1606.08415), as in GPT-2
    """

    def __init__(self, model: schema.Model, rngs: nnx.Rngs, d_ff: int, rules: mesh.ShardingRules):
        d, f = model.d_model, d_ff
        self.rules = rules
        is_gated = model.mlp == "gated"
        self.gate = weight(rngs, ("embed", "mlp"), (d, f), d**-0.5) if is_gated else None
        self.up = weight(rngs, ("embed", "mlp"), (d, f), d**-0.5)
        self.down = weight(rngs, ("mlp", "embed"), (f, d), (2 * model.n_layers * f) ** -0.5)
        self.gate_bias = bias(("mlp",), (f,)) if is_gated and model.bias else None
        self.up_bias = bias(("mlp",), (f,)) if model.bias else None
        self.down_bias = bias(("norm",), (d,)) if model.bias else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        dtype = x_BTD.dtype
        up_BTF = add_bias(project(x_BTD, self.up[...].astype(dtype)), self.up_bias)
        up_BTF = remat_policies.name_activation(up_BTF, "up")
        if self.gate is None:
            y_BTF = jax.nn.gelu(up_BTF, approximate=True)
        else:
            gate_BTF = add_bias(project(x_BTD, self.gate[...].astype(dtype)), self.gate_bias)
            gate_BTF = remat_policies.name_activation(gate_BTF, "gate")
            y_BTF = swiglu(gate_BTF, up_BTF)
        y_BTF = self.rules.constrain(y_BTF, "batch", "length", "mlp")
        y_BTD = add_bias(y_BTF @ self.down[...].astype(dtype), self.down_bias)
        return remat_policies.name_activation(y_BTD, "mlp_output")
