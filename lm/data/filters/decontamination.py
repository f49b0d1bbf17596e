"""Cut text that is shared with held-out documents or tasks out of training documents.

    cut_blocked_ngrams(text, 13, blocked)        # Cuts(pieces, ...), None without a blocked n-gram
    cost = CutCosts(); cost.add(cuts); cost.summary()

The rules follow Brown et al. 2020, arXiv:2005.14165, appendix C. An n-gram of held-out text is
blocked, unless it occurs in more than MAX_NGRAM_DOCUMENTS training documents: legal notices and
common phrases do. blocked_ngrams.py writes their index. A blocked n-gram is cut out together with
WINDOW_CHARACTERS on each side. Pieces shorter than MIN_PIECE_CHARACTERS are dropped. A document
that falls into more than MAX_PIECES pieces is dropped. A conversation with a blocked n-gram is
dropped, because a piece of a conversation is not a valid conversation.
"""

import collections
from typing import NamedTuple

import numpy as np

from lm.data import tokenizers
from lm.data.filters import ngrams

MAX_NGRAM_DOCUMENTS = 10
WINDOW_CHARACTERS = 200
MIN_PIECE_CHARACTERS = 200
MAX_PIECES = 10
MAX_SHARED_CHARACTERS = 200  # characters of a shared text that is reported
SHARED_TEXTS_IN_MEMORY = 1000  # shared texts whose cost is counted at the same time


class Cuts(NamedTuple):
    """The result of cutting blocked n-grams out of a document."""

    pieces: tuple[str, ...]  # remaining texts; empty if the document is dropped
    n_removed_bytes: int  # UTF-8 bytes of the document that are in no piece
    shared_texts: tuple[str, ...]  # first blocked n-gram of each window
    is_dropped: bool


def cut_blocked_ngrams(text: str, n: int, blocked: np.ndarray) -> Cuts | None:
    """Return the pieces of a text without its blocked n-grams; None if it has no such n-gram.

    n: words per n-gram. blocked: sorted hashes of n-grams, uint64.
    """
    hits = np.flatnonzero(ngrams.positions_in_index(ngrams.ngram_hashes(text, n), blocked) >= 0)
    if not len(hits):
        return None
    spans = ngrams.word_spans(text)
    windows: list[list[int]] = []  # first character, character after the last
    shared_texts = []
    for first, last in zip(spans[hits, 0], spans[hits + n - 1, 1], strict=True):
        start, stop = max(int(first) - WINDOW_CHARACTERS, 0), int(last) + WINDOW_CHARACTERS
        if windows and start <= windows[-1][1]:
            windows[-1][1] = stop
        else:
            windows.append([start, stop])
            shared_texts.append(" ".join(text[first:last].lower().split())[:MAX_SHARED_CHARACTERS])
    edges = [0, *(edge for window in windows for edge in window), len(text)]
    pieces = [text[i:j].strip() for i, j in zip(edges[::2], edges[1::2], strict=True)]
    pieces = [piece for piece in pieces if piece]
    is_conversation = any(token in text for token in tokenizers.CHAT_TOKENS)
    if len(pieces) > MAX_PIECES or is_conversation:
        pieces = []
    pieces = [piece for piece in pieces if len(piece) >= MIN_PIECE_CHARACTERS]
    n_removed = len(text.encode()) - sum(len(piece.encode()) for piece in pieces)
    return Cuts(tuple(pieces), n_removed, tuple(shared_texts), not pieces)


class CutCosts:
    """Cost of decontamination for a source: documents, windows and bytes.

    `state` is a JSON object that stores the costs: CutCosts(state) continues from it.
    """

    def __init__(self, state: dict | None = None):
        names = ("documents", "windows", "bytes", "dropped")
        state = state or {}
        self._counts = {name: state.get(name, 0) for name in names}
        self._bytes_by_text = collections.Counter(state.get("bytes_by_text", {}))

    def add(self, cuts: Cuts) -> None:
        """Add the cuts of a document.

        The removed bytes are divided equally among the shared texts of its windows.
        """
        n_windows = len(cuts.shared_texts)
        numbers = (1, n_windows, cuts.n_removed_bytes, int(cuts.is_dropped))
        for name, number in zip(self._counts, numbers, strict=True):
            self._counts[name] += number
        for text in cuts.shared_texts:
            self._bytes_by_text[text] += cuts.n_removed_bytes // n_windows
        if len(self._bytes_by_text) > SHARED_TEXTS_IN_MEMORY:
            costly = self._bytes_by_text.most_common(SHARED_TEXTS_IN_MEMORY // 2)
            self._bytes_by_text = collections.Counter(dict(costly))

    @property
    def state(self) -> dict:
        """The costs as a JSON object."""
        return self._counts | {"bytes_by_text": dict(self._bytes_by_text)}

    def summary(self) -> dict[str, int | str]:
        """Return the costs, {} if no document was cut or dropped.

        documents: documents with a blocked n-gram. windows: cut windows. bytes: removed bytes.
        dropped: dropped documents. shared_text: the n-gram that cost most bytes, shared_text_bytes.
        """
        if not self._counts["documents"]:
            return {}
        ((text, n_bytes),) = self._bytes_by_text.most_common(1)
        return self._counts | {"shared_text": text, "shared_text_bytes": n_bytes}


def describe_costs(costs: dict[str, int | str]) -> str:
    """Return the costs of CutCosts.summary as a sentence."""
    return (
        f"decontamination changed {costs['documents']:,} documents: it cut {costs['windows']:,}"
        f" windows, removed {costs['bytes']:,} bytes and dropped {costs['dropped']:,} documents."
        f' Most bytes ({costs["shared_text_bytes"]:,}): "{costs["shared_text"]}"'
    )
