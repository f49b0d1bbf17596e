"""Blocks of a large token file are verified when they are first read."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fixtures.text_corpora import TEXTS, data_config, write_documents

from lm.data import corpus, dataset
from lm.data.prepared import block_checksums, corpus_manifest, token_file

BLOCK, SEQ_LEN = 64, 16


@pytest.fixture
def manifest(tmp_path, monkeypatch) -> corpus_manifest.Manifest:
    """Prepare a source whose files count as large."""
    monkeypatch.setattr(block_checksums, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(corpus_manifest, "WHOLE_FILE_BYTES", 0)
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    return corpus.prepare_corpus(data_config(tmp_path, source))[source]


def change_byte(manifest: corpus_manifest.Manifest, position: int, split: str = "train") -> None:
    path = Path(manifest.folder, f"{split}.bin")
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_rows_of_large_and_small_files_are_equal(manifest, monkeypatch):
    rows = token_file.TokenRows(token_file.TokenFile(manifest, "train"), SEQ_LEN)
    ids = np.fromfile(Path(manifest.folder, "train.bin"), np.uint8)
    assert len(rows) == (len(ids) - 1) // SEQ_LEN
    for index in (3, -1, slice(2, 9), slice(0, 0), np.array([5, 0, 5]), np.zeros(0, int)):
        starts = np.arange(len(rows))[index] * SEQ_LEN
        expected = ids[np.asarray(starts)[..., None] + np.arange(SEQ_LEN + 1)]
        np.testing.assert_array_equal(rows[index], expected)
    file = token_file.TokenFile(manifest, "train")
    for index in (7, -2, slice(60, 200), np.array([1, 500])):
        np.testing.assert_array_equal(file[index], ids[index])


@pytest.mark.parametrize("index", [slice(None, None, -1), slice(None, None, 3), "mask"])
def test_every_kind_of_index_is_verified(manifest, index):
    """The last row is damaged."""
    n_rows = len(token_file.TokenRows(token_file.TokenFile(manifest, "train"), SEQ_LEN))
    index = np.arange(n_rows) >= n_rows - 1 if isinstance(index, str) else index
    change_byte(manifest, (n_rows - 1) * SEQ_LEN)
    rows = token_file.TokenRows(token_file.TokenFile(manifest, "train"), SEQ_LEN)
    with pytest.raises(block_checksums.DamagedText):
        rows[index]


@pytest.mark.parametrize("position", [0, BLOCK, 10 * BLOCK + 5])
def test_row_of_a_damaged_block_is_refused(manifest, position):
    change_byte(manifest, position)
    rows = token_file.TokenRows(token_file.TokenFile(manifest, "train"), SEQ_LEN)
    damaged = position // BLOCK
    for row in range(len(rows)):
        first, last = row * SEQ_LEN // BLOCK, (row + 1) * SEQ_LEN // BLOCK
        if damaged in (first, last):
            message = r"train.bin .*start experiments.prep"
            with pytest.raises(block_checksums.DamagedText, match=message):
                rows[np.array([row])]
        else:
            rows[np.array([row])]


def test_every_token_of_a_large_file_is_verified(manifest):
    """The last block is shorter than the others."""
    n_tokens = manifest.tokens["train"]
    for position in (0, n_tokens // 2, n_tokens - 1):
        change_byte(manifest, position)
        with pytest.raises(block_checksums.DamagedText):
            token_file.TokenFile(manifest, "train")[:]
        change_byte(manifest, position)
    assert len(token_file.TokenFile(manifest, "train")[:]) == n_tokens


def test_block_is_verified_once(manifest, monkeypatch):
    n_verified = []
    block_damage = block_checksums.block_damage
    monkeypatch.setattr(
        block_checksums, "block_damage", lambda *a: n_verified.append(a[1]) or block_damage(*a)
    )
    file = token_file.TokenFile(manifest, "train")
    for _ in range(2):
        file[:]
    assert n_verified == list(range(-(-len(file) // BLOCK)))


@pytest.mark.parametrize("packing", ["continuous", "documents"])
def test_batches_of_damaged_text_are_refused(tmp_path, manifest, packing):
    source = manifest.source
    data = data_config(tmp_path, source, seq_len=SEQ_LEN, batch_size=8)
    data = dataclasses.replace(data, packing=packing) if packing == "documents" else data
    change_byte(manifest, 5)
    with pytest.raises(block_checksums.DamagedText, match="the SHA-256 of bytes 0 to 63 differs"):
        text = dataset.open_dataset(data, 0)
        for step in range(text.n_rows[source] // 8 + 1):
            text.batch(step)


def test_documents_of_a_damaged_row_are_refused(tmp_path, manifest):
    text = dataset.open_dataset(data_config(tmp_path, manifest.source, seq_len=SEQ_LEN), 0)
    change_byte(manifest, 5)
    with pytest.raises(block_checksums.DamagedText):
        dataset.row_documents(text, manifest.source, 20)


def test_prepare_command_repairs_a_large_file(tmp_path, manifest, capsys):
    data = data_config(tmp_path, manifest.source)
    change_byte(manifest, 5)
    corpus.prepare_corpus(data)
    assert capsys.readouterr().err == ""
    assert corpus.prepare_corpus(data, verify_all=True)[manifest.source] == manifest
    assert "train.bin is damaged: the SHA-256 of bytes 0 to 63 differs" in capsys.readouterr().err
    assert len(token_file.TokenFile(manifest, "train")[:]) == manifest.tokens["train"]


def test_small_file_is_verified_when_it_is_opened(manifest, monkeypatch):
    monkeypatch.setattr(corpus_manifest, "WHOLE_FILE_BYTES", 1 << 28)
    change_byte(manifest, 5, "heldout")
    with pytest.raises(block_checksums.DamagedText, match="heldout.bin is damaged"):
        token_file.TokenFile(manifest, "heldout")
    with pytest.raises(block_checksums.DamagedText, match="it has .* bytes instead of"):
        token_file.TokenFile(dataclasses.replace(manifest, tokens={"heldout": 7}), "heldout")
