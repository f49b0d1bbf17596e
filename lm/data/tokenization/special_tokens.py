"""Special tokens of a checkpoint: the start of a text, the end of a document, the end of an answer.

    special = read_special_tokens("Llama-3.2-1B", token_ids)    # token_ids: token -> id
    special.start, special.end, special.stops

The files of a Hugging Face folder define them: config.json, generation_config.json and
tokenizer_config.json. A run directory has its own file, special_tokens.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lm.runs import filesystem, json_files

FILE = "special_tokens.json"
HF_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
TEMPLATE_FILE = "chat_template.jinja"
# Entries of config.json and tokenizer_config.json that an export of an imported run repeats.
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MAX_TEMPLATE_BYTES = 1 << 20
# Classes of transformers that put the start token before each text unless add_bos_token is false.
CLASSES_WITH_START = (
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
)


class SpecialTokens(NamedTuple):
    """Token ids of the special tokens, and the files that define them.

    published: content of the files of the original folder, for an export: token_ids (of
    config.json), generation_config, tokenizer_config and chat_template. None without such files.
    """

    start: int | None = None  # precedes each text
    end: int | None = None  # follows each document; None if the files do not define it
    stops: tuple[int, ...] = ()  # other tokens that end an answer
    published: dict | None = None


def read_special_tokens(
    folder: str | Path, token_ids: Mapping[str, int], start: int | None = None
) -> SpecialTokens:
    """Return the special tokens that the files of a folder define.

    token_ids: token -> id. start: token that the tokenizer file itself puts before each text.
    Raises ValueError, naming the file and key, for a value of the wrong type.
    """
    folder = filesystem.open_path(folder)
    if (folder / FILE).exists():
        return _decode_special_tokens(folder / FILE)
    config, generation, tokenizer = (_read_object(folder / name) for name in HF_FILES)
    ends = [
        token_id
        for name, values in zip(HF_FILES, (config, generation), strict=False)
        for token_id in _token_ids(folder / name, values.get("eos_token_id"))
    ]
    if (name := _token_text(tokenizer.get("eos_token"))) in token_ids:
        ends.append(token_ids[name])
    ends = sorted(set(ends), key=ends.index)
    adds_start = tokenizer.get("add_bos_token")
    if adds_start is None and start is None:
        adds_start = tokenizer.get("tokenizer_class") in CLASSES_WITH_START
    if adds_start:
        start = token_ids.get(_token_text(tokenizer.get("bos_token")), start)
    elif adds_start is False:
        start = None
    published = _published_files(folder, config, generation, tokenizer)
    return SpecialTokens(start, ends[0] if ends else None, tuple(ends[1:]), published)


def _published_files(folder: Path, config: dict, generation: dict, tokenizer: dict) -> dict | None:
    """Return the entry `published` of SpecialTokens for a folder of transformers."""
    file = folder / TEMPLATE_FILE
    template = tokenizer.get("chat_template")
    if file.exists():
        template = filesystem.read_limited_bytes(file, MAX_TEMPLATE_BYTES).decode(errors="replace")
    published = {
        "token_ids": {name: config[name] for name in TOKEN_IDS if name in config},
        "generation_config": generation,
        "tokenizer_config": {k: v for k, v in tokenizer.items() if k != "chat_template"},
        "chat_template": template if isinstance(template, str) else "",
    }
    published = {name: value for name, value in published.items() if value}
    return published or None


def _decode_special_tokens(path: Path) -> SpecialTokens:
    """Return the special tokens of the file FILE. Raises ValueError for an invalid entry."""
    values = json_files.read_object(path)
    start, end, stops, published = (values.get(name) for name in SpecialTokens._fields)
    if not isinstance(stops, list) or any(
        type(value) is not int or value < 0 for value in [*stops, start or 0, end or 0]
    ):
        raise ValueError(
            f"{path}: start={start!r}, end={end!r}, stops={stops!r} must be token ids: restore the"
            " file"
        )
    return SpecialTokens(start, end, tuple(stops), published)


def encode_special_tokens(special: SpecialTokens) -> bytes:
    """Return the content of the file FILE, which read_special_tokens reads."""
    values = special._asdict()
    if special.published is None:
        del values["published"]
    return (json.dumps(values) + "\n").encode()


def _read_object(path: Path) -> dict:
    """Return the JSON object of a file, or {} without the file. Raises ValueError if invalid."""
    return json_files.read_object(path) if path.exists() else {}


def _token_ids(path: Path, value: object) -> list[int]:
    """Return the ids of eos_token_id, which is an id, a list of ids, or absent."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    ids = [i for i in values if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
    if len(ids) < len(values):
        raise ValueError(
            f"{path}: eos_token_id={value!r} must be a token id or a list of token ids"
        )
    return ids


def _token_text(value) -> str:
    """Return the text of a token, which is a string or a dict with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""
