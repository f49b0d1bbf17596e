"""A host reads the byte ranges of its own rows from a bucket, with the batches of local files."""

import dataclasses
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fixtures import memory_bucket
from fixtures.text_corpora import TEXTS, data_config, write_documents

from lm.data import corpus, dataset, mixture, prefetch, staging, tokenizers
from lm.data.prepared import block_checksums, corpus_manifest
from lm.data.storage import byte_ranges, remote_path

SEQ_LEN = 32
END = tokenizers.ByteTokenizer().end


@pytest.fixture(autouse=True)
def traffic(monkeypatch):
    """Yield the traffic of the bucket. The names of sources do not affect the order of rows."""
    original = mixture.keyed_permutation

    def permuted_without_name(positions, n, key):
        return original(positions, n, tuple(part for part in key if not isinstance(part, str)))

    monkeypatch.setattr(mixture, "keyed_permutation", permuted_without_name)
    monkeypatch.setattr(remote_path, "RETRY_SECONDS", 0.0)
    byte_ranges.shared_reader.cache_clear()
    with memory_bucket.open_memory_bucket() as traffic:
        yield traffic


def write_tokens(folder: Path, n_documents: int = 2000) -> Path:
    """Write a .ds file with its index, and return its folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lengths = rng.integers(5, 60, n_documents)
    ids = rng.integers(1, 256, lengths.sum())
    ids[np.cumsum(lengths) - 1] = END
    ids.astype("<u2").tofile(folder / "a.ds")
    np.cumsum(lengths).astype("<u8").tofile(folder / "a.ds.index")
    return folder


@pytest.mark.parametrize("packing", ["packed", "documents"])
def test_remote_token_files_give_the_local_batches(tmp_path, traffic, packing):
    folder = write_tokens(tmp_path / "tokens")
    memory_bucket.upload_folder(folder, "memory://bucket/tokens")
    options = {"seq_len": SEQ_LEN, "batch_size": 16, "packing": packing}
    remote_source = "tokens:memory://bucket/tokens"
    local = dataset.open_dataset(data_config(tmp_path, f"tokens:{folder}", **options), 3)
    remote = dataset.open_dataset(data_config(tmp_path / "b", remote_source, **options), 3)
    traffic.n_bytes = traffic.n_requests = traffic.largest = 0
    own_rows = slice(4, 8)
    for step in (0, 1, 2, 0):
        expected = {name: value[own_rows] for name, value in local.batch(step).items()}
        batch = remote.batch(step, own_rows)
        assert batch.keys() == expected.keys()
        for name, value in batch.items():
            np.testing.assert_array_equal(value, expected[name])
    reader = byte_ranges.shared_reader(tmp_path / "b" / "cache")
    reader._threads.shutdown(wait=True)
    if packing == "packed":
        assert traffic.largest == 2 * (SEQ_LEN + 1)
        assert traffic.n_requests <= 4 * (prefetch.MAX_STEPS_AHEAD + 3)
    byte_ranges.shared_reader.cache_clear()
    again = dataset.open_dataset(data_config(tmp_path / "b", remote_source, **options), 3)
    for i in (0, 100, slice(50, 300), np.array([7, 1000, 5, 7]), np.array([-1]), slice(9, 1, -2)):
        file = again.train_files[remote_source]
        file = file.file if packing == "documents" else file._file
        expected = local.train_files[f"tokens:{folder}"]
        expected = expected.file if packing == "documents" else expected._file
        np.testing.assert_array_equal(file[i], expected[i])
    np.testing.assert_array_equal(
        again.heldout(remote_source, 5), local.heldout(f"tokens:{folder}", 5)
    )


def test_remote_cache_gives_the_local_batches(tmp_path, traffic, monkeypatch, capsys):
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    local_data = data_config(tmp_path, source, seq_len=SEQ_LEN, batch_size=8)
    remote_data = dataclasses.replace(
        local_data, cache_dir="memory://bucket/data", local_cache_dir=str(tmp_path / "copies")
    )
    corpus.prepare_corpus(remote_data)
    shutil.rmtree(tmp_path / "copies")
    monkeypatch.setattr(staging, "COPIED_BYTES", 0)
    local, remote = (dataset.open_dataset(data, 1) for data in (local_data, remote_data))
    assert not list((tmp_path / "copies").rglob("*.bin"))
    assert local.hash == remote.hash
    for step in (0, 5):
        np.testing.assert_array_equal(remote.batch(step)["tokens"], local.batch(step)["tokens"])
    np.testing.assert_array_equal(remote.heldout(source, 9), local.heldout(source, 9))
    (manifest,) = remote.manifests.values()
    corpus_manifest.verify_files(manifest, verify_all=True)
    files = fsspec.filesystem("memory")
    (name,) = files.glob("/bucket/data/*/train.bin")
    content = files.cat_file(name)
    files.pipe_file(name, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(block_checksums.DamagedText, match="SHA-256 of bytes 0 to .* differs"):
        corpus_manifest.verify_files(manifest, verify_all=True)
    files.pipe_file(name, content[:-1])
    dataset.open_dataset(remote_data, 1)  # prepares the text again
    assert files.cat_file(name) == content
    assert "train.bin has 18,528 bytes instead of 18,529: jsonl:" in capsys.readouterr().err


def test_unreadable_token_files_are_refused_in_one_line(tmp_path, traffic):
    folder = write_tokens(tmp_path / "tokens")
    source = "tokens:memory://bucket/tokens"
    data = data_config(tmp_path, source, seq_len=SEQ_LEN, batch_size=4)

    def error_of(function, *arguments) -> str:
        with pytest.raises(ValueError) as caught:
            function(*arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "there is no such object or folder" in error_of(dataset.open_dataset, data, 0)
    memory_bucket.upload_folder(folder, "memory://bucket/tokens")
    traffic.errors = {"a.ds": PermissionError("403 Forbidden")}
    assert "a.ds: cannot be read (permission denied" in error_of(dataset.open_dataset, data, 0)
    traffic.errors = {}
    index = (folder / "a.ds.index").read_bytes()
    for content in (index[:-3], index[:-8], b""):
        fsspec.filesystem("memory").pipe_file("/bucket/tokens/a.ds.index", content)
        assert "copy both files again" in error_of(dataset.open_dataset, data, 0)
    fsspec.filesystem("memory").pipe_file("/bucket/tokens/a.ds.index", index)
    ids = np.fromfile(folder / "a.ds", "<u2")
    ids[3] = 999
    fsspec.filesystem("memory").pipe_file("/bucket/tokens/a.ds", ids.tobytes())
    assert "token id 999 is not one of the 256" in error_of(dataset.open_dataset, data, 0)
    memory_bucket.upload_folder(folder, "memory://bucket/tokens")
    text = dataset.open_dataset(data, 0)
    traffic.errors = {"a.ds": FileNotFoundError("a.ds")}
    assert "a.ds: cannot be read (there is no such object" in error_of(text.batch, 0)
    fsspec.filesystem("memory").rm("/bucket/tokens/a.ds")
    assert "is missing, but its index" in error_of(dataset.open_dataset, data, 0)
