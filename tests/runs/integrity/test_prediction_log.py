"""Log of predictions, and hashes of the records of a run."""

import json

import pytest
from fixtures import verified_sweep

from lm.runs import json_files, records
from lm.runs.integrity import prediction_log

PREDICTION = {"target": "s/z", "value": 2.0, "written": "2026-01-01T00:00:00+00:00"}


def test_appended_lines_are_no_change_and_others_are(tmp_path):
    folder = records.run_dir(verified_sweep.write_run(tmp_path, "s/a"))
    hashes = json.loads(json_files.to_json(prediction_log.hash_records(folder)))
    assert set(hashes) == {"run_id", "config.json", "facts.json", *prediction_log.LINE_FILES}
    records.extend_evals(folder, 20, {"task.copy.accuracy": 0.5})
    records.write_facts(folder, host="another", invalid_results={"task.copy": "wrong"})
    assert not prediction_log.changed_records(folder, hashes)
    file = folder / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    records.write_facts(folder, seconds=9.0)
    (folder / "events.jsonl").unlink()
    changed = ["facts.json", "metrics.jsonl", "events.jsonl"]
    assert prediction_log.changed_records(folder, hashes) == changed


def test_config_hash_excludes_the_name_and_the_execution(tmp_path):
    run = verified_sweep.write_run(tmp_path, "s/a")
    before = prediction_log.config_sha256(run)
    run.name, run.dir, run.log_interval = "t/b", "elsewhere", 7
    assert prediction_log.config_sha256(run) == before
    run.optim.lr *= 2
    assert prediction_log.config_sha256(run) != before


@pytest.mark.parametrize("number", [1, 2, 3])
def test_changed_entry_is_found(number, tmp_path):
    for i in range(3):
        prediction_log.register_prediction(tmp_path, tmp_path / "z", PREDICTION | {"value": i})
    entries = prediction_log.read_entries(tmp_path)
    assert len(entries) == 3 and not prediction_log.find_broken_entry(entries)
    entries[number - 1]["prediction"] = "0"
    assert prediction_log.find_broken_entry(entries) == number
    del entries[number - 1]
    assert prediction_log.find_broken_entry(entries) == (0 if number == 3 else number)


def test_prediction_is_registered_in_the_log_and_in_its_run(tmp_path):
    sha256 = prediction_log.register_prediction(tmp_path, tmp_path / "z", PREDICTION)
    assert sha256 == prediction_log.content_sha256(dict(reversed(PREDICTION.items())))
    (event,) = prediction_log.predicted_events(tmp_path / "z")
    (entry,) = prediction_log.find_entries(tmp_path, prediction_log.PREDICTION, "s/z")
    assert event["prediction"] == entry["prediction"] == sha256
    assert event["entry"] == entry["sha256"] and event["step"] == 0
    assert prediction_log.is_registered(tmp_path, tmp_path / "z", PREDICTION)
    assert not prediction_log.is_registered(tmp_path, tmp_path / "z", PREDICTION | {"value": 1})


def test_interrupted_entry_is_removed_before_the_next(tmp_path):
    prediction_log.register_prediction(tmp_path, tmp_path / "z", PREDICTION)
    file = tmp_path / prediction_log.FILE
    file.write_text(file.read_text() + '{"kind": "pre')
    prediction_log.register_prediction(tmp_path, tmp_path / "z", PREDICTION)
    entries = prediction_log.read_entries(tmp_path)
    assert len(entries) == 2 and not prediction_log.find_broken_entry(entries)
