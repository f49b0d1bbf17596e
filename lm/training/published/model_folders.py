"""Folders of published models: local folders, or snapshots in the cache of the Hugging Face Hub.

model = model_folders.read_model("EleutherAI/pythia-70m@step3000")  # no weights are read
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lm.config import schema
from lm.data import tokenizers
from lm.model.hf import load

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")


class PublishedModel(NamedTuple):
    """A model in a folder of transformers, without its weights."""

    name: str  # last part of the folder or of the name in the Hub, with its revision
    folder: Path
    shape: schema.Model
    architecture: str  # key of architectures.ARCHITECTURES
    context: int  # largest number of tokens of a row
    tokenizer: str  # value of data.tokenizer


def find_model_folder(name: str) -> Path:
    """Return the folder of a model: a local folder, or its snapshot in the cache of the Hub.

    name: FOLDER, or OWNER/NAME or OWNER/NAME@REVISION of the Hub. Raises ValueError if neither
    exists. Nothing is downloaded.
    """
    folder = Path(name).expanduser()
    if (folder / "facts.json").exists():
        raise ValueError(f"{name} is a run: evaluate it with --run={name}")
    if folder.is_dir():
        return folder
    if not HUB_NAME.fullmatch(name):
        raise ValueError(
            f"{name} does not exist: name a folder that transformers wrote, or OWNER/NAME of a"
            " model in the cache of the Hugging Face Hub"
        )
    repository, _, revision = name.partition("@")
    option = f" --revision={revision}" if revision else ""
    remedy = f"download it by hf download {repository}{option}"
    try:
        import huggingface_hub
    except ImportError:
        remedy += f" --local-dir={repository.partition('/')[2]}, and name that folder"
        raise ValueError(
            f"{name} is no folder, and the package huggingface_hub is missing: {remedy}"
        ) from None
    try:
        path = huggingface_hub.snapshot_download(
            repository, revision=revision or None, local_files_only=True
        )
    except (OSError, ValueError):  # the errors of the package for an absent or invalid name
        raise ValueError(
            f"{name} is neither a folder nor in the cache of the Hugging Face Hub: {remedy}"
        ) from None
    return Path(path)


def read_model(name: str, allow_paths: Iterable[str] = (), tokenizer: str = "") -> PublishedModel:
    """Read config.json and the tokenizer of a model.

    name: see find_model_folder. tokenizer: a value of data.tokenizer; "" is the tokenizer of the
    folder. allow_paths: folders to which links in the folder may lead. Raises ValueError if a file
    is corrupt or outside the folder, or if the model is not supported.
    """
    folder = find_model_folder(name)
    load.check_files(folder, allow_paths)
    shape, architecture, context = load.read_shape(folder)
    tokenizer = tokenizer or load.find_tokenizer(folder)
    vocab_size = tokenizers.open_tokenizer(tokenizer).vocab_size
    if vocab_size > shape.vocab_size:
        raise ValueError(
            f"{folder}: vocab_size={shape.vocab_size} is less than the {vocab_size} of {tokenizer}:"
            " pass the tokenizer of the model by --tokenizer"
        )
    last_part = name.rstrip("/").rpartition("/")[2] if HUB_NAME.fullmatch(name) else folder.name
    last_part = last_part or folder.resolve().name
    short_name = re.sub(r"[^\w.+-]", "-", last_part)
    return PublishedModel(short_name, folder, shape, architecture, context, tokenizer)
