"""Tokenizers restore text, count its bytes, and read published files."""

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
from lm.data.tokenization import bpe_training, special_tokens

# Any Unicode text without NUL and without halves of surrogate pairs.
UNICODE_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
TEXTS = ["the cat sat on the mat", "the other cat, häppy; sat there", "def f(x):\n    return x"] * 9


@functools.cache
def bpe() -> tokenizers.HFTokenizer:
    """Return a BPE tokenizer that is trained on TEXTS."""
    return bpe_training.train_bpe(iter(TEXTS), 300)


def train_sentencepiece(**options) -> tokenizers.SentencePieceTokenizer:
    """Train a SentencePiece tokenizer on TEXTS."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=300, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=9, **options,
    )  # fmt: skip
    return tokenizers.SentencePieceTokenizer(model.getvalue())


@functools.cache
def sentencepiece_bpe() -> tokenizers.SentencePieceTokenizer:
    """Return a SentencePiece tokenizer that is trained on TEXTS."""
    return train_sentencepiece()


LOSSLESS = {"bytes": tokenizers.ByteTokenizer, "bpe": bpe, "sentencepiece": sentencepiece_bpe}
each_lossless = pytest.mark.parametrize("make", LOSSLESS.values(), ids=LOSSLESS)


def without_space_marks(make, text: str) -> str:
    """Return the text without U+2581, which represents a space in SentencePiece."""
    return text.replace("\u2581", "_") if make is sentencepiece_bpe else text


@each_lossless
@settings(deadline=None)
@given(text=UNICODE_TEXTS)
def test_decoding_restores_any_text(make, text):
    tokenizer, text = make(), without_space_marks(make, text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.append(ids, tokenizer.end).astype(np.int32)) == text


@each_lossless
@settings(deadline=None)
@given(text=UNICODE_TEXTS)
def test_byte_lengths_of_tokens_add_up_to_the_text(make, text):
    tokenizer, text = make(), without_space_marks(make, text)
    ids = np.append(tokenizer.encode(text), tokenizer.end)
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


@each_lossless
@settings(deadline=None)
@given(text=UNICODE_TEXTS)
def test_no_text_contains_the_end_token(make, text):
    assert make().end not in make().encode(text)


@each_lossless
def test_names_of_special_tokens_are_ordinary_text(make):
    for name in tokenizers.END_TOKENS[1:]:
        ids = make().encode(f"a{name}b")
        assert make().end not in ids and make().decode(ids) == f"a{name}b"


@each_lossless
def test_vocabulary_fits_the_token_type(make):
    tokenizer = make()
    assert tokenizer.byte_lengths().shape == (tokenizer.vocab_size,)
    assert tokenizer.byte_lengths()[tokenizer.end] == 0
    assert np.iinfo(tokenizer.dtype).max >= tokenizer.vocab_size - 1
    assert tokenizer.encode("the cat").dtype == tokenizer.dtype
    assert tokenizer.dtype == (np.uint8 if make is tokenizers.ByteTokenizer else np.uint16)


@each_lossless
def test_loaded_tokenizer_equals_the_saved_tokenizer(make, tmp_path):
    tokenizer = make()
    tokenizer.save(tmp_path)
    loaded = tokenizers.load_tokenizer(tmp_path)
    for name in ("hash", "vocab_size", "end"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    np.testing.assert_array_equal(loaded.encode(TEXTS[1]), tokenizer.encode(TEXTS[1]))


@each_lossless
def test_batch_encoding_equals_separate_encoding(make):
    for ids, text in zip(make().encode_all(TEXTS[:3]), TEXTS[:3], strict=True):
        np.testing.assert_array_equal(ids, make().encode(text))


@each_lossless
@pytest.mark.parametrize(
    "text, message",
    [
        ("ab\0c", "is binary, not text: NUL at character 2"),
        ("a\ud800", "half a surrogate pair at character 1"),
    ],
)
def test_invalid_text_is_rejected(make, text, message):
    with pytest.raises(ValueError, match=message):
        make().encode_all(["good", text])


def test_end_token_decodes_to_an_empty_text():
    assert tokenizers.ByteTokenizer().decode([72, tokenizers.END, 73, tokenizers.END]) == "HI"


def test_truncated_character_decodes_to_u_fffd():
    tokenizer = tokenizers.ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("aé")[:-1]) == "a\ufffd"
    assert bpe().decode(bpe().encode("a\U0001f600")[:-1]).startswith("a\ufffd")


def test_bpe_merges_frequent_words():
    assert bpe().end == tokenizers.END == 0
    assert len(bpe().encode("the cat sat")) == 3
    assert b" cat" in bpe().pieces


def test_bpe_is_the_same_in_another_process():
    code = (
        "import sys; sys.path.insert(0, 'tests/data')\n"
        "import test_tokenizers\n"
        "print(test_tokenizers.bpe().hash)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout.strip() == bpe().hash


def test_bpe_depends_on_its_texts():
    assert bpe_training.train_bpe(iter(TEXTS[:5]), 300).hash != bpe().hash


def published_tokenizer(
    tmp_path: Path,
    normalizer: normalizers.Normalizer | None = None,
    special_tokens: dict[str, int] | None = None,
) -> tokenizers.Tokenizer:
    """Open a tokenizer.json in the style of published ones: a word list, U+2581 for spaces."""
    special = special_tokens or {}
    vocab = {"[UNK]": 0, "\u2581the": 1, "\u2581cat": 2, "\u2581": 3, "s": 4} | special
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    if normalizer:
        inner.normalizer = normalizer
    inner.add_special_tokens(list(special))
    inner.save(str(tmp_path / "tokenizer.json"))
    return tokenizers.open_tokenizer(f"file:{tmp_path}/tokenizer.json")


def test_published_tokenizer_uses_its_own_end_token(tmp_path):
    tokenizer = published_tokenizer(tmp_path, special_tokens={"</s>": 5})
    assert tokenizer.end == 5 and tokenizer.vocab_size == 6
    assert 5 not in tokenizer.encode("the</s>cat")


def test_end_token_is_added_to_a_vocabulary_without_one(tmp_path):
    tokenizer = published_tokenizer(tmp_path)
    assert tokenizer.end == 5 and tokenizer.vocab_size == 6


def test_bytes_differ_if_a_tokenizer_changes_text(tmp_path):
    """The tokenizer inserts a space, so that the tokens represent 8 bytes of 7."""
    tokenizer = published_tokenizer(tmp_path, normalizers.Lowercase())
    ids = tokenizer.encode("The CAT")
    assert list(ids) == [1, 2] and tokenizer.decode(ids) == "the cat"
    assert tokenizer.byte_lengths()[ids].sum() == 8


def test_tokenizer_hash_ignores_json_formatting(tmp_path):
    first = published_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert tokenizers.open_tokenizer(f"file:{path}").hash == first.hash
    assert published_tokenizer(tmp_path, normalizers.Lowercase()).hash != first.hash


def test_invalid_tokenizer_file_is_named_in_the_error(tmp_path):
    (tmp_path / "a").write_text("{}")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="tokenizer='file:.*no' cannot be read"):
        tokenizers.open_tokenizer(f"file:{tmp_path}/no")
    with pytest.raises(ValueError, match="a is not a tokenizer.json file"):
        tokenizers.open_tokenizer(f"file:{tmp_path}/a")
    with pytest.raises(ValueError, match="b' is not UTF-8"):
        tokenizers.open_tokenizer(f"file:{tmp_path}/b")
    with pytest.raises(ValueError, match="a is not a SentencePiece model"):
        tokenizers.open_tokenizer(f"spm:{tmp_path}/a")


@pytest.mark.parametrize("character", ["a", "é", "7", "_", "=", " ", "\n", "語"])
def test_very_long_words_are_divided_for_training(character):
    """The trainer of the library needs time quadratic in the longest word."""
    text = f"some words\x01 {character * 20_000} and more words"
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    parts = bpe_training.training_parts(text)
    assert "".join(parts) == text.replace("\x01", "")
    spans = [stop - start for part in parts for _, (start, stop) in split(part)]
    assert max(spans) <= 2 * bpe_training.MAX_WORD_CHARACTERS
    assert bpe_training.train_bpe(iter([text]), 300).vocab_size > 256


def test_texts_of_usual_words_are_not_divided():
    for text in ("def f(x):\n        return x\n" * 99, "語" * 256, "x" * 255 + " " + "y" * 255):
        assert "".join(bpe_training.training_parts(text)) == text
        assert len(bpe_training.training_parts(text)) == 1


def tokenizer_of(model: models.Model, **parts) -> tokenizers.HFTokenizer:
    """Return a tokenizer of a model of the `tokenizers` library."""
    inner = Tokenizer(model)
    for name, part in parts.items():
        setattr(inner, name, part)
    return tokenizers.HFTokenizer(inner.to_str())


def test_number_signs_are_text_except_in_wordpiece():
    """SentencePiece and Metaspace vocabularies that contain Markdown have a piece ##."""
    pieces = {piece: i for i, piece in enumerate(["\0", "#", "##", "\u2581", "a", "\n"])}
    llama = tokenizer_of(
        models.BPE(vocab=pieces, merges=[("#", "#")]), decoder=decoders.Metaspace()
    )
    assert llama.pieces[2] == b"##" and llama.byte_lengths()[llama.encode("a##a")].sum() == 4
    names = ["[UNK]", "a", "##b", "é", ",", "##,"]
    wordpiece = tokenizer_of(
        models.WordPiece(vocab={name: i for i, name in enumerate(names)}, unk_token="[UNK]"),
        pre_tokenizer=pre_tokenizers.Whitespace(),
    )
    pieces_of_text = [wordpiece.pieces[i] for i in wordpiece.encode("ab é a, ab")]
    assert b"".join(pieces_of_text).decode() == " ab é a, ab"  # words have spaces
    assert wordpiece.pieces[1:3] == [b" a", b"b"] and wordpiece.adds_leading_space
    sentence = train_sentencepiece(user_defined_symbols=["##"])
    assert sentence.pieces[sentence.inner.piece_to_id("##")] == b"##"


