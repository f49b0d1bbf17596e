"""The commands show_batch and make_tfds."""

import pathlib

import pytest
from fixtures import commands

CONFIG = """
from lm import Run

def get_config():
    run = Run(name="a", steps=100)
    run.data.sources, run.data.cache_dir = {SOURCES}, "data"
    run.data.seq_len, run.data.batch_size, run.data.heldout_fraction = 32, 8, 0.2
    return run
"""


def run_command(folder, name, *arguments):
    return commands.run_command(folder, name, *arguments, TFDS_DATA_DIR=str(folder / "tfds"))


@pytest.fixture
def folder(tmp_path, text_file) -> pathlib.Path:
    sources = repr({f"text:{text_file}": 1.0})
    (tmp_path / "base.py").write_text(CONFIG.replace("{SOURCES}", sources))
    return tmp_path


def test_show_batch_prints_documents_and_epochs_of_rows(folder):
    result = run_command(folder, "show_batch", "--config=base.py", "--step=70", "--rows=2")
    assert result.returncode == 0, result.stderr
    heads = ("epoch", "row of source", "documents", "epochs of the run")
    for phrase in ("step 70 of 100", *heads, "--- row 1: text:"):
        assert phrase in result.stdout, phrase
    assert "--- row 2" not in result.stdout
    printed_text = result.stdout.partition("--- row 0")[2]
    assert any(word in printed_text for word in ("quick", "jumps", "lazy", "number", "sleeps"))
    second = run_command(folder, "show_batch", "--config=base.py", "--step=70", "--rows=2")
    assert second.stdout == result.stdout


def test_make_tfds_writes_a_dataset_that_prepare_reads(folder, text_file):
    created = run_command(
        folder, "make_tfds", f"--source=text:{text_file}", "--name=mine", "--data_dir=tfds"
    )
    assert created.returncode == 0 and "tfds:mine/train" in created.stdout, created.stderr
    (folder / "base.py").write_text(CONFIG.replace("{SOURCES}", '{"tfds:mine/train": 1.0}'))
    prepared = run_command(folder, "prepare", "--config=base.py", "--config.data.tokenizer=bpe:300")
    assert prepared.returncode == 0 and "tfds:mine/train" in prepared.stdout, prepared.stderr
    assert "none" in prepared.stdout and "MB in" in prepared.stdout
    duplicate = run_command(folder, "make_tfds", "--source=docs", "--name=mine", "--data_dir=tfds")
    assert duplicate.returncode == 2 and "mine/1.0.0 exists: use another name" in duplicate.stderr
    without_source = run_command(folder, "make_tfds", "--name=mine")
    assert without_source.returncode == 2
    assert "--source=SOURCE is missing" in without_source.stderr
