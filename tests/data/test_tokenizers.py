"""Tokenizers: round trips, byte lengths, published files."""

import functools
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lm.data import tokenizers

# Any Unicode text without NUL and without halves of surrogate pairs.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
WORDS = ["the cat sat on the mat", "the other cat, häppy; sat there", "def f(x):\n    return x"] * 9


@functools.cache
def bpe() -> tokenizers.HFTokenizer:
    return tokenizers.train_bpe(iter(WORDS), 300)


@functools.cache
def pieces() -> tokenizers.SentencePieceTokenizer:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_writer=model, vocab_size=300, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=9,
    )  # fmt: skip
    return tokenizers.SentencePieceTokenizer(model.getvalue())


LOSSLESS = {"bytes": tokenizers.ByteTokenizer, "bpe": bpe, "sentencepiece": pieces}
lossless = pytest.mark.parametrize("make", LOSSLESS.values(), ids=LOSSLESS)


@lossless
@settings(deadline=None)
@given(text=TEXT)
def test_any_unicode_round_trips(make, text):
    tokenizer = make()
    if make is pieces:
        text = text.replace("\u2581", "_")  # its mark for a space
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.append(ids, tokenizer.end).astype(np.int32)) == text


@lossless
@settings(deadline=None)
@given(text=TEXT)
def test_byte_lengths_of_tokens_add_up_to_the_text(make, text):
    tokenizer = make()
    if make is pieces:
        text = text.replace("\u2581", "_")
    ids = np.append(tokenizer.encode(text), tokenizer.end)
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


@lossless
@settings(deadline=None)
@given(text=TEXT)
def test_no_text_holds_the_token_that_ends_documents(make, text):
    assert make().end not in make().encode(text)


@lossless
def test_names_of_special_tokens_are_ordinary_text(make):
    for name in tokenizers.ENDS[1:]:
        ids = make().encode(f"a{name}b")
        assert make().end not in ids and make().decode(ids) == f"a{name}b"


@lossless
def test_tokens_fit_the_vocabulary_and_the_type(make):
    tokenizer = make()
    assert tokenizer.byte_lengths().shape == (tokenizer.vocab_size,)
    assert tokenizer.byte_lengths()[tokenizer.end] == 0
    assert np.iinfo(tokenizer.dtype).max >= tokenizer.vocab_size - 1
    assert tokenizer.encode("the cat").dtype == tokenizer.dtype
    assert tokenizer.dtype == (np.uint8 if make is tokenizers.ByteTokenizer else np.uint16)


@lossless
def test_what_is_saved_is_what_is_loaded(make, tmp_path):
    make().save(tmp_path)
    loaded = tokenizers.load_tokenizer(tmp_path)
    assert (loaded.hash, loaded.vocab_size, loaded.end) == (
        make().hash,
        make().vocab_size,
        make().end,
    )
    np.testing.assert_array_equal(loaded.encode(WORDS[1]), make().encode(WORDS[1]))


@lossless
def test_many_texts_are_encoded_as_each_alone(make):
    for ids, text in zip(make().encode_all(WORDS[:3]), WORDS, strict=False):
        np.testing.assert_array_equal(ids, make().encode(text))


@lossless
@pytest.mark.parametrize(
    "text, words",
    [
        ("ab\0c", "is binary, not text: NUL at character 2"),
        ("a\ud800", "half a surrogate pair at character 1"),
    ],
)
def test_what_is_not_text_is_refused(make, text, words):
    with pytest.raises(ValueError, match=words):
        make().encode_all(["good", text])


def test_the_ends_of_documents_decode_to_nothing():
    assert tokenizers.ByteTokenizer().decode([72, tokenizers.END, 73, tokenizers.END]) == "HI"


def test_half_a_character_decodes_to_the_replacement_character():
    assert (
        tokenizers.ByteTokenizer().decode(tokenizers.ByteTokenizer().encode("aé")[:-1]) == "a\ufffd"
    )
    assert bpe().decode(bpe().encode("a\U0001f600")[:-1]).startswith("a\ufffd")


def test_bpe_learns_the_words_of_its_texts():
    assert bpe().end == tokenizers.END == 0
    assert len(bpe().encode("the cat sat")) == 3
    assert b" cat" in bpe().pieces


def test_the_same_texts_give_the_same_bpe_in_another_process():
    code = (
        "import sys; sys.path.insert(0, 'tests')\nimport test_tokens\nprint(test_tokens.bpe().hash)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parents[1],
    )
    assert done.stdout.strip() == bpe().hash
    assert tokenizers.train_bpe(iter(WORDS[:5]), 300).hash != bpe().hash


def of_others(tmp_path, normalizer=None, **special):
    """A tokenizer.json as other people make them: pieces of a word list, spaces as low lines."""
    vocab = {"[UNK]": 0, "\u2581the": 1, "\u2581cat": 2, "\u2581": 3, "s": 4} | special
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    if normalizer:
        inner.normalizer = normalizer
    inner.add_special_tokens(list(special))
    inner.save(str(tmp_path / "tokenizer.json"))
    return tokenizers.open_tokenizer(f"file:{tmp_path}/tokenizer.json")


def test_published_tokenizer_keeps_its_own_end_token(tmp_path):
    tokenizer = of_others(tmp_path, **{"</s>": 5})
    assert tokenizer.end == 5 and tokenizer.vocab_size == 6
    assert 5 not in tokenizer.encode("the</s>cat")  # there it is text
    assert of_others(tmp_path).end == 5  # added behind the vocabulary
    assert of_others(tmp_path).vocab_size == 6


def test_bytes_differ_if_a_tokenizer_changes_text(tmp_path):
    tokenizer = of_others(tmp_path, normalizers.Lowercase())
    ids = tokenizer.encode("The CAT")
    assert list(ids) == [1, 2] and tokenizer.decode(ids) == "the cat"
    assert tokenizer.byte_lengths()[ids].sum() == 8  # with the space that was put in front


def test_tokenizer_hash_ignores_json_formatting(tmp_path):
    first = of_others(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert tokenizers.open_tokenizer(f"file:{path}").hash == first.hash
    assert of_others(tmp_path, normalizers.Lowercase()).hash != first.hash


def test_files_that_are_no_tokenizers_are_named(tmp_path):
    (tmp_path / "a").write_text("{}")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="tokenizer='file:.*no' *: cannot be read"):
        tokenizers.open_tokenizer(f"file:{tmp_path}/no")
    with pytest.raises(ValueError, match="a: is no tokenizer.json"):
        tokenizers.open_tokenizer(f"file:{tmp_path}/a")
    with pytest.raises(ValueError, match="b': is no tokenizer.json"):
        tokenizers.open_tokenizer(f"file:{tmp_path}/b")
    with pytest.raises(ValueError, match="a: is no SentencePiece model"):
        tokenizers.open_tokenizer(f"spm:{tmp_path}/a")
