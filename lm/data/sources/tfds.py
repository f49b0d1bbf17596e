"""Reader of TensorFlow Datasets without TensorFlow.

    shards = tfds_shards("my_text/train", "text")              # with TFDS_DATA_DIR=data/tfds
    for document in shards[0](readers.raise_error):
        print(document.name, len(document.text))

Datasets must be prepared by `tfds build NAME --file_format=array_record` or by
experiments/make_tfds.py. Only their files are read: no code of the dataset runs and nothing is
downloaded. The folder of all datasets is $TFDS_DATA_DIR, or ~/tensorflow_datasets. If it is in
object storage, such as gs://tfds-data/datasets, one file at a time is copied to the local disk.
"""

import dataclasses
import functools
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.data.sources import readers, source_files
from lm.data.storage import remote_path

BATCH = 256  # examples read at once
SHARD = 64 * BATCH  # examples per shard
VERSION = re.compile(r"\d+\.\d+\.\d+")


def tfds_files(name: str) -> source_files.SourceFiles:
    """Return the files of the prepared dataset NAME[/CONFIG][:VERSION]/SPLIT, sorted."""
    folder = _find_dataset(name)[0]
    paths = sorted((path for path in folder.iterdir() if path.is_file()), key=str)
    return source_files.SourceFiles(paths, {})


def tfds_shards(name: str, field: str) -> list[readers.Shard]:
    """Return shards of SHARD examples, one document per example.

    `field` is a feature, or a path of nested features such as "a/b". Raises ValueError for a
    missing dataset, version or split, and for a missing field when a shard is read.
    """
    import tensorflow_datasets

    folder, split = _find_dataset(name)
    if isinstance(folder, remote_path.RemotePath):
        return _remote_shards(name, field, folder, split)
    try:
        builder: Any = tensorflow_datasets.builder_from_directory(folder)
        known = ", ".join(builder.info.splits) or "none"
    except Exception as error:  # the library has no narrower class
        reason = readers.first_line(str(error))
        raise ValueError(
            f"tfds:{name}: the metadata in {folder} cannot be read ({reason}): prepare it again"
        ) from None
    if split.partition("[")[0] not in builder.info.splits:
        raise ValueError(f"tfds:{name}: has no split {split!r} but {known}: name one of them")
    try:
        examples = builder.as_data_source(split=split)
        n_examples = len(examples)
    except (NotImplementedError, ImportError) as error:
        raise ValueError(
            f"tfds:{name}: is stored as {builder.info.file_format}, which needs TensorFlow: "
            f"prepare it with --file_format=array_record"
        ) from error
    except Exception as error:  # the library has no narrower class
        reason = readers.first_line(str(error))
        message = f"tfds:{name}: split {split!r} cannot be read ({reason}): correct the name, or"
        raise ValueError(f"{message} prepare it again") from None
    starts = range(0, n_examples, SHARD)
    return [functools.partial(_read_shard, name, field, examples, start) for start in starts]


def _remote_shards(
    name: str, field: str, folder: remote_path.RemotePath, split: Any
) -> list[readers.Shard]:
    """Return one shard per file of a split in object storage."""
    import tensorflow_datasets
    from tensorflow_datasets.core.data_sources import base

    with tempfile.TemporaryDirectory() as copy:
        for path in folder.iterdir():
            if path.suffix == ".json":
                Path(copy, path.name).write_bytes(path.read_bytes())
        try:
            builder: Any = tensorflow_datasets.builder_from_directory(copy)
            instructions = list(base.file_instructions(builder.info, split))
        except Exception as error:  # the library has no narrower class
            reason = readers.first_line(str(error))
            raise ValueError(
                f"tfds:{name}: split {split!r} in {folder} cannot be read ({reason}): correct the"
                " name, or prepare it again"
            ) from None
    if str(builder.info.file_format) != "FileFormat.ARRAY_RECORD":
        raise ValueError(
            f"tfds:{name}: is stored as {builder.info.file_format}, which needs TensorFlow: "
            f"prepare it with --file_format=array_record"
        )
    starts = itertools.accumulate((part.take for part in instructions), initial=0)
    return [
        functools.partial(
            *(_read_remote_file, name, field, folder / Path(part.filename).name, part),
            *(builder.info.features, start),
        )
        for part, start in zip(instructions, starts, strict=False)
    ]


