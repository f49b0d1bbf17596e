"""Objects are listed and read like local files, and errors of libraries are one line."""

import errno
import types

import fsspec
import pytest
from fixtures import memory_bucket

from lm.data.storage import byte_ranges, remote_path


@pytest.fixture(autouse=True)
def traffic():
    with memory_bucket.open_memory_bucket() as traffic:
        yield traffic


def write(name: str, content: bytes) -> remote_path.RemotePath:
    fsspec.filesystem("memory").pipe_file(name, content)
    return remote_path.RemotePath(name)


def test_objects_have_the_read_methods_of_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_path, "READ_BYTES", 7)
    content = bytes(range(200))
    path = write("memory://bucket/a/b.tar.gz", content)
    assert (path.name, path.suffix, str(path.parent)) == ("b.tar.gz", ".gz", "memory://bucket/a")
    assert str(path.with_suffix(".idx")) == "memory://bucket/a/b.tar.idx"
    assert path.is_file() and path.parent.is_dir() and not (path.parent / "c").exists()
    assert path.read_bytes() == content and path.stat().st_size == 200
    with path.open("rb") as file:
        assert file.read(3) == content[:3] and file.read() == content[3:]
        assert file.seek(-5, 2) == 195 and file.read() == content[-5:]
    assert b"".join(byte_ranges.stream_chunks(path, 64, 10, 190)) == content[10:190]
    local = tmp_path / "b"
    local.write_bytes(content)
    assert list(byte_ranges.stream_chunks(local, 64)) == list(byte_ranges.stream_chunks(path, 64))
    first = remote_path.content_version(path)
    write(str(path), content)
    assert remote_path.content_version(path) != first


def test_files_are_listed_in_the_order_of_a_local_walk():
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", "a.txt", "c/a.txt"):
        write(f"memory://bucket/top/{name}", b"")
    top = remote_path.RemotePath("memory://bucket/top/")
    names = [str(path).removeprefix(f"{top}/") for path in top.find_files()]
    assert names == ["a.txt", "b.txt", "a/z.txt", "a/b/c.txt", "c/a.txt"]
    matches = top.find_matches("memory://bucket/top/*/*.txt")
    assert [path.parent.name for path in matches] == ["a", "c"]


def test_errors_of_storage_are_one_line(traffic, monkeypatch):
    delays = []
    monkeypatch.setattr(remote_path.time, "sleep", delays.append)
    path = write("memory://bucket/a.bin", b"123")
    with pytest.raises(OSError, match="is truncated: 1 bytes instead of 8 from 2 on"):
        path.read_range(2, 10)
    assert len([delay for delay in delays if delay]) == remote_path.N_ATTEMPTS - 1
    cases = [
        (RuntimeError("403, message='Forbidden',\nurl=..."), PermissionError, errno.EACCES),
        (FileNotFoundError("a"), FileNotFoundError, errno.ENOENT),
        (RuntimeError("connection\nlost"), OSError, errno.EIO),
    ]
    for error, kind, number in cases:
        traffic.errors = {"a.bin": error}
        with pytest.raises(kind) as caught:
            path.read_bytes()
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
        assert "\n" not in caught.value.strerror
    with pytest.raises(ValueError, match="ftp:// is not supported: use a local path or one of gs"):
        remote_path.RemotePath("ftp://a/b")
    with pytest.raises(ValueError, match="s3:// needs a package that is not installed: .*extra s3"):
        remote_path.RemotePath("s3://a/b")


class HttpError(Exception):
    """Error of a library with the status of HTTP."""

    def __init__(self, text: str, **attributes):
        super().__init__(text)
        self.__dict__ |= attributes


def test_only_refused_requests_are_errors_of_permission():
    timeout = types.SimpleNamespace(status_code=504)
    denied = {"ResponseMetadata": {"HTTPStatusCode": 403}}
    cases = [
        (OSError("expected 403 bytes, got 401"), "gs://b/a.bin", False),
        (OSError("timeout of gs://b/run-403/a.bin"), "gs://b/run-403/a.bin", False),
        (OSError("timeout of b/gated/a.bin"), "s3://b/gated/a.bin", False),
        (OSError("https://host/o/gated%2Fa.bin is slow"), "gs://b/gated/a.bin", False),
        (OSError("no answer: forbidden.bin"), "gs://b/forbidden.bin", False),
        (HttpError("access denied?", status=503), "gs://b/a.bin", False),
        (HttpError("unauthorized host", response=timeout), "hf://b/a.bin", False),
        (HttpError("sign in", status=401), "gs://b/a.bin", True),
        (HttpError("sign in", code="403"), "gs://b/a.bin", True),
        (HttpError("no", response=denied), "s3://b/a.bin", True),
        (HttpError("Access Denied", code="AccessDenied"), "s3://b/a.bin", True),
        (OSError("Forbidden: b/gated/a.bin"), "gs://b/gated/a.bin", True),
        (PermissionError("b/a.bin"), "s3://b/a.bin", True),
    ]
    for error, address, is_forbidden in cases:
        result = remote_path._as_os_error(error, address)
        assert isinstance(result, PermissionError) == is_forbidden, error
