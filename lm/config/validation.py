"""Check a run's config before JAX is imported: types, choices, bounds and combinations of fields.

check(run)   # returns run, or raises schema.ConfigError
"""

import math
import re

from lm.config import axis_rules, fields, schema

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*")


def validate_run(run: schema.Run) -> schema.Run:
    """Return `run` unchanged. ConfigError names a field, its value, the rule and a remedy."""
    _check_values(run)
    _check_names(run)
    _check_model(run)
    _check_mesh(run)
    _check_intervals(run)
    _check_sources(run.data)
    if run.model.n_experts:
        _check_experts(run.model, run.mesh)
    _check_text(run.data)
    if not sum(run.data.sources.values()):
        rule = "has only zero weights: give one source a positive weight"
        _refuse("data.sources", run.data.sources, rule)
    return run


def _check_values(run: schema.Run) -> None:
    """Check each field alone: its type, its choices and its bounds."""
    flat, choices = schema.flatten(run), fields.choices(schema.Run)
    for name, kind in schema.field_types(schema.Run).items():
        value = flat[name]
        if kind is float and type(value) is int:
            value = flat[name] = float(value)
        if type(value) is not kind and not (kind is dict and isinstance(value, dict)):
            _refuse(name, value, f"must be {kind.__name__}, not {type(value).__name__}")
        if kind is float and value != value:
            _refuse(name, value, "must be a number")
    for name, values in choices.items():
        if flat[name] not in values:
            _refuse(name, flat[name], f"must be one of {', '.join(values)}")
    for name, info in fields.field_info(schema.Run).items():
        value = flat[name]
        if info.ge is not None and info.le is not None:
            if not info.ge <= value <= info.le:
                _refuse(name, value, f"must be between {info.ge} and {info.le}")
        elif info.ge is not None and value < info.ge:
            _refuse(name, value, f"must be at least {info.ge}")
        elif info.gt is not None and value <= info.gt:
            _refuse(name, value, f"must be above {info.gt}")


def _check_names(run: schema.Run) -> None:
    """Check the names of the run and of its parent, and the fields that need a parent."""
    for name, value in (("name", run.name), ("start.run", run.start.run or "none")):
        if not NAME_PATTERN.fullmatch(value) or ".." in value:
            _refuse(name, value, "takes letters, digits and _ . + - with / between folders")
    if run.start.run == run.name:
        _refuse("start.run", run.start.run, "is the run itself: name the run it starts from")
    if run.model.lora_rank and not run.start.run:
        _refuse("model.lora_rank", run.model.lora_rank, "adds to trained weights: set start.run")
    if not run.start.run and run.start != schema.Start():
        _refuse("start.run", "", "is needed by start.step and start.restore: name a run below dir")


def _check_model(run: schema.Run) -> None:
    model, seq_len = run.model, run.data.seq_len
    if model.n_heads % model.n_kv_heads:
        near = max(k for k in range(1, model.n_kv_heads + 1) if model.n_heads % k == 0)
        rule = f"must be a multiple of model.n_kv_heads={model.n_kv_heads}"
        _refuse("model.n_heads", model.n_heads, f"{rule}: try model.n_kv_heads={near}")
    if model.d_head % 2:
        _refuse("model.d_head", model.d_head, "must be even, for rotary embeddings")
    if 0 < model.learned_positions < seq_len:
        rule = f"must be at least data.seq_len={seq_len}, or 0 for rotary positions"
        _refuse("model.learned_positions", model.learned_positions, rule)


def _check_mesh(run: schema.Run) -> None:
    n_data = run.mesh.data
    if n_data == 0 or n_data < -1:
        _refuse("mesh.data", n_data, "must be -1 (all devices) or at least 1")
    sizes = {axis: max(getattr(run.mesh, axis), 1) for axis in axis_rules.MESH_AXES}
    axis_rules.validate_mesh_shape(schema.flatten(run), sizes)
    if run.mesh.deterministic_shards:
        _check_exact(run)


