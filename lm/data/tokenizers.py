"""Tokenizers: bytes, byte-level BPE, tokenizer.json files and SentencePiece models.

    ids = ByteTokenizer().encode("héllo")    # uint8 [6]; needs no training and no files
    tokenizer = open_tokenizer("file:my/tokenizer.json")
    tokenizer.save("my/folder")
    load_tokenizer("my/folder").decode(tokenizer.encode("héllo"))    # "héllo"

All classes have the interface of `Tokenizer`. The token `end` follows each document and represents
no text. Text with NUL or a lone surrogate is rejected. The special characters of a conversation
(see lm/data/sources/chat.py) are always encoded as separate tokens.
"""

import functools
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np

from lm.data.tokenization import special_tokens, token_bytes
from lm.runs import filesystem

END = 0  # end token of bytes and of trained BPE; the byte 0 is NUL, which occurs in no text
FILES = ("tokenizer.json", "tokenizer.model", special_tokens.FILE)  # see Tokenizer.files
MAX_FILE_BYTES = 1 << 28  # of a tokenizer file
MAX_VOCAB_SIZE = 1 << 24  # tokens of a file, whose texts are in memory
CHAT_TOKENS = "\x01\x02\x03"  # special characters: user turn, answer, end of an answer
_SPECIAL_PATTERN = re.compile(f"([{CHAT_TOKENS}])")
# Names of the end token in published vocabularies. The first name that exists is used.
END_TOKENS = (
    "\0",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<|im_end|>",
    "[SEP]",
)


