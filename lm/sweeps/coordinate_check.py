"""The coordinate check: how large activations are in the first steps, and how far they move.

    rows = coordinate_check.measure_activations(run, batches, device_mesh)    # a row a step and
    part
    lr_analysis.activation_exponents(rows, "width")                              # exponents, from
    those of many shapes

Where a parametrization lets hyperparameters transfer, what a few steps change in an activation does
not grow with width (Yang et al. 2022, arXiv:2203.03466, section D.1) or depth (Dey et al. 2025,
arXiv:2505.01618). At small widths and in the first steps much of a change is a sum of random signs,
which falls as a root: exponents between -0.5 and 0. The logits are the last to leave it.

Tensor names end in their axes: B batch, T time, D d_model, V vocabulary, L layers.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import schema
from lm.model import attention, parametrization, transformer
from lm.parallel import mesh
from lm.training import step

PARTS = ("embedding", "attention", "mlp", "residual", "logits")


def measure_activations(
    run: schema.Run, batches: Sequence[dict], device_mesh: jax.sharding.Mesh
) -> list[dict]:
    """Trains on each of `batches` but the last, and looks at the first before, between and after.

    A row a step and part: {"rule", "width", "depth", "seed", "step", "part", "rms", "change"}, with
    the root mean square of an activation, and of its difference from step 0. The learning rate is
    run.optim.lr at once, without decay of any kind: that of the schedule would hide what is asked.
    """
    run = dataclasses.replace(run, steps=max(len(batches), 2))
    run.optim = dataclasses.replace(
        run.optim, warmup=0.0, schedule="constant", weight_decay=0.0, clip_norm=0.0
    )
    shape = run.model
    about = {"rule": shape.parametrization, "width": shape.d_model, "depth": shape.n_layers}
    program = step.build_train_functions(run, device_mesh)
    look = jax.jit(
        lambda params, tokens_BT: collect_activations(shape, params, tokens_BT, program.rules)
    )
    rows, start = [], {}
    with jax.set_mesh(device_mesh):
        state = program.init(run.seed)
        placed = [mesh.put_batch(device_mesh, batch) for batch in batches]
        for step_index in range(len(batches)):
            seen = jax.device_get(look(state["params"], placed[0]["tokens"][:, :-1]))
            start = start or seen
            rows += [
                about
                | {"seed": run.seed, "step": step_index, "part": part}
                | {"rms": _rms(seen[part]), "change": _rms(seen[part] - start[part])}
                for part in PARTS
            ]
            if step_index + 1 < len(batches):
                state, _ = program.step(state, placed[step_index], program.inputs)
    return rows


def collect_activations(
    shape: schema.Model, params: dict, tokens_BT: jax.Array, rules: mesh.ShardingRules
) -> dict[str, jax.Array]:
    """Each of PARTS: attention and MLP are what the last layer's give, before the branch's factor.

    residual: the stream that leaves the last layer, not yet normed.
    """
    decoder = transformer.make_decoder(shape, params, rules)
    times_T = jnp.arange(tokens_BT.shape[1])

    def attend(q_BTNH, k_BTKH, v_BTKH):
        if not shape.learned_positions:
            q_BTNH, k_BTKH = (
                transformer.rotary_embedding(x, shape.rope_theta, times_T) for x in (q_BTNH, k_BTKH)
            )
        return attention.attend(shape, rules, q_BTNH, k_BTKH, v_BTKH, None)

    def layer(x_BTD, block):
        attention_BTD = block.attention(block.attention_norm(x_BTD), attend)
        after_BTD, _ = block(x_BTD, attend)
        branches_BTD = (after_BTD - x_BTD) / parametrization.residual_scale(shape)
        return after_BTD, (attention_BTD, branches_BTD - attention_BTD)

    first_BTD = decoder.embedded(tokens_BT, transformer.positions_in_segment(tokens_BT, None))
    last_BTD, (attention_LBTD, mlp_LBTD) = jax.lax.scan(layer, first_BTD, decoder.blocks)
    return {
        "embedding": first_BTD,
        "attention": attention_LBTD[-1],
        "mlp": mlp_LBTD[-1],
        "residual": last_BTD,
        "logits": decoder.logits(decoder.norm(last_BTD), decoder.head_weight()),
    }


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
