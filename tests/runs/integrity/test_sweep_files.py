"""sweep.json, plan.json and prediction.json."""

import pytest
from fixtures import verified_sweep

from lm.reports import summary
from lm.runs import json_files, records, status
from lm.runs.integrity import sweep_files

READERS = {
    "sweep.json": sweep_files.read_sweep,
    "plan.json": sweep_files.read_plan,
    "prediction.json": sweep_files.read_prediction,
}
WRONG = {
    "sweep.json": [{"runs": 7}],
    "plan.json": [{"runs": [7]}, {"runs": [{"name": "s/a"}]}, {"runs": None}],
    "prediction.json": [{"target": "s/a"}],
}


@pytest.mark.parametrize("name", READERS)
def test_invalid_sweep_file_is_refused_by_name(name, tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    assert READERS[name](folder)
    for content in WRONG[name]:
        json_files.write_record(folder / name, content)
        with pytest.raises(ValueError, match=f"s/{name}.*restore it, or delete it"):
            READERS[name](folder)
    (folder / name).write_bytes(b'{"runs": "\xff"}')
    with pytest.raises(ValueError, match=f"s/{name} is not valid JSON"):
        READERS[name](folder)
    (folder / name).unlink()
    if name != "sweep.json":
        assert not READERS[name](folder)


def test_deleted_sweep_file_does_not_add_other_runs(tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    verified_sweep.write_run(tmp_path, "s/tuned", 2)
    names = [row["name"] for row in records.load_runs(folder)]
    (folder / "sweep.json").unlink()
    assert [row["name"] for row in records.load_runs(folder)] == names
    (folder / "plan.json").unlink()
    assert len(records.load_runs(folder)) == len(names) + 1  # a folder of runs without a sweep


@pytest.mark.parametrize("name", ["plan.json", "prediction.json"])
def test_file_of_another_sweep_is_refused(name, tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    other = verified_sweep.write_sweep(tmp_path, "t")
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=f"s/{name} describes t/., a run of another sweep"):
        READERS[name](folder)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("plan.json", "plan.json is missing: the planned costs are unknown"),
        ("sweep.json", "sweep.json is missing: the runs of the sweep are those of plan.json"),
    ],
)
def test_deleted_sweep_file_is_named(name, note, tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    assert summary.load_notes(folder) == []
    (folder / name).unlink()
    assert [text for text in summary.load_notes(folder) if note in text]
    assert [text for text in status.folder_status(folder).notes if note in text]
