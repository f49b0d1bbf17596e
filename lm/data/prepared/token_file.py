"""Token ids of a prepared source. Each block of a file is verified when it is first read.

    file = TokenFile(manifest, "train")
    file[10:20]                              # token ids, of the type of the file
    rows = TokenRows(file, seq_len=128)
    rows[np.array([0, 7])]                   # [2, T+1]

A file of at most corpus_manifest.WHOLE_FILE_BYTES is verified when it is opened. The tokens of a
split may be parts of several files: see corpus_manifest.split_segments.
"""

import numpy as np

from lm.data.prepared import block_checksums, corpus_manifest

Index = int | slice | np.ndarray


class _MappedSegment:
    """Consecutive tokens of a file, mapped into memory."""

    def __init__(self, manifest: corpus_manifest.Manifest, segment: corpus_manifest.Segment):
        """Open the file. Raises DamagedText if it differs from its checksums or its length."""
        self.path, self._first_byte, n_tokens = segment
        self._vocab_size, dtype = manifest.vocab_size, np.dtype(manifest.dtype)
        self._is_outside = bool(manifest.segments)
        name = str(self.path) if self._is_outside else self.path.name
        self._checksums = manifest.checksums.get(name) if manifest.checksums else None
        n_bytes, size = self._first_byte + n_tokens * dtype.itemsize, self.path.stat().st_size
        if size < n_bytes or (size > n_bytes and not self._is_outside):
            raise self._error(f"it has {size:,} bytes instead of {n_bytes:,}")
        # An empty file cannot be mapped.
        self.ids = (
            np.memmap(self.path, dtype, "r", self._first_byte, (n_tokens,))
            if n_tokens
            else np.zeros(0, dtype)
        )
        self._bytes = np.memmap(self.path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        self._is_verified = np.zeros(-(-size // block_checksums.BLOCK_BYTES), bool)
        self._is_complete = size <= corpus_manifest.WHOLE_FILE_BYTES
        if self._is_complete:
            # A file of another trainer may have a header, and its ids were verified before.
            type_name = "" if self._is_outside else manifest.dtype
            arguments = self.path, self._checksums, type_name, manifest.vocab_size
            if damage := block_checksums.file_damage(*arguments):
                raise self._error(damage)

    def verify_tokens(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Verify the blocks of ranges of tokens, unless they were verified before.

        starts: first token of each range, [n]. stops: the token after its last, [n]. Raises
        DamagedText if a block differs from its checksum or has an invalid token id.
        """
        if self._is_complete:
            return
        width, size = self.ids.itemsize, block_checksums.BLOCK_BYTES
        first = (self._first_byte + starts * width) // size
        last = (self._first_byte + stops * width - 1) // size
        ranges = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        blocks = np.unique(np.concatenate([np.zeros(0, np.int64), *ranges]))
        for number in blocks[~self._is_verified[blocks]]:
            block = self._bytes[number * size : (number + 1) * size]
            ids = None if self._is_outside else block.view(self.ids.dtype)
            expected = self._checksums[number] if self._checksums else None
            arguments = block.data, int(number), expected, ids, self._vocab_size
            if damage := block_checksums.block_damage(*arguments):
                raise self._error(damage)
            self._is_verified[number] = True
        self._is_complete = bool(self._is_verified.all())

    def _error(self, damage: str) -> block_checksums.DamagedText:
        return block_checksums.DamagedText(
            f"{self.path} is damaged: {damage}: start experiments.prepare with the config of the"
            " run, which verifies all files and prepares damaged text again"
        )


class TokenFile:
    """Token ids of one split of a source, [n_tokens]. Threads may read it together."""

    def __init__(self, manifest: corpus_manifest.Manifest, split: str):
        """Open the files of a split. Raises DamagedText if a file differs from its checksums."""
        segments = corpus_manifest.split_segments(manifest, split)
        self.segments = [_MappedSegment(manifest, segment) for segment in segments]
        self._dtype = np.dtype(manifest.dtype)
        # Position of the first token of each segment, and the number of all tokens.
        self.starts = np.cumsum([0, *(len(segment.ids) for segment in self.segments)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Index) -> np.ndarray:
        """Return the token ids at a position, a slice or an array of positions.

        Raises DamagedText if a block that contains them is damaged.
        """
        if len(self.segments) == 1:
            (segment,) = self.segments
            first, last = _first_and_last(index, len(self))
            segment.verify_tokens(first, last + 1)
            return segment.ids[index]
        positions, is_single = _positions(index, len(self))
        ids = np.empty(len(positions), self._dtype)
        for number, is_inside, local in _by_segment(self.starts, positions):
            self.segments[number].verify_tokens(local, local + 1)
            ids[is_inside] = self.segments[number].ids[local]
        return ids[0] if is_single else ids


class TokenRows:
    """Rows of a token file. No row contains tokens of two segments.

    Row r of a segment has its tokens r*T to r*T + T inclusive, for T = seq_len.
    """

    def __init__(self, file: TokenFile, seq_len: int):
        self._file, self._seq_len = file, seq_len
        self._rows = [_segment_rows(segment.ids, seq_len) for segment in file.segments]
        self._starts = np.cumsum([0, *map(len, self._rows)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Index) -> np.ndarray:
        """Return a row [T+1], or the rows of a slice or of an array of numbers, [N, T+1].

        Raises DamagedText if a block that contains them is damaged.
        """
        if len(self._rows) == 1:
            first, last = _first_and_last(index, len(self))
            self._verify_rows(0, first, last)
            return self._rows[0][index]
        numbers, is_single = _positions(index, len(self))
        tokens_NS = np.empty((len(numbers), self._seq_len + 1), self._file[:0].dtype)
        for number, is_inside, local in _by_segment(self._starts, numbers):
            self._verify_rows(number, local, local)
            tokens_NS[is_inside] = self._rows[number][local]
        return tokens_NS[0] if is_single else tokens_NS

    def first_token(self, row: int) -> int:
        """Return the position in the token file of the first token of a row."""
        segment = int(np.searchsorted(self._starts, row, "right")) - 1
        return int(self._file.starts[segment] + (row - self._starts[segment]) * self._seq_len)

    def _verify_rows(self, segment: int, first: np.ndarray, last: np.ndarray) -> None:
        """Verify the blocks of ranges of rows of a segment."""
        starts, stops = first * self._seq_len, (last + 1) * self._seq_len + 1
        self._file.segments[segment].verify_tokens(starts, stops)


def _segment_rows(ids: np.ndarray, seq_len: int) -> np.ndarray:
    """Return the rows of consecutive tokens as a view, [N, T+1]."""
    if len(ids) <= seq_len:
        return np.zeros((0, seq_len + 1), ids.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(ids, seq_len + 1)
    return np.asarray(windows[::seq_len])


def _positions(index: Index, n_items: int) -> tuple[np.ndarray, bool]:
    """Return the items that an index selects, int64 [n], and True if it is a single number."""
    if isinstance(index, slice):
        return np.arange(*index.indices(n_items)), False
    numbers = np.atleast_1d(np.asarray(index))
    if numbers.dtype == bool:
        numbers = np.flatnonzero(numbers)
    return np.where(numbers < 0, numbers + n_items, numbers).astype(np.int64), np.ndim(index) == 0


def _by_segment(starts: np.ndarray, positions: np.ndarray):
    """Yield (segment, mask of the positions in it, their positions relative to its start)."""
    segment_of = np.searchsorted(starts, positions, "right") - 1
    for number in np.unique(segment_of):
        is_inside = segment_of == number
        yield int(number), is_inside, positions[is_inside] - starts[number]


def _first_and_last(index: Index, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last item of each range that an index selects, int64 [n]."""
    if isinstance(index, slice):
        items = range(n_items)[index]
        ends = sorted((items[0], items[-1])) if items else []
        return np.array(ends[:1], np.int64), np.array(ends[1:], np.int64)
    numbers, _ = _positions(index, n_items)
    return numbers, numbers
