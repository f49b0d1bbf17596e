"""What a run would cost on a named machine: a flat row of bytes, seconds and device-hours.

row(run, targets.parse("tpu:v5p:8x16x16"))["bytes_over"]        0.0: it fits
"""

from lm import config, described, fields, hlo, layout, plan, roofline, sizes, targets


def row(run: config.Run, target: targets.Target, compiling: bool = True) -> dict:
    """One row of a plan.

    how               "compiled": bytes and collectives are those of the target's own compiler;
                      "estimate": roofline.estimate's (no compiler here, or none asked for)
    bytes_*           of one device; bytes_over is what is too much for it, 0 if it fits
    roofline_seconds  of a step at best: the longest of compute_, memory_ and network_seconds, all
                      else hidden behind it, everything at the vendor's speed; None where it cannot
                      run. compute_ and memory_seconds are arithmetic in either case
    step_seconds      expected: at the share of the peak that plan.REACHED assumes, and not below
                      the roofline; hours and device_hours are of the whole run at this rate
    """
    shape = layout.check_devices(vars(run.mesh), target.n_devices)
    guess = roofline.estimate(run, target, roofline.weights(run.model))
    return fill(
        run, target, shape, guess, described.compile_step(run, target) if compiling else None
    )


def fill(
    run: config.Run,
    target: targets.Target,
    shape: dict[str, int],
    guess: roofline.Estimate,
    made: described.Compiled | None,
) -> dict:
    """The row of an estimate and, where there is one, of what the compiler made."""
    facts, knobs = sizes.facts(run), config.flatten(run)
    best = made or guess
    over = made.over if made else max(0.0, guess.bytes - target.spec.memory)
    seconds = {
        "compute": guess.compute_seconds,
        "memory": guess.memory_seconds,
        "network": best.network_seconds if over == 0 else guess.network_seconds,
    }
    bound = max(seconds, key=lambda part: seconds[part])
    cost = plan.cost(run, target.peak(run.model.dtype), target.platform)
    step = max(cost["seconds"] / run.steps, seconds[bound])
    hours = step * run.steps / 3600
    return {
        "name": run.name,
        "target": target.name,
        "devices": target.n_devices,
        "how": "compiled" if made else "estimate",
        "mesh": {axis: size for axis, size in shape.items() if size > 1},
        **{name: knobs[name] for name in fields.fields_with("plan", config.Run)},
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
        "collectives": hlo.totals(made.collectives) if made else {},
        **{f"{part}_seconds": value for part, value in seconds.items()},
        "bound": bound,
        "roofline_seconds": None if over else seconds[bound],
        "step_seconds": None if over else step,
        "reached": facts["flops"] / run.steps / target.peak(run.model.dtype) / step,
        "hours": None if over else hours,
        "device_hours": None if over else hours * target.n_devices,
        "compile_seconds": made.seconds if made else None,
    }
