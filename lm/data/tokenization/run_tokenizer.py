"""Tokenizer of a run: its files in the run directory, and fields that the config leaves open.

    resolve_tokenizer(run)            # sets data.tokenizer and model.vocab_size, before validation
    training_data(run)                # data config with a tokenizer file that exists
    save_tokenizer(run, tokenizer)    # writes its files; returns their checksums for facts.json
    saved_tokenizer(run)              # the verified file in the run directory

A fine-tuned run uses the tokenizer file of its parent run. Without this rule, bpe:SIZE would train
another tokenizer on the new text.

facts.json has the SHA-256 of each file, so that another tokenizer is never used silently. A damaged
file is restored from a prepared text whose copy has this SHA-256.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lm.config import model_sizes, schema, validation
from lm.data.prepared import block_checksums
from lm.runs import filesystem, records

if TYPE_CHECKING:
    from lm.data import tokenizers

CHECKSUMS = "tokenizer.files"  # entry of facts.json: file name -> SHA-256
# Kind of data.tokenizer -> file in a run directory.
SAVED_FILES = {"bpe": "tokenizer.json", "file": "tokenizer.json", "spm": "tokenizer.model"}


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

        run.model.vocab_size = tokenizers.open_tokenizer(training_data(run).tokenizer).vocab_size
    return run


def training_data(run: schema.Run) -> schema.Data:
    """Return the data config of a run, with a tokenizer file that exists.

    If the file of data.tokenizer is missing, and the run has started, the copy in its directory is
    used after a line on stderr. Raises ValueError if the copy is damaged.
    """
    kind, _, path = run.data.tokenizer.partition(":")
    is_missing = kind in ("file", "spm") and not _exists(path)
    if not is_missing or not _stored_checksums(run):
        return run.data
    copy = saved_tokenizer(run)
    block_checksums.print_note(
        f"data.tokenizer={run.data.tokenizer!r} is missing: the run continues with"
        f" {copy.partition(':')[2]}"
    )
    return dataclasses.replace(run.data, tokenizer=copy)


def _exists(path: str) -> bool:
    """Return True if a local or remote file exists."""
    return filesystem.open_path(os.path.expanduser(path)).exists()


def tokenizer_facts(tokenizer: "tokenizers.Tokenizer") -> dict:
    """Return the facts by which the files of a tokenizer are verified."""
    files = tokenizer.files()
    return {CHECKSUMS: {name: block_checksums.sha256(raw) for name, raw in files.items()}}


def save_tokenizer(run: schema.Run, tokenizer: "tokenizers.Tokenizer") -> dict:
    """Write the files of a tokenizer into the run directory. Return the facts about them.

    If the run has recorded the files before, only damaged files are written. Raises ValueError if a
    file is damaged and `tokenizer` has other files.
    """
    stored = _stored_checksums(run)
    if stored is None:
        tokenizer.save(records.run_dir(run))
        return tokenizer_facts(tokenizer)
    contents = tokenizer.files()
    for name, checksum in stored.items():
        path = records.run_dir(run) / name
        content = contents.get(name, b"")
        if _file_problem(path, checksum) and block_checksums.sha256(content) == checksum:
            filesystem.write_file(path, content)
    verify_saved_files(run)
    return {}


def saved_tokenizer(run: schema.Run) -> str:
    """Return the value of data.tokenizer that names the verified file in the run directory.

    Raises ValueError if the run was not trained on bytes and its file is missing or damaged.
    """
    kind, folder = run.data.tokenizer.partition(":")[0], records.run_dir(run)
    verify_saved_files(run)
    if kind == "bytes":
        return "bytes"
    path = folder / SAVED_FILES[kind]
    if not path.exists():
        raise ValueError(
            f"{folder} has no {path.name}, and data.tokenizer={run.data.tokenizer!r}: copy the"
            " tokenizer file of the run into this folder"
        )
    return f"{'spm' if kind == 'spm' else 'file'}:{path}"


def verify_saved_files(run: schema.Run) -> None:
    """Verify the tokenizer files of a run directory, and restore damaged ones.

    A run of version 0.2.0, which has no checksums, gives a note. Raises ValueError if a file is
    damaged and no prepared text has a copy.
    """
    folder, stored = records.run_dir(run), _stored_checksums(run)
    if stored is None:
        if run.data.tokenizer != "bytes" and (folder / "facts.json").exists():
            block_checksums.print_note(
                f"note: {folder} has no checksum of its tokenizer, because version 0.2.0 wrote it"
            )
        return
    for name, checksum in stored.items():
        if problem := _file_problem(folder / name, checksum):
            _restore_file(run, folder / name, checksum, problem)


def _stored_checksums(run: schema.Run) -> dict[str, str] | None:
    """Return the SHA-256 of each tokenizer file in the records of a run, None without records."""
    stored = records.read_facts(records.run_dir(run)).get(CHECKSUMS)
    if stored is not None and not isinstance(stored, dict):
        path = records.run_dir(run) / "facts.json"
        raise ValueError(f"{path}: {CHECKSUMS}={stored!r} must be an object: restore the file")
    return stored


def _file_problem(path: Path, checksum: str) -> str:
    """Return the difference between a file and its SHA-256, "" without any."""
    if not path.exists():
        return "is missing"
    if block_checksums.sha256(path.read_bytes()) != checksum:
        return "differs from its SHA-256 in facts.json"
    return ""


def _restore_file(run: schema.Run, path: Path, checksum: str, problem: str) -> None:
    """Replace a damaged tokenizer file by the copy of a prepared text with the same SHA-256."""
    from lm.data import staging  # slow to import

    for copy in sorted(staging.local_folder(run.data).glob(f"*/{path.name}")):
        try:
            content = copy.read_bytes()
            if block_checksums.sha256(content) == checksum:
                filesystem.write_file(path, content)
                print(f"{path} {problem}: restored from {copy}", file=sys.stderr, flush=True)
                return
        except OSError as error:
            problem += f", and {error.filename} cannot be used ({error.strerror})"
    raise ValueError(
        f"{path} {problem}, and no folder in data.cache_dir={run.data.cache_dir!r} has a copy:"
        f" restore the file with the SHA-256 {checksum}, or prepare the text of the run with"
        " experiments.prepare"
    )


def _parent_tokenizer(run: schema.Run) -> str:
    """Return the value of data.tokenizer for the run, given its parent run."""
    folder = filesystem.open_path(run.dir) / run.start.run
    if not (folder / "config.json").exists():
        return run.data.tokenizer
    parent = records.read_config(folder)
    is_same = run.data.tokenizer == parent.data.tokenizer
    return saved_tokenizer(parent) if is_same else run.data.tokenizer
