"""The commands that show a step and that make a dataset of a folder, as a user types them."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = """
from lm.config import Run

def get_config():
    run = Run(name="a", steps=100)
    run.data.sources, run.data.cache_dir = {SOURCES}, "data"
    run.data.seq_len, run.data.batch_size, run.data.heldout_fraction = 32, 8, 0.2
    return run
"""


def command(folder, name, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    environment["TFDS_DATA_DIR"] = str(folder / "tfds")
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, text_file) -> pathlib.Path:
    sources = repr({f"text:{text_file}": 1.0})
    (tmp_path / "base.py").write_text(CONFIG.replace("{SOURCES}", sources))
    return tmp_path


def test_the_rows_of_a_step_are_shown_with_their_documents_and_epochs(folder):
    done = command(folder, "show_batch", "--config=base.py", "--step=70", "--rows=2")
    assert done.returncode == 0, done.stderr
    for words in ("step 70 of 100", "seen before", "documents", "by the end", "--- row 1: text:"):
        assert words in done.stdout, words
    assert "--- row 2" not in done.stdout
    shown = done.stdout.partition("--- row 0")[2]
    assert sum(word in shown for word in ("quick", "jumps", "lazy", "number", "sleeps")) > 0
    again = command(folder, "show_batch", "--config=base.py", "--step=70", "--rows=2")
    assert again.stdout == done.stdout


def test_a_folder_becomes_a_dataset_that_a_config_can_name(folder, text_file):
    made = command(
        folder, "make_tfds", f"--source=text:{text_file}", "--name=mine", "--data_dir=tfds"
    )
    assert made.returncode == 0 and "tfds:mine/train" in made.stdout, made.stderr
    (folder / "base.py").write_text(CONFIG.replace("{SOURCES}", '{"tfds:mine/train": 1.0}'))
    done = command(folder, "prepare", "--config=base.py", "--config.data.tokenizer=bpe:300")
    assert done.returncode == 0 and "tfds:mine/train" in done.stdout, done.stderr
    assert "none" in done.stdout and "MB in" in done.stdout
    again = command(folder, "make_tfds", "--source=docs", "--name=mine", "--data_dir=tfds")
    assert again.returncode == 2 and "mine/1.0.0 exists: use another name" in again.stderr
    missing = command(folder, "make_tfds", "--name=mine")
    assert missing.returncode == 2 and "--source=SOURCE is missing" in missing.stderr
