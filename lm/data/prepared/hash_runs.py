"""Set of 64-bit hashes on disk: a set in memory, and sorted files that are merged.

Each sorted file is called a run, as in merge sort. It is not a training run.

    hashes = HashRuns(Path("folder"))
    hashes.add([3, 5])
    hashes.has_any([5, 9])                   # True
    records = hashes.flush()                 # after this, the files contain all hashes
    hashes.remove_unused(records)
    hashes = HashRuns(Path("folder"), records)

A hash that no run contains is rejected by a Bloom filter (1970) in memory, so most queries read no
file. Runs of similar size are merged, so n hashes have about log2(n / N_RECENT) runs. Memory use:
30 MB for the recent hashes, at most MAX_FILTER_BYTES for the filter, and 8 bytes per page.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

N_RECENT = 1 << 18  # hashes in memory before they are written to a run
PAGE_HASHES = 512  # hashes per read of a query; memory has the first hash of each page
BLOCK_PAGES = 1 << 9  # pages of the largest run that are merged at a time
# A filter of 16 to 32 bits per hash and two probes accepts at most 1.4% of the absent hashes.
BITS_PER_HASH = 16
MAX_FILTER_BYTES = 1 << 27  # beyond 67 million hashes, more absent hashes are accepted
SUFFIX = ".u64"


class RunRecord(NamedTuple):
    """File of a run in the folder, and the SHA-256 of its content."""

    name: str
    checksum: str


class SortedRun:
    """Sorted file of uint64, of which memory has the first hash of each page."""

    def __init__(self, path: Path, record: RunRecord | None = None):
        """Open the file.

        Raises ValueError if its size is no multiple of 8 bytes, or if it differs from the checksum
        of its record.
        """
        self.path, self.record = path, record
        self._file = open(path, "rb", buffering=0)
        n_bytes = os.fstat(self._file.fileno()).st_size
        if n_bytes % 8:
            self.close()
            raise ValueError(
                f"{path} is damaged: {n_bytes:,} bytes are not a whole number of hashes of 8 bytes:"
                " delete its folder"
            )
        self.n_hashes = n_bytes // 8
        content, first_hashes = hashlib.sha256(), [np.zeros(0, np.uint64)]
        for block in self.blocks():
            content.update(block.data)
            first_hashes.append(block[::PAGE_HASHES].copy())
        self._first_hashes = np.concatenate(first_hashes)
        if record is not None and content.hexdigest() != record.checksum:
            self.close()
            raise ValueError(f"{path} is damaged: its SHA-256 differs: delete its folder")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the hashes start to stop - 1, fewer at the end of the file."""
        content = os.pread(self._file.fileno(), 8 * (stop - start), 8 * start)
        return np.frombuffer(content, np.uint64, len(content) // 8)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all hashes in order."""
        n_hashes = BLOCK_PAGES * PAGE_HASHES
        for start in range(0, self.n_hashes, n_hashes):
            yield self.read(start, start + n_hashes)

    def position(self, value: np.uint64) -> int:
        """Return the number of hashes below a value."""
        page = int(np.searchsorted(self._first_hashes, value, "right")) - 1
        if page < 0:
            return 0
        hashes = self.read(page * PAGE_HASHES, (page + 1) * PAGE_HASHES)
        return page * PAGE_HASHES + int(np.searchsorted(hashes, value))

    def __contains__(self, value: np.uint64) -> bool:
        page = int(np.searchsorted(self._first_hashes, value, "right")) - 1
        if page < 0:
            return False
        hashes = self.read(page * PAGE_HASHES, (page + 1) * PAGE_HASHES)
        index = int(np.searchsorted(hashes, value))
        return index < len(hashes) and hashes[index] == value

    def block_limits(self) -> np.ndarray:
        """Return the first hash of each block except the first block."""
        return self._first_hashes[BLOCK_PAGES::BLOCK_PAGES]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class HashRuns:
    """Set of uint64 on disk. Hashes are added until `flush` writes all of them."""

    def __init__(
        self, folder: Path, records: Iterable[RunRecord] = (), earlier_paths: Sequence[Path] = ()
    ):
        """Open the runs of an earlier `flush` in the folder, or create an empty set.

        earlier_paths: sorted files of uint64 that also belong to the set and do not change. Raises
        ValueError if a run is damaged, and OSError if it is missing.
        """
        self._folder, self._records = folder, list(records)
        self._runs = [SortedRun(folder / record.name, record) for record in self._records]
        self._earlier_runs = [SortedRun(path) for path in earlier_paths]
        self._recent: set[int] = set()
        self._n_files = max((int(r.name.partition(".")[0]) for r in self._records), default=0)
        self._fill_filter()

    def add(self, hashes: Iterable[int]) -> None:
        """Add hashes."""
        self._recent.update(hashes)
        if len(self._recent) >= N_RECENT:
            self.flush()

    def has_any(self, hashes: Collection[int]) -> bool:
        """Return True if the set contains one of the hashes."""
        if not self._recent.isdisjoint(hashes):
            return True
        filter_bytes, shift = self._filter, self._shift
        for value in hashes:  # most of the time of a document, hence without calls
            first = value >> shift
            if filter_bytes[first >> 3] >> (first & 7) & 1 and self._is_in_runs(value):
                return True
        return False

    def flush(self) -> list[RunRecord]:
        """Write the recent hashes to a run, and merge runs of similar size. Return all runs."""
        if self._recent:
            hashes = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._runs.append(self._write([hashes]))
            self._recent.clear()
            if self._n_hashes() * BITS_PER_HASH > self._n_bits < 8 * MAX_FILTER_BYTES:
                self._fill_filter()
            else:
                self._mark_in_filter(hashes)
            first = len(self._runs) - 1
            n_merged = self._runs[first].n_hashes
            while first and self._runs[first - 1].n_hashes <= n_merged:
                first -= 1
                n_merged += self._runs[first].n_hashes
            self._merge_from(first)
        return [run.record for run in self._runs if run.record is not None]

    def merge_all(self, path: Path) -> None:
        """Write all hashes of this set, without those of earlier files, to one sorted file."""
        self.flush()
        _write_blocks(path, _merged_blocks(self._runs))

    def remove_unused(self, records: list[RunRecord]) -> None:
        """Delete the runs in the folder that are not in `records`, which are stored elsewhere."""
        self._records = records
        names = {record.name for record in records}
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path.name not in names:
                path.unlink()

    def close(self) -> None:
        """Close the files."""
        for run in (*self._runs, *self._earlier_runs):
            run.close()

    def _merge_from(self, first: int) -> None:
        """Replace the runs from number `first` on by one run."""
        runs = self._runs[first:]
        if len(runs) < 2:
            return
        self._runs[first:] = [self._write(_merged_blocks(runs))]
        for run in runs:
            run.close()
            if run.record not in self._records:
                run.path.unlink()

    def _write(self, blocks: Iterable[np.ndarray]) -> SortedRun:
        """Write sorted hashes to a new file, and open it."""
        self._n_files += 1
        name = f"{self._n_files:06}{SUFFIX}"
        checksum = _write_blocks(self._folder / name, blocks)
        return SortedRun(self._folder / name, RunRecord(name, checksum))

    def _n_hashes(self) -> int:
        return sum(run.n_hashes for run in (*self._runs, *self._earlier_runs))

    def _is_in_runs(self, value: int) -> bool:
        """Return True if a run contains a hash whose first bit in the filter is set."""
        second = (value >> 1) & (self._n_bits - 1)
        if not self._filter[second >> 3] >> (second & 7) & 1:
            return False
        wide = np.uint64(value)
        return any(wide in run for run in (*self._earlier_runs, *self._runs))

    def _fill_filter(self) -> None:
        """Create a filter for the number of hashes, and mark the hashes of all runs."""
        n_bits = 1 << max((BITS_PER_HASH * self._n_hashes() - 1).bit_length(), 3)
        self._n_bits = min(n_bits, 8 * MAX_FILTER_BYTES)
        # The number of bits of a hash minus those of a position.
        self._shift = 65 - self._n_bits.bit_length()
        self._filter = bytearray()  # frees the old one first
        self._filter = bytearray(self._n_bits // 8)
        for run in (*self._earlier_runs, *self._runs):
            for block in run.blocks():
                self._mark_in_filter(block)

    def _mark_in_filter(self, hashes: np.ndarray) -> None:
        """Set the two bits of each hash: its highest bits, and the bits above its lowest bit."""
        filter_bytes, mask = np.frombuffer(self._filter, np.uint8), np.uint64(self._n_bits - 1)
        for positions in (hashes >> np.uint64(self._shift), (hashes >> np.uint64(1)) & mask):
            bits = np.left_shift(np.uint8(1), (positions & np.uint64(7)).astype(np.uint8))
            np.bitwise_or.at(filter_bytes, positions >> np.uint64(3), bits)


def _write_blocks(path: Path, blocks: Iterable[np.ndarray]) -> str:
    """Write blocks of hashes to a file, also to the disk. Return the SHA-256 of the content."""
    content = hashlib.sha256()
    with open(path, "wb") as file:
        for block in blocks:
            content.update(block.data)
            block.tofile(file)
        file.flush()
        os.fsync(file.fileno())  # otherwise a power cut may leave an empty file with a record
    return content.hexdigest()


def _merged_blocks(runs: Sequence[SortedRun]) -> Iterator[np.ndarray]:
    """Yield the hashes of all runs in order. The limits of blocks are those of the largest run."""
    if not runs:
        return
    limits = max(runs, key=lambda run: run.n_hashes).block_limits()
    positions = [[0, *map(run.position, limits), run.n_hashes] for run in runs]
    for number in range(len(limits) + 1):
        parts = [run.read(p[number], p[number + 1]) for run, p in zip(runs, positions, strict=True)]
        yield np.sort(np.concatenate(parts))
