"""Validate the config of a run: types, choices, bounds and combinations of fields, without JAX.

    validate_run(run)     # returns the validated run, or raises schema.ConfigError

Each message has one line: field=value, the problem, the allowed values, a remedy.
"""

import dataclasses
import math
import re
import typing
from typing import Any, NoReturn

from lm.config import axis_rules, fields, model_sizes, schema

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*")
MAX_SHOWN = 200  # characters of a value in a message
MAX_NAME = 200  # characters of a folder name; file systems allow 255 with temporary suffixes
MAX_INT = 2**31 - 1  # compiled programs compute with 32-bit integers
# Names in the folder of a sweep or of a run, which no run in this folder can have.
RESERVED_NAMES = (
    *("checkpoints", "damaged", "quarantine", "figures", "report.html", "slurm", "workers"),
    *("sweep.json", "plan.json", "prediction.json", "tensorboard", "config.json", "facts.json"),
    *("metrics.jsonl", "evals.jsonl", "events.jsonl", "tokenizer.json", "tokenizer.model"),
    "stalled.txt",
)


def validate_run(run: schema.Run) -> schema.Run:
    """Return the run, with model.vocab_size=0 replaced by the size that data.tokenizer states.

    A tokenizer file states its size when the run starts. Raises ConfigError for an invalid field or
    an invalid combination of fields.
    """
    _check_reserved_names(run)
    return _validate_stored(run)


def _validate_stored(run: schema.Run) -> schema.Run:
    """Validate a run that may have a reserved name, because an older version started it."""
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


def parse_stored_run(values: dict, file: object, is_used: bool = True) -> schema.Run:
    """Return the run of a stored config, validated like a new one. Its name may be reserved.

    values: content of the file. is_used: False checks each field alone, for the tables of a report.
    Raises ConfigError that begins with the name of the file.
    """
    try:
        run = schema.from_dict(values)
        if is_used:
            return _validate_stored(run)
        _check_values(run)
        return run
    except schema.ConfigError as error:
        raise schema.ConfigError(f"{file}: {error}") from None


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
    for name, kind in typing.get_type_hints(schema.Run).items():
        group, is_group = getattr(run, name), dataclasses.is_dataclass(kind)
        if isinstance(kind, type) and is_group and type(group) is not kind:
            _reject(name, group, f"must be {kind.__name__}, not {type(group).__name__}")
    flat, choices = schema.flatten(run), fields.choices(schema.Run)
    infos = fields.field_info(schema.Run)
    for name, kind in schema.field_types(schema.Run).items():
        _check_value(name, flat[name], kind, choices.get(name, ()), infos[name])


def _check_value(
    name: str, value: Any, kind: type, choices: tuple[str, ...], info: fields.FieldInfo
) -> None:
    """Check the type, choices and bounds of a field. kind: int, float, bool, str or dict."""
    if not _has_type(value, kind):
        remedy = f": write {kind.__name__}(...)" if _is_number(value, kind) else ""
        _reject(name, value, f"must be {kind.__name__}, not {type(value).__name__}{remedy}")
    if choices and value not in choices:
        _reject(name, value, f"must be one of {', '.join(choices)}")
    if kind is str and not _is_storable(value):
        _reject(name, value, "contains a NUL or bytes that are not UTF-8: rename the file")
    if kind is float:
        if not _is_finite(value):
            _reject(name, value, "must be a finite number")
        if value == 0 and math.copysign(1, value) < 0:
            _reject(name, value, "is a negative zero: write 0.0")
    if kind in (int, float):
        _check_bounds(name, value, info, MAX_INT if kind is int else None)


def _check_bounds(name: str, value: float, info: fields.FieldInfo, limit: int | None) -> None:
    """Check the bounds of a number. limit: largest value of a field that declares none."""
    largest = limit if info.le is None else info.le
    if info.gt is not None and value <= info.gt:
        _reject(name, value, f"must be above {info.gt}")
    if info.ge is not None and info.le is not None and not info.ge <= value <= info.le:
        _reject(name, value, f"must be between {info.ge} and {info.le}")
    if info.ge is not None and value < info.ge:
        _reject(name, value, f"must be at least {info.ge}")
    if largest is not None and value > largest:
        remedy = f": try {name}={value % (largest + 1)}" if name == "seed" else ""
        _reject(name, value, f"must be at most {largest}{remedy}")


def _has_type(value: Any, kind: type) -> bool:
    """Return True if a value has the type of a field. A float field also accepts an int."""
    if kind is dict:
        return isinstance(value, dict)
    return type(value) is kind or (kind is float and type(value) is int)


