"""No hidden folder of a killed preparation remains in the cache."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.text_corpora import TEXTS, data_config, word_texts, write_documents

from lm.data import corpus
from lm.data.prepared import temporary_folders

KILLED_PREPARATION = """
import os, signal, sys
from lm.config import schema
from lm.data import corpus, staging
from lm.data.tokenization import bpe_training
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
setattr({module}, {name!r}, kill)
source, cache = sys.argv[1:]
data = schema.Data({{source: 1.0}}, cache, heldout_fraction=0.2, tokenizer="bpe:290")
corpus.prepare_corpus(data)
"""


def kill_preparation(data, module: str, name: str) -> None:
    """Prepare text in a process that is killed when it calls a function."""
    script = KILLED_PREPARATION.format(module=module, name=name)
    arguments = [*data.sources, data.cache_dir]
    process = subprocess.run(
        [sys.executable, "-B", "-c", script, *arguments],
        cwd=Path(__file__).parents[3],
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


def hidden(data) -> list[str]:
    return [name for name in os.listdir(data.cache_dir) if name.startswith(".")]


def test_killed_tokenizer_training_leaves_nothing(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", word_texts())
    data = data_config(tmp_path, source, tokenizer="bpe:290")
    kill_preparation(data, "bpe_training", "train_bpe")
    assert hidden(data)
    expected = corpus.prepare_corpus(data_config(tmp_path / "new", source, tokenizer="bpe:290"))
    assert corpus.prepare_corpus(data)[source].hash == expected[source].hash
    assert hidden(data) == []


def test_killed_second_preparation_leaves_nothing(tmp_path):
    """The first of two processes finishes after the second was killed."""
    source = write_documents(tmp_path / "a.jsonl", word_texts())
    data = data_config(tmp_path, source, tokenizer="bpe:290")
    folder, lock, _ = temporary_folders.lock_folder(Path(data.cache_dir), "other-0123456789ab")
    corpus.bpe_training.prepare_tokenizer(data, Path(data.cache_dir))
    plan_name = corpus._plan_corpus(
        source,
        data,
        Path(data.cache_dir),
        corpus.bpe_training.prepare_tokenizer(data, Path(data.cache_dir)),
        [],
        corpus.documents.source_fingerprint,
    ).staging_name
    first, first_lock, _ = temporary_folders.lock_folder(Path(data.cache_dir), plan_name)
    kill_preparation(data, "staging.StagedCorpus", "finish")
    assert any(name.endswith(".tmp") for name in hidden(data))
    temporary_folders.release_lock(first_lock)
    corpus.prepare_corpus(data)
    assert sorted(hidden(data)) == sorted([folder.name, f"{folder.name}.lock"])
    assert not first.exists()
    temporary_folders.release_lock(lock)


@pytest.mark.parametrize("days, remains", [(0, True), (6, True), (8, False)])
def test_staged_corpus_is_deleted_after_a_week(tmp_path, days, remains):
    data = data_config(tmp_path, write_documents(tmp_path / "a.jsonl", TEXTS))
    folder = Path(data.cache_dir, ".wiki-0123456789ab")
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(b"1")
    for path in (folder / "train.bin", folder):
        os.utime(path, 2 * (time.time() - days * 86_400,))
    corpus.prepare_corpus(data)
    assert folder.exists() == remains


@pytest.mark.parametrize(
    "name, remains",
    [
        (".bpe-400-0123456789ab-x_0z9abc", False),
        (".blocked-x_0z9abc", False),
        (".wiki-0123456789ab-0f3a99c1.tmp", False),
        (".mine", True),
        ("wiki-0123456789ab", True),
        (".git", True),
    ],
)
def test_only_old_temporary_folders_are_deleted(tmp_path, name, remains):
    """The names are those of folders without locks, which are deleted after a day."""
    (tmp_path / name / "inner").mkdir(parents=True)
    temporary_folders.remove_abandoned(tmp_path)
    assert (tmp_path / name).exists()
    for path in (tmp_path / name / "inner", tmp_path / name):
        os.utime(path, 2 * (time.time() - 2 * 86_400,))
    temporary_folders.remove_abandoned(tmp_path)
    assert (tmp_path / name).exists() == remains
    assert not list(tmp_path.glob("*.lock"))


def test_folder_in_use_is_not_deleted(tmp_path):
    with temporary_folders.temporary_folder(tmp_path, "a") as folder:
        temporary_folders.remove_abandoned(tmp_path)
        assert folder.exists()
        folder.rename(tmp_path / "finished")
    assert [path.name for path in tmp_path.iterdir()] == ["finished"]
    (tmp_path / ".a-01234567.tmp.lock").touch()
    temporary_folders.remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["finished"]


def test_staged_copy_of_a_finished_source_is_deleted(tmp_path):
    data = data_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    tokenizer = corpus.bpe_training.prepare_tokenizer(data, Path(data.cache_dir))
    plan = corpus._plan_corpus(
        source, data, Path(data.cache_dir), tokenizer, [], corpus.documents.source_fingerprint
    )
    corpus.prepare_corpus(data)
    staged = Path(data.cache_dir, f".{plan.staging_name}")
    staged.mkdir()
    (staged / "train.bin").write_bytes(b"1")
    corpus.prepare_corpus(data)
    assert not staged.exists()


def write_folder(path, text):
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_first_published_folder_remains(tmp_path):
    target = tmp_path / "corpus"
    first, second = (write_folder(tmp_path / name, name) for name in ("first", "second"))
    assert temporary_folders.publish_folder(first, target)
    assert not temporary_folders.publish_folder(second, target)
    assert (target / "file").read_text() == "first" and second.exists()


def test_other_error_of_a_publication_is_raised(tmp_path):
    folder = write_folder(tmp_path / "first", "text")
    with pytest.raises(OSError):
        temporary_folders.publish_folder(folder, tmp_path / "missing" / "corpus")
