"""Block checksums detect every change of a file."""

import os

import numpy as np
import pytest

from lm.data.prepared import block_checksums


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(block_checksums, "BLOCK_BYTES", 8)


def test_block_checksums_cover_the_whole_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(20)))
    expected = [block_checksums.sha256(bytes(range(i, min(i + 8, 20)))) for i in (0, 8, 16)]
    assert block_checksums.block_checksums(path) == expected
    assert block_checksums.content_checksums(path.read_bytes()) == expected
    assert block_checksums.section_sha256(path, 8, 8) == expected[1]


@pytest.mark.parametrize(
    "content, problem",
    [
        (bytes(20), ""),
        (bytes(9) + b"\1" + bytes(10), "the SHA-256 of bytes 8 to 15 differs"),
        (bytes(19), "the SHA-256 of bytes 16 to 18 differs"),
        (bytes(16), "bytes 16 and later are missing"),
        (bytes(25), "the SHA-256 of bytes 16 to 23 differs"),
        (b"", "bytes 0 and later are missing"),
    ],
)
def test_file_damage_names_the_first_bytes(tmp_path, content, problem):
    path = tmp_path / "a"
    path.write_bytes(bytes(20))
    stored = block_checksums.block_checksums(path)
    path.write_bytes(content)
    assert block_checksums.file_damage(path, stored) == problem


def test_token_ids_are_compared_with_the_vocabulary(tmp_path):
    path = tmp_path / "a"
    np.array([1, 2, 3, 4, 299, 300], np.uint16).tofile(path)
    assert block_checksums.file_damage(path, None, "uint16", 301) == ""
    problem = "token id 300 in bytes 8 to 11 is not below 300"
    assert block_checksums.file_damage(path, None, "uint16", 300) == problem


def test_unchanged_file_is_read_once_per_process(tmp_path, monkeypatch):
    """A file that changed in the last seconds may change again within one time stamp."""
    path = tmp_path / "a"
    path.write_bytes(bytes(20))
    stored, read = block_checksums.block_checksums(path), []
    read_blocks = block_checksums._read_blocks
    monkeypatch.setattr(block_checksums, "_read_blocks", lambda p: read.append(p) or read_blocks(p))
    for n_reads in (1, 2):
        assert block_checksums.file_damage(path, stored) == "" and len(read) == n_reads
    monkeypatch.setattr(block_checksums, "RECENT_SECONDS", -1.0)
    for _ in range(2):
        assert block_checksums.file_damage(path, stored) == "" and len(read) == 3
    path.write_bytes(b"\1" * 20)
    os.utime(path, (1, 1))
    assert block_checksums.file_damage(path, stored) and len(read) == 4
