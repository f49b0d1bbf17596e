"""What a run will cost, before paying for it; and FLOPs counted from a real program."""

import math

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from lm import config, mesh, programs, sizes

# Share of the matmul peak a train step reaches, by width: top * d_model / (d_model + half). Fitted
# to runs on two cores (CPU); assumed, not measured, elsewhere.
REACHED = {
    #        top   half
    "cpu":  (0.60,   90),
    "gpu":  (0.50,  700),
    "tpu":  (0.55,  700),
}  # fmt: skip


def cost(run: config.Run, peak_flops_per_second: float, platform: str = "cpu") -> dict:
    """One row of a plan: shape, exact counts, and the seconds of training it should take.

    tokens are all that the model has seen; of a branch, flops and seconds are those of its own
    steps, and flops_shared those of the run that it goes on from.
    """
    facts = sizes.facts(run)
    shared = run.start.step / run.steps if run.start.keep == "state" else 0.0
    flops = facts["flops"] * (1 - shared)
    top, half = REACHED.get(platform, REACHED["gpu"])
    reached = top * run.model.d_model / (run.model.d_model + half)
    return {
        "name": run.name,
        "d_model": run.model.d_model,
        "n_layers": run.model.n_layers,
        "n_heads": run.model.n_heads,
        "params_total": facts["params.total"],
        "params_non_embedding": facts["params.non_embedding"],
        "steps": run.steps,
        "tokens": facts["tokens"],
        "flops": flops,
        "flops_shared": facts["flops"] * shared,
        "seconds": flops / (peak_flops_per_second * reached),
    }


def step_flops(run: config.Run) -> int:
    """FLOPs of the matrix products in one real train step, walked through its jaxpr.

    Unlike sizes.flops_per_token this counts what is executed: recomputation under model.remat, and
    only the blocks of scores that model.attention_blocks leaves. Nothing is computed or allocated.
    """
    program = programs.build(run, mesh.make(config.Mesh(), jax.devices()[:1]))
    arguments = program.abstract, program.batch, program.inputs
    return matmul_flops(jax.make_jaxpr(program.step)(*arguments).jaxpr)


def matmul_flops(jaxpr: Jaxpr) -> int:
    """2 x multiply-adds of every dot_general, loop bodies times their length.

    A ragged_dot counts each row once, with its own group: what an accelerator does. XLA's own
    cost_analysis() counts the body of a scan once, whatever its length.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
            total += 2 * depth * math.prod(_shape(equation.outvars[0]))
        if equation.primitive.name == "ragged_dot_general":
            total += _ragged_flops(equation)
        times = _times(equation)
        for inner in _jaxprs_in(list(equation.params.values())):
            total += times * matmul_flops(inner)
    return total


def _times(equation) -> int:
    """How often the body of an equation runs: turns of a loop, devices of a shard_map."""
    if equation.primitive.name == "shard_map":
        return math.prod(equation.params["mesh"].shape.values())
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def _ragged_flops(equation) -> int:
    """Of a product in which each row meets the matrix of its own group alone."""
    dims = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = dims.dot_dimension_numbers
    depth = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
    once = 2 * depth * math.prod(_shape(equation.outvars[0]))
    # Where rows are summed over, the result has an axis of groups: a row counts in one of them.
    is_summed = dims.lhs_ragged_dimensions[0] in contracted
    return once // _shape(equation.invars[2])[-1] if is_summed else once


def _shape(variable) -> tuple[int, ...]:
    return variable.aval.shape


def _jaxprs_in(values: list) -> list[Jaxpr]:
    found = []
    for value in values:
        if isinstance(value, ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, Jaxpr):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _jaxprs_in(list(value))
    return found