class Tokenizer:
    """Interface of all tokenizers. Subclasses define `_encode_text` and `pieces`."""

    vocab_size: int  # token ids are 0 to vocab_size - 1
    end: int  # id of the end token
    start: int | None = None  # id of the token that the checkpoint requires before every text
    stops: tuple[int, ...] = ()  # ids of other tokens that end an answer
    checkpoint_tokens: special_tokens.SpecialTokens | None = None  # see use_special_tokens
    hash: str  # equal hashes mean equal tokens for any text

    @property
    def dtype(self):
        """Smallest unsigned NumPy type that represents every token id."""
        return np.min_scalar_type(self.vocab_size - 1).type

    def encode(self, text: str) -> np.ndarray:
        """Return token ids [n] without `end`. Raises ValueError for NUL or a lone surrogate."""
        return self.encode_all([text])[0]

    def encode_prompt(self, text: str) -> np.ndarray:
        """Return the token ids [n] of a prompt, without `start` and `end`.

        In a prompt of a checkpoint, the names of its special tokens are these tokens.
        """
        return self.encode_prompts([text])[0]

    def encode_prompts(self, texts: list[str]) -> list[np.ndarray]:
        """Return the token ids of each prompt, see `encode_prompt`."""
        return self.encode_all(texts)

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        """Return the token ids of each text, arrays [n] without `end`.

        Raises ValueError for NUL or a lone surrogate.
        """
        has_special = any(special in text for text in texts for special in CHAT_TOKENS)
        if self.marks is None or not has_special:
            return self._encode_text(texts)
        # Even parts are text, odd parts are special characters. The vocabulary of a checkpoint was
        # not trained on conversations with them, so they are text outside of conversations.
        parts_of_texts = [
            _SPECIAL_PATTERN.split(text)
            if self.checkpoint_tokens is None or text.startswith(CHAT_TOKENS[0])
            else [text]
            for text in texts
        ]
        text_ids = iter(
            self._encode_text([part for parts in parts_of_texts for part in parts[::2]])
        )
        special_ids = dict(zip(CHAT_TOKENS, self.marks, strict=True))
        encoded = []
        for parts in parts_of_texts:
            ids = [
                next(text_ids) if i % 2 == 0 else np.array([special_ids[part]], self.dtype)
                for i, part in enumerate(parts)
            ]
            encoded.append(np.concatenate(ids))
        return encoded

    def _encode_text(self, texts: list[str]) -> list[np.ndarray]:
        """Return the token ids of texts in which special characters are ordinary text."""
        raise NotImplementedError

    @functools.cached_property
    def marks(self) -> tuple[int, ...] | None:
        """Token ids of CHAT_TOKENS, in order; None if the vocabulary does not contain all.

        In an exported chat model they are special tokens, whose pieces are empty.
        """
        specials = [special.encode() for special in CHAT_TOKENS]
        ids = {piece: i for i, piece in enumerate(self.pieces) if piece in specials}
        names: dict[str, int] = getattr(self, "ids", {})
        ids |= {name.encode(): names[name] for name in CHAT_TOKENS if name in names}
        return tuple(ids[special] for special in specials) if len(ids) == len(specials) else None

    def decode(self, ids) -> str:
        """Return the text of token ids [n]; `end` becomes "", invalid UTF-8 becomes U+FFFD."""
        return b"".join(self.pieces[i] for i in np.asarray(ids)).decode(errors="replace")

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        """Bytes of text that each token represents, [vocab_size]; b"" for tokens such as `end`.

        The bytes of the tokens of a text are the bytes of the text. The exception is a tokenizer
        file that changes text, for example to lower case. The manifest of a prepared source
        contains both numbers of bytes.
        """
        raise NotImplementedError

    @functools.cached_property
    def sorted_pieces(self) -> tuple[list[bytes], np.ndarray]:
        """Return the pieces that are not empty, in order, and their token ids."""
        order = sorted((piece, i) for i, piece in enumerate(self.pieces) if piece)
        return [piece for piece, _ in order], np.array([i for _, i in order], np.int32)

    @functools.cached_property
    def max_piece_bytes(self) -> int:
        """Return the number of bytes of the longest piece."""
        return max(map(len, self.pieces))

    @functools.cached_property
    def adds_leading_space(self) -> bool:
        """Return True if the first token of a text begins with a space that the text lacks."""
        starts = (self.pieces[ids[0]] for ids in self.encode_all(["a", "the", "1"]) if len(ids))
        return any(piece.startswith(b" ") for piece in starts)

    def byte_lengths(self) -> np.ndarray:
        """Return the number of bytes of each token, int32 [vocab_size]; 0 for `end`."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def use_special_tokens(self, special: special_tokens.SpecialTokens) -> None:
        """Set the special tokens of a checkpoint. An `end` of another id changes the hash."""
        self.checkpoint_tokens = special
        if special.end is not None and special.end != self.end:
            self.end = special.end
            self.vocab_size = max(self.vocab_size, self.end + 1)
            self.hash = hashlib.sha256(f"{self.hash} end={self.end}".encode()).hexdigest()
        self.start = special.start
        self.stops = tuple(i for i in special.stops if i != self.end)

    def files(self) -> dict[str, bytes]:
        """Return {file name: content} of the files that load_tokenizer reads; {} for bytes."""
        if self.checkpoint_tokens is None:
            return {}
        return {special_tokens.FILE: special_tokens.encode_special_tokens(self.checkpoint_tokens)}

    def save(self, folder: str | Path) -> None:
        """Write `files` into a folder."""
        for name, content in self.files().items():
            filesystem.write_file(filesystem.open_path(folder) / name, content)

    def _without_special(self, pieces: list[bytes]) -> list[bytes]:
        """Return pieces with b"" for special tokens, which a file may not declare as special."""
        for i in (self.start, self.end, *self.stops):
            if i is not None and i < len(pieces):
                pieces[i] = b""
        return pieces


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as token ids."""

    vocab_size = 256
    end = END
    hash = hashlib.sha256(b"utf-8 bytes, NUL ends a document").hexdigest()

    def _encode_text(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(utf8(text), np.uint8) for text in texts]

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        return [bytes([i]) if i != END else b"" for i in range(self.vocab_size)]


