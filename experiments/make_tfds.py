"""Write a TensorFlow dataset (TFDS) from a folder of text, or from any other source.

uv run python -m experiments.make_tfds --source=text:my/folder --name=my_text --data_dir=data/tfds

With TFDS_DATA_DIR=data/tfds, a config reads the dataset as tfds:my_text/train.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from experiments.common import cli, console

_SOURCE = flags.DEFINE_string(
    "source", "", "source, such as text:my/folder: see lm/data/sources/documents.py"
)
_NAME = flags.DEFINE_string("name", "", "name of the dataset")
_DATA_DIR = flags.DEFINE_string("data_dir", "data/tfds", "folder of the datasets")


def main() -> int:
    from lm.data.sources import documents

    if not _SOURCE.value:
        raise ValueError("--source=SOURCE is missing, such as --source=text:my/folder")
    all_documents = (
        (d.name, d.text) for d in documents.open_source(_SOURCE.value) if d.text.strip()
    )
    folder = write_dataset(_NAME.value, _DATA_DIR.value, all_documents)
    console.print_line(
        f"{folder}: read it with TFDS_DATA_DIR={_DATA_DIR.value} as tfds:{_NAME.value}/train"
    )
    return 0


def write_dataset(
    name: str, data_dir: str | Path, all_documents: Iterable[tuple[str, str]]
) -> Path:
    """Write (name, text) documents as the split "train" of a dataset and return its folder.

    Each example has the features text and name. Raises ValueError if the dataset exists, or if TFDS
    does not allow its name.
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
    folder = Path(builder.data_dir)
    if folder.exists():  # TFDS would use the old data without a warning
        raise ValueError(f"{folder} exists: use another name, or remove the folder")
    builder.download_and_prepare()
    return folder


if __name__ == "__main__":
    cli.run_main(main)
