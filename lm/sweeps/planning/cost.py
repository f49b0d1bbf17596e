"""What a run will cost, before paying for it; and FLOPs counted from a real program."""

import math

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from lm.config import axis_rules, fields, flops, schema
from lm.parallel import mesh
from lm.sweeps.planning import aot_compile, hardware, roofline
from lm.training import step

# Share of the matmul peak a train step reaches, by width: top * d_model / (d_model + half). Fitted
# to runs on two cores (CPU); assumed, not measured, elsewhere.
ASSUMED_MFU = {
    #        top   half
    "cpu":  (0.60,   90),
    "gpu":  (0.50,  700),
    "tpu":  (0.55,  700),
}  # fmt: skip


def estimate_cost(run: schema.Run, peak_flops_per_second: float, platform: str = "cpu") -> dict:
    """One row of a plan: shape, exact counts, and the seconds of training it should take.

    tokens are all that the model has seen; of a branch, flops and seconds are those of its own
    steps, and flops_shared those of the run that it goes on from.
    """
    facts = flops.run_facts(run)
    shared = run.start.step / run.steps if run.start.restore == "full_state" else 0.0
    n_flops = facts["flops"] * (1 - shared)
    top, half = ASSUMED_MFU.get(platform, ASSUMED_MFU["gpu"])
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
        "flops": n_flops,
        "flops_shared": facts["flops"] * shared,
        "seconds": n_flops / (peak_flops_per_second * reached),
    }


def count_step_flops(run: schema.Run) -> int:
    """FLOPs of the matrix products in one real train step, walked through its jaxpr.

    Unlike flops.flops_per_token this counts what is executed: recomputation under model.remat, and
    only the blocks of scores that model.attention_query_blocks leaves. Nothing is computed or
    allocated.
    """
    program = step.build_train_functions(run, mesh.make_mesh(schema.Mesh(), jax.devices()[:1]))
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


# MERGED DOCSTRING of lm.quote:
# """What a run would cost on a named machine: a flat row of bytes, seconds and device-hours.
#
# row(run, hardware.parse_target("tpu:v5p:8x16x16"))["bytes_over"]        0.0: it fits
# """


def plan_run(run: schema.Run, target: hardware.Target, compiling: bool = True) -> dict:
    """One row of a plan.

    how               "compiled": bytes and collectives are those of the target's own compiler;
                      "estimate": roofline.estimate_step's (no compiler here, or none asked for)
    bytes_*           of one device; bytes_over is what is too much for it, 0 if it fits
    roofline_seconds  of a step at best: the longest of compute_, memory_ and network_seconds, all
                      else hidden behind it, everything at the vendor's speed; None where it cannot
                      run. compute_ and memory_seconds are arithmetic in either case
    step_seconds      expected: at the share of the peak that cost.ASSUMED_MFU assumes, and not
                      below
                      the roofline; hours and device_hours are of the whole run at this rate
    """
    shape = axis_rules.resolve_mesh_shape(vars(run.mesh), target.n_devices)
    guess = roofline.estimate_step(run, target, roofline.list_weights(run.model))
    return combine_estimates(
        run, target, shape, guess, aot_compile.compile_step(run, target) if compiling else None
    )


def combine_estimates(
    run: schema.Run,
    target: hardware.Target,
    shape: dict[str, int],
    guess: roofline.Estimate,
    made: aot_compile.Compiled | None,
) -> dict:
    """The row of an estimate and, where there is one, of what the compiler made."""
    facts, knobs = flops.run_facts(run), schema.flatten(run)
    best = made or guess
    over = made.over if made else max(0.0, guess.bytes - target.spec.memory)
    seconds = {
        "compute": guess.compute_seconds,
        "memory": guess.memory_seconds,
        "network": best.network_seconds if over == 0 else guess.network_seconds,
    }
    bound = max(seconds, key=lambda part: seconds[part])
    cost = estimate_cost(run, target.peak(run.model.dtype), target.platform)
    step = max(cost["seconds"] / run.steps, seconds[bound])
    hours = step * run.steps / 3600
    return {
        "name": run.name,
        "target": target.name,
        "devices": target.n_devices,
        "how": "compiled" if made else "estimate",
        "mesh": {axis: size for axis, size in shape.items() if size > 1},
        **{name: knobs[name] for name in fields.fields_with("plan", schema.Run)},
        "params_total": facts["params.total"],
        "params_active": facts["params.active"],
        "tokens": facts["tokens"],
        "flops": facts["flops"],
        "step_flops": guess.flops,
        "bytes_params": best.params,
        "bytes_optimizer": best.optimizer,
        "bytes_temporaries": best.temporaries,
        "bytes_needed": best.bytes,
        "bytes_memory": target.spec.memory,
        "bytes_over": over,
        "collectives": aot_compile.total_traffic(made.collectives) if made else {},
        **{f"{part}_seconds": value for part, value in seconds.items()},
        "bound": bound,
        "roofline_seconds": None if over else seconds[bound],
        "step_seconds": None if over else step,
        "reached": facts["flops"] / run.steps / target.peak(run.model.dtype) / step,
        "hours": None if over else hours,
        "device_hours": None if over else hours * target.n_devices,
        "compile_seconds": made.seconds if made else None,
    }
