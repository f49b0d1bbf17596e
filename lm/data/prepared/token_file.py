"""Token ids of a prepared source. Each block of a file is verified when it is first read.

    file = TokenFile(manifest, "train")
    file[10:20]                              # token ids, of the type of the file
    rows = TokenRows(file, seq_len=128)
    rows[np.array([0, 7])]                   # [2, T+1]

A file of at most corpus_manifest.WHOLE_FILE_BYTES is verified when it is opened. The tokens of a
split may be parts of several files: see corpus_manifest.split_segments. A remote file is read in
the byte ranges of the requested tokens: see remote_segment.py.
"""

import functools

import numpy as np

from lm.data.prepared import block_checksums, corpus_manifest, remote_segment, token_index
from lm.data.storage import remote_path

Index = token_index.Index


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
        self._windows = functools.cache(functools.partial(_row_windows, self.ids))
        if self._is_complete:
            # A file of another trainer may have a header, and its ids were verified before.
            type_name = "" if self._is_outside else manifest.dtype
            arguments = self.path, self._checksums, type_name, manifest.vocab_size
            if damage := block_checksums.file_damage(*arguments):
                raise self._error(damage)

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, index: Index) -> np.ndarray:
        """Return the token ids at a position, a slice or an array of positions."""
        first, last = token_index.first_and_last(index, len(self))
        self._verify_tokens(first, last + 1)
        return self.ids[index]

    def rows(self, index: Index, seq_len: int) -> np.ndarray:
        """Return a row [T+1], or the rows of a slice or an array of numbers, [N, T+1]."""
        windows = self._windows(seq_len)
        first, last = token_index.first_and_last(index, len(windows))
        self._verify_tokens(first * seq_len, (last + 1) * seq_len + 1)
        return windows[index]

    def slices(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Return the token ids of each range of positions."""
        self._verify_tokens(starts, stops)
        return [self.ids[start:stop] for start, stop in zip(starts, stops, strict=True)]

    def read_ahead(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Do nothing: the operating system reads local files ahead."""

    def _verify_tokens(self, starts: np.ndarray, stops: np.ndarray) -> None:
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
        self.segments = [
            remote_segment.RemoteSegment(manifest, segment)
            if isinstance(segment.path, remote_path.RemotePath)
            else _MappedSegment(manifest, segment)
            for segment in corpus_manifest.split_segments(manifest, split)
        ]
        self.dtype = np.dtype(manifest.dtype)
        # Position of the first token of each segment, and the number of all tokens.
        self.starts = np.cumsum([0, *map(len, self.segments)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Index) -> np.ndarray:
        """Return the token ids at a position, a slice or an array of positions.

        Raises DamagedText if a block that contains them is damaged.
        """
        if len(self.segments) == 1:
            return self.segments[0].tokens(index)
        positions, is_single = token_index.as_positions(index, len(self))
        ids = np.empty(len(positions), self.dtype)
        for number, is_inside, local in token_index.by_segment(self.starts, positions):
            ids[is_inside] = self.segments[number].tokens(local)
        return ids[0] if is_single else ids

    @property
    def is_remote(self) -> bool:
        """True if a segment is read from object storage."""
        return any(isinstance(part, remote_segment.RemoteSegment) for part in self.segments)

    def slices(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Return the token ids of ranges of positions, which are read at the same time.

        starts: first position of each range, [n]. stops: the position after its last.
        """
        first, last = (np.searchsorted(self.starts, p, "right") - 1 for p in (starts, stops - 1))
        parts = [np.zeros(0, self.dtype)] * len(starts)
        for number in np.unique(first):
            inside = np.flatnonzero((first == number) & (last == number))
            local = (positions[inside] - self.starts[number] for positions in (starts, stops))
            for i, ids in zip(inside, self.segments[number].slices(*local), strict=True):
                parts[i] = ids
        for i in np.flatnonzero(first < last):
            parts[i] = self[starts[i] : stops[i]]
        return parts

    def read_ahead(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Start to read ranges of positions of remote segments. See `slices`."""
        for number, is_inside, local in token_index.by_segment(self.starts, starts):
            lengths = (stops - starts)[is_inside]
            self.segments[number].read_ahead(local, local + lengths)


class TokenRows:
    """Rows of a token file. No row contains tokens of two segments.

    Row r of a segment has its tokens r*T to r*T + T inclusive, for T = seq_len.
    """

    def __init__(self, file: TokenFile, seq_len: int):
        self._file, self._seq_len, self.is_remote = file, seq_len, file.is_remote
        n_rows = [max(len(segment) - 1, 0) // seq_len for segment in file.segments]
        self._starts = np.cumsum([0, *n_rows])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Index) -> np.ndarray:
        """Return a row [T+1], or the rows of a slice or of an array of numbers, [N, T+1].

        Raises DamagedText if a block that contains them is damaged.
        """
        if len(self._file.segments) == 1:
            return self._file.segments[0].rows(index, self._seq_len)
        numbers, is_single = token_index.as_positions(index, len(self))
        tokens_NS = np.empty((len(numbers), self._seq_len + 1), self._file.dtype)
        for segment, is_inside, local in token_index.by_segment(self._starts, numbers):
            tokens_NS[is_inside] = self._file.segments[segment].rows(local, self._seq_len)
        return tokens_NS[0] if is_single else tokens_NS

    def read_ahead(self, numbers: np.ndarray) -> None:
        """Start to read rows of remote files."""
        for segment, _, local in token_index.by_segment(self._starts, numbers):
            starts = local * self._seq_len
            self._file.segments[segment].read_ahead(starts, starts + self._seq_len + 1)

    def first_token(self, row: int) -> int:
        """Return the position in the token file of the first token of a row."""
        segment = int(np.searchsorted(self._starts, row, "right")) - 1
        return int(self._file.starts[segment] + (row - self._starts[segment]) * self._seq_len)


def _row_windows(ids: np.ndarray, seq_len: int) -> np.ndarray:
    """Return the rows of consecutive tokens as a view, [N, T+1]."""
    if len(ids) <= seq_len:
        return np.zeros((0, seq_len + 1), ids.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(ids, seq_len + 1)
    return np.asarray(windows[::seq_len])
