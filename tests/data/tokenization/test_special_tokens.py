"""Special tokens come from the files of a checkpoint, and are saved with the tokenizer."""

import json

import numpy as np
import pytest
from fixtures import small_tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lm.data import tokenizers
from lm.data.tokenization import special_tokens, token_healing

VOCAB = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "<turn>": 5, "<pad>": 6}


def write_folder(folder, adds_start: bool = False, **files: dict) -> tokenizers.Tokenizer:
    """Write a Hugging Face folder and open its tokenizer."""
    inner = Tokenizer(models.WordLevel(VOCAB, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_start:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    inner.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return tokenizers.open_tokenizer(f"file:{folder}/tokenizer.json")


def specials(tokenizer: tokenizers.Tokenizer) -> tuple:
    return tokenizer.start, tokenizer.end, tokenizer.stops


def test_end_tokens_come_from_the_config(tmp_path):
    config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": [5, 2]}
    generation = {"eos_token_id": [5, 6]}
    tokenizer = write_folder(tmp_path, config=config, generation_config=generation)
    assert specials(tokenizer) == (None, 5, (2, 6))
    assert tokenizer.pieces[5] == b"" and tokenizer.decode([3, 5]) == "a"


@pytest.mark.parametrize("eos_token", ["<turn>", {"content": "<turn>", "special": True}])
def test_end_token_comes_from_the_tokenizer_config(tmp_path, eos_token):
    tokenizer = write_folder(tmp_path, tokenizer_config={"eos_token": eos_token})
    assert specials(tokenizer) == (None, 5, ())


def test_name_of_the_end_token_is_the_last_resort(tmp_path):
    assert specials(write_folder(tmp_path)) == (None, 2, ())


def test_start_token_comes_from_the_template_or_the_config(tmp_path):
    (tmp_path / "b").mkdir()
    assert write_folder(tmp_path, adds_start=True).start == 1
    config = {"bos_token": "<s>", "add_bos_token": True}
    assert write_folder(tmp_path / "b", tokenizer_config=config).start == 1
    config = {"bos_token": "<s>", "add_bos_token": False}
    assert write_folder(tmp_path, adds_start=True, tokenizer_config=config).start is None


def test_questions_begin_with_the_start_token(tmp_path):
    tokenizer = write_folder(tmp_path, adds_start=True)
    assert token_healing.encode_prompt(tokenizer, "a") == [1, 3]
    pair = token_healing.encode_pair(tokenizer, "a", " b")
    assert (pair.prompt, pair.answer) == ((1, 3), (4,))


def test_special_tokens_are_saved_with_the_tokenizer(tmp_path):
    (tmp_path / "run").mkdir()
    config = {"eos_token_id": [5, 6]}
    tokenizer = write_folder(tmp_path, adds_start=True, config=config)
    tokenizer.save(tmp_path / "run")
    loaded = tokenizers.load_tokenizer(tmp_path / "run")
    assert specials(loaded) == specials(tokenizer) == (1, 5, (6,))
    assert loaded.hash == tokenizer.hash


def test_end_token_is_a_part_of_the_hash(tmp_path):
    hashes = {write_folder(tmp_path, config={"eos_token_id": end}).hash for end in (None, 2, 5, 5)}
    assert len(hashes) == 2


def test_own_tokenizers_have_no_special_token_file(tmp_path):
    bpe = small_tokenizers.byte_level_bpe()
    bpe.save(tmp_path)
    (tmp_path / "config.json").write_text('{"name": "run"}')
    assert not (tmp_path / special_tokens.FILE).exists()
    assert tokenizers.load_tokenizer(tmp_path).hash == bpe.hash


@pytest.mark.parametrize("value", ["</s>", [2, None], -1, True])
def test_invalid_end_token_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="config.json: eos_token_id=.* must be a token id"):
        write_folder(tmp_path, config={"eos_token_id": value})


def test_special_tokens_are_tokens_only_in_prompts(tmp_path):
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("ab <>/s")}, merges=[]))
    inner.add_special_tokens(["<s>", "</s>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "add_bos_token": True, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizers.open_tokenizer(f"file:{tmp_path}/tokenizer.json")
    start, end = tokenizer.ids["<s>"], tokenizer.ids["</s>"]
    assert token_healing.encode_prompt(tokenizer, "<s>ab</s>") == [start, 0, 1, end]
    assert token_healing.encode_prompt(tokenizer, "ab") == [start, 0, 1]
    assert tokenizer.encode("ab</s>").tolist() == [0, 1, 3, 5, 6, 4]


def test_control_characters_of_a_checkpoint_are_text(tmp_path):
    """The ids of any Unicode text are those of the library. Conversations have special tokens."""
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    small_tokenizers.byte_level_bpe().save(tmp_path)
    tokenizer = tokenizers.load_tokenizer(tmp_path)
    rng = np.random.default_rng(0)
    texts = ["a\x01\x02 b\x03\n", "\u200d\u0301\U0001f469\u200d\U0001f4bb \ufeff\u202e\x03"]
    points = [p for p in rng.integers(1, 0x110000, 300) if not 0xD800 <= p < 0xE000]
    texts.append(" " + "".join(map(chr, points)) + " \x02\x03 a\x02")
    expected = [encoding.ids for encoding in tokenizer.inner.encode_batch(texts)]
    assert [ids.tolist() for ids in tokenizer.encode_all(texts)] == expected
    assert tokenizer.marks is not None
    user, answer, stop = tokenizer.marks
    ids = tokenizer.encode("\x01a\x02b\x03").tolist()
    assert (ids[0], ids[-1]) == (user, stop) and answer in ids


@pytest.mark.parametrize(
    "content, kind",
    [
        ("IQ== 0\nIg== 1\n", "tiktoken"),
        ('{"vocab": [{"token_bytes": "AA=="}]}', "tekken"),
    ],
)
@pytest.mark.parametrize("name", ["file", "spm"])
def test_other_vocabularies_are_refused_with_a_conversion(tmp_path, content, kind, name):
    (tmp_path / "vocab").write_text(content)
    with pytest.raises(ValueError, match=f"vocab is a {kind} vocabulary, .* convert the"):
        tokenizers.open_tokenizer(f"{name}:{tmp_path / 'vocab'}")
