"""Tests of the export to transformers: equal weights, logits, files and token ids."""

import dataclasses
import json

import jax
import jinja2
import numpy as np
import pytest
import safetensors.numpy
from fixtures.hf import random_models
from tokenizers import Tokenizer

from lm.config import schema
from lm.data import tokenizers
from lm.data.sources import chat
from lm.data.tokenization import bpe_training, special_tokens, token_healing
from lm.model import params, transformer
from lm.model.hf import architectures, export, load


@pytest.mark.parametrize(
    "fields", random_models.VARIANTS.values(), ids=random_models.VARIANTS.keys()
)
def test_exported_weights_are_read_unchanged(tmp_path, fields):
    run, weights = random_models.export_random_model(tmp_path / "out", fields, shard_bytes=5000)
    shape, name, context = load.read_shape(tmp_path / "out")
    arrays = load.read_weights(tmp_path / "out", shape, name)
    if name.startswith("gemma"):  # its scales are rounded after a subtraction of 1
        expected = params.flatten_by_path(weights)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7), arrays, expected)
    else:
        assert random_models.checksums(arrays) == random_models.checksums(weights)
    assert context == 32
    ignored = {"base_width": 64, "base_depth": 4, "d_ff": shape.d_ff if shape.n_experts else 24}
    ignored["rope_original_length"] = run.model.rope_original_length
    assert shape == dataclasses.replace(run.model, **ignored)


