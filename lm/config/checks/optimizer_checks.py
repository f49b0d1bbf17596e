"""Checks of the optimizer: schedule, weight decay, half-life and type of the moments."""

from lm.config import fields, optimizer_config, schema, value_checks
from lm.config.schedules import batch_size_schedule

MAX_BFLOAT16_DECAY = 0.99  # largest decay of a first moment in bfloat16
MAX_INDEPENDENT_DECAY = 1e-2  # largest fraction of a weight that a step removes, without a rule


def check_optimizer(run: schema.Run) -> None:
    """Check the schedule, the weight decay and the moments of the optimizer together.

    Raises ConfigError for the first contradiction.
    """
    optim = run.optim
    for part in ("warmup", "decay"):
        _check_length(optim, part)
    if optim.schedule == "wsd" and optim.warmup + optim.decay > 1:
        if not (_length_field(optim, "warmup") or _length_field(optim, "decay")):
            problem = f"plus optim.warmup={optim.warmup} must not exceed 1: lower one"
            value_checks.reject("optim.decay", optim.decay, problem)
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
    _check_batch_size_warmup(run, schedule)
    resolved = batch_size_schedule.resolve_tokens(optim, schedule, run.steps)
    _check_schedule_steps(run, resolved)
    _check_half_life(run, schedule, resolved.b2)
    if optim.head_decay_factor != 1 and run.model.tie_embeddings:
        problem = "has no effect with model.tie_embeddings=True: set optim.embedding_decay_factor"
        value_checks.reject("optim.head_decay_factor", optim.head_decay_factor, problem)
    _check_independent_decay(optim)
    decay_name = "b2" if optim.name == "lion" else "b1"
    decay = getattr(optim, decay_name)
    if optim.moment_dtype == "bfloat16" and decay > MAX_BFLOAT16_DECAY:
        problem = f"must be at most {MAX_BFLOAT16_DECAY} with optim.moment_dtype='bfloat16'"
        reason = "because a value in bfloat16 cannot change by less than 0.4%: set float32"
        value_checks.reject(f"optim.{decay_name}", decay, f"{problem}, {reason}")


def _check_batch_size_warmup(
    run: schema.Run, schedule: batch_size_schedule.BatchSizeSchedule
) -> None:
    """Check that the warm-up of the batch size ends within the run, and that no batch moves."""
    name, last = batch_size_schedule.FIELD, schedule.stages[-1]
    if last.first_step >= run.steps:
        problem = f"reaches data.batch_size={last.batch_size} after {last.first_step:,} steps"
        remedy = f"but steps={run.steps}: list fewer tokens"
        value_checks.reject(name, schedule.warmup, f"{problem}, {remedy}")
    if schedule.warmup and run.optim.on_nonfinite == "rewind":
        problem = "contradicts optim.on_nonfinite='rewind', which exchanges the batches of steps"
        value_checks.reject(name, schedule.warmup, f"{problem}: set stop or skip")


def _check_independent_decay(optim: schema.Optimizer) -> None:
    """Check that an independent weight decay removes a small part of a weight per step.

    A rule may give a short run a larger weight decay.
    """
    if not optim.independent_weight_decay:
        return
    if optim.weight_decay > MAX_INDEPENDENT_DECAY and not optim.weight_decay_rule:
        problem = "removes this fraction of a weight per step with optim.independent_weight_decay"
        remedy = f"set at most {MAX_INDEPENDENT_DECAY:g}, such as 1e-4"
        value_checks.reject("optim.weight_decay", optim.weight_decay, f"{problem}=True: {remedy}")
    names = ("embedding_decay_factor", "head_decay_factor", "norm_decay_factor")
    factor = max(1.0, *(getattr(optim, name) for name in names))
    if optim.weight_decay * factor >= 1:
        product = "" if factor == 1 else f"times the largest factor of a group, {factor:g}, "
        problem = "must be below 1 with optim.independent_weight_decay=True: try 1e-4"
        value_checks.reject("optim.weight_decay", optim.weight_decay, f"{product}{problem}")


