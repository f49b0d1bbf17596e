"""Tests of the folder of compiled programs."""

import os
import threading
import time
import zlib
from pathlib import Path

import pytest
import zstandard

from lm.parallel import program_cache

PROGRAM = os.urandom(3000)


def set_age(file: Path, seconds: float) -> None:
    """Set the modification time of a file."""
    changed = time.time() - seconds
    os.utime(file, (changed, changed))


def test_folder_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = program_cache.program_folder({"XDG_CACHE_HOME": "/var/user"})
    assert folder == Path("/var/user/lm-scaling/compiled")
    for value in ("", "relative"):  # the standard ignores relative paths
        folder = program_cache.program_folder({"XDG_CACHE_HOME": value})
        assert folder == Path.home() / ".cache" / "lm-scaling" / "compiled"


@pytest.mark.parametrize("compress", [zstandard.ZstdCompressor().compress, zlib.compress])
def test_truncated_programs_are_removed_once(tmp_path, compress):
    """A file that is being written stays, and so does one that an earlier check has read."""
    data, old = compress(PROGRAM), time.time() - 100
    contents = {"whole": data, "half": data[: len(data) // 2], "empty": b"", "zeros": b"\0" * 99}
    for name, content in contents.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
        os.utime(tmp_path / f"{name}-cache", (old, old))
    (tmp_path / "written-cache").write_bytes(data[:9])
    assert program_cache.open_program_folder(tmp_path) == tmp_path
    assert {f.name for f in tmp_path.glob("*-cache")} == {"whole-cache", "written-cache"}
    for name, age in (("written-cache", 55), (program_cache.STAMP, 50)):
        set_age(tmp_path / name, age)
    assert program_cache.open_program_folder(tmp_path)
    assert [f.name for f in tmp_path.glob("*-cache")] == ["whole-cache"]


def test_program_written_during_a_check_is_checked_later(tmp_path, monkeypatch):
    start, file = time.time() - 100, tmp_path / "half-cache"
    file.write_bytes(zlib.compress(PROGRAM)[:9])
    os.utime(file, (start + 5, start + 5))
    with monkeypatch.context() as patch:
        patch.setattr(program_cache.time, "time", lambda: start)  # this check took 100 seconds
        program_cache.open_program_folder(tmp_path)
    assert file.exists()
    program_cache.open_program_folder(tmp_path)
    assert not file.exists()


def test_complete_program_needs_no_stored_size():
    for has_size in (True, False):
        data = zstandard.ZstdCompressor(write_content_size=has_size).compress(PROGRAM)
        assert program_cache.is_complete(data)
        assert not program_cache.is_complete(data[:-1])
        assert not program_cache.is_complete(data[:4])


def test_oldest_programs_beyond_the_limit_are_removed(tmp_path):
    for age in range(4):
        file = tmp_path / f"{age}-cache"
        file.write_bytes(zlib.compress(PROGRAM))
        set_age(file, 100 * age + 50)
    program_cache.open_program_folder(tmp_path, 2 * len(zlib.compress(PROGRAM)))
    assert sorted(f.name for f in tmp_path.glob("*-cache")) == ["0-cache", "1-cache"]
    subfolder = tmp_path / "autotune"
    subfolder.mkdir()
    (subfolder / "kernel").write_bytes(PROGRAM)
    program_cache.open_program_folder(tmp_path, 3 * len(PROGRAM) - 1)
    assert sorted(f.name for f in tmp_path.rglob("[!.]*") if f.is_file()) == ["0-cache", "kernel"]


def test_two_processes_can_clean_at_once(tmp_path):
    for number in range(50):
        (tmp_path / f"{number}-cache").write_bytes(b"x")
        os.utime(tmp_path / f"{number}-cache", (1, 1))
    results: list[Path | None] = []

    def clean() -> None:
        results.append(program_cache.open_program_folder(tmp_path))

    threads = [threading.Thread(target=clean) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path, tmp_path] and not list(tmp_path.glob("*-cache"))


def test_folder_that_cannot_be_created_is_not_used(tmp_path):
    (tmp_path / "file").write_text("")
    assert program_cache.open_program_folder(tmp_path / "file" / "compiled") is None
