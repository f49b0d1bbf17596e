"""Archive of a sweep: small, portable, and equivalent for analysis."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from fixtures import made_up_sweep, verified_sweep

from lm.data import heldout_documents
from lm.laws.forms import power_laws
from lm.reports import paired_errors, summary
from lm.runs import archive, json_files, records
from lm.runs.integrity import run_notes

TEXT_DIR = "/home/somebody/text"  # a path that an archive must not contain


@pytest.fixture
def sweep(tmp_path) -> pathlib.Path:
    """Write a finished sweep with absolute paths in its records and with weights."""
    folder = made_up_sweep.sweep(tmp_path / "runs")
    for size in made_up_sweep.SIZES:
        run = folder / size
        config = json_files.read_object(run / "config.json")
        sources = {f"jsonl:{TEXT_DIR}/{name}/*.gz": 0.5 for name in ("wiki", "books")}
        config["data"] |= {"sources": sources, "cache_dir": "../cache", "tokenizer": "~/bpe.json"}
        config["eval"]["tasks"] = f"copy?length=4 file:{TEXT_DIR}/tasks/piqa?n=9"
        json_files.write_object(run / "config.json", config | {"dir": "gs://bucket/somebody/out"})
        records.write_facts(run, host="vm", **{f"epochs.jsonl:{TEXT_DIR}/wiki/*.gz": 0.5})
        row = records.load_evals(run)[-1] | {f"loss.jsonl:{TEXT_DIR}/wiki/*.gz": 2.0 + 1e-10}
        records.append_record(
            run / "evals.jsonl", row | {f"task.file:{TEXT_DIR}/tasks/piqa?n=9.accuracy": 1}
        )
        records.log_event(run, 1, 10, "damaged", f"checkpoint 10 of {TEXT_DIR}/runs/x is damaged")
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "weights").write_bytes(bytes(1000))
        (run / "tokenizer.json").write_text("{}")
    facts = json_files.read_object(folder / "sweep.json")
    facts["command"] += f":{TEXT_DIR},../tasks --dir={TEXT_DIR}/runs"
    json_files.write_object(folder / "sweep.json", facts)
    return folder


def texts(folder) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_archive_gives_the_same_rows_fits_and_headline(sweep, tmp_path):
    archive_dir = tmp_path / "archive" / "toy"
    assert archive.archive_sweep(sweep, archive_dir) == sum(map(len, texts(archive_dir).values()))
    old, new = records.load_runs(sweep), records.load_runs(archive_dir)
    for before, after in zip(old, new, strict=True):
        numbers = {key: value for key, value in before.items() if isinstance(value, (int, float))}
        for key in [key for key in numbers if TEXT_DIR not in key]:
            assert after[key] == pytest.approx(numbers[key], rel=1e-6), key
        assert (after["name"], after["status"]) == (before["name"], before["status"])
    fits = [power_laws.power(rows, bootstrap=0).params for rows in (old, new)]
    assert fits[1] == pytest.approx(fits[0], rel=1e-4)
    assert summary.headline(summary.load_summary(archive_dir)) == summary.headline(
        summary.load_summary(sweep)
    )


def test_archive_has_no_machine_paths_and_no_weights(sweep, tmp_path):
    archive_dir = tmp_path / "toy"
    archive.archive_sweep(sweep, archive_dir)
    files = texts(archive_dir)
    for fragment in ("somebody", "/home", "~", "..", "bucket", '"host"'):
        assert not [name for name, text in files.items() if fragment in text], fragment
    assert {pathlib.Path(name).name for name in files} <= {
        *archive.SWEEP_FILES,
        *archive.RUN_FILES,
    }
    config = json_files.read_object(archive_dir / "30K" / "config.json")
    assert config["data"]["sources"] == {"jsonl:wiki/*.gz": 0.5, "jsonl:books/*.gz": 0.5}
    assert config["eval"]["tasks"] == "copy?length=4 file:piqa?n=9"
    assert (config["dir"], config["data"]["cache_dir"]) == ("out", "cache")
    row = records.load_runs(archive_dir)[0]
    assert row["eval.loss.jsonl:wiki/*.gz"] == 2.0 and row["epochs.jsonl:wiki/*.gz"] == 0.5
    assert row["eval.task.file:piqa?n=9.accuracy"] == 1
    assert records.load_events(archive_dir / "30K")[0]["words"] == "checkpoint 10 of x is damaged"
    assert ":text,tasks --dir=runs" in json_files.read_object(archive_dir / "sweep.json")["command"]


def test_paths_with_the_same_end_have_one_more_folder_or_a_number(monkeypatch):
    monkeypatch.setenv("HOME", "/scratch/alice")
    paths = {"/a/old/wiki", "/a/old/wiki/", "/a/new/wiki", "/a/x/*.gz", "/home/me", "/home/me/b/x"}
    paths |= {"/home/you/b/x", "/one/c/d.txt", "/two/c/d.txt", "/scratch/alice/t", "/s/t"}
    names = archive._short_names(paths)
    assert (names["/a/new/wiki"], names["/a/old/wiki"]) == ("new/wiki", "old/wiki")
    assert names["/a/old/wiki/"] == "old/wiki"
    assert (names["/a/x/*.gz"], names["/home/me"]) == ("x/*.gz", "home")
    assert names["/home/me/b/x"] == names["/home/you/b/x"] == "x"  # never the name of a user
    assert (names["/one/c/d.txt"], names["/two/c/d.txt"]) == ("d.txt", "d.txt-2")
    assert names["/scratch/alice/t"] == "home/t"


@pytest.mark.parametrize(
    "example", ["a/b.txt", "text:my/books", "3/4 of tokens/s", "copy+sort?n=1-3"]
)
def test_paths_inside_the_repository_are_unchanged(example):
    assert not archive._outside_paths(example)


def test_archive_is_idempotent_and_drops_deleted_runs(sweep, tmp_path):
    first, second = tmp_path / "first" / "toy", tmp_path / "second" / "toy"
    archive.archive_sweep(sweep, first)
    before = texts(first)
    archive.archive_sweep(sweep, first)
    archive.archive_sweep(first, second)
    assert texts(first) == texts(second) == before
    (first / "figures").mkdir()
    (first / "figures" / "loss.svg").write_text("<svg/>")
    for file in (sweep / "30K").glob("*.json*"):
        file.unlink()
    archive.archive_sweep(sweep, first)
    assert set(before) - set(texts(first)) == {name for name in before if name.startswith("30K")}
    assert (first / "figures" / "loss.svg").exists()


def test_smallest_archive_has_the_results_without_log_steps(sweep, tmp_path):
    first, second = tmp_path / "large", tmp_path / "small"
    n_bytes = archive.archive_sweep(sweep, first)
    files = [f for f in first.rglob("*.json*") if f.name != "metrics.jsonl"]
    limit = sum(file.stat().st_size for file in files)
    assert archive.archive_sweep(sweep, second, megabytes=limit / 1e6) < n_bytes
    assert not list(second.glob("*/metrics.jsonl")) and not list(second.glob("*/heldout.npz"))
    rows, same = records.load_runs(first), records.load_runs(second)
    assert [row | {"dir": ""} for row in rows] == [row | {"dir": ""} for row in same]


def test_log_steps_are_thinned_to_fit_the_size_limit(sweep, tmp_path):
    archive_dir = tmp_path / "toy"
    n_bytes = archive.archive_sweep(sweep, archive_dir)
    n = len(records.load_metrics(archive_dir / "30K"))
    assert archive.archive_sweep(sweep, archive_dir, megabytes=n_bytes / 2e6) < n_bytes / 2
    old, new = records.load_metrics(sweep / "30K"), records.load_metrics(archive_dir / "30K")
    assert len(new) < n and (old[0]["step"], old[-1]["step"]) == (new[0]["step"], new[-1]["step"])
    before = texts(archive_dir)
    with pytest.raises(ValueError, match="--megabytes=0.01 is too small: .* Raise it"):
        archive.archive_sweep(sweep, archive_dir, megabytes=0.01)
    assert texts(archive_dir) == before


def test_folder_with_other_files_is_not_overwritten(sweep, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("text")
    with pytest.raises(ValueError, match="thesis.tex, which is not a sweep record"):
        archive.archive_sweep(sweep, other)
    for archive_dir in (sweep, sweep / "archive", sweep.parent):
        with pytest.raises(ValueError, match="must be outside"):
            archive.archive_sweep(sweep, archive_dir)
    with pytest.raises(ValueError, match="contains no runs"):
        archive.archive_sweep(other, tmp_path / "new")


def test_killed_run_is_archived_without_its_cut_line(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"60K": ("running", "")}, predict=False)
    with open(folder / "60K" / "metrics.jsonl", "a") as file:
        file.write('{"attempt": 1, "st')
    archive_dir = tmp_path / "archive" / "toy"
    archive.archive_sweep(folder, archive_dir)
    statuses = {row["name"]: row["status"] for row in records.load_runs(archive_dir)}
    assert statuses["toy/60K"] == "lost"
    lines = (archive_dir / "60K" / "metrics.jsonl").read_text().split("\n")[:-1]
    assert all(json.loads(line) for line in lines)


def test_committed_ladder_is_complete_small_and_portable():
    archive_dir = pathlib.Path(__file__).parent.parent.parent / "notebooks" / "data" / "real_ladder"
    files = {
        name: text
        for name, text in texts(archive_dir).items()
        if not name.startswith(archive.REPORT_FILES)
    }
    assert sum(len(text.encode()) for text in files.values()) <= 1.5e6
    assert not [name for name, text in files.items() if archive._outside_paths(text)]
    facts, prediction = (json.loads(files[name]) for name in ("sweep.json", "prediction.json"))
    rows = records.load_runs(archive_dir)
    assert {row["name"] for row in rows} == set(facts["runs"]) and len(rows) >= 30
    assert {row["status"] for row in rows} == {"done"}
    assert prediction["target"] not in prediction["runs"] and prediction["value"] > 0


def test_other_runs_are_not_archived_and_marks_are(sweep, tmp_path):
    folder = shutil.copytree(sweep, tmp_path / "toy")
    shutil.copytree(folder / "30K", folder / "tuned")
    config = json_files.read_object(folder / "tuned" / "config.json") | {"name": "toy/tuned"}
    json_files.write_object(folder / "tuned" / "config.json", config)
    records.write_facts(folder / "30K", invalid_results={"task.modular": "wrong"})
    archive.archive_sweep(folder, tmp_path / "archive")
    assert not (tmp_path / "archive" / "tuned").exists()
    assert "task.modular.accuracy" in (tmp_path / "archive/30K/evals.jsonl").read_text()
    row = next(r for r in records.load_runs(tmp_path / "archive") if r["name"] == "toy/30K")
    assert "eval.task.modular.accuracy" not in row and row["invalid_results"]


def test_archive_contains_the_losses_per_document(sweep, tmp_path):
    rows = records.load_runs(sweep)
    sources = [f"jsonl:{TEXT_DIR}/{name}/*.gz" for name in ("wiki", "books")]
    for i, row in enumerate(rows[:2]):
        nats = row["eval.loss"] * np.full(5, 10.0) + np.array([i, -i, 0, 0, 0])
        sums = dict.fromkeys(sources, (np.arange(5), nats, np.full(5, 10.0)))
        data = heldout_documents.encode_sums(dict.fromkeys(sources, 0.5), sums)
        (pathlib.Path(row["dir"]) / "heldout.npz").write_bytes(data)
    (pathlib.Path(rows[2]["dir"]) / "heldout.npz").write_bytes(b"damaged")
    for _ in range(2):  # An archive replaces its former files.
        with pytest.warns(UserWarning, match="heldout.npz is damaged and not archived"):
            archive.archive_sweep(sweep, tmp_path / "archive")
    archived = records.load_runs(tmp_path / "archive")
    files = sorted((tmp_path / "archive").rglob("heldout.npz"))
    assert len(files) == 2
    assert all(TEXT_DIR.encode() not in file.read_bytes() for file in files)
    expected = paired_errors.paired_difference([rows[0]], [rows[1]])
    assert expected
    assert paired_errors.paired_difference([archived[0]], [archived[1]]) == pytest.approx(expected)
    assert list(paired_errors.load_document_sums(archived[0])) == [
        "jsonl:wiki/*.gz",
        "jsonl:books/*.gz",
    ]


@pytest.mark.parametrize("damage", [b'{"attempt": 3, "st', b"#\n", b'{"attempt": 2, "step": 20}\n'])
def test_excluded_run_is_excluded_in_its_archive(damage, tmp_path):
    """A damaged line after the final row may have replaced it."""
    folder = verified_sweep.write_sweep(tmp_path)
    with open(folder / "a" / "evals.jsonl", "ab") as file:
        file.write(damage)
    archive.archive_sweep(folder, tmp_path / "archive" / "s")
    for source in (folder, tmp_path / "archive" / "s"):
        row = next(row for row in records.load_folder(source).rows if row["name"] == "s/a")
        assert "eval.loss" not in row and "may replace the final evaluation" in row["reason"]


def test_archive_has_the_notes_about_damaged_lines(tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    for name in archive.RUN_FILES[2:]:
        file = folder / "b" / name
        file.write_bytes(b"#\n" + file.read_bytes())
    archive.archive_sweep(folder, tmp_path / "archive" / "s")
    notes = [
        run_notes.folder_notes(records.load_folder(source))
        for source in (folder, tmp_path / "archive" / "s")
    ]
    assert len(notes[0]) == len(notes[1]) == 3
    assert all(": line 1 is damaged" in note for note in (*notes[0], *notes[1]))


def test_part_of_a_task_is_not_shortened():
    task = "task.pair:../shared/tasks/blimp#island_effects/wh_island.accuracy"
    (path,) = archive._outside_paths({task: 0.5})
    assert archive._replace_paths({task: 0.5}, archive._short_names({path})) == {
        "task.pair:blimp#island_effects/wh_island.accuracy": 0.5
    }


def test_long_evaluations_are_compressed_and_have_the_same_rows(sweep, tmp_path):
    run = sweep / "30K"
    row = records.load_evals(run)[-1]
    many = {f"task.long_name_of_a_task_{i}.accuracy": i / 3000 for i in range(1000)}
    records.append_record(run / "evals.jsonl", row | many)
    plain, compressed = (tmp_path / name for name in ("plain", "compressed"))
    archive.archive_sweep(sweep, compressed)
    names = {path.name for path in (compressed / "30K").iterdir()}
    assert "evals.jsonl.gz" in names and "evals.jsonl" not in names
    assert (compressed / "30K" / "evals.jsonl.gz").stat().st_size < 10_000
    (new,) = (row for row in records.load_runs(compressed) if row["name"].endswith("30K"))
    for name, value in many.items():
        assert new[f"eval.{name}"] == pytest.approx(value, rel=1e-6), name
    archive.archive_sweep(compressed, plain)  # an archive of an archive is equal
    assert records.load_evals(plain / "30K") == records.load_evals(compressed / "30K")
    file = compressed / "30K" / "evals.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-20])
    damage = records.load_folder(compressed).unreadable[compressed / "30K"]
    assert "evals.jsonl.gz is damaged" in damage and "restore it" in damage
