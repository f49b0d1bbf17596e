"""Cost estimate of a run: FLOPs, memory, time and device-hours.

    cost.estimate_cost(run, peak_flops_per_second=1e12)["seconds"]      # on the local devices
    row = cost.plan_run(run, hardware.parse_target("tpu:v5p:8x16x16"))  # on target hardware
    row["bytes_over"]                                                   # 0.0 if the run fits

`count_step_flops` counts the FLOPs of a traced train step.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from lm.config import axis_rules, fields, flops, schema
from lm.config.schedules import batch_size_schedule
from lm.model import inference_memory, memory_estimate
from lm.parallel import mesh
from lm.sweeps.planning import aot_compile, evaluation_program, hardware, roofline
from lm.training import step

# MFU (model FLOPs utilization) of a train step: limit * d_model / (d_model + half_width). The
# values of cpu are fitted to runs on two cores. The others are assumed, not measured.
ASSUMED_MFU = {
    #      limit  half_width
    "cpu":  (0.60,   90),
    "gpu":  (0.50,  700),
    "tpu":  (0.55,  700),
}  # fmt: skip


def estimate_cost(run: schema.Run, peak_flops_per_second: float, platform: str = "cpu") -> dict:
    """Return one row of a plan: shape, exact counts, and the expected seconds of training.

    A step takes at least the seconds of roofline.launch_seconds.

    peak_flops_per_second: peak in matrix products, of all devices. platform: a key of ASSUMED_MFU.
    tokens: all tokens on which the final model was trained. flops and seconds: of the run's own
    steps. flops_shared: of the steps of the trunk run from which a cooldown branch starts.
    """
    facts = flops.run_facts(run)
    count_tokens = batch_size_schedule.BatchSizeSchedule.from_config(run.data).count_tokens
    n_shared_steps = run.start.step if run.start.restore == "full_state" else 0
    shared = count_tokens(n_shared_steps) / facts["tokens"]
    n_flops = facts["flops"] * (1 - shared)
    limit, half_width = ASSUMED_MFU.get(platform, ASSUMED_MFU["gpu"])
    mfu = limit * run.model.d_model / (run.model.d_model + half_width)
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
        "seconds": max(
            n_flops / (peak_flops_per_second * mfu),
            (run.steps - n_shared_steps) * roofline.launch_seconds(run, platform),
        ),
    }


def count_step_flops(run: schema.Run) -> int:
    """Return the FLOPs of the matrix products in one train step, counted in its traced program.

    The result includes the recomputation of model.remat. It counts only the blocks of attention
    scores that model.attention_query_blocks computes. flops.flops_per_token differs in both
    respects. The step is not compiled or run, and no array is allocated.
    """
    run = dataclasses.replace(run, mesh=schema.Mesh())
    program = step.build_train_functions(run, mesh.make_mesh(run.mesh, jax.devices()[:1]))
    arguments = program.abstract, program.batch, program.inputs
    return matmul_flops(jax.make_jaxpr(program.plain_step)(*arguments).jaxpr)


def matmul_flops(jaxpr: Jaxpr) -> int:
    """Return two FLOPs per multiply-add of all matrix products, with all loop iterations.

    Each row of a ragged_dot counts once, with the matrix of its own group, as an accelerator
    executes it. XLA's cost_analysis() is not used: it counts the body of a scan only once.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
            total += 2 * depth * math.prod(_shape(equation.outvars[0]))
        if equation.primitive.name == "ragged_dot_general":
            total += _ragged_flops(equation)
        n_executions = _execution_count(equation)
        for inner in _inner_jaxprs(list(equation.params.values())):
            total += n_executions * matmul_flops(inner)
    return total


def _execution_count(equation) -> int:
    """Return the number of scan iterations or shard_map devices that execute the inner jaxprs."""
    if equation.primitive.name == "shard_map":
        return math.prod(equation.params["mesh"].shape.values())
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def _ragged_flops(equation) -> int:
    """Return the FLOPs of a product that multiplies each row by the matrix of its group."""
    dims = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = dims.dot_dimension_numbers
    depth = math.prod(_shape(equation.invars[0])[axis] for axis in contracted)
    n_flops = 2 * depth * math.prod(_shape(equation.outvars[0]))
    # If the product sums over rows, the result has an axis of groups. Each row adds to one group.
    is_summed = dims.lhs_ragged_dimensions[0] in contracted
    return n_flops // _shape(equation.invars[2])[-1] if is_summed else n_flops


def _shape(variable) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_jaxprs(values: list) -> list[Jaxpr]:
    """Return all jaxprs in the parameters of an equation, also in nested sequences."""
    jaxprs = []
    for value in values:
        if isinstance(value, ClosedJaxpr):
            jaxprs.append(value.jaxpr)
        elif isinstance(value, Jaxpr):
            jaxprs.append(value)
        elif isinstance(value, (tuple, list)):
            jaxprs += _inner_jaxprs(list(value))
    return jaxprs


