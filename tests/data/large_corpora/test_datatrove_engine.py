"""Datatrove gives the corpus of the built-in preparation. Its tests need the extra datatrove."""

import json
import os
import stat
import types
from pathlib import Path

import numpy as np
import pytest
from fixtures import commands
from fixtures.text_corpora import assert_equal_corpora, data_config, read_split, write_documents

from lm.data import corpus, tokenizers
from lm.data.large_corpora import datatrove_engine, task_records

TEXTS = [f"Document {i}: häppy " + "word " * (i % 30) for i in range(200)]
ENGINE = datatrove_engine.DatatroveEngine(n_tasks=3)


def needs_datatrove():
    pytest.importorskip("datatrove", reason="needs the extra datatrove")


def write_files(folder: Path) -> str:
    """Write four files with equal documents, blank ones and short ones, and return the source."""
    for i, name in enumerate("abcd"):
        texts = [f"{text} of {name}" for text in TEXTS[i * 50 : (i + 1) * 50]]
        write_documents(folder / f"{name}.jsonl", [*texts, *TEXTS[:10], "", "   "])
    return f"jsonl:{folder}/?.jsonl"


@pytest.mark.parametrize(
    "changes", [{"min_words": 5}, {"tokenizer": "bpe:300", "on_error": "skip"}]
)
def test_local_tasks_give_the_builtin_corpus(tmp_path, changes):
    needs_datatrove()
    source = write_files(tmp_path)
    if "on_error" in changes:
        with open(tmp_path / "c.jsonl", "a") as file:
            file.write("{broken\n")
    expected = corpus.prepare_corpus(data_config(tmp_path / "1", source, **changes))[source]
    data = data_config(tmp_path / "2", source, **changes)
    manifest = corpus.prepare_corpus(data, engine=ENGINE)[source]
    assert_equal_corpora(manifest, expected)
    assert manifest.dropped and manifest.duplicates == 30
    assert not list(Path(data.cache_dir).glob("datatrove-*"))
    assert corpus.prepare_corpus(data)[source] == manifest


def test_completed_tasks_are_not_repeated(tmp_path):
    needs_datatrove()
    source = write_files(tmp_path)
    path = tmp_path / "d.jsonl"
    text = path.read_text()
    path.write_text(text + "{")
    data = data_config(tmp_path, source)
    with pytest.raises(ValueError, match="d.jsonl line 63: is not JSON"):
        corpus.prepare_corpus(data, engine=ENGINE)
    (folder,) = Path(data.cache_dir).glob("datatrove-*")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("task-*.records")}
    assert len(times) == 2
    with pytest.raises(ValueError, match="d.jsonl line 63: is not JSON"):
        corpus.prepare_corpus(data, engine=ENGINE)
    assert times == {path: path.stat().st_mtime_ns for path in folder.glob("task-*.records")}


def test_filters_of_datatrove_drop_documents_by_name(tmp_path):
    needs_datatrove()
    pytest.importorskip("spacy", reason="filters of datatrove divide words by spacy")
    good = "The quick fox and the dog have to be with that of another one today. " * 5
    rng = np.random.default_rng(0)
    words = ["the", "and", "fox", "dog", "quick", "house", "river", "walks", "over", "that"]
    texts = [" ".join(rng.choice(words, 80)) + "." for _ in range(20)]
    near_copies = [f"{text} Again." for text in texts[:5]]
    source = write_documents(tmp_path / "a.jsonl", [*texts, *near_copies, "too short", good[:40]])
    data = data_config(tmp_path, source, quality_filters="gopher_quality,minhash")
    with pytest.raises(ValueError, match="needs datatrove: start experiments.prepare --engine=dat"):
        corpus.prepare_corpus(data)
    manifest = corpus.prepare_corpus(data, engine=ENGINE)[source]
    assert manifest.dropped == {"gopher_quality": 2, "near_copy": 5}
    kept = {*read_split(manifest, "train"), *read_split(manifest, "heldout")}
    assert len(kept) == 20
    assert corpus.prepare_corpus(data)[source] == manifest