def _length_field(optim: schema.Optimizer, part: str) -> str:
    """Return the field with a number of steps or tokens that replaces a fraction, or "".

    part: warmup or decay.
    """
    names = (f"{part}_steps", f"{part}_tokens")
    return next((name for name in names if getattr(optim, name)), "")


def _check_length(optim: schema.Optimizer, part: str) -> None:
    """Check that a part of the schedule has one length. part: warmup or decay."""
    name = _length_field(optim, part)
    if not name:
        return
    value = getattr(optim, name)
    if name == f"{part}_steps" and (n_tokens := getattr(optim, f"{part}_tokens")):
        problem = f"contradicts optim.{part}_tokens={n_tokens}: set one of them to 0"
        value_checks.reject(f"optim.{name}", value, problem)
    fraction = getattr(optim, part)
    if fraction not in (0.0, getattr(schema.Optimizer, part)):
        problem = f"contradicts optim.{part}={fraction}: set optim.{part}=0.0, or optim.{name}=0"
        value_checks.reject(f"optim.{name}", value, problem)
    if part == "decay" and optim.schedule != "wsd":
        problem = f"has no effect with optim.schedule={optim.schedule!r}: set wsd, or 0"
        value_checks.reject(f"optim.{name}", value, problem)


def _check_schedule_steps(run: schema.Run, resolved: schema.Optimizer) -> None:
    """Check that a warm-up and a decay in steps or tokens end within the run.

    resolved: result of batch_size_schedule.resolve_tokens.
    """
    n_warmup = optimizer_config.count_warmup_steps(resolved, run.steps)
    n_decay = optimizer_config.count_decay_steps(resolved, run.steps)
    warmup_name = _length_field(run.optim, "warmup")
    name = warmup_name
    if warmup_name and n_warmup >= run.steps:
        problem = f"is {n_warmup:,} steps of warm-up, and must be below steps={run.steps}: lower it"
        value_checks.reject(f"optim.{name}", getattr(run.optim, name), problem)
    name = _length_field(run.optim, "decay") or warmup_name
    if run.optim.schedule == "wsd" and name and n_warmup + n_decay > run.steps:
        problem = f"gives {n_warmup:,} steps of warm-up and {n_decay:,} of decay"
        value_checks.reject(
            f"optim.{name}",
            getattr(run.optim, name),
            f"{problem}, together more than steps={run.steps}: lower one",
        )


def _check_half_life(
    run: schema.Run, schedule: batch_size_schedule.BatchSizeSchedule, b2: float
) -> None:
    """Check the half-life of the second moment. b2: decay per step at the last batch size."""
    optim, name = run.optim, "optim.b2_half_life_tokens"
    half_life = optim.b2_half_life_tokens
    if not half_life:
        return
    if optim.name == "lion":
        value_checks.reject(name, half_life, "needs a second moment: set optim.name=adamw, or 0")
    if optim.b2 != schema.Optimizer.b2:
        problem = f"contradicts optim.b2={optim.b2}: set optim.b2={schema.Optimizer.b2}, or 0"
        value_checks.reject(name, half_life, problem)
    n_tokens = run.data.batch_size * run.data.seq_len
    largest = fields.field_info(schema.Run)["optim.b2"].le
    if b2 < 0.5:
        problem = f"is shorter than a step of {n_tokens:,} tokens: raise it, or lower"
        value_checks.reject(name, half_life, f"{problem} data.batch_size")
    first = schedule.stages[0]  # the smallest batches need the largest decay
    b2 = batch_size_schedule.resolve_tokens(optim, schedule, run.steps, first).b2
    if largest is not None and b2 > largest:
        n_steps = half_life / (first.batch_size * run.data.seq_len)
        problem = f"is {n_steps:.3g} steps, which is b2={b2:.9f}: b2 must be at most {largest}"
        value_checks.reject(name, half_life, f"{problem}, so lower the half-life")
