"""Files of tasks: find the file of a split, read its lines and convert them into examples.

    task_lines.file_versions("file:my/sst2?n=100")         # changes when a file changes
    file = task_lines.split_file("file:my/sst2", Path("my/sst2"), "test")
    lines = task_lines.read_lines(file)
    labels = task_lines.labels_by_task("file:my/sst2", lines)
    examples = task_lines.parse_lines(lines, labels)
    examples[0].answers                                    # (" negative\n", " positive\n")
    task_lines.choose_answers("file:my/set", lines, examples, limit=5)

Each line is a JSON object in one of the formats of lm/data/sources/example_formats.py.
"""

import contextlib
import dataclasses
import glob
import itertools
import os
from pathlib import Path
from typing import NamedTuple

from lm.config import field_names
from lm.data.sources import example_formats, readers, uri

SPLITS = ("test", "valid")
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
LEVELS = ("*", "*/*")  # patterns of the files that a task may read in its folder

FileVersion = tuple[str, int, int]  # path, time of the last change in ns, bytes


class Line(NamedTuple):
    """A line of a task file."""

    where: str  # file and line
    row: dict
    task: str  # most specific name of its task, "" if it has none


def split_file(name: str, folder: Path, split: str) -> Path:
    """Return the file of a split in a folder. If split is "", use test, or valid without test.

    Raises ValueError if there is no such file or folder.
    """
    for stem in (split,) if split else SPLITS:
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").exists():
                return folder / f"{stem}{suffix}"
    if folder.is_dir() and not split:
        subfolders = sorted({p.parent.name for s in SUFFIXES for p in folder.glob(f"*/test{s}")})
        names = ", ".join(subfolders[:5]) or "none"
        names += f" and {len(subfolders) - 5} more" if len(subfolders) > 5 else ""
        group = f" (file:{folder}/* is the group of all)" if subfolders else ""
        raise ValueError(
            f"task {name}: {folder} has no test.jsonl; subfolders that have it: {names}{group}"
        )
    if not folder.is_dir():
        siblings = [f"file:{p}" for p in sorted(folder.parent.glob("*"))]
        message = "task " + field_names.suggest_names(f"file:{folder}", siblings or ["file:FOLDER"])
        with_space = [p for p in siblings if p.startswith(f"file:{folder} ")]
        if with_space:
            message += f" A name with a space needs quotes: '\"{with_space[0]}\"'"
        raise ValueError(message)
    raise ValueError(f"task {name}: {folder} has no {split}.jsonl: use another split")


def file_versions(name: str) -> tuple[FileVersion, ...]:
    """Return the versions of all files that a task with this name may read, sorted by path.

    name: a name that begins with file: or pair:; other tasks read no file. The files of a folder
    are those in it and in its subfolders. Files that do not exist are left out.
    """
    kind, _, location = uri.split_uri(name)[0].partition(":")
    if kind not in ("file", "pair"):
        return ()
    path = os.path.expanduser(location)
    folders = [path] if os.path.exists(path) else glob.glob(path)
    inside = [f"{glob.escape(folder)}/{level}" for folder in folders for level in LEVELS]
    versions = []
    for file in [*folders, *itertools.chain.from_iterable(map(glob.iglob, inside))]:
        with contextlib.suppress(OSError):
            status = os.stat(file)
            versions.append((file, status.st_mtime_ns, status.st_size))
    return tuple(sorted(versions))


def read_lines(file: Path, only: frozenset[str] | None = None) -> list[Line]:
    """Return the lines of a file. If `only` is given, select the lines of these tasks."""
    lines = []
    for where, row in readers.read_json_lines(file):
        names = list(example_formats.task_names(row).values())
        if not only or only & set(names):
            lines.append(Line(where, row, names[0] if names else ""))
    return lines


def labels_by_task(name: str, lines: list[Line]) -> dict[str, list[str]]:
    """Return the sorted labels of each classification task, by the name of the task.

    Raises ValueError if a task has only one label.
    """
    labels: dict[str, set[str]] = {}
    for where, row, task_name in lines:
        if "label_name" in row:
            try:
                labels.setdefault(task_name, set()).add(example_formats.label(row))
            except ValueError as error:
                raise ValueError(f"{where}: {error}: correct the line") from None
    for task_name, values in labels.items():
        if len(values) < 2:
            suffix = f" of {task_name}" if task_name else ""
            raise ValueError(
                f"task {name}: all lines{suffix} have the label {', '.join(values)}: a"
                " classification needs at least two labels"
            )
    return {task_name: sorted(values) for task_name, values in labels.items()}


def parse_line(line: Line, labels: dict[str, list[str]]) -> example_formats.TaskExample:
    """Return the example of a line. labels: all labels of each classification task.

    Raises ValueError if the line has no valid format.
    """
    return example_formats.parse_example(line.row, line.where, labels.get(line.task))


def parse_lines(
    lines: list[Line], labels: dict[str, list[str]]
) -> list[example_formats.TaskExample]:
    """Return the examples of lines. Mark multiple choices that are equal in all lines of a task."""
    examples = [parse_line(line, labels) for line in lines]
    choices: dict[str, list[frozenset[str]]] = {}
    for line, example in zip(lines, examples, strict=True):
        if len(example.answers) > 1:
            choices.setdefault(line.task, []).append(frozenset(example.answers))
    fixed = {task for task, sets in choices.items() if len(sets) > 1 and len(set(sets)) == 1}
    return [
        dataclasses.replace(
            example,
            question=example.prompts[0],
            has_fixed_choices=line.task in fixed and len(example.answers) > 1,
        )
        for line, example in zip(lines, examples, strict=True)
    ]


def choose_answers(
    name: str, lines: list[Line], examples: list[example_formats.TaskExample], limit: int
) -> tuple[list[Line], list[example_formats.TaskExample]]:
    """Return the lines and the examples of the tasks with 2 to `limit` different answers.

    Each example becomes a choice among all answers of its task (rank classification: Sanh et al.
    2021, arXiv:2110.08207). Examples that are choices stay as they are, and examples for which all
    these answers are correct are left out. Raises ValueError if no example remains.
    """
    answers: dict[str, set[str]] = {}
    for line, example in zip(lines, examples, strict=True):
        if len(example.answers) == 1:
            answers.setdefault(line.task, set()).update(example.answers)
    chosen = []
    for line, example in zip(lines, examples, strict=True):
        if len(example.answers) > 1:
            chosen.append((line, example))
        elif 2 <= len(answers[line.task]) <= limit and answers[line.task] - {
            *example.answers,
            *example.others,
        }:
            chosen.append((line, _choose_among(example, answers[line.task])))
    if not chosen:
        fewest = min(map(len, answers.values()))
        raise ValueError(
            f"task {name}: choices={limit} selects no example, because each task must have 2 to"
            f" {limit} different answers, and here the smallest number is {fewest}: raise or remove"
            " choices"
        )
    return [line for line, _ in chosen], [example for _, example in chosen]


def _choose_among(
    example: example_formats.TaskExample, answers: set[str]
) -> example_formats.TaskExample:
    """Return an example with one answer as a choice among answers.

    Its other correct answers are no candidates.
    """
    right = example.answers[0]
    candidates = sorted(answers - set(example.others) | {right})
    return dataclasses.replace(
        example,
        prompts=example.prompts * len(candidates),
        answers=tuple(candidates),
        right=candidates.index(right),
        chance=1 / len(candidates),
        others=(),
        has_fixed_choices=True,
    )
