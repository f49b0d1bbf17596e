"""Tokenizers: text to token ids and back. Here bytes, which need no training and no files.

Every tokenizer has the names of `Bytes`: vocab_size, dtype, hash, encode, decode, byte_lengths.
Token END = 0 follows each document; it stands for no text.

    ids = Bytes().encode("héllo")          # uint8 [6]
    Bytes().decode(ids)                    # "héllo"
"""

import hashlib

import numpy as np

END = 0  # as a byte it is NUL, which no text holds


class Bytes:
    """UTF-8 bytes as token ids."""

    vocab_size = 256
    dtype = np.uint8  # the smallest that holds a token id
    hash = hashlib.sha256(b"utf-8 bytes, NUL ends a document").hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Ids [n], without END. ValueError for what no text holds: NUL, half a surrogate pair."""
        if "\0" in text:
            raise ValueError(f"is binary, not text: NUL at character {text.index(chr(0))}")
        try:
            return np.frombuffer(text.encode(), self.dtype)
        except UnicodeEncodeError as error:
            raise ValueError(
                f"is not Unicode: half a surrogate pair at character {error.start}"
            ) from None

    def decode(self, ids) -> str:
        """Text of ids of any integer type; END becomes "", broken UTF-8 becomes U+FFFD."""
        ids = np.asarray(ids)
        return ids[ids != END].astype(self.dtype).tobytes().decode(errors="replace")

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each token stands for, int32 [vocab_size]; 0 for END."""
        lengths = np.ones(self.vocab_size, np.int32)
        lengths[END] = 0
        return lengths
