"""Readers of text sources and their one-line errors."""

import collections
import gzip
import json
import os
import sys
import types

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from lm.data.sources import documents, readers
from lm.data.sources.hub import hub_dataset


def read(source):
    return list(documents.open_source(str(source)))


def texts(source):
    return [document.text for document in read(source)]


def write_lines(path, rows):
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    if path.suffix == ".zst":
        raw = zstandard.compress(raw)
    path.write_bytes(raw)


def test_folder_is_read_in_the_order_of_its_names(tmp_path):
    for name in (
        "b.txt",
        "a/z.md",
        "a/y.PY",
        "d/1.c",
        "c/1.c",
        "e.jpeg",
        ".hidden/x.txt",
        ".x.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text of {name}")
    names = ["b.txt", "a/y.PY", "a/z.md", "c/1.c", "d/1.c"]
    assert texts(f"text:{tmp_path}") == [f"text of {name}" for name in names]


def test_newlines_and_byte_order_marks_are_normalized(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert texts(f"text:{tmp_path}") == ["one\ntwo\nthree"]


@pytest.mark.parametrize("gap", ["\n\n", "\n"])
def test_long_file_is_split_without_loss_of_text(tmp_path, gap):
    parts = [f"paragraph {i} äöü " * 20 for i in range(1000)]
    (tmp_path / "long.txt").write_text(gap.join(parts), encoding="utf-8")
    split_texts = texts(f"text:{tmp_path}/long.txt")
    assert gap.join(split_texts) == gap.join(parts)
    assert len(split_texts) > 5
    assert max(len(text.encode()) for text in split_texts) < 5 * readers.PIECE_BYTES


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_compressed_json_lines_have_the_same_documents(tmp_path, suffix):
    rows = [{"text": f"line {i}\r\n", "body": f"body {i}"} for i in range(3000)]
    write_lines(tmp_path / f"b{suffix}", rows[1500:])
    write_lines(tmp_path / f"a{suffix}", rows[:1500])
    assert texts(f"jsonl:{tmp_path}/*{suffix}") == [f"line {i}\n" for i in range(3000)]
    assert texts(f"jsonl:{tmp_path}/?{suffix}?field=body") == [f"body {i}" for i in range(3000)]


def test_parquet_is_read_in_order_by_field(tmp_path):
    for name, start in (("b", 1500), ("a", 0)):
        rows = range(start, start + 1500)
        table = {"text": [f"line {i}\r\n" for i in rows], "body": [f"body {i}" for i in rows]}
        table["body"][3] = None
        parquet.write_table(pyarrow.table(table), tmp_path / f"{name}.parquet", row_group_size=700)
    assert texts(f"parquet:{tmp_path}/*.parquet") == [f"line {i}\n" for i in range(3000)]
    bodies = ["" if i in (3, 1503) else f"body {i}" for i in range(3000)]
    assert texts(f"parquet:{tmp_path}/*.parquet?field=body") == bodies


@pytest.fixture(autouse=True)
def commit_of_the_hub(monkeypatch):
    """All datasets of the hub have the commit c0."""
    monkeypatch.setattr(hub_dataset, "read_commit", lambda name, revision: "c0")


def test_hub_is_streamed_by_name_config_split_and_field(monkeypatch):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return iter([{"text": "one\r\n", "id": 5}, {"text": "two", "id": 6}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert texts("hf:owner/name:part/train") == ["one\n", "two"]
    options = {"split": "train", "streaming": True, "revision": "c0"}
    assert calls == [(("owner/name", "part"), options)]
    with pytest.raises(ValueError, match="hf:owner/name/train row 0: has no text in 'id' but text"):
        texts("hf:owner/name/train?field=id")
    errors = []
    assert not list(documents.open_source("hf:owner/name/train?field=id", errors.append))
    assert len(errors) == 2 and "row 1: has no text in 'id'" in errors[1]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="needs a missing package: uv sync --extra hf"):
        texts("hf:owner/name/train")


@pytest.mark.parametrize("name", ["openwebtext", "roneneldan/TinyStories", "wikitext:part", "./"])
def test_hub_name_without_split_is_refused(monkeypatch, tmp_path, name):
    """The library is not called, because it would search the hub for another dataset."""
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace())
    (tmp_path / "mine").mkdir()
    name = f"{tmp_path}/mine" if name == "./" else name
    check_error(f"hf:{name}", tmp_path, "names no split: write it as hf:", "/train")


def test_hub_reads_local_folders_and_old_names(monkeypatch, tmp_path):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((*arguments, options["split"]))
        return iter([{"text": None}, {"text": "one"}, {"text": 5}, {}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for name in ("imdb/test[:9]", f"{tmp_path}/part", "owner/name:part/sft"):
        errors = []
        rows = documents.open_source(f"hf:{name}", errors.append)
        assert [document.text for document in rows] == ["", "one"] and len(errors) == 2
    assert calls == [
        ("imdb", None, "test[:9]"),
        (str(tmp_path), None, "part"),
        ("owner/name", "part", "sft"),
    ]
    (tmp_path / "state.json").write_text("{}")
    check_error(
        f"hf:{tmp_path}/train", tmp_path, "was written by Dataset.save_to_disk: write it by"
    )


def test_errors_of_the_hub_are_one_line(monkeypatch, tmp_path):
    def rows():
        yield {"text": "one"}
        raise RuntimeError("connection\nlost")

    datasets = types.SimpleNamespace(load_dataset=lambda *_, **__: rows())
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    check_error("hf:a/b/train", tmp_path, "hf:a/b/train: reading failed (connection lost): repeat")
    datasets.load_dataset = lambda *_, **__: 1 / 0
    check_error("hf:a/b/train", tmp_path, "split 'train' of 'a/b' cannot be read (division by")


def test_synthetic_language_is_a_source(tmp_path):
    name = "synthetic:machine?states=4&megabytes=0.02"
    assert [len(text) for text in texts(name)] == [4096] * 5
    assert documents.source_fingerprint(name) != documents.source_fingerprint(name + "&seed=1")
    check_error(
        "synthetic:machine?state=4",
        tmp_path,
        "state does not exist: did you mean states",
    )


def test_only_unreadable_input_is_skipped(tmp_path):
    write_lines(tmp_path / "a.jsonl.gz", [{"text": os.urandom(50).hex()} for _ in range(2000)])
    raw = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{\n{"text": "two"}\n')
    errors = []
    lines = [d.text for d in documents.open_source(f"jsonl:{tmp_path}/*", errors.append)]
    assert lines[-2:] == ["one", "two"] and 100 < len(lines) < 1900
    assert len(errors) == 2 and "cannot be read to its end" in errors[0] and "line 2" in errors[1]
    (tmp_path / "c.txt").write_bytes(b"good\n\n" * readers.PIECE_BYTES + b"\xff")
    errors.clear()
    assert len(list(documents.open_source(f"text:{tmp_path}/c.txt", errors.append))) > 2
    assert len(errors) == 1 and "c.txt: is not UTF-8" in errors[0]
    table = pyarrow.table({"text": ["one"] * 9})
    parquet.write_table(table, tmp_path / "e.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
    errors.clear()
    rows = list(documents.open_source(f"parquet:{tmp_path}/*.parquet", errors.append))
    assert len(rows) == 9 and "d.parquet: cannot be read" in errors[0] and len(errors) == 1


def test_source_can_be_read_from_any_shard_on(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    source = f"text:{tmp_path}"
    assert len(documents.list_shards(source)) == len(documents.source_fingerprint(source)) == 3
    assert [(d.text, d.part) for d in documents.open_source(source, start=1)] == [
        ("b", 1),
        ("c", 2),
    ]
    name = "synthetic:machine?states=4&megabytes=1"
    all_texts = [document.text for document in documents.open_source(name)]
    assert [document.text for document in documents.open_source(name, start=2)] == all_texts[128:]


def test_sample_is_of_all_parts(tmp_path):
    """Each of 20 files of 900 bytes gives a fifth of the sample, and all text if it is enough."""
    for i in range(20):
        write_lines(tmp_path / f"{i:02}.jsonl", [{"text": f"{i:02} {k:07}"} for k in range(90)])
    source = f"jsonl:{tmp_path}"

    def sample(n_bytes, is_used=lambda document: True):
        return list(documents.sample_source(source, n_bytes, is_used))

    counts = collections.Counter(document.part for document in sample(4000))
    assert counts == dict.fromkeys(range(20), 20)
    assert [d.name for d in sample(4000)] == [d.name for d in sample(4000)]
    parts = {document.part for document in sample(50)}
    assert len(parts) == 5 and parts != set(range(5))
    for n_bytes in (18_000, 10**9):
        assert sorted(sample(n_bytes)) == sorted(read(source))
    odd = sample(10**9, lambda document: int(document.text[-1]) % 2 == 1)
    assert len(odd) == 900
    write_lines(tmp_path / "00.jsonl", [{"text": f"{i:09} "} for i in range(4000)])
    assert sum(len(document.text) for document in sample(50_000)) == 50_000


def test_all_zstd_frames_of_a_file_are_read(tmp_path):
    frames = [zstandard.compress(b'{"text": "%d"}\n' % i) for i in range(3)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert texts(f"jsonl:{tmp_path}/a.jsonl.zst") == ["0", "1", "2"]


def test_fingerprint_changes_with_the_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = f"text:{tmp_path}"
    first = documents.source_fingerprint(source)
    assert documents.source_fingerprint(source) == first
    os.utime(path, ns=(1, 1))
    second = documents.source_fingerprint(source)
    (tmp_path / "b.txt").write_text("two")
    assert first != second != documents.source_fingerprint(source)


def test_code_and_docs_of_one_file_share_a_home():
    code = {document.name: document.home for document in documents.open_source("code")}
    docs = next(documents.open_source("docs"))
    assert docs.home and code[docs.name] == docs.home


def check_error(source, tmp_path, *fragments):
    """Check that reading fails with a one-line message that contains the fragments."""
    with pytest.raises(ValueError) as error:
        read(source)
    line = str(error.value).replace(str(tmp_path), "TMP")
    assert "\n" not in line
    for fragment in fragments:
        assert fragment in line, line


def test_unknown_source_error_suggests_the_nearest_name(tmp_path):
    check_error("doc", tmp_path, "doc does not exist", "docs")
    check_error("json:x", tmp_path, "json does not exist", "jsonl")
    check_error("text:", tmp_path, "must have the form text:PATH")
    check_error("code:x", tmp_path, "'code:x' must have the form code")
    check_error("jsonl:x?field=", tmp_path, "x?field=: field= must be the name of a field")


def test_missing_path_error_names_the_path(tmp_path):
    check_error(f"text:{tmp_path}/no", tmp_path, "text:TMP/no: there is no such file or folder")
    check_error(f"jsonl:{tmp_path}/*.jsonl", tmp_path, "no file matches TMP/*.jsonl")
    check_error(f"text:{tmp_path}", tmp_path, "text:TMP: contains no file with", ".txt")


def test_parquet_error_lists_the_existing_fields(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["a"], "id": [5]}), tmp_path / "a.parquet")
    source = f"parquet:{tmp_path}/a.parquet"
    check_error(source, tmp_path, "TMP/a.parquet: has no field 'text' but body, id: choose with")
    check_error(f"{source}?field=id", tmp_path, "TMP/a.parquet: field 'id' is int64, not text")
    check_error(f"parquet:{tmp_path}/*.pq", tmp_path, "no file matches TMP/*.pq")


def test_binary_file_error_has_the_byte_position(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ab\n\n" * readers.PIECE_BYTES + b"\0")
    position = 4 * readers.PIECE_BYTES
    check_error(
        f"text:{tmp_path}", tmp_path, f"TMP/a.txt: is binary, not text: NUL at byte {position}"
    )


def test_utf8_error_has_the_byte_position(tmp_path):
    (tmp_path / "a.txt").write_bytes(
        "äb\n\n".encode() * readers.PIECE_BYTES + "é".encode("latin-1")
    )
    position = 5 * readers.PIECE_BYTES
    check_error(f"text:{tmp_path}", tmp_path, f"TMP/a.txt: is not UTF-8 at byte {position}")


@pytest.mark.parametrize(
    "line, fragments",
    [
        (b'{"text": "a"', ["TMP/a.jsonl line 2: is not JSON"]),
        (b'{"body": "a", "id": 1}', ["line 2: has no field 'text' but body, id", "?field=NAME"]),
        (b"{}", ["line 2: has no field 'text' but nothing"]),
        (b'["text"]', ["line 2: must be a JSON object"]),
        (b'{"text": 5}', ["line 2: field 'text' is int, not text"]),
        (b'{"text": "\xe9"}', ["TMP/a.jsonl line 2: is not UTF-8 at byte 10"]),
        (b'{"text": "\0"}', ["TMP/a.jsonl line 2: is binary"]),
        (b"[" * 100_000, ["line 2: is not JSON"]),
    ],
)
def test_invalid_line_error_has_file_and_number(tmp_path, line, fragments):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    check_error(f"jsonl:{tmp_path}/a.jsonl", tmp_path, *fragments)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_compressed_file_error_has_its_path(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    write_lines(path, [{"text": os.urandom(50).hex()} for _ in range(2000)])
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    check_error(f"jsonl:{path}", tmp_path, f"TMP/a.jsonl{suffix}: cannot be read to its end")
