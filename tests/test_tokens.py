"""Properties of the tokenizers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import tokens

# Any Unicode text without NUL and without halves of surrogate pairs.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(TEXT)
def test_bytes_round_trip_on_any_unicode(text):
    ids = tokens.Bytes().encode(text)
    assert tokens.Bytes().decode(ids) == text
    assert tokens.Bytes().decode(ids.astype(np.int32)) == text


@given(TEXT)
def test_byte_lengths_of_the_tokens_add_up_to_the_bytes_of_the_text(text):
    tokenizer = tokens.Bytes()
    ids = np.append(tokenizer.encode(text), tokens.END)
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


@given(TEXT)
def test_no_text_holds_the_token_that_ends_documents(text):
    assert tokens.END not in tokens.Bytes().encode(text)


def test_tokens_fit_the_vocabulary_and_the_type():
    tokenizer = tokens.Bytes()
    assert tokenizer.byte_lengths().shape == (tokenizer.vocab_size,)
    assert np.iinfo(tokenizer.dtype).max >= tokenizer.vocab_size - 1


def test_the_ends_of_documents_decode_to_nothing():
    assert tokens.Bytes().decode([72, tokens.END, 73, tokens.END]) == "HI"


def test_half_a_character_decodes_to_the_replacement_character():
    assert tokens.Bytes().decode(tokens.Bytes().encode("aé")[:-1]) == "a\ufffd"


def test_binary_text_is_refused():
    with pytest.raises(ValueError, match="is binary, not text: NUL at character 2"):
        tokens.Bytes().encode("ab\0c")


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(ValueError, match="half a surrogate pair at character 1"):
        tokens.Bytes().encode("a\ud800")
