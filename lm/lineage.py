"""Start a run from the checkpoint of another run, its parent.

    run.start.run, run.start.step = "pretrained/25M", 4000
    run.start.keep = "weights"    # fine-tuning: a new optimizer state, step 0
    run.start.keep = "state"      # a branch: optimizer state and step continue, as in a cooldown

The parent must have the same model and tokenizer. Nothing is written to its folder except a pin
that preserves the checkpoint.
"""

import dataclasses

from lm import checkpoint, config, fields, proof, records, sizes, storage, tokens

LORA = fields.fields_with("adapter", config.Model)
COMPUTED = fields.fields_with("compute", config.Model)


def parent(run: config.Run) -> config.Run:
    """Load the parent of a run. Raises ValueError if there is no run of that name."""
    try:
        return records.read_config(storage.at(run.dir) / run.start.run)
    except ValueError as error:
        raise ValueError(f"start.run={run.start.run!r}: {error}") from None


def first_step(run: config.Run, parent: config.Run) -> int:
    """Return the step of the parent at which the run starts."""
    ends_at = records.read_facts(records.folder(parent)).get("ends_at")
    return run.start.step or ends_at or parent.steps


def check(run: config.Run, parent: config.Run) -> None:
    """Raise ValueError if the run cannot start from this parent; read no checkpoint."""
    model = vars(run.model)
    may_differ = () if parent.model.lora_rank or run.start.keep == "state" else LORA
    changed = [
        f"model.{field}={value!r} there, {model[field]!r} here"
        for field, value in vars(parent.model).items()
        if field not in (*COMPUTED, *may_differ) and model[field] != value
    ]
    if changed:
        raise ValueError(f"start.run={parent.name!r} is another model: {'; '.join(changed)}")
    step = first_step(run, parent)
    if step > parent.steps:
        raise ValueError(
            f"start.step={step} must be at most {parent.steps}, the last step of {parent.name}"
        )
    if run.start.keep == "state" and run.steps <= step:
        raise ValueError(
            f"steps={run.steps} must be above start.step={step}: a branch continues to count"
        )


def restore(run: config.Run, abstract: dict, tokenizer: tokens.Tokenizer) -> proof.RestoredState:
    """Restore the part of a train state that the run takes over from its parent.

    A branch with the data of its parent also has the parent's next batch and loss to reproduce.
    Raises ValueError if the checkpoint is missing, corrupt, or of another tokenizer.
    """
    source = parent(run)
    check(run, source)
    folder = records.folder(source)
    if tokens.load(folder).hash != tokenizer.hash:
        raise ValueError(
            f"start.run={source.name!r} has another tokenizer than data.tokenizer="
            f"{run.data.tokenizer!r}: use the one saved in {folder}"
        )
    step = first_step(run, source)
    is_branch = run.start.keep == "state"
    checkpoint.pin(source, step, run.name)
    params = abstract["params"]
    if run.model.lora_rank and not source.model.lora_rank:
        params = {name: value for name, value in params.items() if name != "lora"}
    wanted = abstract if is_branch else {"params": params}
    restored = checkpoint.read(source, step, wanted)
    folder = records.folder(run)
    if not is_branch:
        return proof.RestoredState(folder, state=restored.state)
    if (run.data, run.seed) != (source.data, source.seed):
        restored = restored.without_expectations()
    return dataclasses.replace(restored, folder=folder, seconds=0.0, window=[])


def facts(run: config.Run) -> dict:
    """Return step, tokens and FLOPs (convention "full") of the parent before the start.

    The tokens and flops of a branch include the steps of its parent; those of fine-tuning do not.
    """
    if not run.start.run:
        return {}
    source = parent(run)
    step = first_step(run, source)
    n_tokens = step * source.data.batch_size * source.data.seq_len
    flops = n_tokens * sizes.flops_per_token(source.model, source.data.seq_len)["full"]
    facts = {"parent.step": step, "parent.tokens": n_tokens, "parent.flops": flops}
    skips = records.read_facts(records.folder(source)).get("passed_over", [])
    if run.start.keep == "state" and skips:
        facts["passed_over"] = [skip for skip in skips if skip["from_step"] < step]
    return facts
