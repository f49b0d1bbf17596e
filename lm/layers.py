"""What layers are made of: weights that name their axes, the norm, the gated MLP.

Tensor names end in their axes: B batch, T time, D d_model, F d_ff.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lm import config, mesh

nnx.set_graph_mode(False)
nnx.set_graph_updates(False)
nnx.use_eager_sharding(False)  # jit's out_shardings place the weights


def weight(rngs: nnx.Rngs, names: tuple[str, ...], shape: tuple[int, ...], std: float) -> nnx.Param:
    """A normally distributed float32 weight whose axes are called `names` (see mesh.RULES)."""
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, out_sharding=names)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32), out_sharding=("norm",))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-6)
        return (y * self.scale[...]).astype(x.dtype)


class MLP(nnx.Module):
    """silu(x @ gate) * (x @ up) @ down (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs, d_ff: int):
        d, f = model.d_model, d_ff
        self.gate = weight(rngs, ("embed", "mlp"), (d, f), d**-0.5)
        self.up = weight(rngs, ("embed", "mlp"), (d, f), d**-0.5)
        self.down = weight(rngs, ("mlp", "embed"), (f, d), (2 * model.n_layers * f) ** -0.5)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        dtype = x_BTD.dtype
        gate_BTF, up_BTF = x_BTD @ self.gate[...].astype(dtype), x_BTD @ self.up[...].astype(dtype)
        y_BTF = mesh.constrain(jax.nn.silu(gate_BTF) * up_BTF, "batch", "length", "mlp")
        return y_BTF @ self.down[...].astype(dtype)
