"""Reader of TensorFlow Datasets without TensorFlow.

    parts("my_text/train", "text")[0](readers.raise_error)     # with TFDS_DATA_DIR=data/tfds

Reads datasets prepared by `tfds build NAME --file_format=array_record` or by
experiments/make_tfds.py, from their folder alone: no code of the dataset runs and nothing is
downloaded. The folder is $TFDS_DATA_DIR, or ~/tensorflow_datasets.
"""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.data.sources import readers

BATCH = 256  # examples read at once
PART = 64 * BATCH  # examples per part of a source
VERSION = re.compile(r"\d+\.\d+\.\d+")


def tfds_files(name: str) -> list[Path]:
    """Return the files of the prepared dataset NAME[/CONFIG][:VERSION]/SPLIT, sorted."""
    return sorted(path for path in _folder(name)[0].iterdir() if path.is_file())


def tfds_shards(name: str, field: str) -> list[readers.Shard]:
    """Return parts of PART examples, one document per example.

    `field` is a feature, or a path of nested features such as "a/b". Raises ValueError for a
    missing dataset, version or split, and for a missing field when a part is read.
    """
    import tensorflow_datasets as tfds

    folder, split = _folder(name)
    builder: Any = tfds.builder_from_directory(folder)
    known = ", ".join(builder.info.splits) or "none"
    if split.partition("[")[0] not in builder.info.splits:
        raise ValueError(f"tfds:{name}: has no split {split!r} but {known}: name one of them")
    try:
        examples = builder.as_data_source(split=split)
    except (NotImplementedError, ImportError) as error:
        raise ValueError(
            f"tfds:{name}: is stored as {builder.info.file_format}, which needs TensorFlow: "
            f"prepare it with --file_format=array_record"
        ) from error
    except ValueError as error:
        reason = readers.first_line(str(error))
        message = f"tfds:{name}: split {split!r} cannot be read ({reason}): correct it"
        raise ValueError(message) from None
    starts = range(0, len(examples), PART)
    return [functools.partial(_part, name, field, examples, start) for start in starts]


def _part(
    name: str, field: str, examples: Any, start: int, refuse: readers.ErrorHandler
) -> Iterator[readers.Document]:
    stop = min(start + PART, len(examples))
    for first in range(start, stop, BATCH):
        numbers = list(range(first, min(first + BATCH, stop)))
        try:
            batch = examples.__getitems__(numbers)
        except Exception:  # the library has no narrower class; read one by one to find the example
            batch = [_example(name, examples, number, refuse) for number in numbers]
        for number, example in zip(numbers, batch, strict=True):
            where = f"{name} example {number}"
            try:
                if example is not None:
                    text = readers.normalize_newlines(_field(example, field, where))
                    yield readers.Document(text, where)
            except ValueError as error:
                refuse(str(error))


def _example(name: str, examples: Any, number: int, refuse: readers.ErrorHandler) -> dict | None:
    try:
        return examples[number]
    except Exception as error:
        reason = readers.first_line(str(error))
        refuse(f"tfds:{name} example {number}: cannot be read ({reason}): prepare it again")


def _folder(name: str) -> tuple[Path, str]:
    """Return the folder of a prepared dataset, and the split. The newest version is the default."""
    dataset, _, split = name.rpartition("/")
    dataset, _, version = dataset.partition(":")
    top = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folders = sorted(p.name for p in (top / dataset).glob("*") if p.is_dir()) if dataset else []
    versions = sorted(
        (n for n in folders if VERSION.fullmatch(n)), key=lambda n: [*map(int, n.split("."))]
    )
    if version in versions or (versions and not version):
        return top / dataset / (version or versions[-1]), split
    if folders:
        raise ValueError(
            f"tfds:{name}: {top / dataset} has no version {version or 'such as 1.0.0'} "
            f"but {', '.join(folders)}: name NAME[/CONFIG][:VERSION]/SPLIT"
        )
    raise ValueError(
        f"tfds:{name}: is not in {top}: run tfds build {dataset or 'NAME'} "
        f"--file_format=array_record --data_dir={top}, or set TFDS_DATA_DIR"
    )


def _field(example: dict, field: str, where: str) -> str:
    value = example
    for part in field.split("/"):
        if not isinstance(value, dict) or part not in value:
            names = ", ".join(example)
            raise ValueError(f"{where}: has no field {field!r} but {names}: choose with ?field=")
        value = value[part]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: is not UTF-8 at byte {error.start}") from None
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {field!r} is {type(value).__name__}, not text")
    return value
