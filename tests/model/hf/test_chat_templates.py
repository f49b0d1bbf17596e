"""Tests of chat templates: those of runs, those of imported folders, and invalid ones."""

import pytest

from lm.config import schema
from lm.data import tokenizers
from lm.data.sources import chat
from lm.data.tokenization import special_tokens
from lm.model.hf import chat_templates, tokenizer_files

MESSAGES = [{"role": "user", "content": "2+2?"}]
BYTES = tokenizers.ByteTokenizer()


def chat_run(name: str) -> schema.Run:
    run = schema.Run()
    run.data.sources = {f"chat:prompts.jsonl?template={name}": 1.0}
    return run


@pytest.mark.parametrize("name", ["chat", "question"])
def test_prompt_of_a_run_is_that_of_its_training(name):
    template = chat_templates.chat_template(chat_run(name), BYTES)
    prompt = chat_templates.render_prompt(template, MESSAGES, BYTES)
    assert prompt == chat.render_prompt(name, "2+2?")
    exported = tokenizer_files.render_template(name, "\0")
    assert chat_templates.render_prompt(exported, MESSAGES, BYTES) == prompt
    assert chat_templates.chat_template(schema.Run(), BYTES) == ""


def test_template_of_a_folder_uses_its_special_tokens():
    tokenizer = tokenizers.ByteTokenizer()
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role | tojson }}]{{ m.content }}\n"
    template += "    {%- if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    template += "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    published = {"chat_template": template, "tokenizer_config": {"bos_token": {"content": "<s>"}}}
    tokenizer.checkpoint_tokens = special_tokens.SpecialTokens(published=published)
    assert chat_templates.chat_template(schema.Run(), tokenizer) == template
    prompt = chat_templates.render_prompt(template, MESSAGES, tokenizer)
    assert prompt == '<s>["user"]2+2?[assistant]'
    with pytest.raises(ValueError, match="cannot be applied: no tools"):
        chat_templates.render_prompt(template, [{"role": "tool", "content": ""}], tokenizer)


@pytest.mark.parametrize(
    "template", ["{{ messages", "{{ ''.__class__.__mro__[1].__subclasses__() }}"]
)
def test_invalid_and_unsafe_templates_are_refused(template):
    with pytest.raises(ValueError, match="chat template of the model cannot be applied"):
        chat_templates.render_chat(template, MESSAGES, {})
