"""Config and facts of a run directory."""

import shutil

import pytest
from fixtures import verified_sweep

from lm.runs import json_files, records
from lm.runs.integrity import stored_config


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a finished sweep, tmp_path/s."""
    return verified_sweep.write_sweep(tmp_path)


def test_damaged_config_field_names_the_file(folder):
    content = json_files.read_record(folder / "a" / "config.json")
    for changed in ({"lg_interval": 1}, {"data": 7}, {"model": None}, {"eval": []}):
        json_files.write_record(folder / "a" / "config.json", content | changed)
        with pytest.raises(ValueError, match=r"s/a/config.json: ") as error:
            stored_config.load_config(folder / "a", {})
        assert "\n" not in str(error.value)


def test_files_of_two_runs_are_not_mixed(folder):
    run = records.read_config(folder / "a")
    shutil.copy(folder / "b" / "facts.json", folder / "a")
    for read in (records.check_same_config, lambda run: records.start_run(run, {})):
        with pytest.raises(ValueError, match="a/facts.json belongs to another run than config"):
            read(run)
    assert "belongs to another run" in records.load_folder(folder).unreadable[folder / "a"]


def test_newer_format_is_refused_by_every_reader(folder, monkeypatch):
    run = records.read_config(folder / "a")
    monkeypatch.setattr(stored_config.record_checksums, "FORMAT_VERSION", 9)
    records.write_facts(folder / "a", status="done")
    monkeypatch.undo()
    readers = (records.check_same_config, lambda run: records.read_config(folder / "a"))
    for read in readers:
        with pytest.raises(ValueError, match="facts.json: format_version=9 is newer than 3"):
            read(run)
    assert "format_version=9" in records.load_folder(folder).unreadable[folder / "a"]


def test_renamed_copied_and_linked_sweeps_open(folder, tmp_path, monkeypatch):
    """The new name of the folder may end in the old one, without a separator."""
    shutil.copytree(folder, tmp_path / "my-s")
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "link").symlink_to(folder / "a")
    monkeypatch.chdir(folder)
    paths = [tmp_path / "s/a", tmp_path / "my-s/a", tmp_path / "other/a", tmp_path / "link"]
    for path in (*paths, "a", "../s/a", "../my-s/a", "./a"):
        run = records.read_config(path)
        assert (
            records.run_dir(run).samefile(path) and (records.run_dir(run) / "facts.json").exists()
        )
    assert records.read_config(tmp_path / "my-s/a").name == "my-s/a"
    assert records.read_config(tmp_path / "s/a").name == "s/a"


def test_run_without_facts_can_record_a_failure(folder):
    run = records.read_config(folder / "a")
    (folder / "a" / "facts.json").unlink()
    assert "a has no facts.json: restore it, or start" in str(
        records.load_folder(folder).unreadable
    )
    records.write_facts(folder / "a", status="failed", reason="why")
    (row,) = records.load_runs(folder / "a")
    assert (row["status"], row["reason"]) == ("failed", "why")
    assert records.start_run(run, {}, 20) == 3


def test_run_that_failed_before_its_first_attempt_is_not_damaged(folder):
    records.write_facts(folder / "planned", status="failed", reason="no text")
    assert not records.load_folder(folder).unreadable
    (folder / "a" / "config.json").unlink()
    assert "a has no config.json" in str(records.load_folder(folder).unreadable)