def test_suffix_of_word_ends_represents_a_space():
    vocab = {"\0": 0, "a": 1, "b</w>": 2, "ab</w>": 3}
    bpe_model = models.BPE(vocab=vocab, merges=[("a", "b</w>")], end_of_word_suffix="</w>")
    assert tokenizer_of(bpe_model).pieces[1:] == [b"a", b"b ", b"ab "]


def test_piece_of_an_undeclared_end_token_is_empty():
    vocab = {"a": 0, "</s>": 1}
    tokenizer = tokenizer_of(models.WordLevel(vocab, unk_token="a"))
    assert tokenizer.end == 1 and tokenizer.pieces == [b"a", b""]


def test_sorted_pieces_have_their_token_ids():
    pieces, ids = bpe().sorted_pieces
    assert pieces == sorted(pieces) and b"" not in pieces
    assert [bpe().pieces[i] for i in ids] == pieces
    assert max(map(len, pieces)) == bpe().max_piece_bytes


@pytest.mark.parametrize("kind", ["file", "spm"])
def test_tokenizer_of_an_unknown_user_is_missing(kind):
    with pytest.raises(ValueError, match="cannot be read .No such file or directory.: correct"):
        tokenizers.open_tokenizer(f"{kind}:~nobody-has-this-name/tokenizer.json")


