"""Rows in which documents stand whole: none is cut where a row ends, and the rest is filled up.

    rows = Rows(token_file, seq_len=128, tokenizer=tokenizer)
    rows[np.array([0, 7])]              # int32 [2, T+1]
    rows.fill                           # share of the targets that are of documents

A row is `end`, then documents with their ends, then `end` to its last place: so each document
follows an `end`, which stands for its beginning. One that is longer than a row is a conversation,
and loses the left of its prompts, or is text, and is cut into pieces.
"""

import bisect

import numpy as np

from lm import tokens

OPEN = 256  # rows that may still take a document while others are filled
CHUNK = 1 << 24  # tokens that are looked at at once


class Rows:
    """The rows of a token file. len() of them; an array of their numbers gives them."""

    def __init__(
        self,
        file: np.ndarray,
        seq_len: int,
        tokenizer: tokens.Tokenizer,
        too_long: str = "cut",
        name: str = "",
    ):
        """too_long: what becomes of a conversation that a row cannot hold: cut, drop or refuse.

        Where not even its last answer has room it is left out. ValueError for those refused; `name`
        is what the message calls the file.
        """
        self.file, self.seq_len, self.tokenizer = file, seq_len, tokenizer
        stops = _places(file, tokenizer.end) + 1
        starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)]
        sizes = stops - starts
        is_long = sizes > seq_len
        begins = file[starts] if len(starts) else np.zeros(0, int)
        is_talk = begins == (tokenizer.marks[0] if tokenizer.marks else -1)
        answers = _places(file, tokenizer.marks[1]) if tokenizer.marks else stops[:0]
        last = np.searchsorted(answers, stops) - 1
        answer_sizes = stops - np.concatenate([answers, [0]])[last]
        too_long_talk = is_long & is_talk
        is_cut = too_long_talk & (answer_sizes < seq_len) & (too_long == "cut")
        self.n_documents = len(sizes)
        self.n_cut = int(is_cut.sum())  # conversations that lost the left of their prompts
        self.n_left_out = int((too_long_talk & ~is_cut).sum())
        if too_long == "refuse" and too_long_talk.any():
            raise ValueError(
                f"{name}: {int(too_long_talk.sum())} of {len(sizes)} conversations are longer than"
                f" data.seq_len={seq_len}, the longest {sizes[too_long_talk].max()} tokens: raise"
                " it, or take data.too_long='cut'"
            )
        starts = np.where(is_cut, stops - (seq_len - 1), starts)
        n_pieces = np.where(is_long & ~is_talk, -(-sizes // seq_len), 1)
        n_pieces[too_long_talk & ~is_cut] = 0
        self.document = np.repeat(np.arange(len(sizes)), n_pieces)
        piece = np.arange(len(self.document)) - (np.cumsum(n_pieces) - n_pieces)[self.document]
        self.start = starts[self.document] + piece * seq_len
        self.stop = np.minimum(stops[self.document], self.start + seq_len)
        self.is_cut = is_cut[self.document]
        taken = self.stop - self.start + self.is_cut
        row = packed(taken, seq_len)
        self._items = np.argsort(row, kind="stable")
        self._first = np.searchsorted(row[self._items], np.arange(row.max(initial=-1) + 2))
        self.fill = float(taken.sum() / max(len(self) * seq_len, 1))

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        user = (self.tokenizer.marks or (0,))[0]  # a conversation that was cut begins with it too
        found = np.full((len(rows), self.seq_len + 1), self.tokenizer.end, np.int32)
        for tokens_S, row in zip(found, rows, strict=True):
            at = 1
            for item in self.items(int(row)):
                if self.is_cut[item]:
                    tokens_S[at], at = user, at + 1
                text = self.file[self.start[item] : self.stop[item]]
                tokens_S[at : at + len(text)] = text
                at += len(text)
        return found

    def items(self, row: int) -> np.ndarray:
        """Numbers of what stands in a row: places in start, stop, document, is_cut."""
        return self._items[self._first[row] : self._first[row + 1]]


def packed(sizes: np.ndarray, room: int) -> np.ndarray:
    """The row of each item, int64: of the open ones the fullest that has room for it (best fit)."""
    row_of, free, n_rows = np.zeros(len(sizes), np.int64), [], 0
    for item, size in enumerate(sizes.tolist()):
        at = bisect.bisect_left(free, (size, -1))
        if at < len(free):
            left, row = free.pop(at)
        else:
            left, row, n_rows = room, n_rows, n_rows + 1
        row_of[item] = row
        if left > size:
            bisect.insort(free, (left - size, row))
        if len(free) > OPEN:
            free.pop(0)  # the fullest
    return row_of


def segments(tokens_BS: np.ndarray, end: int) -> np.ndarray:
    """The number of each input's document in its row, int32 [B, T]; an end begins the next one."""
    return (tokens_BS[:, :-1] == end).cumsum(axis=1, dtype=np.int32)


def weights(tokens_BS: np.ndarray, end: int) -> np.ndarray:
    """float32 [B, T]: 1 for the targets of documents, 0 for what fills a row up."""
    is_end_BS = tokens_BS == end
    return (~(is_end_BS[:, :-1] & is_end_BS[:, 1:])).astype(np.float32)


def _places(file: np.ndarray, token: int) -> np.ndarray:
    """Where a token stands, int64, a part of the file in memory at a time."""
    parts = [
        at + np.flatnonzero(file[at : at + CHUNK] == token) for at in range(0, len(file), CHUNK)
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
