"""TFDS datasets, written here and read without TensorFlow or a network."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import make_tfds
from lm.data.sources import documents, tfds

DOCUMENTS = [(f"file {i}", f"Text {i}: häppy\n") for i in range(600)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    make_tfds.write_dataset("my_text", folder, DOCUMENTS)
    return folder


@pytest.fixture(autouse=True)
def data_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))


def test_documents_are_read_once_in_a_fixed_order():
    found = list(documents.open_source("tfds:my_text/train"))
    assert sorted(d.text for d in found) == sorted(text for _, text in DOCUMENTS)
    again = list(documents.open_source("tfds:my_text:1.0.0/train"))
    assert [d.text for d in again] == [d.text for d in found]
    assert found[7].name == "my_text/train example 7"


def test_a_part_of_a_split_and_another_field_can_be_read():
    whole = list(documents.open_source("tfds:my_text/train?field=name"))
    assert {d.text for d in whole} == {name for name, _ in DOCUMENTS}
    part = list(documents.open_source("tfds:my_text/train[:10%]?field=name"))
    assert [d.text for d in part] == [d.text for d in whole[:60]]


def test_the_fingerprint_reads_no_dataset_and_follows_its_files(prepared, tmp_path, monkeypatch):
    first = documents.source_fingerprint("tfds:my_text/train")
    assert first == documents.source_fingerprint("tfds:my_text/train")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    make_tfds.write_dataset("my_text", tmp_path, DOCUMENTS[:50])
    assert documents.source_fingerprint("tfds:my_text/train") != first


def test_the_newest_version_is_read_unless_one_is_named(tmp_path, monkeypatch):
    for version in ("2.0.0", "10.0.0", "9.0.0"):
        (tmp_path / "a/config" / version).mkdir(parents=True)
        (tmp_path / "a/config" / version / version).touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert [p.name for p in tfds.tfds_files("a/config/train")] == ["10.0.0"]
    assert [p.name for p in tfds.tfds_files("a/config:9.0.0/train")] == ["9.0.0"]


def test_tensorflow_is_not_imported():
    script = (
        "import sys\nfrom lm.data.sources import documents\n"
        "assert documents.source_fingerprint('tfds:my_text/train')\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "n = len(list(documents.open_source('tfds:my_text/train')))\n"
        "assert n == 600 and 'tensorflow' not in sys.modules\n"
    )
    root = Path(__file__).parent.parent.parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "source, words",
    [
        ("tfds:lm1b/train", "is not in .*: run tfds build lm1b --file_format=array_record"),
        ("tfds:train", "is not in .*: run tfds build NAME"),
        ("tfds:my_text:3.0.0/train", "has no version 3.0.0 but 1.0.0: name NAME"),
        ("tfds:my_text/test", "has no split 'test' but train"),
        ("tfds:my_text/train[oh]", "split 'train.oh.' cannot be read"),
        ("tfds:my_text/train?field=title", "has no field 'title' but .*text.*: choose with"),
        ("tfds:my_text/train?field=text/en", "has no field 'text/en'"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_in_one_line(source, words):
    with pytest.raises(ValueError, match=words) as caught:
        list(documents.open_source(source))
    assert "\n" not in str(caught.value)


def test_unreadable_example_is_skipped_if_allowed(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    folder = make_tfds.write_dataset("my_text", tmp_path, DOCUMENTS)
    (path,) = folder.glob("*.array_record*")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"Text 300: ")
    raw[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    told = []
    found = list(documents.open_source("tfds:my_text/train", told.append))
    assert len(told) + len(found) == len(DOCUMENTS) and 0 < len(told) < 10
    assert all("tfds:my_text/train example" in line or "UTF-8" in line for line in told)
    with pytest.raises(ValueError, match="example"):
        list(documents.open_source("tfds:my_text/train"))


def test_a_name_that_tfds_does_not_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'My-Text' is not a dataset name"):
        make_tfds.write_dataset("My-Text", tmp_path, DOCUMENTS)


def test_a_dataset_is_never_written_over(prepared):
    with pytest.raises(ValueError, match="my_text/1.0.0 exists: use another name"):
        make_tfds.write_dataset("my_text", prepared, DOCUMENTS)
