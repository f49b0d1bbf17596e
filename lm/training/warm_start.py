"""Initialize a run from the checkpoint of its parent run, or from a Hugging Face folder.

    run.start.run, run.start.step = "pretrained/25M", 4000
    run.start.restore = "weights"       # fine-tuning: new optimizer state, step 0
    run.start.restore = "full_state"    # cooldown branch: optimizer state and step continue

The parent run must have the same model and tokenizer. Its folder does not change, except for a pin
that preserves the checkpoint.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from lm.config import fields, flops, schema, validation
from lm.config.schedules import batch_size_schedule
from lm.data import tokenizers
from lm.data.sources import path_permissions
from lm.data.tokenization import run_tokenizer
from lm.model.hf import load
from lm.parallel import distributed, mesh
from lm.runs import filesystem, records
from lm.training import checkpoints
from lm.training.checkpointing import checkpoint_manifest, checkpoint_retention
from lm.training.published import model_folders, model_weights

ADAPTER_FIELDS = fields.fields_with("adapter", schema.Model)
OPTIMIZER_STATE_FIELDS = ("name", "moment_dtype", "frozen")
COMPUTE_FIELDS = fields.fields_with("compute", schema.Model)


def run_from_huggingface(
    folder: str | Path,
    run_folder: str | Path,
    tokenizer: str = "",
    seq_len: int = 0,
    allow_paths: Sequence[str] = (),
) -> schema.Run:
    """Write a run with one checkpoint at step 1 from a folder that `transformers` wrote.

    run_folder: path of the new run. tokenizer: a value of data.tokenizer; "" is the tokenizer of
    the folder. seq_len: context length of the run; 0 is that of the model, at most 1024.
    allow_paths: folders to which links in the folder may lead. The weights are divided over the
    devices of this machine. Raises ValueError if a file is corrupt or outside the folder, if the
    model is not supported, or if run_folder is not empty.
    """
    run_folder = filesystem.open_path(run_folder)
    model = model_folders.read_model(str(folder), allow_paths, tokenizer)
    run = schema.Run(name=run_folder.name, dir=str(run_folder.parent), steps=1, model=model.shape)
    run.data.seq_len = seq_len or min(model.context, 1024)
    if run_folder.exists() and any(run_folder.iterdir()):
        raise ValueError(f"--run={run_folder} is not empty: name a new folder")
    run.data.tokenizer = model.tokenizer
    validation.validate_run(run)
    model_tokenizer = tokenizers.open_tokenizer(run.data.tokenizer)
    divided = model_weights.divide_over_devices(run)
    weights = model_weights.load_weights(model, divided, mesh.make_mesh(divided.mesh))
    run_folder.mkdir(parents=True, exist_ok=True)
    model_tokenizer.save(run_folder)
    kind, _, path = run.data.tokenizer.partition(":")
    if path:
        run.data.tokenizer = f"{kind}:{run_folder / load.tokenizer_file_name(model_tokenizer)}"
    # The tokens and FLOPs of the original training are unknown.
    facts = {k: v for k, v in flops.run_facts(run).items() if k not in ("tokens", "flops")}
    facts |= run_tokenizer.tokenizer_facts(model_tokenizer)
    facts |= {"imported.family": model.architecture, "imported.from": model.folder.name}
    records.start_run(run, facts)
    state = {"step": jax.numpy.ones((), jax.numpy.int32), "params": weights}
    with checkpoints.CheckpointStore(run) as store:
        store.save(1, state, "", [], 0.0)
    records.write_facts(run_folder, status="done", ends_at=1, seconds=0.0)
    return run


def parent_run(run: schema.Run) -> schema.Run:
    """Load the parent of a run.

    Raises ValueError if its directory is not a run directory, or has a link to a file outside the
    directory and the working directory.
    """
    folder = filesystem.open_path(run.dir) / run.start.run
    try:
        path_permissions.check_links(folder)
        return records.read_config(folder)
    except ValueError as error:
        raise ValueError(f"start.run={run.start.run!r}: {error}") from None


def start_step(run: schema.Run, parent: schema.Run) -> int:
    """Return the step of the parent run at which the run starts; default: its final step."""
    ends_at = records.read_facts(records.run_dir(parent)).get("ends_at")
    return run.start.step or ends_at or parent.steps


def validate_start(run: schema.Run, parent: schema.Run) -> None:
    """Raise ValueError if the run cannot start from this parent. Read no checkpoint."""
    model = vars(run.model)
    may_differ = (
        () if parent.model.lora_rank or run.start.restore == "full_state" else ADAPTER_FIELDS
    )
    changed = [
        f"model.{field}={value!r} in the parent, {model[field]!r} in this run"
        for field, value in vars(parent.model).items()
        if field not in (*COMPUTE_FIELDS, *may_differ) and model[field] != value
    ]
    if changed:
        raise ValueError(f"start.run={parent.name!r} has another model: {'; '.join(changed)}")
    if run.start.restore == "full_state":
        _check_same_optimizer_state(run, parent)
        _check_same_batch_sizes(run, parent)
    step = start_step(run, parent)
    if step > parent.steps:
        raise ValueError(
            f"start.step={step} must be at most {parent.steps}, the last step of {parent.name}"
        )
    if run.start.restore == "full_state" and run.steps <= step:
        raise ValueError(
            f"steps={run.steps} must be above start.step={step}: a branch continues to count"
        )


def _check_same_optimizer_state(run: schema.Run, parent: schema.Run) -> None:
    """Raise ValueError if the run stores another optimizer state than its parent."""
    for field in OPTIMIZER_STATE_FIELDS:
        value, parent_value = getattr(run.optim, field), getattr(parent.optim, field)
        if value != parent_value:
            raise ValueError(
                f"optim.{field}={value!r} must be {parent_value!r}, as in start.run="
                f"{parent.name!r}, whose optimizer state is restored: set start.restore=weights for"
                " another state"
            )


def _check_same_batch_sizes(run: schema.Run, parent: schema.Run) -> None:
    """Raise ValueError if a branch has another warm-up of the batch size than its parent.

    The tokens and the rows of the branch include those of the steps before the branch.
    """
    schedules = [batch_size_schedule.BatchSizeSchedule.from_config(r.data) for r in (run, parent)]
    if schedules[0] == schedules[1] or not any(schedule.warmup for schedule in schedules):
        return
    values = [f"{s.warmup!r} up to data.batch_size={s.batch_size}" for s in schedules]
    raise ValueError(
        f"data.batch_size_warmup={values[0]} must be {values[1]}, as in start.run={parent.name!r},"
        " with equal data.seq_len: set start.restore=weights for other batch sizes"
    )


def restore_parent(
    run: schema.Run, abstract: dict, tokenizer: tokenizers.Tokenizer
) -> checkpoint_manifest.RestoredState:
    """Restore the parts of a train state that the run inherits from its parent.

    Fine-tuning inherits the weights. A branch inherits the full state. With the data and seed of
    its parent, a branch must reproduce the next batch and the next loss of the parent. abstract:
    abstract arrays of the train state. tokenizer: tokenizer of the run. Raises ValueError if the
    checkpoint is missing or corrupt, or if the parent has another tokenizer.
    """
    parent = parent_run(run)
    validate_start(run, parent)
    parent_folder = records.run_dir(parent)
    parent_tokenizer = tokenizers.open_tokenizer(run_tokenizer.saved_tokenizer(parent))
    if parent_tokenizer.hash != tokenizer.hash:
        raise ValueError(
            f"start.run={parent.name!r} has another tokenizer than data.tokenizer="
            f"{run.data.tokenizer!r}: use the tokenizer that is saved in {parent_folder}"
        )
    step = start_step(run, parent)
    is_branch = run.start.restore == "full_state"
    if distributed.is_primary():
        checkpoint_retention.pin_checkpoint(parent, step, run.name)
    weights = abstract["params"]
    if run.model.lora_rank and not parent.model.lora_rank:
        weights = {name: value for name, value in weights.items() if name != "lora"}
    inherited = abstract if is_branch else {"params": weights}
    restored = checkpoints.read_checkpoint(parent, step, inherited)
    folder = records.run_dir(run)
    if not is_branch:
        return checkpoint_manifest.RestoredState(folder, state=restored.state)
    if (run.data, run.seed) != (parent.data, parent.seed):
        restored = restored.without_expectations()
    return dataclasses.replace(restored, folder=folder, seconds=0.0, window=[])


def parent_facts(run: schema.Run) -> dict:
    """Return the facts of a run about its parent, {} without a parent.

    The facts are the steps, tokens and FLOPs (convention "full") of the parent before the start. A
    branch also has the batches that the parent skipped. The columns "tokens" and "flops" of a
    branch include the steps of its parent; those of fine-tuning do not.
    """
    if not run.start.run:
        return {}
    parent = parent_run(run)
    step = start_step(run, parent)
    n_tokens = batch_size_schedule.BatchSizeSchedule.from_config(parent.data).count_tokens(step)
    n_flops = n_tokens * flops.flops_per_token(parent.model, parent.data.seq_len)["full"]
    facts = {"parent.step": step, "parent.tokens": n_tokens, "parent.flops": n_flops}
    skips = records.read_facts(records.run_dir(parent)).get("passed_over", [])
    if run.start.restore == "full_state" and skips:
        facts["passed_over"] = [skip for skip in skips if skip["from_step"] < step]
    return facts