def test_sample_of_a_tokenizer_has_32_million_bytes():
    """Another size changes the tokenizers of large text, and the hashes of their runs."""
    assert bpe_training.SAMPLE_BYTES == 32_000_000


def test_end_token_of_a_checkpoint_is_in_the_vocabulary():
    tokenizer = tokenizers.ByteTokenizer()
    size, original = tokenizer.vocab_size, tokenizer.hash
    tokenizer.use_special_tokens(special_tokens.SpecialTokens(end=5, stops=(5, 7)))
    assert (tokenizer.end, tokenizer.vocab_size, tokenizer.stops) == (5, size, (7,))
    assert tokenizer.hash != original
    tokenizer.use_special_tokens(special_tokens.SpecialTokens(end=size))
    assert (tokenizer.end, tokenizer.vocab_size) == (size, size + 1)
    before = tokenizer.hash
    tokenizer.use_special_tokens(special_tokens.SpecialTokens(end=size))
    assert (tokenizer.vocab_size, tokenizer.hash) == (size + 1, before)


def test_file_with_dropout_gives_the_same_tokens_in_each_call():
    vocabulary = {"\0": 0, "a": 1, "b": 2, "ab": 3}
    model = models.BPE(vocab=vocabulary, merges=[("a", "b")], dropout=0.5)
    tokenizer = tokenizers.HFTokenizer(Tokenizer(model).to_str())
    assert {tuple(tokenizer.encode("abab")) for _ in range(20)} == {(3, 3)}
