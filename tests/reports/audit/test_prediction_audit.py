"""Audit of a prediction: every kind of tampering contradicts a named file."""

import json
import pathlib
import shutil
import subprocess

import pytest
from fixtures import made_up_sweep, predicted_sweep, verified_sweep

from lm.reports.audit import prediction_audit, prediction_chain, repeated_fit, target_prediction
from lm.runs import archive, json_files, provenance, records
from lm.runs.integrity import prediction_log, record_checksums
from lm.sweeps import prediction

HOUR = 3600
PREDICTION = "prediction.json"


@pytest.fixture(scope="module", autouse=True)
def code_hash():
    """Replace the hash of the code, which takes longer than an audit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "code_hash", lambda module: "0.2.0 00000000")
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory, code_hash):
    """Return the folder of a finished sweep whose prediction is intact."""
    with pytest.MonkeyPatch.context() as patch:
        return predicted_sweep.write_sweep(tmp_path_factory.mktemp("audit"), patch)


@pytest.fixture
def folder(original, tmp_path):
    """Return a copy of the sweep that a test may change."""
    return shutil.copytree(original, tmp_path / "s")


def audit(folder, status, should_refit=False) -> list[str]:
    """Return the texts of the links of a status."""
    links = prediction_audit.audit_prediction(folder, should_refit)
    return [link.text for link in links if link.status == status]


def contradictions(folder, should_refit=False) -> list[str]:
    return audit(folder, prediction_chain.CONTRADICTION, should_refit)


def edit_record(file, **changes) -> None:
    """Change entries of a JSON file and its checksum."""
    json_files.write_record(file, json_files.read_record(file) | changes)


def edit_prediction(folder, *path, value) -> None:
    content = json_files.read_record(folder / PREDICTION)
    entry = content
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    json_files.write_record(folder / PREDICTION, content)


def edit_row(file, number, **changes) -> None:
    """Change entries of a line of a .jsonl file and its checksum."""
    lines = file.read_text().splitlines()
    row = json.loads(lines[number])
    del row["crc32"]
    text = json_files.to_json(row | changes)
    lines[number] = record_checksums.add_line_checksum(text, json_files.run_id(file) or "")
    file.write_text("".join(f"{line}\n" for line in lines))


def edit_config(folder, **changes) -> None:
    config = json_files.read_record(folder / "config.json")
    json_files.write_record(folder / "config.json", config | changes)


def drop_line(file, number) -> None:
    lines = file.read_text().splitlines()
    del lines[number]
    file.write_text("".join(f"{line}\n" for line in lines))


def exchange(first, second) -> None:
    first.rename(first.parent / "other")
    second.rename(first)
    (first.parent / "other").rename(second)


def exchange_runs(folder) -> None:
    """Exchange the folders of two runs, and their names in the configs."""
    exchange(folder / "b", folder / "c")
    for name in "bc":
        edit_record(folder / name / "config.json", name=f"s/{name}")


def train_again(folder, loss_shift) -> None:
    """Delete the target, which the same sweep then trains with another result."""
    shutil.rmtree(folder / "target")
    runs = predicted_sweep.make_runs(folder.parent)
    content = json_files.read_record(folder / PREDICTION)
    content.pop("format_version")
    prediction_log.register_prediction(folder, folder / "target", content)
    predicted_sweep.write_records(runs[-1], loss_shift)
    prediction_log.register_result(folder, folder / "target", predicted_sweep.TARGET)


def exchange_target(folder) -> None:
    """Replace the target by one that a copy of the sweep has trained."""
    copy = shutil.copytree(folder, folder.parent / "copy" / "s")
    train_again(copy, -0.1)
    shutil.rmtree(folder / "target")
    shutil.copytree(copy / "target", folder / "target")


def add_run(folder) -> None:
    run = predicted_sweep.make_run(folder.parent, "s/f", 10)
    predicted_sweep.write_records(run)
    records.write_facts(folder / "f", ended="2026-01-01T00:05:00+00:00")
    names = json_files.read_record(folder / "sweep.json")["runs"]
    edit_record(folder / "sweep.json", runs=[*names, "s/f"])


def remove_member(folder) -> None:
    names = json_files.read_record(folder / "sweep.json")["runs"]
    edit_record(folder / "sweep.json", runs=[name for name in names if name != "s/a-1"])


def leave_out(folder) -> None:
    """Remove a run from the inputs, and rewrite all hashes of the prediction."""
    inputs = json_files.read_record(folder / PREDICTION)["inputs"]
    inputs.pop("s/d")
    predicted_sweep.rewrite_prediction(folder, inputs=inputs)


def written(folder) -> str:
    return json_files.read_record(folder / PREDICTION)["written"]


def shift_written(folder, n_seconds) -> None:
    """Change the time of the prediction, and rewrite all its hashes."""
    time = predicted_sweep.shift_time(written(folder), n_seconds)
    predicted_sweep.rewrite_prediction(folder, written=time)


def edit_log(folder, number, **changes) -> None:
    """Change an entry of the log and its own hash."""
    file = folder / prediction_log.FILE
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[number] |= changes
    lines[number]["sha256"] = record_checksums.object_sha256(lines[number])
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


# Kind of tampering -> (function of the folder, text of a contradiction).
TAMPERINGS = {
    "edited final loss of a fitted run": (
        lambda f: edit_row(f / "b" / "evals.jsonl", 3, loss=1.9),
        "s/b: eval.loss=1.9, and",
    ),
    "edited loss of an earlier step": (
        lambda f: edit_row(f / "b" / "evals.jsonl", 1, loss=1.9),
        "s/b/evals.jsonl, and prediction.json has another hash",
    ),
    "edited training losses": (
        lambda f: edit_row(f / "b" / "metrics.jsonl", 2, loss=1.9),
        "s/b/metrics.jsonl, and prediction.json has another hash",
    ),
    "truncated curve": (
        lambda f: drop_line(f / "b" / "metrics.jsonl", 0),
        "s/b/metrics.jsonl, and prediction.json has another hash",
    ),
    "edited facts of a fitted run": (
        lambda f: records.write_facts(f / "b", seconds=0.5),
        "s/b/facts.json, and prediction.json has another hash",
    ),
    "changed config of a fitted run": (
        lambda f: edit_config(f / "b", seed=7),
        "s/b/config.json, and prediction.json has another hash",
    ),
    "loss marked as invalid": (
        lambda f: records.write_facts(f / "b", invalid_results={"loss": "wrong"}),
        "s/b: eval.loss=None, and",
    ),
    "removed seed": (
        lambda f: shutil.rmtree(f / "a-1"),
        "s/a-1 is missing, and prediction.json is based on it",
    ),
    "removed run": (remove_member, "s/a-1: not in sweep.json any more"),
    "added run": (add_run, "s/f: in sweep.json and ended before the prediction"),
    "unused run": (leave_out, "s/d: ended before the prediction, which does not use them"),
    "exchanged runs": (exchange_runs, "s/b: params.non_embedding="),
    "run of another seed in the place of a run": (
        lambda f: exchange(f / "a-0", f / "a-1"),
        "a-0",
    ),
    "edited interval": (
        lambda f: edit_prediction(f, "lo", value=1.0),
        "predictions.jsonl records",
    ),
    "edited value": (
        lambda f: edit_prediction(f, "value", value=2.0),
        "predictions.jsonl records",
    ),
    "edited draws": (
        lambda f: edit_prediction(f, "draws", "sha256", value="0" * 64),
        "predictions.jsonl records",
    ),
    "edited seed of the draws": (
        lambda f: edit_prediction(f, "draws", "seed", value=1),
        "predictions.jsonl records",
    ),
    "changed law options": (
        lambda f: edit_prediction(f, "fit", "loss", value="squares"),
        "predictions.jsonl records",
    ),
    "changed code version": (
        lambda f: edit_prediction(f, "code", "version", value="9.9"),
        "predictions.jsonl records",
    ),
    "edited input hashes": (
        lambda f: edit_prediction(f, "inputs", "s/b", "records", "facts.json", value="0"),
        "predictions.jsonl records",
    ),
    "prediction without hashes": (
        lambda f: json_files.write_record(
            f / PREDICTION,
            {"target": "s/target", "x": "x", "y": "y", "runs": [], "value": 2.0},
        ),
        "prediction.json: the entry inputs is missing or invalid",
    ),
    "replaced prediction": (
        lambda f: edit_record(f / PREDICTION, value=1.7, lo=1.6, hi=1.8),
        "predictions.jsonl records",
    ),
    "deleted prediction": (
        lambda f: (f / PREDICTION).unlink(),
        "prediction.json is missing, and predictions.jsonl has its hash",
    ),
    "back-dated prediction": (
        lambda f: edit_record(f / PREDICTION, written="2025-12-31T00:00:00+00:00"),
        "predictions.jsonl records",
    ),
    "back-dated prediction with new hashes": (
        lambda f: shift_written(f, -24 * HOUR),
        "after its inputs, and s/e ended later",
    ),
    "prediction after the first step": (
        lambda f: shift_written(f, HOUR),
        "after the prediction, and prediction.json was written later",
    ),
    "back-dated entry of the log": (
        lambda f: edit_log(f, 0, time="2025-12-31T00:00:00+00:00"),
        "line 2 differs from its hash, or follows another",
    ),
    "edited entry of the log": (
        lambda f: (f / prediction_log.FILE).write_text(
            (f / prediction_log.FILE).read_text().replace('"attempts": 1', '"attempts": 2')
        ),
        "line 2 differs from its hash",
    ),
    "removed entry of the log": (
        lambda f: drop_line(f / prediction_log.FILE, 0),
        "line 1 differs from its hash, or follows another",
    ),
    "deleted log": (
        lambda f: (f / prediction_log.FILE).unlink(),
        "predictions.jsonl is missing",
    ),
    "edited hash in the first step": (
        lambda f: edit_row(f / "target" / "events.jsonl", 0, prediction="0" * 64),
        "predictions.jsonl records another hash, time or step",
    ),
    "edited hash of the entry in the first step": (
        lambda f: edit_row(f / "target" / "events.jsonl", 0, entry="0" * 64),
        "predictions.jsonl records another hash, time or step",
    ),
    "edited event time": (
        lambda f: edit_row(f / "target" / "events.jsonl", 0, time="2026-01-01T00:00:01+00:00"),
        "predictions.jsonl records another hash, time or step",
    ),
    "hash recorded after the first step": (
        lambda f: edit_row(f / "target" / "events.jsonl", 0, step=10),
        "predictions.jsonl records another hash, time or step",
    ),
    "removed hash of the first step": (
        lambda f: (f / "target" / "events.jsonl").unlink(),
        "records of an earlier start were removed",
    ),
    "deleted target": (
        lambda f: shutil.rmtree(f / "target"),
        "s/target has no records, and predictions.jsonl has its result",
    ),
    "target trained twice": (
        lambda f: train_again(f, -0.1),
        "records 2 starts of s/target",
    ),
    "target of a copied sweep": (exchange_target, "predictions.jsonl records another hash"),
    "edited final row of the target": (
        lambda f: edit_row(f / "target" / "evals.jsonl", 3, loss=1.9),
        "heldout.npz gives another loss",
    ),
    "edited training losses of the target": (
        lambda f: edit_row(f / "target" / "metrics.jsonl", 3, loss=1.9),
        "s/target/metrics.jsonl, and predictions.jsonl has another hash",
    ),
    "changed config of the target": (
        lambda f: edit_config(f / "target", seed=7),
        "s/target/config.json, and prediction.json has another hash",
    ),
    "changed number of tokens": (
        lambda f: records.write_facts(f / "target", tokens=10**6),
        "tokens=1000000, config.json gives",
    ),
    "changed steps of the target": (
        lambda f: edit_config(f / "target", steps=40),
        "config.json gives",
    ),
    "edited start of the target": (
        lambda f: records.write_facts(f / "target", started="2025-12-31T00:00:00+00:00"),
        "s/target started at 2025-12-31",
    ),
    "damaged prediction": (
        lambda f: (f / PREDICTION).write_text((f / PREDICTION).read_text().replace("0", "1", 1)),
        "prediction.json is damaged",
    ),
}


@pytest.mark.parametrize("kind", TAMPERINGS)
def test_tampering_contradicts_a_named_file(kind, folder):
    tamper, expected = TAMPERINGS[kind]
    tamper(folder)
    texts = contradictions(folder)
    assert any(expected in text for text in texts), texts


def test_intact_chain_is_verified_with_its_fit(folder):
    links = prediction_audit.audit_prediction(folder)
    assert {link.status for link in links} == {prediction_chain.VERIFIED}
    text = "\n".join(prediction_audit.format_links(links))
    for part in ("s/a-0: ", "s/e: ", "heldout", "events.jsonl has the hash", "fitted again"):
        assert part in text
    assert len(links) >= 15


def test_interval_with_new_hashes_contradicts_the_fit(folder):
    value = json_files.read_record(folder / PREDICTION)["value"]
    predicted_sweep.rewrite_prediction(folder, value=value + 0.01)
    assert not contradictions(folder)
    (text,) = contradictions(folder, should_refit=True)
    assert text.startswith("the law of size, fitted again, differs from prediction.json: value=")


def test_draws_with_new_hashes_contradict_the_fit(folder):
    draws = json_files.read_record(folder / PREDICTION)["draws"] | {"sha256": "0" * 64}
    predicted_sweep.rewrite_prediction(folder, draws=draws)
    (text,) = contradictions(folder, should_refit=True)
    assert "the draws of the law of size differ from their hash" in text


def test_prediction_of_other_code_is_not_verifiable(folder, monkeypatch):
    """Another version of the code may give another interval, which is no contradiction."""
    monkeypatch.setattr(provenance, "code_hash", lambda module: "0.3.0 11111111")
    predicted_sweep.rewrite_prediction(folder, hi=2.9)
    assert not contradictions(folder, should_refit=True)
    texts = audit(folder, prediction_chain.UNVERIFIABLE, should_refit=True)
    assert any("written by code 0.2.0 00000000, this is 0.3.0 11111111" in t for t in texts)
    assert any("fitted again, differs from prediction.json: hi=2.9" in t for t in texts)


def test_consistent_rewrite_changes_only_the_published_hash(folder):
    """Nobody can detect new files that agree with each other, except by a published hash."""
    published = prediction_audit.prediction_sha256(folder)
    predicted_sweep.rewrite_prediction(folder, level=0.9)
    assert not contradictions(folder)
    assert prediction_audit.prediction_sha256(folder) != published


def test_later_evaluation_of_a_fitted_run_is_no_tampering(folder):
    records.extend_evals(folder / "b", verified_sweep.STEPS, {"task.copy.accuracy": 0.5})
    assert not contradictions(folder)


def test_mark_of_a_task_is_no_tampering(folder):
    records.write_facts(folder / "b", invalid_results={"task.copy": "wrong"})
    assert not contradictions(folder)


@pytest.mark.parametrize("name", ["inputs", "candidates", "members", "code", "joint", "written"])
def test_invalid_entry_of_a_prediction_is_a_contradiction(name, folder):
    for value in (7, ["a"], None):
        predicted_sweep.rewrite_prediction(folder, **{name: value})
        assert contradictions(folder)


def test_invalid_lines_of_the_log_are_contradictions(folder):
    file = folder / prediction_log.FILE
    for line in ("{}", "[1]", "#", '{"kind": "result", "target": "s/target", "records": 7}'):
        file.write_text(f"{line}\n")
        assert contradictions(folder)


def test_moved_and_renamed_sweep_is_verified(folder):
    moved = shutil.move(folder, folder.parent / "elsewhere" / "s")
    assert not contradictions(moved)


def test_run_that_is_added_later_is_no_tampering(folder):
    run = predicted_sweep.make_run(folder.parent, "s/f", 10)
    predicted_sweep.write_records(run)  # ends now, after the prediction of the fixture
    names = json_files.read_record(folder / "sweep.json")["runs"]
    edit_record(folder / "sweep.json", runs=[*names, "s/f"])
    assert not contradictions(folder)


def predict_with_a_failed_candidate(tmp_path, monkeypatch) -> tuple[list, pathlib.Path]:
    """Predict the last run of a sweep in which run e has failed. Return the runs and the folder."""
    monkeypatch.setattr(records, "current_time", predicted_sweep.Clock())
    runs, folder = predicted_sweep.make_runs(tmp_path), tmp_path / "s"
    for run in runs[:-1]:
        predicted_sweep.write_records(run)
    json_files.write_record(folder / "sweep.json", {"runs": [run.name for run in runs]})
    records.write_facts(folder / "e", status="failed", ends_at=None, ended=None)
    prediction.write_prediction(runs, folder)
    return runs, folder


def test_retried_candidate_is_no_tampering(tmp_path, monkeypatch):
    """A run that had failed before the prediction is finished after it."""
    runs, folder = predict_with_a_failed_candidate(tmp_path, monkeypatch)
    stored = json_files.read_record(folder / PREDICTION)
    assert stored["unfinished"] == ["s/e"] and "s/e" not in {*stored["inputs"], *stored["runs"]}
    predicted_sweep.write_records(runs[-2])
    predicted_sweep.write_records(runs[-1])
    prediction.register_result(runs, folder)
    assert not contradictions(folder, should_refit=True)
    texts = audit(folder, prediction_chain.VERIFIED)
    assert any("which does not use the unfinished runs s/e" in text for text in texts)


def test_retry_of_an_input_without_result_is_no_tampering(tmp_path, monkeypatch):
    """Earlier versions stored the hashes of unfinished candidates among the inputs."""
    runs, folder = predict_with_a_failed_candidate(tmp_path, monkeypatch)
    stored = json_files.read_record(folder / PREDICTION)
    values = stored["inputs"]["s/d"]["values"] | {"eval.loss": None}
    hashes = prediction_log.hash_records(folder / "e")
    stored["inputs"]["s/e"] = {"records": hashes, "values": values}
    del stored["unfinished"], stored["format_version"]
    json_files.write_record(folder / PREDICTION, stored)
    (folder / "predictions.jsonl").unlink()
    (folder / "target" / "events.jsonl").unlink()
    prediction_log.register_prediction(folder, folder / "target", stored)
    predicted_sweep.write_records(runs[-2])
    predicted_sweep.write_records(runs[-1])
    prediction.register_result(runs, folder)
    assert not contradictions(folder, should_refit=True)
    # A run that had ended was a result that the prediction must use.
    records.write_facts(folder / "e", ended="2026-01-01T00:01:00+00:00")
    assert any("s/e" in text for text in contradictions(folder))


def test_prediction_of_an_earlier_version_is_not_verifiable(tmp_path):
    old = made_up_sweep.sweep(tmp_path)
    assert not contradictions(old, should_refit=True)
    texts = audit(old, prediction_chain.UNVERIFIABLE)
    assert any(
        "prediction.json: the entry inputs is missing or invalid: an earlier version" in t
        for t in texts
    )


def test_sweep_without_prediction_is_not_verifiable(tmp_path):
    old = made_up_sweep.sweep(tmp_path, predict=False)
    (text,) = audit(old, prediction_chain.UNVERIFIABLE)
    assert text.endswith("has no prediction.json")


def test_archive_is_not_verifiable_beyond_its_digits(folder, tmp_path):
    archive.archive_sweep(folder, tmp_path / "archive" / "s")
    archived = tmp_path / "archive" / "s"
    assert not contradictions(archived, should_refit=True)
    texts = audit(archived, prediction_chain.UNVERIFIABLE)
    assert any("metrics.jsonl" in text and "rounded in an archive" in text for text in texts)
    sha256 = prediction_audit.prediction_sha256(archived)
    assert sha256 == prediction_audit.prediction_sha256(folder)
    shutil.rmtree(archived / "target")  # as if the sweep had been archived before its start
    drop_line(archived / prediction_log.FILE, 1)
    assert not contradictions(archived)
    edit_row(archived / "b" / "evals.jsonl", 3, loss=1.9)
    assert any("s/b: eval.loss=1.9" in text for text in contradictions(archived))


@pytest.mark.parametrize(
    "name",
    [
        *(PREDICTION, prediction_log.FILE, "sweep.json"),
        *(f"target/{file}" for file in archive.RUN_FILES),
        *("b/config.json", "b/facts.json", "b/metrics.jsonl", "b/evals.jsonl"),
    ],
)
def test_truncated_file_is_a_contradiction(name, folder):
    content = (folder / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\xff\x00"):
        (folder / name).write_bytes(damaged)
        assert contradictions(folder), damaged


def test_tag_command_publishes_the_hash(tmp_path):
    """The remote repository has the tag and its time."""
    user = "-c user.name=a -c user.email=a@b"
    for command in (
        *(
            "git init -q --bare origin",
            "git init -q work",
            "git -C work remote add origin ../origin",
        ),
        f"git -C work {user} commit -q --allow-empty -m x",
        "cd work && git config user.name a && git config user.email a@b",
        f"cd work && {prediction_audit.format_tag_command('0' * 64)}",
    ):
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, capture_output=True)
    arguments = ["git", "-C", str(tmp_path / "origin"), "cat-file", "-t", f"prediction-{'0' * 64}"]
    assert subprocess.run(arguments, capture_output=True, text=True).stdout == "tag\n"


def test_laws_that_differ_are_counted_and_only_the_first_is_named():
    interval = {"value": 2.0, "lo": 1.9, "hi": 2.1}
    stored = {f"eval.loss.{i}": interval for i in range(80)}
    one = stored | {"eval.loss.7": interval | {"lo": 1.0}}
    all_laws = {name: interval | {"hi": 2.2} for name in stored}
    for repeated, words in ((all_laws, "eval.loss.0 and 79 more"), (one, "eval.loss.7")):
        old, new = ({target_prediction.SOURCE_LOSSES: value} for value in (stored, repeated))
        (link,) = repeated_fit._verify_source_losses(old, new, True)
        assert link.text.endswith(f"differ from prediction.json in {words}")
