"""The schema of a run: typed dataclasses whose defaults train a small model on a laptop.

    run = Run(name="first")
    run.model.d_model = 256
    flatten(run)["model.d_model"]       # 256

A declaration contains type, default, description, roles and bounds: see lm/config/fields.py.
`Literal` types list the allowed values. groups/model_config.py declares the group model, and
optimizer_config.py the group optim. validation.py checks combinations of values.
"""

import dataclasses
import functools
import types
import typing
from typing import Any, Literal

from lm.config import fields
from lm.config.field_names import ConfigError, UnknownFieldError, unknown_field_message
from lm.config.groups.model_config import Model
from lm.config.optimizer_config import Optimizer

field = fields.field  # A short name, because it occurs once per field.


@fields.config_group("data")
@dataclasses.dataclass
class Data:
    """Text sources, preparation, tokenization and rows.

    sources: code, docs, text:PATH, jsonl:GLOB[?field=NAME] and others, see
    lm/data/sources/documents.py; a source of weight 0 is only evaluated. tokenizer: bpe trains on
    the sources. heldout_fraction: a hash of the text decides, for text:FOLDER by file. Text that
    shares decontaminate_ngram consecutive words with held-out text is cut out of training
    documents, see lm/data/filters/decontamination.py. Exact duplicates are always dropped.
    batch_size_warmup: batch_size is the last batch size, see lm/config/schedules.
    packing: packed concatenates documents and splits them at row ends; continuation also masks the
    loss before a random position; documents packs complete documents and pads. loss_on=answers
    needs packing=documents. on_overflow: truncate removes the beginning, drop removes the
    conversation, error raises an error.
    """

    sources: dict[str, float] = field({"code": 0.5, "docs": 0.5}, "Weight of each source, >= 0.")
    cache_dir: str = field(
        "data", "Token files; may be gs://BUCKET/FOLDER or s3://.", "execution", "path"
    )
    heldout_fraction: float = field(
        0.05, "Fraction of held-out documents.", ge=0, le=1, hash_name="heldout"
    )
    tokenizer: str = field("bytes", "Tokenizer: bytes, bpe:SIZE, file:JSON or spm:MODEL.")
    on_error: Literal["stop", "skip"] = field(
        "stop", "Unreadable text: stop, or skip and count.", "corpus", hash_name="broken"
    )
    min_words: int = field(0, "Smallest number of words in a document; 0 is off.", "corpus", ge=0)
    min_letters: float = field(0.0, "Smallest fraction of letters; 0 is off.", "corpus", ge=0, le=1)
    max_repeats: float = field(
        1.0, "Largest fraction of repeated lines; 1 is off.", "corpus", ge=0, le=1
    )
    drop_near_duplicates: bool = field(
        False, "Drop near-duplicates, Jaccard above about 0.8.", "corpus", hash_name="drop_copies"
    )
    quality_filters: str = field(
        "",
        "Filters of datatrove, comma-separated, such as gopher_quality; empty is off.",
        "corpus",
    )
    decontaminate_ngram: int = field(
        0, "Words per n-gram; 0 is no cleaning.", "corpus", ge=0, le=999, hash_name="overlap"
    )
    decontaminate_against: str = field(
        "", "Source URI whose text counts as held out; empty is off.", "corpus", hash_name="protect"
    )
    seq_len: int = field(128, "Tokens of context per row.", ge=1, axis="length")
    batch_size: int = field(16, "Rows per step over all devices.", ge=1, axis="batch")
    batch_size_warmup: str = field(
        "",
        "Training tokens, comma-separated, after each of which the batch size doubles.",
        alone="vmapped runs have one batch size",
    )
    batch_size_rule: str = field(
        "", "Rule that sets batch_size before a run starts: step_law, deepseek, law:RUNS."
    )
    packing: Literal["packed", "continuation", "documents"] = field(
        "packed",
        "Method that makes rows of documents.",
        "batch",
        hash_name="rows",
        hash_values=(("documents", "whole"), ("continuation", "continued")),
    )
    loss_on: Literal["all", "answers"] = field(
        "all", "Targets with loss: all, or answers of conversations.", "batch", hash_name="score"
    )
    on_overflow: Literal["truncate", "drop", "error"] = field(
        "truncate",
        "Treatment of conversations longer than a row.",
        "batch",
        hash_name="too_long",
        hash_values=(("truncate", "cut"), ("error", "refuse")),
    )
    forbidden_tasks: str = field(
        "", "Tasks and categories, comma-separated, that no source may contain.", hash_name="unseen"
    )
    attend_across_documents: bool = field(
        True, "Let attention cross document boundaries in a row.", "batch", hash_name="across"
    )
    unique_tokens: int = field(
        0, "Number of distinct training tokens; 0 is all.", "batch", ge=0, le=2**63 - 1
    )
    max_epochs: float = field(0.0, "Largest number of epochs over any source; 0 is no limit.", ge=0)
    local_cache_dir: str = field(
        "data", "Local folder for the files of a remote data.cache_dir.", "execution", "path"
    )


