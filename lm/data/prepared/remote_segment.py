"""Consecutive tokens of a remote file, read in the byte ranges of the requested tokens.

    segment = RemoteSegment(manifest, segment)
    segment.read_ahead(np.array([7, 8]), seq_len=128)
    segment.rows(np.array([7, 8]), seq_len=128)        # [2, T+1]

Checksums are of whole blocks, which would multiply the bytes that a host reads. Therefore the size
of the file is verified when it is opened, and each range by its length and its token ids. The
command experiments.prepare verifies the checksums of all blocks.
"""

from pathlib import Path

import numpy as np

from lm.data.prepared import block_checksums, corpus_manifest, token_index
from lm.data.storage import byte_ranges, remote_path

MAX_GAP_BYTES = 1 << 14  # between two tokens that are read by one request


class RemoteSegment:
    """Consecutive tokens of a remote file. Threads may read it together."""

    def __init__(self, manifest: corpus_manifest.Manifest, segment: corpus_manifest.Segment):
        """Open the file. Raises DamagedText if it is shorter than the manifest requires."""
        path, self._first_byte, self._n_tokens = segment
        if not isinstance(path, remote_path.RemotePath):
            raise TypeError(f"{path} is a local file")
        self.path, self._dtype = path, np.dtype(manifest.dtype)
        self._vocab_size = manifest.vocab_size
        n_bytes = self._first_byte + self._n_tokens * self._dtype.itemsize
        try:
            size = path.stat().st_size
        except OSError as error:
            raise self._error(error) from None
        if size < n_bytes:
            problem = f"it has {size:,} bytes instead of {n_bytes:,}: write the file again"
            raise block_checksums.DamagedText(f"{path} is truncated: {problem}")
        self._reader = byte_ranges.shared_reader(Path(manifest.folder).parent)

    def __len__(self) -> int:
        return self._n_tokens

    def tokens(self, index: token_index.Index) -> np.ndarray:
        """Return the token ids at a position, a slice or an array of positions."""
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop, _ = index.indices(self._n_tokens)
            return self._consecutive_tokens(start, max(start, stop))
        positions, is_single = token_index.as_positions(index, self._n_tokens)
        unique, inverse = np.unique(positions, return_inverse=True)
        max_gap = MAX_GAP_BYTES // self._dtype.itemsize
        groups = np.split(unique, np.flatnonzero(np.diff(unique) > max_gap) + 1)
        groups = [group for group in groups if len(group)]
        starts, stops = (np.array([group[i] for group in groups], np.int64) for i in (0, -1))
        contents = self.slices(starts, stops + 1)
        parts = [ids[group - group[0]] for ids, group in zip(contents, groups, strict=True)]
        ids = np.concatenate([np.zeros(0, self._dtype), *parts])[inverse]
        return ids[0] if is_single else ids

    def rows(self, index: token_index.Index, seq_len: int) -> np.ndarray:
        """Return a row [T+1], or the rows of a slice or an array of numbers, [N, T+1]."""
        numbers, is_single = token_index.as_positions(index, max(self._n_tokens - 1, 0) // seq_len)
        rows = self.slices(numbers * seq_len, (numbers + 1) * seq_len + 1)
        tokens_NS = np.stack(rows) if rows else np.zeros((0, seq_len + 1), self._dtype)
        return tokens_NS[0] if is_single else tokens_NS

    def slices(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Return the token ids of each range of positions."""
        try:
            contents = self._reader.read(self.path, self._byte_ranges(starts, stops))
        except OSError as error:
            raise self._error(error) from None
        return [self._decode(content) for content in contents]

    def read_ahead(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Start to read ranges of positions. A later call of `slices` raises the errors."""
        self._reader.read_ahead(self.path, self._byte_ranges(starts, stops))

    def _consecutive_tokens(self, start: int, stop: int) -> np.ndarray:
        """Return the token ids start to stop - 1. Long ranges do not enter the cache."""
        ((first, last),) = self._byte_ranges(np.array([start]), np.array([stop]))
        if last - first <= remote_path.READ_BYTES:
            return self.slices(np.array([start]), np.array([stop]))[0]
        try:
            chunks = byte_ranges.stream_chunks(self.path, remote_path.READ_BYTES, first, last)
            return self._decode(b"".join(chunks))
        except OSError as error:
            raise self._error(error) from None

    def _byte_ranges(self, starts: np.ndarray, stops: np.ndarray) -> list[byte_ranges.Range]:
        width = self._dtype.itemsize
        limits = ((self._first_byte + positions * width).tolist() for positions in (starts, stops))
        return list(zip(*limits, strict=True))

    def _decode(self, content: bytes) -> np.ndarray:
        """Return the token ids of bytes. Raises DamagedText for an id outside the vocabulary."""
        ids = np.frombuffer(content, self._dtype)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._vocab_size:
            raise block_checksums.DamagedText(
                f"{self.path} is damaged: token id {max(ids.max(), -ids.min())} is not one of the"
                f" {self._vocab_size:,} ids of data.tokenizer: write the file again"
            )
        return ids

    def _error(self, error: OSError) -> block_checksums.DamagedText:
        return block_checksums.DamagedText(
            f"{self.path}: cannot be read ({error.strerror}): restore the file, or the access to it"
        )
