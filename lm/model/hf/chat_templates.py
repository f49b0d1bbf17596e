"""Chat templates of models: the Jinja text of a model, and the prompt of a conversation.

    template = chat_template(run, tokenizer)
    render_chat(template, [{"role": "user", "content": "2+2?"}], special_names(tokenizer))

A template may come from a stranger. It runs in the sandbox of Jinja, as in transformers.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jinja2
import jinja2.sandbox

from lm.config import schema
from lm.data import tokenizers
from lm.model.hf import tokenizer_files


def chat_template(run: schema.Run, tokenizer: tokenizers.Tokenizer) -> str:
    """Return the chat template of a model, "" if it has none.

    It is the template of the conversations that the run was trained on, or that of the folder from
    which the model was imported. The former has no first token, which token_healing.py adds.
    """
    name = tokenizer_files.chat_template_name(run, tokenizer)
    if name:
        return tokenizer_files.render_template(name, "")
    return str(tokenizer_files.published_files(tokenizer).get("chat_template", ""))


def special_names(tokenizer: tokenizers.Tokenizer) -> dict[str, str]:
    """Return the names of special tokens that templates use, such as bos_token and eos_token."""
    names = {i: name for name, i in getattr(tokenizer, "ids", {}).items()}
    by_role = {"bos_token": tokenizer.start, "eos_token": tokenizer.end}
    default = {tokenizers.END: "\0"} if isinstance(tokenizer, tokenizers.ByteTokenizer) else names
    special = {role: default[i] for role, i in by_role.items() if i in default}
    config = tokenizer_files.published_files(tokenizer).get("tokenizer_config", {})
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        special |= {role: text} if isinstance(text, str) else {}
    return special


def render_prompt(
    template: str,
    messages: Sequence[Mapping],
    tokenizer: tokenizers.Tokenizer,
    add_generation_prompt: bool = True,
) -> str:
    """Return the text of a conversation without the first token that token_healing.py adds.

    For the arguments see `render_chat`.
    """
    names = special_names(tokenizer)
    text = render_chat(template, messages, names, add_generation_prompt)
    end = names.get("eos_token", "")
    is_own = text.startswith(end + tokenizers.CHAT_TOKENS[0]) and tokenizer.start is None
    return text.removeprefix(end) if is_own else text


def render_chat(
    template: str,
    messages: Sequence[Mapping],
    names: Mapping[str, str],
    add_generation_prompt: bool = True,
) -> str:
    """Return the text of a conversation.

    messages: {"role": "system", "user" or "assistant", "content": text}. names: see special_names.
    Raises ValueError if the template is invalid or refuses the messages.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_refusal, "strftime_now": _format_now}
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **names,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"the chat template of the model cannot be applied: {error}") from None


def _to_json(value: object, indent: int | None = None) -> str:
    """Return a value as JSON. Unlike the filter of Jinja, HTML characters are not escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_refusal(message: str) -> NoReturn:
    """Raise the error of a template that refuses messages."""
    raise jinja2.TemplateError(message)


def _format_now(template: str) -> str:
    """Return the local time in a format of strftime."""
    return datetime.datetime.now().strftime(template)
