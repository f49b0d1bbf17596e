"""The loop over the layers of a model: compiled as a loop, or as one layer after another.

    x_BTD, routing = run_layers(run_layer, x_BTD, stacked, is_unrolled, layer_numbers)

XLA on CPU compiles equal operations once. With constant layer numbers the operations of two layers
differ, because they read their weights at different places of the stacked arrays. If the layer
numbers are arguments of the compiled function, the operations are equal. Eight layers then compile
in 0.6 times the processor time, and the numeric results have equal bits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import schema
from lm.model.kernels import remat_policies


def make_layer_numbers(model: schema.Model, platform: str) -> tuple[np.int32, ...]:
    """Return the layer numbers that a compiled function of a run needs as arguments.

    They are () for a loop over the layers, and on accelerators, where this was not measured.
    """
    if platform != "cpu" or not remat_policies.is_unrolled(model):
        return ()
    return tuple(np.int32(i) for i in range(model.n_layers))


def run_layers(
    run_layer: Callable,
    x_BTD: jax.Array,
    stacked,
    is_unrolled: bool,
    layer_numbers: tuple[jax.Array, ...] = (),
) -> tuple[jax.Array, dict]:
    """Return (x_BTD, routing) after all layers; routing has a leading axis of layers.

    run_layer: function of (x_BTD, layer) that returns (x_BTD, routing). stacked: a tree of arrays
    with a leading axis of layers. is_unrolled: the compiled function has no loop. layer_numbers:
    the numbers from 0 to n_layers - 1, int32 [] each, as arguments of the compiled function; () has
    constant numbers.
    """
    if not (is_unrolled and layer_numbers):
        n_layers = len(jax.tree.leaves(stacked)[0])
        return jax.lax.scan(run_layer, x_BTD, stacked, unroll=n_layers if is_unrolled else 1)
    run_layer, statistics = jax.jit(run_layer, inline=True), []  # traced once
    for layer in _list_layers(stacked, layer_numbers):
        x_BTD, routing = run_layer(x_BTD, layer)
        statistics.append(routing)
    return x_BTD, jax.tree.map(lambda *layers: jnp.stack(layers), *statistics)


def _list_layers(stacked, layer_numbers: tuple[jax.Array, ...]) -> list:
    """Return the tree of each layer. Arrays that are not of floats, as flags, are constants."""
    leaves, structure = jax.tree.flatten(stacked)
    columns = [
        split_layers(leaf, layer_numbers)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else [jnp.asarray(value) for value in np.asarray(leaf)]
        for leaf in leaves
    ]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*columns, strict=True)]


@jax.custom_vjp
def split_layers(stacked: jax.Array, layer_numbers: tuple[jax.Array, ...]) -> list[jax.Array]:
    """Return the array of each layer, of an array of floats with a leading axis of layers.

    The gradient is a stack of the gradients of the layers, as with constant layer numbers. JAX's
    own gradient would add an array of all layers per layer.
    """
    return [
        jax.lax.dynamic_index_in_dim(stacked, number, axis=0, keepdims=False)
        for number in layer_numbers
    ]


def _split_forward(stacked: jax.Array, layer_numbers: tuple) -> tuple[list[jax.Array], None]:
    return split_layers(stacked, layer_numbers), None


def _split_backward(_, gradients: list[jax.Array]) -> tuple[jax.Array, None]:
    return jnp.stack(gradients), None


split_layers.defvjp(_split_forward, _split_backward)
