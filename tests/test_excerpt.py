"""Archive of a sweep: small, portable, and equivalent for analysis."""

import json
import pathlib

import made_up
import pytest

from lm import excerpt, laws, outcome, records

WHERE = "/home/somebody/text"


@pytest.fixture
def sweep(tmp_path) -> pathlib.Path:
    """A finished sweep with absolute paths in its records and with weights."""
    folder = made_up.sweep(tmp_path / "runs")
    for size in made_up.SIZES:
        run = folder / size
        config = records.read_json(run / "config.json")
        sources = {f"jsonl:{WHERE}/{name}/*.gz": 0.5 for name in ("wiki", "books")}
        config["data"] |= {"sources": sources, "cache": "../cache", "tokenizer": "~/bpe.json"}
        config["eval"]["tasks"] = f"copy?length=4 file:{WHERE}/tasks/piqa?n=9"
        records.write_json(run / "config.json", config | {"dir": "gs://bucket/somebody/out"})
        records.write_facts(run, host="vm", **{f"epochs.jsonl:{WHERE}/wiki/*.gz": 0.5})
        row = records.evals(run)[-1] | {f"loss.jsonl:{WHERE}/wiki/*.gz": 2.0 + 1e-10}
        records.append(run / "evals.jsonl", row | {f"task.file:{WHERE}/tasks/piqa?n=9.accuracy": 1})
        records.event(run, 1, 10, "damaged", f"checkpoint 10 of {WHERE}/runs/x is damaged")
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "weights").write_bytes(bytes(1000))
        (run / "tokenizer.json").write_text("{}")
    facts = records.read_json(folder / "sweep.json")
    facts["command"] += f":{WHERE},../tasks --dir={WHERE}/runs"
    records.write_json(folder / "sweep.json", facts)
    return folder


def texts(folder) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_archive_gives_the_same_rows_fits_and_headline(sweep, tmp_path):
    archive = tmp_path / "kept" / "toy"
    assert excerpt.write(sweep, archive) == sum(map(len, texts(archive).values()))
    old, new = records.rows(sweep), records.rows(archive)
    for before, after in zip(old, new, strict=True):
        numbers = {key: value for key, value in before.items() if isinstance(value, (int, float))}
        for key in [key for key in numbers if WHERE not in key]:
            assert after[key] == pytest.approx(numbers[key], rel=1e-6), key
        assert (after["name"], after["status"]) == (before["name"], before["status"])
    fits = [laws.power(rows, bootstrap=0).params for rows in (old, new)]
    assert fits[1] == pytest.approx(fits[0], rel=1e-4)
    assert outcome.headline(outcome.load(archive)) == outcome.headline(outcome.load(sweep))


def test_archive_has_no_machine_paths_and_no_weights(sweep, tmp_path):
    archive = tmp_path / "toy"
    excerpt.write(sweep, archive)
    files = texts(archive)
    for word in ("somebody", "/home", "~", "..", "bucket", '"host"'):
        assert not [name for name, text in files.items() if word in text], word
    assert {pathlib.Path(name).name for name in files} <= {*excerpt.OF_SWEEP, *excerpt.OF_RUN}
    config = records.read_json(archive / "30K" / "config.json")
    assert config["data"]["sources"] == {"jsonl:wiki/*.gz": 0.5, "jsonl:books/*.gz": 0.5}
    assert config["eval"]["tasks"] == "copy?length=4 file:piqa?n=9"
    assert (config["dir"], config["data"]["cache"]) == ("out", "cache")
    row = records.rows(archive)[0]
    assert row["eval.loss.jsonl:wiki/*.gz"] == 2.0 and row["epochs.jsonl:wiki/*.gz"] == 0.5
    assert row["eval.task.file:piqa?n=9.accuracy"] == 1
    assert records.events(archive / "30K")[0]["words"] == "checkpoint 10 of x is damaged"
    assert ":text,tasks --dir=runs" in records.read_json(archive / "sweep.json")["command"]


