"""The tokenizer.json of a SentencePiece model has the token ids of the model."""

import functools
import io
import json

import pytest
from fixtures import small_tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lm.config import schema
from lm.data import tokenizers
from lm.model.hf import sentencepiece_conversion, tokenizer_files

OPTIONS = {
    "unigram": {"model_type": "unigram", "vocab_size": 300},
    "unigram bytes": {"model_type": "unigram", "vocab_size": 400, "byte_fallback": True},
    "unigram symbols": {"vocab_size": 300, "user_defined_symbols": ["##", "<tool>"]},
    "bpe": {"model_type": "bpe", "vocab_size": 300, "add_dummy_prefix": False},
    "characters": {"model_type": "char", "vocab_size": 80},
    "identity": {"model_type": "unigram", "vocab_size": 300, "normalization_rule_name": "identity"},
}
# Without U+2581 and combining marks, see sentencepiece_conversion.py, and without chat characters.
LETTERS = st.one_of(
    st.sampled_from(list("abcde THE\n\t\r.#<>0123 \u00e9\ufb01\u2460\u65e5\U0001f600\u00a0\u200b")),
    st.characters(exclude_categories=["Cs", "M"], exclude_characters="\0\1\2\3\u2581"),
)


@functools.cache
def train(name: str) -> tokenizers.SentencePieceTokenizer:
    library = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    lines = (line for text in small_tokenizers.texts() for line in text.split("\n"))
    options = {"hard_vocab_limit": False, "minloglevel": 9} | OPTIONS[name]
    library.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **options)
    return tokenizers.SentencePieceTokenizer(model.getvalue())


@functools.cache
def convert(name: str) -> Tokenizer:
    model, encode = train(name).model, train(name).encode_all
    return Tokenizer.from_str(sentencepiece_conversion.convert_sentencepiece(model, encode))


@settings(deadline=None, max_examples=30)
@given(st.lists(LETTERS, max_size=20).map("".join))
@example("a\nb")
@example("x \U0001f600")
@example("  two  spaces ")
def test_converted_ids_are_those_of_sentencepiece(text):
    for name in set(OPTIONS) - {"characters"}:
        ids = train(name).encode(text).tolist()
        assert convert(name).encode(text, add_special_tokens=False).ids == ids, name


def test_text_of_converted_ids_is_that_of_sentencepiece():
    for name in ("unigram bytes", "bpe"):
        ids = train(name).encode("The cat sat.").tolist()
        assert convert(name).decode(ids) == train(name).decode(ids)


def test_exported_folder_has_the_ids_and_the_end(tmp_path):
    run, tokenizer = schema.Run(), train("unigram")
    tokenizer_files.write_tokenizer_files(tmp_path, run, tokenizer)
    loaded, text = tokenizers.load_tokenizer(tmp_path), "a\nb  c \U0001f600"
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert loaded.end == tokenizer.end and loaded.vocab_size == tokenizer.vocab_size
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and config["eos_token"] == "</s>"


def test_model_without_an_equal_file_is_refused():
    with pytest.raises(ValueError, match="without an equal tokenizer.json .its model_type"):
        convert("characters")
