"""Points of each task example in the last evaluation of a run (tasks.npz).

    items = task_items.load_items(row)["copy?length=4"]
    items.points, items.digest

Two runs with equal digests of a task have answered the same examples, so their points are paired. A
point is 1 for a correct answer and 0 otherwise, or a fraction for ties. Points of 0 and 1 take one
bit in the file. Runs of earlier versions have no such file.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.runs import filesystem, task_results
from lm.runs.items import array_files

FILE = "tasks.npz"
TOLERANCE = 1e-5  # of the mean of the points and the recorded accuracy


class TaskItems(NamedTuple):
    """Points of the examples of a task. The accuracy is the mean over groups of their means."""

    task: str
    digest: str  # of the examples, see `digest_examples`
    points: np.ndarray  # float64 [n]
    documents: np.ndarray  # number of the document of each example, int64 [n]
    groups: np.ndarray  # index into group_names, int64 [n]
    group_names: list[str]

    @property
    def weights(self) -> np.ndarray:
        """Weight of each example in the accuracy, [n]. The sum is 1."""
        sizes = np.bincount(self.groups, minlength=len(self.group_names))
        return 1 / (sizes[self.groups] * max(np.count_nonzero(sizes), 1))

    @property
    def accuracy(self) -> float:
        return float(self.weights @ self.points)

    def select_groups(self, task: str, names: Sequence[str]) -> "TaskItems":
        """Return the examples of some groups, as the items of another task."""
        indices = [self.group_names.index(name) for name in names]
        is_member = np.isin(self.groups, indices)
        groups = np.searchsorted(indices, self.groups[is_member])
        return TaskItems(
            task,
            self.digest,
            self.points[is_member],
            self.documents[is_member],
            groups,
            list(names),
        )


def make_items(
    task: str,
    points: Sequence[float] | np.ndarray,
    documents: Sequence[str],
    groups: Sequence[str],
    digest: str,
) -> TaskItems:
    """Return the items of a task. documents, groups: names, one per example; "" is one group."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(documents))}
    names = list(dict.fromkeys(groups))
    return TaskItems(
        task,
        digest,
        np.asarray(points, float),
        np.array([numbers[name] for name in documents], np.int64),
        np.array([names.index(name) for name in groups], np.int64),
        names,
    )


def digest_examples(examples: Iterable[Any]) -> str:
    """Return a hash of examples, which are plain data."""
    text = json.dumps(list(examples), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def encode_items(items: Sequence[TaskItems]) -> bytes:
    """Return the bytes of tasks.npz. Numbers that follow from others are not stored."""
    arrays: dict[str, np.ndarray] = {
        "tasks": np.array([item.task for item in items], dtype=np.str_),
        "digests": np.array([item.digest for item in items], dtype=np.str_),
        "counts": np.array([len(item.points) for item in items], np.int64),
    }
    for i, item in enumerate(items):
        is_binary = np.isin(item.points, (0.0, 1.0)).all()
        if is_binary:
            arrays[f"bits_{i}"] = np.packbits(item.points.astype(bool))
        else:
            arrays[f"points_{i}"] = item.points.astype(np.float32)
        if len(np.unique(item.documents)) < len(item.points):
            arrays[f"documents_{i}"] = item.documents.astype(np.int32)
        if item.group_names != [""]:
            arrays[f"groups_{i}"] = item.groups.astype(np.int32)
            arrays[f"group_names_{i}"] = np.array(item.group_names, dtype=np.str_)
    return array_files.encode_arrays(arrays)


def read_items(path: Path) -> dict[str, TaskItems]:
    """Read tasks.npz. A damaged file raises one of many types of exceptions."""
    arrays = array_files.read_arrays(path)
    items = {}
    columns = (arrays[name].tolist() for name in ("tasks", "digests", "counts"))
    for i, (task, digest, n) in enumerate(zip(*columns, strict=True)):
        if (bits := arrays.get(f"bits_{i}")) is not None:
            points = np.unpackbits(bits, count=n).astype(float)
        else:
            points = arrays[f"points_{i}"].astype(float)
        documents = np.asarray(arrays.get(f"documents_{i}", np.arange(n)), np.int64)
        groups = arrays.get(f"groups_{i}", np.zeros(n)).astype(np.int64)
        names = arrays.get(f"group_names_{i}", np.array([""])).tolist()
        if not len(points) == len(documents) == len(groups) == n or groups.max(initial=0) >= len(
            names
        ):
            raise ValueError(f"{path}: the arrays of {task} have different lengths")
        items[task] = TaskItems(task, digest, points, documents, groups, names)
    return items


def load_items(row: Mapping) -> dict[str, TaskItems]:
    """Load the items of a run by task, {} without a file. row: a row of records.load_runs.

    The parts TASK#GROUP and TASK#PHENOMENON of minimal pairs are included. Items whose accuracy is
    not that of the row belong to another evaluation and are left out. A damaged file gives a
    warning.
    """
    path = filesystem.open_path(Path(str(row.get("dir", "")))) / FILE
    items = array_files.read_undamaged(path, read_items) if row.get("dir") else None
    if items is None:
        return {}
    items |= {part.task: part for item in items.values() for part in _parts(item)}
    return {
        task: item
        for task, item in items.items()
        if abs(item.accuracy - task_results.task_value(row, task)) <= TOLERANCE
    }


def _parts(items: TaskItems) -> list[TaskItems]:
    """Return the items of each group, and of each phenomenon PHENOMENON/PARADIGM."""
    if len(items.group_names) < 2:
        return []
    parts: dict[str, list[str]] = {}
    for name in items.group_names:
        parts.setdefault(name, []).append(name)
        if "/" in name:
            parts.setdefault(name.partition("/")[0], []).append(name)
    return [items.select_groups(f"{items.task}#{part}", names) for part, names in parts.items()]


def extend_items(folder: str | Path, items: Sequence[TaskItems]) -> None:
    """Add the items of tasks to the file of a run, and replace those of equal tasks."""
    path = filesystem.open_path(folder) / FILE
    known: dict[str, TaskItems] = {}
    if path.exists():
        try:
            known = read_items(path)
        except Exception as error:  # see load_items
            kind = type(error).__name__
            warnings.warn(f"{path} is damaged and is replaced ({kind})", stacklevel=2)
    known |= {item.task: item for item in items}
    filesystem.write_file(path, encode_items(list(known.values())))
