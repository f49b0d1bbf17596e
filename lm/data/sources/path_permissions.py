"""Permissions of the paths that a stored run names: its config may come from a stranger.

    permissions = grant_permissions("downloads/600K", ["/data/books"])
    check_links("downloads/600K", ["/data/books"])      # symbolic links in the run directory
    run = check_sources(run, permissions)               # text that an evaluation reads
    check_cache_folders(run, permissions)               # folders that an evaluation writes

Without further permission, a command reads the run directory and the folders of the user, and
writes the folders of the user alone. The folders of the user are the working directory and its
folders data and runs, which may be links. The home directory and the folders above it contain
private files, so there only data and runs count. Built-in and synthetic text is always permitted.

The flag --allow_path=FOLDER grants a folder. --allow_path=gs://BUCKET/FOLDER grants a folder in a
bucket, as does s3://BUCKET/FOLDER, and --allow_path=hf:NAME a dataset of the Hugging Face hub.
Links and ".." are resolved before a path is compared. Values of the command line and of the config
files of the user need no permission.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lm.config import schema
from lm.data.sources import uri
from lm.runs import filesystem

OWN_FOLDERS = ("data", "runs")  # folders of the working directory that may be links
_GLOB_CHARACTERS = re.compile(r"[*?\[{]")


class Permissions(NamedTuple):
    """Resolved local folders that may be read and written, and other names that are permitted."""

    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    names: tuple[str, ...]  # gs://BUCKET/FOLDER and hf:NAME

    def allow_reading(self, path: str | os.PathLike) -> bool:
        """Return True if a file or folder may be read."""
        return self._allow(os.fspath(path), self.readable)

    def allow_writing(self, path: str | os.PathLike) -> bool:
        """Return True if a file or folder may be written."""
        return self._allow(os.fspath(path), self.writable)

    def allow_name(self, name: str) -> bool:
        """Return True if a path in a bucket or the name of a dataset is permitted."""
        if ".." in name.split("/"):
            return False
        return any(re.match(rf"{re.escape(text)}(?:[/:?]|$)", name) for text in self.names)

    def _allow(self, path: str, folders: tuple[Path, ...]) -> bool:
        if filesystem.is_remote(path):
            return self.allow_name(path)
        real_path = _resolve(path)
        return any(real_path.is_relative_to(folder) for folder in folders)


def grant_permissions(
    run_folder: str | os.PathLike | None, allow_paths: Iterable[str] = ()
) -> Permissions:
    """Return the permissions of a command that reads a run directory.

    run_folder: None permits the folders of the user alone. allow_paths: values of --allow_path.
    """
    names = [text.rstrip("/") for text in allow_paths if _is_name(text)]
    writable = [*_own_folders(), *(_resolve(text) for text in allow_paths if not _is_name(text))]
    if run_folder is None or filesystem.is_remote(run_folder):
        return Permissions(tuple(writable), tuple(writable), tuple(names))
    return Permissions((*writable, _resolve(run_folder)), tuple(writable), tuple(names))


def check_links(folder: str | os.PathLike, allow_paths: Iterable[str] = ()) -> None:
    """Check the symbolic links of a local run directory, and that its files are regular files.

    allow_paths: values of --allow_path. Raises ValueError for a link to a file that may not be
    read, and for a pipe or a device.
    """
    if filesystem.is_remote(folder):
        return
    permissions = grant_permissions(folder, allow_paths)
    for entry in _entries(os.fspath(folder)):
        if entry.is_symlink() and not permissions.allow_reading(entry.path):
            target = os.path.realpath(entry.path)
            raise ValueError(
                f"{entry.path} is a link to {target}, outside the run and the working directory:"
                f" replace it by a copy, or pass --allow_path={target}"
            )
        is_regular = entry.is_dir() or entry.is_file()
        if not is_regular and os.path.exists(entry.path):
            raise ValueError(f"{entry.path} is a pipe, socket or device: delete it")


def check_sources(
    run: schema.Run, permissions: Permissions, sources: Iterable[str] | None = None
) -> schema.Run:
    """Check the text that the config of a stored run names. Return the run without other sources.

    sources: sources that the user names, which need no permission; None is all sources of the run.
    With `sources`, stored sources that may not be read are removed. Raises ValueError that names
    the field, the path and the flag that permits it.
    """
    data = run.data
    named = set(sources or ())
    problems = {
        name: problem
        for name in data.sources
        if name not in named and (problem := _source_problem(name, permissions))
    }
    reads_stored_text = sources is None or not named.isdisjoint(data.sources)
    depends_on_all = data.decontaminate_ngram or data.drop_near_duplicates
    if problems and (sources is None or (reads_stored_text and depends_on_all)):
        problem = next(iter(problems.values()))
        raise _refusal(run, "data.sources", problem, " or other text by --sources")
    against = data.decontaminate_against
    if reads_stored_text and against and (problem := _source_problem(against, permissions)):
        raise _refusal(run, "data.decontaminate_against", problem)
    permitted = {name: weight for name, weight in data.sources.items() if name not in problems}
    return dataclasses.replace(run, data=dataclasses.replace(data, sources=permitted))


def check_cache_folders(run: schema.Run, permissions: Permissions) -> None:
    """Check the folders in which an evaluation of a stored run prepares text.

    Raises ValueError that names the field, the folder and the flag that permits it.
    """
    fields = ["cache_dir"]
    if filesystem.is_remote(run.data.cache_dir):
        fields.append("local_cache_dir")
    for field in fields:
        folder = getattr(run.data, field)
        if not permissions.allow_writing(folder):
            raise _refusal(run, f"data.{field}", folder, " or another folder by --cache_dir")


def own_data(data: schema.Data) -> schema.Data:
    """Return the data config of a parent run with defaults for paths outside the user's folders.

    A config file that copies the data config of a parent run sets its own sources.
    """
    permissions = grant_permissions(None)
    defaults = schema.Data()
    changes: dict[str, str] = {
        field: getattr(defaults, field)
        for field in ("cache_dir", "local_cache_dir")
        if not permissions.allow_writing(getattr(data, field))
    }
    if data.decontaminate_against and _source_problem(data.decontaminate_against, permissions):
        changes["decontaminate_against"] = ""
    return dataclasses.replace(data, **changes)


def _refusal(run: schema.Run, field: str, path: str, alternative: str = "") -> ValueError:
    """Return the error for a path of a stored config that may not be used."""
    config = filesystem.open_path(run.dir) / run.name / "config.json"
    return ValueError(
        f"{config}: {field} names {path}, outside the run and the working directory: pass"
        f" --allow_path={path}{',' if alternative else ''}{alternative}"
    )


def _source_problem(source: str, permissions: Permissions) -> str:
    """Return the path or dataset of a source that may not be read; "" if all may be read."""
    # Every command that reads a run imports this file, and the readers load slowly.
    from lm.data.sources import documents, tfds

    prefix, _, argument = source.partition(":")
    if prefix == "hf":
        name = uri.split_uri(source)[0]
        # A permission of a dataset includes all its revisions.
        names = (name, name.partition("@")[0])
        return "" if any(map(permissions.allow_name, names)) else name
    if prefix == "tfds":
        folder = os.fspath(tfds.dataset_folder(uri.split_uri(argument)[0]))
        return "" if permissions.allow_reading(folder) else folder
    if prefix not in documents.FILES:
        return ""  # built-in and synthetic text, and unknown sources, which are rejected later
    pattern = argument if prefix == "text" else uri.split_uri(argument)[0]
    if filesystem.is_remote(pattern):
        # All objects that match a pattern are in the last folder before its first glob character.
        fixed, *globs = _GLOB_CHARACTERS.split(pattern, maxsplit=1)
        address = fixed.rpartition("/")[0] if globs else fixed
        return "" if permissions.allow_name(address) else address
    folder = _fixed_part(pattern)
    if not permissions.allow_reading(folder):
        return os.path.realpath(folder)
    # A link below the folder may lead to other files.
    paths = documents.FILES[prefix](argument).paths
    folders = {path.parent for path in paths}
    permitted = {folder for folder in folders if permissions.allow_reading(folder)}
    for path in paths:
        is_permitted = path.parent in permitted and not path.is_symlink()
        if not is_permitted and not permissions.allow_reading(path):
            return os.path.realpath(path)
    return ""


def _fixed_part(pattern: str) -> str:
    """Return the path of a pattern before its first folder with a glob character."""
    path = os.path.expanduser(pattern)
    if os.path.lexists(path) or not _GLOB_CHARACTERS.search(path):
        return path
    parts = Path(path).parts
    n_fixed = next(i for i, part in enumerate(parts) if _GLOB_CHARACTERS.search(part))
    return str(Path(*parts[:n_fixed]))


def _own_folders() -> list[Path]:
    """Return the resolved folders of the user: see the docstring of the module."""
    working_dir, home = _resolve("."), _resolve("~")
    folders = [_resolve(name) for name in OWN_FOLDERS]
    is_private = home.is_relative_to(working_dir) and home.name != "~"
    is_root = working_dir == working_dir.parent
    return folders if is_private or is_root else [working_dir, *folders]


def _entries(folder: str) -> Iterator[os.DirEntry]:
    """Yield all entries below a folder. Links are not followed. A missing folder has none."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    yield from _entries(entry.path)
    except FileNotFoundError:  # another process deletes old checkpoints
        return


def _resolve(path: str | os.PathLike) -> Path:
    """Return a local path without links and "..". It need not exist."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def _is_name(text: str) -> bool:
    """Return True if a value of --allow_path is a bucket or a dataset, not a folder."""
    return filesystem.is_remote(text) or text.startswith("hf:")
