"""Validate the config of a run: types, choices, bounds and combinations of fields, without JAX.

    validate_run(run)     # returns the validated run, or raises schema.ConfigError

Each message has one line: field=value, the problem, the allowed values, a remedy.
"""

import math
import re
from typing import Any, NoReturn

from lm.config import axis_rules, fields, model_sizes, schema

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*")


def validate_run(run: schema.Run) -> schema.Run:
    """Return the run, with model.vocab_size=0 replaced by the size that data.tokenizer states.

    A tokenizer file states its size when the run starts. Raises ConfigError for an invalid field or
    an invalid combination of fields.
    """
    _check_values(run)
    stated_size = model_sizes.named_vocab_size(run.data.tokenizer)
    run.model.vocab_size = run.model.vocab_size or stated_size
    _check_names(run)
    _check_model(run)
    _check_mesh(run)
    _check_intervals(run)
    _check_sources(run.data)
    _check_heldout(run)
    if run.model.n_experts:
        _check_experts(run.model, run.mesh)
    _check_text(run.data)
    return run


def validate_evaluation(run: schema.Run) -> None:
    """Check the fields of a finished run that its evaluation may change: sources and rows.

    Raises ConfigError for an invalid value.
    """
    _check_values(run)
    _check_model(run)
    _check_mesh(run)
    _check_sources(run.data)


def _check_values(run: schema.Run) -> None:
    """Check each field alone: its type, its choices and its bounds."""
    flat, choices = schema.flatten(run), fields.choices(schema.Run)
    for name, kind in schema.field_types(schema.Run).items():
        value = flat[name]
        if kind is float and type(value) is int:
            value = flat[name] = float(value)
        if type(value) is not kind and not (kind is dict and isinstance(value, dict)):
            _reject(name, value, f"must be {kind.__name__}, not {type(value).__name__}")
        if kind is float and value != value:
            _reject(name, value, "must be a number, not NaN")
    for name, values in choices.items():
        if flat[name] not in values:
            _reject(name, flat[name], f"must be one of {', '.join(values)}")
    for name, info in fields.field_info(schema.Run).items():
        value = flat[name]
        if info.ge is not None and info.le is not None:
            if not info.ge <= value <= info.le:
                _reject(name, value, f"must be between {info.ge} and {info.le}")
        elif info.ge is not None and value < info.ge:
            _reject(name, value, f"must be at least {info.ge}")
        elif info.gt is not None and value <= info.gt:
            _reject(name, value, f"must be above {info.gt}")


def _check_names(run: schema.Run) -> None:
    """Check the names of the run and of its parent, and the fields that need a parent."""
    for name, value in (("name", run.name), ("start.run", run.start.run or "none")):
        if not NAME_PATTERN.fullmatch(value) or ".." in value:
            _reject(
                name, value, "must consist of letters, digits and _ . + - with / between folders"
            )
    if run.start.run == run.name:
        _reject("start.run", run.start.run, "is the run itself: set the name of another run")
    if run.model.lora_rank and not run.start.run:
        problem = "needs the trained weights of a parent run: set start.run, or 0 for no adapters"
        _reject("model.lora_rank", run.model.lora_rank, problem)
    if not run.start.run and run.start != schema.Start():
        problem = "is required by start.step and start.restore: set the name of a run below dir"
        _reject("start.run", "", problem)


def _check_model(run: schema.Run) -> None:
    """Check heads and positions."""
    model, seq_len = run.model, run.data.seq_len
    if model.n_heads % model.n_kv_heads:
        near = max(k for k in range(1, model.n_kv_heads + 1) if model.n_heads % k == 0)
        problem = f"must be a multiple of model.n_kv_heads={model.n_kv_heads}"
        _reject("model.n_heads", model.n_heads, f"{problem}: try model.n_kv_heads={near}")
    if model.d_head % 2:
        problem = f"must be even, for rotary embeddings: try {model.d_head + 1}"
        _reject("model.d_head", model.d_head, problem)
    if 0 < model.learned_positions < seq_len:
        problem = f"must be at least data.seq_len={seq_len}, or 0 for rotary positions"
        _reject("model.learned_positions", model.learned_positions, problem)


def _check_mesh(run: schema.Run) -> None:
    """Check that the mesh divides the sizes of the run. A mesh.data of -1 counts as 1."""
    n_data = run.mesh.data
    if n_data == 0 or n_data < -1:
        _reject("mesh.data", n_data, "must be at least 1, or -1 for all remaining devices")
    sizes = {axis: max(getattr(run.mesh, axis), 1) for axis in axis_rules.MESH_AXES}
    axis_rules.validate_mesh_shape(schema.flatten(run), sizes)
    if run.mesh.deterministic_shards:
        _check_deterministic(run)