def plan_run(run: schema.Run, target: hardware.Target, should_compile: bool = True) -> dict:
    """Return one row of a plan for target hardware: a flat dict of bytes, seconds and hours.

    method: "compiled" if bytes and collectives are those of the target's compiler, "estimate" if
    they are those of roofline.estimate_step, with should_compile=False.
    bytes_*: of one device. bytes_over: missing memory, 0 if the run fits.
    bytes_needed: of the largest program, with parameters and optimizer state. The temporaries of
    the programs are bytes_temporaries (train step), bytes_evaluation and bytes_generation.
    Generation is estimated in either case. largest_program: train, evaluation or generation.
    compute_seconds, memory_seconds, network_seconds, launch_seconds: of a step, if only this
    resource limited it. All but network_seconds are analytic in either case. bound: the resource
    with the longest time.
    roofline_seconds: of a step at best, the longest of these times at the vendor's peaks. None if
    the run does not fit.
    step_seconds: expected, at the MFU that ASSUMED_MFU assumes, and at least roofline_seconds.
    mfu: model FLOPs utilization at this speed, a fraction.
    hours, device_hours: of the whole run at this speed. The time of a step with a smaller batch,
    see data.batch_size_warmup, is assumed to be proportional to its tokens.
    """
    axis_sizes = axis_rules.resolve_mesh_shape(vars(run.mesh), target.n_devices)
    run = memory_estimate.resolve_layout(run, target.n_devices, target.platform)
    estimate = roofline.estimate_step(run, target, memory_estimate.list_weights(run.model))
    compiled = aot_compile.compile_step(run, target) if should_compile else None
    if should_compile and inference_memory.has_evaluations(run):
        evaluation = evaluation_program.compile_evaluation(run, target)
        estimate = dataclasses.replace(estimate, evaluation=evaluation)
    return combine_estimates(run, target, axis_sizes, estimate, compiled)


def combine_estimates(
    run: schema.Run,
    target: hardware.Target,
    axis_sizes: dict[str, int],
    estimate: roofline.Estimate,
    compiled: aot_compile.Compiled | None,
) -> dict:
    """Return one row of a plan from the analytic estimate and the result of the compiler.

    axis_sizes: {mesh axis: number of devices}. estimate: analytic estimate of one step. compiled:
    result of the compiler; None uses the estimate alone. The columns of the row are those of
    `plan_run`.
    """
    facts, config = flops.run_facts(run), schema.flatten(run)
    memory = _memory_columns(estimate, compiled)
    missing = memory["bytes_needed"] - target.spec.memory_bytes
    over = max(compiled.over if compiled else 0.0, missing, 0.0)
    traffic = compiled if compiled and not compiled.over else estimate
    seconds = {
        "compute": estimate.compute_seconds,
        "memory": estimate.memory_seconds,
        "network": traffic.network_seconds,
        "launch": estimate.launch_seconds,
    }
    bound = max(seconds, key=lambda resource: seconds[resource])
    expected = estimate_cost(run, target.peak(run.model.dtype), target.platform)
    n_full_steps = facts["tokens"] / (run.data.batch_size * run.data.seq_len)
    step_seconds = max(expected["seconds"] / n_full_steps, seconds[bound])
    hours = step_seconds * n_full_steps / 3600
    return {
        "name": run.name,
        "target": target.name,
        "devices": target.n_devices,
        "method": "compiled" if compiled else "estimate",
        "mesh": {axis: size for axis, size in axis_sizes.items() if size > 1},
        **{name: config[name] for name in fields.fields_with("plan", schema.Run)},
        "params_total": facts["params.total"],
        "params_active": facts["params.active"],
        "tokens": facts["tokens"],
        "flops": facts["flops"],
        "step_flops": estimate.flops,
        **memory,
        "bytes_memory": target.spec.memory_bytes,
        "bytes_over": over,
        "collectives": aot_compile.total_traffic(compiled.collectives) if compiled else {},
        **{f"{resource}_seconds": value for resource, value in seconds.items()},
        "bound": bound,
        "roofline_seconds": None if over else seconds[bound],
        "step_seconds": None if over else step_seconds,
        "mfu": facts["flops"] / n_full_steps / target.peak(run.model.dtype) / step_seconds,
        "hours": None if over else hours,
        "device_hours": None if over else hours * target.n_devices,
        "compile_seconds": compiled.seconds if compiled else None,
    }


def _memory_columns(
    estimate: roofline.Estimate, compiled: aot_compile.Compiled | None
) -> dict[str, Any]:
    """Return the bytes of each program and of the largest one, with its name."""
    train = compiled or estimate
    temporaries = {
        "train": train.temporaries,
        "evaluation": estimate.evaluation,
        "generation": estimate.generation,
    }
    largest = max(temporaries, key=lambda name: temporaries[name])
    return {
        "bytes_params": train.params,
        "bytes_optimizer": train.optimizer,
        "bytes_temporaries": train.temporaries,
        "bytes_evaluation": estimate.evaluation,
        "bytes_generation": estimate.generation,
        "bytes_needed": train.params + train.optimizer + temporaries[largest],
        "largest_program": largest,
    }
