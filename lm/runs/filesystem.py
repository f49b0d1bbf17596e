"""Files on the local disk and in Google Cloud Storage (gs://), with the same functions for both.

    path = filesystem.open_path("gs://bucket/runs/a")      # has the methods of a pathlib.Path
    filesystem.append_line(path / "metrics.jsonl", "{}")

A bucket has no append, no rename and no locks. An object is visible completely or not at all, and a
listing is always consistent. In a bucket, an append-only file is stored as one object per line.
`repair_append_file` collects these objects in a single object:

    metrics.jsonl          metrics.jsonl.parts/00000001795478400000000000
"""

import concurrent.futures
import contextlib
import errno
import glob
import gzip
import os
import secrets
import shutil
import socket
import tempfile
import time
import typing
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from lm.config import run_files

N_READERS = 32  # objects that are downloaded at the same time
INTERRUPTED_SECONDS = 5.0  # a younger temporary file may belong to another container
ABANDONED_SECONDS = 3600.0  # no write of such a file takes longer
MAX_TEXT_BYTES = 1 << 26  # of a JSON file that is read at once
# Errors after which a repetition continues the run -> remedy. Other errors need another path.
DISK_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free disk space"),
    **dict.fromkeys((errno.EFBIG, errno.EMFILE, errno.ENFILE), "Raise the limit of ulimit"),
    **dict.fromkeys((errno.EROFS, errno.EIO, errno.ESTALE), "Repair the disk"),
}
COMPRESSED = ".gz"  # end of the name of a compressed file of lines
SKIPPED_FOLDERS = run_files.CHECKPOINTS, run_files.DAMAGED  # `find_files` does not search them


def open_path(name: str | os.PathLike) -> Path:
    """Return a pathlib.Path for a local name, or an etils.epath.Path for gs://BUCKET/FOLDER.

    Raises ValueError for an unknown scheme, or if the package for gs:// is not installed.
    """
    text = os.fspath(name)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(text)
    if scheme != "gs":
        raise ValueError(
            f"{text}: {scheme}:// is not supported. Use a local folder or gs://BUCKET/FOLDER."
        )
    # Local runs do not need these packages, so they are imported only for a bucket.
    import fsspec.config
    from etils import epath

    try:
        fsspec.get_filesystem_class("gs")
    except ImportError:
        raise ValueError(
            f"{text}: gs:// needs a package that is not installed. Run uv sync --extra gcs."
        ) from None
    for protocol in ("gs", "gcs"):
        # A cached listing would hide objects that other processes write.
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    return typing.cast(Path, epath.Path(text))  # another class with the same methods


def user_cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's folder of files that can be computed again.

    Raises RuntimeError without a home folder.
    """
    base = environment.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return folder / "lm-scaling"


def is_disk_error(error: BaseException) -> bool:
    """Return True for an error of the disk or the process, which affects all runs."""
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def is_remote(path: str | os.PathLike) -> bool:
    """Return True if the path is in a bucket."""
    return "://" in os.fspath(path)


def write_file(path: Path, data: str | bytes) -> None:
    """Replace a file atomically: after a crash it has the old or the new content."""
    raw = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_bytes(raw)
        return
    prefix = f".{path.name}.{socket.gethostname()}-"
    _remove_interrupted(path.parent, prefix)
    temporary = path.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with name_errors(path), open(temporary, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave an empty file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_interrupted(folder: Path, prefix: str) -> None:
    """Remove the temporary files of writes that were killed on this machine.

    prefix: start of their names, before the number of the process. Containers of one machine may
    have the same host name and separate process numbers, so younger files remain. The number of a
    killed process may belong to another process, so files older than ABANDONED_SECONDS are removed.
    """
    for path in folder.glob(f"{glob.escape(prefix)}*"):
        number = path.name.removeprefix(prefix).partition("-")[0]
        if number.isdecimal():
            is_alive = is_process_alive(int(number))
            with contextlib.suppress(FileNotFoundError):
                age = time.time() - path.stat().st_mtime
                if age > (ABANDONED_SECONDS if is_alive else INTERRUPTED_SECONDS):
                    path.unlink()


def is_process_alive(number: int) -> bool:
    """Return True if this machine has a process of this number."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return number > 0