def _check_intervals(run: schema.Run) -> None:
    """Check the combinations of fields that count steps or evaluations."""
    permanent, interval = run.permanent_checkpoint_interval, run.checkpoint_interval
    if permanent % interval:
        near = -(-permanent // interval) * interval
        problem = f"must be a multiple of checkpoint_interval={interval}: try {near}"
        _reject("permanent_checkpoint_interval", permanent, problem)
    if run.eval.patience and not run.eval.interval:
        _reject("eval.patience", run.eval.patience, "counts evaluations: set eval.interval above 0")
    task_interval, interval = run.eval.task_interval, run.eval.interval
    if task_interval and (not interval or task_interval % interval):
        problem = f"must be a multiple of eval.interval={interval}, the steps between evaluations"
        _reject("eval.task_interval", task_interval, problem)
    optim = run.optim
    if optim.schedule == "wsd" and optim.warmup + optim.decay > 1:
        _reject(
            "optim.decay",
            optim.decay,
            f"plus optim.warmup={optim.warmup} must not exceed 1: lower one",
        )


def _check_sources(data: schema.Data) -> None:
    """Check each source weight."""
    if not data.sources:
        _reject("data.sources", data.sources, "is empty: add a source, such as {'code': 1.0}")
    for source, weight in data.sources.items():
        if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            problem = "must be a weight: a finite number of at least 0"
            _reject(f"data.sources[{source!r}]", weight, problem)
    chat_shots = [name for name in data.sources if re.match(r"chat:.*[?&]shots=0*[1-9]", name)]
    if chat_shots and data.heldout_fraction > 0.5:
        problem = f"must be at most 0.5 for shots in {chat_shots[0]}: lower it, or remove shots"
        _reject("data.heldout_fraction", data.heldout_fraction, problem)
    if not sum(data.sources.values()):
        problem = "has only zero weights: set a positive weight for at least one source"
        _reject("data.sources", data.sources, problem)


def _check_heldout(run: schema.Run) -> None:
    """Check the fields that need a held-out loss, for a run without held-out text."""
    if run.data.heldout_fraction:
        return
    problem = "needs a held-out loss: set data.heldout_fraction above 0, or"
    if run.eval.patience:
        _reject("eval.patience", run.eval.patience, f"{problem} 0 for no early stopping")
    if run.keep_best:
        _reject("keep_best", run.keep_best, f"{problem} False")
    if run.is_prediction_target:
        _reject("is_prediction_target", run.is_prediction_target, f"{problem} False")
    for source, weight in run.data.sources.items():
        if not weight:
            problem = "is evaluated only: set data.heldout_fraction above 0, or a positive weight"
            _reject(f"data.sources[{source!r}]", weight, problem)


def _check_experts(model: schema.Model, mesh: schema.Mesh) -> None:
    """Check a mixture of experts: its MLP, the number and the width of its experts."""
    for name, required in (("mlp", "gated"), ("bias", False)):
        if (value := getattr(model, name)) != required:
            problem = f"is not implemented for experts: set {required!r}, or model.n_experts=0"
            _reject(f"model.{name}", value, problem)
    if model.experts_per_token > model.n_experts:
        problem = f"must not exceed model.n_experts={model.n_experts}: try {model.n_experts}"
        _reject("model.experts_per_token", model.experts_per_token, problem)
    n_active = model.experts_per_token + model.n_shared_experts
    if not model.d_expert and model.d_ff % n_active:
        problem = f"must be a multiple of {n_active}, the experts per token with the shared experts"
        _reject("model.d_ff", model.d_ff, f"{problem}, or set model.d_expert")
    n_shards = math.prod(
        max(getattr(mesh, axis), 1) for axis in axis_rules.merged_axis_rules(mesh.rules)["mlp"]
    )
    if (width := model.d_expert or model.d_ff // n_active) % n_shards:
        near = -(-width // n_shards) * n_shards
        problem = f"must be a multiple of {n_shards}, the devices that split it: try {near}"
        _reject("model.d_expert", width, problem)


def _check_deterministic(run: schema.Run) -> None:
    """Check that every sum of the run has a fixed order with mesh.deterministic_shards."""
    n_shards, size = run.mesh.deterministic_shards, run.data.batch_size
    if n_shards & (n_shards - 1):
        problem = f"must be a power of two, or 0: try {1 << n_shards.bit_length()}"
        _reject("mesh.deterministic_shards", n_shards, problem)
    reason = f"has no fixed order of summation with mesh.deterministic_shards={n_shards}"
    if run.model.dtype != "float32":
        _reject("model.dtype", run.model.dtype, f"{reason}: set float32")
    if run.model.n_experts:
        _reject("model.n_experts", run.model.n_experts, f"{reason}: set 0")
    if run.optim.name == "muon":
        _reject("optim.name", run.optim.name, f"{reason}: set adamw or lion")
    if run.optim.grad_accumulation_steps > 1:
        problem = f"{reason}: set 1, because each shard is already a micro-batch"
        _reject("optim.grad_accumulation_steps", run.optim.grad_accumulation_steps, problem)
    if size % n_shards:
        near = -(-size // n_shards) * n_shards
        problem = f"must be a multiple of mesh.deterministic_shards={n_shards}: try {near}"
        _reject("data.batch_size", size, problem)


def _check_text(data: schema.Data) -> None:
    """Check the fields of tokenizer, decontamination, packing and repetition."""
    kind, _, rest = data.tokenizer.partition(":")
    if kind not in ("bytes", "bpe", "file", "spm") or (kind == "bytes") == bool(rest):
        _reject("data.tokenizer", data.tokenizer, "must be bytes, bpe:8192, file:JSON or spm:MODEL")
    if kind == "bpe" and not (rest.isdecimal() and 258 <= int(rest) <= 10**6):
        problem = "must have a size from 258 (256 bytes and 2 more) to 10^6: try bpe:8192"
        _reject("data.tokenizer", data.tokenizer, problem)
    if data.decontaminate_against and not data.decontaminate_ngram:
        _reject(
            "data.decontaminate_against",
            data.decontaminate_against,
            "has no effect with data.decontaminate_ngram=0: set that to 13",
        )
    if data.loss_on == "answers" and data.packing != "documents":
        problem = f"needs data.packing='documents', not {data.packing!r}"
        _reject("data.loss_on", data.loss_on, problem)
    if 0 < data.unique_tokens < data.seq_len:
        problem = f"must be at least one row of data.seq_len={data.seq_len}, or 0 for all"
        _reject("data.unique_tokens", data.unique_tokens, problem)


def _reject(name: str, value: Any, problem: str) -> NoReturn:
    """Raise ConfigError with a one-line message."""
    raise schema.ConfigError(f"{name}={value!r} {problem}")