def test_folders_with_the_same_name_are_numbered():
    paths = {"/a/old/wiki", "/a/old/wiki/", "/a/new/wiki", "/a/x/*.gz", "/home/me"}
    names = excerpt._shortened(paths)
    assert (names["/a/new/wiki"], names["/a/old/wiki"]) == ("wiki", "wiki-2")
    assert names["/a/old/wiki/"] == "wiki-2"
    assert (names["/a/x/*.gz"], names["/home/me"]) == ("x/*.gz", "home")


@pytest.mark.parametrize(
    "example", ["a/b.txt", "text:my/books", "3/4 of tokens/s", "copy+sort?n=1-3"]
)
def test_paths_inside_the_repository_are_unchanged(example):
    assert not excerpt._outside(example)


def test_archive_is_idempotent_and_drops_deleted_runs(sweep, tmp_path):
    first, second = tmp_path / "first" / "toy", tmp_path / "second" / "toy"
    excerpt.write(sweep, first)
    before = texts(first)
    excerpt.write(sweep, first)
    excerpt.write(first, second)
    assert texts(first) == texts(second) == before
    (first / "figures").mkdir()
    (first / "figures" / "loss.svg").write_text("drawn")
    for file in (sweep / "30K").glob("*.json*"):
        file.unlink()
    excerpt.write(sweep, first)
    assert set(before) - set(texts(first)) == {name for name in before if name.startswith("30K")}
    assert (first / "figures" / "loss.svg").exists()


def test_log_steps_are_thinned_to_fit_the_size_limit(sweep, tmp_path):
    archive = tmp_path / "toy"
    n_bytes = excerpt.write(sweep, archive)
    n = len(records.metrics(archive / "30K"))
    assert excerpt.write(sweep, archive, megabytes=n_bytes / 2e6) < n_bytes / 2
    old, new = records.metrics(sweep / "30K"), records.metrics(archive / "30K")
    assert len(new) < n and (old[0]["step"], old[-1]["step"]) == (new[0]["step"], new[-1]["step"])
    before = texts(archive)
    with pytest.raises(ValueError, match="--megabytes=0.01 is too small: .* Raise it"):
        excerpt.write(sweep, archive, megabytes=0.01)
    assert texts(archive) == before


def test_folder_with_other_files_is_not_overwritten(sweep, tmp_path):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("words")
    with pytest.raises(ValueError, match="thesis.tex, which is not a sweep record"):
        excerpt.write(sweep, other)
    for to in (sweep, sweep / "kept", sweep.parent):
        with pytest.raises(ValueError, match="must lie outside"):
            excerpt.write(sweep, to)
    with pytest.raises(ValueError, match="holds no runs"):
        excerpt.write(other, tmp_path / "new")


def test_killed_run_is_archived_without_its_torn_line(tmp_path):
    folder = made_up.sweep(tmp_path, status={"60K": ("running", "")}, predict=False)
    with open(folder / "60K" / "metrics.jsonl", "a") as file:
        file.write('{"attempt": 1, "st')
    archive = tmp_path / "kept" / "toy"
    excerpt.write(folder, archive)
    assert {row["name"]: row["status"] for row in records.rows(archive)}["toy/60K"] == "lost"
    lines = (archive / "60K" / "metrics.jsonl").read_text().split("\n")[:-1]
    assert all(json.loads(line) for line in lines)


def test_committed_ladder_is_complete_small_and_portable():
    archive = pathlib.Path(__file__).parent.parent / "notebooks" / "data" / "real_ladder"
    files = {n: text for n, text in texts(archive).items() if not n.startswith(excerpt.DRAWN)}
    assert sum(len(text.encode()) for text in files.values()) <= 1.5e6
    assert not [name for name, text in files.items() if excerpt._outside(text)]
    facts, prediction = (json.loads(files[n]) for n in ("sweep.json", "prediction.json"))
    rows = records.rows(archive)
    assert {row["name"] for row in rows} == set(facts["runs"]) and len(rows) >= 30
    assert {row["status"] for row in rows} == {"done"}
    assert prediction["target"] not in prediction["runs"] and prediction["value"] > 0
