"""Validate the config of a run: types, choices, bounds and combinations of fields, without JAX.

    validate_run(run)     # returns the validated run, or raises schema.ConfigError

Each message has one line: field=value, the problem, the allowed values, a remedy.
"""

import math
import re

from lm.config import axis_rules, model_sizes, run_files, schema, value_checks
from lm.config.checks import model_checks, optimizer_checks


def validate_run(run: schema.Run) -> schema.Run:
    """Return the run, with model.vocab_size=0 replaced by the size that data.tokenizer states.

    A tokenizer file states its size when the run starts. Raises ConfigError for an invalid field or
    an invalid combination of fields.
    """
    validate_fields(run)
    _check_combinations(run)
    return run


def _check_combinations(run: schema.Run) -> None:
    """Check fields together, and fill the vocabulary size that data.tokenizer states."""
    stated_size = model_sizes.named_vocab_size(run.data.tokenizer)
    run.model.vocab_size = run.model.vocab_size or stated_size
    model_checks.check_model(run)
    _check_mesh(run)
    _check_intervals(run)
    optimizer_checks.check_optimizer(run)
    _check_sources(run.data)
    _check_heldout(run)
    if run.model.n_experts:
        model_checks.check_experts(run.model, run.mesh)
    _check_text(run.data)


def validate_fields(run: schema.Run, is_stored: bool = False) -> None:
    """Check each field alone, the names and the form of data.tokenizer. Read no file.

    is_stored: the run was started by this or an older version, so its name may be reserved.
    Raises ConfigError for an invalid value.
    """
    value_checks.check_values(run)
    _check_names(run, is_stored)
    _check_tokenizer(run.data.tokenizer)


def parse_stored_run(values: dict, file: object, is_used: bool = True) -> schema.Run:
    """Return the run of a stored config, validated like a new one. Its name may be reserved.

    values: content of the file. is_used: False checks each field alone, for the tables of a report.
    Raises ConfigError that begins with the name of the file.
    """
    try:
        run = schema.from_dict(values)
        if is_used:
            validate_fields(run, is_stored=True)
            _check_combinations(run)
        else:
            value_checks.check_values(run)
        return run
    except (schema.ConfigError, TypeError) as error:
        raise schema.ConfigError(f"{file}: {error}") from None


def validate_evaluation(run: schema.Run) -> None:
    """Check the fields of a finished run that its evaluation may change: sources and rows.

    Raises ConfigError for an invalid value.
    """
    value_checks.check_values(run)
    model_checks.check_model(run)
    _check_mesh(run)
    _check_sources(run.data)


def _check_names(run: schema.Run, is_stored: bool) -> None:
    """Check the names of the run and of its parent, and the fields that need a parent."""
    for name, value in (("name", run.name), ("start.run", run.start.run or "none")):
        run_files.check_run_name(name, value, may_be_reserved=is_stored)
    for name, value in (("dir", run.dir), ("data.cache_dir", run.data.cache_dir)):
        if not value:
            value_checks.reject(name, value, "must name a folder: write . for the current folder")
    if not is_stored:
        run_files.check_run_folder(run)
    if run.start.run == run.name:
        value_checks.reject(
            "start.run", run.start.run, "is the run itself: set the name of another run"
        )
    if run.start.run and f"{run.name}/".startswith(f"{run.start.run}/"):
        problem = f"is in the folder of the run {run.start.run}: choose a name outside that folder"
        value_checks.reject("name", run.name, problem)
    if run.model.lora_rank and not run.start.run:
        problem = "needs the trained weights of a parent run: set start.run, or 0 for no adapters"
        value_checks.reject("model.lora_rank", run.model.lora_rank, problem)
    if not run.start.run and run.start != schema.Start():
        problem = "is required by start.step and start.restore: set the name of a run below dir"
        value_checks.reject("start.run", "", problem)


def _check_mesh(run: schema.Run) -> None:
    """Check that the mesh divides the sizes of the run. A mesh.data of -1 counts as 1."""
    n_data = run.mesh.data
    if n_data == 0 or n_data < -1:
        value_checks.reject(
            "mesh.data", n_data, "must be at least 1, or -1 for all remaining devices"
        )
    sizes = {axis: max(getattr(run.mesh, axis), 1) for axis in axis_rules.MESH_AXES}
    axis_rules.validate_mesh_shape(schema.flatten(run), sizes)
    if run.mesh.deterministic_shards:
        _check_deterministic(run)


