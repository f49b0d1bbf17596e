"""Tokenizer and vocabulary size that the config of a run leaves open.

    resolve_tokenizer(run)      # sets data.tokenizer and model.vocab_size, before validation

A fine-tuned run uses the tokenizer file of its parent run. Without this rule, bpe:SIZE would train
another tokenizer on the new text.
"""

from lm.config import model_sizes, schema, validation
from lm.runs import filesystem, records

SAVED_FILES = {"file": "tokenizer.json", "spm": "tokenizer.model"}  # names in a run directory


def resolve_tokenizer(run: schema.Run) -> schema.Run:
    """Return the run, with data.tokenizer and model.vocab_size set if they follow from files.

    data.tokenizer: if the run starts from the weights of a parent run and names the same tokenizer,
    it becomes the file that is saved with the parent. model.vocab_size=0 becomes the size of the
    tokenizer. Nothing changes while the parent run has no directory. Raises ValueError if a field
    is invalid, if a tokenizer file cannot be read, or if model.vocab_size is less than the size of
    the tokenizer.
    """
    validation.validate_fields(run)
    if run.start.run and run.start.restore == "weights" and run.data.tokenizer != "bytes":
        run.data.tokenizer = _parent_tokenizer(run)
    stated_size = model_sizes.named_vocab_size(run.data.tokenizer)
    run.model.vocab_size = run.model.vocab_size or stated_size
    if 0 < run.model.vocab_size < stated_size:
        raise schema.ConfigError(
            f"model.vocab_size={run.model.vocab_size} must be at least {stated_size}, the size of"
            f" data.tokenizer={run.data.tokenizer!r}: set 0 for the same size"
        )
    if run.model.vocab_size == 0:
        # Commands import this file before they print anything, and the library loads slowly.
        from lm.data import tokenizers

        run.model.vocab_size = tokenizers.open_tokenizer(run.data.tokenizer).vocab_size
    return run


def saved_tokenizer(run: schema.Run) -> str:
    """Return the value of data.tokenizer that names the file in the run directory.

    Raises ValueError if the run has no such file and was not trained on bytes.
    """
    folder = records.run_dir(run)
    for kind, name in SAVED_FILES.items():
        if (filesystem.open_path(folder) / name).exists():
            return f"{kind}:{folder / name}"
    if run.data.tokenizer != "bytes":
        raise ValueError(
            f"{folder} has no tokenizer.json or tokenizer.model, and data.tokenizer="
            f"{run.data.tokenizer!r}: copy the tokenizer file of the run into this folder"
        )
    return "bytes"


def _parent_tokenizer(run: schema.Run) -> str:
    """Return the value of data.tokenizer for the run, given its parent run."""
    folder = filesystem.open_path(run.dir) / run.start.run
    if not (folder / "config.json").exists():
        return run.data.tokenizer
    parent = records.read_config(folder)
    is_same = run.data.tokenizer == parent.data.tokenizer
    return saved_tokenizer(parent) if is_same else run.data.tokenizer
