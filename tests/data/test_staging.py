"""An interrupted preparation leaves no incomplete corpus, resumes, and loses no document."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import text_corpora
from fixtures.damaged_files import damage_file
from fixtures.text_corpora import TEXTS, data_config, write_documents

from lm.data import corpus, preprocessing, staging
from lm.data.sources import documents, readers


@pytest.mark.parametrize("damage", ["manifest.json", "train.bin", "shorter", "longer"])
def test_incomplete_corpus_is_prepared_again(tmp_path, damage):
    data = data_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    first = corpus.prepare_corpus(data)[source]
    if damage == "shorter":
        os.truncate(Path(first.folder, "train.bin"), 100)
    elif damage == "longer":
        os.truncate(Path(first.folder, "heldout.bin"), 10**5)
    else:
        Path(first.folder, damage).unlink()
    second = corpus.prepare_corpus(data)[source]
    assert second == first
    for split in corpus.SPLITS:
        assert len(text_corpora.read_split(second, split)) == first.documents[split]


def test_call_interrupted_in_the_first_part_leaves_no_files(tmp_path, monkeypatch):
    def interrupted(source, start):
        yield from [documents.Document(text, "a") for text in TEXTS[:5]]
        raise KeyboardInterrupt

    data = data_config(tmp_path, write_documents(tmp_path / "a.jsonl", TEXTS))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(documents, "open_source", interrupted)
        corpus.prepare_corpus(data)
    assert list(Path(data.cache_dir).iterdir()) == []
    assert corpus.prepare_corpus(data)


def test_slower_of_two_simultaneous_calls_drops_its_copy(tmp_path, monkeypatch):
    """The second call starts and ends while the first call reads its documents."""
    data = data_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    open_source, second_results = documents.open_source, []

    def slow_open_source(name, start):
        all_documents = list(open_source(name))
        yield from all_documents[:100]
        monkeypatch.setattr(documents, "open_source", open_source)
        second_results.append(corpus.prepare_corpus(data))
        yield from all_documents[100:]

    monkeypatch.setattr(documents, "open_source", slow_open_source)
    assert corpus.prepare_corpus(data) == second_results[0]
    assert list(Path(data.cache_dir).iterdir()) == [Path(second_results[0][source].folder)]


@pytest.fixture
def four_files(tmp_path, monkeypatch) -> str:
    """A source of four files. The preparation is saved after each file."""
    for name in "abcd":
        texts = [f"{text} of {name}" for text in TEXTS[:40]] + TEXTS[40:50]
        write_documents(tmp_path / f"{name}.jsonl", texts)
    monkeypatch.setattr(staging, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(preprocessing, "CHARACTERS_PER_TASK", 100)
    return f"jsonl:{tmp_path}/?.jsonl"


def wrap_shards(monkeypatch, wrap: Callable[[int, readers.Shard], readers.Shard]) -> None:
    """Replace each shard of every source by wrap(number of the shard, shard)."""
    list_shards = documents.list_shards
    monkeypatch.setattr(
        documents,
        "list_shards",
        lambda source: [wrap(i, shard) for i, shard in enumerate(list_shards(source))],
    )


def record_read_shards(monkeypatch) -> list[int]:
    """Return a list that receives the number of each shard that is read from now on."""
    numbers: list[int] = []

    def wrap(number, shard):
        def read(handle_error):
            numbers.append(number)
            return shard(handle_error)

        return read

    wrap_shards(monkeypatch, wrap)
    return numbers


@pytest.mark.parametrize("changes", [{}, {"drop_near_duplicates": True, "on_error": "skip"}])
def test_stopped_call_resumes_with_its_current_file(tmp_path, four_files, monkeypatch, changes):
    expected_data = data_config(tmp_path / "uninterrupted", four_files, **changes)
    expected = corpus.prepare_corpus(expected_data)[four_files]
    data = data_config(tmp_path, four_files, **changes)

    def stop_in_third_shard(number, shard):
        def read(handle_error):
            for i, document in enumerate(shard(handle_error)):
                yield document
                if (number, i) == (2, 20):
                    raise KeyboardInterrupt

        return read

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        wrap_shards(patch, stop_in_third_shard)
        corpus.prepare_corpus(data)
    (folder,) = Path(data.cache_dir).iterdir()
    assert folder.name.startswith(".")
    read_shards = record_read_shards(monkeypatch)
    resumed = corpus.prepare_corpus(data)[four_files]
    assert read_shards == [2, 3] and resumed.duplicates == 30
    text_corpora.assert_equal_corpora(resumed, expected)
    assert list(Path(data.cache_dir).iterdir()) == [Path(resumed.folder)]


def stop_at_invalid_line(data, path: Path) -> None:
    """Prepare a source whose last file has an invalid line, and correct the file afterwards."""
    text = path.read_text()
    path.write_text(text + "{")
    with pytest.raises(ValueError, match="d.jsonl line 51: is not JSON"):
        corpus.prepare_corpus(data)
    path.write_text(text)


def test_only_a_corrected_file_is_read_again(tmp_path, four_files, monkeypatch):
    data = data_config(tmp_path, four_files)
    stop_at_invalid_line(data, tmp_path / "d.jsonl")
    read_shards = record_read_shards(monkeypatch)
    assert sum(corpus.prepare_corpus(data)[four_files].documents.values()) == 4 * 40 + 10
    assert read_shards == [3]


@pytest.mark.parametrize("damage", ["an earlier file", "train.bin", "bit", "hashes", "sqlite"])
def test_invalid_staged_corpus_is_prepared_again(tmp_path, four_files, damage):
    data = data_config(tmp_path, four_files)
    stop_at_invalid_line(data, tmp_path / "d.jsonl")
    (folder,) = Path(data.cache_dir).iterdir()
    if damage == "an earlier file":
        write_documents(tmp_path / "b.jsonl", TEXTS[:3])
    elif damage == "train.bin":
        os.truncate(folder / damage, 10)
    elif damage == "bit":
        for name in ("train.bin", "digests"):
            damage_file(folder / name, damage, Path())
    elif damage == "hashes":
        (run,) = Path(folder, "hashes").glob("*.u64")
        run.write_bytes(run.read_bytes()[:-1] + b"?")
    else:  # as an earlier version stored the state
        shutil.rmtree(folder / "hashes")
        (folder / "seen.sqlite").write_bytes(b"state of the last save")
    manifest = corpus.prepare_corpus(data)[four_files]
    expected = corpus.prepare_corpus(data_config(tmp_path / "new", four_files))[four_files]
    text_corpora.assert_equal_corpora(manifest, expected)


def test_removed_staged_files_are_no_second_error(tmp_path):
    """A full disk or another command may remove the files before the staged corpus is closed."""
    with pytest.raises(KeyboardInterrupt):
        with staging.StagedCorpus(tmp_path, "text", ["part"]) as staged:
            shutil.rmtree(staged.folder)
            raise KeyboardInterrupt
    with staging.StagedCorpus(tmp_path, "text", ["part"]) as staged:
        assert staged.folder.exists() and staged.part == 0


def test_unwritable_cache_is_named_in_the_error(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "cache").write_text("a file instead of a folder")
    with pytest.raises(ValueError, match="data.cache_dir=.*cannot be written .*another folder"):
        corpus.prepare_corpus(data_config(tmp_path, source))


def test_full_disk_is_named_in_the_error_and_leaves_no_files(tmp_path):
    """A limit on the size of files has the same effect as a full disk."""
    source = write_documents(tmp_path / "a.jsonl", [text * 100 for text in TEXTS])
    data = data_config(tmp_path, source)
    script = (
        "import sys; from lm.config import schema; from lm.data import corpus\n"
        "try: corpus.prepare_corpus(schema.Data({sys.argv[1]: 1.0}, cache_dir=sys.argv[2]))\n"
        "except ValueError as error: print(error)"
    )
    process = subprocess.run(
        [sys.executable, "-B", "-c", script, source, data.cache_dir],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        cwd=Path(__file__).parents[2],
    )
    expected = f"data.cache_dir={data.cache_dir!r} cannot be written ("
    assert process.stdout.startswith(expected), process
    assert list(Path(data.cache_dir).iterdir()) == []
