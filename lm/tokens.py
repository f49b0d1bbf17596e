"""Tokenizers: text to token ids and back.

    ids = Bytes().encode("héllo")        # uint8 [6]; needs no training and no files
    bpe = train_bpe(texts, 8192)         # byte-level byte-pair encoding (Sennrich et al. 2016)
    bpe.save("data/mine"); load("data/mine").decode(bpe.encode("héllo"))    # "héllo"

Every tokenizer has the names of `Tokenizer`. Token `end` follows each document and stands for no
text. What is not text (NUL, half a surrogate pair) no tokenizer takes. The marks of a conversation
(see chat) are tokens of their own, whatever stands beside them.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lm import storage

END = 0  # of bytes and of what is trained here; as a byte it is NUL, which no text holds
MARKS = "\x01\x02\x03"  # of a conversation: a user's turn, an answer, the end of an answer
_AT_MARKS = re.compile(f"([{MARKS}])")
# Tokens that end a document in other people's vocabularies, the first that is there counts.
ENDS = ("\0", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>", "[SEP]")


class Tokenizer:
    """What every tokenizer has; the others say how."""

    vocab_size: int
    end: int
    hash: str  # equal hashes, equal tokens of any text

    @property
    def dtype(self):
        """The smallest type that holds a token id."""
        return np.min_scalar_type(self.vocab_size - 1).type

    def encode(self, text: str) -> np.ndarray:
        """Ids [n], without `end`. ValueError for what no text holds: NUL, half a surrogate pair."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each; ValueError as of `encode`."""
        if self.marks is None or not any(mark in text for text in texts for mark in MARKS):
            return self._encoded(texts)
        cut = [_AT_MARKS.split(text) for text in texts]  # text and marks in turns
        between = iter(self._encoded([part for parts in cut for part in parts[::2]]))
        ids = dict(zip(MARKS, self.marks, strict=True))
        found = []
        for parts in cut:
            turns = [
                next(between) if place % 2 == 0 else np.array([ids[part]], self.dtype)
                for place, part in enumerate(parts)
            ]
            found.append(np.concatenate(turns))
        return found

    def _encoded(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, as the vocabulary has them."""
        raise NotImplementedError

    @functools.cached_property
    def marks(self) -> tuple[int, ...] | None:
        """The ids of MARKS, in their order; None if the vocabulary has no token for one of them."""
        wanted = {mark.encode(): mark for mark in MARKS}
        found = {wanted[piece]: i for i, piece in enumerate(self.pieces) if piece in wanted}
        return tuple(found[mark] for mark in MARKS) if len(found) == len(MARKS) else None

    def decode(self, ids) -> str:
        """Text of ids of any integer type; `end` becomes "", broken UTF-8 becomes U+FFFD."""
        return b"".join(self.pieces[i] for i in np.asarray(ids)).decode(errors="replace")

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of text that each token stands for, [vocab_size]; b"" for marks such as `end`.

        Those of the tokens of a text, one after the other, are the text; only a tokenizer from a
        file that changes text (lower case, a space put in front) differs, and the manifest of a
        prepared source says by how many bytes.
        """
        raise NotImplementedError

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each token stands for, int32 [vocab_size]; 0 for `end`."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes what `load` needs."""


class Bytes(Tokenizer):
    """UTF-8 bytes as token ids."""

    vocab_size = 256
    end = END
    hash = hashlib.sha256(b"utf-8 bytes, NUL ends a document").hexdigest()

    def _encoded(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(utf8(text), np.uint8) for text in texts]

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        return [bytes([i]) if i != END else b"" for i in range(self.vocab_size)]


class Json(Tokenizer):
    """A tokenizer.json of the `tokenizers` library; special tokens in a text are ordinary text."""

    def __init__(self, text: str, where: str = "tokenizer.json"):
        try:
            self.text, self.inner = text, tokenizers.Tokenizer.from_str(text)
            content = json.loads(text)
        except Exception as error:  # the library has no narrower class
            raise ValueError(f"{where}: is no tokenizer.json ({error})") from None
        self.inner.encode_special_tokens = True
        self.inner.no_padding()
        self.inner.no_truncation()
        self.hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.ids = self.inner.get_vocab(with_added_tokens=True)
        size = max(self.ids.values()) + 1  # ids may have gaps
        self.end = next((self.ids[name] for name in ENDS if name in self.ids), size)
        self.vocab_size = max(size, self.end + 1)
        self.is_byte_level = any(
            '"ByteLevel"' in json.dumps(content.get(part)) for part in ("decoder", "pre_tokenizer")
        )

    def _encoded(self, texts: list[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        found = self.inner.encode_batch(texts, add_special_tokens=False)
        return [np.array(one.ids, self.dtype) for one in found]

    def decode(self, ids) -> str:
        if self.is_byte_level:
            return super().decode(ids)
        ids = np.asarray(ids)
        return self.inner.decode(ids[ids != self.end].tolist(), skip_special_tokens=True)

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        found = [b""] * self.vocab_size
        added = self.inner.get_added_tokens_decoder()
        for piece, i in self.ids.items():
            if i not in added:
                found[i] = _from_byte_level(piece) if self.is_byte_level else _from_piece(piece)
            elif not added[i].special:
                found[i] = piece.encode()
        return found

    def save(self, folder: str | Path) -> None:
        storage.write(storage.at(folder) / "tokenizer.json", self.text)


class SentencePiece(Tokenizer):
    """A model file of the `sentencepiece` library (Kudo and Richardson 2018)."""

    def __init__(self, model: bytes, where: str = "tokenizer.model"):
        try:
            import sentencepiece
        except ImportError:
            raise ValueError(f"spm:{where} needs: pip install 'lm-scaling[spm]'") from None
        try:
            self.model = model
            self.inner = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # the library has no narrower class
            raise ValueError(f"{where}: is no SentencePiece model ({error})") from None
        self.hash = hashlib.sha256(model).hexdigest()
        size = self.inner.get_piece_size()
        self.end = self.inner.eos_id() if self.inner.eos_id() >= 0 else size
        self.vocab_size = max(size, self.end + 1)

    def _encoded(self, texts: list[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        return [np.array(ids, self.dtype) for ids in self.inner.encode(texts, out_type=int)]

    def decode(self, ids) -> str:
        ids = np.asarray(ids)
        return self.inner.decode(ids[ids != self.end].tolist())

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        found = [b""] * self.vocab_size
        for i in range(self.inner.get_piece_size()):
            if not self.inner.is_control(i) and not self.inner.is_unknown(i):
                found[i] = _from_piece(self.inner.id_to_piece(i))
        return found

    def save(self, folder: str | Path) -> None:
        storage.write(storage.at(folder) / "tokenizer.model", self.model)


def train_bpe(texts: Iterator[str], vocab_size: int) -> Json:
    """Byte-level BPE with GPT-2's split into words (Radford et al. 2019): any text round-trips.

    The same texts in the same order give the same tokenizer. Its vocabulary is smaller than asked
    where the texts have no more pairs to merge.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["\0"],  # becomes id 0, END
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    parts = (part for text in texts for part in _AT_MARKS.split(text)[::2])
    inner.train_from_iterator(parts, trainer)
    return Json(inner.to_str())


def read(name: str) -> Tokenizer:
    """Of a value of data.tokenizer other than bpe:N. ValueError for a file that is not one."""
    kind, _, path = name.partition(":")
    if kind == "bytes":
        return Bytes()
    try:
        raw = storage.at(path).expanduser().read_bytes()
        return Json(raw.decode(), path) if kind == "file" else SentencePiece(raw, path)
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"data.tokenizer={name!r}: cannot be read ({why})") from None
    except UnicodeDecodeError:
        raise ValueError(f"data.tokenizer={name!r}: is no tokenizer.json") from None


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer that was saved in a folder; bytes, which need no file, if none was."""
    for kind, name in (("file", "tokenizer.json"), ("spm", "tokenizer.model")):
        if (path := storage.at(folder) / name).exists():
            return read(f"{kind}:{path}")
    return Bytes()


def utf8(text: str) -> bytes:
    """The bytes of a text; ValueError for what no text holds: NUL, half a surrogate pair."""
    if "\0" in text:
        raise ValueError(f"is binary, not text: NUL at character {text.index(chr(0))}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"is not Unicode: half a surrogate pair at character {error.start}"
        ) from None


def _from_byte_level(piece: str) -> bytes:
    return b"".join(LETTERS.get(letter) or letter.encode() for letter in piece)


def _from_piece(piece: str) -> bytes:
    """Of SentencePiece (a low line for a space, <0x0A> for a byte) and WordPiece (## goes on)."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.removeprefix("##").replace("\u2581", " ").encode()


def _letters_of_bytes() -> dict[str, bytes]:
    """Letter -> byte: GPT-2 writes a byte that cannot be seen as a letter from U+0100 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unseen = sorted(set(range(256)) - seen)
    letters = {chr(256 + n): bytes([byte]) for n, byte in enumerate(unseen)}
    return letters | {chr(byte): bytes([byte]) for byte in seen}


LETTERS = _letters_of_bytes()