def _read_remote_file(
    name: str,
    field: str,
    file: remote_path.RemotePath,
    part: Any,
    features: Any,
    first_number: int,
    on_error: readers.ErrorHandler,
) -> Iterator[readers.Document]:
    """Yield the documents of a file, of which a local copy exists while it is read.

    part: the examples of the split in the file. first_number: number of its first example.
    """
    from array_record.python import array_record_data_source

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, file.name)
        try:
            with file.open("rb") as remote_file, open(copy, "wb") as local_file:
                shutil.copyfileobj(remote_file, local_file, remote_path.READ_BYTES)
            records = array_record_data_source.ArrayRecordDataSource(
                [dataclasses.replace(part, filename=os.fspath(copy))]
            )
        except Exception as error:  # the library has no narrower class
            reason = getattr(error, "strerror", None) or readers.first_line(str(error))
            on_error(f"tfds:{name}: {file} cannot be read ({reason}): prepare it again")
            return
        examples = _DecodedRecords(records, features)
        for start in range(0, len(records), SHARD):
            yield from _read_shard(name, field, examples, start, on_error, first_number)


class _DecodedRecords:
    """Examples of an ArrayRecord file."""

    def __init__(self, records: Any, features: Any):
        self._records, self._features = records, features

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> dict:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict]:
        records = self._records.__getitems__(numbers)
        return [self._features.deserialize_example_np(record) for record in records]


def _read_shard(
    name: str,
    field: str,
    examples: Any,
    start: int,
    on_error: readers.ErrorHandler,
    first_number: int = 0,
) -> Iterator[readers.Document]:
    """Yield the documents of the SHARD examples from `start` on.

    first_number: number of the first example in messages.
    """
    stop = min(start + SHARD, len(examples))
    for first in range(start, stop, BATCH):
        numbers = list(range(first, min(first + BATCH, stop)))
        try:
            batch = examples.__getitems__(numbers)
        except Exception:
            # The library has no narrower class. Reading one by one finds the corrupt example.
            batch = [_read_example(name, examples, number, on_error) for number in numbers]
        for number, example in zip(numbers, batch, strict=True):
            where = f"{name} example {first_number + number}"
            try:
                if example is not None:
                    text = readers.normalize_newlines(_text_field(example, field, where))
                    yield readers.Document(text, where)
            except ValueError as error:
                on_error(str(error))


def _read_example(
    name: str, examples: Any, number: int, on_error: readers.ErrorHandler
) -> dict | None:
    """Return an example; None if it cannot be read and `on_error` returns."""
    try:
        return examples[number]
    except Exception as error:
        reason = readers.first_line(str(error))
        on_error(f"tfds:{name} example {number}: cannot be read ({reason}): prepare it again")


def dataset_folder(name: str) -> remote_path.AnyPath:
    """Return the folder that contains all versions of a dataset. It need not exist."""
    dataset = name.rpartition("/")[0].partition(":")[0]
    return _data_dir() / dataset


def _data_dir() -> remote_path.AnyPath:
    """Return the folder of all datasets."""
    return remote_path.open_address(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def _find_dataset(name: str) -> tuple[remote_path.AnyPath, str]:
    """Return the folder of a prepared dataset, and the split.

    A name without a version means the newest version. Raises ValueError for a missing dataset or
    version.
    """
    dataset, _, split = name.rpartition("/")
    dataset, _, version = dataset.partition(":")
    top = _data_dir()
    paths = (top / dataset).iterdir() if dataset and (top / dataset).is_dir() else []
    folders = sorted(path.name for path in paths if path.is_dir())
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


def _text_field(example: dict, field: str, where: str) -> str:
    """Return the text of a field, or of a path of nested fields."""
    value = example
    for key in field.split("/"):
        if not isinstance(value, dict) or key not in value:
            names = ", ".join(example)
            raise ValueError(f"{where}: has no field {field!r} but {names}: choose with ?field=")
        value = value[key]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: is not UTF-8 at byte {error.start}") from None
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {field!r} is {type(value).__name__}, not text")
    return value