def read_limited_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises ValueError if it has more than MAX_TEXT_BYTES."""
    n_bytes = file_size(path)
    if n_bytes > MAX_TEXT_BYTES:
        raise ValueError(f"{n_bytes:,} bytes are more than {MAX_TEXT_BYTES:,}")
    return path.read_text(encoding="utf-8")


def read_limited_bytes(path: Path, limit: int) -> bytes:
    """Return the bytes of a file. Raises ValueError if it has more than `limit`."""
    if (n_bytes := file_size(path)) > limit:
        raise ValueError(f"{path} has {n_bytes:,} bytes, more than {limit:,}: use another file")
    return path.read_bytes()


def file_size(path: Path) -> int:
    """Return the number of bytes of a file."""
    return getattr(path.stat(), "length" if is_remote(path) else "st_size")


def append_line(path: Path, line: str) -> None:
    """Append a line, without its line end, to a file. Only one process may write the file."""
    if is_remote(path):
        _parts_dir(path).joinpath(f"{time.time_ns():023}").write_bytes(f"{line}\n".encode())
        return
    with name_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


@contextlib.contextmanager
def name_errors(path: str | os.PathLike) -> Iterator[None]:
    """Add a path to each OSError of the context without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def read_lines(path: Path) -> list[str]:
    """Return the lines of an append-only file in order. The list is empty if there is no file.

    The lines of a compressed file, `path` with COMPRESSED, come first: see runs/archive.py. An
    unfinished last line is included. Bytes that are not UTF-8 become surrogates, so that such a
    byte does not hide the other lines. In a bucket, equal lines are returned once. There, the
    parts are read before the collected object, because `repair_append_file` may move lines from the
    parts to that object at the same time.
    """
    if not is_remote(path):
        return [*_split_lines(_read_compressed(path)), *_split_lines(_text_or_empty(path))]
    names = sorted(list_dir(_parts_dir(path)))
    with concurrent.futures.ThreadPoolExecutor(N_READERS) as pool:
        parts = list(pool.map(_text_or_empty, names))
    texts = _read_compressed(path), _text_or_empty(path), "".join(parts)
    lines = [line for text in texts for line in _split_lines(text)]
    return list(dict.fromkeys(lines))  # a line may be in a part and in the collected object


def count_lines(path: Path) -> int:
    """Return the number of lines that `read_lines` returns. A local file is read in chunks."""
    if is_remote(path):
        return len(read_lines(path))
    n_lines, last = len(_split_lines(_read_compressed(path))), b"\n"
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            n_lines += chunk.count(b"\n")
            last = chunk[-1:]
    return n_lines + (last != b"\n")


def last_append_time(path: Path) -> float:
    """Return the time of the last append in seconds since 1970, 0 if it is unknown."""
    if is_remote(path):
        return max((int(part.name) for part in list_dir(_parts_dir(path))), default=0) / 1e9
    return path.stat().st_mtime if path.exists() else 0.0


def repair_append_file(path: Path) -> None:
    """Repair an append-only file before its next writer starts.

    Locally, remove an unfinished last line, or add the missing end of a JSON line. In a bucket,
    collect the parts in one object. Their names are times, and the clock of the next machine may be
    behind.
    """
    if is_remote(path):
        if list_dir(_parts_dir(path)):
            replace_lines(path, read_lines(path))
    elif path.exists():
        text = path.read_bytes()
        end = text.rfind(b"\n") + 1
        if text.endswith(b"}"):
            with open(path, "ab") as file:
                file.write(b"\n")
        elif end < len(text):
            with open(path, "r+b") as file:
                file.truncate(end)