def _check_intervals(run: schema.Run) -> None:
    """Check the combinations of fields that count steps or evaluations."""
    if model_sizes.training_tokens(run) >= 2**63:
        n_tokens = model_sizes.training_tokens(run)
        value_checks.reject(
            "steps", run.steps, f"trains {n_tokens:.0e} tokens, more than 2^63: lower it"
        )
    permanent, interval = run.permanent_checkpoint_interval, run.checkpoint_interval
    if permanent % interval:
        near = -(-permanent // interval) * interval
        problem = f"must be a multiple of checkpoint_interval={interval}: try {near}"
        value_checks.reject("permanent_checkpoint_interval", permanent, problem)
    if run.eval.patience and not run.eval.interval:
        value_checks.reject(
            "eval.patience", run.eval.patience, "counts evaluations: set eval.interval above 0"
        )
    task_interval, interval = run.eval.task_interval, run.eval.interval
    if task_interval and (not interval or task_interval % interval):
        problem = f"must be a multiple of eval.interval={interval}, the steps between evaluations"
        value_checks.reject("eval.task_interval", task_interval, problem)


def _check_sources(data: schema.Data) -> None:
    """Check each source weight."""
    if not data.sources:
        value_checks.reject(
            "data.sources", data.sources, "is empty: add a source, such as {'code': 1.0}"
        )
    for source, weight in data.sources.items():
        if not isinstance(source, str) or not source or not value_checks.is_storable(source):
            problem = "has a source that is not a text such as 'code' or 'text:my/folder'"
            value_checks.reject("data.sources", data.sources, problem)
        if len(source) > value_checks.MAX_PATH:
            problem = f"has {len(source)} characters: use at most {value_checks.MAX_PATH}"
            value_checks.reject("data.sources", source, problem)
        is_number = isinstance(weight, (int, float)) and type(weight) is not bool
        if not is_number or not value_checks.is_finite(weight) or math.copysign(1, weight) < 0:
            problem = "must be a weight: a finite number of at least 0"
            value_checks.reject(
                f"data.sources[{value_checks.format_value(source)}]", weight, problem
            )
    chat_shots = [name for name in data.sources if re.match(r"chat:.*[?&]shots=0*[1-9]", name)]
    if chat_shots and data.heldout_fraction > 0.5:
        problem = f"must be at most 0.5 for shots in {chat_shots[0]}: lower it, or remove shots"
        value_checks.reject("data.heldout_fraction", data.heldout_fraction, problem)
    if not 0 < sum(map(float, data.sources.values())) < math.inf:
        problem = "must have weights with a positive, finite sum: set a positive weight"
        value_checks.reject("data.sources", data.sources, f"{problem} for at least one source")


def _check_heldout(run: schema.Run) -> None:
    """Check the fields that need a held-out loss, for a run without held-out text."""
    if run.data.heldout_fraction:
        return
    problem = "needs a held-out loss: set data.heldout_fraction above 0, or"
    if run.eval.patience:
        value_checks.reject(
            "eval.patience", run.eval.patience, f"{problem} 0 for no early stopping"
        )
    if run.keep_best:
        value_checks.reject("keep_best", run.keep_best, f"{problem} False")
    if run.is_prediction_target:
        value_checks.reject("is_prediction_target", run.is_prediction_target, f"{problem} False")
    for source, weight in run.data.sources.items():
        if not weight:
            problem = "is evaluated only: set data.heldout_fraction above 0, or a positive weight"
            value_checks.reject(
                f"data.sources[{value_checks.format_value(source)}]", weight, problem
            )


def _check_deterministic(run: schema.Run) -> None:
    """Check that every sum of the run has a fixed order with mesh.deterministic_shards."""
    n_shards, size = run.mesh.deterministic_shards, run.data.batch_size
    if n_shards & (n_shards - 1):
        problem = f"must be a power of two, or 0: try {1 << n_shards.bit_length()}"
        value_checks.reject("mesh.deterministic_shards", n_shards, problem)
    reason = f"has no fixed order of summation with mesh.deterministic_shards={n_shards}"
    if run.model.dtype != "float32":
        value_checks.reject("model.dtype", run.model.dtype, f"{reason}: set float32")
    if run.model.n_experts:
        value_checks.reject("model.n_experts", run.model.n_experts, f"{reason}: set 0")
    if run.optim.name == "muon":
        value_checks.reject("optim.name", run.optim.name, f"{reason}: set adamw or lion")
    if run.optim.grad_accumulation_steps > 1:
        problem = f"{reason}: set 1, because each shard is already a micro-batch"
        value_checks.reject(
            "optim.grad_accumulation_steps", run.optim.grad_accumulation_steps, problem
        )
    if size % n_shards:
        near = -(-size // n_shards) * n_shards
        problem = f"must be a multiple of mesh.deterministic_shards={n_shards}: try {near}"
        value_checks.reject("data.batch_size", size, problem)


def _check_tokenizer(tokenizer: str) -> None:
    """Check the form of data.tokenizer."""
    kind, _, rest = tokenizer.partition(":")
    if kind not in ("bytes", "bpe", "file", "spm") or (kind == "bytes") == bool(rest):
        problem = "must be bytes, bpe:8192, file:JSON or spm:MODEL"
        value_checks.reject("data.tokenizer", tokenizer, problem)
    if kind in ("file", "spm"):
        value_checks.check_path("data.tokenizer", rest, shown=tokenizer)
    size = model_sizes.named_vocab_size(tokenizer)
    if kind == "bpe" and not 258 <= size <= model_sizes.MAX_BPE_SIZE:
        problem = "must have a size from 258 (256 bytes and 2 more) to 10^6: try bpe:8192"
        value_checks.reject("data.tokenizer", tokenizer, problem)


def _check_text(data: schema.Data) -> None:
    """Check the fields of decontamination, packing and repetition."""
    if data.decontaminate_against and not data.decontaminate_ngram:
        value_checks.reject(
            "data.decontaminate_against",
            data.decontaminate_against,
            "has no effect with data.decontaminate_ngram=0: set that to 13",
        )
    if data.loss_on == "answers" and data.packing != "documents":
        problem = f"needs data.packing='documents', not {data.packing!r}"
        value_checks.reject("data.loss_on", data.loss_on, problem)
    if 0 < data.unique_tokens < data.seq_len:
        problem = f"must be at least one row of data.seq_len={data.seq_len}, or 0 for all"
        value_checks.reject("data.unique_tokens", data.unique_tokens, problem)
