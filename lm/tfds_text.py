"""Text from TensorFlow Datasets, without TensorFlow; and a folder of text made into such a dataset.

    make("my_text", "data/tfds", [("a.txt", "Some text")])     # data/tfds/my_text/1.0.0/
    parts("my_text/train", "text")[0](files.stop)     # with TFDS_DATA_DIR=data/tfds

Reads what `tfds build NAME --file_format=array_record` has prepared, from its folder alone: no code
of the dataset runs, nothing is downloaded. The folder is $TFDS_DATA_DIR, or ~/tensorflow_datasets.
"""

import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lm import files as text_files

BATCH = 256  # examples read at once
PART = 64 * BATCH  # examples that are a part of a source
VERSION = re.compile(r"\d+\.\d+\.\d+")


def files(name: str) -> list[Path]:
    """The files of the prepared dataset NAME[/CONFIG][:VERSION]/SPLIT, in one order."""
    return sorted(path for path in _folder(name)[0].iterdir() if path.is_file())


def parts(name: str, field: str) -> list[text_files.Part]:
    """Parts of PART examples, an example a document; `field` is a feature, or a path such as "a/b".

    ValueError naming what is not there: dataset, version, split; and field, once a part is read.
    """
    import tensorflow_datasets as tfds

    folder, split = _folder(name)
    builder: Any = tfds.builder_from_directory(folder)
    known = ", ".join(builder.info.splits) or "none"
    if split.partition("[")[0] not in builder.info.splits:
        raise ValueError(f"tfds:{name}: has no split {split!r} but {known}")
    try:
        examples = builder.as_data_source(split=split)
    except (NotImplementedError, ImportError) as error:
        raise ValueError(
            f"tfds:{name}: is stored as {builder.info.file_format}, which needs TensorFlow: "
            f"prepare it with --file_format=array_record"
        ) from error
    except ValueError as error:
        why = " ".join(str(error).split())
        raise ValueError(f"tfds:{name}: split {split!r} cannot be read ({why})") from None
    starts = range(0, len(examples), PART)
    return [functools.partial(_part, name, field, examples, start) for start in starts]


def _part(
    name: str, field: str, examples: Any, start: int, refuse: text_files.Refuse
) -> Iterator[text_files.Document]:
    stop = min(start + PART, len(examples))
    for first in range(start, stop, BATCH):
        numbers = list(range(first, min(first + BATCH, stop)))
        try:
            found = examples.__getitems__(numbers)
        except Exception:  # the library has no narrower class: look which of them it is
            found = [_example(name, examples, number, refuse) for number in numbers]
        for number, example in zip(numbers, found, strict=True):
            where = f"{name} example {number}"
            try:
                if example is not None:
                    text = text_files.newlines(_field(example, field, where))
                    yield text_files.Document(text, where)
            except ValueError as error:
                refuse(str(error))


def _example(name: str, examples: Any, number: int, refuse: text_files.Refuse) -> dict | None:
    try:
        return examples[number]
    except Exception as error:
        why = text_files.one_line(str(error))
        refuse(f"tfds:{name} example {number}: cannot be read ({why})")


def make(name: str, data_dir: str | Path, documents: Iterable[tuple[str, str]]) -> Path:
    """Writes (name, text) documents as the split "train" of a dataset; returns its folder.

    Each example has the features text and name. ValueError for a name that is taken, or that
    TFDS does not allow.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name!r} is no name for a dataset: use a-z, 0-9 and _, a letter first")

    class Documents(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({"text": text, "name": text})
            return tfds.core.DatasetInfo(
                builder=self, description="Documents of text.", features=features
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, (where, text) in enumerate(documents):
                yield number, {"text": text, "name": where}

    Documents.name = name
    builder = Documents(data_dir=data_dir, file_format="array_record")
    folder = Path(builder.data_dir)
    if folder.exists():  # TFDS would keep what is there, without a word
        raise ValueError(f"{folder} exists: take another name, or remove it")
    builder.download_and_prepare()
    return folder


def _folder(name: str) -> tuple[Path, str]:
    """Of a prepared dataset, and the split; the newest version unless one is named."""
    dataset, _, split = name.rpartition("/")
    dataset, _, version = dataset.partition(":")
    top = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    inside = sorted(p.name for p in (top / dataset).glob("*") if p.is_dir()) if dataset else []
    versions = sorted(
        (n for n in inside if VERSION.fullmatch(n)), key=lambda n: [*map(int, n.split("."))]
    )
    if version in versions or (versions and not version):
        return top / dataset / (version or versions[-1]), split
    if inside:
        raise ValueError(
            f"tfds:{name}: {top / dataset} has no version {version or 'such as 1.0.0'} "
            f"but {', '.join(inside)}: name NAME[/CONFIG][:VERSION]/SPLIT"
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
