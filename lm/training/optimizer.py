"""Trainable weights, learning-rate schedules and optimizers."""

import dataclasses
import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from lm.config import field_names, optimizer_config, schema
from lm.config.schedules import batch_size_schedule
from lm.model import lora, parametrization
from lm.parallel import mesh

BIAS_AXIS = "balance"  # axis of the router biases


def trainable_mask(optim: schema.Optimizer, model: schema.Model, axes: dict) -> dict:
    """Return the mask of the trainable weights, a tree of booleans. axes: axis names by weight.

    A name in optim.frozen is a part of a weight's path ("embed", "mlp", "query"), or else one of
    its axes ("heads", "vocab"). With model.lora_rank only the adapters are trainable. Raises
    ValueError for a name that no weight has. Router biases are not trained, see
    `updates_router_biases`.
    """
    is_frozen = _frozen_by_name(optim, axes)

    def is_trainable(path: tuple[str, ...], weight_axes: tuple) -> bool:
        is_selected = path[0] == "lora" if model.lora_rank else BIAS_AXIS not in weight_axes
        return is_selected and not is_frozen(path, weight_axes)

    flags = lora.map_leaves(axes, is_trainable)
    if not any(flag for _, flag in lora.iterate_leaves(flags)):
        raise ValueError(f"optim.frozen={optim.frozen!r} freezes all weights: list fewer names")
    return flags


def updates_router_biases(optim: schema.Optimizer, model: schema.Model, axes: dict) -> bool:
    """Return True if a step moves the router biases, see moe.update_router_biases.

    Biases with a name in optim.frozen, and those of a model with adapters, do not move.
    """
    if model.load_balancing != "bias" or not model.n_experts or model.lora_rank:
        return False
    is_frozen = _frozen_by_name(optim, axes)
    leaves = lora.iterate_leaves(axes)
    return not any(is_frozen(path, names) for path, names in leaves if BIAS_AXIS in names)


def _frozen_by_name(optim: schema.Optimizer, axes: dict) -> Callable:
    """Return is_frozen(path, axes of a weight): True if optim.frozen names the weight.

    Raises ValueError for a name that no weight has.
    """
    names = [name for name in optim.frozen.split(",") if name]
    path_parts = {part for path, _ in lora.iterate_leaves(axes) for part in path}
    axis_names = {axis for _, weight_axes in lora.iterate_leaves(axes) for axis in weight_axes}
    axis_names -= path_parts
    allowed = sorted(path_parts | axis_names)
    for name in names:
        if name not in allowed:
            raise ValueError("optim.frozen: " + field_names.suggest_names(name, allowed))

    def is_frozen(path: tuple[str, ...], weight_axes: tuple) -> bool:
        return any(name in path or (name in axis_names and name in weight_axes) for name in names)

    return is_frozen


def partition(weights: dict, is_trainable: dict, wanted: bool = True) -> dict:
    """Return the trainable weights, or the frozen weights, without empty branches of the tree.

    is_trainable: see `trainable_mask`. wanted: True for the trainable weights, False for the
    frozen weights.
    """
    selected = {}
    for name, value in weights.items():
        if isinstance(value, dict):
            inner = partition(value, is_trainable[name], wanted)
            selected |= {name: inner} if inner else {}
        elif is_trainable[name] == wanted:
            selected[name] = value
    return selected


def combine(a: dict, b: dict) -> dict:
    """Return the union of two trees without common leaves. The inverse of `partition`."""
    branches = {name: combine(a[name], b[name]) for name in a.keys() & b.keys()}
    return a | b | branches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInputs:
    """Numbers that are arguments of the compiled step.

    lr: peak learning rate, float32 []. weight_decay: a tree like the trainable weights with the
    decay coefficient of each weight, float32 []; the update multiplies it by the learning rate. For
    vmapped runs, which may differ in both, each array has a leading axis over the runs
    (lm/training/vmapped_runs.py). layer_numbers: see lm/model/kernels/layer_loop.py, equal for
    vmapped runs.
    """

    lr: typing.Any
    weight_decay: typing.Any
    layer_numbers: typing.Any = ()


class Optimizer(typing.NamedTuple):
    """The functions of an optimizer over the trainable weights.

    init(weights) -> state
    update(gradient, state, weights, inputs=StepInputs) -> (change of the weights, state)
    learning_rate(step, peak) -> learning rate
    """

    init: Callable
    update: Callable
    learning_rate: Callable


