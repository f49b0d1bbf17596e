"""Makes a TFDS dataset of a folder of text, or of any other source.

uv run python -m experiments.make_tfds --source=text:my/folder --name=my_text --data_dir=data/tfds

TFDS_DATA_DIR=data/tfds then lets a config name it as tfds:my_text/train.
"""

from absl import flags

from experiments import cli, show

_SOURCE = flags.DEFINE_string("source", "", "what to read: see lm/sources.py")
_NAME = flags.DEFINE_string("name", "", "of the dataset")
_DATA_DIR = flags.DEFINE_string("data_dir", "data/tfds", "folder of datasets")


def main() -> int:
    from lm import sources, tfds_text

    if not _SOURCE.value:
        raise ValueError("--source=SOURCE is missing, such as --source=text:my/folder")
    documents = ((d.name, d.text) for d in sources.documents(_SOURCE.value))
    folder = tfds_text.make(_NAME.value, _DATA_DIR.value, documents)
    show.say(f"{folder}: read it with TFDS_DATA_DIR={_DATA_DIR.value} as tfds:{_NAME.value}/train")
    return 0


if __name__ == "__main__":
    cli.start(main)
