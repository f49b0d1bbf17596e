"""Token ids of a prepared source. Each block of a file is verified when it is first read.

    file = TokenFile(manifest, "train")
    file[10:20]                              # token ids, of the type of the file
    rows = TokenRows(file, seq_len=128)
    rows[np.array([0, 7])]                   # [2, T+1]

A file of at most corpus_manifest.WHOLE_FILE_BYTES is verified when it is opened.
"""

from pathlib import Path

import numpy as np

from lm.data.prepared import block_checksums, corpus_manifest

Index = int | slice | np.ndarray


class TokenFile:
    """Token ids of one split of a source, mapped into memory. Threads may read it together."""

    def __init__(self, manifest: corpus_manifest.Manifest, split: str):
        """Open the file. Raises DamagedText if it differs from its checksums or its length."""
        self._manifest, self.path = manifest, Path(manifest.folder, f"{split}.bin")
        self._checksums = manifest.checksums.get(self.path.name) if manifest.checksums else None
        n_tokens, dtype = manifest.tokens[split], np.dtype(manifest.dtype)
        n_bytes = n_tokens * dtype.itemsize
        if (size := self.path.stat().st_size) != n_bytes:
            raise self._error(f"it has {size:,} bytes instead of {n_bytes:,}")
        # An empty file cannot be mapped.
        self.ids = np.memmap(self.path, dtype, "r") if n_tokens else np.zeros(0, dtype)
        self._block_tokens = block_checksums.BLOCK_BYTES // dtype.itemsize
        self._is_verified = np.zeros(-(-n_tokens // self._block_tokens), bool)
        self._is_complete = n_bytes <= corpus_manifest.WHOLE_FILE_BYTES
        if self._is_complete:
            damage = block_checksums.file_damage(
                self.path, self._checksums, manifest.dtype, manifest.vocab_size
            )
            if damage:
                raise self._error(damage)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Index) -> np.ndarray:
        """Return the token ids at a position, a slice or an array of positions.

        Raises DamagedText if a block that contains them is damaged.
        """
        if not self._is_complete:
            first, last = _first_and_last(index, len(self))
            self.verify_tokens(first, last + 1)
        return self.ids[index]

    def verify_tokens(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Verify the blocks of ranges of tokens, unless they were verified before.

        starts: first token of each range, [n]. stops: the token after its last, [n]. Raises
        DamagedText if a block differs from its checksum or has an invalid token id.
        """
        if self._is_complete:
            return
        first, last = starts // self._block_tokens, (stops - 1) // self._block_tokens
        ranges = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        blocks = np.unique(np.concatenate([np.zeros(0, np.int64), *ranges]))
        for number in blocks[~self._is_verified[blocks]]:
            ids = self.ids[number * self._block_tokens : (number + 1) * self._block_tokens]
            expected = self._checksums[number] if self._checksums else None
            vocab_size = self._manifest.vocab_size
            damage = block_checksums.block_damage(ids.data, int(number), expected, ids, vocab_size)
            if damage:
                raise self._error(damage)
            self._is_verified[number] = True
        self._is_complete = bool(self._is_verified.all())

    def _error(self, damage: str) -> block_checksums.DamagedText:
        return block_checksums.DamagedText(
            f"{self.path} is damaged: {damage}: start experiments.prepare with the config of the"
            " run, which verifies all files and prepares damaged text again"
        )


class TokenRows:
    """Rows of a token file. Row r has the tokens r*T to r*T + T inclusive, for T = seq_len."""

    def __init__(self, file: TokenFile, seq_len: int):
        self._file, self._seq_len = file, seq_len
        if len(file) > seq_len:
            windows = np.lib.stride_tricks.sliding_window_view(file.ids, seq_len + 1)
            self._rows = np.asarray(windows[::seq_len])
        else:
            self._rows = np.zeros((0, seq_len + 1), file.ids.dtype)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Index) -> np.ndarray:
        """Return a row [T+1], or the rows of a slice or of an array of numbers, [N, T+1].

        Raises DamagedText if a block that contains them is damaged.
        """
        first, last = _first_and_last(index, len(self))
        self._file.verify_tokens(first * self._seq_len, (last + 1) * self._seq_len + 1)
        return self._rows[index]


def _first_and_last(index: Index, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last item of each range that an index selects, int64 [n]."""
    if isinstance(index, slice):
        items = range(n_items)[index]
        ends = sorted((items[0], items[-1])) if items else []
        return np.array(ends[:1], np.int64), np.array(ends[1:], np.int64)
    numbers = np.atleast_1d(np.asarray(index))
    if numbers.dtype == bool:
        numbers = np.flatnonzero(numbers)
    numbers = np.where(numbers < 0, numbers + n_items, numbers).astype(np.int64)
    return numbers, numbers
