"""Files on this machine and in a bucket, gs://, so that both behave alike to all above.

    at("runs/a"), at("gs://bucket/runs/a")     # a pathlib.Path, an etils.epath.Path: same methods

A bucket has no append, no rename and no locks; an object is seen whole or not at all, and a list
of objects is true the moment it is made. So a file that grows is, in a bucket, an object a line,
beside the one in which `settle` has gathered those before:

    metrics.jsonl          metrics.jsonl.parts/00000001795478400000000000
"""

import concurrent.futures
import os
import shutil
import tempfile
import time
import typing
from collections.abc import Iterator
from pathlib import Path

READERS = 32  # objects that are fetched at once


def at(where: str | os.PathLike) -> Path:
    """The path of a name; ValueError for a kind of storage that is unknown or not installed."""
    text = os.fspath(where)
    scheme, found, _ = text.partition("://")
    if not found:
        return Path(text)
    if scheme != "gs":
        raise ValueError(f"{text}: {scheme}:// is not known: a folder here, or gs://BUCKET/FOLDER")
    import fsspec.config  # these two imported here: what stays on this machine needs neither
    from etils import epath

    try:
        fsspec.get_filesystem_class("gs")
    except ImportError:
        raise ValueError(f"{text}: needs a package that is not here: uv sync --extra gcs") from None
    for name in ("gs", "gcs"):  # a remembered list of objects would hide what others write
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    return typing.cast(Path, epath.Path(text))  # a type of its own, with the same methods


def is_remote(where: str | os.PathLike) -> bool:
    """Whether it lies in a bucket."""
    return "://" in os.fspath(where)


def write(path: Path, data: str | bytes) -> None:
    """Replaces a file whole: a reader, or a crash at any moment, sees the old or the new one."""
    raw = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_bytes(raw)
        return
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(fresh, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on no bytes
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def append(path: Path, line: str) -> None:
    """Adds a line to a file that only this process writes."""
    if is_remote(path):
        _parts(path).joinpath(f"{time.time_ns():023}").write_bytes(f"{line}\n".encode())
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def lines(path: Path) -> list[str]:
    """The lines of a file that grows, in order; an unfinished last one too. Empty if none is there.

    In a bucket the parts are read before what they are gathered into: whatever `settle` deletes
    meanwhile is found there.
    """
    if not is_remote(path):
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = sorted(listed(_parts(path)))
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(_text, names))
    return list(dict.fromkeys([*_text(path).splitlines(), *"".join(parts).splitlines()]))


def grown_at(path: Path) -> float:
    """When a file that grows got its last line, in seconds since 1970; 0 where nobody can say."""
    if is_remote(path):
        return max((int(part.name) for part in listed(_parts(path))), default=0) / 1e9
    return path.stat().st_mtime if path.exists() else 0.0


def settle(path: Path) -> None:
    """Heals a file that grows, before its next writer: cuts an unfinished last line, so that the
    next stands on its own; in a bucket gathers the parts, so that clocks cannot change their order.
    """
    if is_remote(path):
        parts = listed(_parts(path))
        if parts:
            write(path, "".join(line + "\n" for line in lines(path)))
        for part in parts:
            part.unlink(missing_ok=True)
    elif path.exists():
        text = path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with open(path, "r+b") as file:
                file.truncate(whole)


def sync(path: Path) -> None:
    """Waits until a file that grows would outlive a power cut; in a bucket it does already."""
    if not is_remote(path) and path.exists():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def touch(path: Path, data: str) -> None:
    """Says that a file is still meant; `data`: its content, to be written again where that says so.

    Here only the time changes, which a full disk allows. OSError if the file is gone.
    """
    if is_remote(path):
        path.write_text(data)
    else:
        os.utime(path)


def find(top: Path, name: str) -> list[Path]:
    """Files of a name below a folder, not inside checkpoints; in a bucket four folders deep."""
    if is_remote(top):
        return sorted(p for depth in range(5) for p in top.glob("*/" * depth + name))
    found = []
    for folder, folders, files in os.walk(top):
        folders[:] = [one for one in folders if one not in ("checkpoints", "damaged")]
        found += [Path(folder, name)] * (name in files)
    return sorted(found)


def move(folder: Path, place: Path) -> None:
    """Gives a folder another name; in a bucket it is copied whole before it is deleted."""
    if not is_remote(folder):
        folder.rename(place)
        return
    for path in _below(folder):
        with path.open("rb") as file, (place / path.relative_to(folder)).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 24)
    for path in _below(folder):
        path.unlink()


def probe(folder: Path) -> None:
    """OSError if no folder can be made in this one; nothing is tried in a bucket."""
    if not is_remote(folder):
        os.rmdir(tempfile.mkdtemp(prefix=".probe-", dir=folder))


def free_bytes(folder: Path) -> float:
    """Room on the disk of a folder; a bucket has any."""
    return float("inf") if is_remote(folder) else shutil.disk_usage(folder).free


def listed(folder: Path) -> list[Path]:
    """What lies right in a folder; nothing if there is no such folder."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _below(folder: Path) -> Iterator[Path]:
    for path in listed(folder):
        yield from _below(path) if path.is_dir() else [path]


def _parts(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