@fields.config_group("mesh")
@dataclasses.dataclass
class Mesh:
    """Devices along each mesh axis, and the sharding of weights.

    deterministic_shards: a power of two. Gradients have the same bits on any number of devices.
    """

    data: int = field(-1, "Devices that split the batch; -1 is all remaining ones.", "execution")
    fsdp: int = field(1, "Devices that split the batch and the weights.", "execution", ge=1)
    expert: int = field(1, "Devices that split the batch and the experts.", "execution", ge=1)
    sequence: int = field(1, "Devices that split the positions of a row.", "execution", ge=1)
    tensor: int = field(1, "Devices that split heads, MLP and vocabulary.", "execution", ge=1)
    rules: dict[str, str | list[str]] = field(
        {}, "Changes of the sharding rules, such as {'mlp': []}.", "execution"
    )
    deterministic_shards: int = field(
        0,
        "Shards summed in a fixed order; 0 is off.",
        ge=0,
        alone="vmapped runs cannot reproduce the bits of other devices",
        hash_name="exact",
    )
    deterministic_kernels: bool = field(False, "GPU kernels with reproducible bits.", "execution")


@fields.config_group("start")
@dataclasses.dataclass
class Start:
    """Initialization from the checkpoint of another run.

    restore: weights starts at step 0, for fine-tuning. full_state continues the steps, for a
    cooldown branch.
    """

    run: str = field("", "Name of the parent run below dir; empty starts from random weights.")
    step: int = field(
        0, "Step of the parent's checkpoint; 0 is the last, or the best with patience.", ge=0
    )
    restore: Literal["weights", "full_state"] = field(
        "weights",
        "Parts of the checkpoint that are restored.",
        hash_name="keep",
        hash_values=(("full_state", "state"),),
    )


@fields.config_group("eval")
@dataclasses.dataclass
class Evaluation:
    """Held-out loss and tasks during training.

    on_overflow: truncate removes the beginning of the example, error raises an error.
    """

    interval: int = field(0, "Steps between evaluations; 0 is only at the end.", "execution", ge=0)
    patience: int = field(0, "Evaluations without a lower loss that end the run; 0 is off.", ge=0)
    n_sequences: int = field(512, "Held-out rows per source.", "execution", ge=1)
    n_completions: int = field(1024, "Words to complete, over all sources.", "execution", ge=0)
    tasks: str = field(
        "",
        "Tasks, space-separated: copy?length=4 file:my/set; see lm/evaluation/tasks.py.",
        "execution",
    )
    task_interval: int = field(
        0, "Steps between evaluations with tasks; 0 is only at the end.", "execution", ge=0
    )
    on_overflow: Literal["truncate", "error"] = field(
        "truncate", "Treatment of examples longer than a row.", "execution"
    )


