"""TFDS datasets: written by make_tfds and read without TensorFlow or a network."""

import collections
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import memory_bucket

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
    first_read = list(documents.open_source("tfds:my_text/train"))
    assert sorted(d.text for d in first_read) == sorted(text for _, text in DOCUMENTS)
    second_read = list(documents.open_source("tfds:my_text:1.0.0/train"))
    assert [d.text for d in second_read] == [d.text for d in first_read]
    assert first_read[7].name == "my_text/train example 7"


def test_slice_of_a_split_and_another_field_can_be_read():
    all_names = list(documents.open_source("tfds:my_text/train?field=name"))
    assert {d.text for d in all_names} == {name for name, _ in DOCUMENTS}
    first_names = list(documents.open_source("tfds:my_text/train[:10%]?field=name"))
    assert [d.text for d in first_names] == [d.text for d in all_names[:60]]


def test_fingerprint_changes_with_the_files(tmp_path, monkeypatch):
    first = documents.source_fingerprint("tfds:my_text/train")
    assert first == documents.source_fingerprint("tfds:my_text/train")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    make_tfds.write_dataset("my_text", tmp_path, DOCUMENTS[:50])
    assert documents.source_fingerprint("tfds:my_text/train") != first


def test_newest_version_is_read_by_default(tmp_path, monkeypatch):
    for version in ("2.0.0", "10.0.0", "9.0.0"):
        (tmp_path / "a/config" / version).mkdir(parents=True)
        (tmp_path / "a/config" / version / version).touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert [p.name for p in tfds.tfds_files("a/config/train").paths] == ["10.0.0"]
    assert [p.name for p in tfds.tfds_files("a/config:9.0.0/train").paths] == ["9.0.0"]


def test_tensorflow_is_not_imported():
    script = (
        "import sys\nfrom lm.data.sources import documents\n"
        "assert documents.source_fingerprint('tfds:my_text/train')\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "n = len(list(documents.open_source('tfds:my_text/train')))\n"
        "assert n == 600 and 'tensorflow' not in sys.modules\n"
    )
    root = Path(__file__).parent.parent.parents[1]
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "source, message",
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
def test_missing_input_has_a_one_line_error(source, message):
    with pytest.raises(ValueError, match=message) as error:
        list(documents.open_source(source))
    assert "\n" not in str(error.value)


def test_corrupt_example_is_skipped_if_allowed(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    folder = make_tfds.write_dataset("my_text", tmp_path, DOCUMENTS)
    (path,) = folder.glob("*.array_record*")
    raw = bytearray(path.read_bytes())
    start = raw.index(b"Text 300: ")
    raw[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    errors = []
    texts = list(documents.open_source("tfds:my_text/train", errors.append))
    assert len(errors) + len(texts) == len(DOCUMENTS) and 0 < len(errors) < 10
    assert all("tfds:my_text/train example" in line or "UTF-8" in line for line in errors)
    with pytest.raises(ValueError, match="example"):
        list(documents.open_source("tfds:my_text/train"))


def test_invalid_dataset_name_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="'My-Text' is not a dataset name"):
        make_tfds.write_dataset("My-Text", tmp_path, DOCUMENTS)


def test_existing_dataset_is_not_overwritten(prepared):
    with pytest.raises(ValueError, match="my_text/1.0.0 exists: use another name"):
        make_tfds.write_dataset("my_text", prepared, DOCUMENTS)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "other"])
def test_damaged_metadata_has_a_one_line_error(prepared, tmp_path, monkeypatch, name, damage):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "my_text/1.0.0" / name
    raw = {"empty": b"", "truncated": path.read_bytes()[:60], "other": b"\xff\n"}
    path.unlink() if damage == "missing" else path.write_bytes(raw[damage])
    with pytest.raises(
        ValueError, match="the metadata in .* cannot be read .*: prepare it"
    ) as error:
        list(documents.open_source("tfds:my_text/train"))
    assert "\n" not in str(error.value) and type(error.value) is ValueError


def test_missing_records_are_reported(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (path,) = (tmp_path / "my_text/1.0.0").glob("*.array_record*")
    path.write_bytes(path.read_bytes()[:-5])
    errors = []
    assert not list(documents.open_source("tfds:my_text/train", errors.append))
    assert len(errors) == len(DOCUMENTS) and "example 0: cannot be read" in errors[0]


def test_only_documents_with_text_are_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": null}\n{"text": "half a pair \\ud800"}\n')
    dropped = collections.Counter()
    pairs = make_tfds.documents_with_text(f"jsonl:{path}", dropped)
    assert next(pairs) == (f"{path} line 1", "one")
    with pytest.raises(ValueError, match="a.jsonl line 3: is not Unicode"):
        next(pairs)
    assert dropped == {"empty": 1}


def test_dataset_without_documents_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the source contains no text"):
        make_tfds.write_dataset("my_text", tmp_path, [])
    assert not list(tmp_path.glob("my_text/*"))


def test_datasets_in_a_bucket_are_read_file_by_file(prepared, monkeypatch):
    expected = list(documents.open_source("tfds:my_text/train"))
    with memory_bucket.open_memory_bucket() as traffic:
        memory_bucket.upload_folder(prepared, "memory://bucket/tfds")
        monkeypatch.setenv("TFDS_DATA_DIR", "memory://bucket/tfds")
        read = list(documents.open_source("tfds:my_text/train"))
        assert [d[:2] for d in read] == [d[:2] for d in expected]
        part = list(documents.open_source("tfds:my_text/train[5%:10%]"))
        assert [d.text for d in part] == [d.text for d in expected[30:60]]
        assert len(documents.source_fingerprint("tfds:my_text/train")) > 1
        with pytest.raises(ValueError, match="is not in memory://bucket/tfds: run tfds build"):
            documents.list_shards("tfds:other/train")
        with pytest.raises(ValueError, match="split 'test' in memory://bucket/.* cannot be read"):
            documents.list_shards("tfds:my_text/test")
        traffic.errors = {"-00001": PermissionError("403 Forbidden")}
        with pytest.raises(ValueError, match="cannot be read .permission denied"):
            list(documents.open_source("tfds:my_text/train"))
