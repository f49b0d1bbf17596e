"""Damaged prepared text is prepared again with the same bytes, and never used."""

import json
from pathlib import Path

import pytest
from fixtures.damaged_files import DAMAGES, damage_file
from fixtures.text_corpora import TEXTS, data_config, word_texts, write_documents

from lm.config import schema
from lm.data import corpus, dataset, tokenizers
from lm.data.prepared import block_checksums, corpus_manifest
from lm.data.tokenization import bpe_training


@pytest.fixture
def data(tmp_path) -> schema.Data:
    source = write_documents(tmp_path / "a.jsonl", word_texts())
    return data_config(tmp_path, source, tokenizer="bpe:290")


@pytest.fixture
def other(tmp_path) -> schema.Data:
    """Return another config whose prepared files have the same names."""
    source = write_documents(tmp_path / "b.jsonl", [text + " ß" for text in word_texts()])
    return data_config(tmp_path / "other", source, tokenizer="bpe:280")


def contents(data: schema.Data) -> dict[str, bytes]:
    """Return the content of every file in the cache by its path."""
    cache = Path(data.cache_dir)
    files = (path for path in sorted(cache.rglob("*")) if path.is_file())
    return {str(path.relative_to(cache)): path.read_bytes() for path in files}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_prepared_again(data, other, damage, capsys):
    """Every file of the cache is damaged in turn, and bits at several positions."""
    first, _ = corpus.prepare_corpus(data), corpus.prepare_corpus(other)
    expected, other_files = contents(data), contents(other)
    capsys.readouterr()
    for name in expected:
        path = Path(data.cache_dir, name)
        (other_name,) = (n for n in other_files if n[:3] == name[:3] and Path(n).name == path.name)
        for seed in range(3 if damage == "bit" else 1):
            damage_file(path, damage, Path(other.cache_dir, other_name), seed)
            assert corpus.prepare_corpus(data) == first, name
            (line,) = capsys.readouterr().err.splitlines()
            if damage == "missing" and path.name == "block_checksums.json":
                assert line.startswith("note: ")  # as a tokenizer of version 0.2.0
                path.write_bytes(expected[name])
            else:
                assert str(path.parent) in line and "again" in line
            assert contents(data) == expected, name


def test_exchanged_folders_are_prepared_again(data, other):
    """The files of each folder agree with each other, but belong to another text."""
    first = corpus.prepare_corpus(data)
    expected = contents(data)
    corpus.prepare_corpus(other)
    for prefix in ("a-", "bpe-"):
        (own,) = Path(data.cache_dir).glob(f"*{prefix}*")
        (foreign,) = Path(other.cache_dir).glob(f"*{'b-' if prefix == 'a-' else prefix}*")
        for path in own.iterdir():
            path.write_bytes((foreign / path.name).read_bytes())
        assert corpus.prepare_corpus(data) == first and contents(data) == expected


def test_damage_without_its_text_is_refused(data, monkeypatch):
    (manifest,) = corpus.prepare_corpus(data).values()
    damage_file(Path(manifest.folder, "train.bin"), "bit", Path())

    def fail(*_):
        raise ValueError("a.jsonl cannot be downloaded")

    monkeypatch.setattr(corpus.documents, "list_shards", fail)
    with pytest.raises(ValueError, match=r"train.bin is damaged: .*prepared again: a.jsonl") as e:
        corpus.prepare_corpus(data)
    assert "\n" not in str(e.value)


def test_hash_of_repaired_text_is_the_same(data):
    before = dataset.open_dataset(data, 0)
    expected = [before.batch(step)["tokens"].tolist() for step in range(3)]
    (manifest,) = before.manifests.values()
    damage_file(Path(manifest.folder, "train.bin"), "bit", Path())
    after = dataset.open_dataset(data, 0)
    assert after.hash == before.hash
    assert [after.batch(step)["tokens"].tolist() for step in range(3)] == expected


