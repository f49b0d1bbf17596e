"""Tokens of a prompt and its answer, also if a token spans the boundary between them.

    pair = encode_pair(tokenizer, "close ([=", "])")
    pair.prompt, pair.answer                    # token ids; together they encode a training text
    coverings = find_coverings(tokenizer, ids)  # token sequences that begin with the prompt's end

Prompt and answer are encoded as one text, as in training. White space at the end of the prompt is
scored with the answer, as in lm-evaluation-harness. If a token ends at the boundary, the tokens are
cut there, and the probability is conditional on this token boundary. Otherwise a token spans the
boundary of prompt and answer. The prompt is then shortened to an earlier token boundary, and the
text after this boundary is the tail of the prompt. The probability of the answer is that of the
tokens of tail and answer after the shortened prompt, divided by that of the tail:

    log_p_answer = log_p_tail_and_answer - log_p_tail

The probability of the tail is the sum over its coverings. A covering is a sequence of tokens whose
last token ends at or after the end of the tail. The sum contains the sequences that the tokenizer
produces, because a trained model gives no probability to others. The quotient is exact if the
model gives probability to tokenized texts only. Sources: Phan et al. 2024 (arXiv:2410.09303) and
Vieira et al. 2024 (arXiv:2412.03719). Generation selects one covering and continues after it. This
method is known as token healing (Lundberg 2023).

The first token of a prompt is tokenizer.start if the checkpoint defines it. Without it, an empty
prompt and a conversation begin with tokenizer.end, and any other prompt begins with its text. These
are the rules of lm-evaluation-harness, whose chat templates contain the first token.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.data import tokenizers

MAX_TAIL_TOKENS = 32  # a path that shortens the prompt by more tokens is not a covering
Ids = tuple[int, ...]


class Path(NamedTuple):
    """Tokens of a part of the tail, and the tokens that begin with its remainder and are longer."""

    ids: Ids
    next_ids: np.ndarray  # int [n]; each of them completes a covering
    n_remaining_bytes: int  # bytes of the tail after ids


@dataclasses.dataclass(frozen=True)
class Coverings:
    """The coverings of the tail of a prompt.

    Index 0 is the covering `tail`, which ends with the prompt. The coverings of the paths follow.
    """

    shared: Ids  # tokens before the tail; never empty
    n_shared: int  # tokens of the prompt in `shared`; 0 if `shared` is only tokenizer.end
    tail: Ids  # tokens of the tail in the prompt
    paths: tuple[Path, ...]
    n_tail_bytes: int

    def covering(self, index: int) -> tuple[Ids, int]:
        """Return the tokens of a covering, and the number of tail bytes in the last token."""
        start = 1
        for path in self.paths if index else ():
            if index < start + len(path.next_ids):
                return (*path.ids, int(path.next_ids[index - start])), path.n_remaining_bytes
            start += len(path.next_ids)
        return self.tail, 0

    def index(self, ids: Ids) -> int | None:
        """Return the index of the covering with these tokens; None if there is no such path."""
        start = 1
        for path in self.paths:
            if path.ids == ids[:-1] and ids[-1] in path.next_ids:
                return start + int(np.flatnonzero(path.next_ids == ids[-1])[0])
            start += len(path.next_ids)
        return None


@dataclasses.dataclass(frozen=True)
class TokenPair:
    """Token ids of a prompt and of its answer."""

    prompt: Ids
    answer: Ids
    n_spanning: int = 1  # first tokens of `answer` that count as one token: the tail is in them
    coverings: Coverings | None = None  # of the prompt, if a token spans the boundary

    def answer_pieces(self, pieces: Sequence[bytes]) -> list[bytes]:
        """Return the bytes of each token of the answer, without the tail of the prompt."""
        parts = [pieces[i] for i in self.answer]
        n_tail_bytes = self.coverings.n_tail_bytes if self.coverings else 0
        first = b"".join(parts[: self.n_spanning])[n_tail_bytes:]
        return [first, *parts[self.n_spanning :]]


def encode_prompt(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """Return the token ids of a prompt, with the first token of a question if there is one."""
    ids = [int(i) for i in tokenizer.encode_prompt(text)]
    if not ids or ids[0] != tokenizer.start:  # the text of the prompt may name the start token
        ids = [*_first_token(tokenizer, text), *ids]
    return ids or [tokenizer.end]


def encode_pair(tokenizer: tokenizers.Tokenizer, prompt: str, answer: str) -> TokenPair:
    """Return the tokens of a prompt and its answer: see `encode_pairs`."""
    return encode_pairs(tokenizer, [(prompt, answer)])[0]


def encode_pairs(
    tokenizer: tokenizers.Tokenizer, pairs: Sequence[tuple[str, str]], are_prompts: bool = False
) -> list[TokenPair]:
    """Return the tokens of each (prompt, answer), encoded as one text: see the module docstring.

    are_prompts: True if the names of the special tokens of a checkpoint are these tokens, as in a
    prompt of a chat template. Raises ValueError if an answer is empty, or if the tokenizer removes
    it from the text.
    """
    bare_prompts = [prompt.rstrip() for prompt, _ in pairs]
    distinct = list(dict.fromkeys(bare_prompts))
    encode_all = tokenizer.encode_prompts if are_prompts else tokenizer.encode_all
    ids_of = dict(zip(distinct, encode_all(distinct), strict=True))
    texts = encode_all([prompt + answer for prompt, answer in pairs])
    token_pairs = []
    for (prompt, answer), bare, ids in zip(pairs, bare_prompts, texts, strict=True):
        bare_ids, text_ids = tuple(ids_of[bare].tolist()), tuple(ids.tolist())
        is_removed = text_ids == bare_ids and (
            not bare_ids or bool(_pieces_of(tokenizer, bare_ids))
        )
        if not answer or is_removed:
            reason = "has no tokens in this tokenizer" if answer else "is empty"
            raise ValueError(
                f"answer={answer!r} after the prompt {prompt[-40:]!r} {reason}: use another answer"
            )
        # The text of a chat template may contain the start token.
        has_start = tokenizer.start is not None and text_ids[:1] == (tokenizer.start,)
        first = () if has_start else _first_token(tokenizer, bare)
        token_pairs.append(_split_text(tokenizer, first, bare_ids, text_ids))
    return token_pairs


def _first_token(tokenizer: tokenizers.Tokenizer, prompt: str) -> Ids:
    """Return the token before the text of a question, or () if there is none."""
    if tokenizer.start is not None:
        return (tokenizer.start,)
    is_conversation = tokenizer.marks is not None and prompt.startswith(tokenizers.CHAT_TOKENS[0])
    return (tokenizer.end,) if is_conversation or not prompt else ()


def _split_text(tokenizer: tokenizers.Tokenizer, first: Ids, prompt: Ids, text: Ids) -> TokenPair:
    """Return the tokens of a text, split after its prompt.

    first: tokens before the text. prompt: tokens of the prompt alone.
    """
    if len(text) > len(prompt) and text[: len(prompt)] == prompt:
        return TokenPair(first + prompt or (tokenizer.end,), text[len(prompt) :])
    prompt_bytes, text_bytes = _pieces_of(tokenizer, prompt), _pieces_of(tokenizer, text)
    if text_bytes.startswith(prompt_bytes) and prompt_bytes != text_bytes:
        ends = np.cumsum([len(tokenizer.pieces[i]) for i in text])
        last = int(np.searchsorted(ends, len(prompt_bytes)))  # contains the end of the prompt
        if ends[last] == len(prompt_bytes):
            return TokenPair(first + text[: last + 1], text[last + 1 :])
        coverings = find_coverings(tokenizer, first + prompt, first + text[:last])
        if coverings is not None:
            n_spanning = len(first) + last + 1 - coverings.n_shared
            answer = (first + text)[coverings.n_shared :]
            if coverings.index(answer[:n_spanning]) is not None:
                return TokenPair(coverings.shared, answer, n_spanning, coverings)
    # The tokenizer changes the text of the prompt: the answer contains all tokens that differ.
    n_shared = min(_n_equal(prompt, text), len(text) - 1)
    return TokenPair(first + text[:n_shared] or (tokenizer.end,), text[n_shared:])


def find_coverings(
    tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], spanned: Ids | None = None
) -> Coverings | None:
    """Return the coverings of the end of a prompt; None if no token can span its end.

    prompt: token ids. spanned: tokens before a token that spans the end, for a known answer.
    """
    ids = tuple(int(i) for i in prompt)
    start = _segment_start(tokenizer, ids)
    segment = _pieces_of(tokenizer, ids[start:])
    candidates: list[tuple[int, np.ndarray]] = []  # first byte and ids of tokens that may span
    first_byte = max(0, len(segment) + 1 - tokenizer.max_piece_bytes)
    for position in range(first_byte, len(segment)):
        next_ids = _longer_tokens(tokenizer, segment[position:])
        if len(next_ids):
            candidates.append((position, next_ids))
    paths: list[tuple[Ids, np.ndarray, int]] = []
    for position, next_ids in candidates:
        n_remaining = len(segment) - position
        histories = {ids[:start] + path for path in _encode_bytes(tokenizer, segment[:position])}
        if spanned is not None and _pieces_of(tokenizer, spanned[start:]) == segment[:position]:
            histories.add(spanned)
        paths += [
            (history, next_ids, n_remaining)
            for history in sorted(histories)
            if history == spanned or _n_equal(ids, history) >= len(ids) - MAX_TAIL_TOKENS
        ]
    if not paths:
        return None
    n_shared = min(_n_equal(ids, history) for history, _, _ in paths)
    return Coverings(
        shared=ids[:n_shared] or (tokenizer.end,),
        n_shared=n_shared,
        tail=ids[n_shared:],
        paths=tuple(Path(history[n_shared:], next_ids, n) for history, next_ids, n in paths),
        n_tail_bytes=len(_pieces_of(tokenizer, ids[n_shared:])),
    )


def _segment_start(tokenizer: tokenizers.Tokenizer, ids: Ids) -> int:
    """Return the index of the first token after the last token that no other token can span."""
    marks = tokenizer.marks or ()
    for i in range(len(ids) - 1, -1, -1):
        if not tokenizer.pieces[ids[i]] or ids[i] in marks:
            return i + 1
    return 0


def _encode_bytes(tokenizer: tokenizers.Tokenizer, text: bytes) -> list[Ids]:
    """Return the token ids whose bytes are `text`: a list of one element, or empty without them."""
    try:
        characters = text.decode()
    except UnicodeDecodeError:  # the bytes end inside of a character
        return []
    if tokenizer.adds_leading_space:
        characters = characters.removeprefix(" ")
    ids = tuple(tokenizer.encode(characters).tolist()) if characters else ()
    return [ids] if _pieces_of(tokenizer, ids) == text else []


def _longer_tokens(tokenizer: tokenizers.Tokenizer, start: bytes) -> np.ndarray:
    """Return the ids of the tokens that begin with the bytes `start` and have more bytes."""
    pieces, ids = tokenizer.sorted_pieces
    low = bisect.bisect_right(pieces, start)
    return ids[low : bisect.bisect_left(pieces, start + b"\xff" * 64, low)]


def _pieces_of(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> bytes:
    """Return the bytes of token ids."""
    return b"".join(tokenizer.pieces[i] for i in ids)


def _n_equal(a: Ids, b: Ids) -> int:
    """Return the number of equal elements at the beginning of two sequences."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
