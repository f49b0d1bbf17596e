"""Datasets of the Hugging Face hub: names, commits and shards.

    name = parse_hub_name("allenai/c4@1588ec4:en/train")
    hub_fingerprint("hf:allenai/c4:en/train", "allenai/c4:en/train", Path("data"))
    hub_shards("allenai/c4:en/train", "text")          # one reader per file of the dataset

A dataset is read at one commit, which its prepared text records. Another commit of the branch is
another text. Text that is already prepared can be opened without a connection.
"""

import functools
import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm.data.sources import readers
from lm.data.storage import remote_path

COMMIT = "commit"  # entry of Manifest.versions
_COMMIT_HASH = re.compile(r"[0-9a-f]{40}")
_USUAL_SPLIT = re.compile(r"(train|test|valid|val|dev|eval|unsupervised|all|full)", re.IGNORECASE)


class HubName(NamedTuple):
    """Parsed name of a dataset. revision: branch, tag or commit, "" for the main branch."""

    name: str
    revision: str
    config: str
    split: str

    @property
    def is_local(self) -> bool:
        """True if the name is a folder on the local disk."""
        return os.path.isdir(self.name)


def parse_hub_name(dataset: str) -> HubName:
    """Parse NAME[@REVISION][:CONFIG]/SPLIT. Raises ValueError if it names no split."""
    path, _, split = dataset.rpartition("/")
    # A split may have any name, so OWNER/NAME and FOLDER without a split have a valid form. Then
    # the last part is a split only if it has a usual name.
    is_ambiguous = "/" not in path or os.path.isdir(os.path.expanduser(dataset))
    is_local = bool(path) and os.path.isdir(os.path.expanduser(path)) and not Path(dataset).is_dir()
    if not path or (is_ambiguous and not is_local and not _USUAL_SPLIT.match(split)):
        raise ValueError(f"hf:{dataset} names no split: write it as hf:{dataset}/train")
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        return HubName(path, "", "", split)
    name, at, rest = path.partition("@")
    if not at:
        name, _, config = path.partition(":")
        return HubName(name, "", config, split)
    revision, _, config = rest.partition(":")
    if not revision:
        raise ValueError(f"hf:{dataset}: the revision after @ is empty: name a branch or a commit")
    return HubName(name, revision, config, split)


def hub_fingerprint(source: str, dataset: str, cache: Path | None) -> list:
    """Return a value that changes with the content of a dataset: its name and its commit.

    cache: local folder of all prepared text; None returns the name alone. Without a connection, the
    commit is that of the text in the cache. Text of an earlier version, which has no commit, is
    used as before. Raises ValueError if the commit cannot be determined.
    """
    name = parse_hub_name(dataset)
    if name.is_local:
        paths = sorted(path for path in Path(name.name).rglob("*") if path.is_file())
        versions = tuple((str(path), *remote_path.content_version(path)) for path in paths)
        return [(name.name, versions)]
    if cache is None:
        return [source]
    commits = _prepared_commits(source, cache)
    if "" in commits:
        return [source]
    try:
        return [(source, read_commit(name.name, name.revision))]
    except ValueError:
        if not commits:
            raise
        return [(source, commits[-1])]


def recorded_commit(fingerprint: list) -> dict[str, str]:
    """Return {COMMIT: hash} of a fingerprint, {} for a local folder or an unknown commit."""
    value = fingerprint[0]
    is_commit = isinstance(value, tuple) and isinstance(value[1], str)
    return {COMMIT: value[1]} if is_commit else {}


def hub_shards(dataset: str, field: str) -> list[readers.Shard]:
    """Return one reader per file of a split of a dataset, or a single reader for a stream.

    field: column of the text. Raises ValueError if the dataset cannot be read.
    """
    name = parse_hub_name(dataset)
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ValueError(f"hf:{dataset} needs a missing package: uv sync --extra hf") from None
    if Path(name.name, "state.json").is_file():
        raise ValueError(
            f"hf:{dataset}: {name.name} was written by Dataset.save_to_disk: write it by"
            " Dataset.to_parquet, and read it as parquet:FILE"
        )
    options: dict[str, Any] = {"split": name.split, "streaming": True}
    if not name.is_local:
        options["revision"] = read_commit(name.name, name.revision)
    try:
        rows = datasets.load_dataset(name.name, name.config or None, **options)
    except Exception as error:  # the library has no narrower class
        raise ValueError(
            f"hf:{dataset}: split {name.split!r} of {name.name!r} cannot be read"
            f" ({readers.first_line(str(error))}): correct hf:NAME[@REVISION][:CONFIG]/SPLIT"
        ) from None
    n_shards = getattr(rows, "num_shards", 1)
    if n_shards == 1:
        return [functools.partial(_read_rows, rows, f"hf:{dataset}", field)]
    return [
        functools.partial(
            _read_rows, rows.shard(n_shards, number), f"hf:{dataset} shard {number}", field
        )
        for number in range(n_shards)
    ]


@functools.lru_cache(maxsize=64)
def read_commit(name: str, revision: str) -> str:
    """Return the commit of a revision of a dataset, the same for all calls of a process.

    revision: branch, tag or commit; "" is the main branch. Raises ValueError if the hub cannot be
    reached, unless the revision is a complete commit.
    """
    if _COMMIT_HASH.fullmatch(revision):
        return revision
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ValueError(f"hf:{name} needs a missing package: uv sync --extra hf") from None
    try:
        commit = hub.HfApi().dataset_info(name, revision=revision or None).sha
    except Exception as error:  # the library has no narrower class
        shown = f"{name}@{revision}" if revision else name
        raise ValueError(
            f"hf:{shown}: its commit cannot be read ({readers.first_line(str(error))[:200]}):"
            f" correct the name, connect to the hub, or name a commit as hf:{name}@COMMIT/SPLIT"
        ) from None
    return str(commit)


def _prepared_commits(source: str, cache: Path) -> list[str]:
    """Return the commits of the prepared text of a source, the newest last, "" for unknown ones."""
    commits = []
    files = [(file.stat().st_mtime, file) for file in cache.glob("*/manifest.json")]
    for _, file in sorted(files):
        try:
            values = json.loads(file.read_text())
            if values["source"] == source:
                commits.append(str(values["versions"].get(COMMIT, "")))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a damaged manifest is reported when its text is opened
    return commits


def _read_rows(
    rows: Iterable[dict], label: str, field: str, on_error: readers.ErrorHandler
) -> Iterator[readers.Document]:
    """Yield the documents of the rows of a shard."""
    for number, row in enumerate(_stream_rows(rows, label, on_error)):
        where = f"{label} row {number}"
        if isinstance(row.get(field, 0), str | None):
            yield readers.Document(readers.normalize_newlines(row[field] or ""), where)
        else:
            names = readers.format_names(row)
            on_error(f"{where}: has no text in {field!r} but {names}: choose with ?field=")


def _stream_rows(
    rows: Iterable[dict], label: str, on_error: readers.ErrorHandler
) -> Iterator[dict]:
    """Yield the rows of a shard, and report an error of its library."""
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # the library has no narrower class
            reason = readers.first_line(str(error))
            on_error(f"{label}: reading failed ({reason}): repeat the command")
            return
        yield row
