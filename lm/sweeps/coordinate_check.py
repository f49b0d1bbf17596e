"""Coordinate check: scale and change of activations in the first training steps.

    rows = coordinate_check.measure_activations(run, batches, device_mesh)
    lr_analysis.activation_exponents(rows, "width")      # from the rows of several widths

Hyperparameters transfer between sizes if the change of an activation after a few steps does not
grow with width (Yang et al. 2022, arXiv:2203.03466, section D.1) or with depth (Dey et al. 2025,
arXiv:2505.01618). At small widths and in the first steps, a large part of the change is a sum of
terms with random signs. This part decreases with the square root of the width, so exponents are
between -0.5 and 0. The logits approach 0 last.

Tensor names end in their axes: B batch, T time, D d_model, V vocabulary, L layers, N heads, K
key-value heads, H d_head.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import schema
from lm.model import attention, parametrization, position_encoding, transformer
from lm.parallel import mesh
from lm.training import step

PARTS = ("embedding", "attention", "mlp", "residual", "logits")


def measure_activations(
    run: schema.Run, batches: Sequence[dict], device_mesh: jax.sharding.Mesh
) -> list[dict]:
    """Train on all batches except the last, and measure activations on the first batch.

    The activations are measured before the first step and after each step. Return one row per step
    and part: {"rule", "width", "depth", "seed", "step", "part", "rms", "change"}. rms: root mean
    square of the activation. change: root mean square of its difference from step 0. The learning
    rate is run.optim.lr in all steps, without warm-up, decay, weight decay or clipping, because a
    schedule would hide the effect of the rate.
    """
    run = dataclasses.replace(run, steps=max(len(batches), 2))
    # Fields with a number of steps or tokens would replace the fractions.
    no_schedule = {"warmup_steps": 0, "warmup_tokens": 0, "decay_steps": 0, "decay_tokens": 0}
    run.optim = dataclasses.replace(
        run.optim, warmup=0.0, schedule="constant", weight_decay=0.0, clip_norm=0.0, **no_schedule
    )
    model = run.model
    shared_columns = {
        "rule": model.parametrization,
        "width": model.d_model,
        "depth": model.n_layers,
        "seed": run.seed,
    }
    program = step.build_train_functions(run, device_mesh)
    collect = jax.jit(
        lambda params, tokens_BT: collect_activations(model, params, tokens_BT, program.rules)
    )
    rows = []
    initial: dict[str, np.ndarray] = {}
    with jax.set_mesh(device_mesh):
        state = program.init(run.seed)
        device_batches = [mesh.put_batch(device_mesh, batch) for batch in batches]
        tokens_BT = device_batches[0]["tokens"][:, :-1]
        for step_index in range(len(batches)):
            activations = jax.device_get(collect(state["params"], tokens_BT))
            initial = initial or activations
            for part in PARTS:
                rms = _root_mean_square(activations[part])
                change = _root_mean_square(activations[part] - initial[part])
                row = {"step": step_index, "part": part, "rms": rms, "change": change}
                rows.append(shared_columns | row)
            if step_index + 1 < len(batches):
                state, _ = program.step(state, device_batches[step_index], program.inputs)
    return rows


def collect_activations(
    model: schema.Model, params: dict, tokens_BT: jax.Array, rules: mesh.ShardingRules
) -> dict[str, jax.Array]:
    """Return the activations of each of PARTS.

    attention, mlp: outputs of the last layer's branches, without the residual scale. residual: the
    residual stream after the last layer, before the final norm.
    """
    decoder = transformer.make_decoder(model, params, rules)
    tables = position_encoding.make_tables(model, jnp.arange(tokens_BT.shape[1]))

    def layer(x_BTD, stacked):
        attend = attention.make_attend(model, rules, tables, stacked.is_local, None)
        attention_BTD = stacked.block.attention_branch(x_BTD, attend)
        output_BTD, _ = stacked.block(x_BTD, attend)
        branches_BTD = (output_BTD - x_BTD) / parametrization.residual_scale(model)
        return output_BTD, (attention_BTD, branches_BTD - attention_BTD)

    times_BT = position_encoding.positions_in_segment(tokens_BT, None)
    embedding_BTD = decoder.embedded(tokens_BT, times_BT)
    residual_BTD, (attention_LBTD, mlp_LBTD) = jax.lax.scan(
        layer, embedding_BTD, decoder.stacked_layers()
    )
    return {
        "embedding": embedding_BTD,
        "attention": attention_LBTD[-1],
        "mlp": mlp_LBTD[-1],
        "residual": residual_BTD,
        "logits": decoder.logits(decoder.norm(residual_BTD), *decoder.head_weight()),
    }


def _root_mean_square(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
