"""Saved datasets of token ids are read where they are."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest
from fixtures import memory_bucket
from fixtures.text_corpora import data_config

from experiments.benchmarks import random_formats
from lm.data import corpus, dataset, tokenizers
from lm.data.prepared import token_file

END = tokenizers.ByteTokenizer().end
RNG = np.random.default_rng(0)
DOCUMENTS = [[*RNG.integers(1, 256, n).tolist(), END] for n in RNG.integers(0, 40, 500)]


def save(folder: Path, kind: str = "int32", column: str = "input_ids", **options) -> Path:
    return random_formats.write_arrow(folder, DOCUMENTS, kind, column, **options)


def read_tokens(tmp_path: Path, source: str) -> tuple[list[int], list[int]]:
    manifest = corpus.prepare_corpus(data_config(tmp_path, source))[source]
    ids = [token_file.TokenFile(manifest, split)[:].tolist() for split in corpus.SPLITS]
    assert [ids[0][-1], ids[1][-1]] == [END, END]
    n_documents = {s: i.count(END) for s, i in zip(corpus.SPLITS, ids, strict=True)}
    assert manifest.documents == n_documents and manifest.omitted_files == {"unlisted .arrow": 1}
    return ids[0], ids[1]


@pytest.mark.parametrize("kind", ["int32", "int64", "uint16"])
def test_saved_dataset_gives_its_tokens_and_documents(tmp_path, kind):
    folder = save(tmp_path / "saved", kind)
    train, heldout = read_tokens(tmp_path, f"tokens:{folder}")
    n_tokens = sum(map(len, DOCUMENTS))
    assert len(train) + len(heldout) == n_tokens
    assert len(heldout) == pytest.approx(0.2 * n_tokens, abs=100)
    first = [token for document in DOCUMENTS[::2] for token in document]
    assert train[:3000] == first[:3000]


def test_saved_dataset_in_a_bucket_gives_the_same_batches(tmp_path):
    folder = save(tmp_path / "saved", column="ids")
    local = f"tokens:{folder}?field=ids"
    with memory_bucket.open_memory_bucket():
        memory_bucket.upload_folder(folder, "memory://bucket/saved")
        remote = "tokens:memory://bucket/saved?field=ids"
        assert read_tokens(tmp_path, remote) == read_tokens(tmp_path, local)
        text = dataset.open_dataset(data_config(tmp_path, remote, seq_len=16, batch_size=4), 0)
        assert text.batch(0)["tokens"].shape == (4, 17)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "ids"}, "has no column 'input_ids' but text, ids: choose with"),
        ({"kind": "float32"}, "column 'input_ids' is list<item: float>, not a list of"),
        ({"compression": "zstd"}, "is compressed: save it without compression"),
    ],
)
def test_other_saved_dataset_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        read_tokens(tmp_path, f"tokens:{save(tmp_path / 'saved', **options)}")


def test_forbidden_local_file_is_refused(tmp_path, monkeypatch):
    folder = save(tmp_path / "saved")
    error = PermissionError(13, "Failed to open local file 'PATH'. Detail: [errno 13]")
    monkeypatch.setattr(pyarrow, "memory_map", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(ValueError, match=r"00002\.arrow: cannot be read \(Permission denied\)$"):
        read_tokens(tmp_path, f"tokens:{folder}")


def test_damaged_saved_dataset_is_refused(tmp_path):
    folder = save(tmp_path / "all" / "train")
    save(tmp_path / "all" / "test")
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match="has several splits: name one, such as tokens:"):
        read_tokens(tmp_path, f"tokens:{tmp_path / 'all'}")
    read_tokens(tmp_path, f"tokens:{folder}")
    path = folder / "data-00001-of-00002.arrow"
    content = path.read_bytes()
    for part in (content[:3000], b"", b"x" * 100):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"00001-of-00002.arrow: cannot be read as a stream"):
            read_tokens(tmp_path, f"tokens:{folder}")
    path.unlink()
    with pytest.raises(ValueError, match="arrow: is missing, but listed in state.json"):
        read_tokens(tmp_path, f"tokens:{folder}")
