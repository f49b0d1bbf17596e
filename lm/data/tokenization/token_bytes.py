"""Bytes of text that the tokens of a published vocabulary represent."""

import re

# Chinese and Japanese letters, which no space precedes.
LETTERS_WITHOUT_SPACES = re.compile(
    "[\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af]"
)


def from_byte_level(piece: str) -> bytes:
    """Return the bytes of a byte-level token."""
    return b"".join(LETTERS.get(letter) or letter.encode() for letter in piece)


def from_piece(piece: str, prefix: str = "", suffix: str = "") -> bytes:
    """Return the bytes of a token that is not byte-level. U+2581 represents a space.

    prefix: affix of tokens that continue a word, such as ## of WordPiece. The other tokens of such
    a vocabulary begin with a space, unless they begin with punctuation or with a Chinese or
    Japanese letter. suffix: affix of tokens that end a word, which represents a space.

    A token of a vocabulary with `prefix` does not record whether a space precedes it. A word after
    punctuation or a Chinese letter without a space, and the first word of a text, count one byte
    too many: a-b counts 5 bytes. Punctuation after a space counts one byte too few. The bits per
    byte of sources that consist of tokens contain this error; those of text are scaled.
    """
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    if suffix and piece.endswith(suffix):
        piece = piece.removesuffix(suffix) + " "
    elif prefix and not suffix and not piece.startswith(prefix) and piece[:1].isalnum():
        piece = piece if LETTERS_WITHOUT_SPACES.match(piece) else f" {piece}"
    return piece.removeprefix(prefix).replace("\u2581", " ").encode()


def _letters_of_bytes() -> dict[str, bytes]:
    """Return {letter: byte}. GPT-2 represents non-printable bytes by letters from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = sorted(set(range(256)) - printable)
    letters = {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}
    return letters | {chr(byte): bytes([byte]) for byte in printable}


LETTERS = _letters_of_bytes()


def check_vocabulary_format(content: bytes, where: str) -> None:
    """Raise ValueError if a file is a vocabulary of tiktoken or Mistral's tekken.

    These files do not contain the rules that split a text. where: name of the file.
    """
    first_line = content[:1000].split(b"\n", 1)[0].strip()
    kind = ""
    if re.fullmatch(rb"[A-Za-z0-9+/]+={0,2} [0-9]+", first_line):
        kind = "tiktoken"
    elif first_line.startswith(b"{") and b'"token_bytes"' in content[:100_000]:
        kind = "tekken"
    if kind:
        raise ValueError(
            f"{where} is a {kind} vocabulary, which is not read: convert the folder of the model by"
            " transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OUT), and set"
            " file:OUT/tokenizer.json"
        )
