"""Run directories and rows."""

import json
import shutil

import pytest

from lm.config import schema, validation
from lm.runs import json_files, records
from lm.runs.integrity import record_checksums, record_lines


@pytest.fixture
def run(tmp_path):
    return schema.Run(name="sweep/a", dir=str(tmp_path))


def test_row_has_config_facts_and_the_last_evaluation(run):
    records.start_run(run, {"params.total": 7, "tokens": 9})
    folder = records.run_dir(run)
    records.append_record(folder / "evals.jsonl", {"step": 10, "loss": 3.0})
    records.append_record(folder / "evals.jsonl", {"step": 20, "loss": 2.0})
    records.write_facts(folder, status="done")
    (row,) = records.load_runs(run.dir)
    assert (row["optim.lr"], row["params.total"], row["eval.loss"]) == (run.optim.lr, 7, 2.0)
    assert (row["status"], row["name"], row["dir"]) == ("done", "sweep/a", str(folder))
    assert records.is_finished(run)


def test_rows_are_sorted_by_size(tmp_path):
    for name, size in (("s/big", 30), ("s/small", 10), ("s/mid", 20)):
        records.start_run(schema.Run(name=name, dir=str(tmp_path)), {"params.non_embedding": size})
    assert [row["name"] for row in records.load_runs(tmp_path)] == ["s/small", "s/mid", "s/big"]


def test_metrics_of_the_last_attempt_replace_older_ones(run):
    assert records.start_run(run, {}) == 1
    file = records.run_dir(run) / "metrics.jsonl"
    for attempt, step in ((1, 10), (1, 20), (1, 30)):
        records.append_record(file, {"attempt": attempt, "step": step})
    assert records.start_run(run, {}) == 2
    records.append_record(file, {"attempt": 2, "step": 20})
    rows = records.load_metrics(records.run_dir(run))
    assert [(row["step"], row["attempt"]) for row in rows] == [(10, 1), (20, 2), (30, 1)]


def test_incomplete_last_line_is_repaired(run):
    records.start_run(run, {})
    file = records.run_dir(run) / "metrics.jsonl"
    records.append_record(file, {"step": 1})
    with open(file, "a") as metrics:
        metrics.write('{"step": 2, "lo')
    assert [row["step"] for row in records.load_metrics(file.parent)] == [1]
    records.start_run(run, {})
    records.append_record(file, {"step": 2})
    assert [row["step"] for row in records.load_metrics(file.parent)] == [1, 2]


def test_changed_config_field_is_refused_by_name(run):
    records.start_run(run, {})
    before = (records.run_dir(run) / "config.json").read_text()
    run.optim.lr, run.model.d_model = 0.5, 64
    with pytest.raises(ValueError, match=r"optim.lr=0.003, now 0.5: choose a new name") as error:
        records.start_run(run, {})
    assert "model.d_model=128, now 64" in str(error.value)
    assert (records.run_dir(run) / "config.json").read_text() == before


def test_execution_fields_may_change(run):
    records.start_run(run, {})
    run.log_interval, run.mesh.fsdp, run.data.cache_dir = 5, 2, "elsewhere"
    records.start_run(run, {})


def test_execution_fields_exist():
    assert set(records.EXECUTION_FIELDS) <= set(schema.field_types(schema.Run))


def test_non_finite_numbers_become_strings(run):
    records.start_run(run, {})
    records.append_record(records.run_dir(run) / "metrics.jsonl", {"step": 1, "loss": float("nan")})
    line = (records.run_dir(run) / "metrics.jsonl").read_text()
    assert json.loads(line)["loss"] == "nan"


def test_config_is_loaded_from_a_moved_folder(run, tmp_path):
    records.start_run(run, {})
    moved = tmp_path / "moved" / "sweep" / "a"
    moved.parent.mkdir(parents=True)
    records.run_dir(run).rename(moved)
    assert records.run_dir(records.read_config(moved)) == moved
    with pytest.raises(ValueError, match="is not a run directory: config.json is missing"):
        records.read_config(tmp_path / "nothing")


def test_broken_json_file_is_named(run):
    records.start_run(run, {})
    for content in ("{", "[]", "7"):
        (records.run_dir(run) / "facts.json").write_text(content)
        with pytest.raises(ValueError, match=r"facts.json (is not valid|must be a) JSON") as error:
            records.load_runs(run.dir)
        assert "\n" not in str(error.value)


def finished_run(folder, name: str, loss: float = 2.0) -> None:
    """Write a finished run with two evaluations."""
    run = schema.Run(name=name, dir=str(folder))
    records.start_run(run, {"params.non_embedding": 7, "tokens": 9})
    path = records.run_dir(run)
    for step, value in ((10, loss + 1), (20, loss)):
        records.append_record(path / "evals.jsonl", {"attempt": 1, "step": step, "loss": value})
        records.append_record(path / "metrics.jsonl", {"attempt": 1, "step": step, "loss": value})
    records.write_facts(path, status="done", ends_at=20)


def names(rows: list[dict]) -> list[str]:
    return sorted(row["name"] for row in rows)