def test_document_hashes_of_other_sources_are_verified(tmp_path):
    first = write_documents(tmp_path / "a.jsonl", TEXTS)
    data = data_config(tmp_path, first, drop_near_duplicates=True)
    manifests = corpus.prepare_corpus(data)
    path = Path(manifests[first].folder, "seen.u64")
    for damage in ("bit", "empty", "missing"):
        damage_file(path, damage, Path())
        second = corpus.prepare_corpus(data)
        assert second[first].hash == manifests[first].hash
        assert block_checksums.block_checksums(path) == second[first].checksums["seen.u64"]


def rewrite(path: Path, **changes) -> None:
    """Change entries of a manifest and remove its checksums, as version 0.2.0 wrote it."""
    values = json.loads(path.read_text())
    for name in ("checksum", "checksums"):
        values.pop(name, None)
    path.write_text(json.dumps(values | changes, indent=2) + "\n")


def test_manifest_without_checksums_gives_one_note(data, capsys):
    (manifest,) = corpus.prepare_corpus(data).values()
    rewrite(Path(manifest.folder, "manifest.json"))
    for folder in Path(data.cache_dir).glob("bpe-*"):
        (folder / "block_checksums.json").unlink()
    capsys.readouterr()
    for _ in range(2):
        (opened,) = corpus.prepare_corpus(data).values()
    assert not opened.checksums and opened.hash == manifest.hash
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("note: ") for line in lines)
    assert f"{manifest.folder} has no checksums" in lines[1]


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": {"train": 51733, "heldout": 12293}},
        {"counted": {"train": 51733, "heldout": 12293}},
        {"tokens": {"train": 5, "heldout": 5}},
        {"tokens": {"train": 5}},
        {"tokens": [1, 2]},
        {"documents": {"train": -1, "heldout": 1}},
        {"documents": {"train": "many", "heldout": 1}},
        {"tokenizer": "0" * 64},
        {"vocab_size": 280},
        {"dtype": "int16"},
        {"dtype": "object"},
        {"key": "0" * 12},
        {"source": "other"},
        {"heldout": 0.3},
        {"unknown": 1},
    ],
    ids=lambda change: json.dumps(change)[:30],
)
def test_wrong_count_without_checksum_is_detected(data, change, capsys):
    (manifest,) = corpus.prepare_corpus(data).values()
    rewrite(Path(manifest.folder, "manifest.json"), **change)
    capsys.readouterr()
    assert list(corpus.prepare_corpus(data).values()) == [manifest]
    (line,) = capsys.readouterr().err.splitlines()
    assert "manifest.json" in line or "train.bin has" in line


def test_invalid_token_id_without_checksum_is_detected(data):
    (manifest,) = corpus.prepare_corpus(data).values()
    rewrite(Path(manifest.folder, "manifest.json"))
    path = Path(manifest.folder, "heldout.bin")
    path.write_bytes(path.read_bytes()[:-1] + b"\x80")
    assert list(corpus.prepare_corpus(data).values()) == [manifest]


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens.json"])
def test_added_tokenizer_file_is_not_used(tmp_path, name):
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    data = data_config(tmp_path, source)
    manifest = corpus.prepare_corpus(data)[source]
    bpe_training.train_bpe(iter(TEXTS), 280).save(tmp_path)
    Path(manifest.folder, name).write_bytes((tmp_path / "tokenizer.json").read_bytes())
    text = dataset.open_dataset(data, 0)
    assert isinstance(text.tokenizer, tokenizers.ByteTokenizer)
    assert not Path(manifest.folder, name).exists()


def test_dataset_refuses_the_tokenizer_of_other_text(data, other):
    (manifest,) = corpus.prepare_corpus(data).values()
    (foreign,) = corpus.prepare_corpus(other).values()
    path = Path(manifest.folder, "tokenizer.json")
    path.write_bytes(Path(foreign.folder, "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="is not the tokenizer of its text"):
        dataset.TokenDataset(data, 0, {manifest.source: manifest})
    path.unlink()
    with pytest.raises(ValueError, match="is not the tokenizer of its text"):
        dataset.TokenDataset(data, 0, {manifest.source: manifest})


def test_stored_manifest_equals_the_returned_one(data):
    (manifest,) = corpus.prepare_corpus(data).values()
    assert corpus_manifest.read_manifest(Path(manifest.folder)) == manifest
    assert set(manifest.checksums) == {"train.bin", "heldout.bin", "tokenizer.json"}