def learning_rate_schedule(optim: schema.Optimizer, steps: int) -> Callable:
    """Return lr(step, peak=optim.lr), the learning rate at a step that counts from 0.

    steps: number of steps of the run. optim: without fields in tokens, see
    batch_size_schedule.resolve_tokens. See optimizer_config.compute_learning_rate. The batch size
    does not change the learning rate.
    """

    def learning_rate(step, peak=optim.lr):
        return optimizer_config.compute_learning_rate(optim, steps, step, jnp, peak)

    return learning_rate


def inputs(optim: schema.Optimizer, model: schema.Model, axes: dict) -> StepInputs:
    """Return the optimizer inputs of one run: learning rate and weight decay per array, in float32.

    axes: axis names of the trainable weights. The product of weight decay and parametrization
    factor is rounded to float32 once. The compiled step would round both factors and the product.
    An independent weight decay is divided by the peak learning rate, which the update multiplies.
    """
    group_factors = {
        "input": optim.embedding_decay_factor,
        "output": optim.head_decay_factor,
        "norm": optim.norm_decay_factor,
    }
    divisor = optim.lr if optim.independent_weight_decay else 1.0

    def decay(names: tuple) -> np.float32:
        factors = parametrization.role_factors(model, names, optim.name)
        group_factor = group_factors.get(parametrization.weight_role(names), 1.0)
        return np.float32(optim.weight_decay * factors.decay * group_factor / divisor)

    return StepInputs(np.float32(optim.lr), jax.tree.map(decay, axes, is_leaf=mesh.is_axis_names))


def make_optimizer(
    optim: schema.Optimizer,
    model: schema.Model,
    steps: int,
    axes: dict,
    step_offset: float = 0.0,
) -> Optimizer:
    """Return the optimizer of the trainable weights, with decoupled weight decay.

    adamw  Loshchilov and Hutter 2019, arXiv:1711.05101
    lion   Chen et al. 2023, arXiv:2302.06675; needs a learning rate about 5 times smaller
    muon   Jordan 2024 for the hidden matrices, with updates scaled to the size of AdamW updates
           (Liu et al. 2025, arXiv:2502.16982); AdamW for the other weights

    axes: axis names of the trainable weights, which determine the parametrization factors of each
    weight. step_offset: correction of the number of steps of the second moment, see
    `_scale_by_adam`. The train step clips the gradient before `update`.
    """
    factors = jax.tree.map(
        lambda names: _layer_factors(optim, model, names), axes, is_leaf=mesh.is_axis_names
    )
    rule = {
        "adamw": lambda: _scale_by_adam(optim, step_offset),
        "lion": lambda: optax.scale_by_lion(optim.b1, optim.b2),
        "muon": lambda: _muon(optim, axes, step_offset),
    }[optim.name]()
    rule = _store_first_moments(rule, optim.moment_dtype)
    learning_rate = learning_rate_schedule(optim, steps)
    init, update = optax.chain(
        _divide_by_epsilon(factors), rule, _add_decay(factors), _scale_by_rate(learning_rate)
    )
    return Optimizer(init, update, learning_rate)


def make_stage_optimizer(
    run: schema.Run, stage: batch_size_schedule.Stage, axes: dict
) -> Optimizer:
    """Return the optimizer of steps of equal batch size. axes: names of the trainable weights."""
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
    optim = batch_size_schedule.resolve_tokens(run.optim, schedule, run.steps, stage)
    step_offset = stage.step_offset if run.optim.b2_half_life_tokens else 0.0
    return make_optimizer(optim, run.model, run.steps, axes, step_offset)


def clip_by_global_norm(gradient: dict, limit: float) -> tuple[dict, jax.Array]:
    """Return the gradient, scaled to a global norm of at most `limit`, and its original norm.

    limit: 0 does not clip.
    """
    norm = optax.tree.norm(gradient)
    if not limit:
        return gradient, norm
    clipped, _ = optax.clip_by_global_norm(limit).update(gradient, optax.EmptyState())
    return typing.cast(dict, clipped), norm


def _layer_factors(
    optim: schema.Optimizer, model: schema.Model, names: tuple
) -> parametrization.Factors:
    """Return the factors of a weight, with the layer-wise learning rates of optim.layer_decay.

    The learning rate of a layer is multiplied by layer_decay for each layer above it. The factor of
    the embedding is layer_decay ** n_layers (Howard and Ruder 2018, arXiv:1801.06146).
    """
    factors = parametrization.role_factors(model, names, optim.name)
    if optim.layer_decay == 1.0:
        return factors
    n_layers_above = np.zeros(1)
    if names[0] == "layers":
        n_layers_above = np.arange(model.n_layers - 1, -1, -1)
        n_layers_above = n_layers_above.reshape(-1, *[1] * (len(names) - 1))
    elif parametrization.weight_role(names) == "input":
        n_layers_above = np.full(1, model.n_layers)
    lr = (factors.lr * optim.layer_decay**n_layers_above).astype(np.float32)
    return dataclasses.replace(factors, lr=lr)