@pytest.fixture
def sweep_dir(tmp_path):
    """Return the folder of a sweep of two runs, with two other runs in it."""
    for name in ("s/a", "s/b", "s/tuned", "s/more/deep"):
        finished_run(tmp_path, name)
    json_files.write_object(tmp_path / "s" / "sweep.json", {"runs": ["s/a", "s/b", "s/planned"]})
    return tmp_path / "s"


def test_sweep_consists_of_the_runs_in_its_file(sweep_dir):
    for path in (sweep_dir, sweep_dir.parent):
        assert names(records.load_runs(path)) == ["s/a", "s/b"]
        rows = records.load_runs(path, include_others=True)
        assert names(rows) == ["s/a", "s/b", "s/more/deep", "s/tuned"]
        assert {row["name"]: row["in_sweep"] for row in rows} == {
            "s/a": True, "s/b": True, "s/more/deep": False, "s/tuned": False,
        }  # fmt: skip
    (row,) = records.load_runs(sweep_dir / "tuned")  # a run that is named explicitly
    assert row["in_sweep"]


def test_folder_without_a_sweep_file_has_all_runs(sweep_dir):
    (sweep_dir / "sweep.json").unlink()
    assert len(records.load_runs(sweep_dir)) == 4
    finished_run(sweep_dir.parent, "other/x")
    json_files.write_object(sweep_dir.parent / "other" / "sweep.json", {"runs": ["other/y"]})
    assert len(records.load_runs(sweep_dir.parent)) == 4


def test_copied_sweep_keeps_its_runs_and_copied_runs_do_not_count(sweep_dir, tmp_path):
    shutil.copytree(sweep_dir / "a", sweep_dir / "a-copy")
    shutil.copytree(sweep_dir / "a", sweep_dir / "backup" / "a")
    copy = shutil.copytree(sweep_dir, tmp_path / "elsewhere" / "renamed")
    assert names(records.load_runs(copy)) == ["s/a", "s/b"]
    assert len(records.load_runs(copy, include_others=True)) == 6


def test_run_with_the_name_of_a_checkpoint_folder_is_loaded(sweep_dir):
    finished_run(sweep_dir.parent, "s/checkpoints")
    json_files.write_object(
        sweep_dir / "a" / "checkpoints" / "20" / "config.json", {"not": "a run"}
    )
    assert len(records.load_runs(sweep_dir, include_others=True)) == 5


def test_unreadable_run_hides_only_itself(sweep_dir):
    (sweep_dir / "a" / "facts.json").write_text('{"status": "do')
    with pytest.warns(UserWarning, match="a/facts.json is not valid JSON.*The run is left out"):
        assert names(records.load_runs(sweep_dir)) == ["s/b"]
    (sweep_dir / "b" / "config.json").write_bytes(b"\xff")
    assert len(records.load_folder(sweep_dir).unreadable) == 2


@pytest.mark.parametrize(
    "line", [b'{"step": 15, "l\xefss": 1.0}', b'{"step": 15, "lo', b"#", b"[]"]
)
def test_invalid_lines_are_passed_over(sweep_dir, line):
    for name in ("metrics.jsonl", "evals.jsonl", "events.jsonl"):
        file = sweep_dir / "a" / name
        content = file.read_bytes() if file.exists() else b""
        file.write_bytes(line + b"\n" + content)
    assert names(records.load_runs(sweep_dir)) == ["s/a", "s/b"]
    assert [row["step"] for row in records.load_metrics(sweep_dir / "a")] == [10, 20]
    assert records.attempt_metrics(sweep_dir / "a", before=2)[0]["step"] == 20
    assert records.load_events(sweep_dir / "a") == []
    record_lines.repair_records(sweep_dir / "a")  # the next attempt


def test_missing_final_evaluation_is_not_replaced_by_an_older_one(sweep_dir):
    file = sweep_dir / "a" / "evals.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(f"{lines[0]}\n#{lines[1]}\n")
    row = next(row for row in records.load_runs(sweep_dir) if row["name"] == "s/a")
    assert "eval.loss" not in row
    message = "evals.jsonl has no evaluation of the final step 20: line 2 is damaged"
    assert row["reason"] == message


def test_results_marked_as_invalid_are_left_out(sweep_dir):
    results = {"task.b?d=2.accuracy": 0.0, "task_se.b?d=2.accuracy": 0.1, "task.b?d=3.n": 5}
    results |= {"loss.code": 1.0, "loss_se.code": 0.1, "completion": 0.5, "completion_se": 0.1}
    records.extend_evals(sweep_dir / "a", 20, results)
    invalid = {"task.b?d=2": "why", "loss.code": "why", "completion": "why"}
    records.write_facts(sweep_dir / "a", invalid_results=invalid)
    row = next(row for row in records.load_runs(sweep_dir) if row["name"] == "s/a")
    columns = {key for key in row if key.startswith("eval.") and key[5:] in results}
    assert columns == {"eval.task.b?d=3.n"} and row["eval.loss"] == 2.0
    assert row["invalid_results"] == invalid
    assert json_files.read_latest_rows(sweep_dir / "a" / "evals.jsonl")[-1]["loss.code"] == 1.0


