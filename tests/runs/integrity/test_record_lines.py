"""Damaged and missing lines of the .jsonl files of a run."""

import pathlib
import shutil

import pytest
from fixtures import verified_sweep

from lm.config import schema
from lm.runs import filesystem, json_files, records
from lm.runs.integrity import record_lines, run_notes


@pytest.fixture
def run(tmp_path) -> schema.Run:
    run = verified_sweep.write_run(tmp_path, "s/a")
    (records.run_dir(run) / "checkpoints" / "20").mkdir()
    record_lines.sync_records(records.run_dir(run))
    return run


def delete_line(file: pathlib.Path, number: int) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:number] + lines[number + 1 :]))


def notes(run: schema.Run) -> list[str]:
    return run_notes.folder_notes(records.load_folder(records.run_dir(run)))


@pytest.mark.parametrize("name", json_files.FILES)
def test_deleted_line_of_a_finished_run_is_counted(run, name):
    assert notes(run) == []
    file = records.run_dir(run) / name
    delete_line(file, 0)
    assert notes(run) == [f"{file}: 1 line is missing"]
    file.unlink()
    assert any(str(file) in note or file.name in note for note in notes(run))


@pytest.mark.parametrize("name", json_files.FILES)
def test_continued_run_warns_of_lost_lines_until_the_end(run, name):
    folder = records.run_dir(run)
    records.write_facts(folder, status="lost", ends_at=None)
    for step in (10, 15):
        records.log_event(folder, 2, step, "spike", "loss")
    record_lines.sync_records(folder)
    delete_line(folder / name, 0)
    with pytest.warns(UserWarning, match=f"{name}: 1 line is missing$"):
        records.start_run(run, {}, 15)
    verified_sweep.write_rows(folder, 3, (20,), 2.0)
    record_lines.sync_records(folder)
    assert record_lines.describe_lost_lines(folder, name).endswith(": 1 line is missing")
    delete_line(folder / name, 0)
    record_lines.sync_records(folder)
    assert record_lines.describe_lost_lines(folder, name).endswith(": 2 lines are missing")


def test_checkpoint_counts_lines_without_reading_them(run, monkeypatch):
    """A long run has a row per log step, and each checkpoint counts all rows."""
    folder = records.run_dir(run)
    n_lines = {name: len(filesystem.read_lines(folder / name)) for name in json_files.FILES}
    records.log_event(folder, 1, 20, "spike", "loss")
    monkeypatch.setattr(filesystem, "read_lines", lambda path: pytest.fail("lines were read"))
    record_lines.sync_records(folder)
    n_lines["events.jsonl"] += 1
    assert records.read_facts(folder)[record_lines.N_LINES] == n_lines


def test_continued_run_warns_of_a_damaged_evaluation(run):
    folder = records.run_dir(run)
    file = folder / "evals.jsonl"
    file.write_text(file.read_text().replace('"step": 5', '"step": 6', 1))
    with pytest.warns(UserWarning, match="evals.jsonl: line 1 is damaged and not used$"):
        records.start_run(run, {}, 15)


def test_intact_run_continues_without_a_warning(run, recwarn):
    folder = records.run_dir(run)
    records.extend_evals(folder, 20, {"task.x": 1.0})
    records.start_run(run, {}, 10)
    record_lines.sync_records(folder)
    assert not recwarn.list and record_lines.N_LINES in records.read_facts(folder)


def test_counts_are_neither_columns_nor_archived(run, tmp_path):
    (row,) = records.load_runs(records.run_dir(run).parent)
    assert not {record_lines.N_LINES, record_lines.N_MISSING} & row.keys()


@pytest.mark.parametrize("value", [3, [], "x", {"metrics.jsonl": "3"}, None])
def test_invalid_counts_are_ignored(run, value):
    records.write_facts(records.run_dir(run), n_lines=value, n_missing_lines=value)
    assert notes(run) == []


def test_deleted_checkpoints_have_no_missing_lines(run, recwarn):
    folder = records.run_dir(run)
    shutil.rmtree(folder / "checkpoints")
    assert notes(run) == []
    (folder / "checkpoints").mkdir()  # a run makes the folder before it starts its next attempt
    records.start_run(run, {}, -1)
    record_lines.sync_records(folder)
    assert not recwarn.list and notes(run) == []
