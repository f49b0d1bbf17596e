"""Files of hashes: writes to the disk, records and truncated files."""

import os

import numpy as np
import pytest

from lm.data.prepared import hash_runs


def test_files_of_hashes_are_flushed_to_the_disk(tmp_path, monkeypatch):
    """A power cut after the record of a run would otherwise leave an empty file."""
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.fstat(number)))
    runs = hash_runs.HashRuns(tmp_path)
    runs.add([5, 3])
    (record,) = runs.flush()
    runs.merge_all(tmp_path / "all")
    runs.close()
    for path in (tmp_path / record.name, tmp_path / "all"):
        assert any(s.st_ino == path.stat().st_ino and s.st_size == 16 for s in flushed)


def test_records_of_an_iterator_are_read_once(tmp_path):
    runs = hash_runs.HashRuns(tmp_path)
    runs.add(range(9))
    records = runs.flush()
    runs.close()
    runs = hash_runs.HashRuns(tmp_path, iter(records))
    runs.add([100])
    assert len({record.name for record in runs.flush()}) == 2
    assert all(runs.has_any([value]) for value in (*range(9), 100))
    runs.close()


def test_truncated_file_of_another_source_is_refused(tmp_path):
    path = tmp_path / "seen.u64"
    np.arange(10, dtype=np.uint64).tofile(path)
    path.write_bytes(path.read_bytes()[:77])
    with pytest.raises(ValueError, match="seen.u64 is damaged: 77 bytes .*: delete its") as error:
        hash_runs.HashRuns(tmp_path, earlier_paths=[path])
    assert "\n" not in str(error.value)
