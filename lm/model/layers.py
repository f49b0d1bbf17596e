"""Declaration of weights with axis names, products with weights, norms and the MLP.

Weights are float32. They are cast to the type of the activations inside of the functions that use
them, and these functions return float32 gradients of the weights: a sum over all tokens of a batch
does not fit the 8 bits of a bfloat16 mantissa.

Tensor names end in their axes: B batch, T time, D d_model, F d_ff, V rows of a table.
"""

import contextlib
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import model_sizes, schema
from lm.model.kernels import remat_policies
from lm.parallel import mesh

FLOAT32 = jnp.float32


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
    return y if bias is None else _add_bias(y, bias[...])


def _add(y, bias) -> jax.Array:
    """Return y + bias in the type of y. The gradient of the bias is summed in float32."""
    return y + bias.astype(y.dtype)


def _add_bias_backward(bias, dy):
    """Return the gradients of y and of the bias."""
    rows = tuple(range(dy.ndim - bias.ndim))
    return dy, jnp.sum(dy, axis=rows, dtype=FLOAT32).astype(bias.dtype)


_add_bias = jax.custom_vjp(_add)
_add_bias.defvjp(lambda y, bias: (_add(y, bias), bias), _add_bias_backward)


class RMSNorm(nnx.Module):
    """RMSNorm: x / rms(x) * scale, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467).

    shape: sizes of the last axes of x, over which the mean is computed. names: their logical axes.
    """

    def __init__(self, shape: tuple[int, ...], eps: float, names: tuple[str, ...]):
        self.scale, self.eps = nnx.Param(jnp.ones(shape), out_sharding=names), eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return remat_policies.recompute(self._normalize)(x, self.scale[...])

    def _normalize(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        y, axes = x.astype(jnp.float32), tuple(range(-scale.ndim, 0))
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=axes, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm: (x - mean) / deviation * scale + bias, in float32.

    Source: Ba et al. 2016, arXiv:1607.06450. shape, names: see RMSNorm.
    """

    def __init__(self, shape: tuple[int, ...], eps: float, names: tuple[str, ...]):
        self.scale, self.eps = nnx.Param(jnp.ones(shape), out_sharding=names), eps
        self.bias = bias(names, shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        return remat_policies.recompute(self._normalize)(x, self.scale[...], self.bias[...])

    def _normalize(self, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        y, axes = x.astype(jnp.float32), tuple(range(-scale.ndim, 0))
        y = y - jnp.mean(y, axis=axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=axes, keepdims=True) + self.eps)
        return (y * scale + bias).astype(x.dtype)


def make_norm(
    model: schema.Model, *shape: int, names: tuple[str, ...] = ("norm",)
) -> RMSNorm | LayerNorm:
    """Return the kind of norm that model.norm names, over last axes of these sizes."""
    return {"rms": RMSNorm, "layer": LayerNorm}[model.norm](shape, model.norm_eps, names)


def project(x, weight, gradient_dtype: str = "float32", n_axes: int = 1) -> jax.Array:
    """Return the contraction of the last axes of x with the first axes of a weight.

    Shapes with one axis: [..., D], [D, ...] -> [..., ...]. The weight is cast to the type of x. The
    sum over tokens in the gradient of the weight is computed, and added over devices, in
    gradient_dtype.
    """
    return _project(x, weight, gradient_dtype, n_axes, False)


def project_shared(x, weight, gradient_dtype: str = "float32") -> jax.Array:
    """Return `project` for an x that several weights read.

    In the gradient of the weight, x is the left operand, so XLA on CPU transposes x once for all
    weights that read it. Otherwise, as in autodiff, the gradient of the result is the left operand.
    """
    return _project(x, weight, gradient_dtype, 1, True)


def _contract(x, weight, gradient_dtype, n_axes, is_shared) -> jax.Array:
    """Return the result of `project`."""
    last, first = tuple(range(-1, -n_axes - 1, -1)), tuple(range(n_axes - 1, -1, -1))
    return jnp.tensordot(x, weight.astype(x.dtype), (last, first))


def _project_forward(x, weight, gradient_dtype, n_axes, is_shared):
    # The residual is the float32 weight, which exists anyway, and not its copy in another type.
    return _contract(x, weight, gradient_dtype, n_axes, is_shared), (x, weight)


def _project_backward(gradient_dtype, n_axes, is_shared, residuals, dy):
    """Return the gradients of x and of the weight."""
    x, weight = residuals
    dweight = _weight_gradient(x, dy, gradient_dtype, n_axes, is_shared)
    return _input_gradient(dy, weight.astype(x.dtype), n_axes), dweight.astype(weight.dtype)


def _input_gradient(dy, weight, n_axes: int) -> jax.Array:
    """Return the gradient of x in `project`."""
    out = tuple(range(n_axes, weight.ndim))
    return jnp.tensordot(dy, weight, (tuple(n - weight.ndim for n in out), out))


def _weight_gradient(x, dy, gradient_dtype: str, n_axes: int, is_shared: bool) -> jax.Array:
    """Return the gradient of the weight in `project`; is_shared: see `project_shared`."""
    dtype = jnp.dtype(gradient_dtype)
    rows = tuple(range(x.ndim - n_axes))
    if x.dtype != FLOAT32:
        # CPUs support the float32 sum of bfloat16 products only in this order of the operands. The
        # barrier prevents XLA from exchanging them.
        product = jnp.tensordot(x, dy, (rows, rows), preferred_element_type=dtype)
        return jax.lax.optimization_barrier(product)
    if is_shared:
        return jnp.tensordot(x, dy, (rows, rows), preferred_element_type=dtype)
    transposed = jnp.tensordot(dy, x, (rows, rows), preferred_element_type=dtype)
    return jnp.moveaxis(transposed, tuple(range(-n_axes, 0)), tuple(range(n_axes)))


_project = jax.custom_vjp(_contract, nondiff_argnums=(2, 3, 4))
_project.defvjp(_project_forward, _project_backward)


def project_to_float32(x, weight, master, gradient_dtype: str = "float32") -> jax.Array:
    """Return the contraction of the last axis of x with the first axis of a weight, in float32.

    weight: the master weight in the type of x, with any sharding. master: the float32 weight. Its
    values are not read; it receives the gradient. Both products of the backward pass multiply
    arrays of the type of x, because the gradient of the result is cast to it.
    """
    return _project_to_float32(x, weight, master, gradient_dtype)


def _contract_in_float32(x, weight, master, gradient_dtype) -> jax.Array:
    """Return the result of `project_to_float32`."""
    return jnp.tensordot(x, weight, 1, preferred_element_type=FLOAT32)


def _project_to_float32_forward(x, weight, master, gradient_dtype):
    return _contract_in_float32(x, weight, master, gradient_dtype), (x, weight)


def _project_to_float32_backward(gradient_dtype, residuals, dy):
    """Return the gradients of x and of the master weight."""
    x, weight = residuals
    dy = dy.astype(x.dtype)
    dmaster = _weight_gradient(x, dy, gradient_dtype, 1, False).astype(FLOAT32)
    return _input_gradient(dy, weight, 1), None, dmaster


_project_to_float32 = jax.custom_vjp(_contract_in_float32, nondiff_argnums=(3,))
_project_to_float32.defvjp(_project_to_float32_forward, _project_to_float32_backward)


def _activate(kind: str, rules, inputs) -> jax.Array:
    """Return the activation function of an MLP, [B, T, F]."""
    first, up = inputs[0], inputs[-1]  # equal without a gate
    if kind == "gated":
        y = jax.nn.silu(first) * up
    else:
        y = jax.nn.gelu(first, approximate=kind != "exact_gelu")
        y = y * up if kind == "gated_gelu" else y
    return rules.constrain(y, "batch", "length", "mlp")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def activate_and_project(inputs, down, kind: str, gradient_dtype: str, rules) -> jax.Array:
    """Return the activation function of an MLP times the weight `down`, [B, T, D].

    inputs: (gate, up) of a gated MLP, otherwise (up,), each [B, T, F]. kind: model.mlp. Only the
    inputs are stored for the backward pass, which computes the activation function again.
    """
    return _contract(_activate(kind, rules, inputs), down, gradient_dtype, 1, False)


def _activate_and_project_forward(inputs, down, kind, gradient_dtype, rules):
    y = activate_and_project(inputs, down, kind, gradient_dtype, rules)
    return y, (inputs, down)


def _activate_and_project_backward(kind, gradient_dtype, rules, residuals, dy):
    """Return the gradients of the inputs and of the weight."""
    inputs, down = residuals
    inputs = tuple(remat_policies.delay(x, dy) for x in inputs)
    y, pullback = jax.vjp(functools.partial(_activate, kind, rules), inputs)
    dhidden, ddown = _project_backward(gradient_dtype, 1, False, (y, down), dy)
    return *pullback(dhidden), ddown


activate_and_project.defvjp(_activate_and_project_forward, _activate_and_project_backward)


class MLP(nnx.Module):
    """MLP of one layer, gated or with GELU as model.mlp selects.

    gated       (silu(x @ gate) * (x @ up)) @ down (Shazeer 2020, arXiv:2002.05202)
    gated_gelu  (gelu(x @ gate) * (x @ up)) @ down, with the tanh formula, as in Gemma
    gelu        gelu(x @ up) @ down, with the tanh formula of GELU (Hendrycks and Gimpel 2016,
                arXiv:1606.08415), as in GPT-2
    exact_gelu  the same with the error function, as in Pythia
    """

    def __init__(self, model: schema.Model, rngs: nnx.Rngs, d_ff: int, rules: mesh.ShardingRules):
        d, f = model.d_model, d_ff
        self.rules, self.gradient_dtype = rules, model.gradient_dtype
        is_gated, self.kind = model_sizes.is_gated(model), model.mlp
        self.gate = weight(rngs, ("embed", "mlp"), (d, f), d**-0.5) if is_gated else None
        self.up = weight(rngs, ("embed", "mlp"), (d, f), d**-0.5)
        self.down = weight(rngs, ("mlp", "embed"), (f, d), (2 * model.n_layers * f) ** -0.5)
        self.gate_bias = bias(("mlp",), (f,)) if is_gated and model.bias else None
        self.up_bias = bias(("mlp",), (f,)) if model.bias else None
        self.down_bias = bias(("norm",), (d,)) if model.bias else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        dtype = self.gradient_dtype
        up_BTF = add_bias(project_shared(x_BTD, self.up[...], dtype), self.up_bias)
        up_BTF = remat_policies.name_activation(up_BTF, "up")
        inputs = (up_BTF,)
        if self.gate is not None:
            gate_BTF = add_bias(project_shared(x_BTD, self.gate[...], dtype), self.gate_bias)
            inputs = (remat_policies.name_activation(gate_BTF, "gate"), up_BTF)
        y_BTD: jax.Array = activate_and_project(
            inputs, self.down[...], self.kind, dtype, self.rules
        )
        y_BTD = add_bias(y_BTD, self.down_bias)
        return remat_policies.name_activation(y_BTD, "mlp_output")