def test_slurm_script_is_submitted_once_per_stage(tmp_path, monkeypatch):
    needs_datatrove()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    log = tmp_path / "scripts"
    sbatch.write_text(f'#!/bin/sh\ncat "${{@: -1}}" >> {log}\necho "$@" >> {log}\necho job 7\n')
    sbatch.write_text(sbatch.read_text().replace("/bin/sh", "/bin/bash"))
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    source = write_files(tmp_path)
    engine = datatrove_engine.DatatroveEngine(
        "slurm", n_tasks=2, n_workers=8, slurm="--partition=cpu --time=1:00:00 --account=me"
    )
    data = data_config(tmp_path, source)
    with pytest.raises(datatrove_engine.TasksSubmitted, match="2 of 2 tasks are not complete: rep"):
        corpus.prepare_corpus(data, engine=engine)
    script = log.read_text()
    for line in ("--partition=cpu", "--time=1:00:00", "--account=me", "--array=0-1%8"):
        assert f"#SBATCH {line}" in script
    assert "launch_pickled_pipeline" in script and "PYTHONPATH=" in script
    (folder,) = Path(data.cache_dir).glob("datatrove-*")
    monkeypatch.setenv("SLURM_NODELIST", "node1")
    (sbatch.parent / "scontrol").write_text("#!/bin/sh\necho node1\n")
    (sbatch.parent / "scontrol").chmod(0o755)
    for rank in range(2):
        run_task(folder / "encode" / "executor.pik", rank, monkeypatch)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    manifest = corpus.prepare_corpus(data, engine=engine)[source]
    expected = corpus.prepare_corpus(data_config(tmp_path / "2", source))[source]
    assert_equal_corpora(manifest, expected)


def run_task(pickled: Path, rank: int, monkeypatch) -> None:
    """Run a task as the script of SLURM does."""
    import dill

    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(rank))
    with open(pickled, "rb") as file:
        dill.load(file).run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--time=1:00:00", "lacks --partition=..."),
        ("-p cpu", "'-p' must have the form --NAME=VALUE"),
        ("--partition=cpu --time=1:00 --cpus-per-task=x", "must be a whole number"),
    ],
)
def test_incomplete_slurm_options_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        datatrove_engine.parse_slurm_options(text)


def test_unsupported_fields_are_refused(tmp_path):
    for changes, message in (
        ({"drop_near_duplicates": True}, "set data.quality_filters=minhash"),
        ({"decontaminate_ngram": 13}, "data.decontaminate_ngram=13 needs --engine=builtin"),
        ({"quality_filters": "gopher"}, "'gopher' is not one of gopher_quality, gopher_rep"),
    ):
        data = data_config(tmp_path, write_files(tmp_path), **changes)
        with pytest.raises(ValueError, match=message):
            corpus.prepare_corpus(data, engine=ENGINE)


def test_damaged_records_are_refused(tmp_path):
    from lm.data import preprocessing, splits
    from lm.data.sources import readers

    documents = [readers.Document(f"text {i}", f"a {i}") for i in range(9)]
    arguments = tokenizers.ByteTokenizer(), data_config(tmp_path), splits.Split(0.2)
    encoded = preprocessing.encode_chunk(documents, *arguments)
    path = tmp_path / "task-00000.records"
    with task_records.RecordWriter(path) as writer:
        writer.write(encoded)
        writer.write(encoded[:2])
    assert list(task_records.read_records(path)) == [*encoded, *encoded[:2]]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="is damaged: delete"):
        list(task_records.read_records(path))


@pytest.fixture
def cluster(monkeypatch) -> list[str]:
    """Replace datatrove by a cluster that never runs its tasks. Return the submitted sources."""
    submitted: list[str] = []

    def build_stages(self, request, n_tasks):
        return types.SimpleNamespace(run=lambda: submitted.append(request.source))

    monkeypatch.setattr(datatrove_engine.DatatroveEngine, "_build_stages", build_stages)
    return submitted


def test_number_of_tasks_of_an_interrupted_call_is_required(tmp_path, cluster):
    data = data_config(tmp_path, write_files(tmp_path))
    for _ in range(2):
        with pytest.raises(datatrove_engine.TasksSubmitted, match="3 of 3 tasks"):
            corpus.prepare_corpus(data, engine=ENGINE)
    with pytest.raises(ValueError, match="has 4 tasks, but .* files of 3 tasks: use --num_tasks=3"):
        corpus.prepare_corpus(data, engine=datatrove_engine.DatatroveEngine())
    assert len(cluster) == 2


def test_tasks_of_all_sources_are_submitted(tmp_path, cluster):
    sources = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sources.append(write_files(tmp_path / name))
    (tmp_path / "base.py").write_text("from configs.base import get_config\n")
    result = commands.run_command(
        tmp_path,
        "prepare",
        "--config=base.py:100K",
        "--config.data.tokenizer=bytes",
        "--engine=datatrove",
        f"--sources={json.dumps(dict.fromkeys(sources, 1))}",
        "--executor=slurm",
    )
    assert result.returncode == 0, result.stderr
    assert cluster == sources
    for source in sources:
        assert f"{source}: 4 of 4 tasks are not complete" in result.stdout
