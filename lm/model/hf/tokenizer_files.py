"""Files of a folder of transformers that describe tokens: tokenizer, chat template, special tokens.

    ids = special_token_ids(run, tokenizer)              # entries of config.json
    write_tokenizer_files(folder, run, tokenizer)

A run that was tuned on conversations stops at the end of an answer, and its special characters are
special tokens. A checkpoint that was imported has the files of its original folder, except for
tokens that the run changed.
"""

import json
from pathlib import Path

from lm.config import schema
from lm.data import tokenizers
from lm.data.sources import chat
from lm.data.tokenization import special_tokens, token_bytes
from lm.model.hf import sentencepiece_conversion

# Jinja template of a conversation. {first} is the token before it. {user} and {answer} are literals
# before and after a prompt.
_CHAT_TEMPLATE = """\
{{{{- {first} -}}}}
{{%- set system = namespace(text='') -%}}
{{%- for message in messages -%}}
{{%- if message.content is string -%}}{{%- set text = message.content -%}}
{{%- else -%}}{{%- set text = message.content | map(attribute='text') | join -%}}{{%- endif -%}}
{{%- set text = text{removal} -%}}
{{%- if message.role == 'system' -%}}
{{%- set system.text = system.text + text + '\\n\\n' if text else system.text -%}}
{{%- elif message.role == 'user' -%}}
{{{{- {user} + system.text + text + {after} -}}}}{{%- set system.text = '' -%}}
{{%- else -%}}
{{{{- {answer} + text + {stop} -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- {answer} -}}}}{{%- endif -%}}
"""


def chat_template_name(run: schema.Run, tokenizer: tokenizers.Tokenizer) -> str:
    """Return the template of the first conversations that a run was trained on; "" for none.

    A template without special tokens is none, because its answers end with a line.
    """
    for source, weight in run.data.sources.items():
        kind, _, argument = source.partition(":")
        if kind == "chat" and weight and tokenizer.marks is not None:
            name = chat.parse_chat_source(argument).template
            if chat.TEMPLATES[name][1] == chat.STOP:
                return name
    return ""


def special_token_ids(run: schema.Run, tokenizer: tokenizers.Tokenizer) -> dict:
    """Return the ids of the special tokens: the start of a text, ends of an answer, padding.

    Start and padding are those of the folder that the tokenizer was imported from. Other tokenizers
    without a start token have the end of a document in its place, and as padding.
    """
    start = tokenizer.end if tokenizer.start is None else tokenizer.start
    ids = {"bos_token_id": start, "pad_token_id": tokenizer.end}
    ids = published_files(tokenizer).get("token_ids", ids)
    ends = [tokenizer.end, *tokenizer.stops]
    if chat_template_name(run, tokenizer) and tokenizer.marks is not None:
        ends += [tokenizer.marks[2]] if tokenizer.marks[2] not in ends else []
    return ids | {"eos_token_id": ends if len(ends) > 1 else tokenizer.end}


def published_files(tokenizer: tokenizers.Tokenizer) -> dict:
    """Return the stored content of the folder that a tokenizer was imported from, {} for none."""
    checkpoint = tokenizer.checkpoint_tokens
    return (checkpoint.published if checkpoint else None) or {}


