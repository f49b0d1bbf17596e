"""Pack whole documents into fixed-length rows and pad the rest.

    rows = Rows(token_file, seq_len=128, tokenizer=tokenizer)
    rows[np.array([0, 7])]              # int32 [2, T+1]
    rows.fill                           # fraction of the targets that belong to documents

A row is an `end` token, documents with their `end` tokens, and padding with `end` tokens. Each
document therefore follows an `end` token, which marks its start. A document that is longer than a
row is split into pieces if it is text. A conversation loses the left part of its prompts instead.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from lm.data import tokenizers

OPEN = 256  # maximum number of rows that wait for another document
CHUNK = 1 << 24  # tokens that are searched at once


class PackedDocuments:
    """Rows of a token file. len() is their number; indexing with row numbers returns tokens."""

    def __init__(
        self,
        file: np.ndarray,
        seq_len: int,
        tokenizer: tokenizers.Tokenizer,
        on_overflow: str = "truncate",
        name: str = "",
    ):
        """Pack the documents of `file`.

        `on_overflow` is the treatment of conversations longer than a row: cut, drop or refuse. With
        cut, a conversation is dropped if its last answer alone is too long. Raises ValueError for
        refused conversations; `name` is the name of the file in the message.
        """
        self.file, self.seq_len, self.tokenizer = file, seq_len, tokenizer
        stops = _positions(file, tokenizer.end) + 1
        starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)]
        sizes = stops - starts
        first_tokens = file[starts] if len(starts) else np.zeros(0, int)
        is_chat = first_tokens == (tokenizer.marks[0] if tokenizer.marks else -1)
        is_long_chat = (sizes > seq_len) & is_chat
        can_cut = self._last_answer_sizes(stops) < seq_len
        is_cut = is_long_chat & can_cut & (on_overflow == "truncate")
        is_dropped = is_long_chat & ~is_cut
        self.n_documents = len(sizes)
        self.n_cut = int(is_cut.sum())  # conversations that lost the left part of their prompts
        self.n_left_out = int(is_dropped.sum())
        if on_overflow == "error" and is_long_chat.any():
            raise ValueError(
                f"{name}: {int(is_long_chat.sum())} of {len(sizes)} conversations are longer than"
                f" data.seq_len={seq_len}, the longest {sizes[is_long_chat].max()} tokens: raise"
                " it, or set data.on_overflow='truncate'"
            )
        starts = np.where(is_cut, stops - (seq_len - 1), starts)
        n_pieces = np.where((sizes > seq_len) & ~is_chat, -(-sizes // seq_len), 1)
        n_pieces[is_dropped] = 0
        self.document = np.repeat(np.arange(len(sizes)), n_pieces)
        piece = np.arange(len(self.document)) - (np.cumsum(n_pieces) - n_pieces)[self.document]
        self.start = starts[self.document] + piece * seq_len
        self.stop = np.minimum(stops[self.document], self.start + seq_len)
        self.is_cut = is_cut[self.document]
        n_tokens = self.stop - self.start + self.is_cut
        row_of_item = best_fit(n_tokens, seq_len, OPEN)
        self._items = np.argsort(row_of_item, kind="stable")
        n_rows = row_of_item.max(initial=-1) + 1
        self._first = np.searchsorted(row_of_item[self._items], np.arange(n_rows + 1))
        self.fill = float(n_tokens.sum() / max(len(self) * seq_len, 1))

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        user = (self.tokenizer.marks or (0,))[0]  # a truncated conversation also starts with it
        tokens_BS = np.full((len(rows), self.seq_len + 1), self.tokenizer.end, np.int32)
        for tokens_S, row in zip(tokens_BS, rows, strict=True):
            position = 1
            for item in self.items(int(row)):
                if self.is_cut[item]:
                    tokens_S[position], position = user, position + 1
                text = self.file[self.start[item] : self.stop[item]]
                tokens_S[position : position + len(text)] = text
                position += len(text)
        return tokens_BS

    def items(self, row: int) -> np.ndarray:
        """Return the items of a row: indices into start, stop, document and is_cut."""
        return self._items[self._first[row] : self._first[row + 1]]

    def _last_answer_sizes(self, stops: np.ndarray) -> np.ndarray:
        """Return, for each document, the tokens from its last answer token to its end."""
        marks = self.tokenizer.marks
        answers = _positions(self.file, marks[1]) if marks else stops[:0]
        last = np.searchsorted(answers, stops) - 1
        return stops - np.concatenate([answers, [0]])[last]


def best_fit(
    sizes: Sequence[int] | np.ndarray,
    capacity: int,
    max_open: int | None = None,
    newest_only: bool = False,
) -> np.ndarray:
    """Assign items to rows of `capacity` and return the row of each item, int64.

    Items are placed in the given order, each into the fullest open row that has room for it, or
    else into a new row. If more than `max_open` rows are open, the fullest is closed (None: no
    limit). With `newest_only` a new row closes all others, which is next fit. Task evaluation packs
    by next fit, because another composition of rows changes the last digits of its scores.
    """
    row_of_item = np.zeros(len(sizes), np.int64)
    open_rows: list[tuple[int, int]] = []  # (free space, row), sorted
    n_rows = 0
    for item, size in enumerate(map(int, sizes)):
        i = bisect.bisect_left(open_rows, (size, -1))
        if i < len(open_rows):
            free, row = open_rows.pop(i)
        else:
            free, row, n_rows = capacity, n_rows, n_rows + 1
            if newest_only:
                open_rows.clear()
        row_of_item[item] = row
        if free > size:
            bisect.insort(open_rows, (free - size, row))
        if max_open is not None and len(open_rows) > max_open:
            open_rows.pop(0)
    return row_of_item


def packed_segment_ids(tokens_BS: np.ndarray, end: int) -> np.ndarray:
    """Return the document number of each input in its row, int32 [B, T].

    An `end` token belongs to the document that follows it.
    """
    return (tokens_BS[:, :-1] == end).cumsum(axis=1, dtype=np.int32)


def packed_loss_weights(tokens_BS: np.ndarray, end: int) -> np.ndarray:
    """Return float32 [B, T]: 1 for the targets of documents, 0 for padding."""
    is_end_BS = tokens_BS == end
    return (~(is_end_BS[:, :-1] & is_end_BS[:, 1:])).astype(np.float32)


def _positions(file: np.ndarray, token: int) -> np.ndarray:
    """Return the positions of a token, int64. Only a part of the file is in memory at a time."""
    parts = [
        start + np.flatnonzero(file[start : start + CHUNK] == token)
        for start in range(0, len(file), CHUNK)
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
