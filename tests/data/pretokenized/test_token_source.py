"""Token files of other trainers, read where they are."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
from fixtures import memory_bucket
from fixtures.text_corpora import data_config

from experiments.benchmarks import random_formats
from experiments.benchmarks.random_formats import (
    write_arrow,
    write_datatrove,
    write_llmc,
    write_megatron,
    write_raw,
)
from lm.data import corpus, dataset, tokenizers
from lm.data.prepared import block_checksums, corpus_manifest, token_file
from lm.data.pretokenized import token_formats, token_source
from lm.data.storage import remote_path
from lm.runs import records
from lm.training import loop

TOKENIZER = tokenizers.ByteTokenizer()
TEXTS = [f"Document {i}: häppy " + "x" * (i % 40) for i in range(300)]
DOCUMENTS = [np.r_[TOKENIZER.encode(text), TOKENIZER.end] for text in TEXTS]


FORMATS = {k: v for k, v in random_formats.TOKEN_FORMATS.items() if v[0] is not write_arrow}


def read_split(manifest: corpus_manifest.Manifest, split: str) -> np.ndarray:
    return token_file.TokenFile(manifest, split)[:]


@pytest.mark.parametrize(("write", "options"), FORMATS.values(), ids=FORMATS)
def test_each_format_gives_the_tokens_and_documents(tmp_path, write, options):
    for name, part in (("a", DOCUMENTS[:100]), ("b", DOCUMENTS[100:])):
        write(tmp_path / name, part, **options)
    source = f"tokens:{tmp_path}"
    manifest = corpus.prepare_corpus(data_config(tmp_path, source))[source]
    train, heldout = (read_split(manifest, split) for split in ("train", "heldout"))
    n_tokens = sum(map(len, DOCUMENTS))
    assert len(heldout) == pytest.approx(0.2 * n_tokens, abs=200)
    assert train[-1] == heldout[-1] == TOKENIZER.end
    expected = {}
    for split, ids in (("train", train), ("heldout", heldout)):
        n_documents = int((ids == TOKENIZER.end).sum())
        n_bytes = len(ids) - n_documents
        expected[split] = (len(ids), n_documents, n_bytes)
        counts = (manifest.tokens, manifest.documents, manifest.bytes)
        assert tuple(count[split] for count in counts) == expected[split]
    assert sum(documents for _, documents, _ in expected.values()) == len(DOCUMENTS)
    layouts = token_formats.read_layouts(str(tmp_path))
    ids = np.concatenate([layout.tokens() for layout in layouts])
    np.testing.assert_array_equal(ids, np.concatenate(DOCUMENTS))
    assert not list(Path(manifest.folder).glob("*.bin"))


def test_rows_lie_within_one_file(tmp_path):
    for name, part in (("a", DOCUMENTS[:100]), ("b", DOCUMENTS[100:])):
        write_megatron(tmp_path / name, part)
    source = f"tokens:{tmp_path}"
    data = data_config(tmp_path, source, seq_len=32, batch_size=4)
    text = dataset.open_dataset(data, 0)
    rows, file = text.train_files[source], token_file.TokenFile(text.manifests[source], "train")
    assert len(file.segments) == 2
    ids = file[:]
    for row in (0, 3, len(rows) - 1):
        first = rows.first_token(row)
        np.testing.assert_array_equal(rows[row], ids[first : first + 33])
    numbers = np.array([len(rows) - 1, 0, 5])
    np.testing.assert_array_equal(rows[numbers], np.stack([rows[int(n)] for n in numbers]))
    np.testing.assert_array_equal(rows[1:4], np.stack([rows[n] for n in (1, 2, 3)]))
    np.testing.assert_array_equal(file[np.array([-1, 7])], ids[[-1, 7]])
    assert file[5] == ids[5]
    last = len(rows) - 1
    n_earlier = int((ids[: rows.first_token(last)] == TOKENIZER.end).sum())
    assert dataset.row_documents(text, source, last)[0] == n_earlier


def test_run_trains_on_token_files_and_resumes(tiny, tmp_path):
    write_megatron(tmp_path / "a", DOCUMENTS * 4)
    tiny.data.sources = {f"tokens:{tmp_path}": 1.0}
    tiny.data.packing = "documents"
    tiny.data.heldout_fraction = 0.2
    loop.train(tiny)
    facts = records.read_facts(records.run_dir(tiny))
    assert facts["status"] == "done" and facts["documents.heldout." + next(iter(tiny.data.sources))]
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (tmp_path / "a.bin", tmp_path / "a.idx"):
        path.rename(moved / path.name)
    other = token_source.describe_tokens(f"tokens:{moved}", TOKENIZER, 0.2, lambda *_: None)
    assert other["hash"] == facts["corpus.hash." + next(iter(tiny.data.sources))]


def test_damaged_block_of_a_large_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(block_checksums, "BLOCK_BYTES", 64)
    monkeypatch.setattr(corpus_manifest, "WHOLE_FILE_BYTES", 0)
    path = write_llmc(tmp_path / "a", DOCUMENTS)
    source = f"tokens:{path}"
    manifest = corpus.prepare_corpus(data_config(tmp_path, source))[source]
    file = token_file.TokenFile(manifest, "train")
    content = bytearray(path.read_bytes())
    content[1024 + 2 * 100] ^= 1
    path.write_bytes(content)
    file[2000:2100]
    with pytest.raises(block_checksums.DamagedText, match=r"a\.bin is damaged: the SHA-256"):
        file[90:110]
    with pytest.raises(block_checksums.DamagedText, match="SHA-256"):
        corpus_manifest.verify_files(manifest, verify_all=True)


def test_changed_file_is_described_again_and_unchanged_is_not(tmp_path, monkeypatch):
    path = write_raw(tmp_path / "a", DOCUMENTS)
    source = f"tokens:{path}"
    data = data_config(tmp_path, source)
    first = corpus.prepare_corpus(data)[source]
    calls = []
    original = token_source.describe_tokens
    monkeypatch.setattr(
        token_source, "describe_tokens", lambda *args: calls.append(1) or original(*args)
    )
    assert corpus.prepare_corpus(data)[source] == first and not calls
    write_raw(tmp_path / "a", DOCUMENTS[::-1])
    assert corpus.prepare_corpus(data)[source].hash != first.hash and calls


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("write", "damaged", "message"),
    [
        (write_datatrove, "a.ds", r"a\.ds: .*copy both files again"),
        (write_datatrove, "a.ds.index", r"a\.ds: .*copy both files again"),
        (write_megatron, "a.bin", r"a\.bin: has .*copy both files again"),
        (write_megatron, "a.idx", r"a\.idx: has .*copy both files again"),
        (write_llmc, "a.bin", r"a\.bin: the header gives"),
        (write_raw, "a.bin", r"a\.bin: .*not a whole number of tokens.*dtype="),
    ],
)
def test_truncated_file_is_refused_in_one_line(tmp_path, write, damaged, message):
    write(tmp_path / "a", DOCUMENTS)
    truncate(tmp_path / damaged)
    source = f"tokens:{tmp_path}"
    with pytest.raises(ValueError, match=message) as error:
        corpus.prepare_corpus(data_config(tmp_path, source))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [write_datatrove, write_megatron, write_arrow, write_raw])
def test_missing_or_forbidden_file_gives_one_line(tmp_path, monkeypatch, write):
    """An index without its tokens would otherwise shorten the text. raw files have no index."""
    monkeypatch.setattr(remote_path, "RETRY_SECONDS", 0.0)
    folder, address = tmp_path / "tokens", "memory://bucket/tokens"
    folder.mkdir()
    write(folder / "b", DOCUMENTS[:100])
    path = write(folder / "a", DOCUMENTS[100:])
    path = path if path.is_file() else path / "data-00001-of-00002.arrow"
    index = {".arrow": path.with_name("state.json"), ".ds": Path(f"{path}.index")}
    files = [path, index.get(path.suffix, path.with_suffix(".idx"))]
    files = [file for file in files if file.exists()]

    def assert_refused(source: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            corpus.prepare_corpus(data_config(tmp_path, source))
        assert "\n" not in str(error.value)

    with memory_bucket.open_memory_bucket() as traffic:
        memory_bucket.upload_folder(folder, address)
        for file in files:
            traffic.errors = {file.name: PermissionError("refused")}
            message = f"{file.name}: cannot be read .permission denied: sign in, or grant access"
            assert_refused(f"tokens:{address}", message)
        traffic.errors = {}
        if len(files) == 2:
            path.unlink()
            fsspec.filesystem("memory").rm(f"{address}/{path.relative_to(folder)}")
            for source in (f"tokens:{folder}", f"tokens:{address}"):
                assert_refused(source, f"{path.name}: is missing, but (its index|listed in)")


def test_unrelated_index_files_are_left_out(tmp_path):
    for folder in ("local", "remote"):
        (tmp_path / folder).mkdir()
        write_megatron(tmp_path / folder / "a", DOCUMENTS)
        for name in ("labels.idx", "x.tfrecord.idx", "vectors.bin.index", "empty.idx"):
            (tmp_path / folder / name).write_bytes(b"0 1024\n" * (name != "empty.idx"))
    with memory_bucket.open_memory_bucket():
        memory_bucket.upload_folder(tmp_path / "remote", "memory://bucket/tokens")
        for address in (tmp_path / "local", "memory://bucket/tokens"):
            files = token_formats.list_token_files(str(address))
            assert [path.name for path in files.paths] == ["a.bin", "a.idx"]
            assert files.omitted == {"unrelated .idx": 3, "unrelated .index": 1}
            (layout,) = token_formats.read_layouts(str(address))
            assert layout.n_tokens == sum(map(len, DOCUMENTS))


def test_number_of_requests_is_independent_of_the_files(tmp_path, monkeypatch):
    """A folder is listed once. A glob of token files needs a request per index."""
    n_requests, original = [], remote_path.RemotePath._request
    monkeypatch.setattr(
        remote_path.RemotePath, "_request", lambda *args: n_requests.append(1) or original(*args)
    )
    for i in range(30):
        write_datatrove(tmp_path / f"{i:02}", DOCUMENTS[i : i + 1])
    with memory_bucket.open_memory_bucket():
        memory_bucket.upload_folder(tmp_path, "memory://bucket/tokens")
        files = token_formats.list_token_files("memory://bucket/tokens")
        assert len(files.paths) == 60 and len(n_requests) < 6
        assert token_formats.list_token_files("memory://bucket/tokens/*.ds") == files


def other_end(path: Path) -> None:
    write_megatron(path, [np.r_[ids[:-1], 7] for ids in DOCUMENTS])


def other_vocabulary(path: Path) -> None:
    write_raw(path, [ids.astype(np.uint16) + 300 for ids in DOCUMENTS])


def no_magic(path: Path) -> None:
    write_megatron(path, DOCUMENTS)
    path.with_suffix(".idx").write_bytes(b"")


def two_types(path: Path) -> None:
    write_datatrove(path, DOCUMENTS)
    write_datatrove(path.with_name("b"), DOCUMENTS, "<u4")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_end, "ends with token 7, and the end token of the tokenizer is"),
        (other_vocabulary, "token id [0-9]+ is not one of the .* ids of data.tokenizer"),
        (no_magic, "is not an index of Megatron"),
        (two_types, "types uint16, uint32: use one source per type"),
        (lambda path: None, "contains no file"),
    ],
)
def test_unusable_tokens_are_refused_in_one_line(tmp_path, make, message):
    folder = tmp_path / "tokens"
    folder.mkdir()
    make(folder / "a")
    source = f"tokens:{folder}"
    with pytest.raises(ValueError, match=message) as error:
        corpus.prepare_corpus(data_config(tmp_path, source))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"drop_near_duplicates": True},
        {"decontaminate_ngram": 13},
        {"min_words": 3},
        {"tokenizer": "bpe:300"},
    ],
)
def test_fields_that_need_text_are_refused(tmp_path, changes):
    source = f"tokens:{write_raw(tmp_path / 'a', DOCUMENTS)}"
    with pytest.raises(ValueError, match="needs text, and .* has tokens only"):
        dataset.open_dataset(data_config(tmp_path, source, **changes), 0)


def test_file_without_end_tokens_is_one_document(tmp_path):
    source = f"tokens:{write_raw(tmp_path / 'a', [ids[:-1] for ids in DOCUMENTS])}"
    manifest = corpus.prepare_corpus(data_config(tmp_path, source))[source]
    assert "has no end token" in manifest.warning
    assert manifest.documents == {"train": 1, "heldout": 1}