def write_tokenizer_files(folder: Path, run: schema.Run, tokenizer: tokenizers.Tokenizer) -> None:
    """Write tokenizer file, tokenizer_config.json, generation_config.json and chat template."""
    published, template = published_files(tokenizer), chat_template_name(run, tokenizer)
    generation = published.get("generation_config", {}) | special_token_ids(run, tokenizer)
    write_json(folder / "generation_config.json", generation)
    if isinstance(tokenizer, tokenizers.ByteTokenizer):
        write_json(folder / "tokenizer.json", _byte_tokenizer())
        start, end = None, "\0"
    else:
        for name, content in tokenizer.files().items():
            if name != special_tokens.FILE:  # the other files contain its entries
                (folder / name).write_bytes(content)
        names = {i: token for token, i in getattr(tokenizer, "ids", {}).items()}
        end = names.get(tokenizer.end)
        start = None if tokenizer.start is None else names.get(tokenizer.start)
    if isinstance(tokenizer, tokenizers.SentencePieceTokenizer):
        encode = tokenizer.encode_all
        text = sentencepiece_conversion.convert_sentencepiece(tokenizer.model, encode)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    if template:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        write_json(folder / "tokenizer.json", _with_special_characters(content, tokenizer))
    first_token = start or end or ""
    text = render_template(template, first_token) if template else published.get("chat_template")
    if text:
        (folder / special_tokens.TEMPLATE_FILE).write_text(text, encoding="utf-8")
    config: dict = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {"model_max_length": run.data.seq_len, "clean_up_tokenization_spaces": False}
    if "tokenizer_config" in published:
        config |= published["tokenizer_config"]
    else:
        config |= {} if end is None else {"eos_token": end, "pad_token": end}
        config |= {} if start is None else {"bos_token": start, "add_bos_token": True}
    write_json(folder / "tokenizer_config.json", config)


def render_template(name: str, first_token: str) -> str:
    """Return the Jinja template of a name in chat.TEMPLATES.

    first_token: text of the token before a conversation, "" without one.
    """
    before, _, after = chat.TEMPLATES[name][0].partition("{}")
    removal = "".join(f" | replace({json.dumps(c)}, '')" for c in tokenizers.CHAT_TOKENS)
    values = {"user": before, "after": after.removesuffix(chat.ANSWER)}
    values |= {"answer": chat.ANSWER, "stop": chat.STOP, "first": first_token}
    literals = {key: json.dumps(value) for key, value in values.items()}
    return _CHAT_TEMPLATE.format(removal=f"{removal}", **literals)


def _with_special_characters(content: dict, tokenizer: tokenizers.Tokenizer) -> dict:
    """Return the content of tokenizer.json in which the characters of a chat are special tokens.

    Their ids do not change. A merge with such a character never occurs in a conversation, where it
    is a token of its own, and is removed.
    """
    vocab, added = content["model"].get("vocab"), content.setdefault("added_tokens", [])
    old_names = {}
    for character, i in zip(tokenizers.CHAT_TOKENS, tokenizer.marks or (), strict=True):
        if isinstance(vocab, dict):
            name = next((name for name, number in vocab.items() if number == i), character)
            old_names[name] = character
        if not any(token["id"] == i for token in added):
            added.append(_special_token(i, character))
    if isinstance(vocab, dict):
        content["model"]["vocab"] = {old_names.get(name, name): i for name, i in vocab.items()}
        merges = content["model"].get("merges") or []
        pairs = [(m, m.split(" ") if isinstance(m, str) else m) for m in merges]
        content["model"]["merges"] = [
            m for m, pair in pairs if not any(name in part for part in pair for name in old_names)
        ]
    added.sort(key=lambda token: token["id"])
    return content


def _special_token(token_id: int, content: str) -> dict:
    """Return an entry of added_tokens of tokenizer.json for a special token."""
    token = {"id": token_id, "content": content, "special": True, "normalized": False}
    return token | {"single_word": False, "lstrip": False, "rstrip": False}


def _byte_tokenizer() -> dict:
    """Return the content of a tokenizer.json with the ids of tokenizers.ByteTokenizer.

    The character NUL is the end of a document.
    """
    letters = {byte[0]: letter for letter, byte in token_bytes.LETTERS.items()} | {
        tokenizers.END: "\0"
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "added_tokens": [_special_token(tokenizers.END, "\0")],
        "pre_tokenizer": level | {"use_regex": False},
        "decoder": level | {"use_regex": False},
        "model": {"type": "BPE", "vocab": {letters[i]: i for i in range(256)}, "merges": []},
    }


def write_json(path: Path, value: dict) -> None:
    """Write a dict as indented ASCII JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
