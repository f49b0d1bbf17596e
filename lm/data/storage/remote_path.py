"""Paths of objects in object storage, with the methods of pathlib.Path that readers use.

    path = open_address("s3://bucket/tokens/a.bin")       # a pathlib.Path for a local address
    path.stat().st_size, path.read_range(10, 20)
    with path.open("rb") as file:
        file.read(100)

Every error of a storage library becomes an OSError with the address and a reason of one line. A
request that fails for another reason than a missing object or a missing permission is repeated.
memory:// is a bucket in the memory of the process, for tests and measurements.
"""

import errno
import functools
import io
import os
import posixpath
import re
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Scheme -> extra of this project that installs its package; "" without one.
SCHEMES = {"gs": "gcs", "s3": "s3", "hf": "hf", "memory": ""}
READ_BYTES = 1 << 22  # bytes per request of a sequential reader
N_ATTEMPTS = 4  # of a request
RETRY_SECONDS = 0.5  # before the second attempt; doubles for each further attempt
# Entries of the metadata of fsspec that change with the content of an object.
_VERSION_NAMES = (
    *("etag", "ETag", "generation", "blob_id", "md5Hash", "crc32c"),
    *("LastModified", "mtime", "updated", "created"),
)
_FORBIDDEN_STATUS = (401, 403)  # of HTTP
_FORBIDDEN = re.compile(r"\b(forbidden|access ?denied|unauthorized|gated)\b", re.IGNORECASE)
Result = typing.TypeVar("Result")


class RemoteStat(NamedTuple):
    """Size of an object, and a text that changes with its content."""

    st_size: int
    version: str


class RemotePath:
    """Address of an object, or of the common prefix of objects, which is called a folder."""

    def __init__(self, address: str):
        """Store the address. Raises ValueError if its scheme or its package is missing."""
        self._address = address.rstrip("/") if not address.endswith("://") else address
        self._file_system = _open_file_system(address.partition("://")[0])

    def __str__(self) -> str:
        return self._address

    def __repr__(self) -> str:
        return f"RemotePath({self._address!r})"

    def __fspath__(self) -> str:
        return self._address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._address == other._address

    def __hash__(self) -> int:
        return hash(self._address)

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self._address.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return posixpath.basename(self._address)

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(posixpath.dirname(self._address))

    def with_suffix(self, suffix: str) -> "RemotePath":
        return self.parent / (posixpath.splitext(self.name)[0] + suffix)

    def is_symlink(self) -> bool:
        return False

    def is_file(self) -> bool:
        return self._type() == "file"

    def is_dir(self) -> bool:
        return self._type() == "directory"

    def exists(self) -> bool:
        return bool(self._type())

    def stat(self) -> RemoteStat:
        """Return the size and the version of an object."""
        info = self._request(lambda: self._file_system.info(self._address))
        version = next((info[name] for name in _VERSION_NAMES if info.get(name) is not None), "")
        return RemoteStat(int(info["size"] or 0), str(version))

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes start to stop - 1. Raises OSError if the object ends before."""

        def read() -> bytes:
            content = self._file_system.cat_file(self._address, start=start, end=stop)
            if len(content) != stop - start:
                problem = f"{len(content):,} bytes instead of {stop - start:,} from {start:,} on"
                raise OSError(errno.EIO, f"is truncated: {problem}", self._address)
            return content

        return self._request(read) if stop > start else b""

    def read_bytes(self) -> bytes:
        """Return the content of an object."""
        return self._request(lambda: self._file_system.cat_file(self._address))

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Return a reader of the object that reads READ_BYTES per request. mode: always "rb"."""
        if mode != "rb":
            raise ValueError(f"{self._address}: mode={mode!r} must be 'rb'")
        return io.BufferedReader(_RangeStream(self), READ_BYTES)

    def write_file(self, local_path: str | os.PathLike) -> None:
        """Write the content of a local file to the object."""
        local_name = os.fspath(local_path)
        self._request(lambda: self._file_system.put_file(local_name, self._address))

    def write_bytes(self, content: bytes) -> None:
        """Write the object."""
        self._request(lambda: self._file_system.pipe_file(self._address, content))

    def unlink(self) -> None:
        """Delete the object."""
        self._request(lambda: self._file_system.rm_file(self._address))

    def iterdir(self) -> list["RemotePath"]:
        """Return the objects and folders directly in a folder, sorted; [] without the folder."""
        if not self.is_dir():
            return []
        names = self._request(lambda: self._file_system.ls(self._address, detail=False))
        return sorted(map(self._of_same_scheme, names), key=str)

    def find_files(self) -> list["RemotePath"]:
        """Return all objects below a folder, in the order in which os.walk visits sorted names."""
        names = self._request(lambda: self._file_system.find(self._address))
        return sorted(map(self._of_same_scheme, names), key=_walk_key)

    def find_matches(self, pattern: str) -> list["RemotePath"]:
        """Return the objects of this bucket that match a glob with *, ?, [] and **, sorted.

        pattern: a complete address.
        """
        names = self._request(lambda: self._file_system.glob(pattern))
        return sorted(map(self._of_same_scheme, names), key=str)

    def _of_same_scheme(self, name: str) -> "RemotePath":
        """Return the path of a name that fsspec lists, which has no scheme."""
        scheme = self._address.partition("://")[0]
        name = name.removeprefix(f"{scheme}://").lstrip("/")
        return RemotePath(f"{scheme}://{name}")

    def _type(self) -> str:
        """Return "file", "directory" or "" if there is neither."""
        try:
            return self._request(lambda: self._file_system.info(self._address))["type"]
        except FileNotFoundError:
            return ""

    def _request(self, call: Callable[[], Result]) -> Result:
        """Return the result of a request. Repeat it after an error of the network."""
        failure = OSError(errno.EIO, "was not requested", self._address)
        for attempt in range(N_ATTEMPTS):
            try:
                return call()
            except Exception as error:  # libraries of storage have no common class
                failure = _as_os_error(error, self._address)
            if isinstance(failure, FileNotFoundError | PermissionError | IsADirectoryError):
                break
            if attempt < N_ATTEMPTS - 1:
                time.sleep(RETRY_SECONDS * 2**attempt)
        raise failure from None


