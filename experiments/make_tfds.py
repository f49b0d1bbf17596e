"""Write a TensorFlow dataset (TFDS) from a folder of text, or from any other source.

uv run python -m experiments.make_tfds --source=text:lm --name=my_text --data_dir=data/tfds

With TFDS_DATA_DIR=data/tfds, a config reads the dataset as tfds:my_text/train.
"""

import collections
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from absl import flags

from experiments.common import cli, console, next_command
from lm.runs import filesystem

_SOURCE = flags.DEFINE_string(
    "source", "", "source, such as text:my/folder: see lm/data/sources/documents.py"
)
_NAME = flags.DEFINE_string("name", "", "name of the dataset")
_DATA_DIR = flags.DEFINE_string("data_dir", "data/tfds", "folder of the datasets")


def main() -> int:
    from lm.data.sources import documents

    if not _SOURCE.value:
        raise ValueError("--source=SOURCE is missing, such as --source=text:my/folder")
    dropped: collections.Counter[str] = collections.Counter()
    all_documents = documents_with_text(_SOURCE.value, dropped)
    folder = write_dataset(_NAME.value, _DATA_DIR.value, all_documents)
    documents.print_omissions(_SOURCE.value, documents.omitted_files(_SOURCE.value), dropped)
    sources = json.dumps({f"tfds:{_NAME.value}/train": 1})
    next_command.print_next(
        "prepare",
        "--config=configs/base.py",
        f"--sources={sources}",
        environment={"TFDS_DATA_DIR": _DATA_DIR.value},
    )
    console.print_line(f"dataset: {folder}")
    return 0


def documents_with_text(
    source: str, dropped: collections.Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the documents of a source, and count documents without text."""
    from lm.data import tokenizers
    from lm.data.sources import documents

    for document in documents.open_source(source):
        try:
            tokenizers.utf8(document.text)
        except ValueError as error:
            raise ValueError(f"{document.name}: {error}") from None
        if document.text.strip():
            yield document.name.encode(errors="backslashreplace").decode(), document.text
        else:
            dropped["empty"] += 1


def write_dataset(
    name: str, data_dir: str | Path, all_documents: Iterable[tuple[str, str]]
) -> Path:
    """Write (name, text) documents as the split "train" of a dataset and return its folder.

    Each example has the features text and name. Raises ValueError if the dataset exists, if there
    is no document, or if TFDS does not allow the name.
    """
    import tensorflow_datasets

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"--name={name!r} is not a dataset name: use a-z, 0-9 and _, starting with a letter"
        )

    class Documents(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version("1.0.0")

        def _info(self):
            text = tensorflow_datasets.features.Text()
            features = tensorflow_datasets.features.FeaturesDict({"text": text, "name": text})
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, description="Documents of text.", features=features
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, (document, text) in enumerate(all_documents):
                yield number, {"text": text, "name": document}

    Documents.name = name
    builder = Documents(data_dir=data_dir, file_format="array_record")
    folder = filesystem.open_path(builder.data_dir)
    if folder.exists():  # TFDS would use the old data without a warning
        raise ValueError(f"{folder} exists: use another name, or remove the folder")
    all_documents = iter(all_documents)
    first_document = next(all_documents, None)
    if first_document is None:
        raise ValueError(f"--name={name}: the source contains no text: name another source")
    all_documents = itertools.chain([first_document], all_documents)
    tensorflow_datasets.disable_progress_bar()
    builder.download_and_prepare()
    return folder


if __name__ == "__main__":
    cli.run_main(main)