def _divide_by_epsilon(factors: dict) -> optax.GradientTransformation:
    """Divide each gradient by its epsilon factor f: Adam then has an epsilon of f * optim.eps."""
    return optax.stateless(
        lambda gradient, _: jax.tree.map(lambda g, factor: g / factor.epsilon, gradient, factors)
    )


def _add_decay(factors: dict) -> optax.GradientTransformationExtraArgs:
    """Add the weight decay and multiply by the learning-rate factor of each weight."""

    def update(updates, state, params=None, **extra_args):
        def add_decay(update, weight, factor, decay):
            return factor.lr * (update + decay * weight)

        decays = extra_args["inputs"].weight_decay
        return jax.tree.map(add_decay, updates, params, factors, decays), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scale_by_rate(learning_rate: Callable) -> optax.GradientTransformationExtraArgs:
    """Multiply by the negative learning rate. The state counts the updates."""

    def init(params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        rate = -1 * learning_rate(state.count, extra_args["inputs"].lr)
        updates = jax.tree.map(lambda u: jnp.asarray(rate, u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _store_first_moments(
    rule: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
    """Return a rule that computes in float32 and stores its first moments in another type.

    dtype: optim.moment_dtype. In the states of optax, the attribute `mu` is the first moment.
    """
    if dtype == "float32":
        return rule

    def cast(state, dtype: str):
        def cast_leaf(path, leaf):
            is_first_moment = any(getattr(key, "name", "") == "mu" for key in path)
            return leaf.astype(dtype) if is_first_moment else leaf

        return jax.tree_util.tree_map_with_path(cast_leaf, state)

    def init(params):
        return cast(rule.init(params), dtype)

    def update(updates, state, params=None):
        updates, state = rule.update(updates, cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _scale_by_adam(optim: schema.Optimizer, step_offset: float) -> optax.GradientTransformation:
    """Return Adam (Kingma and Ba 2015, arXiv:1412.6980) without the learning rate.

    step_offset: 0, or the step_offset of a stage with optim.b2_half_life_tokens. The smaller
    batches of earlier stages then had a larger b2. The product of the decays of all steps is b2 to
    the power of the steps plus the offset, and corrects the bias of the second moment.
    """
    adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
    if not step_offset:
        return adam

    def update(updates, state, params=None):
        mu = optax.tree.update_moment(updates, state.mu, optim.b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, optim.b2, 2)
        count = optax.safe_increment(state.count)
        n_steps = jnp.maximum(count + step_offset, 1.0)  # skipped updates do not count
        mu_hat = optax.tree.bias_correction(mu, optim.b1, count)
        nu_hat = optax.tree.bias_correction(nu, optim.b2, n_steps)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + optim.eps), mu_hat, nu_hat)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(adam.init, update)


def _muon(optim: schema.Optimizer, axes: dict, step_offset: float) -> optax.GradientTransformation:
    """Return Muon for the matrices of the layers and Adam for the other weights.

    The role of a weight decides: see parametrization.MATRIX_ROLES. Each factor of a low-rank
    adapter is a matrix of its own.
    """

    def is_matrix(names: tuple) -> bool:
        return parametrization.weight_role(names) in parametrization.MATRIX_ROLES

    def dimension_numbers(names: tuple, weight):
        if not is_matrix(names):
            return weight  # optax has replaced this leaf with a mask
        _, inner, outer = parametrization.matrix_axes(names)
        return optax.contrib.MuonDimensionNumbers(tuple(inner), tuple(outer))

    map_names = functools.partial(jax.tree.map, is_leaf=mesh.is_axis_names)
    muon = optax.contrib.muon(
        learning_rate=-1.0,  # the learning rate is applied later, with its sign
        muon_weight_dimension_numbers=lambda weights: map_names(dimension_numbers, axes, weights),
        consistent_rms=0.2,
    )
    adam = _scale_by_adam(optim, step_offset)
    labels = map_names(lambda names: "muon" if is_matrix(names) else "adam", axes)
    return optax.partition({"muon": muon, "adam": adam}, labels)
