"""Where a run begins that does not begin at random: a checkpoint of another run.

    run.start.run, run.start.step = "pretrained/25M", 4000
    run.start.keep = "weights"    # fine-tuning: a fresh optimizer, step 0
    run.start.keep = "state"      # a branch: optimizer and step go on, as in a trunk's cooldown

The other run must be of the same model and tokenizer; its folder is only read, but for a pin that
keeps the checkpoint.
"""

from lm import checkpoint, config, fields, records, sizes, storage, tokens

LORA = fields.fields_with("adapter", config.Model)
COMPUTED = fields.fields_with("compute", config.Model)


def parent(run: config.Run) -> config.Run:
    """The run that this one starts from; ValueError if there is none of that name."""
    place = storage.at(run.dir) / run.start.run
    try:
        return records.read_config(place)
    except ValueError as error:
        raise ValueError(f"start.run={run.start.run!r}: {error}") from None


def first_step(run: config.Run, parent: config.Run) -> int:
    """The parent's step at which this run starts."""
    ends_at = records.read_facts(records.folder(parent)).get("ends_at")
    return run.start.step or ends_at or parent.steps


def check(run: config.Run, parent: config.Run) -> None:
    """ValueError for what no weights of the parent can mend; reads no checkpoint."""
    mine, theirs = vars(run.model), vars(parent.model)
    added = () if parent.model.lora_rank or run.start.keep == "state" else LORA
    changed = [
        f"model.{knob}={value!r} there, {mine[knob]!r} here"
        for knob, value in theirs.items()
        if knob not in COMPUTED and mine[knob] != value and knob not in added
    ]
    if changed:
        raise ValueError(f"start.run={parent.name!r} is another model: {'; '.join(changed)}")
    step = first_step(run, parent)
    if step > parent.steps:
        raise ValueError(
            f"start.step={step} is never reached by {parent.name}: it ends at {parent.steps}"
        )
    if run.start.keep == "state" and run.steps <= step:
        raise ValueError(f"steps={run.steps} must be above start.step={step}: a branch counts on")


def restore(run: config.Run, abstract: dict, tokenizer: tokens.Tokenizer) -> tuple[int, dict, dict]:
    """(steps done, the part of a state that is taken over, the checkpoint's manifest).

    A branch on the parent's own text also gets what the next batch and its loss must be. ValueError
    if the checkpoint is not there, does not prove itself, or belongs to another tokenizer.
    """
    other = parent(run)
    check(run, other)
    folder = records.folder(other)
    if tokens.load(folder).hash != tokenizer.hash:
        raise ValueError(
            f"start.run={other.name!r} has another tokenizer than data.tokenizer="
            f"{run.data.tokenizer!r}: use the one saved in {folder}"
        )
    step = first_step(run, other)
    is_branch = run.start.keep == "state"
    checkpoint.pin(other, step, run.name)
    params = abstract["params"]
    if run.model.lora_rank and not other.model.lora_rank:
        params = {name: value for name, value in params.items() if name != "lora"}
    wanted = abstract if is_branch else {"params": params}
    state, said = checkpoint.read(other, step, wanted)
    if not is_branch:
        return 0, state, {}
    if (run.data, run.seed) != (other.data, other.seed):
        said = {key: value for key, value in said.items() if key not in ("batch", "next")}
    return step, state, said | {"seconds": 0.0, "window": []}


def facts(run: config.Run) -> dict:
    """parent.step, parent.tokens, parent.flops (convention "full"): what came before the start.

    A branch's own tokens and flops count its parent's steps too, those of fine-tuning do not.
    """
    if not run.start.run:
        return {}
    other = parent(run)
    step = first_step(run, other)
    seen = step * other.data.batch_size * other.data.seq_len
    per_token = sizes.flops_per_token(other.model, other.data.seq_len)["full"]
    found = {"parent.step": step, "parent.tokens": seen, "parent.flops": seen * per_token}
    passed = records.read_facts(records.folder(other)).get("passed_over", [])
    if run.start.keep == "state" and passed:
        found["passed_over"] = [p for p in passed if p["from_step"] < step]
    return found
