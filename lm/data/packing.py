"""Pack complete documents into fixed-length rows, and pad the rows.

    rows = PackedDocuments(token_file, seq_len=128, tokenizer=tokenizer)
    rows[np.array([0, 7])]              # int32 [2, T+1]
    rows.fill                           # fraction of the targets that belong to documents

A row is an `end` token, documents with their `end` tokens, and padding with `end` tokens. Each
document therefore follows an `end` token, which marks its start. A text that is longer than a row
is split into several rows. A conversation is truncated: it loses the left part of its prompts.
Legend: B rows, T seq_len, S = T + 1 tokens.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from lm.data import tokenizers
from lm.data.prepared import token_file

MAX_OPEN_ROWS = 256  # maximum number of rows that can receive another document
TOKENS_PER_SEARCH = 1 << 24  # tokens in memory during the search for a token


class PackedDocuments:
    """Rows of a token file. len() is the number of rows. An array of row numbers gives tokens.

    An item is what a row contains: a document, a piece of a text or a truncated conversation.

    Attributes: start, stop, document and is_cut of each item: its first token in the file, the
    token after its last, the number of its document, and True for truncated conversations.
    n_documents, documents in the file; n_cut, truncated conversations; n_left_out, dropped
    conversations; fill, fraction of the targets that belong to documents.
    """

    def __init__(
        self,
        file: np.ndarray | token_file.TokenFile,
        seq_len: int,
        tokenizer: tokenizers.Tokenizer,
        on_overflow: str = "truncate",
        name: str = "",
    ):
        """Pack the documents of `file`, token ids [n_tokens].

        on_overflow: truncate, drop or error, for conversations longer than a row. truncate drops a
        conversation if its last answer alone is too long. name: name of the file in the error.
        Raises ValueError for a too long conversation if on_overflow is error.
        """
        self.file, self.seq_len, self.tokenizer = file, seq_len, tokenizer
        self.is_remote = isinstance(file, token_file.TokenFile) and file.is_remote
        stops = _positions(file, tokenizer.end) + 1
        starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)]
        sizes = stops - starts
        first_tokens = file[starts] if len(starts) else np.zeros(0, int)
        is_chat = first_tokens == (tokenizer.marks[0] if tokenizer.marks else -1)
        is_long_chat = (sizes > seq_len) & is_chat
        fits_if_cut = self._last_answer_sizes(stops) < seq_len
        is_cut = is_long_chat & fits_if_cut & (on_overflow == "truncate")
        is_dropped = is_long_chat & ~is_cut
        self.n_documents = len(sizes)
        self.n_cut = int(is_cut.sum())
        self.n_left_out = int(is_dropped.sum())
        if on_overflow == "error" and is_long_chat.any():
            raise ValueError(
                f"{name}: {int(is_long_chat.sum())} of {len(sizes)} conversations are longer than"
                f" data.seq_len={seq_len}, the longest {sizes[is_long_chat].max()} tokens:"
                " raise data.seq_len, or set data.on_overflow='truncate'"
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
        row_of_item = best_fit(n_tokens, seq_len, MAX_OPEN_ROWS)
        self._items = np.argsort(row_of_item, kind="stable")
        n_rows = row_of_item.max(initial=-1) + 1
        self._first_item = np.searchsorted(row_of_item[self._items], np.arange(n_rows + 1))
        self.fill = float(n_tokens.sum() / max(len(self) * seq_len, 1))

    def __len__(self) -> int:
        return len(self._first_item) - 1

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return the tokens of these rows, int32 [B, T+1]."""
        # A truncated conversation also starts with the special token of a user turn.
        user = (self.tokenizer.marks or (0,))[0]
        tokens_BS = np.full((len(rows), self.seq_len + 1), self.tokenizer.end, np.int32)
        texts = iter(self._texts(rows))
        for tokens_S, row in zip(tokens_BS, rows, strict=True):
            position = 1
            for item in self.items(int(row)):
                if self.is_cut[item]:
                    tokens_S[position], position = user, position + 1
                text = next(texts)
                tokens_S[position : position + len(text)] = text
                position += len(text)
        return tokens_BS

    def read_ahead(self, rows: np.ndarray) -> None:
        """Start to read rows of a remote file."""
        if isinstance(self.file, token_file.TokenFile) and len(rows):
            items = np.concatenate([self.items(int(row)) for row in rows])
            self.file.read_ahead(self.start[items], self.stop[items])

    def _texts(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the tokens of all items of these rows, in order."""
        items = np.concatenate([np.zeros(0, np.int64), *(self.items(int(row)) for row in rows)])
        starts, stops = self.start[items], self.stop[items]
        if isinstance(self.file, token_file.TokenFile):
            return self.file.slices(starts, stops)
        return [self.file[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def items(self, row: int) -> np.ndarray:
        """Return the items of a row: indices of start, stop, document and is_cut."""
        return self._items[self._first_item[row] : self._first_item[row + 1]]

    def _last_answer_sizes(self, stops: np.ndarray) -> np.ndarray:
        """Return the number of tokens from the last answer token of each document to its end.

        stops: position after the last token of each document.
        """
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

    Each item, in the given order, goes to the open row with the least free space that is enough, or
    else to a new row. max_open: number of open rows above which the fullest is closed; None is no
    limit. newest_only: a new row closes all others, which is next fit. Task evaluation uses next
    fit: another composition of rows changes the last digits of its scores.
    """
    row_of_item = np.zeros(len(sizes), np.int64)
    open_rows: list[tuple[int, int]] = []  # sorted pairs (free space, row)
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
    """Return the segment id of each input token, int32 [B, T].

    A segment id is the number of the document in its row. tokens_BS: packed rows, [B, T+1]. end: id
    of the `end` token. An `end` token belongs to the document that follows it.
    """
    return (tokens_BS[:, :-1] == end).cumsum(axis=1, dtype=np.int32)


def packed_loss_weights(tokens_BS: np.ndarray, end: int) -> np.ndarray:
    """Return the loss weight of each target, float32 [B, T]: 1 in documents, 0 in padding.

    tokens_BS: packed rows, [B, T+1]. end: id of the `end` token. The `end` token after a document
    is a target with weight 1.
    """
    is_end_BS = tokens_BS == end
    return (~(is_end_BS[:, :-1] & is_end_BS[:, 1:])).astype(np.float32)


def _positions(file: np.ndarray | token_file.TokenFile, token: int) -> np.ndarray:
    """Return the positions of a token in a file, int64. Memory use does not grow with the file."""
    parts = [
        start + np.flatnonzero(file[start : start + TOKENS_PER_SEARCH] == token)
        for start in range(0, len(file), TOKENS_PER_SEARCH)
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)