def test_shards_have_the_requested_size(tmp_path):
    """The index lists every tensor with its file."""
    random_models.export_random_model(tmp_path, {}, shard_bytes=6000)
    index = json.loads((tmp_path / architectures.INDEX_FILE).read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    total_bytes = 0
    for file in files:
        tensors = safetensors.numpy.load_file(file)
        assert all(index["weight_map"][name] == file.name for name in tensors)
        n_bytes = sum(array.nbytes for array in tensors.values())
        assert n_bytes <= 6000 or len(tensors) == 1
        total_bytes += n_bytes
    assert index["metadata"]["total_size"] == total_bytes


@pytest.mark.parametrize("write_bytes", [64, 1000, 1 << 24])
def test_file_does_not_depend_on_the_write_size(tmp_path, write_bytes, monkeypatch):
    random_models.export_random_model(tmp_path / "default", random_models.GPT2_FIELDS)
    monkeypatch.setattr(export, "WRITE_BYTES", write_bytes)
    random_models.export_random_model(tmp_path / "changed", random_models.GPT2_FIELDS)
    expected = (tmp_path / "default" / architectures.WEIGHTS_FILE).read_bytes()
    assert (tmp_path / "changed" / architectures.WEIGHTS_FILE).read_bytes() == expected


@pytest.mark.parametrize("name", ["mup", "completep"])
@pytest.mark.parametrize(
    "fields",
    [
        random_models.VARIANTS["olmo2"],
        random_models.GPT2_FIELDS | {"tie_embeddings": True},
        {"n_experts": 3, "d_expert": 12},
    ],
)
def test_factors_of_a_parametrization_are_in_the_weights(tmp_path, name, fields):
    run, weights = random_models.export_random_model(tmp_path, fields | {"parametrization": name})
    shape, architecture, _ = load.read_shape(tmp_path)
    arrays = load.read_weights(tmp_path, shape, architecture)
    tokens_BT = np.arange(32)[None] * 7 % 256
    expected, actual = (
        jax.jit(
            lambda params, s=s: transformer.compute_logits(
                dataclasses.replace(s, attention_query_blocks=1), params, tokens_BT
            )
        )(params)
        for s, params in (
            (run.model, weights),
            (shape, random_models.unflatten(weights, arrays)),
        )
    )
    assert shape.parametrization == "standard"
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_lora_adapters_are_merged(tmp_path):
    run, weights = random_models.export_random_model(tmp_path, {"lora_rank": 2})
    arrays = load.read_weights(tmp_path, *load.read_shape(tmp_path)[:2])
    query = params.flatten_by_path(weights)["blocks/attention/query"]
    assert np.abs(arrays["blocks/attention/query"] - query).max() > 0.01
    tokens_BT = np.arange(32)[None]
    merged_shape = dataclasses.replace(run.model, lora_rank=0)
    base_weights = {name: value for name, value in weights.items() if name != "lora"}
    merged, expected = (
        jax.jit(lambda w, shape=shape: transformer.compute_logits(shape, w, tokens_BT))(tree)
        for shape, tree in (
            (merged_shape, random_models.unflatten(base_weights, arrays)),
            (run.model, weights),
        )
    )
    np.testing.assert_allclose(merged, expected, atol=1e-5)


def test_folder_that_is_not_empty_is_refused(tmp_path):
    random_models.export_random_model(tmp_path, {})
    with pytest.raises(ValueError, match="is not empty: name a new folder"):
        random_models.export_random_model(tmp_path, {})


def test_exported_byte_tokenizer_has_the_same_ids(tmp_path):
    random_models.export_random_model(tmp_path, {})
    exported = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    loaded = tokenizers.load_tokenizer(tmp_path)
    letters = "".join(chr(i) for i in range(1, 0x3000) if not 0xD800 <= i < 0xE000)
    for text in ("héllo  wörld\n\t", "\x01q\x02a\x03", "日本 🎉 \U0010ffff", letters, "Ā ā"):
        ids = exported.encode(text).ids
        assert ids == list(text.encode()) == loaded.encode(text).tolist()
        assert exported.decode(ids) == loaded.decode(ids) == text
    assert exported.token_to_id("\0") == 0 == loaded.end
    assert exported.decode([65, 0, 66]) == "AB"  # the end of a document has no text
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "\0"


def test_other_tokenizers_are_exported_unchanged(tmp_path):
    bpe = bpe_training.train_bpe(iter(["some words and some more words"] * 9), 270)
    run = schema.Run(model=dataclasses.replace(random_models.SHAPE, vocab_size=270))
    export.export_model(run, random_models.random_weights(run.model), bpe, tmp_path)
    assert tokenizers.load_tokenizer(tmp_path).hash == bpe.hash
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == bpe.end


def test_special_tokens_of_an_import_are_exported(tmp_path):
    bpe = bpe_training.train_bpe(iter(["some words and some more words"] * 9), 270)
    bpe.use_special_tokens(special_tokens.SpecialTokens(start=7, end=0, stops=(9,)))
    run = schema.Run(model=dataclasses.replace(random_models.SHAPE, vocab_size=270))
    export.export_model(run, random_models.random_weights(run.model), bpe, tmp_path)
    for name in ("config", "generation_config"):
        config = json.loads((tmp_path / f"{name}.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (7, [0, 9])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["bos_token"] == bpe.inner.id_to_token(7) and config["add_bos_token"]
    loaded = tokenizers.load_tokenizer(tmp_path)
    assert (loaded.start, loaded.end, loaded.stops) == (7, 0, (9,))


@pytest.mark.parametrize(
    "fields", random_models.VARIANTS.values(), ids=random_models.VARIANTS.keys()
)
def test_transformers_computes_the_same_logits(tmp_path, fields):
    torch = pytest.importorskip("torch", reason="extra: transformers")
    transformers = pytest.importorskip("transformers", reason="extra: transformers")
    run, weights = random_models.export_random_model(tmp_path, fields, shard_bytes=5000)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    ).eval()
    shape = dataclasses.replace(run.model, attention_query_blocks=1)
    for tokens_BT in (np.arange(256).reshape(8, 32), np.full((1, 32), 7), np.array([[255]])):
        actual = jax.jit(lambda ids: transformer.compute_logits(shape, weights, ids))(tokens_BT)
        with torch.no_grad():
            expected = model(torch.tensor(tokens_BT)).logits.numpy()
        np.testing.assert_allclose(actual, expected, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "héllo \x01 日本 Ā"
    assert tokenizer(text)["input_ids"] == list(text.encode()) and tokenizer.eos_token_id == 0
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", ["chat", "question"])
def test_exported_chat_model_stops_and_has_its_template(tmp_path, name):
    """Special characters are special tokens, and the template renders conversations as ours do."""
    run = schema.Run(model=dataclasses.replace(random_models.SHAPE, vocab_size=270))
    run.data.sources = {f"chat:prompts.jsonl?template={name}": 1.0, "code": 0.0}
    bpe = bpe_training.train_bpe(iter(["\x01some words\x02 and some more\x03"] * 9), 270)
    assert bpe.marks is not None
    weights = random_models.random_weights(run.model)
    for folder, tokenizer in (("bpe", bpe), ("bytes", tokenizers.ByteTokenizer())):
        out = tmp_path / folder
        export.export_model(run, weights, tokenizer, out)
        for file in ("config", "generation_config"):
            config = json.loads((out / f"{file}.json").read_text())
            assert config["eos_token_id"] == [tokenizer.end, tokenizer.marks[2]]
        turns = [chat.Turn("Be brief.\n\nsome\n words", "an 'answer'"), chat.Turn("and?", "more")]
        messages = [{"role": "system", "content": "Be brief."}]
        for turn in (chat.Turn("some\n words", turns[0].answer), turns[1]):
            parts = [{"type": "text", "text": turn.prompt}]
            messages.append({"role": "user", "content": parts})
            messages.append({"role": "assistant", "content": f"\x03{turn.answer}"})
        template = jinja2.Template((out / "chat_template.jinja").read_text())
        text = chat.render_conversation(name, turns)
        # A conversation of a training row begins with the end of the document before it.
        first = json.loads((out / "tokenizer_config.json").read_text())["eos_token"]
        assert template.render(messages=messages) == first + text
        prompt = template.render(messages=messages[:2], add_generation_prompt=True)
        assert prompt == first + chat.render_prompt(name, turns[0].prompt)
        exported = Tokenizer.from_file(str(out / "tokenizer.json"))
        assert exported.encode(text).ids == tokenizer.encode(text).tolist()
        assert exported.encode(prompt).ids == token_healing.encode_prompt(
            tokenizer, prompt.removeprefix(first)
        )
        assert not set(tokenizers.CHAT_TOKENS) & set(exported.decode(exported.encode(text).ids))
        loaded = tokenizers.load_tokenizer(out)
        assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert (loaded.end, loaded.stops) == (tokenizer.end, (tokenizer.marks[2],))


def test_files_of_an_imported_folder_are_exported(tmp_path):
    """Padding, chat template and sampling options are those of the original folder."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    bpe = bpe_training.train_bpe(iter(["some words and some more words"] * 9), 270)
    bpe.save(source)
    files = {
        "config": {"bos_token_id": 7, "eos_token_id": 0, "pad_token_id": 5},
        "generation_config": {"eos_token_id": [0, 9], "temperature": 0.6, "pad_token_id": 5},
        "tokenizer_config": {"pad_token": bpe.inner.id_to_token(5), "model_max_length": 99},
    }
    for name, content in files.items():
        (source / f"{name}.json").write_text(json.dumps(content))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    opened = tokenizers.load_tokenizer(source)
    opened.save(tmp_path / "run")
    run = schema.Run(model=dataclasses.replace(random_models.SHAPE, vocab_size=270))
    weights = random_models.random_weights(run.model)
    export.export_model(run, weights, tokenizers.load_tokenizer(tmp_path / "run"), out)
    exported = {name: json.loads((out / f"{name}.json").read_text()) for name in files}
    ids = {"bos_token_id": 7, "eos_token_id": [0, 9], "pad_token_id": 5}
    assert exported["config"] == exported["config"] | ids
    assert exported["generation_config"] == files["generation_config"] | ids
    assert exported["tokenizer_config"] == exported["tokenizer_config"] | files["tokenizer_config"]
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"


def test_exported_end_is_found_anywhere_in_a_text(tmp_path):
    """The end is a special token between letters and spaces, and spaces beside it are tokens."""
    random_models.export_random_model(tmp_path, {})
    exported = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("a\0b", " \0 ", "\n\0\0\n", "A \0", "\0a"):
        ids = exported.encode(text).ids
        assert ids == list(text.encode())
        assert exported.decode(ids) == text.replace("\0", "")
        assert exported.decode(ids, skip_special_tokens=False) == text