class _RangeStream(io.RawIOBase):
    """Sequential reader of an object, for io.BufferedReader."""

    def __init__(self, path: RemotePath):
        self._path, self._size, self._position = path, path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        content = self._path.read_range(self._position, stop) if stop > self._position else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


AnyPath = Path | RemotePath


def is_remote_address(address: str | os.PathLike) -> bool:
    """Return True if an address has a scheme, such as gs://."""
    return "://" in os.fspath(address)


def open_address(address: str | os.PathLike) -> AnyPath:
    """Return a RemotePath for SCHEME://..., or a pathlib.Path for a local path."""
    text = os.fspath(address)
    return RemotePath(text) if is_remote_address(text) else Path(os.path.expanduser(text))


def content_version(path: AnyPath) -> tuple:
    """Return values that change with the content of a file: its size, and its time or version."""
    if isinstance(path, RemotePath):
        return tuple(path.stat())
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.cache
def _open_file_system(scheme: str) -> Any:
    """Return the fsspec file system of a scheme. Raises ValueError if it is not available."""
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES if name != "memory")
        raise ValueError(f"{scheme}:// is not supported: use a local path or one of {known}")
    import fsspec

    try:
        # A cached listing would hide objects that other processes write.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError:
        raise ValueError(
            f"{scheme}:// needs a package that is not installed: run uv sync --extra"
            f" {SCHEMES[scheme]}"
        ) from None


def _as_os_error(error: Exception, address: str) -> OSError:
    """Return an OSError with the address and a reason of one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "there is no such object", address)
    if isinstance(error, PermissionError) or _is_forbidden(error, reason, address):
        return PermissionError(errno.EACCES, "permission denied: sign in, or grant access", address)
    if isinstance(error, IsADirectoryError):
        return IsADirectoryError(errno.EISDIR, "is a folder", address)
    if isinstance(error, OSError) and error.errno == errno.EIO and error.strerror:
        return OSError(errno.EIO, error.strerror, address)
    return OSError(errno.EIO, reason[:300], address)


def _is_forbidden(error: Exception, reason: str, address: str) -> bool:
    """Return True if a request was refused for lack of permission.

    The status of HTTP decides. Without a status, the text of the error decides, without addresses
    and the parts of the address, which may contain any word.
    """
    if status := _http_status(error):
        return status in _FORBIDDEN_STATUS
    for part in (address, address.partition("://")[2], *address.split("/")):
        if _FORBIDDEN.search(part):
            reason = reason.replace(part, " ")
    reason = re.sub(r"\S*(?:/|%2F)\S*", " ", reason)
    return bool(_FORBIDDEN.search(reason))


def _http_status(error: Exception) -> int:
    """Return the status of HTTP in an error of aiohttp, gcsfs, requests or botocore, 0 if none."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    values = (
        getattr(error, "status", None),
        getattr(error, "code", None),
        getattr(response, "status_code", None),
        metadata.get("HTTPStatusCode"),
    )
    texts = [str(value) for value in values if not isinstance(value, bool)]
    return next((int(text) for text in texts if re.fullmatch(r"[1-5]\d\d", text)), 0)


def _walk_key(path: RemotePath) -> list[tuple[bool, str]]:
    """Return the position of a file in a walk: files of a folder come before its subfolders."""
    *folders, name = str(path).split("/")
    return [*((True, folder) for folder in folders), (False, name)]