def replace_lines(path: Path, lines: list[str]) -> None:
    """Replace the lines of an append-only file. Only one process may write the file."""
    parts = list_dir(_parts_dir(path)) if is_remote(path) else []
    text = "".join(line + "\n" for line in lines)
    write_file(path, text.encode(errors="surrogateescape"))
    for part in parts:
        part.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Flush an append-only file to the disk. Objects in a bucket are always durable."""
    if not is_remote(path) and path.exists():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def refresh_mtime(path: Path, data: str) -> None:
    """Refresh the modification time of a file. Raises OSError if a local file is missing.

    data: content of the file. A bucket requires writing it again. Locally only the time changes,
    which works on a full disk.
    """
    if is_remote(path):
        path.write_text(data)
    else:
        os.utime(path)


def find_files(top: Path, name: str) -> list[Path]:
    """Return the sorted paths of the files `name` below a folder, except inside SKIPPED_FOLDERS.

    A folder with such a name that contains config.json is a run and is searched. The search in a
    bucket is limited to four levels of folders.
    """
    if is_remote(top):
        return sorted(p for depth in range(5) for p in top.glob("*/" * depth + name))
    paths = []
    for folder, subfolders, files in os.walk(top):
        # os.walk descends only into the folders that remain in this list. A run may have the name
        # of a skipped folder.
        subfolders[:] = [
            sub
            for sub in subfolders
            if sub not in SKIPPED_FOLDERS or Path(folder, sub, "config.json").exists()
        ]
        if name in files:
            paths.append(Path(folder, name))
    return sorted(paths)


def check_not_nested(folder: Path) -> None:
    """Raise ValueError if a folder for a run is inside a run directory, or contains one.

    A run directory contains config.json and facts.json. Nested runs would be read as one sweep.
    """
    is_bucket = is_remote(folder)
    for parent in folder.parents if is_bucket else folder.absolute().parents:
        is_root = str(parent).endswith("/")  # / or gs://
        if not is_root and _is_run_directory(parent):
            raise ValueError(
                f"{folder} is inside {parent}, which is a run directory: choose another name or dir"
            )
    # A search of a whole bucket folder would list all checkpoints.
    deeper = folder.glob("*/config.json") if is_bucket else find_files(folder, "config.json")
    for file in deeper:
        if file.parent != folder and _is_run_directory(file.parent):
            raise ValueError(
                f"{folder} contains {file.parent}, which is a run directory: choose another name"
            )


def _is_run_directory(folder: Path) -> bool:
    """Return True if a folder contains the files config.json and facts.json of a run."""
    return (folder / "config.json").exists() and (folder / "facts.json").exists()


def move_dir(folder: Path, target: Path) -> None:
    """Rename a folder. In a bucket, copy all its objects and then delete the originals."""
    if not is_remote(folder):
        folder.rename(target)
        return
    for path in _files_below(folder):
        with path.open("rb") as file, (target / path.relative_to(folder)).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 24)
    for path in _files_below(folder):
        path.unlink()


def check_writable(folder: Path) -> None:
    """Raise OSError if a local folder is not writable. A bucket is not checked.

    The file of the check has no name, so that a killed process leaves nothing behind.
    """
    if not is_remote(folder):
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            error.filename = os.fspath(folder)
            raise


def free_bytes(folder: Path) -> float:
    """Return the free space on the disk of a folder in bytes, infinity for a bucket."""
    return float("inf") if is_remote(folder) else shutil.disk_usage(folder).free


def list_dir(folder: Path) -> list[Path]:
    """Return the paths directly in a folder, an empty list if there is no such folder."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder."""
    for path in list_dir(folder):
        yield from _files_below(path) if path.is_dir() else [path]


def _parts_dir(path: Path) -> Path:
    """Return the folder in a bucket with the lines of an append-only file."""
    return path.with_name(path.name + ".parts")


def _text_or_empty(path: Path) -> str:
    """Return the text of a file, "" if there is no file."""
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return ""


def _read_compressed(path: Path) -> str:
    """Return the text of the compressed file of `path`, "" if there is none."""
    file = path.with_name(path.name + COMPRESSED)
    try:
        with file.open("rb") as binary, gzip.open(binary) as content:
            raw = content.read(MAX_TEXT_BYTES + 1)
        if not raw:
            raise EOFError("it is empty")
    except FileNotFoundError:
        return ""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} is damaged ({error}): restore it") from error
    if len(raw) > MAX_TEXT_BYTES:
        raise ValueError(f"{file} contains more than {MAX_TEXT_BYTES:,} bytes: delete it")
    return _decode(raw)


def _decode(raw: bytes) -> str:
    """Decode UTF-8, with surrogates for invalid bytes."""
    return raw.decode(errors="surrogateescape")


def _split_lines(text: str) -> list[str]:
    """Return the lines of a text. Only a line feed ends a line."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]