@fields.config_group("")
@dataclasses.dataclass
class Run:
    """Everything that defines a training run.

    checkpoint_interval: the two newest checkpoints are stored, and those of
    permanent_checkpoint_interval, keep_best and the starts of other runs. Others are deleted.
    """

    name: str = field("run", "Folder of the run below dir; sweeps use SWEEP/RUN.", "vmapped")
    dir: str = field("runs", "Folder of runs; may be gs://BUCKET/FOLDER.", "execution", "path")
    seed: int = field(0, "Seed of the initial weights and of the data order.", "vmapped", ge=0)
    steps: int = field(1000, "Number of optimizer steps.", ge=1)
    log_interval: int = field(10, "Steps between rows of metrics.", "execution", ge=1)
    steps_per_call: int = field(0, "Steps per call; 0 is automatic.", "execution", ge=0, le=128)
    checkpoint_interval: int = field(200, "Steps between checkpoints.", "execution", ge=1)
    permanent_checkpoint_interval: int = field(
        0, "Steps between checkpoints that are never deleted; 0 is off.", "execution", ge=0
    )
    keep_best: bool = field(False, "Store the checkpoint of the lowest held-out loss.", "execution")
    resume: Literal["auto", "required"] = field(
        "auto", "Auto starts or resumes a run; required only resumes.", "execution"
    )
    resume_tolerance: float = field(
        0.0, "Largest relative loss change on resume; 0 is automatic.", "execution", ge=0
    )
    stall_seconds: float = field(
        1800.0, "Seconds without progress that end the process; 0 is off.", "execution", ge=0
    )
    wandb: bool = field(
        False, "Also log to Weights & Biases.", "execution", alone="W&B logs one run per process"
    )
    check_memory: bool = field(
        True, "Reject a run whose estimated memory exceeds that of the devices.", "execution"
    )
    is_prediction_target: bool = field(
        False, "In a sweep: start last, after the other runs predict it.", "execution"
    )
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optimizer = dataclasses.field(default_factory=Optimizer)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    eval: Evaluation = dataclasses.field(default_factory=Evaluation)
    start: Start = dataclasses.field(default_factory=Start)


def flatten(run: Any) -> dict[str, Any]:
    """Return {"optim.lr": 0.003, ...} in order of declaration. A dict field is one entry."""
    flat = {}
    for declared in dataclasses.fields(run):
        value = getattr(run, declared.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{declared.name}.{name}": v for name, v in flatten(value).items()}
        else:
            flat[declared.name] = value
    return flat


@functools.cache
def field_types(kind: type) -> dict[str, type]:
    """Return {"optim.lr": float, ...} for a dataclass type, in the order of `flatten`.

    The type of a choice is str.
    """
    flat: dict[str, type] = {}
    for name, hint in fields.type_hints(kind).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            flat |= {f"{name}.{k}": v for k, v in field_types(hint).items()}
        elif typing.get_origin(hint) is Literal:
            flat[name] = str
        else:
            flat[name] = dict if isinstance(hint, types.GenericAlias) else hint
    return flat


def to_dict(run: Run) -> dict:
    """Return a nested plain dict that JSON can store."""
    return dataclasses.asdict(run)


def from_dict(values: dict, kind: type = Run, where: str = "") -> Any:
    """Return the config of a dict of `to_dict`. Raises ConfigError for an unknown field.

    kind: dataclass of the result. where: prefix of the field names in messages.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where[:-1] or 'config'}={values!r} must be a dict of config fields")
    if kind is Run and "checkpoint_every" in values:
        raise ConfigError(
            f"checkpoint_every={values['checkpoint_every']!r} is a field of version 0.1, whose runs"
            " cannot be read: use that version, or train again"
        )
    hints = fields.type_hints(kind)
    known = {}
    for name, value in values.items():
        if name not in hints:
            raise UnknownFieldError(unknown_field_message(where + name, [where + k for k in hints]))
        is_group = dataclasses.is_dataclass(hints[name])
        known[name] = from_dict(value, hints[name], f"{where}{name}.") if is_group else value
    return kind(**known)
