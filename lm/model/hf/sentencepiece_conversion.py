"""Convert a SentencePiece model to tokenizer.json with equal token ids.

    text = convert_sentencepiece(tokenizer.model, tokenizer.encode_all)

Classes of transformers that read a SentencePiece file give other ids for line ends, unknown
characters and spaces. tokenizer.json defines each step of the encoding, so all readers agree.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tokenizers

SPACE = "\u2581"
UNIGRAM, BPE = 1, 2  # values of trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # values of the type of a piece
# Texts whose ids are compared: spaces, line ends, unknown characters, composed and wide letters.
PROBES = (
    "a", " a", "a ", "  two  spaces  ", "a\nb\n\n\tc\r\n", "x \U0001f600 y",
    "\U0001f600\u65e5\u672c\u8a9e",
    "caf\u00e9 cafe\u0301 \ufb01 \uff21\u2460", "\u200b\u00a0\u3000", "\ue000\ue001", "The cat.",
    "1234567 + 89", "def f(x):\n    return [x, 'y']", "\U0010ffff", "###  <x>", "\x7f\x1b",
)  # fmt: skip


def convert_sentencepiece(model: bytes, encode: Callable[[list[str]], list[np.ndarray]]) -> str:
    """Return the content of tokenizer.json for a SentencePiece model.

    model: content of the file. encode: returns the token ids of texts by the model. Two rare texts
    may have other ids: U+2581, and a combining mark after a character that the model normalizes,
    because the library tokenizers removes the mark. Raises ValueError if ids differ for one of
    PROBES or for a piece that the user of the trainer defined.
    """
    proto: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    proto.ParseFromString(model)
    kind = proto.trainer_spec.model_type
    if kind not in (UNIGRAM, BPE):
        raise _error("its model_type is neither unigram nor bpe")
    converted = tokenizers.Tokenizer(_unigram(proto) if kind == UNIGRAM else _bpe(proto))
    converted.normalizer = _normalizer(proto.normalizer_spec)
    converted.decoder = _decoder(proto)
    controls = [piece.piece for piece in proto.pieces if piece.type == CONTROL]
    converted.add_special_tokens(
        [tokenizers.AddedToken(name, normalized=False, special=True) for name in controls]
    )
    defined = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    probes = [*PROBES, *(f"{before}{name}a" for name in defined for before in ("", "a", " "))]
    probes = [text for text in probes if not any(name in text for name in controls)]
    expected = encode(probes)
    for text, ids in zip(probes, expected, strict=True):
        if converted.encode(text, add_special_tokens=False).ids != ids.tolist():
            raise _error(f"the text {text!r} would have other tokens")
    return converted.to_str()


def _error(problem: str) -> ValueError:
    return ValueError(
        f"data.tokenizer is a SentencePiece model without an equal tokenizer.json ({problem}):"
        " train the run with a file:tokenizer.json to export it"
    )


def _unigram(proto: Any) -> tokenizers.models.Model:
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    unknown, has_bytes = proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback
    return tokenizers.models.Unigram(vocab, unk_id=unknown, byte_fallback=has_bytes)


def _bpe(proto: Any) -> tokenizers.models.Model:
    """Return a BPE model whose merges have the order of the scores of their results."""
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    mergeable = {p.piece for p in proto.pieces if p.type in (NORMAL, USER_DEFINED)}
    merges = []
    for piece in proto.pieces:
        if piece.type != NORMAL:
            continue
        name = piece.piece
        pairs = [(name[:i], name[i:]) for i in range(1, len(name))]
        pairs = [pair for pair in pairs if pair[0] in mergeable and pair[1] in mergeable]
        merges += [(-piece.score, ids[a], ids[b], a, b) for a, b in pairs]
    unknown = proto.pieces[proto.trainer_spec.unk_id].piece
    return tokenizers.models.BPE(
        vocab=ids,
        merges=[(a, b) for *_, a, b in sorted(merges)],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _normalizer(spec: Any) -> tokenizers.normalizers.Normalizer:
    """Return the steps of a normalizer: characters, repeated spaces, first space, U+2581."""
    steps: list[tokenizers.normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(tokenizers.normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        for pattern, content in ((r"\A +| +\z", ""), (" {2,}", " ")):
            steps.append(tokenizers.normalizers.Replace(tokenizers.Regex(pattern), content))
    if spec.add_dummy_prefix:
        steps.append(tokenizers.normalizers.Prepend(SPACE))
    if spec.escape_whitespaces:
        steps.append(tokenizers.normalizers.Replace(" ", SPACE))
    return tokenizers.normalizers.Sequence(steps)


def _decoder(proto: Any) -> tokenizers.decoders.Decoder:
    """Return the decoder: spaces, bytes, and the removal of the first space."""
    steps: list[tokenizers.decoders.Decoder] = [tokenizers.decoders.Replace(SPACE, " ")]
    steps += [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(tokenizers.decoders.Strip(" ", 1, 0))
    return tokenizers.decoders.Sequence(steps)
