"""Bytes of byte-level tokens, against the byte-level parts of the library tokenizers."""

from tokenizers import decoders, pre_tokenizers

from lm.data.tokenization import token_bytes


def test_letters_are_those_of_the_byte_level_alphabet():
    assert set(token_bytes.LETTERS) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(token_bytes.LETTERS.values()) == [bytes([byte]) for byte in range(256)]


def test_letters_decode_to_their_bytes():
    """The characters contain every byte of valid UTF-8."""
    codes = [*range(0x800), *range(0x800, 0xD800, 61), *range(0xE000, 0x10FFFF, 4093)]
    decode, encode = decoders.ByteLevel().decode, pre_tokenizers.ByteLevel(False, use_regex=False)
    for text in map(chr, codes):
        ((piece, _),) = encode.pre_tokenize_str(text)
        assert token_bytes.from_byte_level(piece) == text.encode()
        assert decode([piece]) == text


def test_piece_of_a_byte_or_with_an_affix_is_decoded():
    assert token_bytes.from_piece("<0xE2>") == b"\xe2"
    assert token_bytes.from_piece("##ing", prefix="##") == b"ing"
    assert token_bytes.from_piece("cat", prefix="##") == b" cat"
    assert token_bytes.from_piece("(", prefix="##") == b"("
    for piece in ("中", "のは", "カー", "〇"):  # Chinese and Japanese
        assert token_bytes.from_piece(piece, prefix="##") == piece.encode()
    for piece in ("한", "ไทย"):  # Korean words have spaces, Thai phrases too
        assert token_bytes.from_piece(piece, prefix="##") == f" {piece}".encode()
    assert token_bytes.from_piece("end</w>", suffix="</w>") == b"end "
    assert token_bytes.from_piece("\u2581a") == b" a"
