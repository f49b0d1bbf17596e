"""Start a run from the checkpoint of another run, its parent.

    run.start.run, run.start.step = "pretrained/25M", 4000
    run.start.restore = "weights"    # fine-tuning: a new optimizer state, step 0
    run.start.restore = "full_state"      # a branch: optimizer state and step continue, as in a
    cooldown

The parent must have the same model and tokenizer. Nothing is written to its folder except a pin
that preserves the checkpoint.
"""

import dataclasses
from pathlib import Path

import jax

from lm.config import fields, flops, schema, validation
from lm.data import tokenizers
from lm.model import params, transformer
from lm.model.hf import load
from lm.runs import filesystem, records
from lm.training import checkpoint_manifest, checkpoints


def run_from_huggingface(
    folder: str | Path, place: str | Path, tokenizer: str = "", seq_len: int = 0
) -> schema.Run:
    """Makes a run, with one checkpoint at step 1, of a folder that `transformers` wrote.

    tokenizer: as data.tokenizer says it; "": the folder's. seq_len: the run's context; 0: the
    model's, but no more than 1024. ValueError for a file that is damaged, or not of this model.
    """
    folder, place = Path(folder), Path(place)
    shape, name, context = load.read_shape(folder)
    run = schema.Run(name=place.name, dir=str(place.parent), steps=1, model=shape)
    run.data.seq_len = seq_len or min(context, 1024)
    if place.exists() and any(place.iterdir()):
        raise ValueError(f"--run={place} is not empty: name a new folder")
    run.data.tokenizer = tokenizer or load._tokenizer_in(folder)
    known = tokenizers.open_tokenizer(run.data.tokenizer)
    if known.vocab_size > shape.vocab_size:
        raise ValueError(
            f"{folder}: vocab_size={shape.vocab_size} is less than the {known.vocab_size} of"
            f" {run.data.tokenizer}: name the model's own by --tokenizer"
        )
    validation.validate_run(run)
    weights = load.read_weights(folder, shape, name)
    place.mkdir(parents=True, exist_ok=True)
    known.save(place)
    kind, _, path = run.data.tokenizer.partition(":")
    if path:
        run.data.tokenizer = f"{kind}:{place / Path(load._saved_as(known))}"
    about = flops.run_facts(run)
    unknown = ("tokens", "flops")  # of its training
    facts = {key: value for key, value in about.items() if key not in unknown}
    records.start_run(run, facts | {"imported.family": name, "imported.from": folder.name})
    tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
    parameters = jax.tree.unflatten(
        jax.tree.structure(tree),
        [jax.numpy.asarray(weights.pop(path)) for path in params.flatten_by_path(tree)],
    )
    state = {"step": jax.numpy.ones((), jax.numpy.int32), "params": parameters}
    with checkpoints.CheckpointStore(run) as store:
        store.save(1, state, "", [], 0.0)
    records.write_facts(place, status="done", ends_at=1, seconds=0.0)
    return run


LORA = fields.fields_with("adapter", schema.Model)
COMPUTED = fields.fields_with("compute", schema.Model)


def parent_run(run: schema.Run) -> schema.Run:
    """Load the parent of a run. Raises ValueError if there is no run of that name."""
    try:
        return records.read_config(filesystem.open_path(run.dir) / run.start.run)
    except ValueError as error:
        raise ValueError(f"start.run={run.start.run!r}: {error}") from None


def start_step(run: schema.Run, parent: schema.Run) -> int:
    """Return the step of the parent at which the run starts."""
    ends_at = records.read_facts(records.run_dir(parent)).get("ends_at")
    return run.start.step or ends_at or parent.steps


def validate_start(run: schema.Run, parent: schema.Run) -> None:
    """Raise ValueError if the run cannot start from this parent; read no checkpoint."""
    model = vars(run.model)
    may_differ = () if parent.model.lora_rank or run.start.restore == "full_state" else LORA
    changed = [
        f"model.{field}={value!r} there, {model[field]!r} here"
        for field, value in vars(parent.model).items()
        if field not in (*COMPUTED, *may_differ) and model[field] != value
    ]
    if changed:
        raise ValueError(f"start.run={parent.name!r} is another model: {'; '.join(changed)}")
    step = start_step(run, parent)
    if step > parent.steps:
        raise ValueError(
            f"start.step={step} must be at most {parent.steps}, the last step of {parent.name}"
        )
    if run.start.restore == "full_state" and run.steps <= step:
        raise ValueError(
            f"steps={run.steps} must be above start.step={step}: a branch continues to count"
        )


def restore_parent(
    run: schema.Run, abstract: dict, tokenizer: tokenizers.Tokenizer
) -> checkpoint_manifest.RestoredState:
    """Restore the part of a train state that the run takes over from its parent.

    A branch with the data of its parent also has the parent's next batch and loss to reproduce.
    Raises ValueError if the checkpoint is missing, corrupt, or of another tokenizer.
    """
    source = parent_run(run)
    validate_start(run, source)
    folder = records.run_dir(source)
    if tokenizers.load_tokenizer(folder).hash != tokenizer.hash:
        raise ValueError(
            f"start.run={source.name!r} has another tokenizer than data.tokenizer="
            f"{run.data.tokenizer!r}: use the one saved in {folder}"
        )
    step = start_step(run, source)
    is_branch = run.start.restore == "full_state"
    checkpoints.protect(source, step, run.name)
    params = abstract["params"]
    if run.model.lora_rank and not source.model.lora_rank:
        params = {name: value for name, value in params.items() if name != "lora"}
    wanted = abstract if is_branch else {"params": params}
    restored = checkpoints.read_checkpoint(source, step, wanted)
    folder = records.run_dir(run)
    if not is_branch:
        return checkpoint_manifest.RestoredState(folder, state=restored.state)
    if (run.data, run.seed) != (source.data, source.seed):
        restored = restored.without_expectations()
    return dataclasses.replace(restored, folder=folder, seconds=0.0, window=[])


def parent_facts(run: schema.Run) -> dict:
    """Return step, tokens and FLOPs (convention "full") of the parent before the start.

    The tokens and flops of a branch include the steps of its parent; those of fine-tuning do not.
    """
    if not run.start.run:
        return {}
    source = parent_run(run)
    step = start_step(run, source)
    n_tokens = step * source.data.batch_size * source.data.seq_len
    n_flops = n_tokens * flops.flops_per_token(source.model, source.data.seq_len)["full"]
    facts = {"parent.step": step, "parent.tokens": n_tokens, "parent.flops": n_flops}
    skips = records.read_facts(records.run_dir(source)).get("passed_over", [])
    if run.start.restore == "full_state" and skips:
        facts["passed_over"] = [skip for skip in skips if skip["from_step"] < step]
    return facts