def _check_intervals(run: schema.Run) -> None:
    """Check fields that count steps or evaluations against each other."""
    if run.permanent_checkpoint_interval % run.checkpoint_interval:
        near = (
            -(-run.permanent_checkpoint_interval // run.checkpoint_interval)
            * run.checkpoint_interval
        )
        rule = f"must be a multiple of checkpoint_interval={run.checkpoint_interval}: try {near}"
        _refuse("permanent_checkpoint_interval", run.permanent_checkpoint_interval, rule)
    if run.eval.patience and not run.eval.interval:
        _refuse("eval.patience", run.eval.patience, "counts evaluations: set eval.interval")
    if run.eval.task_interval and (
        not run.eval.interval or run.eval.task_interval % run.eval.interval
    ):
        rule = (
            f"must be a multiple of eval.interval={run.eval.interval}, the steps between"
            f" evaluations"
        )
        _refuse("eval.task_interval", run.eval.task_interval, rule)
    optim = run.optim
    if optim.schedule == "wsd" and optim.warmup + optim.decay > 1:
        _refuse("optim.decay", optim.decay, f"plus optim.warmup={optim.warmup} must not exceed 1")


def _check_sources(data: schema.Data) -> None:
    if not data.sources:
        _refuse("data.sources", data.sources, "is empty: name at least one source, such as code")
    for source, weight in data.sources.items():
        if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            rule = "must be a weight: a finite number of at least 0"
            _refuse(f"data.sources[{source!r}]", weight, rule)


def _check_experts(model: schema.Model, mesh: schema.Mesh) -> None:
    for name, needed in (("mlp", "gated"), ("bias", False)):
        if (value := getattr(model, name)) != needed:
            _refuse(f"model.{name}", value, f"is not for experts: take {needed!r}")
    if model.experts_per_token > model.n_experts:
        rule = f"must not exceed model.n_experts={model.n_experts}"
        _refuse("model.experts_per_token", model.experts_per_token, rule)
    n_active = model.experts_per_token + model.n_shared_experts
    if not model.d_expert and model.d_ff % n_active:
        rule = f"must be a multiple of {n_active}, the experts per token with the shared experts"
        _refuse("model.d_ff", model.d_ff, f"{rule}, or set model.d_expert")
    n_shards = math.prod(
        max(getattr(mesh, axis), 1) for axis in axis_rules.merged_axis_rules(mesh.rules)["mlp"]
    )
    if (width := model.d_expert or model.d_ff // n_active) % n_shards:
        rule = f"must be a multiple of {n_shards}, the number of devices that split it"
        _refuse("model.d_expert", width, rule)


def _check_exact(run: schema.Run) -> None:
    n_shards, size = run.mesh.deterministic_shards, run.data.batch_size
    if n_shards & (n_shards - 1):
        rule = f"must be a power of two, or 0: try {1 << n_shards.bit_length()}"
        _refuse("mesh.deterministic_shards", n_shards, rule)
    reason = f"has no fixed order of summation with mesh.deterministic_shards={n_shards}"
    if run.model.dtype != "float32":
        _refuse("model.dtype", run.model.dtype, f"{reason}: take float32")
    if run.model.n_experts:
        _refuse("model.n_experts", run.model.n_experts, f"{reason}: take 0")
    if run.optim.name == "muon":
        _refuse("optim.name", run.optim.name, f"{reason}: take adamw or lion")
    if run.optim.grad_accumulation_steps > 1:
        rule = f"{reason}: take 1, because each shard is already a micro-batch"
        _refuse("optim.grad_accumulation_steps", run.optim.grad_accumulation_steps, rule)
    if size % n_shards:
        near = -(-size // n_shards) * n_shards
        rule = f"must be a multiple of mesh.deterministic_shards={n_shards}: try {near}"
        _refuse("data.batch_size", size, rule)


def _check_text(data: schema.Data) -> None:
    kind, _, rest = data.tokenizer.partition(":")
    if kind not in ("bytes", "bpe", "file", "spm") or (kind == "bytes") == bool(rest):
        _refuse("data.tokenizer", data.tokenizer, "must be bytes, bpe:8192, file:JSON or spm:MODEL")
    if kind == "bpe" and not (rest.isdecimal() and 258 <= int(rest) <= 10**6):
        rule = "takes a size from 258 (256 bytes and 2 more) to 10^6, such as bpe:8192"
        _refuse("data.tokenizer", data.tokenizer, rule)
    if data.decontaminate_against and not data.decontaminate_ngram:
        _refuse(
            "data.decontaminate_against",
            data.decontaminate_against,
            "has no effect with data.decontaminate_ngram=0: try 13 words",
        )
    if data.loss_on == "answers" and data.packing != "documents":
        _refuse(
            "data.loss_on", data.loss_on, f"needs data.packing='documents', not {data.packing!r}"
        )
    if 0 < data.unique_tokens < data.seq_len:
        rule = f"must be at least one row of data.seq_len={data.seq_len}, or 0 for all"
        _refuse("data.unique_tokens", data.unique_tokens, rule)


def _refuse(name: str, value, rule: str):
    raise schema.ConfigError(f"{name}={value!r} {rule}")