def test_invalid_lines_and_older_attempts_are_skipped(run):
    records.start_run(run, {})
    file = records.run_dir(run) / "metrics.jsonl"
    records.append_record(file, {"attempt": 2, "step": 1, "loss": 2.0})
    file.write_text(file.read_text() + "[1, 2]\n7\nnull\n{}\n\n" + '{"step": "x"}\n')
    # A suspended process of an older attempt may write after its successor.
    records.append_record(file, {"attempt": 1, "step": 1, "loss": 1.0})
    assert [row["loss"] for row in records.load_metrics(file.parent)] == [2.0]


def test_stored_config_is_never_executed(run):
    records.start_run(run, {})
    file = records.run_dir(run) / "config.json"
    content = json_files.read_record(file)
    content["wandb"] = "__import__('os').getcwd()"
    content["data"]["cache_dir"] = "$(id) `id` {0.__class__}"
    json_files.write_record(file, content)
    with pytest.raises(ValueError, match="config.json: wandb=.* must be bool, not str"):
        records.read_config(file.parent)
    json_files.write_record(file, content | {"wandb": False})
    assert records.read_config(file.parent).data.cache_dir == "$(id) `id` {0.__class__}"
    json_files.write_record(file, content | {"__class__": "os.system"})
    with pytest.raises(ValueError, match="config.json: __class__ does not exist"):
        records.read_config(file.parent)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", "a//b", "a/", "gs://b/x", "a\n"])
def test_run_name_cannot_leave_its_folder(run, name):
    for group, field in ((run, "name"), (run.start, "run")):
        setattr(group, field, name)
        with pytest.raises(ValueError, match="must consist of letters, digits"):
            validation.validate_run(run)
        run.name = "valid"


def test_runs_of_version_0_1_are_refused_in_one_line(tmp_path):
    """facts.json of version 0.1 has no format."""
    run = schema.Run(name="old", dir=str(tmp_path))
    folder = records.run_dir(run)
    json_files.write_object(folder / "config.json", schema.to_dict(run))
    json_files.write_object(folder / "facts.json", {"code.version": "0.1.0", "status": "done"})
    for read in (
        lambda: records.check_same_config(run),
        lambda: records.read_config(folder),
        lambda: records.load_runs(tmp_path),
    ):
        with pytest.raises(
            ValueError, match="was written by version 0.1.0, format_version=None"
        ) as error:
            read()
        assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_config_of_version_0_1_is_refused_without_facts(tmp_path):
    """A run of version 0.1 that stopped before it wrote facts.json has only a config."""
    json_files.write_object(
        tmp_path / "old" / "config.json", {"name": "old", "checkpoint_every": 4}
    )
    with pytest.raises(ValueError, match="checkpoint_every=4 is a field of version 0.1") as error:
        records.load_runs(tmp_path)
    assert "\n" not in str(error.value)


def test_facts_of_a_run_contain_the_format(tmp_path):
    records.write_facts(tmp_path, status="lost")
    version = record_checksums.FORMAT_VERSION
    assert records.read_facts(tmp_path) == {"format_version": version, "status": "lost"}


def test_facts_have_the_times_of_the_start_and_the_end(run, monkeypatch):
    monkeypatch.setattr(records, "current_time", iter(["1", "2", "3", "4"]).__next__)
    for _ in range(2):
        records.start_run(run, {})
        facts = records.read_facts(records.run_dir(run))
        assert facts["started"] == "1" and "ended" not in facts
    records.write_facts(records.run_dir(run), status="diverged")
    assert records.read_facts(records.run_dir(run))["ended"] == "2"
    records.start_run(run, {})
    assert records.read_facts(records.run_dir(run))["ended"] is None


def test_only_the_primary_process_writes(tmp_path):
    records.Writer(tmp_path, is_primary=False).write_facts(status="done")
    records.Writer(tmp_path, is_primary=False).append("evals.jsonl", {"step": 1})
    assert not list(tmp_path.iterdir())


def test_added_results_follow_an_unfinished_line(run):
    records.start_run(run, {})
    folder = records.run_dir(run)
    records.append_record(folder / "evals.jsonl", {"attempt": 1, "step": 5, "loss": 2.0})
    with open(folder / "evals.jsonl", "a") as file:
        file.write('{"attempt": 1, "st')
    records.extend_evals(folder, 5, {"task": 3.0})
    (row,) = records.load_evals(folder)
    assert row["loss"] == 2.0 and row["task"] == 3.0
    assert not json_files.read_file(folder / "evals.jsonl").corrupt_lines


def test_lines_are_verified_without_config_json(run):
    records.start_run(run, {})
    file = records.run_dir(run) / "evals.jsonl"
    records.append_record(file, {"attempt": 1, "step": 5, "loss": 2.0})
    file.write_text(file.read_text().replace("2.0", "7.0"))
    (file.parent / "config.json").unlink()
    assert json_files.read_file(file).corrupt_lines == [1]