class HFTokenizer(Tokenizer):
    """Tokenizer of the `tokenizers` library. Names of special tokens in a text are ordinary text.

    They are special tokens only in `encode_prompt`.

    Attributes: text, the contents of tokenizer.json; inner, the tokenizer of the library.
    """

    def __init__(self, text: str, where: str = "tokenizer.json"):
        """Read the contents of tokenizer.json. Raises ValueError, naming the file `where`."""
        import tokenizers  # its import takes 3 MiB, and a run on bytes does not need it

        try:
            self.text, self.inner = text, tokenizers.Tokenizer.from_str(text)
            content = json.loads(text)
        except Exception as error:  # the library has no narrower class
            token_bytes.check_vocabulary_format(text.encode(), where)
            raise ValueError(
                f"{where} is not a tokenizer.json file ({error}): set another data.tokenizer"
            ) from None
        self.inner.encode_special_tokens = True
        self.inner.no_padding()
        self.inner.no_truncation()
        if isinstance(self.inner.model, tokenizers.models.BPE):
            self.inner.model.dropout = None  # random merges would give other tokens in each call
        self.hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.ids = self.inner.get_vocab(with_added_tokens=True)
        size = max(self.ids.values()) + 1  # a vocabulary may have unused ids
        self.end = next((self.ids[name] for name in END_TOKENS if name in self.ids), size)
        self.vocab_size = max(size, self.end + 1)
        self.start = self._start_of_template()
        model = content.get("model") or {}
        is_wordpiece = model.get("type") == "WordPiece"
        # Affixes of tokens that continue a word, and of tokens that end a word.
        self.word_affixes = (
            model.get("continuing_subword_prefix") or ("##" if is_wordpiece else ""),
            model.get("end_of_word_suffix") or "",
        )
        self.is_byte_level = any(
            '"ByteLevel"' in json.dumps(content.get(part)) for part in ("decoder", "pre_tokenizer")
        )

    def _start_of_template(self) -> int | None:
        """Return the token that the post-processor of the file puts before a text, if any."""
        ids = self.inner.encode("a", add_special_tokens=False).ids
        ids_in_template = self.inner.encode("a", add_special_tokens=True).ids
        has_start = ids_in_template[1 : 1 + len(ids)] == ids and ids_in_template[: len(ids)] != ids
        return ids_in_template[0] if has_start else None

    def _encode_text(self, texts: list[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        encodings = self.inner.encode_batch(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]

    def encode_prompts(self, texts: list[str]) -> list[np.ndarray]:
        if self.checkpoint_tokens is None:
            return self.encode_all(texts)
        self.inner.encode_special_tokens = False
        try:
            return self.encode_all(texts)
        finally:
            self.inner.encode_special_tokens = True

    def decode(self, ids) -> str:
        if self.is_byte_level:
            return super().decode(ids)
        ids = np.asarray(ids)
        return self.inner.decode(ids[ids != self.end].tolist(), skip_special_tokens=True)

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        pieces = [b""] * self.vocab_size
        added = self.inner.get_added_tokens_decoder()
        for piece, i in self.ids.items():
            if i not in added:
                pieces[i] = (
                    token_bytes.from_byte_level(piece)
                    if self.is_byte_level
                    else token_bytes.from_piece(piece, *self.word_affixes)
                )
            elif not added[i].special:
                pieces[i] = piece.encode()
        return self._without_special(pieces)

    def files(self) -> dict[str, bytes]:
        return super().files() | {"tokenizer.json": self.text.encode()}


class SentencePieceTokenizer(Tokenizer):
    """Tokenizer of the `sentencepiece` library (Kudo and Richardson 2018, arXiv:1808.06226).

    Attributes: model, the contents of the model file; inner, the processor of the library.
    """

    def __init__(self, model: bytes, where: str = "tokenizer.model"):
        """Read the contents of a model file. Raises ValueError, naming the file `where`."""
        try:
            import sentencepiece
        except ImportError:
            raise ValueError(f"data.tokenizer='spm:{where}' needs: uv sync --extra spm") from None
        try:
            self.model = model
            self.inner = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # the library has no narrower class
            token_bytes.check_vocabulary_format(model, where)
            raise ValueError(
                f"{where} is not a SentencePiece model ({error}): set another data.tokenizer"
            ) from None
        self.hash = hashlib.sha256(model).hexdigest()
        size = self.inner.get_piece_size()
        self.ids = {self.inner.id_to_piece(i): i for i in range(size)}
        self.end = self.inner.eos_id() if self.inner.eos_id() >= 0 else size
        self.vocab_size = max(size, self.end + 1)

    def _encode_text(self, texts: list[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        return [np.array(ids, self.dtype) for ids in self.inner.encode(texts, out_type=int)]

    def decode(self, ids) -> str:
        ids = np.asarray(ids)
        return self.inner.decode(ids[ids != self.end].tolist())

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        pieces = [b""] * self.vocab_size
        for i in range(self.inner.get_piece_size()):
            if not self.inner.is_control(i) and not self.inner.is_unknown(i):
                pieces[i] = token_bytes.from_piece(self.inner.id_to_piece(i))
        return self._without_special(pieces)

    def files(self) -> dict[str, bytes]:
        return super().files() | {"tokenizer.model": self.model}


def open_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of data.tokenizer=name: bytes, file:JSON or spm:MODEL.

    The other files of a Hugging Face folder define the special tokens: see special_tokens.py.
    Raises ValueError if a file cannot be read or is not a tokenizer.
    """
    kind, _, path = name.partition(":")
    if kind == "bytes":
        return ByteTokenizer()
    try:
        file = filesystem.open_path(os.path.expanduser(path))
        raw = filesystem.read_limited_bytes(file, MAX_FILE_BYTES)
        tokenizer = (
            HFTokenizer(raw.decode(), path) if kind == "file" else SentencePieceTokenizer(raw, path)
        )
    except OSError as error:
        reason = error.strerror or error
        message = f"data.tokenizer={name!r} cannot be read ({reason}): correct the path"
        raise ValueError(message) from None
    except UnicodeDecodeError:
        message = f"data.tokenizer={name!r} is not UTF-8, as tokenizer.json is: set another file"
        raise ValueError(message) from None
    special = special_tokens.read_special_tokens(file.parent, tokenizer.ids, tokenizer.start)
    if special != special_tokens.SpecialTokens(tokenizer.start):
        tokenizer.use_special_tokens(special)
    if tokenizer.vocab_size > MAX_VOCAB_SIZE:
        raise ValueError(f"data.tokenizer={name!r} has a token id above 2^24: set another file")
    return tokenizer


def load_tokenizer(folder: str | Path, expected_hash: str = "") -> Tokenizer:
    """Return the tokenizer that is saved in a folder; ByteTokenizer if no file is there.

    expected_hash: hash of the tokenizer. Raises ValueError if the tokenizer has another hash.
    """
    tokenizer, path = ByteTokenizer(), filesystem.open_path(folder)
    for kind, name in (("file", "tokenizer.json"), ("spm", "tokenizer.model")):
        if (path / name).exists():
            tokenizer, path = open_tokenizer(f"{kind}:{path / name}"), path / name
            break
    if expected_hash not in ("", tokenizer.hash):
        raise ValueError(
            f"{path} is not the tokenizer of its text: its hash is {tokenizer.hash[:12]} instead of"
            f" {expected_hash[:12]}: prepare the text again with experiments.prepare"
        )
    return tokenizer


def utf8(text: str) -> bytes:
    """Return the UTF-8 bytes of a text. Raises ValueError for NUL or a lone surrogate."""
    if "\0" in text:
        raise ValueError(f"is binary, not text: NUL at character {text.index(chr(0))}: remove it")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"is not Unicode: half a surrogate pair at character {error.start}: remove it"
        ) from None


def is_valid_text(text: str) -> bool:
    """Return True if a text has no NUL and no lone surrogate."""
    try:
        utf8(text)
    except ValueError:
        return False
    return True
