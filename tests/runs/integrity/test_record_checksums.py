"""Checksums of JSON objects and lines."""

import json
import pathlib

import pytest

from lm.runs import json_files
from lm.runs.integrity import record_checksums

FILE = pathlib.Path("runs/a/facts.json")


def test_object_has_the_version_and_its_checksum():
    content = record_checksums.add_checksum({"a": 1, "format_version": 2})
    assert list(content) == ["format_version", "a", "sha256"]
    expected = {"format_version": record_checksums.FORMAT_VERSION, "a": 1}
    assert record_checksums.verify_object(FILE, content) == expected


@pytest.mark.parametrize(
    "change", [{"a": 2}, {"b": 1}, {"sha256": "0" * 64}, {"sha256": None}, {"format_version": 2}]
)
def test_changed_object_is_damaged(change):
    content = record_checksums.add_checksum({"a": 1}) | change
    with pytest.raises(ValueError, match="runs/a/facts.json is damaged, its sha256 differs"):
        record_checksums.verify_object(FILE, content)


def test_removed_entries_of_the_format_are_damage():
    for entry in (record_checksums.SHA256, record_checksums.VERSION):
        content = record_checksums.add_checksum({"a": 1})
        del content[entry]
        with pytest.raises(ValueError, match="is damaged"):
            record_checksums.verify_object(FILE, content)


def test_newer_format_is_refused_and_older_is_read():
    newer = record_checksums.FORMAT_VERSION + 1
    content = record_checksums.add_checksum({"a": 1}) | {"format_version": newer}
    with pytest.raises(ValueError, match="format_version=4 is newer than 3.*install the version"):
        record_checksums.verify_object(FILE, content)
    assert record_checksums.verify_object(FILE, {"a": 1, "format": 2}) == {"a": 1, "format": 2}


def test_every_flipped_bit_of_a_line_is_detected():
    line = record_checksums.add_line_checksum(json_files.to_json({"step": 12, "loss": 3.25}), "id")
    assert json.loads(line)["crc32"] == line[-10:-2]
    assert record_checksums.verify_line(line, "id") == '{"step": 12, "loss": 3.25}'
    for position in range(len(line)):
        for bit in range(8):
            raw = bytearray(line.encode())
            raw[position] ^= 1 << bit
            damaged = raw.decode(errors="surrogateescape")
            content = record_checksums.verify_line(damaged, "id")
            # A flipped space before the checksum does not change the content.
            assert content in (None, '{"step": 12, "loss": 3.25}')


def test_line_of_another_run_is_damaged():
    line = record_checksums.add_line_checksum('{"step": 1}', "id")
    assert record_checksums.verify_line(line, "other") is None
    assert record_checksums.verify_line('{"step": 1}', "id") is None
    # A run of version 0.2 has no run_id.
    assert record_checksums.verify_line('{"step": 1}', None) == '{"step": 1}'


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("config.json", "restore it, or delete the folder of the run"),
        ("sweep.json", "restore it, or delete it and repeat the command of the sweep"),
        ("prediction.json", "restore it, or delete it: the sweep then has no prediction"),
        ("plan.json", "restore it, or delete it"),
    ],
)
def test_remedy_depends_on_the_file(name, remedy, tmp_path):
    file = tmp_path / name
    for text in ('{"a": 1, "format_version": 3, "sha256": "0"}', "{", "[]"):
        file.write_text(text)
        with pytest.raises(ValueError) as error:
            json_files.read_record(file)
        assert str(error.value).endswith(f": {remedy}")