def _is_storable(text: str) -> bool:
    """Return True if a text can be a path and can be written to a UTF-8 file."""
    return "\0" not in text and text.encode(errors="ignore").decode() == text


def _is_number(value: Any, kind: type) -> bool:
    """Return True if a value, such as a NumPy number, converts to `kind` without loss."""
    return kind in (int, float) and hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0


def _is_finite(value: float) -> bool:
    """Return True if a number is finite as a float. An int of 400 digits is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_names(run: schema.Run) -> None:
    """Check the names of the run and of its parent, and the fields that need a parent."""
    for name, value in (("name", run.name), ("start.run", run.start.run or "none")):
        _check_name(name, value)
    for name, value in (("dir", run.dir), ("data.cache_dir", run.data.cache_dir)):
        if not value:
            _reject(name, value, "must name a folder: write . for the current folder")
    if run.start.run == run.name:
        _reject("start.run", run.start.run, "is the run itself: set the name of another run")
    if run.start.run and f"{run.name}/".startswith(f"{run.start.run}/"):
        problem = f"is in the folder of the run {run.start.run}: choose a name outside that folder"
        _reject("name", run.name, problem)
    if run.model.lora_rank and not run.start.run:
        problem = "needs the trained weights of a parent run: set start.run, or 0 for no adapters"
        _reject("model.lora_rank", run.model.lora_rank, problem)
    if not run.start.run and run.start != schema.Start():
        problem = "is required by start.step and start.restore: set the name of a run below dir"
        _reject("start.run", "", problem)


def _check_name(field: str, value: str) -> None:
    """Check the name of a run: the characters, and each folder between two slashes."""
    parts = value.split("/")
    if not NAME_PATTERN.fullmatch(value) or any(part.startswith(".") for part in parts):
        problem = "must consist of letters, digits and _ . + - with / between folders"
        _reject(field, value, f"{problem}, and no folder may begin with a dot")
    for part in parts:
        if len(part) > MAX_NAME:
            _reject(
                field, value, f"contains a name of {len(part)} characters: use at most {MAX_NAME}"
            )


def _check_reserved_names(run: schema.Run) -> None:
    """Check that the names of the run and of its parent are not those of files of a sweep."""
    for field, value in (("name", run.name), ("start.run", run.start.run)):
        for part in value.split("/") if isinstance(value, str) else ():
            if part in RESERVED_NAMES or part.startswith("lock-"):
                problem = f"contains {part}, which is reserved for the files of a sweep or of a run"
                _reject(field, value, f"{problem}: choose another name")


def _check_model(run: schema.Run) -> None:
    """Check heads and positions."""
    model, seq_len = run.model, run.data.seq_len
    if model.n_heads % model.n_kv_heads:
        near = axis_rules.largest_divisor(model.n_heads, model.n_kv_heads)
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
    if model_sizes.training_tokens(run) >= 2**63:
        n_tokens = model_sizes.training_tokens(run)
        _reject("steps", run.steps, f"trains {n_tokens:.0e} tokens, more than 2^63: lower it")
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
        if not isinstance(source, str) or not source or not _is_storable(source):
            problem = "has a source that is not a text such as 'code' or 'text:my/folder'"
            _reject("data.sources", data.sources, problem)
        is_number = isinstance(weight, (int, float)) and type(weight) is not bool
        if not is_number or not _is_finite(weight) or math.copysign(1, weight) < 0:
            problem = "must be a weight: a finite number of at least 0"
            _reject(f"data.sources[{source!r}]", weight, problem)
    chat_shots = [name for name in data.sources if re.match(r"chat:.*[?&]shots=0*[1-9]", name)]
    if chat_shots and data.heldout_fraction > 0.5:
        problem = f"must be at most 0.5 for shots in {chat_shots[0]}: lower it, or remove shots"
        _reject("data.heldout_fraction", data.heldout_fraction, problem)
    if not 0 < sum(map(float, data.sources.values())) < math.inf:
        problem = "must have weights with a positive, finite sum: set a positive weight"
        _reject("data.sources", data.sources, f"{problem} for at least one source")


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
    """Raise ConfigError with a one-line message, which shortens a long value."""
    text = " ".join(_format_value(value).split())
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    raise schema.ConfigError(f"{name}={shown} {problem}")


def _format_value(value: Any) -> str:
    """Return the value as in Python code, or a description of an int with thousands of digits."""
    if type(value) is int and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
